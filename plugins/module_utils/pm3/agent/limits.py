# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Limits that the kernel keeps for all processes of an instance together: memory_max, cpu_max, pids_max, in the files of its cgroup.

Owns these files, and which controllers are enabled for the cells. (`limits`, of each process by itself, is prlimit's: launch.py.)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from ..model.definition import Definition
from ..model.problems import Problem

CONTROLLERS = {"memory_max": "memory", "cpu_max": "cpu", "pids_max": "pids"}  # by the field that needs it
_PERIOD = 100_000  # microseconds, which is the kernel's own default


class LimitError(Exception):
    """A limit that is asked for cannot be kept here; the text says which and why."""


def fields(definition: Definition) -> list[str]:
    """Those of the fields that are set."""
    return [field for field in CONTROLLERS if getattr(definition, field) is not None]


def are_equal(one: Definition, other: Definition) -> bool:
    """Whether two definitions ask for the same of them."""
    return all(getattr(one, field) == getattr(other, field) for field in CONTROLLERS)


def put(root: str | None, cell: str, definition: Definition) -> None:
    """Has the kernel keep the limits of a definition, and none other, for what is in the cell. Raises `LimitError`."""
    needed = fields(definition)
    if root is None:
        if needed:
            raise LimitError(f"{needed[0]} needs a cgroup for each instance, and this agent has none")
        return
    try:
        _enable(root, [CONTROLLERS[field] for field in needed])
        for file, text in _files(definition).items():
            path = os.path.join(cell, file)
            if os.path.exists(path) or (text is not None and file != _SWAP):
                _write(path, text if text is not None else _NO_LIMIT[file])
    except OSError as error:
        raise LimitError(f"{', '.join(needed) or 'limits'}: {error.filename}: {error.strerror}") from error


def tell_of_memory(root: str) -> None:
    """Has the kernel tell of each cell whether something in it was ended for want of memory, if it can here."""
    if "memory" in _words(root, "cgroup.controllers"):
        _enable(root, ["memory"])


def problems(root: str | None, obstacle: str, host: str, definitions: Mapping[str, Definition]) -> list[Problem]:
    """What of these cannot be kept here. `obstacle` says why there is no `root`, where there is none; `host` as in `no_controller`."""
    given = _words(root, "cgroup.controllers") if root is not None else set()
    found = []
    for name, definition in definitions.items():
        for field in fields(definition):
            if root is None:
                why = f"there is no cgroup for it: {obstacle}"
            elif CONTROLLERS[field] not in given:
                why = no_controller(root, CONTROLLERS[field], host)
            else:
                continue
            cure = "; max_memory needs none of that" if field == "memory_max" else ""
            found.append(Problem(f"cannot be kept on this host, {why}{cure}", table=name, field=field))
    return found


def no_controller(root: str, controller: str, host: str) -> str:
    """Why the cells of `root` do not have a controller, for a person. `host` is where the whole hierarchy is mounted."""
    if controller in _words(host, "cgroup.controllers"):
        return (
            f"systemd does not give the controller {controller} to {root}; for the agent of a user,"
            f" Delegate={controller} in a drop-in of user@.service does that"
        )
    return f"its cgroup v2 has no controller {controller}; on a host with cgroup v2 alone it has"


_SWAP = "memory.swap.max"  # only where swap is accounted for
_NO_LIMIT = {
    "memory.max": "max",
    _SWAP: "max",
    "memory.oom.group": "0",
    "cpu.max": f"max {_PERIOD}",
    "pids.max": "max",
}


def _files(definition: Definition) -> dict[str, str | None]:
    """What each file of the cell has to say; None where it is to set no limit."""
    memory, cpu, pids = definition.memory_max, definition.cpu_max, definition.pids_max
    return {
        # All of it together: a worker that is gone while its parent waits for it helps nobody.
        "memory.oom.group": "1" if memory is not None else None,
        _SWAP: "0" if memory is not None else None,
        "memory.max": str(memory) if memory is not None else None,
        "cpu.max": f"{round(float(cpu[:-1]) * _PERIOD / 100)} {_PERIOD}" if cpu is not None else None,
        "pids.max": str(pids) if pids is not None else None,
    }


def _enable(root: str, controllers: Iterable[str]) -> None:
    missing = set(controllers) - _words(root, "cgroup.subtree_control")
    if missing:
        _write(os.path.join(root, "cgroup.subtree_control"), " ".join(f"+{one}" for one in sorted(missing)))


def _words(root: str, file: str) -> set[str]:
    try:
        with open(os.path.join(root, file), encoding="ascii") as found:
            return set(found.read().split())
    except OSError:
        return set()


def _write(path: str, text: str) -> None:
    # Not created: in a cgroup only the kernel makes files. Errors of the write itself have no name of a file by themselves.
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode("ascii"))
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(fd)
