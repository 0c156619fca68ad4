# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What `pm3 log --follow` shows: the newest lines of logs, and then what is written to them, until its client leaves.

The kernel says which log has changed (inotify.py), and a round takes what came until then to all of these, in order of time. A
log is followed by the file that is open: when that was renamed, it is read to its end, then all that were live after it, then the
live one. What was written but for its index record yet has the time of the file's last write.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator

from .inotify import CREATE, DELETE, IGNORED, MODIFY, MOVED_FROM, MOVED_TO, OVERFLOW, Inotify
from .log_file import Copy, Descriptors, File, Part, Source, copies, is_packed, open_copy
from .log_index import Record, Times, first
from .logs import Emit, Merge, Steps, Work, newest
from .loop import READ, Callback, Loop

_ALL = 1 << 62  # bytes
_BEHIND = 100_000_000  # nanoseconds that the last write may be younger than its record


class Follower:
    """Emits the newest `lines` whole lines of each file as `Tail` does, then every line that is written, until closed.

    Nothing is lost or doubled in between. A line is emitted when its end has been written. A file may be missing, truncated, deleted
    or replaced: it is followed by its path. Raises OSError where the kernel grants no more watches, with what to do; when that
    happens later, it closes and `ended` is called.
    """

    def __init__(
        self,
        loop: Loop,
        files: Iterable[File],
        emit: Emit,
        lines: int = 0,
        since: int | None = None,
        ended: Callback = lambda: None,
    ) -> None:
        self._loop = loop
        self._descriptors = Descriptors()
        self._logs: dict[bytes, _Log] = {}  # by path
        self._changed: dict[_Log, None] = {}  # to be read, the foremost first
        self._live = False  # the newest lines are through
        self._watches: dict[int, _Log] = {}
        self._folders: dict[int, dict[bytes, _Log]] = {}
        self._inotify = Inotify()

        def end() -> None:
            self.close()
            ended()

        self._steps = Steps(loop, emit, self._work(lines, since), end)
        try:
            for file in files:
                self._follow(file)
        except OSError:
            self.close()
            raise
        self._steps.go_on()

    def add(self, files: Iterable[File]) -> None:
        """Follows more files, from their present end on. Those that are followed already are passed over. Raises OSError."""
        for file in files:
            if not self._steps.closed and file.log not in self._logs:
                log = self._follow(file)
                if log.copy is not None and log.offset and not self._ends_whole(log.copy, log.offset):
                    log.source.pass_over()
                self._changed[log] = None
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
        self._descriptors.close()

    # Steps

    def _work(self, lines: int, since: int | None) -> Work:
        yield from self._newest(list(self._logs.values()), lines, since)
        # What happened meanwhile is in the files, or in events that nobody has read yet.
        self._live = True
        self._loop.watch(self._inotify.fd, READ, self._read_events)
        self._changed.update(dict.fromkeys(self._logs.values()))
        while True:
            changed, self._changed = self._changed, {}
            merge = Merge(len(changed))
            for log in changed:
                self._take_news(log)
                merge.add(log.source)
                yield []
            yield from merge.work()
            for log in changed:
                self._at_end(log)
            if not self._changed:
                yield None

    def _newest(self, logs: list[_Log], lines: int, since: int | None) -> Work:
        """The newest lines as of the beginning; what is newer is for the rounds."""
        merge = Merge(len(logs))
        for log in logs:
            yield from newest(log.source, log.past(self._descriptors), self._descriptors, lines, since, whole=True)
            merge.add(log.source)
        yield from merge.work(since)

    def _take_news(self, log: _Log) -> None:
        """Has the log's source read what came since the last time."""
        newer: list[Copy] = []
        if log.moved or log.copy is None:
            log.moved = False  # before looking
            newer = log.newer(self._descriptors)
        if log.copy is not None:
            found = os.fstat(self._descriptors.of(log.copy))
            if log.has_shrunk(found.st_size):
                log.begin_anew()
            log.take(found, leave=bool(newer))
        if newer:
            # Now that there is a newer file nothing more is written to the old ones: what is in them is all.
            self._unwatch(log)
            for copy in newer[:-1]:
                log.source.add(Part(copy, 0, _ALL, copy.times()))
            self._watch(log, newer[-1])
            log.enter(newer[-1])
            log.take(os.fstat(self._descriptors.of(newer[-1])), leave=False)

    def _at_end(self, log: _Log) -> None:
        """A file that was deleted is left: while we have it open, we would not be told of the end of its folder."""
        if log.copy is not None and not os.fstat(self._descriptors.of(log.copy)).st_nlink and log.is_missing():
            self._unwatch(log)
            self._descriptors.drop(log.copy)
            log.copy = None

    # Files

    def _follow(self, file: File) -> _Log:
        if file.log in self._logs:
            return self._logs[file.log]
        log = self._logs[file.log] = _Log(file, self._descriptors)
        self._watch_folder(log)
        found = open_copy(file, 0)
        if found is None:
            log.begin(None, 0)
        else:
            copy, fd = found
            self._descriptors.keep(copy, fd)
            self._watch(log, copy)
            log.begin(copy, os.fstat(fd).st_size)
        return log

    def _watch(self, log: _Log, copy: Copy) -> None:
        fd = self._descriptors.pin(copy)
        # By its descriptor, for the path may lead to another file by now.
        log.watch = self._inotify.watch(b"/proc/self/fd/%d" % fd, MODIFY)
        self._watches[log.watch] = log

    def _unwatch(self, log: _Log) -> None:
        if self._watches.pop(log.watch, None) is not None:
            self._inotify.forget(log.watch)

    def _ends_whole(self, copy: Copy, size: int) -> bool:
        return os.pread(self._descriptors.of(copy), 1, size - 1) == b"\n"

    # Events

    def _read_events(self) -> None:
        if self._steps.paused:
            self._loop.unwatch(self._inotify.fd)  # until `resume`: the kernel keeps the events, or says OVERFLOW
            return
        for watch, mask, name in self._inotify.read():
            if mask & OVERFLOW:
                self._may_have_moved(self._logs.values())
            elif watch in self._folders:
                if mask & IGNORED:
                    logs = self._folders.pop(watch).values()
                    for log in logs:
                        self._watch_folder(log)
                    self._may_have_moved(logs)
                elif name in self._folders[watch]:
                    self._may_have_moved([self._folders[watch][name]])
            elif watch in self._watches and not mask & IGNORED:
                self._changed[self._watches[watch]] = None
        if self._changed:
            self._steps.go_on()

    def _may_have_moved(self, logs: Iterable[_Log]) -> None:
        for log in logs:
            log.moved = True
            self._changed[log] = None

    def _watch_folder(self, log: _Log) -> None:
        folder, name = os.path.split(log.file.log)
        os.makedirs(folder, 0o750, exist_ok=True)
        watch = self._inotify.watch(folder, CREATE | DELETE | MOVED_FROM | MOVED_TO)
        self._folders.setdefault(watch, {})[name] = log


class _Log:
    """One log that is followed: the file that is written to as far as we know, and how much of it its source was given."""

    __slots__ = ("_born", "_first", "_stale", "copy", "file", "moved", "offset", "source", "watch")

    def __init__(self, file: File, descriptors: Descriptors) -> None:
        self.file = file
        self.source = Source(file, descriptors, ends=False)
        self.copy: Copy | None = None
        self.offset = 0
        self.watch = -1
        self.moved = False  # the path may lead to another file than `copy`
        self._born = 0  # files whose first record is younger (nanoseconds) came after `copy`
        self._first: Record | None = None  # in the index of `copy`
        self._stale: Record | None = None  # the same, before `copy` was truncated

    def begin(self, copy: Copy | None, size: int) -> None:
        """What is written to the file from this size on will be new, and so is every other file that comes."""
        self.copy, self.offset = copy, size
        self._first = copy.first() if copy is not None else None
        self._born = self._first.time if self._first is not None else time.time_ns()
        if copy is not None:
            copy.size = size

    def enter(self, copy: Copy) -> None:
        """From now on this one is followed, from its beginning."""
        self.copy, self.offset, self._first, self._stale = copy, 0, None, None

    def past(self, descriptors: Descriptors) -> Iterator[Copy]:
        """The files of the log as of its beginning, newest first."""
        if self.copy is not None:
            yield self.copy
        older = self.copy is None
        for copy in copies(self.file, descriptors, number=1 if older else 0):
            if not older:
                older = self._is_ours(copy, descriptors)
            elif self.copy is not None or not self._began_later(copy):
                yield copy
                continue
            descriptors.drop(copy)

    def newer(self, descriptors: Descriptors) -> list[Copy]:
        """The files that came after the one that is followed, oldest first."""
        found: list[Copy] = []
        for copy in copies(self.file, descriptors):
            if self._is_ours(copy, descriptors):
                descriptors.drop(copy)
                return found[::-1]
            found.append(copy)
        # It is gone: the indexes tell which ones are older.
        for copy in list(found):
            if copy.number and not self._began_later(copy):
                found.remove(copy)
                descriptors.drop(copy)
        return found[::-1]

    def take(self, found: os.stat_result, leave: bool) -> None:
        """Has the source read up to the present size of the file."""
        if self.copy is None:
            return
        part = Part(self.copy, self.offset, found.st_size, self._times(self.copy), leave)
        last = part.times.last()
        if last is None or (last.offset < self.offset and found.st_mtime_ns - last.time > _BEHIND):
            part.stand_in = found.st_mtime_ns
        self.source.add(part)
        self.offset = found.st_size

    def has_shrunk(self, size: int) -> bool:
        """Whether the file was truncated since, whatever was written to it after that."""
        if size < self.offset:
            return True
        if self._first is None or self.copy is None or self.copy.number:
            return False
        record = first(self.file.index_of_copy(0))
        # Another index stands there also while both are being rotated; ours moves towards higher numbers then.
        if record is None or record == self._first or record.offset or self._has_index():
            return False
        return not self.is_replaced()

    def begin_anew(self) -> None:
        self.offset, self._first, self._stale = 0, None, self._first

    def is_replaced(self) -> bool:
        """The path does not lead to the file that is open."""
        try:
            found = os.stat(self.file.log)
        except OSError:
            return True
        return self.copy is None or (found.st_dev, found.st_ino) != self.copy.identity

    def is_missing(self) -> bool:
        return not os.path.exists(self.file.log)

    def _times(self, copy: Copy) -> Times:
        times = copy.times()
        found = times.first
        if self._first is None and found is not None and found != self._stale:
            self._first = found if found.time > self._born or self._stale is not None else None
            self._born = max(self._born, found.time)
        if times.first != self._first:
            times.first = None  # it is the index of another file: they are being rotated
        return times

    def _is_ours(self, copy: Copy, descriptors: Descriptors) -> bool:
        """Whether this is the file that is followed, under whatever name, or what became of it when it was packed."""
        if self.copy is None:
            return False
        if copy.identity == self.copy.identity:
            self.copy.number = copy.number
            return True
        if not copy.packed or not is_packed(self.copy, copy, descriptors.of(copy), descriptors):
            return False
        begins = copy.first()
        return begins is None or self._first is None or begins == self._first

    def _began_later(self, copy: Copy) -> bool:
        begins = copy.first()
        return begins is not None and begins.time > self._born

    def _has_index(self) -> bool:
        number = missing = 0
        while missing < 2:
            record = first(self.file.index_of_copy(number))
            if record is not None and record == self._first:
                return True
            missing = missing + 1 if record is None else 0
            number += 1
        return False
