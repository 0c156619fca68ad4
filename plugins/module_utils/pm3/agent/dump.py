# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""dump.json: what `save` writes and a fresh agent, or `resurrect`, starts again (spec: pm3.md, section 3.13).

A JSON array with an object for each instance, pm3's keys and beside them ours. Written whole or not at all, and readable by its owner
only, for it holds secrets (W47, W58). Of a dump, what can be read is used, whatever the rest is like. Pids in it are never believed.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from typing import Any, Callable

from ..model import definition as definitions
from ..model import graph
from .instance import Instance

NAME = "dump.json"


def write(path: str, instances: Iterable[Instance]) -> int:
    """Writes the dump and gives the number of instances in it. Raises OSError."""
    entries = [_entry(one) for one in instances]
    text = json.dumps(entries, indent=2, ensure_ascii=True)
    temporary = path + ".new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    return len(entries)


def read(path: str, diagnose: Callable[[str], None]) -> list[Instance] | None:
    """The instances of a dump, wanted ones marked as such; None where there is no dump. What cannot be read is told.

    Their project is the one that they were saved with, and may be no more."""
    try:
        with open(path, encoding="utf-8") as file:
            entries = json.load(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        diagnose(f"{path} cannot be read, so nothing is restored from it: {error}")
        return []
    if not isinstance(entries, list):
        diagnose(f"{path}: expected an array of processes, found another JSON value")
        return []
    found = []
    for entry in entries:
        instance = _instance(entry, lambda message: diagnose(f"{path}: {message}"))
        if instance is not None:
            found.append(instance)
    return found


def _entry(one: Instance) -> dict[str, Any]:
    config = {"environments": {}, **one.definition.data(), "instances": 1}
    return {
        "name": one.name,
        "config": config,
        "pid": one.pid,
        "restarts": one.life.restarts,
        "process": one.process,
        "number": one.number,
        "count": one.count,
        "instances": one.definition.instances,
        "path": one.path,
        "project": one.project,
        "wanted": one.wanted,
    }


def _instance(entry: Any, diagnose: Callable[[str], None]) -> Instance | None:
    name = entry.get("name") if isinstance(entry, dict) else None
    config = entry.get("config") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not isinstance(config, dict):
        diagnose("passed over an entry that has no name or no config")
        return None
    process, number, count = _place(entry, name, config)
    table = {**config, "instances": entry.get("instances", count) if config.get("instance_ids") is None else None}
    definition, problems = definitions.parse(process, table)
    if definition is None or (name != process and name != f"{process}:{number}"):
        why = "; ".join(str(one) for one in problems) or "its name does not fit its process"
        diagnose(f"passed over {name!r}: {why}")
        return None
    path, project = (said if isinstance(said, str) else None for said in (entry.get("path"), entry.get("project")))
    instance = Instance(name, process, number, count, project, definition, path)
    instance.wanted = entry.get("wanted") is not False
    return instance


def _place(entry: dict[str, Any], name: str, config: dict[str, Any]) -> tuple[str, int, int]:
    """Process, number and count of an instance; of an entry that pm3 wrote, from its name and environment."""
    process, number, count = entry.get("process"), entry.get("number"), entry.get("count")
    if isinstance(process, str) and isinstance(number, int) and isinstance(count, int):
        return process, number, max(1, count)
    base, told = graph.base(name), name.partition(":")[2]
    env = config.get("env")
    said = env.get("PM3_INSTANCE_COUNT") if isinstance(env, dict) else None
    number = int(told) if told.isdecimal() else 0
    count = int(said) if isinstance(said, str) and said.isdecimal() else 1
    return base, number, max(count, number + 1)
