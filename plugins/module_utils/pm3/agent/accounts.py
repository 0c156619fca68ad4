# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whom an instance runs as. Owns the look-up of users and groups, and the words that switch to them.

The switch is `setpriv`, executed by the spawn's trampoline: Python's own (`Popen(user=…)`) would leave the vfork path.
"""

from __future__ import annotations

import grp
import os
import pwd
from dataclasses import dataclass

_SETPRIV = ("/usr/bin/setpriv", "/bin/setpriv")


class AccountError(Exception):
    """Nobody can run as that; the text says why."""


@dataclass(frozen=True)
class Account:
    """A user and group on this host, and what their environment begins with."""

    uid: int
    gid: int
    name: str
    home: str
    shell: str

    @property
    def environment(self) -> dict[str, str]:
        lang = os.environ.get("LANG", "C.UTF-8")
        return {"HOME": self.home, "USER": self.name, "LOGNAME": self.name, "SHELL": self.shell, "LANG": lang}

    @property
    def owner(self) -> tuple[int, int] | None:
        """Whose the FIFOs of an instance must be; None where they are ours anyway."""
        return (self.uid, self.gid) if self.uid != os.getuid() else None

    def switch(self) -> list[str]:
        """What goes before a command so that it runs as this account, with the account's groups; nothing where we are it."""
        if (self.uid, self.gid) == (os.getuid(), os.getgid()):
            return []
        program = next((path for path in _SETPRIV if os.path.exists(path)), None)
        if program is None:
            raise AccountError("setpriv (of util-linux) is needed to run as another user, and is not installed")
        return [program, f"--reuid={self.uid}", f"--regid={self.gid}", "--init-groups", "--"]


def find(user: str | None) -> Account:
    """The account that a definition's `user` ("name" or "name:group") means; None is the agent's own. Raises `AccountError`."""
    name, _colon, group = (user or "").partition(":")
    try:
        entry = pwd.getpwnam(name) if name else pwd.getpwuid(os.getuid())
    except KeyError:
        if name:
            raise AccountError(f"user {name} does not exist on this host") from None
        return Account(os.getuid(), os.getgid(), str(os.getuid()), "/", "/bin/sh")
    try:
        gid = grp.getgrnam(group).gr_gid if group else entry.pw_gid
    except KeyError:
        raise AccountError(f"group {group} does not exist on this host") from None
    if os.getuid() != 0 and (entry.pw_uid != os.getuid() or gid not in (os.getgid(), *os.getgroups())):
        raise AccountError(f"only an agent that runs as root can run a program as {user}")
    return Account(entry.pw_uid, gid, entry.pw_name, entry.pw_dir, entry.pw_shell or "/bin/sh")


def name_of(uid: int | None) -> str | None:
    """None: nobody, or a user without a name here."""
    try:
        return pwd.getpwuid(uid).pw_name if uid is not None else None
    except KeyError:
        return None
