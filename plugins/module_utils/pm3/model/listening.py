# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a process listens: `tcp://HOST:PORT` (an address, or `*` for all of them) or `unix:///absolute/path`."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass

from .problems import Unfit

ALL = "*"
_TCP = re.compile(r"tcp://(\*|\[[0-9A-Fa-f:.]+\]|[0-9.]+):([0-9]{1,5})", re.ASCII)
_UNIX = "unix://"
_LONGEST_PATH = 107  # bytes (unix(7))


@dataclass(frozen=True)
class Address:
    """Equal for two spellings of one address. `str()` gives the usual one."""

    host: str  # "" for unix; without the brackets of IPv6
    port: int
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return _UNIX + self.path
        return f"tcp://[{self.host}]:{self.port}" if ":" in self.host else f"tcp://{self.host}:{self.port}"


def parse(text: str) -> Address:
    """Raises `Unfit`."""
    if text.startswith(_UNIX + "/"):
        return Address("", 0, _path(text[len(_UNIX) :]))
    found = _TCP.fullmatch(text)
    host = _host(found[1].strip("[]")) if found is not None else None
    if found is None or host is None:
        raise Unfit(
            "expected tcp://ADDRESS:PORT, with an IPv4 address, an IPv6 address in brackets or * for all,"
            f" or unix:///absolute/path, found {text!r}"
        )
    port = int(found[2])
    if not 1 <= port <= 65535:
        raise Unfit(f"expected a port from 1 to 65535, found {port}")
    return Address(host, port)


def _path(path: str) -> str:
    if len(path.encode("utf-8", "surrogatepass")) > _LONGEST_PATH:
        raise Unfit(f"expected a path of at most {_LONGEST_PATH} bytes, which is all that a socket can have: {path}")
    if path.endswith(("/", "/.", "/..")):
        raise Unfit(f"expected the path of a socket, found that of a folder: {path}")
    return "/" + posixpath.normpath(path).lstrip("/")


def _host(text: str) -> str | None:
    if text == ALL:
        return text
    import ipaddress  # not before somebody listens

    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        raise Unfit(f"expected {address.ipv4_mapped}, found [{text}], on which no socket of IPv6 alone can listen")
    return str(address)
