# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where an agent lives: its data dir, what is in it that clients must find, and how a socket with a long path is reached.

Reads the environment that it is given and asks the file system what exists; creates nothing. Modules pay for each line of this
file at every call, so it stays small.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

SYSTEM = "/var/lib/pm3"
GROUP = "pm3"  # its members may use the system's agent
_LONGEST = 107  # bytes in sockaddr_un, unix(7), less the NUL at the end


def data_dir(environ: Mapping[str, str], system: str = SYSTEM) -> str:
    """The absolute data dir of the agent that a command in this environment means.

    `PM3_DATA_DIR`; else the user's own agent if there is one; else the system's if there is one; else the user's place.
    """
    named = environ.get("PM3_DATA_DIR")
    if named:
        return os.path.abspath(named)
    own = user_data_dir(environ)
    if not _exists(own, "pm3.sock", "managed", "store.sqlite") and _exists(system, "pm3.sock", "managed"):
        return system
    return own


def user_data_dir(environ: Mapping[str, str]) -> str:
    shared = environ.get("XDG_DATA_HOME", "")
    if not shared.startswith("/"):  # the XDG specification: a relative one is to be ignored
        home = environ.get("HOME") or os.path.expanduser("~")
        # Who has no home at all (a user id that nobody gave a name) has one agent all the same, not one for each folder.
        home = home if home.startswith("/") else "/"
        shared = os.path.join(home, ".local", "share")
    return os.path.join(os.path.abspath(shared), "pm3")


def scope(directory: str, system: str = SYSTEM) -> str:
    return "system" if os.path.normpath(directory) == system else "user"


def socket(directory: str) -> str:
    return os.path.join(directory, "pm3.sock")


def run(directory: str) -> str:
    """Where FIFOs are: the system's agent has a folder in memory, where making one costs a tenth."""
    return "/run/pm3" if scope(directory) == "system" else os.path.join(directory, "run")


def managed(directory: str) -> str | None:
    """The command that starts the agent where a service manager does that, or None where any pm3 command may start one.

    Whoever installs a unit leaves a file `managed` in the data dir; its one line, if it has one, is that command.
    """
    usual = "systemctl start pm3" if scope(directory) == "system" else "systemctl --user start pm3"
    try:
        with open(os.path.join(directory, "managed"), encoding="utf-8", errors="replace") as file:
            return file.readline().strip() or usual
    except PermissionError:
        return usual
    except OSError:
        return usual if scope(directory) == "system" else None


def stop(directory: str) -> str:
    """The command that ends an agent and all that it runs, whoever keeps it."""
    import shlex  # seldom said, and all modules import this file

    return f"PM3_DATA_DIR={shlex.quote(directory)} pm3 kill"


def reach(use: Callable[[str], None], path: str) -> None:
    """Calls `use` (a socket's `bind` or `connect`) with an address for the socket at `path`, however long that is (W57)."""
    if len(os.fsencode(path)) <= _LONGEST:
        use(path)
        return
    folder, name = os.path.split(path)
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        use(f"/proc/self/fd/{fd}/{name}")
    finally:
        os.close(fd)


def _exists(directory: str, *names: str) -> bool:
    """Whether one of `names` is in `directory`; a directory that we may not look into counts as one that has it."""
    for name in names:
        try:
            os.lstat(os.path.join(directory, name))
            return True
        except PermissionError:
            return True
        except OSError:
            pass
    return False
