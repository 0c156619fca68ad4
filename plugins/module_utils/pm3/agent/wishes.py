# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What somebody wants a project to be: as a request says it, as a revision was, or as the store has it of a run to be gone on with."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..model import loading, pins
from ..model import update as updates
from ..model.definition import Definition
from ..model.plan import Action, Plan, State
from ..model.problems import DefinitionError, Problem, Unfit
from . import known, places, views
from .holds import Target
from .projects import Projects
from .store import Revision
from .supervisor import Supervisor
from .tasks import Pace, Steps, paced

Document = dict[str, Any]


@dataclass(frozen=True)
class Wish:
    """What somebody wants a project to be."""

    project: str
    definitions: Mapping[str, Definition]
    state: State = State.PRESENT
    prune: bool = True
    only: tuple[str, ...] | None = None
    gone: tuple[str, ...] = ()  # processes that are to go although nothing is pruned
    demanded: tuple[str, ...] = ()  # named by somebody: they start without `autostart`, too
    take_over: bool = False
    retry_failed: bool = True
    once: Mapping[str, Any] = field(default_factory=dict)  # keys of `update` for this run, whatever the definitions say
    label: str | None = None
    origin: int | None = None  # the revision that this brings back
    path: str | None = None
    uid: int | None = None
    holds: Collection[Target] | None = None  # no others count: what a run has begun it goes on with, or takes back
    resting: Collection[str] | None = None  # of a run that is gone on with: what had been stopped when it began

    def same(self, other: Wish) -> bool:
        facts = (self.definitions, self.state, self.prune, self.only, self.origin, self.label)
        return facts == (other.definitions, other.state, other.prune, other.only, other.origin, other.label)


class Wishes:
    """What requests wish, and what speaks against it."""

    def __init__(self, supervisor: Supervisor, projects: Projects) -> None:
        self._supervisor = supervisor
        self._projects = projects

    def of(self, request: Document, desired: Mapping[str, Definition], pace: Pace, uid: int | None) -> Steps:
        """What the request asks for at this moment. `desired` are the definitions that it brings."""
        project = str(request["project"])
        rules = {"take_over": request["take_over"], "retry_failed": request["retry_failed"]}
        common = {**rules, "path": request["path"], "uid": uid, "once": _once(request["update_once"])}
        if request["rollback_to"] is not None or request["rollback_from"] is not None:
            return self._back(project, request, common)
        now = known.definitions(request, self._projects, self._supervisor.instances.values())
        definitions_now = {**desired, **(yield from paced(pace, now))}
        staying = self.staying(request)
        circular = known.circular(definitions_now, staying) if staying else []
        if circular:
            raise DefinitionError(circular)
        only = tuple(request["only"]) if request["only"] is not None else None
        state, prune, named = State(request["state"]), request["prune"], tuple(request["known"])
        return Wish(project, definitions_now, state, prune, only, demanded=named, label=request["label"], **common)

    def staying(self, request: Document) -> Mapping[str, Definition]:
        """What is defined in the project and stays so, whether the request brings it or not."""
        prunes = request["prune"] and request["only"] is None
        return {} if prunes else self._projects.definitions(request["project"])

    def _back(self, project: str, request: Document, common: Document) -> Wish:
        if request["definitions"]:
            raise DefinitionError([Problem("give either definitions or a revision to go back to")])
        if request["rollback_from"] is not None and not request["rollback_to"] and not self._projects.current(project):
            return Wish(project, {}, prune=False, **common)  # what never came here has gone
        target, current = self._projects.back_to(project, request["rollback_to"], request["rollback_from"])
        if target is None:
            return Wish(project, current.definitions, label=current.label, origin=current.origin, **common)
        back = brought_back(target)
        origin = self._projects.root(target)
        return Wish(project, back, label=request["label"] or target.label, origin=origin, **common)

    def beyond(self, wish: Wish) -> list[Problem]:
        """The limits that it asks for and that cannot be kept on this host."""
        if wish.state is State.ABSENT:
            return []
        chosen = (
            wish.definitions.items() if wish.only is None else [(name, wish.definitions[name]) for name in wish.only]
        )
        return self._supervisor.cells.beyond(dict(chosen))

    def refuse_what_is_beyond(self, wish: Wish) -> None:
        """Raises `DefinitionError` for those."""
        found = self.beyond(wish)
        if found:
            raise DefinitionError(found)

    def refuse_what_failed(self, wish: Wish) -> None:
        """Raises `DefinitionError` for what has failed here already and is not to be tried again."""
        if wish.retry_failed or wish.state is State.ABSENT:
            return
        found = self._projects.failed_like(wish.project, wish.definitions, places.taken(wish.definitions))
        if found is not None and found.failed_at is not None:
            raise DefinitionError(
                [
                    Problem(
                        f"revision {found.revision} of project {wish.project} failed here at {views.when(found.failed_at)}, not retried:"
                        f" {found.failure}"
                    )
                ]
            )


def desired(request: Document, pace: Pace, staying: Iterable[str]) -> Steps:
    """The definitions that an `apply` or a `plan` brings. They may depend on what is `staying`."""
    tables = {name: dict(table) for name, table in request["definitions"].items()}
    for name, secrets in request["secrets"].items():
        if name in tables:
            tables[name]["secrets"] = {**(tables[name].get("secrets") or {}), **secrets}
    if request["update"]:
        for table in tables.values():
            if table.get("update") is None:
                table["update"] = request["update"]
    named = request["known"] or request["rollback_to"] is not None or request["rollback_from"] is not None
    if not tables and named:
        return {}
    if not tables and request["state"] != State.ABSENT.value:
        raise DefinitionError([Problem("nothing is defined; to remove a project, ask for state absent")])
    try:
        return (yield from paced(pace, loading.load_in_parts(tables, request["base"], request["overlay"], staying)))
    except DefinitionError as error:
        raise error.located(request["file"]) if request["file"] else error from None


def brought_back(revision: Revision) -> dict[str, Definition]:
    """The definitions of a revision; paths that lead elsewhere by now are written as where they led then."""
    moved = places.moved(revision.places)
    return {name: pins.pinned(one, moved.get(name, {})) for name, one in revision.definitions.items()}


def to_store(
    revision: Revision,
    wish: Wish,
    found: Plan,
    owners: Mapping[str, str],
    resting: Collection[str],
    holds: Iterable[Target],
    stage: str = "forward",
) -> Document:
    """What another agent needs to go on with a run. Definitions are the revision's, which may have more than were wished.

    `holds` are those that there were when the run began.
    """
    only = wish.only if wish.only is not None or wish.prune else tuple(wish.definitions)
    return {
        "revision": revision.revision,
        "stage": stage,
        "state": wish.state.value,
        "prune": wish.prune,
        "take_over": wish.take_over,
        "owners": dict(owners),
        "only": only,
        "gone": sorted({row.process for row in found.rows if row.action is Action.REMOVED}),
        "path": wish.path,
        "once": dict(wish.once),
        "resting": sorted(resting),
        "holds": sorted(holds),
    }


def from_store(revision: Revision, body: Document) -> Wish:
    """What is left to be wished of a run that another agent began, and that applied the revision."""
    state = State(body["state"])
    if state in (State.RESTARTED, State.RELOADED):
        state = State.PRESENT  # what had been stopped is started; what was not reached is not a new demand
    return Wish(
        revision.project,
        revision.definitions,
        state,
        body["prune"],
        tuple(name for name in body["only"] if name in revision.definitions) if body["only"] is not None else None,
        tuple(body["gone"]),
        take_over=body.get("take_over", False),
        once=body.get("once", {}),
        path=body["path"],
        label=revision.label,
        origin=revision.origin,
        holds=[Target(*one) for one in body["holds"]] if "holds" in body else None,
        resting=frozenset(body["resting"]),
    )


def _once(table: Document) -> dict[str, Any]:
    try:
        return updates.once(table)
    except Unfit as error:
        raise DefinitionError([Problem(f"update_once: {error}")]) from None
