# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The requests `hold` and `release`: what their names mean, and the sentences that answer them.

A name is a process, else a group, else a project. At once and in nobody's turn: what is under way goes on, the next apply finds it
held. Kept out of `requests`, because a healthy agent does without.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..model.order import natural
from ..model.problems import nearest
from ..wire import messages
from .holds import PROCESS, PROJECT, Holds, Target
from .projects import Projects
from .schemas import StoreError
from .supervisor import Supervisor
from .work import Refused

Document = dict[str, Any]


class Known(NamedTuple):
    """What names may mean."""

    processes: Mapping[str, str | None]  # and the project of each
    groups: Mapping[str, set[str]]  # and the processes of each
    projects: frozenset[str]


def answer(supervisor: Supervisor, projects: Projects, request: Document, uid: int) -> Document:
    """The answer to either request, which is done then. Raises `Refused`."""
    found = _known(supervisor, projects)
    try:
        if request["type"] == "hold":
            return _hold(supervisor.holds, found, request, uid)
        return _release(supervisor.holds, found, request)
    except StoreError as error:
        raise Refused(str(error)) from None
    finally:
        supervisor.ledger.checkpoint()


def _known(supervisor: Supervisor, projects: Projects) -> Known:
    """What projects define, and what is there: the latter counts where the two differ."""
    defined = projects.of(None).items()
    found: list[tuple[str, str | None, str | None]] = [
        (name, project, one.group) for project, last in defined for name, one in last.definitions.items()
    ]
    found += [(one.process, one.project, one.definition.group) for one in supervisor.instances.values()]
    processes: dict[str, str | None] = {}
    groups: dict[str, set[str]] = {}
    for process, project, group in found:
        processes[process] = project
        if group:
            groups.setdefault(group, set()).add(process)
    owners = {project for project in processes.values() if project is not None}
    return Known(processes, groups, frozenset({*owners, *(project for project, _last in defined)}))


def _hold(holds: Holds, found: Known, request: Document, uid: int) -> Document:
    """The answer to `hold`. Raises `Refused`."""
    reason = _one_line(request["reason"])
    if not reason:
        raise Refused("hold needs a reason, for whoever wonders why apply leaves it alone")
    targets = _targets(holds, found, request, "hold")
    holds.hold(targets, reason, uid)
    return messages.success("held: " + _listed(targets, found))


def _release(holds: Holds, found: Known, request: Document) -> Document:
    """The answer to `release`. Raises `Refused`."""
    targets = _targets(holds, found, request, "release")
    ended = holds.release(targets)
    if ended:
        return messages.success("released: " + _listed(ended, found))
    with_all = {found.processes.get(one.name) for one in targets if one.kind == PROCESS}
    still = sorted(name for name in with_all if name is not None and Target(PROJECT, name) in holds)
    hint = f"; the whole project {still[0]} is held, which is released by its own name" if still else ""
    return messages.success("nothing was held" + hint)


def _targets(holds: Holds, found: Known, request: Document, verb: str) -> list[Target]:
    """What a request names: a process, else a group, else a project; `project` can only be that. Raises `Refused`."""
    names: Sequence[str] = request["names"] or ()
    project = request["project"]
    if not names and project is None:
        raise Refused(f"{verb} needs the names of processes, groups or projects")
    targets: dict[Target, None] = {}
    for name in names:
        targets.update(dict.fromkeys(_meant(holds, found, name)))
    if project is not None:
        target = Target(PROJECT, project)
        if project not in found.projects and target not in holds:
            raise Refused(f"project not found: {project}" + _hint(project, found.projects))
        targets[target] = None
    return list(targets)


def _meant(holds: Holds, found: Known, name: str) -> list[Target]:
    if name in found.processes or Target(PROCESS, name) in holds:
        return [Target(PROCESS, name)]
    if name in found.groups:
        return [Target(PROCESS, process) for process in sorted(found.groups[name], key=natural)]
    if name in found.projects or Target(PROJECT, name) in holds:
        return [Target(PROJECT, name)]
    process = name.partition(":")[0]
    if process != name and process in found.processes:
        raise Refused(f"{name} is an instance, and a process is held as a whole: name {process}")
    everything = {*found.processes, *found.groups, *found.projects, *holds.names()}
    raise Refused(f"process, group or project not found: {name}" + _hint(name, everything))


def _hint(name: str, others: Iterable[str]) -> str:
    meant = nearest(name, others)
    return f"; did you mean {meant}?" if meant else ""


def _listed(targets: Iterable[Target], found: Known) -> str:
    """`web (project shop)`; `project shop` where that is held as a whole."""
    texts = []
    for kind, name in targets:
        owner = found.processes.get(name) if kind == PROCESS else None
        texts.append(f"project {name}" if kind == PROJECT else name + (f" (project {owner})" if owner else ""))
    return ", ".join(texts)


def _one_line(text: str) -> str:
    """A text that cannot break the line of a report, nor move a terminal's cursor."""
    return "".join(one if one.isprintable() else "?" for one in " ".join(text.split()))
