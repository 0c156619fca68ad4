# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing the index of a log (log_index.py). Owns the index's descriptor. Nothing here raises OSError: a log needs no index."""

from __future__ import annotations

import os
import time

from .log_index import RECORD
from .points import reached

_INTERVAL = 1_000_000  # nanoseconds between two records at least, so that an index stays small beside its log
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class IndexWriter:
    __slots__ = ("_before", "_fd", "_last", "_text", "_usable")

    def __init__(self, path: str | None) -> None:
        self._text = path
        self._fd = -1
        self._usable = path is not None
        self._last = 0  # when the last record says that its bytes came
        self._before: int | None = None  # the same of the record before it, where `note` has just written one

    @property
    def _path(self) -> bytes | None:
        return None if self._text is None else self._text.encode("utf-8", "surrogateescape")

    def note(self, offset: int) -> None:
        """The bytes from `offset` on come now."""
        now, self._before = time.time_ns(), None
        if not self._usable or 0 <= now - self._last < _INTERVAL:
            return
        if self._fd < 0 and not self._open(offset):
            return
        self._before, self._last = self._last, max(now, self._last)  # should the clock have been set back: times grow
        try:
            os.write(self._fd, RECORD.pack(offset, self._last))
            reached("index.noted")
        except OSError:
            self._give_up()

    def take_back(self) -> None:
        """None came."""
        if self._before is None or self._fd < 0:
            return
        self._last, self._before = self._before, None
        try:
            os.ftruncate(self._fd, max(0, os.fstat(self._fd).st_size - RECORD.size))
        except OSError:
            self._give_up()

    def first(self) -> int | None:
        """When the first byte of the log came, if that is known."""
        try:
            fd = os.open(self._path or b"", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            found = os.pread(fd, RECORD.size, 0)
        except OSError:
            return None
        finally:
            os.close(fd)
        if len(found) < RECORD.size:
            return None
        offset, moment = RECORD.unpack(found)
        return moment if offset == 0 else None

    def restart(self) -> None:
        """What it says is no longer of this log."""
        self.close()
        path = self._path
        if path is not None:
            try:
                os.truncate(path, 0)
            except OSError:
                pass

    def close(self) -> None:
        """The next record opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._usable = self._text is not None
        self._last = 0

    def _open(self, size: int) -> bool:
        """Goes on behind the last whole record, or anew if the index is not of this log, which has `size` bytes already."""
        path = self._path or b""
        try:
            try:
                self._fd = os.open(path, _FLAGS | os.O_CREAT, 0o640)
            except FileNotFoundError:
                os.makedirs(os.path.dirname(path), 0o750, exist_ok=True)
                self._fd = os.open(path, _FLAGS | os.O_CREAT, 0o640)
            end = os.fstat(self._fd).st_size
            whole = end - end % RECORD.size
            if whole:
                offset, self._last = RECORD.unpack(os.pread(self._fd, RECORD.size, whole - RECORD.size))
                if offset > size:
                    whole = self._last = 0
            if whole != end:
                os.ftruncate(self._fd, whole)
        except OSError:
            self._give_up()
        return self._usable

    def _give_up(self) -> None:
        """Until the log is rotated or opened again."""
        self.close()
        self._usable = False
