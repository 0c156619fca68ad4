# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes that a request names without defining them (its `known`): whose they are, and what they are now. Reads only.

What another project owns may be started, stopped, restarted and reloaded by its name; what it is, only that project says.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Mapping
from typing import Any

from ..model import graph, loading
from ..model.definition import Definition
from ..model.plan import State
from ..model.problems import DefinitionError, Problem, nearest
from ..wire import messages
from .instance import Instance
from .projects import Projects

Document = dict[str, Any]
_NUMBERS = frozenset(["instances", "instance_ids"])
Instances = Collection[Instance]


def addressed(request: Document, projects: Projects, instances: Instances) -> tuple[Document, Document | None]:
    """The request, made to the project that owns the known processes, and None; or with the reply that refuses it.

    A refusal names in `unknown` what does not exist, or in `owners` the processes of each project where there are several: then
    there has to be a request for each.
    """
    asked, absent = request["project"], request["state"] == State.ABSENT.value
    owners = {name: _owner(name, asked, projects, instances) for name in request["known"]}
    unknown = [name for name, found in owners.items() if found is None]
    if unknown and not absent:
        problems = [Problem(_unknown(name, projects, instances), table=name) for name in unknown]
        return request, {**messages.error(str(DefinitionError(problems)), problems), "unknown": unknown}
    found = {name: project for name, project in owners.items() if project is not None}
    others = {name: project for name, project in found.items() if project != asked}
    fixed = [name for name in others if absent or request["known"][name]]
    if fixed or (others and request["definitions"]):
        problems = [Problem(_foreign(others[name]), table=name) for name in fixed or others]
        return request, messages.error(str(DefinitionError(problems)), problems)
    if len(set(found.values())) > 1:
        grouped: dict[str, list[str]] = {}
        for name, project in found.items():
            grouped.setdefault(project, []).append(name)
        listed = "; ".join(f"{', '.join(names)} (project {project})" for project, names in grouped.items())
        return request, {**messages.error(f"these are of several projects: {listed}; ask for each"), "owners": grouped}
    known = {name: request["known"][name] for name in found}
    return {**request, "project": next(iter(found.values()), asked), "known": known}, None


def definitions(
    request: Document, projects: Projects, instances: Instances
) -> Generator[None, None, dict[str, Definition]]:
    """What the known processes are at this moment, with the fields that the request replaces; a process at a time.

    Raises `DefinitionError`.
    """
    tables: dict[str, Document] = {}
    for name, fields in request["known"].items():
        one = _definition(name, request["project"], projects, instances)
        if one is not None:
            said = one.data()
            if not _NUMBERS.isdisjoint(fields):  # each of them takes the place of the other
                said = {field: value for field, value in said.items() if field not in _NUMBERS}
            tables[name] = {**said, **fields}
        elif request["state"] != State.ABSENT.value:  # it has gone since it was found
            raise DefinitionError([Problem(_unknown(name, projects, instances), table=name)])
    return (yield from loading.load_in_parts(tables, elsewhere=None))


def circular(desired: Mapping[str, Definition], staying: Mapping[str, Definition]) -> list[Problem]:
    """Dependencies that run in a circle through what is defined and stays as it is."""
    together = {**staying, **desired}
    return graph.problems(together, [other for one in together.values() for other in one.depends_on])


def _owner(name: str, asked: str, projects: Projects, instances: Iterable[Instance]) -> str | None:
    """The project that owns a process, or shall: what was started by hand becomes the property of who asks. None: unknown."""
    if name in projects.definitions(asked):
        return asked
    running = [one.project for one in instances if one.process == name]
    if running:
        return running[0] or asked
    for project, revision in projects.of(None).items():
        if name in revision.definitions:
            return project
    return None


def _definition(name: str, project: str, projects: Projects, instances: Iterable[Instance]) -> Definition | None:
    found = projects.definitions(project).get(name)
    if found is None:
        found = next((one.definition for one in instances if one.process == name), None)
    return found


def _unknown(name: str, projects: Projects, instances: Instances) -> str:
    known = {one.process for one in instances}.union(*(one.definitions for one in projects.of(None).values()))
    process = graph.base(name)
    if process != name and process in known:
        return f"is an instance; expected the name of its process, {process}"
    meant = nearest(name, known)
    return "there is no such process; define it, with its command" + (f"; did you mean {meant}?" if meant else "")


def _foreign(project: str) -> str:
    return f"belongs to project {project}; change it or remove it there"
