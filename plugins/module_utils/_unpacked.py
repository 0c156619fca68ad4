# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent's program on a host: unpacked to `…/lib/pm3/IDENTITY`, and the one in use is the link `current`.

Every step leaves something that works: a program appears under its identity complete and byte-compiled, or not at all, and the link
changes in one move. Private to this collection.
"""

from __future__ import annotations

import json
import os
import shutil
import typing as t

from ._place import Place
from ._service import Trouble

if t.TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

KEPT = 2  # programs: the one in use and the one before it
OLDEST = (3, 9)
NOTE = "libraries.json"  # beside the program: the versions of the libraries packed with it


def folder(place: Place, identity: str) -> str:
    return os.path.join(place.library, identity)


def in_use(place: Place) -> str | None:
    """The identity that `current` names, whether it is there or not."""
    try:
        return os.path.basename(os.readlink(place.current))
    except OSError:
        return None


def is_there(place: Place, identity: str) -> bool:
    return os.path.isfile(os.path.join(folder(place, identity), "pm3", "__main__.py"))


def lacks_library(
    place: Place, identity: str, libraries: t.Mapping[str, t.Mapping[str, str | None]], python: tuple[int, int]
) -> bool:
    """Whether a library that a host with this Python needs is missing or too old here, and the controller has a better one for it."""
    needed = {
        name: about
        for name, about in libraries.items()
        if (not about["below"] or python < _numbers(about["below"])) and python >= _numbers(about["python"] or "")
    }
    if not needed:
        return False
    try:
        with open(os.path.join(folder(place, identity), NOTE), encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        found = {}
    return any(
        _numbers(found.get(name, "")) < _numbers(about["minimum"] or "")
        for name, about in needed.items()
        if about["version"]
    )


def version_of(module: AnsibleModule, python: str) -> tuple[int, int]:
    """The version of the Python that is to run the agent, found able to."""
    command = [python, "-I", "-S", "-c", "import sys, sqlite3, json; print(json.dumps(sys.version_info[:2]))"]
    status, output, error = module.run_command(command)
    if status:
        why = (error.strip().splitlines() or ["it cannot be run"])[-1]
        raise Trouble(f"{python} cannot run the agent: {why}; name another Python in the option python")
    found = tuple(json.loads(output))
    if found < OLDEST:
        raise Trouble(
            f"the agent needs Python 3.9 or newer, and {python} is {found[0]}.{found[1]}; name another in the option python"
        )
    return found


def unpack(module: AnsibleModule, place: Place, identity: str, archive: str, python: str) -> None:
    import zipfile

    goal = folder(place, identity)
    new, old = goal + ".tmp", goal + ".old"
    for left in (new, old):  # by a run that was interrupted
        shutil.rmtree(left, ignore_errors=True)
    os.makedirs(place.library, mode=0o755, exist_ok=True)
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(new)
    _open_to_all(new)
    # Commands start faster, and a user who may not write here can use what root has compiled.
    module.run_command([python, "-I", "-S", "-m", "compileall", "-q", new])
    _open_to_all(new)
    if os.path.isdir(goal):
        os.rename(goal, old)
    os.rename(new, goal)
    shutil.rmtree(old, ignore_errors=True)


def use(place: Place, identity: str) -> None:
    """Makes the program the current one, in one move."""
    new = place.current + ".tmp"
    if os.path.lexists(new):
        os.unlink(new)
    os.symlink(identity, new)
    os.replace(new, place.current)


def offer(place: Place, identity: str) -> None:
    """Names the program that the running agent is to try; it makes that the current one, or takes the link away."""
    withdraw(place)
    os.symlink(identity, _offer(place))


def withdraw(place: Place) -> None:
    if os.path.lexists(_offer(place)):
        os.unlink(_offer(place))


def _offer(place: Place) -> str:
    return os.path.join(place.library, "next")


def tidy(place: Place, *keep: str | None) -> None:
    """Removes programs that are neither kept nor among the newest."""
    entries = [
        entry for entry in os.scandir(place.library) if entry.is_dir(follow_symlinks=False) and entry.name not in keep
    ]
    entries.sort(key=lambda entry: entry.stat().st_mtime, reverse=True)
    room = max(0, KEPT - len({name for name in keep if name}))
    for entry in entries[room:]:
        shutil.rmtree(entry.path, ignore_errors=True)


def _open_to_all(top: str) -> None:
    """Readable for everybody, whatever the umask is: users run the command."""
    os.chmod(top, 0o755)
    for where, folders, files in os.walk(top):
        for name in folders:
            os.chmod(os.path.join(where, name), 0o755)
        for name in files:
            os.chmod(os.path.join(where, name), 0o644)


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split(".")[:3]
    return tuple(int(part) for part in parts if part.isdigit())
