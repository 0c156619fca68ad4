# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What `pm3 log` shows: the newest lines of logs (`Tail`), and what is written to them from then on (`Follower`).

It reads the log files and owns nothing but its own descriptors of them; the pump that writes them does not know it. Both work on the
loop's thread in steps of at most one chunk, with everybody else's turns in between. Lines go to `emit(name, line)`. When that answers
False (the line is taken, but the client does not keep up) nothing more is read until `resume`: the file is the buffer, a slow
reader costs us one chunk. Lines are bytes decoded with replacement, without their CR LF or LF, cut at `LINE` bytes.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Callable

from .inotify import CREATE, DELETE, IGNORED, MODIFY, MOVED_FROM, MOVED_TO, OVERFLOW, Inotify
from .loop import READ, Callback, Loop

LINE = 64 * 1024  # bytes of a line that are shown
_CHUNK = 64 * 1024  # bytes read in one step

File = tuple[str, str, str]  # name of the instance, "out" or "err", path
Emit = Callable[[str, str], bool]


class Tail:
    """Emits the newest `lines` lines of each file, file by file in the order given, then calls `done`.

    A last line without its end is a line too. Files that are missing are skipped. Of files whose lines are longer than `LINE` on
    average, fewer lines are shown: no more than `lines` times that is read.
    """

    def __init__(self, loop: Loop, files: Iterable[File], lines: int, emit: Emit, done: Callback) -> None:
        self._done = done
        self._logs = [_Log(name, path) for name, _stream, path in files]
        self._tails = chain.from_iterable(_all_newest(log, lines) for log in self._logs)
        self._steps = _Steps(loop, emit, self._step)
        self._steps.go_on()

    def resume(self) -> None:
        self._steps.resume()

    def close(self) -> None:
        """Ends it, whether it was done or not; `done` is not called."""
        self._steps.close()
        for log in self._logs:
            log.close()

    def _step(self) -> bool:
        for log, lines in self._tails:
            self._steps.emit_soon(log.name, lines)
            return True
        self.close()
        self._done()
        return False


class Follower:
    """Emits the newest `lines` whole lines of each file as `Tail` does, then every line that is written, until closed.

    Nothing is lost or doubled in between. A line is emitted when its end has been written. A file may be missing, truncated, deleted
    or replaced: it is followed by its path. Raises OSError where the kernel grants no more watches, with what to do.
    """

    def __init__(self, loop: Loop, files: Iterable[File], emit: Emit, lines: int = 0) -> None:
        self._loop = loop
        self._logs = list({path: _Log(name, path) for name, _stream, path in files}.values())
        self._tails: Iterator[tuple[_Log, list[bytes]]] = iter(())
        self._changed: dict[_Log, None] = {}  # to be read, the foremost first
        self._live = False  # the tails are through
        self._watches: dict[int, _Log] = {}
        self._folders: dict[int, dict[bytes, _Log]] = {}
        self._inotify = Inotify()
        self._steps = _Steps(loop, emit, self._step)
        try:
            for log in self._logs:
                self._watch_folder(log)
                self._open(log)
            # What is older is for the tails, as of now; a file that is made later is new altogether.
            self._tails = chain.from_iterable(
                [_newest(log, log.size(), lines, whole=True) for log in self._logs if log.fd >= 0]
            )
        except OSError:
            self.close()
            raise
        self._steps.go_on()

    def resume(self) -> None:
        if self._live and not self._steps.closed:
            self._loop.watch(self._inotify.fd, READ, self._read_events)
        self._steps.resume()

    def close(self) -> None:
        if self._steps.closed:
            return
        self._steps.close()
        self._loop.unwatch(self._inotify.fd)
        self._inotify.close()
        for log in self._logs:
            log.close()

    def _step(self) -> bool:
        for log, lines in self._tails:
            self._steps.emit_soon(log.name, lines)
            return True
        if not self._live:
            # What happened meanwhile is in the files, or in events that nobody has read yet.
            self._live = True
            self._loop.watch(self._inotify.fd, READ, self._read_events)
            self._changed = dict.fromkeys(self._logs)
        for log in self._changed:
            del self._changed[log]
            read = log.read(_CHUNK)
            if read is None:
                self._at_end(log)
            else:
                self._steps.emit_soon(log.name, read)
                self._changed[log] = None
            break
        return bool(self._changed)

    def _at_end(self, log: _Log) -> None:
        """The log has been read to its end, which may be the end of a file that is not the log any more."""
        if log.shrunk():
            log.offset = 0
        elif log.moved and log.replaced():
            # Now that there is a new file nothing more is written to the old one: what is in it is all.
            rest = log.read(_CHUNK)
            if rest is None:
                self._leave(log)
                log.moved = False
                self._open(log)
            else:
                self._steps.emit_soon(log.name, rest)
        else:
            if log.deleted():
                self._leave(log)  # while we have it open, we would not be told of the end of its folder
            return
        self._changed[log] = None

    def _leave(self, log: _Log) -> None:
        self._watches.pop(log.watch, None)
        self._inotify.forget(log.watch)
        log.close()

    def _read_events(self) -> None:
        if self._steps.paused:
            self._loop.unwatch(self._inotify.fd)  # until `resume`: the kernel keeps the events, or says OVERFLOW
            return
        for watch, mask, name in self._inotify.read():
            if mask & OVERFLOW:
                for log in self._logs:
                    log.moved = True
                    self._changed[log] = None
            elif watch in self._folders:
                if mask & IGNORED:
                    self._folder_gone(watch)
                elif name in self._folders[watch]:
                    log = self._folders[watch][name]
                    log.moved = True
                    self._changed[log] = None
            elif watch in self._watches and not mask & IGNORED:
                self._changed[self._watches[watch]] = None
        if self._changed:
            self._steps.go_on()

    def _watch_folder(self, log: _Log) -> None:
        folder, name = os.path.split(log.path)
        os.makedirs(folder, 0o750, exist_ok=True)
        watch = self._inotify.watch(folder, CREATE | DELETE | MOVED_FROM | MOVED_TO)
        self._folders.setdefault(watch, {})[name] = log

    def _folder_gone(self, watch: int) -> None:
        for log in self._folders.pop(watch).values():
            self._watch_folder(log)
            log.moved = True
            self._changed[log] = None

    def _open(self, log: _Log) -> None:
        if log.open():
            # By its descriptor, for the path may lead to another file by now.
            log.watch = self._inotify.watch(b"/proc/self/fd/%d" % log.fd, MODIFY)
            self._watches[log.watch] = log


class _Steps:
    """Takes `step` after `step` on the loop, as long as one says that there is more and the reader of the lines keeps up."""

    def __init__(self, loop: Loop, emit: Emit, step: Callable[[], bool]) -> None:
        self._loop = loop
        self._emit = emit
        self._step = step
        self._lines: deque[tuple[str, bytes]] = deque()  # from one step, not emitted yet
        self._queued = False
        self.paused = False
        self.closed = False

    def emit_soon(self, name: str, lines: Iterable[bytes]) -> None:
        self._lines.extend((name, line) for line in lines)

    def go_on(self) -> None:
        if not self._queued and not self.paused and not self.closed:
            self._queued = True
            self._loop.soon(self._turn)

    def resume(self) -> None:
        self.paused = False
        self.go_on()

    def close(self) -> None:
        self.closed = True
        self._lines.clear()

    def _turn(self) -> None:
        self._queued = False
        while self._lines and not self.closed and not self.paused:
            name, line = self._lines.popleft()
            self.paused = not self._emit(name, line.decode("utf-8", "replace").rstrip("\r"))
        if not self.closed and not self.paused and self._step():
            self.go_on()


class _Log:
    """One log file, read line by line."""

    __slots__ = ("_long", "_open_line", "fd", "moved", "name", "offset", "path", "watch")

    def __init__(self, name: str, path: str) -> None:
        self.name = name
        self.path = path.encode("utf-8", "surrogateescape")  # as the pump names it
        self.fd = -1
        self.offset = 0
        self.watch = -1
        self.moved = False  # the path may lead to another file than the one that is open
        self._open_line = b""  # the beginning of a line whose end has not been read
        self._long = False  # ... or that line was longer than LINE, is emitted, and its rest is passed over

    def open(self) -> bool:
        """Opens the file, to be read from its beginning. The open line is kept: whoever replaced the file cut it, not the program."""
        self.offset = 0
        try:
            self.fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        return True

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def shrunk(self) -> bool:
        return self.fd >= 0 and self.size() < self.offset

    def deleted(self) -> bool:
        return self.fd >= 0 and not os.fstat(self.fd).st_nlink

    def replaced(self) -> bool:
        """The path leads to a file, and not to the one that is open."""
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return False
        return self.fd < 0 or not os.path.samestat(found, os.fstat(self.fd))

    def read(self, limit: int) -> list[bytes] | None:
        """The lines that end in the next `limit` bytes. None: the file holds no more."""
        data = os.pread(self.fd, limit, self.offset) if self.fd >= 0 else b""
        if not data:
            return None
        self.offset += len(data)
        if self._long:
            _passed, newline, data = data.partition(b"\n")
            self._long = not newline
            if self._long:
                return []
        lines = (self._open_line + data).split(b"\n")
        self._open_line = lines.pop()
        if len(self._open_line) >= LINE:
            lines.append(self._open_line)
            self._open_line, self._long = b"", True
        return [line[:LINE] for line in lines]

    def open_line(self) -> list[bytes]:
        return [self._open_line] if self._open_line else []


def _all_newest(log: _Log, lines: int) -> Iterator[tuple[_Log, list[bytes]]]:
    """The newest lines of a log in bounded steps, a last one without its end among them. It is open only meanwhile."""
    if log.open():
        yield from _newest(log, log.size(), lines, whole=False)
        yield log, log.open_line()
        log.close()


def _newest(log: _Log, end: int, lines: int, whole: bool) -> Iterator[tuple[_Log, list[bytes]]]:
    """The newest lines of an open log before `end` in bounded steps, but for a last line without its end: `whole` says that it does
    not count as one of them. It stays in the log as its open line.
    """
    begin = end
    if lines or whole:
        # The newline before the first of the lines; the one at the very end of the last line is on the way.
        wanted = lines + 1
        if not whole and end and os.pread(log.fd, 1, end - 1) != b"\n":
            wanted = lines
        least = max(0, end - max(lines, 1) * LINE)
        while wanted and begin > least:
            upper, begin = begin, max(least, begin - _CHUNK)
            data = os.pread(log.fd, upper - begin, begin)
            found = len(data)
            while wanted and found >= 0:
                found = data.rfind(b"\n", 0, found)
                wanted -= found >= 0
            if not wanted:
                begin += found + 1
            yield log, []
    log.offset = begin
    while log.offset < end:
        read = log.read(min(_CHUNK, end - log.offset))
        if read is None:
            break  # truncated under us
        yield log, read
