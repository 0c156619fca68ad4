# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What `pm3 log --follow` shows: the newest lines of logs, and then what is written to them, until its client leaves.

The kernel says which log has changed (inotify.py), and a round takes what came until then to all of these, in order of time. A
log is followed by the file that is open: when that was renamed, it is read to its end, then all that were live after it, then the
live one. What was written but for its index record yet has the time of the file's last write.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Iterator
from itertools import chain

from .folders import open_folder
from .inotify import CREATE, DELETE, IGNORED, MODIFY, MOVED_FROM, MOVED_TO, OVERFLOW, Inotify
from .log_file import Copy, Descriptors, File, Part, Source, copies, explained, is_packed, open_copy
from .log_index import Record, Times
from .logs import Emit, Failed, Merge, Steps, Work, newest
from .loop import READ, Callback, Loop

_ALL = 1 << 62  # bytes
_SLICE = 100  # files that are opened in one turn
_BEHIND = 1_000_000  # nanoseconds between two records: the last write may be so much younger than the last of them


class Follower:
    """Emits the newest `lines` whole lines of each file as `Tail` does, then every line that is written, until closed.

    Nothing is lost or doubled in between. A line is emitted when its end has been written. A file may be missing, truncated, deleted
    or replaced: it is followed by its path. Each costs a descriptor and a watch. Where there are no more, OSError is raised, with what
    to do; when that happens later, it closes and calls `failed` with that error (if there is none, `ended`). Of very many files the
    first are opened at once and the others in the turns that follow: what was written to those until then is old.
    """

    def __init__(
        self,
        loop: Loop,
        files: Iterable[File],
        emit: Emit,
        lines: int = 0,
        since: int | None = None,
        ended: Callback = lambda: None,
        failed: Failed | None = None,
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

        def fail(error: OSError) -> None:
            self.close()
            if failed is not None:
                failed(error)

        first: list[_Log] = []  # those that are not added later
        opening = self._open_all(list(files), first)
        work = chain(opening, self._work(first, lines, since))
        self._steps = Steps(loop, emit, work, end, fail if failed is not None else None)
        try:
            next(opening, None)
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

    def _open_all(self, files: list[File], found: list[_Log]) -> Work:
        for number, file in enumerate(files, 1):
            if file.log not in self._logs:
                found.append(self._follow(file))
            if number % _SLICE == 0:
                yield []

    def _work(self, logs: list[_Log], lines: int, since: int | None) -> Work:
        yield from self._newest(logs, lines, since)
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
                log.source.add(Part(copy, 0, _ALL, log.pass_by(copy)))
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
        path, name = os.path.split(log.file.log)
        try:
            folder = open_folder(path, log.file.follow, make=True)
        except OSError as error:
            if error.errno == errno.ELOOP:
                return  # its writer does not go there either
            raise explained(error) from None
        try:
            watch = self._inotify.watch(b"/proc/self/fd/%d" % folder, CREATE | DELETE | MOVED_FROM | MOVED_TO)
        finally:
            os.close(folder)
        self._folders.setdefault(watch, {})[name] = log


class _Log:
    """One log that is followed: the file that is written to as far as we know, and how much of it its source was given."""

    __slots__ = ("_born", "_first", "_packed", "_stale", "copy", "file", "moved", "offset", "source", "watch")

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
        self._packed: Copy | None = None  # what became of `copy`

    def begin(self, copy: Copy | None, size: int) -> None:
        """What is written to the file from this size on will be new, and so is every other file that comes."""
        self.copy, self.offset = copy, size
        self._first = copy.first() if copy is not None else None
        self._born = self._first.time if self._first is not None else time.time_ns()
        if copy is not None:
            copy.size = size

    def enter(self, copy: Copy) -> None:
        """From now on this one is followed, from its beginning."""
        self.copy, self.offset, self._first, self._stale, self._packed = copy, 0, None, None, None

    def past(self, descriptors: Descriptors) -> Iterator[Copy]:
        """The files of the log as of its beginning, newest first."""
        if self.copy is not None:
            yield self.copy
        # Where it was missing or empty then, it may not be met: the indexes tell which files were there before.
        by_index = self.copy is None or not self.copy.size
        older = False
        for copy in copies(self.file, descriptors):
            if self._is_ours(copy, descriptors):
                older = True
            elif older or (by_index and copy.number and not self._began_later(copy)):
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
        # It may have been truncated, filled again and packed since: that has another index.
        for place in reversed(range(len(found))):
            if self._is_packed(found[place], descriptors) and self._began_later(found[place]):
                self._packed = found[place]
                self.begin_anew()
                for copy in found[place:]:
                    descriptors.drop(copy)
                return found[:place][::-1]
        # It is gone, or is not to be told from others: the indexes tell which ones are older.
        while found and found[-1].number and not self._began_later(found[-1]):
            descriptors.drop(found.pop())
        return found[::-1]

    def pass_by(self, copy: Copy) -> Times:
        """The times of a file that is read but not followed, since there is a newer one."""
        times = copy.times()
        if times.first is not None:
            self._born = max(self._born, times.first.time)
        return times

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
        if self._first is None or self.copy is None:
            return False
        record = (self._packed or self.copy).first()
        return record is not None and record != self._first and not record.offset

    def begin_anew(self) -> None:
        self.offset, self._first, self._stale = 0, None, self._first

    def is_missing(self) -> bool:
        return not os.path.exists(self.file.log)

    def _times(self, copy: Copy) -> Times:
        times = (self._packed or copy).times()
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
        if not self._is_packed(copy, descriptors):
            return False
        begins = copy.first()
        if begins is not None and self._first is not None and begins != self._first:
            return False
        self._packed = copy
        return True

    def _is_packed(self, copy: Copy, descriptors: Descriptors) -> bool:
        return self.copy is not None and copy.packed and is_packed(self.copy, copy, descriptors.of(copy), descriptors)

    def _began_later(self, copy: Copy) -> bool:
        begins = copy.first()
        return begins is not None and begins.time > self._born
