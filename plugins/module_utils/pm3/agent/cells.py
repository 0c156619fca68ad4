# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything that an instance ever started: the cgroup ("cell") that holds it, or, without cgroup v2, what can be found.

Owns the cgroups below pm3-cells.service. That unit is not the agent's own: systemd before 254 cannot restart a unit in whose cgroup
a controller is enabled for children, and the agent must be restartable at any moment. A cell is named by its spawn id, which so is
the identity of what runs in it. Where the host gives us no cgroup, the process table has to tell (descendants.py).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterable, Mapping
from typing import Callable

from ..model.definition import Definition
from ..model.problems import Problem
from . import limits
from .descendants import Descendants, Survey
from .loop import READ, Loop
from .spawn import Process

ANCHOR = "anchor"  # the leaf into which the unit's own process is moved: processes may live in leaves only
UNIT = "pm3-cells.service"


class Cells:
    """The cells of all instances. `root` is the cgroup directory that holds them, None where there is none for us."""

    def __init__(self, loop: Loop, root: str | None, run: str) -> None:
        self.root = root
        self._loop = loop
        self.descendants = Descendants(loop, run)
        self._emptied: dict[int, tuple[str, Callable[[], None]]] = {}
        # cgroup.events tells news as EPOLLPRI, which selectors do not know; an epoll set can itself be watched.
        self._events = select.epoll()
        loop.watch(self._events.fileno(), READ, self._news)

    def procs(self, spawn_id: str) -> str:
        """A new cell; gives the file into which a process writes "0" to enter it. Empty where there are no cells."""
        if self.root is None:
            self.descendants.forget_look()
            return ""
        path = os.path.join(self.root, spawn_id)
        os.makedirs(path, exist_ok=True)
        return os.path.join(path, "cgroup.procs")

    def entrance(self, spawn_id: str) -> str:
        """As `procs`, of the cell that the instance has: an instance that was begun without one does not get an empty one later, in
        which nothing of it would be found."""
        cell = self._cell(spawn_id)
        if cell is None:
            self.descendants.forget_look()
            return ""
        return os.path.join(cell, "cgroup.procs")

    def limit(self, spawn_id: str, definition: Definition, new: bool = False) -> None:
        """The kernel keeps the limits of the definition, and none other, for what is in the cell. Raises `LimitError`.

        `new`: the cell has none yet.
        """
        if limits.fields(definition) or not new:
            limits.put(self.root, os.path.join(self.root or "", spawn_id), definition)

    def beyond(self, definitions: Mapping[str, Definition]) -> list[Problem]:
        """The limits that these ask for and nobody would keep here."""
        if not any(limits.fields(one) for one in definitions.values()):
            return []
        why = "" if self.root is not None else obstacle()
        return limits.problems(self.root, why, _cgroup2_mount() or "", definitions)

    def no_controller(self, controller: str) -> str:
        """Why the cells that there are do not have a controller, for a person."""
        return limits.no_controller(self.root or "", controller, _cgroup2_mount() or "")

    def members(self, spawn_id: str, leader: Process | None) -> list[int]:
        """The processes of an instance, its zombies left out. `leader` is its main process, which may have ended."""
        cell = self._cell(spawn_id)
        if cell is None:
            return self.descendants.of(spawn_id, leader)
        try:
            return [int(line) for line in _read(os.path.join(cell, "cgroup.procs")).split()]
        except OSError:
            return []

    def begun(self, spawn_id: str, leader: Process) -> None:
        """The main process of an instance runs."""
        if self.root is None:
            self.descendants.begun(spawn_id, leader)

    def meet(self) -> None:
        """To be called before a process is told to end: what it has started is known then, whatever becomes of it."""
        if self.root is None:
            self.descendants.meet()

    def survey(self) -> Survey:
        """As `members`, for many instances: one look at the host's processes serves them all. Zombies may be among them."""
        if self.root is not None:
            return self.members
        return self.descendants.look().of

    def _cell(self, spawn_id: str) -> str | None:
        """The cell of an instance; None where it has none, which may also be so because it was begun by an agent that had none."""
        path = os.path.join(self.root, spawn_id) if self.root is not None else None
        return path if path is not None and os.path.isdir(path) else None

    def kill(self, spawn_id: str, leader: Process | None) -> None:
        """SIGKILL to every process of the instance."""
        cell = self._cell(spawn_id)
        if cell is not None:
            try:
                with open(os.path.join(cell, "cgroup.kill"), "w", encoding="ascii") as file:
                    file.write("1")
                return
            except OSError:
                pass  # Linux before 5.14 has no cgroup.kill
        kill_all(lambda: self.members(spawn_id, leader))

    def when_empty(self, spawn_id: str, leader: Process | None, callback: Callable[[], None]) -> bool:
        """Calls `callback` once no process of the instance is left; True when there is none already (and no call follows)."""
        cell = self._cell(spawn_id)
        if cell is None:
            return self.when_none(lambda: self.members(spawn_id, leader), callback)
        try:
            fd = os.open(os.path.join(cell, "cgroup.events"), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        if not _populated(fd):
            os.close(fd)
            return True
        self._emptied[fd] = (spawn_id, callback)
        self._events.register(fd, select.EPOLLPRI)
        return False

    def when_none(self, find: Callable[[], Iterable[int]], callback: Callable[[], None]) -> bool:
        """Calls `callback` once `find` finds no process any more; True when it finds none now (and no call follows).

        By pidfd, not by SIGCHLD: what an instance left behind is the child of whoever is its nearest subreaper, and after a crash of
        ours that is not us.
        """
        for pid in find():
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue

            def ended(pidfd: int = pidfd) -> None:
                self._loop.unwatch(pidfd)
                os.close(pidfd)
                if self.when_none(find, callback):
                    callback()

            self._loop.watch(pidfd, READ, ended)
            return False
        return True

    def end(self, spawn_id: str, then: Callable[[], None]) -> None:
        """Ends what is in a cell of which nobody knows more than its name, and removes it; then calls `then`."""

        def emptied() -> None:
            self.remove(spawn_id)
            then()

        self.kill(spawn_id, None)
        if self.when_empty(spawn_id, None, emptied):
            emptied()

    def remove(self, spawn_id: str) -> None:
        """Removes the cell of an instance that has ended, with the cgroups that its processes may have made in it."""
        if self.root is None:
            return
        for path, folders, _files in os.walk(os.path.join(self.root, spawn_id), topdown=False):
            for folder in folders:
                _rmdir(os.path.join(path, folder))
        _rmdir(os.path.join(self.root, spawn_id))

    def memory_kills(self, spawn_id: str, whole: bool = False) -> int:
        """How often the kernel has ended a process of the instance for want of memory, or all of it at once (`whole`, which Linux
        5.17 began to count), as far as its cgroup tells.
        """
        if self.root is None:
            return 0
        try:
            events = _read(os.path.join(self.root, spawn_id, "memory.events"))
        except OSError:
            return 0  # no memory controller is enabled for it
        counts = dict(line.split() for line in events.splitlines())
        return int(counts.get("oom_group_kill" if whole else "oom_kill", 0))

    def spawn_ids(self) -> list[str]:
        """All cells that there are."""
        if self.root is None:
            return []
        return [entry.name for entry in os.scandir(self.root) if entry.is_dir() and entry.name != ANCHOR]

    def _news(self) -> None:
        for fd, _what in self._events.poll(0):
            if not _populated(fd):
                _spawn_id, callback = self._emptied.pop(fd)
                self._events.unregister(fd)
                os.close(fd)
                self._loop.soon(callback)


def find_root() -> str | None:
    """The cgroup of pm3-cells.service beside our own unit's, made ready to hold cells; None where we may not use one."""
    mount = _cgroup2_mount()
    own = next((line[3:] for line in _read("/proc/self/cgroup").splitlines() if line.startswith("0::")), None)
    if mount is None or own is None or not own.endswith(".service"):
        return None
    root = os.path.join(mount, os.path.dirname(own).lstrip("/"), UNIT)
    try:
        anchor = os.path.join(root, ANCHOR)
        for pid in _read(os.path.join(root, "cgroup.procs")).split():
            os.makedirs(anchor, exist_ok=True)
            _write(os.path.join(anchor, "cgroup.procs"), pid)
        limits.tell_of_memory(root)
        return root if os.access(root, os.W_OK) else None
    except OSError:
        return None


def obstacle() -> str:
    """Why `find_root` finds nothing, for a person."""
    if _cgroup2_mount() is None:
        return "this host has no cgroup v2"
    own = next((line[3:] for line in _read("/proc/self/cgroup").splitlines() if line.startswith("0::")), "")
    if not own.endswith(".service"):
        return "the agent does not run as a systemd service"
    return f"{UNIT}, which is to hold them, does not run beside the agent's own unit, or may not be used by the agent"


def kill_all(find: Callable[[], Iterable[int]]) -> None:
    """SIGKILL to everything that `find` finds, until it finds nothing new: what has the signal pending cannot fork any more."""
    signalled: set[int] = set()
    while True:
        found = set(find()) - signalled
        if not found:
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        signalled |= found


def _cgroup2_mount() -> str | None:
    for line in _read("/proc/self/mountinfo").splitlines():
        before, _dash, after = line.partition(" - ")
        if after.startswith("cgroup2 "):
            return before.split()[4]
    return None


def _populated(fd: int) -> bool:
    try:
        return b"populated 1" in os.pread(fd, 4096, 0)
    except OSError:  # ENODEV: the cgroup was removed
        return False


def _rmdir(path: str) -> None:
    try:
        os.rmdir(path)
    except OSError:
        pass  # gone already, or populated again: the next start uses another cell


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
