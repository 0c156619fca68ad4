# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs: changes of whole projects, from what somebody wishes to what became of it; with a way back.

A run plans, carries the plan out, and when the release does not come up takes back what was changed. It belongs to the agent and not
to the client that began it: others may join it by wishing the same, it goes on when all have left, and it is in the store, so that
another agent goes on with it where this one died.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..model import definition as definitions
from ..model import difference, loading, pins, rows
from ..model import update as updates
from ..model.definition import Definition, Effect
from ..model.plan import Action, Change, Plan, State, plan_in_parts
from ..model.problems import DefinitionError, Problem, Unfit
from ..wire import messages
from . import known, places, views, walks
from .apply import Apply
from .changes import cpus
from .points import reached
from .projects import Projects
from .schemas import StoreError
from .server import Client, Peer
from .store import Revision
from .supervisor import Supervisor
from .tasks import Pace, Steps, paced
from .work import Work

Document = dict[str, Any]

_UNTOUCHED = (Action.NONE.value, Action.SKIPPED.value)
_IN_PLACE = "nothing can go back: the definitions are the same, and files that were changed in place are not kept"
_JOINED = (State.PRESENT, State.STOPPED, State.ABSENT)  # states that are the same wish when they are wished twice


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
    resting: Collection[str] | None = None  # of a run that is gone on with: what had been stopped when it began

    def same(self, other: Wish) -> bool:
        facts = (self.definitions, self.state, self.prune, self.only, self.origin, self.label)
        return facts == (other.definitions, other.state, other.prune, other.only, other.origin, other.label)


class Run:
    """One run and those who listen to it. For `Work` it is the client."""

    def __init__(self, wish: Wish) -> None:
        self.wish = wish
        self.stops: Mapping[str, int] | None = None  # `walks.stops_of` when its turn came
        self.unproven: Collection[str] = ()  # processes that it had begun to change under an agent before us
        self.owners: dict[str, str] = {}  # processes that it takes over, and the projects that they belonged to
        self.left_alone = False  # it leaves alone what somebody has stopped since it began
        self._clients: list[tuple[Client, bool]] = []
        self._news: dict[str, Document] = {}  # the last that was told of each instance

    def join(self, client: Client, wants_progress: bool) -> None:
        self._clients.append((client, wants_progress))
        for document in self._news.values() if wants_progress else ():
            client.send(document)

    def tell(self, kind: str, name: str, about: Document) -> None:
        self._news[name] = document = {"type": kind, **about}
        for client, wants_progress in self._clients:
            if wants_progress:
                client.send(document)

    def finish(self, document: Document) -> None:
        for client, _wants_progress in self._clients:
            client.finish(document)
        self._clients.clear()


class Runs:
    def __init__(self, supervisor: Supervisor, projects: Projects, work: Work) -> None:
        self._supervisor = supervisor
        self._projects = projects
        self._work = work
        self._runs: dict[str, list[Run]] = {}  # of each project those that are not over, in their order

    # Requests

    def plan(self, request: Document, peer: Peer, client: Client) -> None:
        pace = Pace(self._supervisor.loop)

        def steps() -> Steps:
            desired = yield from _desired(request, pace, self._staying(request))
            wish = yield from self._wish(request, desired, pace, peer.uid)
            found = yield from self._planned(wish, pace)
            self._refuse_what_failed(wish)
            beyond = self._beyond(wish)
            predicted = [self._foreseen(change, found.state) for change in found.rows]
            if pace.over():
                yield pace
            document = self._begun(wish, found, predicted).document(request)
            # A fact of the host, and earlier tasks of a run may be going to change it: no more than told beforehand.
            document["warnings"] += map(str, beyond)
            client.finish(document)

        self._work.run(steps, client)

    def apply(self, request: Document, peer: Peer, client: Client) -> None:
        pace = Pace(self._supervisor.loop)

        def first() -> Steps:
            yield pace  # its text was large, if it is much
            desired = yield from _desired(request, pace, self._staying(request))
            wish = yield from self._wish(request, desired, pace, peer.uid)
            # Mistakes are told at once, also where the project is busy.
            yield from self._planned(wish, pace)
            self._refuse_what_is_beyond(wish)
            under_way = next(reversed(self._runs.get(wish.project, [])), None)
            if under_way is not None and self._is_the_same(under_way, wish):
                self._join(under_way, request, client)
                return
            run = self._queued(wish)
            self._join(run, request, client)

            def steps() -> Steps:
                # As it is now, not as it was when this was asked: what went before may have changed it.
                run.wish = yield from self._wish(request, desired, pace, peer.uid)
                result = yield from self._run(run)
                return result.document(request)

            self._work.in_turn([wish.project], wish.definitions, lambda: self._turn(run, steps()), run)

        self._work.run(first, client)

    def resume(self) -> None:
        """Goes on with the runs that an agent before us began and did not finish."""
        for project, body in self._supervisor.store.runs().items():
            current = self._projects.current(project)
            if current is None or current.revision != body.get("revision"):
                self._supervisor.store.set_run(project, None)
                continue
            wish = _resumed(current, body)
            self._supervisor.diagnose(
                f"project {project}: goes on with revision {current.revision}, which was being applied"
            )
            run = self._queued(wish)
            run.unproven = current.changed
            run.owners = body.get("owners", {})
            back = body.get("stage") == "back"
            steps = self._go_on(run, back)
            self._work.in_turn([project], wish.definitions, lambda run=run, steps=steps: self._turn(run, steps), run)  # type: ignore[misc]

    def abandon(self, why: str) -> None:
        """The agent ends, or becomes another: whoever waits is told what becomes of the change."""
        for runs in self._runs.values():
            for run in runs:
                run.finish(messages.error(why))

    def _is_the_same(self, run: Run, wish: Wish) -> bool:
        """Whether what the run leads to is what is wished: a stop since it began is the later word for the run, and not for the wish."""
        if not run.wish.same(wish) or wish.state not in _JOINED or run.left_alone:
            return False
        stops = walks.stops_of(self._supervisor)
        return run.stops is None or all(stops.get(name, 0) == before for name, before in run.stops.items())

    def _join(self, run: Run, request: Document, client: Client) -> None:
        if request["wait"]:
            run.join(client, request["progress"])
        else:
            self._work.run(lambda: self._tell_what_began(run.wish, request, client), client)

    def _queued(self, wish: Wish) -> Run:
        run = Run(wish)
        self._runs.setdefault(wish.project, []).append(run)
        return run

    def _over(self, run: Run) -> None:
        runs = self._runs[run.wish.project]
        runs.remove(run)
        if not runs:
            del self._runs[run.wish.project]

    def _tell_what_began(self, wish: Wish, request: Document, client: Client) -> Steps:
        pace = Pace(self._supervisor.loop)
        found = yield from self._planned(wish, pace)
        everything = self._supervisor.instances
        begun = [views.row(self._supervisor, one, everything.get(one.name)) for one in found.rows]
        client.finish(self._begun(wish, found, begun, in_progress=True).document(request))

    def _begun(self, wish: Wish, found: Plan, made: list[rows.Row], in_progress: bool = False) -> _Result:
        """What is going to be said of a run, as far as that is known before its end."""
        current = self._projects.current(wish.project)
        number, label = (current.revision, current.label) if current is not None else (0, None)
        if self._is_new(wish, found):
            number, label = number + 1, wish.label
        return _Result(wish, found, made, number, label, current, in_progress)

    # What is wished

    def _wish(self, request: Document, desired: Mapping[str, Definition], pace: Pace, uid: int | None) -> Steps:
        """What the request asks for at this moment. `desired` are the definitions that it brings."""
        project = str(request["project"])
        rules = {"take_over": request["take_over"], "retry_failed": request["retry_failed"]}
        common = {**rules, "path": request["path"], "uid": uid, "once": _once(request["update_once"])}
        if request["rollback_to"] is not None or request["rollback_from"] is not None:
            return self._wish_back(project, request, common)
        now = known.definitions(request, self._projects, self._supervisor.instances.values())
        definitions_now = {**desired, **(yield from paced(pace, now))}
        staying = self._staying(request)
        circular = known.circular(definitions_now, staying) if staying else []
        if circular:
            raise DefinitionError(circular)
        only = tuple(request["only"]) if request["only"] is not None else None
        state, prune, named = State(request["state"]), request["prune"], tuple(request["known"])
        return Wish(project, definitions_now, state, prune, only, demanded=named, label=request["label"], **common)

    def _staying(self, request: Document) -> Mapping[str, Definition]:
        """What is defined in the project and stays so, whether the request brings it or not."""
        prunes = request["prune"] and request["only"] is None
        return {} if prunes else self._projects.definitions(request["project"])

    def _wish_back(self, project: str, request: Document, common: Document) -> Wish:
        if request["definitions"]:
            raise DefinitionError([Problem("give either definitions or a revision to go back to")])
        if request["rollback_from"] is not None and not request["rollback_to"] and not self._projects.current(project):
            return Wish(project, {}, prune=False, **common)  # what never came here has gone
        target, current = self._projects.back_to(project, request["rollback_to"], request["rollback_from"])
        if target is None:
            return Wish(project, current.definitions, label=current.label, origin=current.origin, **common)
        back = _brought_back(target)
        return Wish(project, back, label=request["label"] or target.label, origin=target.revision, **common)

    def _planned(self, wish: Wish, pace: Pace) -> Steps:
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
            held=self._supervisor.holds.among(wish.project, [*wish.definitions, *current], actual),
            take_over=wish.take_over,
        )
        found: Plan = yield from paced(pace, parts)
        if wish.resting is not None:
            # Somebody has stopped these since the run began, and nothing but a start or an apply undoes that (I3).
            resting = self._resting(found)
            kept = [
                _left_stopped(row) if row.name in resting and row.name not in wish.resting else row
                for row in found.rows
            ]
            found = replace(found, rows=tuple(kept))
        return found

    def _resting(self, found: Plan) -> set[str]:
        """What the plan starts that somebody had stopped."""
        everything = self._supervisor.instances
        started = (row.name for row in found.rows if row.action is Action.STARTED)
        return {name for name in started if name in everything and not everything[name].wanted}

    def _never_stopped(self, run: Run) -> frozenset[str]:
        """What nobody has stopped since the run began, be it under another agent."""
        now, before, resting = walks.stops_of(self._supervisor), run.stops or {}, run.wish.resting
        never = {name for name, stops in now.items() if stops == before.get(name, 0)}
        return frozenset(never if resting is None else never.intersection(resting))

    def _refuse_what_is_beyond(self, wish: Wish) -> None:
        found = self._beyond(wish)
        if found:
            raise DefinitionError(found)

    def _beyond(self, wish: Wish) -> list[Problem]:
        """The limits that it asks for and that cannot be kept on this host."""
        if wish.state is State.ABSENT:
            return []
        chosen = (
            wish.definitions.items() if wish.only is None else [(name, wish.definitions[name]) for name in wish.only]
        )
        return self._supervisor.cells.beyond(dict(chosen))

    def _is_new(self, wish: Wish, found: Plan) -> bool:
        """Whether this makes a new revision."""
        current = self._projects.current(wish.project)
        if current is None:
            return bool(found.definitions)
        if found.definitions != current.definitions:
            return True
        if not found.changed or wish.state is not State.PRESENT:
            return False
        return wish.label not in (None, current.label) or places.taken(found.definitions) != current.places

    def _refuse_what_failed(self, wish: Wish) -> None:
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

    # A run

    def _turn(self, run: Run, steps: Steps) -> Steps:
        """The turn of a run, whose answer `steps` give; whatever ends it, nobody joins it any more."""
        try:
            with self._supervisor.sockets.changing():  # a socket of what is taken back stays open
                answer = yield from steps
            run.finish(answer)
        finally:
            self._over(run)

    def _go_on(self, run: Run, back: bool) -> Steps:
        """With a run that another agent began; `back`: that was going back. How it ends is told to the log: who asked for it is gone."""
        try:
            result = yield from self._gone_on_back(run) if back else self._run(run)
        except DefinitionError as error:  # what it wants has become impossible since, and will not be possible again
            self._close(run.wish.project)
            self._supervisor.diagnose(f"project {run.wish.project}: cannot go on: {error}")
            raise
        failed = "; ".join([_why(result.failed())] * bool(result.failed()) + result.remarks)
        self._supervisor.diagnose(f"project {run.wish.project}: " + (failed or "all is as it was to be"))
        return result.document(None)

    def _gone_on_back(self, run: Run) -> Steps:
        run.stops = stops = walks.stops_of(self._supervisor)
        found = yield from self._planned(run.wish, Pace(self._supervisor.loop))
        found = replace(found, rows=tuple(map(self._pinned_live, found.rows)))
        result = yield from self._walked(run, run.wish, found, stops)
        yield from self._give_back(run, result)
        self._conclude(run.wish.project, result)
        return result

    def _run(self, run: Run) -> Steps:
        wish, pace = run.wish, Pace(self._supervisor.loop)
        run.stops = stops = walks.stops_of(self._supervisor)
        before = self._projects.current(wish.project)
        found = yield from self._planned(wish, pace)
        run.left_alone = any(row.reason == walks.STOPPED_MEANWHILE for row in found.rows)
        self._refuse_what_failed(wish)
        run.owners.update(self._owners(wish, found))
        changes = found.changed
        if self._is_new(wish, found):
            changed = {row.process for row in found.rows if row.action is not Action.NONE}
            facts = (changed, places.taken(found.definitions), wish.label, wish.uid, wish.origin)
            made = self._projects.made(wish.project, found.definitions, *facts)
            reached("run.before_kept")
            self._projects.keep(made, _body(made, run, wish, found, self._resting(found)))
            reached("run.kept")
            changes = True
        elif found.changed:
            current = self._projects.current(wish.project)
            if current is not None:
                self._supervisor.store.set_run(wish.project, _body(current, run, wish, found, self._resting(found)))
                reached("run.noted")
        if pace.over():
            yield pace
        result = yield from self._walked(run, wish, found, stops)
        reached("run.walked")
        result.before = before
        current = self._projects.current(wish.project)
        whole = wish.only is None and wish.state is State.PRESENT
        resumed = wish.resting is not None  # all may have been done but its end
        if current is not None and (changes or resumed or (whole and current.failure is not None)):
            if result.culprit is not None and current.failure is not None:
                result = yield from self._after_failure(run, result, current)
            else:
                if result.culprit is not None and result.culprit.action is Action.ROLLED:
                    result.remarks.append(_IN_PLACE)  # no revision was made, so what it was started with has changed
                self._conclude(wish.project, result)
        if not result.failed():
            self._projects.disown(wish.project, run.owners)
        if changes:
            self._supervisor.checkpoint()
        if pace.over():
            yield pace
        return result

    def _walked(self, run: Run, wish: Wish, found: Plan, stops: Mapping[str, int]) -> Steps:
        walk = Apply(
            self._supervisor,
            found,
            wish.project,
            wish.path,
            stops,
            on_row=lambda row: run.tell("row", row["name"], row),
            on_step=lambda name, step: run.tell("step", name, {"name": name, "step": step}),
            unproven=run.unproven,
            once=wish.once,
        )
        made = yield from walk.steps()
        current = self._projects.current(wish.project)
        result = _Result(wish, found, made, *((current.revision, current.label) if current is not None else (0, None)))
        result.culprit, result.timed_out = walk.culprit, walk.timed_out
        return result

    def _conclude(self, project: str, result: _Result) -> None:
        """The end of a run: its revision has come up, or it has failed and stays as it is."""
        failed = result.failed()
        current = self._projects.current(project)
        if current is None or (failed and (current.failure is None or result.culprit is None)):
            self._close(project)
        elif failed:
            self._close(project, (_why(failed), time.time()))
        else:
            self._close(project, (None, None))

    def _close(self, project: str, verdict: tuple[str | None, float | None] | None = None) -> None:
        """Notes that the run is over, and what became of the revision. On a full disk the next agent will find that out again."""
        try:
            if verdict is not None:
                self._projects.judge(project, *verdict)
            reached("run.judged")
            self._supervisor.store.set_run(project, None)
            reached("run.over")
        except StoreError as error:
            self._supervisor.diagnose(str(error))

    def _after_failure(self, run: Run, result: _Result, failed: Revision) -> Steps:
        """The release did not come up: what it has changed goes back, or stays half done."""
        good = self._projects.good_before(failed.project, failed.revision, brought_back=True)
        remark = self._obstacle(run.wish, result, failed, good)
        if good is not None and remark is None:
            return (yield from self._back(run, result, failed, good))
        self._close(failed.project, (_why(result.failed()), time.time()))
        result.remarks += [remark] if remark else []
        return result

    def _obstacle(self, wish: Wish, result: _Result, failed: Revision, good: Revision | None) -> str | None:
        """Why nothing goes back; "" where there is nothing to be said of that, None where nothing is in the way."""
        culprit = result.culprit
        if culprit is None or wish.state in (State.STOPPED, State.ABSENT):
            return ""
        if updates.of(culprit.definition.update, wish.once).on_failure == updates.PAUSE:
            return f"left half done (on_failure is pause); apply again to go on, or pm3 rollback {failed.project}"
        if good is None:
            return "there is no earlier revision to go back to" if failed.revision > 1 else ""
        gone = places.missing(places.moved(good.places))
        if gone:
            return f"cannot go back to revision {good.revision}: {gone[0]} is not there any more"
        return _IN_PLACE if _brought_back(good) == failed.definitions else None

    def _back(self, run: Run, result: _Result, failed: Revision, good: Revision) -> Steps:
        definitions_then = _brought_back(good)
        before = failed.definitions
        changed = {*self._projects.changed_since(failed.project, good.revision), *before} - set(run.owners)
        touched = {
            name: one for name, one in definitions_then.items() if name in failed.changed or one != before.get(name)
        }
        origin = good.origin or good.revision
        wish = Wish(
            failed.project,
            touched,
            prune=False,
            gone=tuple(name for name in changed if name not in definitions_then),
            once={"soak": 0},  # it was good before, and whoever waits has heard the worst
            path=run.wish.path,
            label=good.label,
            origin=origin,
            resting=self._never_stopped(run),
        )
        stops = walks.stops_of(self._supervisor)
        found = yield from self._planned(wish, Pace(self._supervisor.loop))
        kept = tuple(self._pinned_live(row) for row in found.rows)
        found = replace(found, rows=kept, definitions=definitions_then)
        back_again = {row.process for row in found.rows if row.action is not Action.NONE}
        facts = (back_again, places.taken(definitions_then), good.label, None, origin)
        made = self._projects.made(failed.project, definitions_then, *facts)
        reached("back.before_judged")
        self._projects.judge(failed.project, _why(result.failed()), time.time())
        reached("back.judged")
        self._projects.keep(made, _body(made, run, wish, found, self._resting(found), stage="back"))
        reached("back.kept")
        for row in found.rows:
            if row.action is not Action.NONE:
                run.tell("step", row.name, {"name": row.name, "step": "reverting"})
        back = yield from self._walked(run, wish, found, stops)
        reached("back.walked")
        yield from self._give_back(run, back)
        self._conclude(failed.project, back)
        result.take_back(back, origin, made)
        return result

    def _owners(self, wish: Wish, found: Plan) -> dict[str, str]:
        """The projects from which the plan takes processes over."""
        everything = self._supervisor.instances
        there = ((row.process, everything.get(row.was or row.name)) for row in found.rows if not row.held)
        return {
            process: one.project
            for process, one in there
            if one is not None and one.project is not None and one.project != wish.project
        }

    def _give_back(self, run: Run, back: _Result) -> Steps:
        """What the release has taken over from other projects is theirs again, and runs as they have it."""
        for owner in sorted(set(run.owners.values())):
            names = {name for name, project in run.owners.items() if project == owner}
            theirs = {name: one for name, one in self._projects.definitions(owner).items() if name in names}
            resting = self._never_stopped(run)
            wish = Wish(owner, theirs, prune=False, take_over=True, path=run.wish.path, resting=resting)
            stops = walks.stops_of(self._supervisor)
            found = yield from self._planned(wish, Pace(self._supervisor.loop))
            given = yield from self._walked(run, wish, found, stops)
            back.rows += given.rows
            back.found = replace(back.found, rows=(*back.found.rows, *given.found.rows))
            back.culprit, back.timed_out = back.culprit or given.culprit, back.timed_out or given.timed_out

    def _pinned_live(self, row: Change) -> Change:
        """One that was never replaced runs where it shall already: its definition says so from now on, and it goes on."""
        instance = self._supervisor.instances.get(row.name)
        if row.action is not Action.ROLLED or instance is None or row.was or instance.count != row.count:
            return row
        costly = {change.field for change in row.changes if change.effect is Effect.RESTART}
        is_there = (
            costly <= {"cwd"} and instance.pid is not None and places.of_process(instance.pid) == row.definition.cwd
        )
        return replace(row, action=Action.UPDATED) if is_there else row

    # What is told

    def _foreseen(self, change: Change, state: State) -> rows.Row:
        """The row that the change will have, as far as that is known: counters and the last exit are those of now."""
        made = views.row(self._supervisor, change, self._supervisor.instances.get(change.was or change.name))
        pid = made["pid"] if change.action in (Action.NONE, Action.UPDATED, Action.RELOADED) else None
        return {**made, "status": _predicted(change, state, made["status"]), "pid": pid}


class _Result:
    """What a run says of itself."""

    def __init__(
        self,
        wish: Wish,
        found: Plan,
        made: list[rows.Row],
        revision: int,
        label: str | None,
        before: Revision | None = None,
        in_progress: bool = False,
    ) -> None:
        self.wish = wish
        self.found = found
        self.rows = made
        self.revision = revision
        self.label = label
        self.before = before
        self.in_progress = in_progress
        self.culprit: Change | None = None
        self.timed_out = False
        self.reverted = False
        self.remarks: list[str] = []

    def failed(self) -> list[rows.Row]:
        return [row for row in self.rows if row["action"] == Action.FAILED.value]

    def take_back(self, back: _Result, to: int, made: Revision) -> None:
        """`back` is what has become of going back to revision `to`, as revision `made`."""
        failures = self.failed()
        first = failures[0]["name"] if failures else ""
        was = {row.name: row.was for row in back.found.rows if row.was}
        successors = {before: after for after, before in was.items()}
        after = {row["name"]: row for row in back.rows}
        found = [
            _reverted(row, after.pop(successors.get(row["name"], row["name"]), None), first, to) for row in self.rows
        ]
        # What the failed release had renamed, or had taken away, and what is of no row before.
        found += [_reverted(None, row, first, to) for row in after.values() if row["changed"]]
        self.rows = found
        self.revision, self.label = made.revision, made.label
        self.reverted = not back.failed()
        self.timed_out = self.timed_out or back.timed_out
        if self.reverted:
            self.remarks.append(f"went back to revision {to}")
        else:
            self.remarks.append(f"could not go back to revision {to}: {_why(back.failed())}")

    def document(self, request: Document | None) -> Document:
        """Its message for the client."""
        failed = self.failed()
        said = [_why(failed)] * bool(failed) + self.remarks
        return {
            "type": "result",
            "ok": not failed,
            "message": "; ".join(said) or None,
            "changed": any(row["changed"] for row in self.rows),
            "project": self.wish.project,
            "revision": self.revision or None,
            "label": self.label,
            "previous_revision": self.before.revision if self.before is not None else None,
            "previous_label": self.before.label if self.before is not None else None,
            "reverted": self.reverted,
            "timed_out": self.timed_out,
            "in_progress": self.in_progress,
            "instances": self.rows,
            "summary": rows.summary(self.rows),
            "diff": difference.of(self.wish.project, self.found),
            "report": rows.report(self.rows),
            "warnings": definitions.cautions(request["definitions"]) if request is not None else [],
        }


def _reverted(row: rows.Row | None, back: rows.Row | None, culprit: str, to: int) -> rows.Row:
    """The row of an instance once its change was taken back. `row` is what it was before that, `back` what going back has done."""
    if row is None:
        row = {**(back or {}), "log_tail": []}
    if back is None:
        return row
    now = {key: back[key] for key in ("status", "pid", "restarts", "total_restarts", "last_exit")}
    if back["action"] == Action.FAILED.value:
        why = f"could not go back to revision {to}: {back['reason']}"
        if row["action"] == Action.FAILED.value:
            why = f"{row['reason']}; {why}"
        return {
            **row,
            **now,
            "action": Action.FAILED.value,
            "changed": True,
            "reason": why,
            "log_tail": back["log_tail"],
        }
    if not back["changed"] or (back["action"] == Action.UPDATED.value and row["action"] in _UNTOUCHED):
        return {**row, **now}
    if row["action"] == Action.FAILED.value:
        return {**row, **now, "reason": f"{row['reason']}; back on revision {to}"}
    reason = f"{culprit} failed; back on revision {to}"
    return {**row, **now, "action": Action.REVERTED.value, "changed": True, "reason": reason}


def _left_stopped(row: Change) -> Change:
    """The row of one that is not started again: it only learns what it would run as."""
    action = Action.UPDATED if row.changes else Action.NONE
    return replace(row, action=action, reason=walks.STOPPED_MEANWHILE)


def _why(failed: list[rows.Row]) -> str:
    return "; ".join(f"{row['name']} {row['reason']}" for row in failed)


def _brought_back(revision: Revision) -> dict[str, Definition]:
    """The definitions of a revision; paths that lead elsewhere by now are written as where they led then."""
    moved = places.moved(revision.places)
    return {name: pins.pinned(one, moved.get(name, {})) for name, one in revision.definitions.items()}


def _body(
    revision: Revision, run: Run, wish: Wish, found: Plan, resting: Collection[str], stage: str = "forward"
) -> Document:
    """What another agent needs to go on with a run. Definitions are the revision's, which may have more than were wished."""
    only = wish.only if wish.only is not None or wish.prune else tuple(wish.definitions)
    return {
        "revision": revision.revision,
        "stage": stage,
        "state": wish.state.value,
        "prune": wish.prune,
        "take_over": wish.take_over,
        "owners": run.owners,
        "only": only,
        "gone": sorted({row.process for row in found.rows if row.action is Action.REMOVED}),
        "path": wish.path,
        "once": dict(wish.once),
        "resting": sorted(resting),
    }


def _resumed(revision: Revision, body: Document) -> Wish:
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
        resting=frozenset(body["resting"]),
    )


def _once(table: Document) -> dict[str, Any]:
    try:
        return updates.once(table)
    except Unfit as error:
        raise DefinitionError([Problem(f"update_once: {error}")]) from None


def _desired(request: Document, pace: Pace, staying: Iterable[str]) -> Steps:
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


def _predicted(change: Change, state: State, status: str) -> str:
    """The status that an instance will have once the change has succeeded."""
    if change.held:
        return status
    if change.action in (Action.REMOVED, Action.STOPPED) or change.rests or state is State.STOPPED:
        return "stopped"
    return status if change.action in (Action.NONE, Action.UPDATED) else "online"
