# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the kernel watches for the trees: their folders, and the way to each root.

Owns which kernel watch stands for which folders and ways. Looks at no file's content and at no folder's, and knows nothing of changes:
what an event means is the business of those whose watch it is.

A *way* is every turn on the path to a root (symbolic links, folders that may be moved), so that a missing, replaced or switched root is
followed. Each of these is watched by its own inode, for a folder's names would wake us for everybody's files in /tmp.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Callable, Protocol

from .inotify import (
    ADD,
    ATTRIB,
    CLOSE_WRITE,
    CREATE,
    DELETE,
    DELETE_SELF,
    DONT_FOLLOW,
    EXCLUDE_UNLINKED,
    MODIFY,
    MOVE_SELF,
    MOVED_FROM,
    MOVED_TO,
    ONLY_FOLDER,
    Inotify,
)

CONTENT = MODIFY | CLOSE_WRITE | CREATE | DELETE | MOVED_FROM | MOVED_TO
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_SELF = DELETE_SELF | MOVE_SELF
_LINKS = 40  # symbolic links on one path, as path_resolution(7) has it


class Watched(Protocol):
    """A folder that is watched; `watch` is the kernel's number, or -1."""

    watch: int

    def event(self, mask: int, name: bytes) -> None:
        """The kernel tells something of it."""


class Kernel:
    """The one inotify instance, and what its watches stand for. The kernel has one watch per inode, however many trees it is in."""

    def __init__(self) -> None:
        self.inotify: Inotify | None = None
        self.folders: dict[int, list[Watched]] = {}
        self.ways: dict[
            int, dict[bytes, dict[Way, None]]
        ] = {}  # by the name in the folder that matters, b"": it itself

    def open(self) -> int:
        """The descriptor to listen on. Raises OSError."""
        if self.inotify is None:
            self.inotify = Inotify()
        return self.inotify.fd

    def close(self) -> None:
        """All watches end at once."""
        if self.inotify is not None:
            self.inotify.close()
            self.inotify = None
        self.folders.clear()
        self.ways.clear()

    def watch_folder(self, folder: Watched, path: bytes, flags: int) -> bool:
        """Watches it at that path; whether that is the inode that was watched before. Raises OSError."""
        watch = self._watch(path, CONTENT | EXCLUDE_UNLINKED | flags)
        if watch == folder.watch:
            return True
        self.forget_folder(folder)
        folder.watch = watch
        self.folders.setdefault(watch, []).append(folder)
        return False

    def forget_folder(self, folder: Watched) -> None:
        watch, folder.watch = folder.watch, -1
        folders = self.folders.get(watch)
        if folders is not None:
            folders.remove(folder)
            if not folders:
                del self.folders[watch]
                self._forget(watch)

    def watch_turn(self, way: Way, path: bytes, mask: int, name: bytes) -> int:
        """Watches a turn of the way, or a name in it. Raises OSError."""
        watch = self._watch(path, mask | DONT_FOLLOW)
        self.ways.setdefault(watch, {}).setdefault(name, {})[way] = None
        return watch

    def forget_turn(self, way: Way, watch: int, name: bytes) -> None:
        names = self.ways.get(watch, {})
        ways = names.get(name, {})
        ways.pop(way, None)
        if not ways:
            names.pop(name, None)
        if not names and watch in self.ways:
            del self.ways[watch]
            self._forget(watch)

    def _watch(self, path: bytes, mask: int) -> int:
        if self.inotify is None:
            raise OSError(errno.EBADF, "nothing is watched any more")
        return self.inotify.watch(path, mask | ADD)

    def _forget(self, watch: int) -> None:
        if self.inotify is not None and watch not in self.folders and watch not in self.ways:
            self.inotify.forget(watch)

    def ended(self, watch: int) -> set[Way]:
        """The kernel has ended a watch; the ways that have to be followed again."""
        for folder in self.folders.pop(watch, ()):
            folder.watch = -1
        return {way for ways in self.ways.pop(watch, {}).values() for way in ways}


class Moving(Exception):
    """The way has changed while it was followed."""


class Way:
    """The way to one root. `changed` is called when it is to be followed again."""

    def __init__(self, kernel: Kernel, root: bytes, changed: Callable[[], None]) -> None:
        self._kernel = kernel
        self._root = root
        self.changed = changed
        self._turns: list[tuple[int, bytes]] = []

    def forget(self) -> None:
        """Nothing of it is watched any more."""
        for watch, name in self._turns:
            self._kernel.forget_turn(self, watch, name)
        self._turns.clear()

    def follow(self) -> int | None:
        """Watches every turn of the way. The watch of what the root leads to, None: to nothing (yet). Raises OSError, Moving."""
        names = list(reversed(self._root.split(b"/")))
        at, links, watch = b"/", 0, -1
        while names:
            name = names.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                at = os.path.dirname(at)
                continue
            entry = os.path.join(at, name)
            found = _look(entry)
            if found is None:
                self._missing(at, name)
                return None
            watch = self._turn(entry, _SELF | (0 if stat.S_ISDIR(found.st_mode) else ATTRIB))
            self._still(entry, found)
            if stat.S_ISLNK(found.st_mode):
                links += 1
                if links > _LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                target = os.readlink(entry)
                names += reversed(target.split(b"/"))
                at = b"/" if target.startswith(b"/") else at
            elif stat.S_ISDIR(found.st_mode):
                at = entry
            elif names:
                raise OSError(errno.ENOTDIR, f"{os.fsdecode(entry)} is not a folder")
            else:
                return watch
        watch = self._turn(at, _SELF)  # once more: a link may have led up or to the root of all
        self._guard(at)
        return watch

    def _missing(self, at: bytes, name: bytes) -> None:
        self._watch(at, CREATE | MOVED_TO | ONLY_FOLDER, name)
        self._guard(at)
        self._still(os.path.join(at, name), None)

    def _guard(self, folder: bytes) -> None:
        """A folder that a process still works in (`rmdir` of its cwd) is deleted without a word from itself; its parent tells."""
        if folder != b"/":
            found = os.lstat(folder)
            self._turn(os.path.dirname(folder), DELETE | MOVED_TO, os.path.basename(folder))
            self._still(folder, found)

    def _turn(self, path: bytes, mask: int, name: bytes = b"") -> int:
        try:
            return self._watch(path, mask, name)
        except OSError as error:
            if error.errno in GONE:
                raise Moving from error
            return -1  # a folder above that we may pass but not read, or no more watches: the root itself matters more

    def _watch(self, path: bytes, mask: int, name: bytes) -> int:
        watch = self._kernel.watch_turn(self, path, mask, name)
        self._turns.append((watch, name))
        return watch

    def _still(self, entry: bytes, found: os.stat_result | None) -> None:
        """Raises Moving when the entry is not any more what was found before it was watched."""
        now = _look(entry)
        if now is None or found is None:
            same = now is found
        else:
            same = os.path.samestat(now, found) and stat.S_IFMT(now.st_mode) == stat.S_IFMT(found.st_mode)
        if not same:
            raise Moving


def _look(path: bytes) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None
