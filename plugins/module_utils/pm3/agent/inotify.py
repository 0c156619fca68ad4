# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""inotify(7): the kernel says which file changed. A binding without policy; `read` never blocks.

ctypes is loaded with the first `Inotify`, not before: most agents never need it.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import NamedTuple

MODIFY, ATTRIB, CLOSE_WRITE = 0x2, 0x4, 0x8
MOVED_FROM, MOVED_TO, CREATE, DELETE = 0x40, 0x80, 0x100, 0x200
DELETE_SELF, MOVE_SELF = 0x400, 0x800
OVERFLOW = 0x4000  # events were dropped: anything may have changed
IGNORED = 0x8000  # the watch has ended: its file is gone, or `forget` was called
IS_FOLDER = 0x40000000  # the event is about a folder

# How to watch
ONLY_FOLDER = 0x1000000  # fails with ENOTDIR for anything else
DONT_FOLLOW = 0x2000000  # a symbolic link itself
EXCLUDE_UNLINKED = 0x4000000  # nothing of an open file once its name is gone
ADD = 0x20000000  # to what is watched of the inode already, instead of replacing it

_HEADER = struct.Struct("iIII")
_HINTS = {
    errno.EMFILE: "this user has too many files or inotify instances open; fs.inotify.max_user_instances can be raised",
    errno.ENOSPC: "this user watches too many files; fs.inotify.max_user_watches can be raised",
}


class Event(NamedTuple):
    watch: int  # as `Inotify.watch` returned it, -1 for OVERFLOW
    mask: int
    name: bytes  # the entry of a watched folder, else empty


class Inotify:
    def __init__(self) -> None:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        self._errno = ctypes.get_errno
        self._add = libc.inotify_add_watch
        self._add.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)
        self._remove = libc.inotify_rm_watch
        self._remove.argtypes = (ctypes.c_int, ctypes.c_int)
        self.fd: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise self._error()

    def watch(self, path: bytes, mask: int) -> int:
        """Watches the file or folder; the number is the same for the same inode."""
        watch: int = self._add(self.fd, path, mask)
        if watch < 0:
            raise self._error(path)
        return watch

    def forget(self, watch: int) -> None:
        """Ends a watch; one that has ended already is no error."""
        self._remove(self.fd, watch)

    def read(self) -> list[Event]:
        """What happened since, as far as one read holds it."""
        try:
            data = os.read(self.fd, 16384)
        except BlockingIOError:
            return []
        events = []
        begin = 0
        while begin < len(data):
            watch, mask, _cookie, length = _HEADER.unpack_from(data, begin)
            begin += _HEADER.size + length
            events.append(Event(watch, mask, data[begin - length : begin].rstrip(b"\0")))
        return events

    def close(self) -> None:
        os.close(self.fd)

    def _error(self, path: bytes = b"") -> OSError:
        number = self._errno()
        return OSError(number, _HINTS.get(number, os.strerror(number)), *([os.fsdecode(path)] if path else []))
