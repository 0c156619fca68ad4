# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who watches which tree, and when they are told: `watch` of a definition (spec/pm3.md section 3.9, W43, W44).

Owns the one inotify instance of the agent, made with the first watch, and its turns on the loop. Any number of watchers of the same
root and ignores share one tree. What is in a tree, and which events are changes, is the business of trees.py.

A watcher is told once per burst: `DELAY` after the first change, when all that happened until then has been read. Nothing here runs when
nothing happens; while much happens the kernel collects it for `_PAUSE` seconds, so that whoever writes without end does not keep us
busy without end.
"""

from __future__ import annotations

from functools import partial
from typing import Callable

from .inotify import ATTRIB, CREATE, DELETE, DELETE_SELF, IGNORED, MOVE_SELF, MOVED_FROM, MOVED_TO, OVERFLOW
from .kernel_watches import Kernel
from .loop import READ, Loop, Timer
from .trees import Tree, moment

DELAY = 0.5  # seconds from the first change of a burst until it is told
LINGER = (
    30.0  # seconds that a tree is kept without watchers: when its process is restarted it need not be scanned again
)
_PATIENCE = 5.0  # seconds more that a burst waits for folders that are still looked at
_PAUSE = 0.05  # seconds from one reading of events to the next
_STEP = 0.005  # seconds of scanning in one turn of the loop
_FEW = 32  # events of any size fit in one reading; fewer than that were all
_READS = 2  # times 16 KiB of events in one turn
_ALL_READS = 64  # ... when all that happened until now is to be known
_NAMES = CREATE | DELETE | MOVED_FROM | MOVED_TO
_SELF = ATTRIB | DELETE_SELF | MOVE_SELF

Changed = Callable[[str], None]
_Like = tuple[str, tuple[str, ...]]  # root and ignores


class _Watcher:
    """One key's wish to be told."""

    __slots__ = ("changed", "key", "shared")

    def __init__(self, key: str, shared: _Shared, changed: Changed) -> None:
        self.key = key
        self.shared = shared
        self.changed = changed


class _Burst:
    """Changes that are to be told to those who were quiet before the first of them."""

    __slots__ = ("path", "timer", "watchers")

    def __init__(self, path: str, watchers: list[_Watcher]) -> None:
        self.path = path
        self.watchers = watchers
        self.timer: Timer | None = None


class _Shared:
    """A tree and those who watch it."""

    def __init__(self, watches: Watches, like: _Like, kernel: Kernel, also_ignore: Callable[[str], bool]) -> None:
        self._watches = watches
        self.like = like
        self.tree = Tree(self, kernel, *like, also_ignore)
        self.watchers: set[_Watcher] = set()
        self.quiet: dict[_Watcher, None] = {}  # those for whom no change has been seen; all others are about to be told
        self.due: list[_Burst] = []  # waiting only until nothing is left to look at
        self.linger: Timer | None = None

    # What the tree asks of its owner

    def listening(self) -> bool:
        return bool(self.quiet)

    def changed(self, path: str) -> None:
        if self.quiet:
            self._watches.begin_burst(self, path)

    def wake(self) -> None:
        self._watches.work_on(self)

    def diagnose(self, sentence: str) -> None:
        self._watches.diagnose(sentence)


class Watches:
    def __init__(
        self,
        loop: Loop,
        diagnose: Callable[[str], None],
        also_ignore: Callable[[str], bool] = lambda path: False,
    ) -> None:
        """`also_ignore` is asked about absolute paths, as the watched root names them; a folder that it ignores is not entered."""
        self.diagnose = diagnose
        self._loop = loop
        self._also_ignore = also_ignore
        self._kernel = Kernel()
        self._listening = False  # the inotify instance is there
        self._refusal: str | None = None  # why it is not
        self._watchers: dict[str, _Watcher] = {}
        self._shared: dict[_Like, _Shared] = {}
        self._busy: dict[_Shared, None] = {}  # with something to look at, the foremost first
        self._stepping = False

    # Watchers

    def watch(self, key: str, root: str, ignore: tuple[str, ...], changed: Changed) -> None:
        """From now on calls `changed(path)` after each burst of changes below `root`. Replaces an earlier watch of `key`.

        `root` is absolute; it may be missing, a file, or a link. Raises `Unfit` for a pattern in `ignore` that `patterns.check` refuses,
        and nothing else: what hinders the watch is told by `trouble`.
        """
        like = (root, ignore)
        shared = self._shared.get(like) or _Shared(self, like, self._kernel, self._also_ignore)
        self.unwatch(key)
        self._listen()
        if like in self._shared:
            self._read(_ALL_READS)  # what has happened until now is not for the newcomer
            if shared.tree.troubles and not shared.tree.busy():  # it may have been mended
                shared.tree.since(moment())
                shared.tree.look_again(fresh=False)
        else:
            self._shared[like] = shared
            self._begin(shared)
        watcher = self._watchers[key] = _Watcher(key, shared, changed)
        shared.watchers.add(watcher)
        shared.quiet[watcher] = None
        if shared.linger is not None:
            shared.linger.cancel()
            shared.linger = None

    def unwatch(self, key: str) -> None:
        """`changed` of `key` is not called any more."""
        watcher = self._watchers.pop(key, None)
        if watcher is None:
            return
        shared = watcher.shared
        shared.watchers.discard(watcher)
        shared.quiet.pop(watcher, None)
        if not shared.watchers:
            shared.linger = self._loop.after(LINGER, partial(self._end, shared))

    def trouble(self, key: str) -> str | None:
        """Why the tree of `key` cannot be watched, or not all of it."""
        watcher = self._watchers.get(key)
        if watcher is None:
            return None
        if self._refusal is not None:
            return self._refusal
        return ". ".join(watcher.shared.tree.troubles.values()) or None

    def close(self) -> None:
        self._watchers.clear()
        for shared in self._shared.values():
            if shared.linger is not None:
                shared.linger.cancel()
        self._shared.clear()
        self._close_kernel()

    def _begin(self, shared: _Shared) -> None:
        """A small tree is watched when this returns; for a larger one times tell what was written before its folders are."""
        if not self._listening:
            return
        now = moment()
        until = self._loop.time() + _STEP
        while shared.tree.work() and self._loop.time() < until:
            pass
        shared.tree.since(now)
        self.work_on(shared)

    def _end(self, shared: _Shared) -> None:
        del self._shared[shared.like]
        shared.tree.end()  # step by step: ending thousands of the kernel's watches at once takes long
        if not self._listening:
            self._close_kernel()

    # The kernel's news

    def _listen(self) -> None:
        if self._listening:
            return
        try:
            self._loop.watch(self._kernel.open(), READ, self._readable)
        except OSError as error:
            refusal = f"No file can be watched: {error.strerror}"
            if refusal != self._refusal:
                self.diagnose(refusal)
            self._refusal = refusal
            return
        self._listening = True
        self._refusal = None
        for shared in self._shared.values():
            self._begin(shared)

    def _close_kernel(self) -> None:
        self._busy.clear()
        if self._listening:
            self._loop.unwatch(self._kernel.open())
            self._listening = False
        self._kernel.close()

    def _readable(self) -> None:
        fd = self._kernel.open()
        self._loop.unwatch(fd)
        self._loop.after(0 if self._read(_READS) else _PAUSE, partial(self._readable_again, fd))

    def _readable_again(self, fd: int) -> None:
        if self._kernel.inotify is not None and self._kernel.inotify.fd == fd:
            self._loop.watch(fd, READ, self._readable)

    def _read(self, times: int) -> bool:
        """Reads events, so many times at most; whether there may be more."""
        inotify = self._kernel.inotify
        for _time in range(times):
            events = inotify.read() if inotify is not None else []
            for watch, mask, name in events:
                if mask & OVERFLOW:
                    self._overflow()
                else:
                    self._event(watch, mask, name)
            if len(events) < _FEW:  # not "none": somebody who writes without end has already written again
                return False
        return True

    def _event(self, watch: int, mask: int, name: bytes) -> None:
        kernel = self._kernel
        if mask & IGNORED:
            for way in kernel.ended(watch):
                way.changed()
            return
        names = kernel.ways.get(watch)
        if names and (mask & _NAMES if name else mask & _SELF):
            for way in names.get(name, ()):
                way.changed()
        for folder in kernel.folders.get(watch, ()):
            folder.event(mask, name)

    def _overflow(self) -> None:
        """The kernel has dropped events. Anything may have happened."""
        for shared in self._shared.values():
            shared.tree.look_again(fresh=True)
            shared.changed(shared.tree.root)

    # Looking at trees, step by step

    def work_on(self, shared: _Shared) -> None:
        if self._listening:
            self._busy[shared] = None
            self._step_later()

    def _step_later(self) -> None:
        if not self._stepping:
            self._stepping = True
            self._loop.after(0, self._step)  # not `soon`: one step per turn

    def _step(self) -> None:
        self._stepping = False
        until = self._loop.time() + _STEP
        while self._busy and self._loop.time() < until:
            shared = next(iter(self._busy))
            del self._busy[shared]
            more = shared.tree.work()
            if not shared.tree.busy():
                self._tell_due(shared)
            if more:
                self._busy[shared] = None
        if self._busy:
            self._step_later()
        elif not self._shared:
            self._close_kernel()

    # Telling

    def begin_burst(self, shared: _Shared, path: str) -> None:
        burst = _Burst(path, list(shared.quiet))
        shared.quiet.clear()
        self._loop.after(DELAY, partial(self._over, shared, burst))

    def _over(self, shared: _Shared, burst: _Burst, reads: int = _ALL_READS) -> None:
        """Reads all that has happened until now, in as many turns as it takes, then tells."""
        if self._read(_READS) and reads > _READS:
            self._loop.after(0, partial(self._over, shared, burst, reads - _READS))
        elif shared.tree.busy():
            shared.due.append(burst)
            burst.timer = self._loop.after(_PATIENCE, partial(self._tell, shared, burst))
        else:
            self._tell(shared, burst)

    def _tell_due(self, shared: _Shared) -> None:
        due, shared.due = shared.due, []
        for burst in due:
            if burst.timer is not None:
                burst.timer.cancel()
            self._tell(shared, burst)

    def _tell(self, shared: _Shared, burst: _Burst) -> None:
        if burst in shared.due:
            shared.due.remove(burst)
        if not shared.tree.busy():
            shared.tree.since(moment())
        for watcher in burst.watchers:
            if watcher in shared.watchers:
                shared.quiet[watcher] = None
                self._loop.soon(partial(self._tell_one, watcher, burst.path))

    def _tell_one(self, watcher: _Watcher, path: str) -> None:
        if self._watchers.get(watcher.key) is watcher:
            watcher.changed(path)
