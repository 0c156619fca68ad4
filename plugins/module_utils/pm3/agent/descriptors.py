# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Descriptors that outlive us: kept by the service manager, or handed to the next version of the agent.

systemd and our own keeper speak the same protocol (sd_notify(3), sd_pid_notify_with_fds(3)): whoever watches us keeps what we send
under a name and gives all of it back when it starts us again. At an upgrade in place nobody starts us again: there the list
travels through exec in a memfd. Either way the next agent finds the same thing, `{name: descriptors}`.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Mapping

_FIRST = 3  # sd_listen_fds(3)
_HANDOVER = "PM3_HANDOVER"
MOST_NAME_BYTES = 100_000  # systemd hands all names back in one environment string, which execve limits to 128 KiB


class ServiceManager:
    """Whoever started us, as far as it can be told things. Without one, every call does nothing."""

    def __init__(self, address: str | None) -> None:
        self._socket: socket.socket | None = None
        self._kept: dict[str, int] = {}  # how many descriptors, by name
        self.name_bytes = 0
        if address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.connect("\0" + address[1:] if address.startswith("@") else address)

    def tell(self, *lines: str, fds: Iterable[int] = ()) -> bool:
        """Sends a notification; False when nobody heard it."""
        if self._socket is None:
            return False
        try:
            socket.send_fds(self._socket, ["\n".join(lines).encode()], list(fds))
        except OSError:
            return False  # a manager that is gone or overrun: we go on without the safety it gives
        return True

    def keep(self, name: str, fds: Iterable[int]) -> bool:
        """Asks for descriptors to be kept under `name`; False when they are not."""
        listed = list(fds)
        if self.name_bytes + (len(name) + 1) * len(listed) > MOST_NAME_BYTES:
            return False
        self.name_bytes += (len(name) + 1) * len(listed)
        self._kept[name] = self._kept.get(name, 0) + len(listed)
        return self.tell("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0", fds=listed)

    @property
    def count(self) -> int:
        """How many descriptors are kept."""
        return sum(self._kept.values())

    def forget(self, name: str) -> None:
        """Drops what is kept under `name`."""
        count = self._kept.pop(name, 0)
        if count:
            self.name_bytes -= (len(name) + 1) * count
            self.tell("FDSTOREREMOVE=1", f"FDNAME={name}")

    def account(self, inherited: Mapping[str, list[int]]) -> None:
        """Counts what an earlier agent had kept, and is kept still."""
        self._kept = {name: len(fds) for name, fds in inherited.items()}
        self.name_bytes = sum((len(name) + 1) * count for name, count in self._kept.items())


def inherited() -> dict[str, list[int]]:
    """What an earlier agent left for us, close-on-exec again. Takes the variables that say so out of the environment."""
    handover = os.environ.pop(_HANDOVER, None)
    count, pid = os.environ.pop("LISTEN_FDS", "0"), os.environ.pop("LISTEN_PID", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    found: dict[str, list[int]] = {}
    if handover is not None:
        with open(int(handover), encoding="utf-8") as file:
            file.seek(0)
            found = json.load(file)
    elif pid == str(os.getpid()):
        for offset, name in zip(range(int(count)), names):
            found.setdefault(name, []).append(_FIRST + offset)
    for fds in found.values():
        for fd in fds:
            os.set_inheritable(fd, False)
    return found


def hand_over(kept: Mapping[str, list[int]]) -> dict[str, str]:
    """Makes the descriptors survive the exec that is to follow; gives the variables by which `inherited` finds them."""
    memory = os.memfd_create("pm3-handover", 0)
    os.write(memory, json.dumps(kept).encode())
    for fds in kept.values():
        for fd in fds:
            os.set_inheritable(fd, True)
    return {_HANDOVER: str(memory)}


def take_back(kept: Mapping[str, list[int]], variables: Mapping[str, str]) -> None:
    """Undoes `hand_over`, when the exec did not happen."""
    os.close(int(variables[_HANDOVER]))
    for fds in kept.values():
        for fd in fds:
            os.set_inheritable(fd, False)
