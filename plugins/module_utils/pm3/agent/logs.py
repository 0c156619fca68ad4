# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What `pm3 log` shows: the newest lines of logs, in order of time.

It reads the log files and their indexes and owns nothing but its own descriptors of them; the pump that writes them does not know it.
All work is done on the loop's thread in steps of at most one chunk, with everybody else's turns in between. Lines go to `emit(file,
time, line)`. When that answers False (the line is taken, but the client does not keep up) nothing more is read until `resume`: the
file is the buffer, a slow reader costs us one chunk. Lines are bytes decoded with replacement, without their CR LF or LF, cut at
`LINE` bytes. What follows after the newest lines is follower.py's.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from heapq import heapify, heappop, heappush
from typing import Callable, Optional

from .log_file import CHUNK, LINE, Copy, Descriptors, File, Line, Part, Source, Unpacked, copies
from .log_index import Times
from .loop import Callback, Loop

_LINES = 500  # lines emitted in one turn
_FIRST_CHUNK = 4096  # bytes: the newest lines of a log are often in fewer
_BUFFERS = 4 << 20  # bytes that may be held of all logs together

Failed = Callable[[OSError], None]
Emit = Callable[
    [File, Optional[int], str], bool
]  # the line's time is in nanoseconds since the epoch, None where it is unknown
Lines = list[tuple[File, Line]]
Work = Iterator[Optional[Lines]]  # a step each; None: nothing to do until `Steps.go_on`


class Tail:
    """Emits the newest `lines` lines of each file that came at `since` or later (nanoseconds), then calls `done`.

    All of them in the order of time; where that is the same, in the order of the files; those of unknown time come first. A last line
    without its end is a line too. What the live log lacks is taken from its rotated copies; files that are missing are skipped. Of
    files whose lines are longer than `LINE` on average, fewer lines are shown: no more than `lines` times that is read. Where files
    are there but cannot be opened, `failed` is called instead of `done`, with what to do.
    """

    def __init__(
        self,
        loop: Loop,
        files: Iterable[File],
        lines: int,
        emit: Emit,
        done: Callback,
        since: int | None = None,
        failed: Failed | None = None,
    ) -> None:
        self._descriptors = Descriptors()

        def end() -> None:
            self.close()
            done()

        def fail(error: OSError) -> None:
            self.close()
            if failed is not None:
                failed(error)

        self._steps = Steps(
            loop, emit, self._work(list(files), lines, since), end, fail if failed is not None else None
        )
        self._steps.go_on()

    def resume(self) -> None:
        self._steps.resume()

    def close(self) -> None:
        """Ends it, whether it was done or not; `done` is not called."""
        self._steps.close()
        self._descriptors.close()

    def _work(self, files: list[File], lines: int, since: int | None) -> Work:
        merge = Merge(len(files))
        for file in files:
            source = Source(file, self._descriptors, ends=True)
            yield from newest(source, copies(file, self._descriptors), self._descriptors, lines, since)
            merge.add(source)
            yield []  # a thousand logs without a line are work, too
        yield from merge.work(since)


class Merge:
    """The lines of several sources, in order."""

    def __init__(self, logs: int) -> None:
        self._heap: list[tuple[int, int, Source]] = []
        self._count = 0
        self._chunk = max(_FIRST_CHUNK, min(CHUNK, _BUFFERS // max(1, logs)))

    def add(self, source: Source) -> None:
        """Of lines of the same time, those of the source that was added first come first."""
        self._count += 1
        key = source.key()
        if key is not None:
            self._heap.append((key, self._count, source))

    def work(self, since: int | None = None) -> Iterator[Lines]:
        heap = self._heap
        heapify(heap)
        while heap:
            _key, order, source = heappop(heap)
            found = source.lines(self._chunk, _is_before(heap, order))
            if since is not None:
                found = [line for line in found if line.time is not None and line.time >= since]
            key = source.key()
            if key is not None:
                heappush(heap, (key, order, source))
            yield [(source.file, line) for line in found]


def newest(
    source: Source,
    found: Iterable[Copy],
    descriptors: Descriptors,
    lines: int,
    since: int | None = None,
    whole: bool = False,
    most: int | None = None,
) -> Iterator[Lines]:
    """Has `source` read the newest lines of the copies `found`, which come newest first, in bounded steps.

    `whole`: a last line without its end is not one of them, but is read nevertheless. `most`: bytes that are read at most.
    """
    if lines or whole:
        search = _Search(descriptors, lines, since, whole, max(lines, 1) * LINE if most is None else most)
        for copy in found:
            times = copy.times()
            if not search.goes_on_before(copy, _floor(times, since)):
                descriptors.drop(copy)
                break
            begin, end = yield from search.packed(copy) if copy.packed else search.plain(copy)
            source.add_before(Part(copy, begin, end, times, leave=not descriptors.is_pinned(copy)))
            if search.done:
                break


class _Search:
    """Looks for the newlines between the newest lines, from the last one on."""

    def __init__(self, descriptors: Descriptors, lines: int, since: int | None, whole: bool, most: int) -> None:
        self._descriptors = descriptors
        # The newline before the first of the lines; the one at the very end of the last line is on the way.
        self._wanted = lines + 1
        self._whole = whole
        self._most = most
        self._floor = 0  # in the present copy, what is before this is too old
        self._begun = whole  # the end of the newest line is known
        self.done = False

    def goes_on_before(self, copy: Copy, floor: int | None) -> bool:
        """Whether something of this copy may be wanted; of the bytes before `floor` (None: of all) nothing is but an open line."""
        if floor is None and copy.size:
            if not self._whole:
                return False
            self._wanted = 1
        self._floor = floor or 0
        return True

    def plain(self, copy: Copy) -> Generator[Lines, None, tuple[int, int]]:
        """Where what is wanted of the copy begins and ends."""
        fd, size = self._descriptors.of(copy), copy.size
        begin, chunk = size, _FIRST_CHUNK
        while begin and not self.done and fd >= 0:
            upper = begin
            begin = max(0, upper - min(chunk, self._most))
            chunk = min(CHUNK, chunk * 4)
            data = os.pread(fd, upper - begin, begin)
            if upper == size:
                self._begin(data)
            place = self._look(data, begin)
            if place is not None:
                begin, self.done = place, True
            self._most -= upper - begin
            self.done = self.done or self._most <= 0
            yield []
            fd = self._descriptors.of(copy)
        return begin, size

    def packed(self, copy: Copy) -> Generator[Lines, None, tuple[int, int]]:
        """As `plain`. It has to be read from its beginning."""
        unpacked = Unpacked()
        ends: deque[int] = deque(maxlen=self._wanted)  # the last newlines
        last = b""
        data: bytes | None = b""
        while data is not None:
            last = data[-1:] or last
            for end in _newlines(data, self._wanted):
                ends.append(unpacked.offset - len(data) + end)
            yield []
            fd = self._descriptors.of(copy)
            data = unpacked.read(fd, CHUNK) if fd >= 0 else None
        self._begin(last)
        begin = 0
        if len(ends) >= self._wanted:
            begin, self.done = ends[-self._wanted] + 1, True
        old = bisect_left(ends, self._floor)
        if old:
            begin, self.done = max(begin, ends[old - 1] + 1), True
        self._wanted -= len(ends)
        return begin, unpacked.offset

    def _begin(self, data: bytes) -> None:
        if data and not self._begun:
            self._begun = True
            self._wanted -= not data.endswith(b"\n")
            self.done = not self._wanted

    def _look(self, data: bytes, begin: int) -> int | None:
        """Where the first line that is wanted begins, if these bytes (from `begin` on) hold it."""
        found = len(data)
        while self._wanted:
            found = data.rfind(b"\n", 0, found)
            if found < 0:
                return None
            self._wanted -= 1
            if begin + found < self._floor:
                break
        return begin + found + 1


class Steps:
    """Takes step after step of `work` on the loop, as long as there is something to do and the reader of the lines keeps up.

    `end` is called after the last one, or when a step failed; for what the kernel refused `failed` is called instead, where given.
    """

    def __init__(self, loop: Loop, emit: Emit, work: Work, end: Callback, failed: Failed | None = None) -> None:
        self._loop = loop
        self._emit = emit
        self._work = work
        self._end = end
        self._failed = failed
        self._lines: deque[tuple[File, Line]] = deque()  # from one step, not emitted yet
        self._queued = False
        self.paused = False
        self.closed = False

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
        for _count in range(_LINES):
            if not self._lines or self.closed or self.paused:
                break
            file, line = self._lines.popleft()
            self.paused = not self._emit(file, line.time, text(line.text))
        if not self._lines and not self.closed and not self.paused:
            self._step()
        elif self._lines:
            self.go_on()

    def _step(self) -> None:
        try:
            found = next(self._work)
        except StopIteration:
            self._end()
            return
        except BaseException as error:
            if isinstance(error, OSError) and self._failed is not None:
                self._failed(error)
                return
            self._end()  # the client is not to wait for what will never come
            raise
        if found is not None:
            self._lines.extend(found)
            self.go_on()


def rfc3339(moment: int) -> str:
    """Nanoseconds since the epoch as local time with milliseconds."""
    seconds, rest = divmod(moment, 10**9)
    try:
        local = time.localtime(seconds)
    except (OverflowError, OSError, ValueError):  # no clock says that: the index is broken
        local = time.gmtime(0)
    zone = time.strftime("%z", local)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', local)}.{rest // 10**6:03d}{zone[:3]}:{zone[3:]}"


def text(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip("\r")


def newest_lines(log: File, lines: int, limit_bytes: int = 64 * 1024) -> list[str]:
    """The newest `lines` lines of a log, as far as its last `limit_bytes` hold them, across its rotation.

    At once, for a few lines where no client waits; a line without its end is one too.
    """
    descriptors = Descriptors()
    file = replace(log, index=log.path + "/")  # in order of the file: no index is needed
    source = Source(file, descriptors, ends=True)
    try:
        steps = newest(source, copies(file, descriptors), descriptors, lines, most=limit_bytes)
        deque(steps, maxlen=0)
        merge = Merge(1)
        merge.add(source)
        return [text(line.text) for step in merge.work() for _file, line in step]
    finally:
        descriptors.close()


def _floor(times: Times, since: int | None) -> int | None:
    """Where the bytes end that are known to be older; None: they all are."""
    if since is None or times.first is None:
        return 0
    floor = times.since(since)
    return 0 if floor == times.first.offset else floor


def _is_before(heap: list[tuple[int, int, Source]], order: int) -> Callable[[int], bool]:
    """Whether a line with some key, of the source `order`, comes before all that is in the heap."""
    if not heap:
        return lambda key: True
    foremost = heap[0][:2]
    return lambda key: (key, order) < foremost


def _newlines(data: bytes, most: int) -> list[int]:
    """Where the last newlines are, at most so many."""
    found: list[int] = []
    place = data.rfind(b"\n")
    while place >= 0 and len(found) < most:
        found.append(place)
        place = data.rfind(b"\n", 0, place)
    return found[::-1]
