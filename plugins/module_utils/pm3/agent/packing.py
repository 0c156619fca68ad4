# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compressing rotated copies, one at a time, each in a thread of its own with the lowest priority. Owns the half-done files.

The pump renames copies while this works, so a copy is known by its inode, and it is the pump that puts the result in its place
(rotation.replace). Until then the result has a name that nobody reads. A crash leaves the copy as it was and perhaps a half-done
file, which the next attempt removes.
"""

from __future__ import annotations

import os
import stat
import threading
from collections import deque
from functools import partial
from typing import Callable, NamedTuple

from . import rotation
from .folders import open_folder
from .points import reached

_CHUNK = 256 * 1024  # bytes
_GZIP = 31  # zlib's window bits for a gzip header
_ATTEMPTS = 3  # a copy may be renamed between finding and opening it


class Packing(NamedTuple):
    """A rotated copy that is to be compressed, and the log that it is of."""

    log: bytes
    log_index: bytes | None
    follow: bool
    total_size: int
    identity: tuple[int, int]


class Packer:
    """Its methods are called by the pump's thread, and so is what it hands to `call`."""

    def __init__(self, call: Callable[[Callable[[], None]], None]) -> None:
        self._call = call
        self._queue: deque[Packing] = deque()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def add(self, packing: Packing) -> None:
        if all(one.identity != packing.identity for one in self._queue):
            self._queue.append(packing)
            self._next()

    def close(self) -> None:
        """Ends it within a chunk; what is left is found again when its log is opened."""
        self._stopped = True
        if self._thread is not None:
            self._thread.join()

    def _next(self) -> None:
        if self._queue and self._thread is None and not self._stopped:
            self._thread = threading.Thread(target=self._run, args=(self._queue[0],), name="packing", daemon=True)
            self._thread.start()

    def _run(self, packing: Packing) -> None:
        done = False
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
            done = self._pack(packing)
        except OSError:
            pass  # the copy stays as it is until the next rotation: no room, or somebody took it away
        finally:
            self._call(partial(self._finish, packing, done))

    def _finish(self, packing: Packing, done: bool) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._queue.popleft()
        folder, name = -1, os.path.basename(packing.log)
        try:
            folder = open_folder(os.path.dirname(packing.log), packing.follow)
            if done:
                rotation.replace(folder, name, packing.identity, name + rotation.HALF)
            if packing.total_size:
                waits = any(one.log == packing.log for one in self._queue)
                rotation.limit(folder, name, packing.log_index, packing.total_size, spare_plain=waits)
        except OSError:
            pass  # somebody took it away, or it stays as it is
        finally:
            if folder >= 0:
                os.close(folder)
            self._next()  # only now: the half-done file has one name per log

    def _pack(self, packing: Packing) -> bool:
        """Makes the half-done file whole. False: there is no such copy any more."""
        folder = open_folder(os.path.dirname(packing.log), packing.follow)
        name = os.path.basename(packing.log)
        try:
            source = _open_copy(folder, name, packing.identity)
            if source < 0:
                return False
            try:
                return self._compress(source, folder, name + rotation.HALF)
            finally:
                os.close(source)
        finally:
            os.close(folder)

    def _compress(self, source: int, folder: int, half: bytes) -> bool:
        import zlib  # not before there is something to compress

        status = os.fstat(source)
        _unlink(folder, half)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        target = os.open(half, flags, 0o600, dir_fd=folder)
        done = False
        try:
            packer = zlib.compressobj(6, zlib.DEFLATED, _GZIP)
            while not self._stopped:
                chunk = os.read(source, _CHUNK)
                _write(target, packer.compress(chunk) if chunk else packer.flush())
                if not chunk:
                    os.fchown(target, status.st_uid, status.st_gid)
                    os.fchmod(target, stat.S_IMODE(status.st_mode))
                    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
                    done = True
                    reached("packing.written")
                    break
        finally:
            os.close(target)
            if not done:
                _unlink(folder, half)
        return done


def _open_copy(folder: int, log: bytes, identity: tuple[int, int]) -> int:
    """The copy with this inode, wherever it has been shifted to; -1 if it is gone or no file."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    for __ in range(_ATTEMPTS):
        for copy in rotation.copies(folder, log):
            if copy.identity != identity:
                continue
            try:
                fd = os.open(copy.name, flags, dir_fd=folder)
            except FileNotFoundError:
                break
            status = os.fstat(fd)
            if (status.st_dev, status.st_ino) == identity and stat.S_ISREG(status.st_mode):
                return fd
            os.close(fd)
            break
    return -1


def _write(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def _unlink(folder: int, name: bytes) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        pass
