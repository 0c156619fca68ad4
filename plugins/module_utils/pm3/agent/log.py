# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A live log: the file at whose end output goes, whoever fills it, and when it gives way to a new one. Owns its descriptor.

Used by the pump's thread alone. The log is opened without O_APPEND, which `splice` refuses, and nobody but the pump writes it; but
somebody may delete, rename, truncate or lengthen it, so that before each write its name is looked at. Several streams may fill one
log (a reload runs the new copy beside the old one): they share this object, and with it the position.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from dataclasses import dataclass
from typing import Callable, Protocol

from ..model.log_options import LogOptions
from ..model.slots import slotted
from . import rotation
from .folders import SECOND_NAME, open_folder
from .index_writer import IndexWriter
from .packing import Packing
from .pipes import null, splice
from .points import reached
from .spool import Interrupted
from .turns import Turns

ENDLESS = 1 << 62  # bytes: there is no limit
_ZONE = 64 * 1024  # bytes before a log is full in which every line is looked at
_PAUSE = 60.0  # seconds after which a rotation that failed is tried again
# O_NONBLOCK: should somebody have put a FIFO there, opening it must not hold up all other logs.
_FLAGS = os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


@slotted
@dataclass(frozen=True)
class LogFile:
    """Where the output of one stream goes, and how."""

    path: str
    index: str | None  # the file that says when which bytes came (log_index.py); None: nobody wants to know
    options: LogOptions
    name: str  # of the instance, for JSON
    process: str  # its process, for JSON
    follow: bool = True  # symbolic links; False where somebody less trusted than us may write the folder

    @property
    def key(self) -> bytes:
        """The path in UTF-8, whatever the locale, so that a log has one name under every agent."""
        return self.path.encode("utf-8", "surrogateescape")

    @property
    def index_key(self) -> bytes | None:
        return None if self.index is None else self.index.encode("utf-8", "surrogateescape")


class Filler(Protocol):
    """A stream, as far as its log has to know it."""

    ended: bool
    base: str

    def move(self, limit: int, now: float, final: bool = False) -> int | None: ...


class Log:
    __slots__ = (
        "_asked",
        "_began",
        "_fd",
        "_file",
        "_index",
        "_options",
        "_pack",
        "_regular",
        "_rotate_after",
        "fillers",
        "identity",
        "interrupted",
        "last",
        "path",
        "position",
        "rotation_failed",
        "turns",
        "zone",
    )

    def __init__(self, file: LogFile, interrupted: Interrupted, pack: Callable[[Packing], None]) -> None:
        self.path = file.key
        self.fillers: list[Filler] = []
        self.last: Filler | None = None  # who wrote last, if that is known
        self.position = 0  # where the next byte goes, as the kernel has it too
        self.identity = (0, 0)  # device and inode
        self.interrupted = interrupted
        self.turns = Turns(interrupted.folder, self.path)
        self.rotation_failed = False
        self._configure(file)
        self._pack = pack
        self._fd = -1
        self._regular = True
        self._began = 0  # when its first byte came, in nanoseconds since the epoch
        self._asked = True  # the index, which may know better

    def configure(self, file: LogFile) -> None:
        self._index.close()
        self._configure(file)

    def _configure(self, file: LogFile) -> None:
        self._file, self._options = file, file.options
        self._index = IndexWriter(file.index)
        self._rotate_after = 0.0  # not before this moment, because a rotation failed
        self.zone = min(_ZONE, self._options.max_size // 4)

    @property
    def shared(self) -> bool:
        return len(self.fillers) > 1

    def turn_of(self, filler: Filler | None) -> None:
        """This one writes from now on, until it is another's turn."""
        self.last = filler
        if filler is not None and (self.shared or self.turns.kept):
            self.turns.given(filler.base)

    def owner(self) -> Filler | None:
        """Who wrote last, in the life of an earlier agent too, if it fills this log still."""
        known = self.turns.owner
        return next((one for one in self.fillers if one is self.last or os.fsencode(one.base) == known), None)

    # Finding it

    def find(self) -> None:
        """Has it open with the position at its end, made where it is missing. Raises OSError."""
        if self._fd >= 0:
            try:
                found = os.stat(self.path)
            except FileNotFoundError:
                found = None
            if found is not None and (found.st_dev, found.st_ino) == self.identity:
                if found.st_size != self.position and self._regular:
                    if found.st_size < self.position:
                        self._index.restart()
                        self._began = time.time_ns()
                    self.position = os.lseek(self._fd, 0, os.SEEK_END)
                return
            self.close()
            self._index.restart()  # somebody took the log that it was of
        folder = open_folder(os.path.dirname(self.path), self._file.follow, make=True)
        try:
            self._open(folder, os.O_CREAT)
        finally:
            os.close(folder)

    def _open(self, folder: int, how: int) -> None:
        how |= _FLAGS | (0 if self._file.follow else os.O_NOFOLLOW)
        self._fd = os.open(os.path.basename(self.path), how, 0o640, dir_fd=folder)
        found = os.fstat(self._fd)
        self._regular = stat.S_ISREG(found.st_mode)
        unfit = self._unfit(found)
        if unfit is not None:
            self.close()
            raise OSError(errno.EINVAL, unfit)
        self.identity = (found.st_dev, found.st_ino)
        if self._regular:
            self.interrupted.settle(self.identity, self._fd)
        self.position = os.lseek(self._fd, 0, os.SEEK_END)
        self._began, self._asked = found.st_mtime_ns, False

    def _unfit(self, found: os.stat_result) -> str | None:
        if not self._regular and found.st_rdev != os.fstat(null()).st_rdev:
            return "it is not a regular file"
        if self._regular and not self._file.follow and found.st_nlink > 1:
            return SECOND_NAME
        return None

    def close(self) -> None:
        self._index.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # Writing it. Each needs a `find` right before, and may raise OSError.

    def take(self, pipe: int, count: int) -> int:
        """Moves at most `count` bytes out of a pipe, as `splice` does."""
        self._announce()
        moved = 0
        try:
            moved = splice(pipe, self._fd, count)
        finally:
            if not moved:
                self._index.take_back()
        self.position += moved if self._regular else 0
        return moved

    def append(self, text: bytes) -> None:
        """All of it, or, with the error, nothing."""
        self._announce()
        begin, left = self.position, memoryview(text)
        try:
            while left:
                left = left[os.write(self._fd, left) :]
        except OSError:
            if self._regular:
                os.ftruncate(self._fd, begin)
                os.lseek(self._fd, begin, os.SEEK_SET)
            raise
        self.position += len(text) if self._regular else 0

    def at_line_start(self) -> bool:
        return not self.position or os.pread(self._fd, 1, self.position - 1) == b"\n"

    def end_line(self) -> None:
        self.position += os.write(self._fd, b"\n")

    def _announce(self) -> None:
        """Bytes are about to come. Before them, so that no reader finds bytes of which the index says nothing yet."""
        if self._regular:
            if not self.position:
                self._began, self._asked = time.time_ns(), True
            self._index.note(self.position)

    # Rotation

    def room(self, now: float) -> int:
        """Bytes until it has to be rotated; `ENDLESS`, or, where it is over-full, none or fewer."""
        options = self._options
        if not (options.max_size or options.max_age) or not self._regular or now < self._rotate_after:
            return ENDLESS
        if options.max_age and self.position:
            if not self._asked:
                self._began, self._asked = self._index.first() or self._began, True
            if time.time_ns() - self._began > options.max_age * 1e9:
                return 0
        return options.max_size - self.position if options.max_size else ENDLESS

    def rotate(self, now: float) -> None:
        """Puts a new, empty log in its place. After an OSError it goes on growing for a while."""
        self._rotate_after = now + _PAUSE
        name, index = os.path.basename(self.path), self._file.index_key
        old, folder = -1, open_folder(os.path.dirname(self.path), self._file.follow)
        try:
            rotation.make_room(folder, name, index, self._options.keep)
            self._index.close()
            if self._options.keep:
                rotation.shelve(folder, name, index)
            else:
                os.unlink(name, dir_fd=folder)
                self._index.restart()
            old, self._fd = self._fd, -1  # open until the new one is made, which so cannot get its inode
            like = os.fstat(old)
            self._open(folder, os.O_CREAT | os.O_EXCL)
            reached("rotation.opened")
            _resemble(self._fd, like)
            self._rotate_after, self.rotation_failed = 0.0, False
        finally:
            if old >= 0:
                os.close(old)
            os.close(folder)
        self.tidy()

    def tidy(self) -> None:
        """Has rotated copies compressed that are not yet, and the oldest removed that are too many bytes together."""
        options = self._options
        if not (options.compress or options.total_size) or not self._regular:
            return
        name, index = os.path.basename(self.path), self._file.index_key
        try:
            folder = open_folder(os.path.dirname(self.path), self._file.follow)
        except OSError:
            return
        try:
            found = rotation.mend(folder, name)
            plain = [copy for copy in found if not copy.packed] if options.compress else []
            for copy in reversed(plain):
                self._pack(Packing(self.path, index, self._file.follow, options.total_size, copy.identity))
            if options.total_size:
                rotation.limit(folder, name, index, options.total_size, spare_plain=options.compress)
        except OSError:
            pass  # what is too much stays until the next time
        finally:
            os.close(folder)

    def flush(self) -> None:
        """Empties it and removes its rotated copies. It is not made where it is missing."""
        try:
            folder = open_folder(os.path.dirname(self.path), self._file.follow)
        except FileNotFoundError:
            return
        name, index = os.path.basename(self.path), self._file.index_key
        try:
            if self._fd < 0:
                self._open(folder, 0)
        except FileNotFoundError:
            pass
        else:
            if self._regular:
                os.ftruncate(self._fd, 0)
                self.position = os.lseek(self._fd, 0, os.SEEK_SET)
        try:
            reached("flush.emptied")
            self._index.restart()
            for copy in reversed(rotation.mend(folder, name)):
                rotation.remove(folder, name, index, copy)
        finally:
            os.close(folder)


def _resemble(fd: int, like: os.stat_result) -> None:
    """Gives a new log the owner and mode of the one before, as far as we may."""
    try:
        os.fchown(fd, like.st_uid, like.st_gid)
        os.fchmod(fd, stat.S_IMODE(like.st_mode))
    except OSError:
        pass
