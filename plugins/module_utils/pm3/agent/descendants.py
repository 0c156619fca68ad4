# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose a process is, where instances have no cgroups: found in the host's process table, as well as it can be.

An instance's are those of its session, and whatever shows that it came from there when it is first seen: the mark in its environment,
one of the instance's FIFOs open for writing, or a parent that is the instance's. Whose it was found to be stays known when it changes its
session, loses its parent or closes its output. What hides all of that before anybody has looked is not found.

Reads /proc, in looks: one serves everything that happens in the same turn of the loop, and each reads closely only what is new.
"""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional

from . import environment, output, spawn
from .loop import Loop
from .spawn import Process

_KERNEL = 2  # kthreadd, the parent of the kernel's own
_MARK = f"{environment.SPAWN_ID}=".encode()

Survey = Callable[[str, Optional[Process]], "list[int]"]  # the processes of a spawn, by its id and its main process


@dataclass
class Seen:
    """A process as it was when it was first seen. The inode of its folder in /proc tells it from a later one with its pid: a process
    that has the inode of one that was seen is that one. (The kernel may forget an inode; then the start time tells.)"""

    inode: int
    start_time: int
    spawn_id: str | None


class Look:
    """The processes of this host at one moment: by session, and by the spawn that they came from."""

    def __init__(self) -> None:
        self.sessions: dict[int, list[int]] = {}
        self.spawned: dict[str, list[int]] = {}

    def of(self, spawn_id: str, leader: Process | None) -> list[int]:
        """Zombies and strangers that got an old pid may be among them."""
        found = self.spawned.get(spawn_id, [])
        # A number is not given to another process while a session has it. So if another has it now, nobody was left.
        session = self.sessions.get(leader.pid, []) if leader is not None else []
        if leader is None or spawn.start_time(leader.pid) not in (None, leader.start_time):
            return found
        return [*found, *(pid for pid in session if pid not in found)]


class Descendants:
    """`run` is the agent's runtime folder: FIFOs lie in it, and the mark names it, for other agents of this host number theirs too."""

    def __init__(self, loop: Loop, run: str) -> None:
        self._loop = loop
        self._run = os.path.realpath(run)
        self._known: dict[int, Seen] = {}
        self._look: Look | None = None

    def mark(self, spawn_id: str) -> str:
        """What the environment of a spawn's processes says of them."""
        return f"{spawn_id}@{self._run}"

    def begun(self, spawn_id: str, leader: Process) -> None:
        """The main process of a spawn runs: of which so is known whose it is, without reading it closely."""
        try:
            inode = os.stat(f"/proc/{leader.pid}").st_ino
            signal.pidfd_send_signal(leader.pidfd, 0)  # it has not been reaped, so nobody else had its pid a moment ago
        except OSError:
            return  # what a look finds has to do
        self._known[leader.pid] = Seen(inode, leader.start_time, spawn_id)

    def of(self, spawn_id: str, leader: Process | None) -> list[int]:
        """The processes of a spawn, its zombies left out.

        Where a look of this turn shows none there is none: somebody has to be there to begin another.
        """
        if not self._look_of_turn().of(spawn_id, leader):
            return []
        return [pid for pid in self.look().of(spawn_id, leader) if spawn.is_running(pid)]

    def meet(self) -> None:
        """Before something is told to end: when its processes have lost their parents nothing else may show whose they are."""
        self._look_of_turn()

    def _look_of_turn(self) -> Look:
        if self._look is None:
            self._look = self.look()
            self._loop.soon(self.forget_look)
        return self._look

    def look(self) -> Look:
        """What there is now."""
        look = Look()
        inodes = {int(entry.name): entry.inode() for entry in os.scandir("/proc") if entry.name.isdigit()}
        for gone in self._known.keys() - inodes.keys():
            del self._known[gone]
        for pid in inodes:
            try:
                session = os.getsid(pid)
            except OSError:
                continue  # gone meanwhile
            look.sessions.setdefault(session, []).append(pid)
            spawn_id = self._spawn_of(pid, inodes)
            if spawn_id is not None:
                look.spawned.setdefault(spawn_id, []).append(pid)
        return look

    def forget_look(self) -> None:
        """There may be new processes which come from none that was seen."""
        self._look = None

    def _spawn_of(self, pid: int, inodes: dict[int, int], generations: int = 64) -> str | None:
        """Whose a process is: as it was found when it was first seen, or found now, with what is above it if that is new too."""
        seen, inode = self._known.get(pid), inodes.get(pid)
        if seen is not None and seen.inode == inode:
            return seen.spawn_id
        fields = spawn.stat(pid)
        if fields is None or inode is None or not generations:
            return None
        parent, start_time = int(fields[1]), int(fields[19])
        if seen is not None and seen.start_time == start_time:
            seen.inode = inode
            return seen.spawn_id
        spawn_id, is_sure = None, True
        # We and who keeps descriptors safe for us have those of all instances, which would all be looked at; and come from none of them.
        if pid not in (os.getpid(), os.getppid()) and parent not in (0, _KERNEL):
            spawn_id = self._of_session(pid, inodes)
            if spawn_id is None:
                variables = _environment(pid)
                spawn_id = (
                    self._marked(variables) or self._writes(pid) or self._spawn_of(parent, inodes, generations - 1)
                )
                # In the midst of an exec a process has no environment for a moment. Then nothing is decided.
                is_sure = spawn_id is not None or variables != b""
        if is_sure:
            self._known[pid] = Seen(inode, start_time, spawn_id)
        return spawn_id

    def _of_session(self, pid: int, inodes: dict[int, int]) -> str | None:
        """Whose the leader of its session was found to be, if that still is there."""
        try:
            leader = os.getsid(pid)
        except OSError:
            return None
        seen = self._known.get(leader)
        return seen.spawn_id if seen is not None and seen.inode == inodes.get(leader) else None

    def _marked(self, variables: bytes | None) -> str | None:
        for variable in (variables or b"").split(b"\0"):
            if variable.startswith(_MARK):
                spawn_id, _at, run = os.fsdecode(variable[len(_MARK) :]).partition("@")
                return spawn_id if run == self._run else None
        return None

    def _writes(self, pid: int) -> str | None:
        """The spawn one of whose FIFOs it can write to. (Who keeps them safe for the agent holds them too, for reading.)"""
        folder = f"/proc/{pid}/fd"
        try:
            for number in os.listdir(folder):
                path = f"{folder}/{number}"
                where, name = os.path.split(os.readlink(path).partition(" (deleted)")[0])
                if where == self._run and name.endswith(output.ENDINGS) and os.lstat(path).st_mode & stat.S_IWUSR:
                    return name.rpartition(".")[0]
        except OSError as error:
            if error.errno in spawn.NO_DESCRIPTOR:
                raise
            # gone meanwhile, or another user's
        return None


def _environment(pid: int) -> bytes | None:
    """None where it is not for us to see."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read()
    except PermissionError:
        return None
    except OSError as error:
        if error.errno in spawn.NO_DESCRIPTOR:
            raise
        return b""
