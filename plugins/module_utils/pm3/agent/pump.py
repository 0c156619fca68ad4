# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The thread that moves output, from pipes into log files. Owns the logs, and the pipes' descriptors between attach and drain.

How a stream is moved is stream.py's affair; here is whose turn it is. A flood starves nobody: a stream moves at most `_TURN` bytes
before all others had theirs. A trickle of small writes does not wake us for each: when they come faster than `_NAP`, we sleep that
long between two rounds, while the pipes collect. Without output there is no wake-up at all. A stream that leaves something in its
pipe (`held`) is not woken by that, but when more comes, when its time is up, or when another one of its log made way. Nothing here
touches definitions, instances or the loop, but for `Loop.from_thread`.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable
from functools import partial
from typing import Callable

from .log import Log, LogFile
from .loop import Callback, Loop
from .packing import Packer
from .pipes import null, scratch
from .spool import Interrupted
from .stream import FOREVER, Stream
from .terminal import Bridge

_TURN = 256 * 1024  # bytes that a stream may move before the others have their turn
_COMMANDS = 16  # ... and as many new streams may be taken on
_SMALL = 4096  # bytes: a round in which no stream moved as many was hardly worth the wake-up
_NAP = 0.001  # seconds between two such rounds


class Pump:
    """The thread. Its methods may be called from any other thread; what they ask for is done in this one, in their order."""

    def __init__(self, loop: Loop, interrupted: Interrupted) -> None:
        self._loop = loop
        null()  # these two now, not when descriptors may have run out
        scratch()
        self._interrupted = interrupted
        self._epoll = select.epoll()
        self._streams: dict[int, Stream] = {}
        self._bridges: dict[int, Bridge] = {}
        self._logs: dict[bytes, Log] = {}
        self._held: dict[Stream, float] = {}  # until when
        self._again: deque[Stream] = deque()  # held no longer
        self._drains: deque[_Drain] = deque()
        self._packer = Packer(self._command)
        self._pack = self._packer.add  # made once, and not once for each log
        self._commands: deque[Callback] = deque()
        self._command_read, self._command_write = os.pipe()
        os.set_blocking(self._command_read, False)
        os.set_blocking(self._command_write, False)
        self._epoll.register(self._command_read, select.EPOLLIN)
        self._nap = select.poll()
        self._nap.register(self._command_read, select.POLLIN)
        self._running = True
        self._thread = threading.Thread(target=self._run, name="pump", daemon=True)
        self._thread.start()

    def attach(self, streams: tuple[Stream, ...], master: int | None) -> None:
        """`master`: of the terminal that is the stdout of the program, if it has one."""
        self._command(partial(self._attach, streams, master))

    def configure(self, streams: tuple[Stream, ...], files: tuple[LogFile, ...]) -> None:
        """Has attached streams filled as these say from now on. The paths must be the same."""
        self._command(partial(self._configure, streams, files))

    def flush(self, files: Iterable[LogFile], done: Callable[[list[str]], None]) -> None:
        """Empties logs and removes their rotated copies, then calls `done` in this thread with what went wrong."""
        problems: list[str] = []
        for file in files:
            self._command(partial(self._flush, file, problems))
        self._command(partial(done, problems))

    def drain(self, streams: tuple[Stream, ...], master: int | None, done: Callback) -> None:
        """Moves what is in the pipes, then closes them and calls `done` in this thread.

        Nothing of the program may be alive. Where something is nonetheless (it hid from us, there is no cgroup), it cannot hold the
        drain up: no more is moved than a pipe can hold.
        """
        self._command(partial(self._drain, streams, master, done))

    def close(self) -> None:
        """Ends the thread, after the turn that it is in. The pipes stay open, and what is in them stays there."""
        self._command(self._stop)
        self._thread.join()
        self._packer.close()
        for bridge in self._bridges.values():
            bridge.close()
        draining = [stream for drain in self._drains for stream, __ in drain.left]
        for stream in (*self._streams.values(), *draining):
            stream.close_files()
        for log in self._logs.values():
            log.close()
            log.turns.close(over=False)
        self._epoll.close()
        os.close(self._command_read)
        os.close(self._command_write)

    def _command(self, command: Callback) -> None:
        self._commands.append(command)
        try:
            os.write(self._command_write, b"\1")
        except BlockingIOError:
            pass  # it will wake up as it is

    # The thread

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the main thread's
        before = 0.0
        while self._running:
            ready = self._epoll.poll(self._patience(), 256)
            now = time.monotonic()
            most = 0
            for fd, events in ready:
                if fd == self._command_read:
                    self._heard()
                elif fd in self._bridges:
                    most = max(most, self._bridge_turn(self._bridges[fd]))
                else:
                    most = max(most, self._turn(self._streams[fd], now, events))
            self._turns_of_held(now)
            self._obey()  # only now: a command may end streams that are in `ready`
            for __ in range(len(self._drains)):
                self._drain_turn(now)
            if most < _SMALL and now - before < 2 * _NAP and not self._busy() and self._running:
                self._nap.poll(1000 * _NAP)
            before = now

    def _busy(self) -> bool:
        return bool(self._drains or self._commands or self._again)

    def _patience(self) -> float | None:
        if self._busy():
            return 0
        soonest = min(self._held.values(), default=FOREVER)
        return None if soonest == FOREVER else max(0.0, soonest - time.monotonic())

    def _turn(self, stream: Stream, now: float, events: int = 0) -> int:
        try:
            moved = stream.move(_TURN, now, final=bool(events & select.EPOLLHUP))
        except Exception as error:  # the pipe itself is unusable; that must not end everybody's output
            self._loop.from_thread(partial(_raise, error))
            moved = 0
        if moved == 0:
            # Nobody has it open for writing any more, which a level-triggered poll would tell us 400,000 times a second. What
            # somebody writes who opens it again later is found by the drain.
            stream.ended = True
            self._forget(stream)
        elif stream.held is not None:
            if stream not in self._held and stream.holds_in_pipe:
                self._epoll.modify(stream.fd, select.EPOLLIN | select.EPOLLET)
            self._held[stream] = stream.held
        elif self._held.pop(stream, None) is not None:
            self._epoll.modify(stream.fd, select.EPOLLIN)
        if stream.log is not None and stream.log.shared and moved is not None:
            self._make_way(stream.log)
        return moved or 0

    def _turns_of_held(self, now: float) -> None:
        if self._held:
            self._again.extend(stream for stream, until in self._held.items() if until <= now)
        for __ in range(len(self._again)):
            stream = self._again.popleft()
            if self._streams.get(stream.fd) is stream:
                self._turn(stream, now)

    def _make_way(self, log: Log) -> None:
        """Others may be waiting for the end of a line that was written just now, or to be alone."""
        if self._held:
            for stream, until in self._held.items():
                if stream.log is log and (until != FOREVER or not log.shared) and stream not in self._again:
                    self._again.append(stream)

    def _bridge_turn(self, bridge: Bridge) -> int:
        try:
            moved = bridge.turn(_TURN)
        except Exception as error:
            self._loop.from_thread(partial(_raise, error))
            moved = 0
        if moved == 0:
            self._end_bridge(bridge.fd)
        return moved or 0

    def _heard(self) -> None:
        try:
            while len(os.read(self._command_read, 4096)) == 4096:
                pass
        except BlockingIOError:
            pass

    def _obey(self) -> None:
        for __ in range(min(len(self._commands), _COMMANDS)):
            if self._running:
                try:
                    self._commands.popleft()()
                except Exception as error:  # one bad instance must not end everybody's output
                    self._loop.from_thread(partial(_raise, error))

    # Commands

    def _attach(self, streams: tuple[Stream, ...], master: int | None) -> None:
        now = time.monotonic()
        for stream in streams:
            if stream.file is not None:
                stream.start(self._log(stream.file), now)
            self._streams[stream.fd] = stream
            self._epoll.register(stream.fd, select.EPOLLIN)
        if master is not None:
            self._bridges[master] = Bridge(master, streams[0].fd)
            self._epoll.register(master, select.EPOLLIN)

    def _log(self, file: LogFile) -> Log:
        log = self._logs.get(file.key)
        if log is None:
            log = self._logs[file.key] = Log(file, self._interrupted, self._pack)
            if file.options.compress or file.options.total_size:
                log.tidy()
        else:
            log.configure(file)
        return log

    def _configure(self, streams: tuple[Stream, ...], files: tuple[LogFile, ...]) -> None:
        now = time.monotonic()
        for stream, file in zip(streams, files):
            before, log = stream.file, stream.log
            if before is None or log is None or before.key != file.key or self._streams.get(stream.fd) is not stream:
                continue  # it is being drained, or was never attached
            stream.file = file
            log.configure(file)
            log.tidy()
            if _shape(before) != _shape(file):
                stream.reshape(now)
                stream.start_line()
                self._held.pop(stream, None)
                self._epoll.modify(stream.fd, select.EPOLLIN)

    def _flush(self, file: LogFile, problems: list[str]) -> None:
        log = self._logs.get(file.key) or Log(file, self._interrupted, self._pack)
        try:
            log.flush()
        except OSError as error:
            problems.append(f"{file.path} cannot be flushed: {error.strerror}.")
        finally:
            if file.key not in self._logs:
                log.close()
                log.turns.close(over=False)

    def _drain(self, streams: tuple[Stream, ...], master: int | None, done: Callback) -> None:
        bridge = None if master is None else self._bridges.get(master)
        if bridge is not None:
            self._epoll.unregister(bridge.fd)
            del self._bridges[bridge.fd]
        for stream in streams:
            stream.ended = True
            self._forget(stream)
        left = [(stream, stream.capacity()) for stream in streams]
        self._drains.append(_Drain(left, bridge, master, done))

    def _drain_turn(self, now: float) -> None:
        """One turn for the foremost drain; it goes to the end of the queue if more is to be moved."""
        drain = self._drains.popleft()
        bridged = self._drain_bridge(drain)
        left: list[tuple[Stream, int]] = []
        for position, (stream, limit) in enumerate(drain.left):
            if position == 0:
                limit += bridged
            moved = self._drained_of(stream, min(limit, _TURN), now)
            if position == 0 and not moved and not bridged and drain.bridge is not None:
                drain.bridge.close()  # the FIFO was empty, and yet it took no more: the terminal is empty, too
                drain.bridge = None
            if (moved and limit > moved) or drain.bridge is not None:
                left.append((stream, limit - moved))
            else:
                self._end(stream, now)
        if left:
            drain.left = left
            self._drains.append(drain)
        else:
            if drain.master is not None:
                os.close(drain.master)
            drain.done()

    def _drained_of(self, stream: Stream, limit: int, now: float) -> int:
        if stream.log is None or limit <= 0:
            return 0  # it was never attached, or more has come than can have been there
        try:
            return stream.move(limit, now, final=True) or 0
        except Exception as error:
            self._loop.from_thread(partial(_raise, error))
            return 0

    def _drain_bridge(self, drain: _Drain) -> int:
        """What a terminal still holds goes into its FIFO, as much as that takes."""
        bridge = drain.bridge
        if bridge is None or bridge.limit <= 0:
            return 0
        try:
            moved = bridge.turn(min(bridge.limit, _TURN)) or 0
        except Exception as error:
            self._loop.from_thread(partial(_raise, error))
            return 0
        bridge.limit -= moved
        return moved

    def _end(self, stream: Stream, now: float) -> None:
        """The last of a stream: its spool and its pipe go, and its log if nobody else fills it."""
        log = stream.log
        if log is not None:
            try:
                stream.finish(now)
            except Exception as error:
                self._loop.from_thread(partial(_raise, error))
            log.fillers.remove(stream)
            stream.log = None
            self._make_way(log)
            if not log.fillers:
                log.last = None  # or the two would wait for the collector of cycles
                log.close()
                log.turns.close(over=True)
                del self._logs[log.path]
        os.close(stream.fd)

    def _forget(self, stream: Stream) -> None:
        self._held.pop(stream, None)
        if self._streams.pop(stream.fd, None) is not None:
            self._epoll.unregister(stream.fd)

    def _end_bridge(self, master: int) -> None:
        bridge = self._bridges.pop(master, None)
        if bridge is not None:
            self._epoll.unregister(master)
            bridge.close()

    def _stop(self) -> None:
        self._running = False


class _Drain:
    __slots__ = ("bridge", "done", "left", "master")

    def __init__(
        self, left: list[tuple[Stream, int]], bridge: Bridge | None, master: int | None, done: Callback
    ) -> None:
        self.left = left  # with the number of bytes that each may still move
        self.bridge = bridge  # into the foremost of them
        self.master = master
        self.done = done


def _shape(file: LogFile) -> tuple[str | None, ...]:
    return file.options.format, file.options.date_format, file.name, file.process


def _raise(error: BaseException) -> None:
    """On the loop's thread, so that the loop says it."""
    raise error
