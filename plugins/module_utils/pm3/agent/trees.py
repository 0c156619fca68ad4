# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One watched tree: which of its folders the kernel watches, and which of the kernel's events are a change.

A tree owns its kernel watches and nothing else; it reads folders, and of files no more than their times. It knows neither the debounce
nor who watches: that is its `Owner`, which it tells of changes, and which takes its small steps (`work`) in turn.

The rule that keeps it whole: watch first, look after. What happens after a folder is watched comes as an event, and what was there
before is seen by looking, so that a folder made and filled at full speed is never missed. An event says only where to look again: when
the queue is read the world may have gone on. A folder that leaves is cut off at once, and its watches are given back step by step. Where
the root is at all is followed by its `Way`, beside what the kernel watches (kernel_watches.py).
"""

from __future__ import annotations

import errno
import os
import time
from collections import deque
from collections.abc import Iterator
from typing import Callable, Protocol

from ..model.patterns import Ignores
from .inotify import CLOSE_WRITE, CREATE, DELETE, DONT_FOLLOW, IS_FOLDER, MOVED_FROM, MOVED_TO, ONLY_FOLDER
from .kernel_watches import CONTENT, GONE, Kernel, Moving, Way

_APPEAR = CREATE | MOVED_TO
_VANISH = DELETE | MOVED_FROM
_ENTRIES = 64  # entries of a folder that are looked at in one step
_LIMITS = ("fs.inotify.max_user_watches", "user.max_inotify_watches")  # of the machine, of this user namespace


class Folder:
    """A folder of a tree; its root, which has no parent, may also be a file."""

    __slots__ = ("children", "files", "fresh", "name", "parent", "tree", "watch")

    def __init__(self, tree: Tree, parent: Folder | None, name: bytes, fresh: bool) -> None:
        self.tree = tree
        self.parent = parent
        self.name = name
        self.children: dict[bytes, Folder] | None = None
        self.watch = -1
        self.fresh = fresh  # it has come since the tree is watched: each file in it is a change
        self.files = False  # there were files in it or below

    def event(self, mask: int, name: bytes) -> None:
        self.tree.event(self, mask, name)


class Owner(Protocol):
    def changed(self, path: str) -> None:
        """A file has changed; its absolute path."""

    def listening(self) -> bool:
        """Whether `changed` matters now."""

    def wake(self) -> None:
        """There is `work`."""

    def diagnose(self, sentence: str) -> None:
        """Something that the user should know. It is said once."""


class Tree:
    def __init__(
        self,
        owner: Owner,
        kernel: Kernel,
        root: str,
        ignore: tuple[str, ...],
        also_ignore: Callable[[str], bool],
    ) -> None:
        """`root` is absolute. Raises `Unfit` for ignores that `patterns.check` refuses."""
        self._owner = owner
        self._kernel = kernel
        self.root = root
        self._bytes = root.encode("utf-8", "surrogateescape")
        self._ignores = Ignores(root, ignore)
        self._also_ignore = also_ignore
        self.troubles: dict[str, str] = {}  # by kind
        self._said: set[str] = set()
        self._way = Way(kernel, self._bytes, self._way_changed)
        self.top: Folder | None = None
        self._first = True  # it has not been looked for yet: what there is, is no change
        self._lost = True  # its way is to be followed again
        self._since: int | None = None  # files that were written later than that are news, although nobody has told
        self._to_visit: deque[tuple[Folder, bool, bool]] = deque()
        self._visit: Iterator[None] = iter(())
        self._visiting = False
        self._leaving: list[Folder] = []

    # What is to be done

    def busy(self) -> bool:
        """There is something to look at before all that has happened is known."""
        return self._lost or self._visiting or bool(self._to_visit)

    def work(self) -> bool:
        """One small step; whether there may be more."""
        if self._leaving:  # first, for the kernel's watches are limited
            self._leave_one(self._leaving.pop())
        elif self._lost:
            self._look_for_root()
        elif self._visiting:
            self._visiting = next(self._visit, self) is None
        elif self._to_visit:
            self._visit = self._visit_steps(*self._to_visit.popleft())
            self._visiting = next(self._visit, self) is None
        return bool(self._leaving) or self.busy()

    def since(self, moment: int) -> None:
        """Whatever is written after that `moment()` is a change, also where nobody watches yet."""
        self._since = moment

    def look_again(self, fresh: bool) -> None:
        """Compares all of it with what is known. `fresh`: the folders that are found are changes, not only not watched until now."""
        self._lost = True
        self.troubles.clear()
        if self.top is not None:
            self._to_visit.append((self.top, True, fresh))
        self._owner.wake()

    def end(self) -> None:
        """Gives everything back; `work` does it."""
        self._way.forget()
        self._to_visit.clear()
        self._lost = self._visiting = False
        self._visit = iter(())
        if self.top is not None:
            self._leaving.append(self.top)
            self.top = None
        self._owner.wake()

    # The way to the root

    def _way_changed(self) -> None:
        """It is to be looked where the root is now."""
        self._lost = True
        self._owner.wake()

    def _look_for_root(self) -> None:
        self._lost = False
        self._way.forget()
        try:
            watch = self._way.follow()
        except Moving:
            self._lost = True
            return
        except OSError as error:
            self._trouble("root", f"{self.root} cannot be watched: {error.strerror}")
            watch = None
        else:
            if watch is None:
                sentence = f"{self.root} does not exist; it is watched as soon as it does"
                self._trouble("root", sentence, say=self._first)
            else:
                self.troubles.pop("root", None)
        top = self.top
        if watch is None or top is None or top.watch != watch:
            self.top = None
            if top is not None:
                self._leaving.append(top)
                if top.files:
                    self._owner.changed(self.root)
            if watch is not None:
                self.troubles.clear()
                self.top = Folder(self, None, b"", not self._first)
                self._to_visit.append((self.top, False, True))
        self._first = False

    # The folders

    def _visit_steps(self, folder: Folder, again: bool, fresh: bool) -> Iterator[None]:
        """Watches a folder, then looks what is in it. `again`: what is known below is to be visited, too."""
        place = self._place(folder)
        if place is None:
            return  # it has left meanwhile
        path = self._path(place)
        try:
            known = self._kernel.watch_folder(folder, path, ONLY_FOLDER | DONT_FOLLOW if folder.parent else 0)
            yield from self._look_into(folder, place, path, known, again, fresh)
        except OSError as error:
            self._not_watched(folder, path, error)

    def _look_into(
        self, folder: Folder, place: bytes, path: bytes, known: bool, again: bool, fresh: bool
    ) -> Iterator[None]:
        gone = dict(folder.children or {})
        # One file that is news is enough; whether it is, its time tells where the tree's first scan is late.
        news = not known and (folder.fresh or self._since is not None)
        if not folder.parent and not os.path.isdir(path):
            folder.files = True
            if news and (folder.fresh or self._later(path)):
                self._owner.changed(self.root)
            return
        with os.scandir(path) as entries:
            for number, entry in enumerate(entries, 1):
                inner = os.path.join(place, entry.name)
                if entry.is_dir(follow_symlinks=False):
                    child = (folder.children or {}).get(entry.name)
                    gone.pop(entry.name, None)
                    if child is None:
                        self._add(folder, entry.name, inner, folder.fresh or (again and fresh))
                    elif again or not known:
                        self._to_visit.append((child, again, fresh))
                elif (news or not folder.files) and not self._ignored(inner, False):
                    _has_files(folder)
                    if news and (folder.fresh or self._later(entry.path)):
                        news = False
                        self._owner.changed(self._absolute(inner))
                if not number % _ENTRIES:
                    yield
        for number, (name, child) in enumerate(gone.items(), 1):
            if not number % _ENTRIES:
                yield
            if folder.children and folder.children.get(name) is child:
                self._cut(child)

    def _not_watched(self, folder: Folder, path: bytes, error: OSError) -> None:
        if folder.parent is not None:
            self._cut(folder)
        if error.errno in GONE:
            return  # an event about it is on its way
        name = path.decode("utf-8", "replace")
        if error.errno == errno.ENOSPC:
            self._trouble("limit", _limit_sentence(self.root))
        else:
            reason = os.strerror(error.errno) if error.errno else str(error)
            self._trouble("folder", f"{name} cannot be watched: {reason}; what changes in it is not seen")

    def _add(self, folder: Folder, name: bytes, place: bytes, fresh: bool) -> None:
        if not self._ignored(place, True):
            child = Folder(self, folder, name, fresh)
            if folder.children is None:
                folder.children = {}
            folder.children[name] = child
            self._to_visit.append((child, False, fresh))
            self._owner.wake()

    def _cut(self, folder: Folder) -> None:
        """Takes a folder out of the tree, with all that is below."""
        parent = folder.parent
        if parent is not None and parent.children is not None and parent.children.get(folder.name) is folder:
            del parent.children[folder.name]
            if not parent.children:
                parent.children = None
        self._leaving.append(folder)
        self._owner.wake()

    def _leave_one(self, folder: Folder) -> None:
        self._kernel.forget_folder(folder)
        if folder.children:
            self._leaving.extend(folder.children.values())
            folder.children = None
        folder.parent = None

    # Events

    def event(self, folder: Folder, mask: int, name: bytes) -> None:
        """What the kernel tells of a folder."""
        if not mask & CONTENT or (folder.files and not mask & IS_FOLDER and not self._owner.listening()):
            return
        place = self._place(folder)
        if place is None:
            return
        inner = os.path.join(place, name) if name else place
        if mask & IS_FOLDER:
            self._folder_event(folder, mask, name, inner)
        elif not name or not self._ignored(inner, False):
            _has_files(folder)
            # Whoever opens a file for writing and only reads closes it like a writer (W43); MODIFY has told of all
            # writes but those of mmap(2), and those too show in the file's times.
            if mask & ~CLOSE_WRITE & CONTENT or self._written(self._path(inner)):
                self._owner.changed(self._absolute(inner))

    def _folder_event(self, folder: Folder, mask: int, name: bytes, place: bytes) -> None:
        child = (folder.children or {}).get(name)
        if mask & _APPEAR:
            if child is not None and child.fresh and mask & CREATE:
                return  # found before its event was read: its files count
            if child is not None:
                self._cut(child)
            self._add(folder, name, place, True)
        elif mask & _VANISH and child is not None:
            self._cut(child)
            if mask & MOVED_FROM and child.files:
                self._owner.changed(self._absolute(place))

    def _place(self, folder: Folder) -> bytes | None:
        """The path of a folder from the root on; None: it is not in the tree any more."""
        names = []
        below: Folder | None = folder
        while below is not None and below is not self.top:
            names.append(below.name)
            parent = below.parent
            if parent is None or (parent.children or {}).get(below.name) is not below:
                return None
            below = parent
        return None if below is None else b"/".join(reversed(names))

    def _ignored(self, place: bytes, is_folder: bool) -> bool:
        text = place.decode("utf-8", "surrogateescape")
        return self._ignores.match(text, is_folder) or self._also_ignore(self._absolute(place))

    def _path(self, place: bytes) -> bytes:
        return os.path.join(self._bytes, place) if place else self._bytes

    def _absolute(self, place: bytes) -> str:
        return os.path.join(self.root, place.decode("utf-8", "surrogateescape")) if place else self.root

    def _later(self, path: bytes) -> bool:
        """A file that was not watched has come, or was written, since it should have been. (Copies keep the time of the content.)"""
        status = _times(path)
        return status is not None and self._since is not None and status.st_ctime_ns > self._since

    def _written(self, path: bytes) -> bool:
        """The content of a file has changed since the last burst was told."""
        status = _times(path)
        return status is not None and self._since is not None and status.st_mtime_ns > self._since

    def _trouble(self, kind: str, sentence: str, say: bool = True) -> None:
        if kind == "root" or kind not in self.troubles:
            self.troubles[kind] = sentence
            if say and sentence not in self._said:
                self._said.add(sentence)
                self._owner.diagnose(sentence)


def moment() -> int:
    """Now, as no file's times are yet: theirs may be up to a tick (10 ms) behind, never ahead."""
    return time.time_ns()


def _has_files(folder: Folder | None) -> None:
    while folder is not None and not folder.files:
        folder.files = True
        folder = folder.parent


def _times(path: bytes) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None  # gone, which an event tells, or a link that leads nowhere


def _limit_sentence(root: str) -> str:
    limits = []
    for name in _LIMITS:
        try:
            with open("/proc/sys/" + name.replace(".", "/"), encoding="ascii") as file:
                limits.append((int(file.read()), name))
        except (OSError, ValueError):
            continue  # not on this kernel
    limit, name = min(limits, default=(8192, _LIMITS[0]))
    return (
        f"{root} is watched only in part: this user watches as many files and folders as {name} allows ({limit}); "
        f"raise it with `sysctl {name}={4 * limit}` or leave folders out with watch_ignore, then restart the process"
    )
