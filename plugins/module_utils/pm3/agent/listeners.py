# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who listens on a port. Reads /proc and nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterable

_LISTEN = "0A"  # TCP_LISTEN in /proc/net/tcp


def listens(pids: Iterable[int], port: int) -> bool:
    """Whether one of the processes has a socket that listens on this TCP port."""
    return any(not _listening(pid, port).isdisjoint(_sockets(pid)) for pid in pids)


def _listening(pid: int, port: int) -> set[str]:
    """The inodes of the sockets that listen on the port, in the network of the process."""
    found = set()
    for table in ("tcp", "tcp6"):
        try:
            with open(f"/proc/{pid}/net/{table}", encoding="ascii") as file:
                rows = [line.split() for line in file]
        except OSError:
            continue
        for row in rows[1:]:
            if row[3] == _LISTEN and int(row[1].rpartition(":")[2], 16) == port:
                found.add(row[9])
    return found


def _sockets(pid: int) -> set[str]:
    found = set()
    folder = f"/proc/{pid}/fd"
    try:
        for entry in os.listdir(folder):
            try:
                target = os.readlink(f"{folder}/{entry}")
            except OSError:
                continue
            if target.startswith("socket:["):
                found.add(target[len("socket:[") : -1])
    except OSError:
        pass  # it has ended, or is not ours to look into
    return found
