# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a check knocks: `http://host[:port][/path]`, the same with https, `tcp://host:port`, or `exec://command`; or that the
program says itself that it is ready, `notify://`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from . import words
from .problems import Unfit

_TARGET = re.compile(
    r"(https?|tcp)://(\[[0-9A-Fa-f:.%]+\]|[^\s/:?#\[\]@]+)(?::([0-9]{1,5}))?((?:[/?][^\s#]*)?)(?:#\S*)?"
)
EXEC, NOTIFY = "exec://", "notify://"
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Target:
    """What a check over the network asks."""

    scheme: str  # http, https or tcp; exec (a command) and notify (the program speaks first) have no target
    host: str  # without the brackets of IPv6
    port: int
    path: str = "/"  # with the query; "" for tcp


def command(check: str) -> list[str] | None:
    """The words of an `exec://` check, None for another. Raises `Unfit`."""
    return words.split(check[len(EXEC) :]) if check.startswith(EXEC) else None


def tells_copies(check: str) -> bool:
    """Whether it cannot be answered by another copy of the same program, whatever ports that listens on."""
    return check.startswith((EXEC, NOTIFY))


def is_notify(check: str | None) -> bool:
    return check == NOTIFY


def parse(url: str) -> Target:
    """The target that `url` names. Raises `Unfit`."""
    if command(url) is not None:
        return Target("exec", "", 0)
    if is_notify(url):
        return Target("notify", "", 0)
    if url.startswith(NOTIFY):
        raise Unfit(f"expected {NOTIFY} and nothing after it, found {url!r}")
    found = _TARGET.fullmatch(url)
    if found is None:
        raise Unfit(
            f"expected http://host:port/path, https://host/path, tcp://host:port or exec://command, found {url!r}"
        )
    scheme, host, port, path = found.groups()
    if scheme == "tcp" and (port is None or path):
        raise Unfit(f"expected tcp://host:port, found {url!r}")
    number = int(port) if port else _PORTS[scheme]
    if not 1 <= number <= 65535:
        raise Unfit(f"expected a port from 1 to 65535, found {number}")
    if path.startswith("?"):
        path = "/" + path
    return Target(scheme, host.strip("[]"), number, path or ("" if scheme == "tcp" else "/"))
