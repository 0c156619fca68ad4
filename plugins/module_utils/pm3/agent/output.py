# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What programs write: a FIFO for each stream of each spawn, and the pump that empties them into log files.

The child opens the FIFO for reading *and* writing, so that it never lacks a reader: it can outlive the agent, waiting at worst for
room in the pipe. The agent holds a read end only, or it would never see the end of file. A FIFO's content vanishes with its last
opener, so whoever re-executes the agent keeps `Streams.read_fds` open across that (they stay open after `Pumps.close`), and a
service manager gets copies of them before the spawn.

A program that wants a terminal gets one for stdout; its bytes go through the same FIFO (terminal.py).

Owns the FIFOs in the run folder. The moving itself is pump.py, in a thread of its own; everything here is called from the loop's.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Callable

from . import spool, terminal
from .folders import open_to_read
from .log import LogFile
from .loop import Callback, Loop
from .pump import Pump
from .spool import Interrupted
from .stream import Stream

ENDINGS = (".out", ".err")
COPY = ".of"  # a link that leads nowhere, and is the name of an instance
_KINDS = ("stdout", "stderr")


class Streams:
    """stdout and stderr of one spawn. The descriptors are ours to read; after `Pumps.drain` they are closed and gone."""

    __slots__ = ("_paths", "_slave", "_slave_name", "master", "read_fds", "spawn_id", "streams")

    def __init__(
        self, spawn_id: str, paths: tuple[str, str], pipes: Sequence[int], fresh: bool, master: int | None = None
    ) -> None:
        self.spawn_id = spawn_id
        self.master = master  # of the terminal that is the program's stdout, if it has one
        self.read_fds: tuple[int, ...] = (*pipes,) if master is None else (*pipes, master)
        first, second = (Stream(pipe, path, kind, fresh) for pipe, path, kind in zip(pipes, paths, _KINDS))
        self.streams = (first, second)
        self._paths = paths
        self._slave, self._slave_name = -1, ""

    @property
    def lost(self) -> tuple[int, int]:
        """Bytes of stdout and of stderr that were thrown away because their log could not be written."""
        return self.streams[0].lost, self.streams[1].lost

    def open_write(self) -> tuple[int, int]:
        """The child's ends. Close them right after the spawn: while anybody but the child has one, there is no end of file."""
        first = self._open_stdout()
        try:
            return first, os.open(self._paths[1], os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            os.close(first)
            raise

    def use_terminal(self, owner: tuple[int, int] | None) -> None:
        self.master, self._slave, self._slave_name = terminal.make(owner)
        self.read_fds = (*self.read_fds[:2], self.master)

    def close_slave(self) -> None:
        if self._slave >= 0:
            os.close(self._slave)
            self._slave = -1

    def unlink(self) -> None:
        _unlink((*self._paths, os.path.splitext(self._paths[0])[0] + COPY))

    def _open_stdout(self) -> int:
        if self.master is None:
            return os.open(self._paths[0], os.O_RDWR | os.O_CLOEXEC)
        if self._slave < 0:
            return os.open(self._slave_name, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        given, self._slave = self._slave, -1  # open until now: a terminal that nobody has open any more is over
        return given


class Pumps:
    def __init__(self, loop: Loop, run_folder: str) -> None:
        self._loop = loop
        self._folder = run_folder
        self._pump = Pump(loop, Interrupted(run_folder))

    def prepare(
        self, spawn_id: str, owner: tuple[int, int] | None, tty: bool = False, copy_of: str | None = None
    ) -> Streams:
        """Makes the FIFOs of a spawn that is to come, for the user and group `owner` (None: our own), and opens our ends.

        `tty`: stdout is a terminal, whose master is the third of `Streams.read_fds`, to be kept like the others. `copy_of`: the
        instance beside which it is a copy, for `copied`.
        """
        paths = self._paths(spawn_id)
        opened: list[int] = []
        try:
            for path in paths:
                spool.unlink(path)
                _make(path)
                opened.append(_open_read(path))
                if owner is not None:
                    os.chown(path, owner[0], owner[1])
            streams = Streams(spawn_id, paths, opened, fresh=True)
            if tty:
                streams.use_terminal(owner)
            if copy_of is not None:
                _unlink([self._copy(spawn_id)])
                os.symlink(copy_of, self._copy(spawn_id))
            return streams
        except OSError:
            for fd in opened:
                os.close(fd)
            _unlink(paths)
            raise

    def reopen(self, spawn_id: str, fds: Sequence[int] | None) -> Streams | None:
        """The streams of a spawn of an earlier agent, from the descriptors that were kept of it (in any order) or else by their path.

        None: there are none any more, everything had been drained.
        """
        paths = self._paths(spawn_id)
        pipes, masters = _sorted(fds or (), paths)
        opened: list[int] = []
        try:
            for number, path in enumerate(paths):
                if pipes[number] is None:
                    opened.append(_open_read(path))
                    pipes[number] = opened[-1]
        except FileNotFoundError:  # both are drained before the first is unlinked
            for fd in (*opened, *(fds or ())):
                os.close(fd)
            _unlink(paths)
            return None
        for fd in fds or ():
            os.set_blocking(fd, False)
            os.set_inheritable(fd, False)
        found = [pipe for pipe in pipes if pipe is not None]
        return Streams(spawn_id, paths, found, fresh=False, master=masters[0] if masters else None)

    def copied(self, spawn_id: str) -> str | None:
        """The instance of which a spawn is a copy, as `prepare` was told by whichever agent prepared it."""
        try:
            return os.readlink(self._copy(spawn_id))
        except OSError:
            return None

    def spawn_ids(self) -> set[str]:
        """The spawns of which FIFOs are there."""
        return {os.path.splitext(name)[0] for name in os.listdir(self._folder) if name.endswith(ENDINGS)}

    def attach(self, streams: Streams, logs: tuple[LogFile, LogFile], on_error: Callable[[str, str], None]) -> None:
        """From now on output goes to the end of these files, which are made where they are missing.

        `on_error` gets the instance's name and one sentence per stream when its log cannot be written, and again only after it could
        be in between; in the pump's thread. Until then the program goes on, and its output is thrown away (`Streams.lost`).
        """
        for stream, file in zip(streams.streams, logs):
            stream.fill(file, on_error)
        self._pump.attach(streams.streams, streams.master)

    def reconfigure(self, streams: Streams, logs: tuple[LogFile, LogFile]) -> None:
        """Has attached streams logged as these say from now on. The paths must be those of `attach`."""
        self._pump.configure(streams.streams, logs)

    def flush(self, logs: Iterable[LogFile], done: Callable[[list[str]], None]) -> None:
        """Empties logs, whether or not a stream fills them now, and removes their rotated copies and indexes.

        The live files remain. `done` gets a sentence for each that could not be.
        """
        self._pump.flush(logs, lambda problems: self._loop.from_thread(partial(done, problems)))

    def drain(self, streams: Streams, done: Callback) -> None:
        """Everything of the spawn is dead: moves what is left in the FIFOs, closes and removes them, then calls `done`.

        For streams that were never attached: only closes and removes them.
        """

        def drained() -> None:
            streams.unlink()
            self._loop.from_thread(done)

        streams.close_slave()
        self._pump.drain(streams.streams, streams.master, drained)

    def close(self) -> None:
        """Ends the thread. What is in a FIFO stays there, and our read ends stay open: the agent is going to be re-executed."""
        self._pump.close()

    def _copy(self, spawn_id: str) -> str:
        return os.path.join(self._folder, spawn_id + COPY)

    def _paths(self, spawn_id: str) -> tuple[str, str]:
        first, second = (os.path.join(self._folder, spawn_id + ending) for ending in ENDINGS)
        return first, second


def last_lines(log: LogFile, lines: int, since: int, limit_bytes: int = 64 * 1024) -> list[str]:
    """The newest `lines` lines of a log, as far as its last `limit_bytes` hold them; a line without its end yet is one too.

    `since` is the size that it had at some earlier moment: what was in it then is not given, unless it was truncated meanwhile.
    Bytes that are no UTF-8 are replaced. Of a single line longer than the limit, the end is given. No such file: no lines.
    """
    try:
        fd = open_to_read(log.key, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, log.follow)
    except OSError:
        return []
    try:
        size = os.fstat(fd).st_size
        begin = max(0, size - limit_bytes, since if since <= size else 0)
        # One byte more tells whether the first line begins here or earlier.
        found = os.pread(fd, limit_bytes + 1, begin - 1) if begin else b"\n" + os.pread(fd, limit_bytes, 0)
    except OSError:
        return []
    finally:
        os.close(fd)
    before, __, text = found.partition(b"\n")
    if begin and begin == since:
        text = found[1:].lstrip(b"\n")  # the pump ends an earlier line that was left open
    elif not text:
        text = before[-limit_bytes:]
    ended = text[:-1] if text.endswith(b"\n") else text
    if not text or lines <= 0:
        return []
    return [line.decode("utf-8", "replace").rstrip("\r") for line in ended.split(b"\n")[-lines:]]


def _sorted(fds: Sequence[int], paths: tuple[str, str]) -> tuple[list[int | None], list[int]]:
    """The pipes of stdout and of stderr, as far as they are among these, and the masters of terminals."""
    found: list[int | None] = [None, None]
    pipes = [fd for fd in fds if stat.S_ISFIFO(os.fstat(fd).st_mode)]
    for number, path in enumerate(paths):
        try:
            status = os.stat(path)
        except FileNotFoundError:
            continue
        for fd in pipes:
            if os.path.samestat(os.fstat(fd), status):
                found[number] = fd
    unnamed = [fd for fd in pipes if fd not in found]  # somebody removed their files: then the order has to do
    for number in (0, 1):
        if found[number] is None and unnamed:
            found[number] = unnamed.pop(0)
    return found, [fd for fd in fds if stat.S_ISCHR(os.fstat(fd).st_mode)]


def _make(path: str) -> None:
    try:
        os.mkfifo(path, 0o600)
    except FileExistsError:  # left by a spawn that a crash forestalled
        os.unlink(path)
        os.mkfifo(path, 0o600)


def _open_read(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def _unlink(paths: Iterable[str]) -> None:
    for path in paths:
        spool.unlink(path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
