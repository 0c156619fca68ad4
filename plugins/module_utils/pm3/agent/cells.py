# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything that an instance ever started: the cgroup ("cell") that holds it, or, without cgroup v2, its session.

Owns the cgroups below pm3-cells.service. That unit is not the agent's own: systemd before 254 cannot restart a unit in whose cgroup
a controller is enabled for children, and the agent must be restartable at any moment. A cell is named by its spawn id, which so is
the identity of what runs in it. Where the host gives us no cgroup, a session is the best approximation: a process that makes a
session of its own escapes it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterable, Iterator
from typing import Callable, Optional

from . import spawn
from .loop import READ, Loop
from .spawn import Process

ANCHOR = "anchor"  # the leaf into which the unit's own process is moved: processes may live in leaves only
UNIT = "pm3-cells.service"

Survey = Callable[[str, Optional[Process]], "list[int]"]  # the processes of a spawn, by its id and its main process


class Cells:
    """The cells of all instances. `root` is the cgroup directory that holds them, None where there is none for us."""

    def __init__(self, loop: Loop, root: str | None) -> None:
        self.root = root
        self._loop = loop
        self._sessions: set[int] | None = None
        self._emptied: dict[int, tuple[str, Callable[[], None]]] = {}
        # cgroup.events tells news as EPOLLPRI, which selectors do not know; an epoll set can itself be watched.
        self._events = select.epoll()
        loop.watch(self._events.fileno(), READ, self._news)

    def procs(self, spawn_id: str) -> str:
        """A new cell; gives the file into which a process writes "0" to enter it. Empty where there are no cells."""
        if self.root is None:
            self._sessions = None  # the process that is to come begins another one
            return ""
        path = os.path.join(self.root, spawn_id)
        os.makedirs(path, exist_ok=True)
        return os.path.join(path, "cgroup.procs")

    def members(self, spawn_id: str, leader: Process | None) -> list[int]:
        """The processes of an instance, its zombies left out. `leader` is its main process, which may have ended."""
        cell = self._cell(spawn_id)
        if cell is None:
            return session_members(leader) if leader is not None and leader.pid in self._all_sessions() else []
        try:
            return [int(line) for line in _read(os.path.join(cell, "cgroup.procs")).split()]
        except OSError:
            return []

    def survey(self) -> Survey:
        """As `members`, for many instances: one look at the host's processes serves them all. Zombies may be among them."""
        if self.root is not None:
            return self.members
        sessions: dict[int | None, list[int]] = {}
        for pid in _pids():
            sessions.setdefault(_session_of(pid), []).append(pid)

        def members(_spawn_id: str, leader: Process | None) -> list[int]:
            if leader is None or leader.pid not in sessions:
                return []
            return sessions[leader.pid] if spawn.start_time(leader.pid) in (None, leader.start_time) else []

        return members

    def _cell(self, spawn_id: str) -> str | None:
        """The cell of an instance; None where it has none, which may also be so because it was begun by an agent that had none."""
        path = os.path.join(self.root, spawn_id) if self.root is not None else None
        return path if path is not None and os.path.isdir(path) else None

    def _all_sessions(self) -> set[int]:
        """The sessions that there are. One look serves all instances that end in the same turn of the loop: a session that is gone
        stays gone, and `procs` forgets the look before another can begin."""
        if self._sessions is None:
            self._sessions = {session for pid in _pids() if (session := _session_of(pid)) is not None}
            self._loop.soon(self._look_again)
        return self._sessions

    def _look_again(self) -> None:
        self._sessions = None

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

    def was_out_of_memory(self, spawn_id: str) -> bool:
        """Whether the kernel has ended a process of the instance for want of memory, as far as its cgroup tells."""
        if self.root is None:
            return False
        try:
            events = _read(os.path.join(self.root, spawn_id, "memory.events"))
        except OSError:
            return False  # no memory controller is enabled for it
        return any(line.startswith("oom_kill ") and not line.endswith(" 0") for line in events.splitlines())

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


def spawned_with(variable: str, value: str) -> Iterator[int]:
    """The processes whose environment says `variable=value`: how an instance is known where there are no cells."""
    wanted = f"{variable}={value}".encode()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/environ", "rb") as file:
                    if wanted in file.read().split(b"\0"):
                        yield int(entry)
            except OSError:
                continue


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


def session_members(leader: Process) -> list[int]:
    """The processes of the session that `leader` began, its zombies left out.

    A number is not given to another process while a session has it. So if another has it now, nobody was left.
    """
    if spawn.start_time(leader.pid) not in (None, leader.start_time):
        return []
    return [pid for pid in _pids() if _session_of(pid) == leader.pid and spawn.is_running(pid)]


def _pids() -> Iterator[int]:
    return (int(entry) for entry in os.listdir("/proc") if entry.isdigit())


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


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
