# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs that say themselves that they are ready: `readiness_check = "notify://"`, systemd's protocol (sd_notify(3)).

Each spawn of such an instance has a datagram socket of its own. Its address, NOTIFY_SOCKET, is an abstract one that the kernel chooses:
every user can reach it, however long the agent's folder is called, and nothing has to be removed. So it is the sender that is looked at:
the instance's user, root, the agent's own user, or else one of the instance's processes. Like the spawn's pipes, the socket is given to
the service manager before the spawn: what is sent while no agent runs waits in it for the next one.

It is read as long as the spawn lasts, also when nobody asks any more: a program that sends WATCHDOG=1 all day would otherwise wait,
some day, for room. READY=1 is taken off the queue only when what follows from it has been written to the store.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable
from typing import Callable

from .loop import READ, Loop

_LONGEST = 4096  # bytes of a message, as for systemd; a longer one is none
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid (unix(7))
# Room for the sender and for nothing more: descriptors that come along are closed by the kernel, which also answers BARRIER=1.
_SPACE = socket.CMSG_SPACE(_CREDENTIALS.size)
_MESSAGES = 32  # read in one turn
_SILENT = "the program has not sent READY=1 to NOTIFY_SOCKET"
DEAF = "it was started before its readiness_check was notify://, and has no NOTIFY_SOCKET; restart it"


class NotifySocket:
    """That of one spawn. `ready` and `status` are what it has said so far."""

    __slots__ = ("_heard", "_loop", "_members", "_socket", "_uids", "ready", "status", "waiting")

    def __init__(self, fd: int = -1) -> None:
        """A new one, or that of an earlier agent."""
        if fd >= 0:
            self._socket = socket.socket(fileno=fd)
            self._socket.setblocking(False)
        else:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self._socket.bind("")
        self.ready = False
        self.status = ""
        self.waiting: Waiting | None = None
        self._heard = False  # READY=1 is still on the queue
        self._loop: Loop | None = None
        self._uids: frozenset[int] = frozenset()
        self._members: Callable[[], Iterable[int]] = tuple

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def address(self) -> str:
        name: bytes = self._socket.getsockname()
        return "@" + name[1:].decode()

    @property
    def complaint(self) -> str:
        """Why it is not ready yet, as far as anybody knows."""
        return f"{_SILENT}; its status: {self.status}" if self.status else _SILENT

    def wait(self, passed: Callable[[], None], tell: Callable[[str], None]) -> Waiting:
        """An attempt of the check, which takes as long as it takes. `tell` gets each complaint that is a new one."""
        self.waiting = Waiting(self, passed, tell)
        return self.waiting

    def attend(self, loop: Loop, uid: int, members: Callable[[], Iterable[int]]) -> None:
        """Listens from now on: to this user, and to these processes."""
        self._loop, self._members = loop, members
        self._uids = frozenset((0, os.getuid(), uid))
        loop.watch(self.fileno(), READ, self._hear)

    def close(self) -> None:
        if self._loop is not None:
            self._loop.unwatch(self.fileno())
        self._socket.close()

    def _hear(self) -> None:
        for _message in range(_MESSAGES):
            if self._heard or self._socket.fileno() < 0:
                return
            try:
                lines = self._look()
            except BlockingIOError:
                return
            if lines is not None and self._understand(lines):
                return
            self._socket.recv(1)

    def _look(self) -> list[str] | None:
        """The lines of the first message, which stays where it is. None: it is not to be believed."""
        flags = socket.MSG_PEEK | socket.MSG_DONTWAIT
        text, extra, found, _address = self._socket.recvmsg(_LONGEST, _SPACE, flags)
        sender = next((data for _level, kind, data in extra if kind == socket.SCM_CREDENTIALS), b"")
        if found & socket.MSG_TRUNC or len(sender) != _CREDENTIALS.size:
            return None
        pid, uid, _gid = _CREDENTIALS.unpack(sender)
        if uid not in self._uids and pid not in self._members():
            return None
        return text.decode("utf-8", "replace").split("\n")

    def _understand(self, lines: list[str]) -> bool:
        """Whether the message has to stay for a moment."""
        said = [line.partition("=")[2].strip() for line in lines if line.startswith("STATUS=")]
        if said and not self.ready:
            self.status = said[-1]
            if self.waiting is not None:
                self.waiting.tell(self.complaint)
        if "READY=1" not in lines or self.ready:
            return False
        self.ready = True
        waiting, self.waiting = self.waiting, None
        if waiting is None or self._loop is None:
            return False
        self._heard = True
        waiting.passed()
        self._loop.soon(self._forget)  # after the store, which is to be written since what has just passed
        return True

    def _forget(self) -> None:
        self._heard = False
        if self._socket.fileno() >= 0:
            self._socket.recv(1)


class Waiting:
    """An attempt of the check that is under way."""

    __slots__ = ("_notify", "passed", "tell")

    def __init__(self, notify: NotifySocket, passed: Callable[[], None], tell: Callable[[str], None]) -> None:
        self._notify, self.passed, self.tell = notify, passed, tell

    def cancel(self) -> None:
        if self._notify.waiting is self:
            self._notify.waiting = None
