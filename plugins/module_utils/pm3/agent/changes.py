# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pm3's own changes: start, stop, restart, reload, signal, flush, delete, save, resurrect. One method each; its answer is pm3's sentence.

What is started here without belonging to a project is ad hoc: it survives the agent's death, `kill` forgets it, and only `save` brings
it over a reboot (spec: pm3.md, section 10).
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Callable

from ..model import kinds, loading, machine, rows
from ..model.definition import Definition
from ..model.life import Phase
from ..model.plan import Action, plan_in_parts
from ..model.problems import Unfit
from ..wire import messages
from . import accounts, dump, places, selection, walks
from .apply import Apply
from .instance import Instance, is_up
from .points import reached
from .projects import Projects, owner
from .server import Client, Peer
from .supervisor import Supervisor
from .tasks import Pace, Steps, paced
from .work import Refused, Work

Document = dict[str, Any]


class Changes:
    def __init__(self, supervisor: Supervisor, projects: Projects, work: Work, data_dir: str) -> None:
        self._supervisor = supervisor
        self._projects = projects
        self._selection = selection.Selection(supervisor, projects)
        self._work = work
        self._dump = os.path.join(data_dir, dump.NAME)

    def start(self, request: Document, peer: Peer, client: Client) -> None:
        running = {one.process for one in self._supervisor.instances.values()}
        pace = Pace(self._supervisor.loop)

        def first() -> Steps:
            yield pace  # its text was large, if it is much
            parts = loading.load_in_parts(request["configs"], None, request["env"], elsewhere=running)
            configs = yield from paced(pace, parts)
            meant, only = selection.chosen(configs, request["names"], cpus())
            self._start(request, peer, client, configs, meant, only)

        self._work.run(first, client)

    def _start(
        self,
        request: Document,
        peer: Peer,
        client: Client,
        configs: Mapping[str, Definition],
        meant: Sequence[str],
        only: Mapping[str, set[str]],
    ) -> None:
        """`only`: of these processes, the instances that are meant."""
        chosen = selection.with_dependencies(configs, meant)
        project = self._owner(chosen)
        pace = Pace(self._supervisor.loop)

        def steps() -> Steps:
            if self._owner(chosen) != project:  # what went before it has changed that, so another turn is due
                self._start(request, peer, client, configs, meant, only)
                return
            stops = walks.stops_of(self._supervisor)
            # What runs and has not passed its checks in time is left to them (spec: pm3.md, section 3.3); an apply is not so patient.
            slow = {name for name, one in self._supervisor.instances.items() if one.life.phase is Phase.UNHEALTHY}
            actual = [replace(one, up=one.up or one.name in slow) for one in self._supervisor.actual()]
            parts = plan_in_parts(
                project,
                {name: configs[name] for name in configs if name in chosen},
                actual,
                cpus=cpus(),
                current=self._projects.definitions(project) if project else None,
                prune=False,
                demanded=chosen if request["names"] else (),
                again=meant,
            )
            found = yield from paced(pace, parts)
            if only:
                rows_meant = tuple(
                    row for row in found.rows if row.process not in only or row.name in only[row.process]
                )
                found = replace(found, rows=rows_meant)
            revision = None
            if project is not None and found.definitions != self._projects.definitions(project):
                changed = {row.process for row in found.rows if row.action is not Action.NONE}
                facts = (found.definitions, changed, places.taken(found.definitions), None, peer.uid)
                revision = self._projects.made(project, *facts)
                self._projects.keep(revision)
            before = set(self._supervisor.instances)
            walk = Apply(
                self._supervisor,
                found,
                project,
                request["path"],
                stops,
                patient=request["wait"],
                on_row=progress(request, client),
            )
            made = yield from walk.steps()
            self._forget_unprepared(row["name"] for row in made if row["name"] not in before)
            failed = _failures(made)
            if revision is not None and not failed:
                self._projects.judge(revision.project, None)
            elif revision is not None and walk.culprit is not None:  # told, and not taken back
                self._projects.judge(revision.project, failed, time.time())
            client.finish(_started(made, {row.name for row in found.rows if row.rests}))

        self._work.in_turn([project], chosen, steps, client)

    def _owner(self, processes: Sequence[str]) -> str | None:
        return owner(self._supervisor.instances.values(), processes)

    def _forget_unprepared(self, names: Iterable[str]) -> None:
        """What is new and ad hoc, and whose pre_start failed, never came to be (pinned; spec: pm3.md, section 3.3)."""
        for name in names:
            one = self._supervisor.instances.get(name)
            if one is not None and one.project is None and walks.rests(one) and _is_unprepared(one):
                self._supervisor.remove(one)

    def stop(self, request: Document, peer: Peer, client: Client) -> None:
        targets = self._selection.with_dependents(request["names"])
        running = [one for one in targets if not walks.rests(one)]
        self._unwant(targets, request, peer)

        def steps() -> Steps:
            resisting = yield from self._stopped(targets)
            client.finish(resisting or messages.success("stopped: " + _listed(running)))

        self._work.run(steps, client)

    def delete(self, request: Document, peer: Peer, client: Client) -> None:
        """Stops at once, and forgets when it is its turn: what is under way may still count on it. What depends on it is stopped, too."""
        if not request["names"]:
            raise Refused("delete needs the names of what is to be forgotten")
        leaving = self._selection.named(request["names"])
        targets = self._selection.with_dependents(request["names"])
        self._unwant(targets, request, peer)

        def steps() -> Steps:
            resisting = yield from self._stopped(targets)
            if resisting:
                client.finish(resisting)
            else:
                self._in_turn_of(leaving, forget, client)

        def forget() -> Steps:
            for one in leaving:
                # One that somebody has started since stays: the later word counts.
                if walks.rests(one) and not one.wanted and self._supervisor.instances.get(one.name) is one:
                    self._supervisor.remove(one)
                    reached("delete.removed")
            client.finish(messages.success("deleted: " + _listed(leaving)))
            yield from ()

        self._work.run(steps, client)

    def _unwant(self, targets: Sequence[Instance], request: Document, peer: Peer) -> None:
        who = accounts.name_of(peer.uid) or f"uid {peer.uid}"
        self._projects.stopped(one.name for one in targets)
        for one in targets:
            facts = {"stops": one.stops + 1, "stopper": f"pm3 {request['type']} by {who}"}
            self._supervisor.change(one, wanted=False, **facts)
        reached("stop.unwanted")

    def _stopped(self, targets: Sequence[Instance]) -> Steps:
        """Stops them, at once and in nobody's turn: a stop is obeyed whatever is under way. Gives an error reply, or None."""
        # What takes over from one of them, or leaves for one, is that instance, too (I2).
        meant = {(one.process, one.number) for one in targets}
        copies = [one for one in self._supervisor.beside if (one.process, one.number) in meant]
        for one in copies:
            one.wanted = False
        # One that somebody has started since is left to run: the later word counts.
        resisting = yield from walks.stop_in_order(self._supervisor, [*targets, *copies], lambda one: not one.wanted)
        if resisting:
            return messages.error(f"failed to stop '{_listed(resisting)}': it does not react to SIGKILL")
        return None

    def restart(self, request: Document, _peer: Peer, client: Client) -> None:
        stops = walks.stops_of(self._supervisor)

        def steps() -> Steps:
            meant, targets = selection.ordered(self._to_restart(request["names"])), []
            pace = Pace(self._supervisor.loop)
            for one in meant:
                if pace.over():
                    yield pace
                if not walks.was_stopped_since(one, stops):
                    self._supervisor.change(one, wanted=True)
                    targets.append(one)
            if meant and not targets:
                raise Refused("failed to restart " + _reasons(meant))
            yield from walks.stop_in_order(self._supervisor, targets)
            reached("restart.stopped")
            yield from walks.start_in_order(self._supervisor, targets, machine.Restart())
            failed = [one for one in targets if one.wanted and walks.has_failed(one)]
            if failed:
                client.finish(messages.error("failed to restart " + _reasons(failed)))
            else:
                client.finish(messages.success("restarted: " + _listed(targets)))

        self._in_turn_of(self._to_restart(request["names"]), steps, client)

    def _to_restart(self, names: Sequence[str] | None) -> set[Instance]:
        """What is named, and what depends on it; but a dependent that was stopped on purpose stays so (I3)."""
        named = self._selection.meant(names)
        return {*named, *(one for one in walks.with_dependents(self._supervisor, named) if one.wanted)}

    def reload(self, request: Document, _peer: Peer, client: Client) -> None:
        from .reload import Reload

        stops = walks.stops_of(self._supervisor)

        def steps() -> Steps:
            targets = self._selection.named(request["names"])
            reload = Reload(self._supervisor, targets, request["path"], stops)
            yield from reload.steps()
            failed = ", ".join(sorted(reload.failed))
            why = "; ".join(f"{name} {reload.failed[name]}" for name in sorted(reload.failed))
            if reload.failed and not reload.done:
                client.finish(messages.error(f"reload failed: {failed} ({why})"))
            else:
                done = "reloaded: " + _listed(one for one in targets if one.name in reload.done)
                client.finish(
                    {**messages.success(done + f" (failed: {failed})" * bool(failed)), "failed": reload.failed}
                )

        self._in_turn_of(self._selection.meant(request["names"]), steps, client)

    def _in_turn_of(self, targets: Collection[Instance], steps: Callable[[], Steps], client: Client) -> None:
        self._work.in_turn({one.project for one in targets}, {one.process for one in targets}, steps, client)

    def signal(self, request: Document, _peer: Peer, client: Client) -> None:
        name, said = request["name"], request["signal"]
        try:
            sent = kinds.SIGNAL.check(said)
        except Unfit:
            raise Refused(f"invalid signal: {said}") from None
        meant = self._selection.one_or_more(name)
        silent = [one for one in meant if not self._supervisor.tell(one, sent)]
        if silent:
            told = [one for one in meant if one not in silent]
            parts = [f"process '{one.name}' is not running" for one in silent]
            raise Refused("; ".join(parts + [f"sent {said} to '{_listed(told)}'"] * bool(told)))
        client.finish(messages.success(f"sent {said} to '{name}'"))

    def flush(self, request: Document, _peer: Peer, client: Client) -> None:
        targets = self._selection.named(request["names"])

        def done(problems: list[str]) -> None:
            said = "; ".join(problems)
            client.finish(messages.error(said) if said else messages.success("flushed logs: " + _listed(targets)))

        self._supervisor.empty_logs(targets, done)

    def save(self, _request: Document, _peer: Peer, client: Client) -> None:
        try:
            count = dump.write(self._dump, selection.ordered(self._supervisor.instances.values()))
        except OSError as error:
            raise Refused(f"{self._dump} cannot be written: {error.strerror}") from None
        client.finish(messages.success(f"saved {count} process(es) to dump file"))

    def resurrect(self, request: Document, _peer: Peer, client: Client) -> None:
        problems: list[str] = []

        def tell(problem: str) -> None:
            problems.append(problem)
            self._supervisor.diagnose(problem)

        saved = dump.read(self._dump, tell)
        if saved is None:
            raise Refused("no dump file found")
        if problems and not saved:
            raise Refused("; ".join(problems))

        def steps() -> Steps:
            left = [one.name for one in saved if self._is_applied(one)]
            found = self.restored((one for one in saved if one.name not in left), request["path"])
            yield from walks.start_in_order(self._supervisor, found, machine.Start())
            failed = [one for one in found if walks.has_failed(one)]
            done = "resurrected: " + _listed(found) if found else "all processes already running"
            done += f"; left to apply: {', '.join(left)}" * bool(left)
            if failed:
                client.finish(messages.error("; ".join(["failed to resurrect " + _reasons(failed), *problems])))
            elif problems:  # the others are up, but that is not all that was saved (W47)
                client.finish(messages.error("; ".join([*problems, done])))
            else:
                client.finish(messages.success(done))

        self._work.in_turn([None], {one.process for one in saved}, steps, client)

    def _is_applied(self, saved: Instance) -> bool:
        """Whether it is for its project to say that there is to be such an instance, of which the table has none."""
        revisions = self._projects.of(None)
        return saved.name not in self._supervisor.instances and (
            saved.project in revisions or any(saved.process in one.definitions for one in revisions.values())
        )

    def restored(self, saved: Iterable[Instance], path: str | None = None) -> list[Instance]:
        """Puts saved instances into the table where their names are free, as ad hoc. Gives those that are now to be started: none
        that was saved as stopped (W48), and of what is in the table already, what rests though it was running when it was saved; but
        no job that has done its work since."""
        found = []
        for one in saved:
            present = self._supervisor.instances.get(one.name)
            if present is None:
                one.project = None
                present = self._supervisor.add(one)
            if one.wanted and walks.rests(present) and not is_up(present):
                self._supervisor.change(present, wanted=True, path=path or present.path)
                found.append(present)
        return selection.ordered(found)

    def dumped(self) -> list[Instance]:
        """What a fresh agent starts again, beside what its store holds: what was ad hoc. Of what was applied the store knows what has
        become of it since (promise 1)."""
        saved = dump.read(self._dump, self._supervisor.diagnose) or []
        there = self._supervisor.instances
        return self.restored(
            one for one in saved if one.name not in there and one.project is None and not self._is_applied(one)
        )


def cpus() -> int:
    return len(os.sched_getaffinity(0))


def progress(request: Document, client: Client) -> Callable[[rows.Row], None]:
    """What tells the client of each row as it is made, if it wants that."""
    if not request["progress"]:
        return lambda row: None
    return lambda row: client.send({"type": "row", **row})


def _is_unprepared(one: Instance) -> bool:
    return one.life.end is not None and one.life.end.message.startswith("hook failed: pre_start")


def _listed(instances: Iterable[Instance]) -> str:
    return ", ".join(one.name for one in instances)


def _reasons(failed: Iterable[Instance]) -> str:
    return "; ".join(f"'{one.name}': {walks.why_failed(one)}" for one in failed)


def _failures(made: Iterable[rows.Row]) -> str:
    return "; ".join(f"{row['name']} {row['reason']}" for row in made if row["action"] == Action.FAILED.value)


def _whys(failed: Sequence[rows.Row]) -> list[str]:
    """Why each has failed; first those of which pm3 says no more than that they exited."""
    immediate = [row for row in failed if row["reason"].startswith(("exited with code", "was ended by signal"))]
    others = [row for row in failed if row not in immediate]
    listed = "; ".join(f"{row['name']} {row['reason']}" for row in immediate)
    told = [f"{row['name']}: {row['reason']}" if len(failed) > 1 else str(row["reason"]) for row in others]
    return [f"process exited immediately ({listed})"] * bool(immediate) + told


def _started(made: Sequence[rows.Row], resting: Collection[str]) -> Document:
    """pm3's answer to `start` (spec: pm3.md, section 3.3). `resting` are new and were not to be started."""
    failed = [row for row in made if row["action"] == Action.FAILED.value]
    if failed:
        names = ", ".join(row["name"] for row in failed)
        return messages.error(f"failed to start '{names}': " + "; ".join(_whys(failed)))
    started = [
        row["name"]
        for row in made
        if row["changed"]
        and row["action"] != Action.REMOVED.value
        and row["name"] not in resting
        # A one-shot that has ended by now was started all the same.
        and (row["action"] != Action.UPDATED.value or row["status"] != "stopped")
    ]
    return messages.success("started: " + ", ".join(started) if started else "everything is already running")
