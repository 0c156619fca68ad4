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
from collections.abc import Iterator
from typing import Callable

from .loop import READ, Loop

ANCHOR = "anchor"  # the leaf into which the unit's own process is moved: processes may live in leaves only
UNIT = "pm3-cells.service"


class Cells:
    """The cells of all instances. `root` is the cgroup directory that holds them, None where there is none for us."""

    def __init__(self, loop: Loop, root: str | None) -> None:
        self.root = root
        self._loop = loop
        self._emptied: dict[int, tuple[str, Callable[[], None]]] = {}
        # cgroup.events tells news as EPOLLPRI, which selectors do not know; an epoll set can itself be watched.
        self._events = select.epoll()
        loop.watch(self._events.fileno(), READ, self._news)

    def procs(self, spawn_id: str) -> str:
        """A new cell; gives the file into which a process writes "0" to enter it. Empty where there are no cells."""
        if self.root is None:
            return ""
        path = os.path.join(self.root, spawn_id)
        os.makedirs(path, exist_ok=True)
        return os.path.join(path, "cgroup.procs")

    def members(self, spawn_id: str, session: int | None = None) -> list[int]:
        """The processes of an instance, its zombies left out."""
        if self.root is None:
            return session_members(session) if session is not None else []
        try:
            return [int(line) for line in _read(os.path.join(self.root, spawn_id, "cgroup.procs")).split()]
        except OSError:
            return []

    def kill(self, spawn_id: str, session: int | None) -> None:
        """SIGKILL to every process of the instance. `session` is its session's (and first process group's) id."""
        if self.root is not None:
            try:
                with open(os.path.join(self.root, spawn_id, "cgroup.kill"), "w", encoding="ascii") as file:
                    file.write("1")
                return
            except OSError:
                pass  # Linux before 5.14 has no cgroup.kill
        for pid in self.members(spawn_id, session):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def when_empty(self, spawn_id: str, callback: Callable[[], None]) -> bool:
        """Calls `callback` once no process is left in the cell; True when there is none already (and no call follows)."""
        if self.root is None:
            return True
        try:
            fd = os.open(os.path.join(self.root, spawn_id, "cgroup.events"), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        if not _populated(fd):
            os.close(fd)
            return True
        self._emptied[fd] = (spawn_id, callback)
        self._events.register(fd, select.EPOLLPRI)
        return False

    def remove(self, spawn_id: str) -> None:
        """Removes the cell of an instance that has ended, with the cgroups that its processes may have made in it."""
        if self.root is None:
            return
        for path, folders, _files in os.walk(os.path.join(self.root, spawn_id), topdown=False):
            for folder in folders:
                _rmdir(os.path.join(path, folder))
        _rmdir(os.path.join(self.root, spawn_id))

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


def session_members(session: int) -> list[int]:
    """The processes of a session, its zombies left out."""
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and _session_of(entry) == session]


def _session_of(pid: str) -> int | None:
    try:
        state, _parent, _group, session = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()[:4]
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else int(session)


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
