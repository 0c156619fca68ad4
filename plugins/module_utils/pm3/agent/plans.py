# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans of what a wish makes of a project, as the host is at this moment; the planner itself is `model.plan`."""

from __future__ import annotations

from dataclasses import replace

from ..model import rows
from ..model.definition import Effect
from ..model.plan import Action, Change, Plan, State, plan_in_parts
from . import places, views, walks
from .changes import cpus
from .projects import Projects
from .supervisor import Supervisor
from .tasks import Pace, Steps, paced
from .wishes import Wish


class Plans:
    """What wishes take, and what is to be known of it."""

    def __init__(self, supervisor: Supervisor, projects: Projects) -> None:
        self._supervisor = supervisor
        self._projects = projects

    def of(self, wish: Wish, pace: Pace) -> Steps:
        """What the wish takes at this moment: a `Plan`. Raises `DefinitionError`."""
        there = list(self._supervisor.instances.values()) if wish.state is State.PRESENT else []
        stale = yield from paced(pace, self._supervisor.fingerprints.stale(there, wish.definitions))
        actual, current = self._supervisor.actual(stale), self._projects.definitions(wish.project)
        parts = plan_in_parts(
            wish.project,
            wish.definitions,
            actual,
            cpus=cpus(),
            current=current,
            state=wish.state,
            prune=wish.prune,
            only=wish.only,
            demanded=wish.demanded,
            gone=wish.gone,
            held=self._supervisor.holds.among(wish.project, [*wish.definitions, *current], actual, wish.holds),
            take_over=wish.take_over,
        )
        found: Plan = yield from paced(pace, parts)
        if wish.resting is not None:
            # Somebody has stopped these since the run began, and nothing but a start or an apply undoes that (I3).
            resting = self.resting(found)
            kept = [
                _left_stopped(row) if row.name in resting and row.name not in wish.resting else row
                for row in found.rows
            ]
            found = replace(found, rows=tuple(kept))
        return found

    def resting(self, found: Plan) -> set[str]:
        """What the plan starts that somebody had stopped."""
        everything = self._supervisor.instances
        started = (row.name for row in found.rows if row.action is Action.STARTED)
        return {name for name in started if name in everything and not everything[name].wanted}

    def is_new(self, wish: Wish, found: Plan) -> bool:
        """Whether this makes a new revision."""
        current = self._projects.current(wish.project)
        if current is None:
            return bool(found.definitions)
        if found.definitions != current.definitions:
            return True
        if not found.changed or wish.state is not State.PRESENT:
            return False
        return wish.label not in (None, current.label) or places.taken(found.definitions) != current.places

    def owners(self, wish: Wish, found: Plan) -> dict[str, str]:
        """The projects from which the plan takes processes over."""
        everything = self._supervisor.instances
        there = ((row.process, everything.get(row.was or row.name)) for row in found.rows if not row.held)
        return {
            process: one.project
            for process, one in there
            if one is not None and one.project is not None and one.project != wish.project
        }

    def pinned_live(self, row: Change) -> Change:
        """One that was never replaced runs where it shall already: its definition says so from now on, and it goes on."""
        instance = self._supervisor.instances.get(row.name)
        if row.action is not Action.ROLLED or instance is None or row.was or instance.count != row.count:
            return row
        costly = {change.field for change in row.changes if change.effect is Effect.RESTART}
        is_there = (
            costly <= {"cwd"} and instance.pid is not None and places.of_process(instance.pid) == row.definition.cwd
        )
        return replace(row, action=Action.UPDATED) if is_there else row

    def foreseen(self, change: Change, state: State) -> rows.Row:
        """The row that the change will have, as far as that is known: counters and the last exit are those of now."""
        made = views.row(self._supervisor, change, self._supervisor.instances.get(change.was or change.name))
        pid = made["pid"] if change.action in (Action.NONE, Action.UPDATED, Action.RELOADED) else None
        return {**made, "status": _predicted(change, state, made["status"]), "pid": pid}


def _left_stopped(row: Change) -> Change:
    """The row of one that is not started again: it only learns what it would run as."""
    action = Action.UPDATED if row.changes else Action.NONE
    return replace(row, action=action, reason=walks.STOPPED_MEANWHILE)


def _predicted(change: Change, state: State, status: str) -> str:
    """The status that an instance will have once the change has succeeded."""
    if change.held:
        return status
    if change.action in (Action.REMOVED, Action.STOPPED) or change.rests or state is State.STOPPED:
        return "stopped"
    return status if change.action in (Action.NONE, Action.UPDATED) else "online"
