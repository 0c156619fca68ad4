# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Opening the folder of a file in which somebody less trusted may write. Owns nothing; gives descriptors.

A program's user who can write a folder can put a symbolic link where a root agent is about to write. So where links are not to be
followed, every step of the path is looked at by itself: only links of root or of our own user count.
"""

from __future__ import annotations

import errno
import os
import stat

_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_STEP = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
SECOND_NAME = "it has a second name, so that it may be somebody else's file"
_STEPS = 4096  # more than any path has, with all its links


def open_folder(path: bytes, follow: bool, make: bool = False) -> int:
    """A descriptor (O_PATH) of a folder. `make`: with its parents, where they are missing."""
    if not follow:
        return _walk(path, make)
    try:
        return os.open(path, _FOLDER)
    except FileNotFoundError:
        if not make:
            raise
        os.makedirs(path, 0o750, exist_ok=True)
        return os.open(path, _FOLDER)


def open_to_read(path: bytes, flags: int, follow: bool) -> int:
    """A descriptor of a file. Unless links are to be followed, only one that is nobody else's in disguise. Raises OSError, ELOOP too."""
    if follow:
        return os.open(path, flags)
    folder = open_folder(os.path.dirname(path), follow)
    try:
        fd = os.open(os.path.basename(path), flags | os.O_NOFOLLOW, dir_fd=folder)
    finally:
        os.close(folder)
    found = os.fstat(fd)
    if stat.S_ISREG(found.st_mode) and found.st_nlink > 1:
        os.close(fd)
        raise OSError(errno.ELOOP, SECOND_NAME)
    return fd


def _walk(path: bytes, make: bool) -> int:
    left = path.split(b"/")[::-1]
    here = os.open(b"/" if path.startswith(b"/") else b".", _FOLDER)
    try:
        for __ in range(_STEPS):
            if not left:
                return here
            name = left.pop()
            if name in (b"", b"."):
                continue
            found = _step(name, here, make)
            target = _link(found)
            if target is None:
                os.close(here)
                here = found
            else:
                os.close(found)
                left.extend(target.split(b"/")[::-1])
                if target.startswith(b"/"):
                    os.close(here)
                    here = os.open(b"/", _FOLDER)
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    except OSError:
        os.close(here)
        raise


def _step(name: bytes, here: int, make: bool) -> int:
    try:
        return os.open(name, _STEP, dir_fd=here)
    except FileNotFoundError:
        if not make:
            raise
    try:
        os.mkdir(name, 0o750, dir_fd=here)
    except FileExistsError:
        pass  # somebody else was faster; what it is shows when it is opened
    return os.open(name, _STEP, dir_fd=here)


def _link(found: int) -> bytes | None:
    """Where a symbolic link leads; None for a folder."""
    status = os.fstat(found)
    if stat.S_ISLNK(status.st_mode):
        if status.st_uid not in (0, os.geteuid()):
            os.close(found)
            raise OSError(errno.ELOOP, "a symbolic link of another user is in its path")
        return os.readlink(b"", dir_fd=found)
    if not stat.S_ISDIR(status.st_mode):
        os.close(found)
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    return None
