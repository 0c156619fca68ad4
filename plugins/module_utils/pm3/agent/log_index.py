# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The index beside a log: when its bytes came. A record says that from this offset on, up to the next one, they came at that time.

The pump writes it, this file reads it, and trusts it with nothing but times: it may be missing, behind its log, ahead of it, or cut in
its last record. An index moves on with its log when that is rotated (`index.1` for `log.1`); nothing here keeps one open.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from typing import Callable, NamedTuple

RECORD = struct.Struct("<QQ")
_WINDOW = 16  # records that are kept of an index: two thousand of them are read side by side
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


class Record(NamedTuple):
    offset: int  # in the log, bytes
    time: int  # nanoseconds since the epoch


class Span(NamedTuple):
    """Bytes of a log that came at one time."""

    time: int | None  # None: unknown
    end: int | None  # where the next span begins; None: it is the last as far as the index goes


class Times:
    """The times of one log. What is asked in ascending order is read in one pass.

    While it is in use the log may be rotated, and its index with it: by its first record it is found under its next name.
    """

    __slots__ = ("_before", "_offsets", "_path", "_times", "_until", "first")

    def __init__(self, path: bytes) -> None:
        self._path = path
        self._forget()
        self.first = first(path)  # None: there is no index, or it says nothing yet

    def at(self, offset: int) -> int | None:
        """When the byte at `offset` came, in nanoseconds since the epoch."""
        return self.span(offset).time

    def span(self, offset: int) -> Span:
        """The time of the byte at `offset`, and how far it holds."""
        if self.first is None:
            return Span(None, None)
        if not self._before <= offset or (self._until is not None and offset >= self._until):
            self._load(offset)
        place = bisect_right(self._offsets, offset)
        end = self._offsets[place] if place < len(self._offsets) else self._until
        return Span(self._times[place - 1] if place else None, end)

    def since(self, time: int) -> int | None:
        """Where the bytes begin that came at `time` or later. None: nothing that is known to."""
        fd = self._open()
        if fd < 0:
            return None
        try:
            place = _search(fd, lambda record: record.time >= time)
            found = _records(fd, place, 1)
        finally:
            os.close(fd)
        return found[0].offset if found else None

    def last(self) -> Record | None:
        """The newest record."""
        fd = self._open()
        if fd < 0:
            return None
        try:
            found = _records(fd, os.fstat(fd).st_size // RECORD.size - 1, 1)
        finally:
            os.close(fd)
        return found[0] if found else None

    def _forget(self) -> None:
        self._offsets: list[int] = []
        self._times: list[int] = []
        self._before = -1  # the offsets from here ...
        self._until: int | None = 0  # ... to here are in the lists; nothing is yet

    def _load(self, offset: int) -> None:
        """Has the records in the lists that are right for `offset`, and some of those that follow."""
        fd = self._open()
        if fd < 0:  # it went under our eyes: what was known last holds on
            self._before, self._until = min(self._before, offset), None
            return
        try:
            place = max(0, _search(fd, lambda record: record.offset > offset) - 1)
            found = _records(fd, place, _WINDOW + 1)
        finally:
            os.close(fd)
        following = found.pop() if len(found) > _WINDOW else None
        self._offsets = [record.offset for record in found]
        self._times = [record.time for record in found]
        self._before = 0 if not place else found[0].offset
        self._until = following.offset if following else None

    def _open(self) -> int:
        """The index, under the name that it has by now; -1: it is gone."""
        if self.first is None:
            return -1
        path = self._path
        while True:
            try:
                fd = os.open(path, _FLAGS)
            except OSError:
                fd = -1
            if fd >= 0:
                if _records(fd, 0, 1) == [self.first]:
                    self._path = path
                    return fd
                os.close(fd)
            elif path != self._path:
                return -1
            path = _next_name(path)


def first(path: bytes) -> Record | None:
    """The first record of an index. It tells a log from all others, whatever it is called by now."""
    try:
        fd = os.open(path, _FLAGS)
    except OSError:
        return None
    try:
        found = _records(fd, 0, 1)
    except OSError:
        return None
    finally:
        os.close(fd)
    return found[0] if found else None


def _search(fd: int, is_behind: Callable[[Record], bool]) -> int:
    """The number of the first record that is behind what is searched."""
    low, high = 0, os.fstat(fd).st_size // RECORD.size
    while low < high:
        middle = (low + high) // 2
        record = _records(fd, middle, 1)
        if not record or is_behind(record[0]):
            high = middle
        else:
            low = middle + 1
    return low


def _records(fd: int, place: int, count: int) -> list[Record]:
    if place < 0:
        return []
    data = os.pread(fd, count * RECORD.size, place * RECORD.size)
    return [Record(*found) for found in RECORD.iter_unpack(data[: len(data) - len(data) % RECORD.size])]


def _next_name(path: bytes) -> bytes:
    """The name of an index after one more rotation."""
    stem, dot, number = path.rpartition(b".")
    return b"%s.%d" % (stem, int(number) + 1) if dot and number.isdigit() else path + b".1"
