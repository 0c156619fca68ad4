# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the agent shows of its instances: pm3's process objects with our own keys beside them. Reads only, and masks secrets."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

from ..model import placeholders, rows
from ..model.definition import FIELDS, Definition
from ..model.machine import End, Phase
from ..model.order import natural
from ..model.plan import MASK
from .instance import Instance
from .output import last_lines
from .store import Revision
from .supervisor import Supervisor

Document = dict[str, Any]


def ordered(instances: Iterable[Instance]) -> list[Instance]:
    return sorted(instances, key=lambda one: natural(one.name))


def process(instance: Instance, now: float, statistics: bool = True) -> Document:
    """A pm3 process object: optional keys are left out, not null (spec: pm3.md, section 6.4)."""
    life = instance.life
    shown: Document = {
        "name": instance.name,
        "pid": instance.pid,
        "status": life.status.value,
        "uptime": int(now - life.started) if life.started is not None and instance.pid is not None else 0,
        "restarts": life.restarts,
        "group": instance.definition.group or (instance.process if instance.process != instance.name else None),
        "process": instance.process,
        "project": instance.project,
        "phase": life.phase.value,
        "total_restarts": life.total_restarts,
        "last_exit": end(life.end),
    }
    if statistics and instance.pid is not None:
        shown.update(_statistics(instance.pid))
    return {key: value for key, value in shown.items() if value is not None}


def detail(supervisor: Supervisor, instance: Instance) -> Document:
    """pm3's detail object of one instance."""
    definition = instance.definition
    out, err = supervisor.logs(instance.name)
    env = {key: _filled(value, instance) for key, value in definition.env.items()}
    shown = {
        **process(instance, supervisor.loop.time()),
        "command": definition.command,
        "cwd": definition.cwd,
        "user": definition.user,
        "env": {**env, **dict.fromkeys(definition.secrets, MASK)} or None,
        "stdout_log": out,
        "stderr_log": err,
        "readiness_check": _filled(definition.readiness_check, instance),
        "readiness_timeout": definition.readiness_timeout if definition.readiness_check else None,
        "health_check": _filled(definition.health_check, instance),
        "depends_on": list(definition.depends_on) or None,
    }
    return {key: value for key, value in shown.items() if value is not None}


def _filled(text: str | None, instance: Instance) -> str | None:
    """A text of the definition as it is for this instance."""
    return placeholders.expand(text, instance.scope) if text is not None else None


def snapshot(supervisor: Supervisor, instance: Instance, log_lines: int) -> Document:
    """Everything that a module wants of an instance; null where there is nothing."""
    out, err = supervisor.logs(instance.name)
    shown = {
        **{"pid": None, "group": None, "project": None, "last_exit": None},
        **process(instance, supervisor.loop.time()),
        "number": instance.number,
        "count": instance.count,
        "wanted": instance.wanted,
        "stdout_log": out,
        "stderr_log": err,
    }
    if log_lines:
        secrets = list(instance.definition.secrets.values())
        shown["log_tail"] = [rows.masked(line, secrets) for path in (out, err) for line in last_lines(path, log_lines)]
    return shown


def masked(definition: Definition) -> Document:
    """A definition's data without its secrets."""
    data = definition.data()
    for row in FIELDS.values():
        if row.masked and row.name in data:
            data[row.name] = dict.fromkeys(data[row.name], MASK)
    return data


def revision(one: Revision) -> Document:
    return {"revision": one.revision, "label": one.label, "at": one.at, "changed": list(one.changed)}


def end(one: End | None) -> Document | None:
    if one is None:
        return None
    return {"cause": one.cause.value, "code": one.code, "signal": one.signal, "message": str(one)}


def is_online(instance: Instance) -> bool:
    return instance.life.phase is Phase.ONLINE


def definitions(supervisor: Supervisor, projects: Mapping[str, Mapping[str, Definition]]) -> Document:
    """Definitions by project, secrets masked; what was started by hand under the empty name."""
    shown: Document = {
        project: {name: masked(one) for name, one in found.items()} for project, found in projects.items()
    }
    by_hand = {one.process: masked(one.definition) for one in supervisor.instances.values() if one.project is None}
    return {**shown, "": by_hand} if by_hand else shown


def _statistics(pid: int) -> Document:
    """CPU (percent of one CPU over its life) and resident memory, where psutil is there to tell."""
    psutil = _psutil()
    if psutil is None:
        return {}
    try:
        found = psutil.Process(pid)
        with found.oneshot():
            times = found.cpu_times()
            lived = max(0.001, time.time() - found.create_time())
            return {
                "cpu_percent": round(100 * (times.user + times.system) / lived, 1),
                "memory_bytes": found.memory_info().rss,
            }
    except psutil.Error:
        return {}


def _psutil() -> Any:
    """psutil comes from the host's distribution, in folders that we do not look into otherwise: the agent starts with -I -S."""
    if "psutil" not in sys.modules:
        if sys.flags.no_site:
            import site

            site.main()
        try:
            import psutil
        except ImportError:
            sys.modules["psutil"] = None  # type: ignore[assignment]
        else:
            return psutil
    return sys.modules["psutil"]
