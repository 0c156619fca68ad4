# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The thread that moves output, from pipes into log files. Owns the log files' descriptors, and the pipes' between attach and drain.

A byte is in the pipe or in the file, never in our memory: `splice` moves it inside the kernel, and a SIGKILL takes effect before or
after that call, not in its midst. So this thread can end at any instruction, and its successor goes on at the end of the file without
a lost, doubled or cut line. (It asks for a log opened without O_APPEND, which `splice` refuses, and for one writer per log.)

A flood starves nobody: a stream moves at most `_TURN` bytes before all others had theirs. A trickle of small writes does not wake us
for each: when they come faster than `_NAP`, we sleep that long between two rounds, while the pipes collect. Without output there is
no wake-up at all. Nothing here touches definitions, instances or the loop, but for `Loop.from_thread`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import stat
import sys
import threading
import time
from collections import deque
from functools import partial
from typing import Callable

from .loop import Callback, Loop

_TURN = 256 * 1024  # bytes that a stream may move before the others have their turn
_FULL = 32 * 1024  # a default pipe that is full holds no less, however its writes lie in its sixteen pages
_FLOOD = 4  # turns with a full pipe within a second after which the pipe is enlarged
_LARGE = 256 * 1024  # bytes: more was no faster
_COMMANDS = 16  # ... and as many new streams may be taken on
_SMALL = 4096  # bytes: a round in which no stream moved as many was hardly worth the wake-up
_NAP = 0.001  # seconds between two such rounds
_RETRY = 1.0  # seconds after which a log that could not be written is tried again
_SET_PIPE_SIZE, _GET_PIPE_SIZE = 1031, 1032  # F_SETPIPE_SZ, F_GETPIPE_SZ: named in Python 3.10
_NONBLOCK = 2  # SPLICE_F_NONBLOCK

if sys.version_info >= (3, 10):

    def splice(pipe: int, file: int, count: int) -> int:
        """Moves at most `count` bytes. 0: end of file. BlockingIOError: the pipe is empty, and somebody can still write to it."""
        return os.splice(pipe, file, count, flags=_NONBLOCK)

else:
    import ctypes

    _libc = ctypes.CDLL(None, use_errno=True)
    _libc.splice.restype = ctypes.c_ssize_t
    _libc.splice.argtypes = (
        *(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p),
        *(ctypes.c_size_t, ctypes.c_uint),
    )

    def splice(pipe: int, file: int, count: int) -> int:
        """Moves at most `count` bytes. 0: end of file. BlockingIOError: the pipe is empty, and somebody can still write to it."""
        while True:
            moved: int = _libc.splice(pipe, None, file, None, count, _NONBLOCK)
            if moved >= 0:
                return moved
            number = ctypes.get_errno()
            if number != errno.EINTR:
                raise OSError(number, os.strerror(number))


class Stream:
    """One pipe and the log that it fills. Used by the pump's thread alone, but for `lost`, which anybody may read."""

    __slots__ = (
        "_apart",
        "_flood_began",
        "_full_turns",
        "_identity",
        "_log",
        "_on_error",
        "_position",
        "_retry_at",
        "fd",
        "lost",
        "path",
    )

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.path = b""
        self.lost = 0  # bytes that were read and thrown away, because the log could not be written
        self._on_error: Callable[[str], None] | None = None
        self._apart = False
        self._log = -1
        self._identity = (0, 0)  # device and inode of the log
        self._position = 0  # where the next byte goes, as the kernel has it too
        self._retry_at: float | None = None  # while the log cannot be written: when it is tried again
        self._full_turns = 0
        self._flood_began = 0.0

    def fill(self, path: bytes, apart: bool, on_error: Callable[[str], None]) -> None:
        """Names the log. `apart`: what it holds already is another spawn's, so a line left open there is ended first."""
        self.path, self._apart, self._on_error = path, apart, on_error

    def prepare(self, now: float) -> None:
        """Makes the log, so that it is there (or known to be unwritable) before the first byte."""
        try:
            self._find_log()
        except OSError as error:
            self._fail(error, now)

    def move(self, limit: int, now: float) -> int | None:
        """Moves at most `limit` bytes and says how many. None: the pipe is empty for now. 0: it is, and nobody can write to it."""
        try:
            if self._retry_at is None or now >= self._retry_at:
                try:
                    self._find_log()
                    moved = splice(self.fd, self._log, limit)
                    self._position += moved
                    self._retry_at = None
                    if moved >= _FULL:
                        self._note_flood(now)
                    return moved
                except BlockingIOError:
                    raise
                except OSError as error:
                    self._fail(error, now)
            moved = splice(self.fd, _null(), limit)  # the program must go on, whatever became of its log
            self.lost += moved
            return moved
        except BlockingIOError:
            return None

    def capacity(self) -> int:
        return fcntl.fcntl(self.fd, _GET_PIPE_SIZE)

    def close_log(self) -> None:
        if self._log >= 0:
            os.close(self._log)
            self._log = -1

    def _find_log(self) -> None:
        """Has the log open with its position at the end: also after somebody deleted, renamed, truncated or lengthened it."""
        if self._log >= 0:
            try:
                found = os.stat(self.path)
            except FileNotFoundError:
                found = None
            if found is not None and (found.st_dev, found.st_ino) == self._identity:
                if found.st_size != self._position:
                    self._position = os.lseek(self._log, 0, os.SEEK_END)
                return
            self.close_log()
        self._log = _open_log(self.path)
        found = os.fstat(self._log)
        if not stat.S_ISREG(found.st_mode) and found.st_rdev != os.fstat(_null()).st_rdev:
            raise OSError(errno.EINVAL, "it is not a regular file")
        self._identity = (found.st_dev, found.st_ino)
        self._position = os.lseek(self._log, 0, os.SEEK_END)
        if self._apart and self._position and os.pread(self._log, 1, self._position - 1) != b"\n":
            self._position += os.write(self._log, b"\n")
        self._apart = False

    def _fail(self, error: OSError, now: float) -> None:
        """Says so once, until the log has been written again."""
        self.close_log()
        first, self._retry_at = self._retry_at is None, now + _RETRY
        if first and self._on_error is not None:
            path = os.fsdecode(self.path)
            self._on_error(
                f"{path} cannot be written: {error.strerror}. The program goes on; its output is thrown away until the log can be written."
            )

    def _note_flood(self, now: float) -> None:
        if now - self._flood_began > 1.0:
            self._flood_began, self._full_turns = now, 0
        self._full_turns += 1
        if self._full_turns == _FLOOD:
            try:
                fcntl.fcntl(self.fd, _SET_PIPE_SIZE, _LARGE)
            except OSError:
                pass  # beyond what this user may hold in pipes: it works as it is, only slower


class Pump:
    """The thread. Its methods may be called from any other thread; what they ask for is done in this one, in their order."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        _null()  # now, not when descriptors may have run out
        self._epoll = select.epoll()
        self._streams: dict[int, Stream] = {}
        self._drains: deque[_Drain] = deque()
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

    def attach(self, streams: tuple[Stream, ...]) -> None:
        self._command(partial(self._attach, streams))

    def drain(self, streams: tuple[Stream, ...], done: Callback) -> None:
        """Moves what is in the pipes, then closes them and calls `done` in this thread.

        Nothing of the program may be alive. Where something is nonetheless (it hid from us, there is no cgroup), it cannot hold the
        drain up: no more is moved than a pipe can hold.
        """
        self._command(partial(self._drain, streams, done))

    def close(self) -> None:
        """Ends the thread, after the turn that it is in. The pipes stay open, and what is in them stays there."""
        self._command(self._stop)
        self._thread.join()
        for stream in self._streams.values():
            stream.close_log()
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
            ready = self._epoll.poll(0 if self._drains or self._commands else None, 256)
            now = time.monotonic()
            most = 0
            for fd, _events in ready:
                if fd == self._command_read:
                    self._heard()
                else:
                    most = max(most, self._turn(self._streams[fd], now))
            self._obey()  # only now: a command may end streams that are in `ready`
            for __ in range(len(self._drains)):
                self._drain_turn(now)
            if most < _SMALL and now - before < 2 * _NAP and not self._drains and not self._commands and self._running:
                self._nap.poll(1000 * _NAP)
            before = now

    def _turn(self, stream: Stream, now: float) -> int:
        try:
            moved = stream.move(_TURN, now)
        except Exception as error:  # the pipe itself is unusable; that must not end everybody's output
            self._loop.from_thread(partial(_raise, error))
            moved = 0
        if moved == 0:
            # Nobody has it open for writing any more, which a level-triggered poll would tell us 400,000 times a second. What
            # somebody writes who opens it again later is found by the drain.
            self._forget(stream)
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

    def _attach(self, streams: tuple[Stream, ...]) -> None:
        now = time.monotonic()
        for stream in streams:
            stream.prepare(now)
            self._streams[stream.fd] = stream
            self._epoll.register(stream.fd, select.EPOLLIN)

    def _drain(self, streams: tuple[Stream, ...], done: Callback) -> None:
        for stream in streams:
            self._forget(stream)
        self._drains.append(_Drain([(stream, stream.capacity()) for stream in streams], done))

    def _drain_turn(self, now: float) -> None:
        """One turn for the foremost drain; it goes to the end of the queue if more is to be moved."""
        drain = self._drains.popleft()
        left: list[tuple[Stream, int]] = []
        for stream, limit in drain.left:
            try:
                moved = stream.move(min(limit, _TURN), now) or 0
            except Exception as error:
                self._loop.from_thread(partial(_raise, error))
                moved = 0
            if moved and limit > moved:
                left.append((stream, limit - moved))
            else:
                stream.close_log()
                os.close(stream.fd)
        if left:
            drain.left = left
            self._drains.append(drain)
        else:
            drain.done()

    def _forget(self, stream: Stream) -> None:
        if self._streams.pop(stream.fd, None) is not None:
            self._epoll.unregister(stream.fd)

    def _stop(self) -> None:
        self._running = False


class _Drain:
    __slots__ = ("done", "left")

    def __init__(self, left: list[tuple[Stream, int]], done: Callback) -> None:
        self.left = left  # with the number of bytes that each may still move
        self.done = done


_null_fd: list[int] = []


def _null() -> int:
    if not _null_fd:
        _null_fd.append(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC))
    return _null_fd[0]


def _open_log(path: bytes) -> int:
    # O_NONBLOCK: should somebody have put a FIFO there, opening it must not hold up all other logs.
    flags = os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), 0o750, exist_ok=True)
        return os.open(path, flags | os.O_CREAT, 0o640)


def _raise(error: BaseException) -> None:
    """On the loop's thread, so that the loop says it."""
    raise error
