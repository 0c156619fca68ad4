# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lock files, which agent and keeper hold as long as they live and in which they write their pid. Reads only."""

from __future__ import annotations

import os


def holder(lock: int) -> int | None:
    """The pid in a lock file that somebody holds; None where it is not yet that of who does.

    Between the lock and the pid there is a moment in which the pid is one of long ago, and maybe somebody else's by now: so it is believed
    only of a process that has the file open.
    """
    pid = os.pread(lock, 20, 0).strip()
    if not pid.isdigit():
        return None
    folder, wanted = f"/proc/{int(pid)}/fd", os.fstat(lock)
    try:
        descriptors = os.listdir(folder)
    except PermissionError:
        return int(pid)  # we cannot know better
    except OSError:
        return None
    for fd in descriptors:
        try:
            if os.path.samestat(os.stat(f"{folder}/{fd}"), wanted):
                return int(pid)
        except OSError:
            pass  # closed meanwhile
    return None
