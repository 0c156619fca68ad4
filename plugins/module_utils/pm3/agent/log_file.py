# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of a log: the live one and its rotated copies, which move on while they are read.

`copies` finds them, newest first. A copy is known by its inode, so that it is found again under its next name; `Descriptors` keeps
those open that were used last. `Source` gives the lines of one log, from one place to another, in chunks, over all of its copies as if
they were one file. Reads only, and never more than a chunk at once. Nothing here knows a loop or a client.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable, NamedTuple

from .folders import open_to_read
from .log_index import Times, first

if TYPE_CHECKING:
    from .log import LogFile
    from .log_index import Record

LINE = 64 * 1024  # bytes of a line that are shown
CHUNK = 64 * 1024  # bytes read in one step
_OPEN = 200  # files that stay open to be read on
_PACKED_CHUNK = 16 * 1024  # bytes of a compressed copy read in one step
_HEAD = 4096  # bytes by which a copy is known again after it was packed
_TOO_MANY = (
    "too many files are open already, and each log that is read is one more; follow fewer logs at once,"
    " or raise the limit of open files of the agent (ulimit -n, LimitNOFILE of its unit)"
)
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True)
class File:
    """A log: whose it is, and where it is."""

    name: str  # of the instance
    stream: str  # "out" or "err"
    path: str
    index: str
    follow: bool = True  # symbolic links, as its writer does

    @property
    def log(self) -> bytes:
        return self.path.encode("utf-8", "surrogateescape")  # as the pump names it

    def index_of_copy(self, number: int) -> bytes:
        return _numbered(self.index.encode("utf-8", "surrogateescape"), number)


def files(name: str, logs: Iterable[LogFile]) -> list[File]:
    """The logs of an instance's stdout and stderr, to be read."""
    return [File(name, stream, log.path, log.index or "", log.follow) for stream, log in zip(("out", "err"), logs)]


class Line(NamedTuple):
    key: int  # what it is ordered by: its time, never less than that of a line before it; 0: unknown
    time: int | None  # when it began to come, in nanoseconds since the epoch
    text: bytes  # without its LF, cut at LINE


class Copy:
    """One file of a log, as it was when it was found: the live one (number 0) or a rotated copy."""

    __slots__ = ("file", "identity", "number", "packed", "size", "written")

    def __init__(self, file: File, number: int, packed: bool, found: os.stat_result) -> None:
        self.file = file
        self.number = number  # by then; it only grows
        self.packed = packed
        self.identity = (found.st_dev, found.st_ino)
        self.size = found.st_size  # bytes; of a packed one not of what is in it
        self.written = found.st_mtime_ns  # a packed one has the time of the copy that it was made of

    def times(self) -> Times:
        """When its bytes came. While log and index are being rotated it may be unknown."""
        for _again in range(4):
            times = Times(self.file.index_of_copy(self.number))
            if times.first is None:
                times = self._times_ahead() or times
            try:
                found = os.stat(_name(self.file, self.number, self.packed))
            except FileNotFoundError:
                found = None
            if found is not None and (found.st_dev, found.st_ino) == self.identity:
                break
            self.number += 1  # it was rotated meanwhile
        else:
            times.first = None
        return times

    def first(self) -> Record | None:
        return self.times().first

    def _times_ahead(self) -> Times | None:
        """Its index, if that has its next number already: it is moved right before its log."""
        times = Times(self.file.index_of_copy(self.number + 1))
        if times.first is None:
            return None
        for packed in (False, True):
            try:
                found = os.stat(_name(self.file, self.number + 1, packed))
            except FileNotFoundError:
                continue
            if (found.st_dev, found.st_ino) != self.identity:
                return None  # which the index belongs to
        return times if times.first == first(self.file.index_of_copy(self.number + 1)) else None


class Descriptors:
    """Open copies. Those that were not used for long are closed, and opened again when it is their turn; but for pinned ones."""

    def __init__(self, most: int = _OPEN) -> None:
        self._most = most
        self._recent: dict[Copy, int] = {}  # the one used last is the last
        self._pinned: dict[Copy, int] = {}

    def keep(self, copy: Copy, fd: int) -> None:
        self._recent[copy] = fd
        if len(self._recent) > self._most:
            self.drop(next(iter(self._recent)))

    def of(self, copy: Copy) -> int:
        """A descriptor of it, -1 where it exists no more."""
        fd = self._pinned.get(copy, -1)
        if fd < 0:
            fd = self._recent.pop(copy, -1)
            fd = fd if fd >= 0 else _open_again(copy)
            if fd >= 0:
                self.keep(copy, fd)
        return fd

    def pin(self, copy: Copy) -> int:
        """Keeps it open until it is dropped. A descriptor of it, -1 where it exists no more."""
        fd = self.of(copy)
        if fd >= 0:
            self._recent.pop(copy, None)
            self._pinned[copy] = fd
        return fd

    def is_pinned(self, copy: Copy) -> bool:
        return copy in self._pinned

    def drop(self, copy: Copy) -> None:
        for fds in (self._recent, self._pinned):
            if copy in fds:
                os.close(fds.pop(copy))

    def close(self) -> None:
        for fds in (self._recent, self._pinned):
            while fds:
                os.close(fds.popitem()[1])


def open_copy(file: File, number: int) -> tuple[Copy, int] | None:
    """That copy of a log and a descriptor of it. None: there is none (or it is no file to read)."""
    for packed in (False, True) if number else (False,):
        fd = _open(file, number, packed)
        if fd >= 0:
            found = os.fstat(fd)
            if stat.S_ISREG(found.st_mode):
                return Copy(file, number, packed, found), fd
            os.close(fd)
    return None


def copies(file: File, descriptors: Descriptors, number: int = 0) -> Iterator[Copy]:
    """The files of a log from that number on, newest first, opened as they are asked for.

    It may be rotated meanwhile. Files only move towards higher numbers, so none is missed; one that is met again is passed over, also
    when it was packed in between. While they move, there may be a gap.
    """
    seen: dict[tuple[int, int], Copy] = {}
    missing = 0
    while missing < 2:
        found = open_copy(file, number)
        number += 1
        if found is None:
            missing += 1
            continue
        missing = 0
        copy, fd = found
        if copy.identity in seen or (
            copy.packed and any(is_packed(one, copy, fd, descriptors) for one in seen.values())
        ):
            os.close(fd)
            continue
        seen[copy.identity] = copy
        descriptors.keep(copy, fd)
        yield copy


def is_packed(plain: Copy, packed: Copy, fd: int, descriptors: Descriptors) -> bool:
    """Whether `packed` (open as `fd`) is what became of `plain`, which is deleted then.

    Of an empty one nobody can tell, for it is like every other; and it does not matter who reads nothing twice.
    """
    if plain.packed or packed.size < 4:
        return False
    plain_fd = descriptors.of(plain)
    if plain_fd < 0:
        return plain.number > 0 and _is_like(packed, fd, plain.size, plain.written)
    found = os.fstat(plain_fd)
    if found.st_nlink or not _is_like(packed, fd, found.st_size, found.st_mtime_ns):
        return False
    unpacked = Unpacked()
    begins: bytes | None = b""
    while begins == b"":
        begins = unpacked.read(fd, _HEAD)
    return os.pread(plain_fd, len(begins or b""), 0) == (begins or b"")


def _is_like(packed: Copy, fd: int, size: int, written: int) -> bool:
    # The size is at the end of a gzip file, modulo 2 ** 32 (RFC 1952).
    unpacked_size = int.from_bytes(os.pread(fd, 4, packed.size - 4), "little")
    return size > 0 and unpacked_size == size & 0xFFFFFFFF and packed.written == written


class Part:
    """A stretch of one copy that is to be read. `leave`: nobody needs the copy after that."""

    __slots__ = ("_unpacked", "copy", "end", "leave", "offset", "stand_in", "times")

    def __init__(self, copy: Copy, begin: int, end: int, times: Times, leave: bool = True) -> None:
        self.copy = copy
        self.offset = begin  # bytes; in a packed copy, of what is in it
        self.end = end
        self.times = times
        self.leave = leave
        self.stand_in: int | None = None  # the time of bytes whose record is still to come
        self._unpacked: Unpacked | None = None

    def read(self, descriptors: Descriptors, limit: int) -> bytes | None:
        """The next bytes; empty: not yet. None: there are no more."""
        if self.offset >= self.end:
            return None
        fd = descriptors.of(self.copy)
        if fd < 0:
            return None
        if not self.copy.packed:
            data = os.pread(fd, min(limit, self.end - self.offset), self.offset)
            self.offset += len(data)
            return data or None  # it was truncated under our eyes
        self._unpacked = self._unpacked or Unpacked()
        before = self._unpacked.offset
        found = self._unpacked.read(fd, limit)
        if not found:
            return found
        found = found[max(0, self.offset - before) : self.end - before]
        self.offset += len(found)
        return found


class Unpacked:
    """The content of a compressed copy from its beginning."""

    def __init__(self) -> None:
        import zlib  # most agents never need it

        self.offset = 0  # of what comes next
        self._zlib = zlib
        self._inflate = zlib.decompressobj(31)
        self._packed_offset = 0
        self._left = b""  # read, not taken by the decompressor yet

    def read(self, fd: int, limit: int) -> bytes | None:
        """The next bytes; empty: not yet. None: there are no more, or the rest is broken."""
        if self._inflate.eof:  # a file may consist of several
            self._inflate = self._zlib.decompressobj(31)
        data = self._left or os.pread(fd, _PACKED_CHUNK, self._packed_offset)
        self._packed_offset += 0 if self._left else len(data)
        try:
            found = self._inflate.decompress(data, limit)  # it may have something left although there is no more data
        except self._zlib.error:
            return None
        self._left = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail
        self.offset += len(found)
        return found if found or data else None


class Source:
    """The lines of one log, in the order in which they were written, as far as its parts go."""

    __slots__ = (
        "_at",
        "_base",
        "_data",
        "_descriptors",
        "_ends",
        "_key",
        "_line_time",
        "_long",
        "_parts",
        "_rest",
        "_time",
        "_until",
        "file",
    )

    def __init__(self, file: File, descriptors: Descriptors, ends: bool) -> None:
        self.file = file
        self._descriptors = descriptors
        self._ends = ends  # what is left without its end is the last line; else its end is still to come
        self._parts: deque[Part] = deque()
        self._data = b""  # a chunk of the foremost part
        self._at = 0  # ... of which the bytes before this are taken
        self._base = 0  # ... and where it begins
        self._rest = b""  # the beginning of a line whose end has not been read
        self._long = False  # ... or that line was longer than LINE, is given, and its rest is passed over
        self._line_time: int | None = None  # ... and its time
        self._key = 0
        self._time: int | None = None
        self._until: int | None = 0  # as far as that time holds

    def add(self, part: Part) -> None:
        """To be read after what is there."""
        self._parts.append(part)
        if len(self._parts) == 1:
            self._until = 0

    def add_before(self, part: Part) -> None:
        """To be read before what is there; nothing was read yet."""
        self._parts.appendleft(part)

    def pass_over(self) -> None:
        """What comes until the next end of a line belongs to one that is nobody's."""
        self._rest, self._long = b"", True

    def key(self) -> int | None:
        """What the next line is ordered by; None: there is none."""
        self._leave_parts()
        if not self._parts:
            return self._key if self._rest and self._ends else None
        if not self._rest:
            self._look_at_time()
        return self._key

    def lines(self, limit: int, is_due: Callable[[int], bool]) -> list[Line]:
        """The next lines as long as they are due, from one chunk of at most `limit` bytes. None may be: then ask again."""
        found: list[Line] = []
        if self._at >= len(self._data):
            self._read(limit)
        while self._at < len(self._data):
            if self._rest or self._long:
                self._finish_line(found)
                continue
            self._look_at_time()
            if not is_due(self._key):
                return found
            self._line_time = self._time
            if not self._take_lines(found):
                self._finish_line(found)
        self._leave_parts()
        if self._ends and self._rest and not self._parts:
            found.append(Line(self._key, self._line_time, self._rest))
            self._rest = b""
        return found

    def _take_lines(self, found: list[Line]) -> bool:
        """Takes the whole lines that came at the same time as the next one does, as far as they have been read."""
        end = len(self._data) if self._until is None else min(len(self._data), self._until - self._base)
        end = self._data.rfind(b"\n", self._at, end)
        if end < 0:
            return False
        texts = self._data[self._at : end].split(b"\n")
        found.extend([Line(self._key, self._time, text[:LINE]) for text in texts])
        self._at = end + 1
        return True

    def _finish_line(self, found: list[Line]) -> None:
        """Takes what has been read of one line."""
        end = self._data.find(b"\n", self._at)
        text = self._data[self._at : end if end >= 0 else len(self._data)]
        self._at = end + 1 if end >= 0 else len(self._data)
        if not self._long:
            self._rest += text
            if end >= 0 or len(self._rest) >= LINE:
                found.append(Line(self._key, self._line_time, self._rest[:LINE]))
                self._rest, self._long = b"", True
        if end >= 0:
            self._long = False

    def _read(self, limit: int) -> None:
        """Takes a chunk from the foremost part; that may take several steps."""
        self._data, self._at = b"", 0
        self._leave_parts()
        if self._parts:
            part = self._parts[0]
            data = part.read(self._descriptors, limit)
            if data is None:
                part.end = part.offset
            elif data:
                self._data, self._base = data, part.offset - len(data)

    def _leave_parts(self) -> None:
        while self._parts and self._at >= len(self._data) and self._parts[0].offset >= self._parts[0].end:
            part = self._parts.popleft()
            self._until = 0
            if part.leave:
                self._descriptors.drop(part.copy)

    def _look_at_time(self) -> None:
        """Knows the time of the byte that is next."""
        part = self._parts[0]
        place = self._base + self._at if self._at < len(self._data) else part.offset
        if self._until is None or place < self._until:
            return
        if part.stand_in is not None:
            self._time, self._until = part.stand_in, None
        else:
            self._time, self._until = part.times.span(place)
        self._key = max(self._key, self._time or 0)


def _name(file: File, number: int, packed: bool) -> bytes:
    return _numbered(file.log, number) + (b".gz" if packed else b"")


def _numbered(path: bytes, number: int) -> bytes:
    return b"%s.%d" % (path, number) if number else path


def _open(file: File, number: int, packed: bool) -> int:
    try:
        return open_to_read(_name(file, number, packed), _FLAGS, file.follow)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return -1
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link that nobody follows, or one that leads to itself
            return -1
        raise explained(error) from None


def explained(error: OSError) -> OSError:
    """The error that tells a reader what to do, where that is known."""
    return OSError(error.errno, _TOO_MANY) if error.errno in (errno.EMFILE, errno.ENFILE) else error


def _open_again(copy: Copy) -> int:
    number, missing = copy.number, 0
    while missing < 2:
        fd = _open(copy.file, number, copy.packed)
        if fd < 0:
            missing += 1
        else:
            found = os.fstat(fd)
            if (found.st_dev, found.st_ino) == copy.identity:
                copy.number = number
                return fd
            os.close(fd)
            missing = 0
        number += 1
    return -1
