# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the agent shows of its instances: pm3's process objects with our own keys beside them. Reads only, and masks secrets."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ..model import placeholders, plan, rows
from ..model.definition import FIELDS, Definition
from ..model.life import Phase
from ..model.plan import MASK, Change, Secrets
from . import accounts
from .instance import Instance
from .store import Revision
from .supervisor import Supervisor
from .usage import Used

Document = dict[str, Any]


def process(supervisor: Supervisor, instance: Instance, used: Used | None) -> Document:
    """A pm3 process object: optional keys are left out, not null (spec: pm3.md, section 6.4)."""
    life, now = instance.life, supervisor.loop.time()
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
        "since": supervisor.ledger.moment(life.since),
        "total_restarts": life.total_restarts,
        "last_exit": end(supervisor, instance),
        "held": supervisor.holds.text(instance.process, instance.project),
    }
    if used is not None and instance.pid is not None:
        shown.update(used._asdict())
    return {key: value for key, value in shown.items() if value is not None}


def detail(supervisor: Supervisor, instance: Instance, used: Used | None) -> Document:
    """pm3's detail object of one instance."""
    definition = instance.definition
    out, err = supervisor.logs(instance)
    env = {key: _filled(value, instance) for key, value in definition.env.items()}
    covered = Secrets(definition).covered
    shown = {
        **process(supervisor, instance, used),
        "command": covered(definition.command),
        "cwd": definition.cwd,
        "user": definition.user,
        "env": {**covered(env), **dict.fromkeys(definition.secrets, MASK)} or None,
        "stdout_log": out.path,
        "stderr_log": err.path,
        "readiness_check": covered(_filled(definition.readiness_check, instance)),
        "readiness_timeout": definition.readiness_timeout if definition.readiness_check else None,
        "health_check": covered(_filled(definition.health_check, instance)),
        "depends_on": list(definition.depends_on) or None,
        "exit_code": instance.life.end.code if instance.life.end is not None else None,
        "max_memory": definition.max_memory,
        "memory_max": definition.memory_max,
        "cpu_max": definition.cpu_max,
        "pids_max": definition.pids_max,
        "cron_restart": definition.cron_restart,
        "watch_trouble": supervisor.triggers.trouble(instance),
        "lost_bytes": sum(instance.streams.lost) or None if instance.streams is not None else None,
    }
    return {key: value for key, value in shown.items() if value is not None}


def _filled(text: str | None, instance: Instance) -> str | None:
    """A text of the definition as it is for this instance."""
    return placeholders.expand(text, instance.scope) if text is not None else None


def snapshot(supervisor: Supervisor, instance: Instance, used: Used | None, log_lines: int) -> Document:
    """Everything that a module wants of an instance; null where there is nothing."""
    out, err = supervisor.logs(instance)
    shown = {
        **{"pid": None, "group": None, "project": None, "last_exit": None, "since": None},
        **process(supervisor, instance, used),
        "number": instance.number,
        "count": instance.count,
        "wanted": instance.wanted,
        "stdout_log": out.path,
        "stderr_log": err.path,
    }
    if log_lines:
        from .log_file import files  # not before somebody reads one
        from .logs import newest_lines

        secrets = list(instance.definition.secrets.values())
        shown["log_tail"] = [
            plan.masked(line, secrets)
            for log in files(instance.name, (out, err))
            for line in newest_lines(log, log_lines)
        ]
    return shown


def masked(definition: Definition) -> Document:
    """A definition's data without its secrets, also where another text has one in it."""
    data, secret = definition.data(), Secrets(definition)
    return {
        name: dict.fromkeys(value, MASK) if FIELDS[name].masked else secret.covered(value)
        for name, value in data.items()
    }


def revision(one: Revision) -> Document:
    return {
        "revision": one.revision,
        "label": one.label,
        "at": one.at,
        "uid": one.uid,
        "user": accounts.name_of(one.uid),
        "changed": list(one.changed),
        "origin": one.origin,
        "failed_at": one.failed_at,
        "failure": one.failure,
    }


def when(moment: float) -> str:
    """A time in the words of this host."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))


def end(supervisor: Supervisor, instance: Instance) -> Document | None:
    """How the last process of an instance ended; its last lines without secrets."""
    one = instance.life.end
    if one is None:
        return None
    secrets = list(instance.definition.secrets.values())
    return {
        "cause": one.cause.value,
        "code": one.code,
        "signal": one.signal,
        "message": plan.masked(str(one), secrets),
        "at": supervisor.ledger.moment(one.at),
        "log_tail": [plan.masked(line, secrets) for line in one.tail],
    }


def row(supervisor: Supervisor, change: Change, instance: Instance | None) -> rows.Row:
    """A change as a result row, with what is known of its instance now; None: there is none."""
    if instance is None:
        return rows.row(change, "absent")
    life, last = instance.life, end(supervisor, instance)
    return rows.row(change, life.status.value, instance.pid, life.restarts, life.total_restarts, last)


def is_online(instance: Instance) -> bool:
    return instance.life.phase is Phase.ONLINE


def definitions(supervisor: Supervisor, projects: Mapping[str, Mapping[str, Definition]]) -> Document:
    """Definitions by project, secrets masked; what was started by hand under the empty name."""
    shown: Document = {
        project: {name: masked(one) for name, one in found.items()} for project, found in projects.items()
    }
    by_hand = {one.process: masked(one.definition) for one in supervisor.instances.values() if one.project is None}
    return {**shown, "": by_hand} if by_hand else shown
