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
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from ..model import rows
from ..model import update as updates
from ..model.plan import Action, Plan, State
from ..model.problems import DefinitionError
from ..wire import messages
from . import places, views, walks, wishes
from .apply import Apply
from .holds import Target
from .plans import Plans
from .points import reached
from .projects import Projects
from .results import Result
from .schemas import StoreError
from .server import Client, Peer
from .store import Revision
from .supervisor import Supervisor
from .tasks import Pace, Steps
from .wishes import Wish
from .work import Work

Document = dict[str, Any]

_IN_PLACE = "nothing can go back: the definitions are the same, and files that were changed in place are not kept"
_JOINED = (State.PRESENT, State.STOPPED, State.ABSENT)  # states that are the same wish when they are wished twice


class Run:
    """One run and those who listen to it. For `Work` it is the client."""

    def __init__(self, wish: Wish) -> None:
        self.wish = wish
        self.stops: Mapping[str, int] | None = None  # `walks.stops_of` when it was asked for
        self.unproven: Collection[str] = ()  # processes that it had begun to change under an agent before us
        self.owners: dict[str, str] = {}  # processes that it takes over, and the projects that they belonged to
        self.holds: Collection[Target] | None = None  # that there were when it began
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
        self._wishes = wishes.Wishes(supervisor, projects)
        self._plans = Plans(supervisor, projects)
        self._work = work
        self._runs: dict[str, list[Run]] = {}  # of each project those that are not over, in their order

    # Requests

    def plan(self, request: Document, peer: Peer, client: Client) -> None:
        pace = Pace(self._supervisor.loop)

        def steps() -> Steps:
            desired = yield from wishes.desired(request, pace, self._wishes.staying(request))
            wish = yield from self._wishes.of(request, desired, pace, peer.uid)
            found = yield from self._plans.of(wish, pace)
            self._wishes.refuse_what_failed(wish)
            beyond = self._wishes.beyond(wish)
            predicted = [self._plans.foreseen(change, found.state) for change in found.rows]
            if pace.over():
                yield pace
            document = self._begun(wish, found, predicted).document(request)
            # A fact of the host, and earlier tasks of a run may be going to change it: no more than told beforehand.
            document["warnings"] += map(str, beyond)
            client.finish(document)

        self._work.run(steps, client)

    def apply(self, request: Document, peer: Peer, client: Client) -> None:
        pace = Pace(self._supervisor.loop)
        stops = walks.stops_of(self._supervisor)

        def first() -> Steps:
            yield pace  # its text was large, if it is much
            desired = yield from wishes.desired(request, pace, self._wishes.staying(request))
            wish = yield from self._wishes.of(request, desired, pace, peer.uid)
            # Mistakes are told at once, also where the project is busy.
            found = yield from self._plans.of(wish, pace)
            owners = self._plans.owners(wish, found).values()
            self._wishes.refuse_what_is_beyond(wish)
            under_way = next(reversed(self._runs.get(wish.project, [])), None)
            if under_way is not None and self._is_the_same(under_way, wish):
                self._join(under_way, request, client)
                return
            run = self._queued(wish)
            run.stops = stops  # what is stopped before its turn stays stopped: that is the later word (I3)
            self._join(run, request, client)

            def steps() -> Steps:
                # As it is now, not as it was when this was asked: what went before may have changed it.
                run.wish = yield from self._wishes.of(request, desired, pace, peer.uid)
                result = yield from self._run(run)
                return result.document(request)

            # Those that lose something to it get a new revision, which may not come in the midst of a run of theirs.
            self._work.in_turn([wish.project, *owners], wish.definitions, lambda: self._turn(run, steps()), run)

        self._work.run(first, client)

    def resume(self) -> None:
        """Goes on with the runs that an agent before us began and did not finish."""
        for project, body in self._supervisor.store.runs().items():
            current = self._projects.current(project)
            if current is None or current.revision != body.get("revision"):
                self._supervisor.store.set_run(project, None)
                continue
            wish = wishes.from_store(current, body)
            self._supervisor.diagnose(
                f"project {project}: goes on with revision {current.revision}, which was being applied"
            )
            run = self._queued(wish)
            run.unproven = current.changed
            run.owners = body.get("owners", {})
            run.holds = wish.holds
            back = body.get("stage") == "back"
            steps = self._go_on(run, back)
            projects = [project, *run.owners.values()]
            self._work.in_turn(projects, wish.definitions, lambda run=run, steps=steps: self._turn(run, steps), run)  # type: ignore[misc]

    def abandon(self, why: str) -> None:
        """The agent ends, or becomes another: whoever waits is told what becomes of the change."""
        for runs in self._runs.values():
            for run in runs:
                run.finish(messages.error(why))

    def _is_the_same(self, run: Run, wish: Wish) -> bool:
        """Whether what the run leads to is what is wished: a stop since it was asked for is its later word, and not the wish's."""
        if not run.wish.same(wish) or wish.state not in _JOINED or run.left_alone:
            return False
        stops, there = run.stops, self._supervisor.instances.values()
        return stops is None or not any(walks.was_stopped_since(one, stops) for one in there)

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
        found = yield from self._plans.of(wish, pace)
        everything = self._supervisor.instances
        begun = [views.row(self._supervisor, one, everything.get(one.name)) for one in found.rows]
        client.finish(self._begun(wish, found, begun, in_progress=True).document(request))

    def _begun(self, wish: Wish, found: Plan, made: list[rows.Row], in_progress: bool = False) -> Result:
        """What is going to be said of a run, as far as that is known before its end."""
        current = self._projects.current(wish.project)
        number, label = (current.revision, current.label) if current is not None else (0, None)
        if self._plans.is_new(wish, found):
            number, label = number + 1, wish.label
        return Result(wish, found, made, number, label, current, in_progress)

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
        said = result.said()
        self._supervisor.diagnose(f"project {run.wish.project}: " + (said or "all is as it was to be"))
        return result.document(None)

    def _gone_on_back(self, run: Run) -> Steps:
        run.stops = stops = walks.stops_of(self._supervisor)
        found = yield from self._plans.of(run.wish, Pace(self._supervisor.loop))
        found = replace(found, rows=tuple(map(self._plans.pinned_live, found.rows)))
        result = yield from self._walked(run, run.wish, found, stops)
        yield from self._give_back(run, result)
        self._conclude(run.wish.project, result)
        return result

    def _run(self, run: Run) -> Steps:
        wish, pace = run.wish, Pace(self._supervisor.loop)
        run.stops = stops = walks.stops_of(self._supervisor) if run.stops is None else run.stops
        run.holds = self._supervisor.holds.targets() if run.holds is None else run.holds
        before = self._projects.current(wish.project)
        found = yield from self._plans.of(wish, pace)
        run.left_alone = any(row.reason == walks.STOPPED_MEANWHILE for row in found.rows)
        self._wishes.refuse_what_failed(wish)
        run.owners.update(self._plans.owners(wish, found))
        changes, resting = found.changed, self._plans.resting(found) & self._never_stopped(run)
        if self._plans.is_new(wish, found):
            changed = {row.process for row in found.rows if row.action is not Action.NONE}
            facts = (changed, places.taken(found.definitions), wish.label, wish.uid, wish.origin)
            made = self._projects.made(wish.project, found.definitions, *facts)
            reached("run.before_kept")
            self._projects.keep(made, wishes.to_store(made, wish, found, run.owners, resting, run.holds))
            reached("run.kept")
            changes = True
        elif found.changed:
            current = self._projects.current(wish.project)
            if current is not None:
                self._supervisor.store.set_run(
                    wish.project, wishes.to_store(current, wish, found, run.owners, resting, run.holds)
                )
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
                self._conclude(wish.project, result, _has_proven(result, current))
        if not result.reverted:
            self._projects.disown(wish.project, self._taken(run))
        if changes:
            self._supervisor.ledger.checkpoint()
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
        result = Result(wish, found, made, *((current.revision, current.label) if current is not None else (0, None)))
        result.culprit, result.timed_out = walk.culprit, walk.timed_out
        return result

    def _conclude(self, project: str, result: Result, proven: bool = True) -> None:
        """The end of a run: its revision has come up (unless it has not `proven` that), or it has failed and stays as it is."""
        failed = result.failed()
        current = self._projects.current(project)
        if current is None or (failed and (current.failure is None or result.culprit is None)):
            self._close(project)
        elif failed:
            self._close(project, (result.why(), time.time()))
        else:
            self._close(project, (None, None) if proven else None)

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

    def _after_failure(self, run: Run, result: Result, failed: Revision) -> Steps:
        """The release did not come up: what it has changed goes back, or stays half done."""
        good = self._projects.good_before(failed.project, failed.revision, brought_back=True)
        remark = self._obstacle(run.wish, result, failed, good)
        if good is not None and remark is None:
            return (yield from self._back(run, result, failed, good))
        gives_back = good is None and bool(run.owners) and _reverts(run.wish, result)
        if gives_back:
            back = Result(run.wish, replace(result.found, rows=()), [], failed.revision, failed.label)
            yield from self._give_back(run, back)
            result.give_back(back, ", ".join(sorted(set(run.owners.values()))))
        self._close(failed.project, (result.why(), time.time()))
        if gives_back:
            for name, owner in run.owners.items():
                self._projects.disown(owner, [name])
            result.revision = self._projects.of(failed.project)[failed.project].revision
        result.remarks += [remark] if remark else []
        return result

    def _obstacle(self, wish: Wish, result: Result, failed: Revision, good: Revision | None) -> str | None:
        """Why nothing goes back; "" where there is nothing to be said of that, None where nothing is in the way."""
        if not _reverts(wish, result):
            if result.culprit is None or wish.state in (State.STOPPED, State.ABSENT):
                return ""
            return f"left half done (on_failure is pause); apply again to go on, or pm3 rollback {failed.project}"
        if good is None:
            return "there is no earlier revision to go back to" if failed.revision > 1 else ""
        gone = places.missing(places.moved(good.places))
        if gone:
            return f"cannot go back to revision {good.revision}: {gone[0]} is not there any more"
        return _IN_PLACE if wishes.brought_back(good) == failed.definitions else None

    def _back(self, run: Run, result: Result, failed: Revision, good: Revision) -> Steps:
        everything = self._supervisor.instances.values()
        others = {one.process: one.project for one in everything if one.project not in (None, failed.project)}
        others.update(run.owners)
        then = wishes.brought_back(good)
        definitions_then = {name: one for name, one in then.items() if name not in others}
        result.remarks += [
            f"{name} is of project {others[name]} by now and stays there" for name in then if name in others
        ]
        before = failed.definitions
        changed = {*self._projects.changed_since(failed.project, good.revision), *before} - set(others)
        touched = {
            name: one for name, one in definitions_then.items() if name in failed.changed or one != before.get(name)
        }
        origin = self._projects.root(good)
        wish = Wish(
            failed.project,
            touched,
            prune=False,
            gone=tuple(name for name in changed if name not in definitions_then),
            once={"soak": 0},  # it was good before, and whoever waits has heard the worst
            path=run.wish.path,
            label=good.label,
            origin=origin,
            holds=run.holds,
            resting=self._never_stopped(run),
        )
        stops = walks.stops_of(self._supervisor)
        try:
            found = yield from self._plans.of(wish, Pace(self._supervisor.loop))
        except DefinitionError as error:
            self._close(failed.project, (result.why(), time.time()))
            result.remarks.append(f"could not go back to revision {origin}: {error}")
            return result
        kept = tuple(self._plans.pinned_live(row) for row in found.rows)
        found = replace(found, rows=kept, definitions=definitions_then)
        back_again = {row.process for row in found.rows if row.action is not Action.NONE}
        facts = (back_again, places.taken(definitions_then), good.label, None, origin)
        made = self._projects.made(failed.project, definitions_then, *facts)
        reached("back.before_judged")
        self._projects.judge(failed.project, result.why(), time.time())
        reached("back.judged")
        self._projects.keep(
            made,
            wishes.to_store(made, wish, found, run.owners, self._plans.resting(found), run.holds or (), stage="back"),
        )
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

    def _taken(self, run: Run) -> set[str]:
        """What it has taken over, and nothing of which is its former owner's any more."""
        left = {(one.process, one.project) for one in self._supervisor.instances.values()}
        return {name for name, owner in run.owners.items() if (name, owner) not in left}

    def _never_stopped(self, run: Run) -> frozenset[str]:
        """What nobody has stopped since the run began, be it under another agent."""
        now, before, resting = walks.stops_of(self._supervisor), run.stops or {}, run.wish.resting
        never = {name for name, stops in now.items() if stops == before.get(name, 0)}
        return frozenset(never if resting is None else never.intersection(resting))

    def _give_back(self, run: Run, back: Result) -> Steps:
        """What the release has taken over from other projects is theirs again, and runs as they have it."""
        for owner in sorted(set(run.owners.values())):
            names = {name for name, project in run.owners.items() if project == owner}
            theirs = {name: one for name, one in self._projects.definitions(owner).items() if name in names}
            resting = self._never_stopped(run)
            wish = Wish(
                owner, theirs, prune=False, take_over=True, path=run.wish.path, holds=run.holds, resting=resting
            )
            stops = walks.stops_of(self._supervisor)
            found = yield from self._plans.of(wish, Pace(self._supervisor.loop))
            given = yield from self._walked(run, wish, found, stops)
            back.rows += given.rows
            back.found = replace(back.found, rows=(*back.found.rows, *given.found.rows))
            back.culprit, back.timed_out = back.culprit or given.culprit, back.timed_out or given.timed_out


def _reverts(wish: Wish, result: Result) -> bool:
    """Whether what failed is to be taken back: the culprit says so, where there is one."""
    if result.culprit is None or wish.state in (State.STOPPED, State.ABSENT):
        return False
    return updates.of(result.culprit.definition.update, wish.once).on_failure != updates.PAUSE


def _has_proven(result: Result, revision: Revision) -> bool:
    """Whether the run has brought up all that the revision changed, so that it is known to be good. What is not to be started is not
    waited for."""
    wish = result.wish
    reached = set(wish.definitions if wish.only is None else wish.only)
    if wish.state in (State.STOPPED, State.ABSENT):
        reached = set()
    left_alone = {row.process for row in result.found.rows if row.held or row.reason == walks.STOPPED_MEANWHILE}
    return {name for name in revision.changed if name in revision.definitions} <= reached - left_alone
