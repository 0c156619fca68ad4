# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What clients ask for, and what they are told. Each request type is one method; reads answer at once, changes are tasks.

Changes of one project run one after the other; nobody waits for another project's. A client that leaves ends nothing but its own
listening: what it began is carried through.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Callable

from ..model import definition as definitions
from ..model import difference, graph, loading, machine, rows
from ..model.definition import Definition
from ..model.plan import Action, Plan, State, plan
from ..model.problems import DefinitionError, Problem
from ..wire import messages
from . import views, walks
from .instance import Instance
from .logs import Follower, Tail
from .server import Client, Peer
from .store import Revision
from .supervisor import Supervisor
from .tasks import Steps, Task, Turns

Document = dict[str, Any]
_MOST_LINES = 10_000  # lines: pm3's cap of `log`


class Requests:
    """Answers requests. `hello` gives the facts about this agent; `shutdown` ends it after all instances were stopped."""

    def __init__(self, supervisor: Supervisor, hello: Callable[[], Document], shutdown: Callable[[], None]) -> None:
        self._supervisor = supervisor
        self._hello = hello
        self._shutdown = shutdown
        self.projects: dict[str, Revision] = supervisor.store.projects()
        self._turns = Turns()
        self._tasks: set[Task] = set()
        self._coming_up: set[str | None] = set()  # projects of which `come_up` still starts what has to wait
        self._do: dict[str, Callable[[Document, Peer, Client], None]] = {
            "hello": lambda request, peer, client: client.finish(self._hello()),
            "apply": self._apply,
            "plan": self._plan,
            "snapshot": self._snapshot,
            "start": self._start,
            "stop": self._stop,
            "restart": self._restart,
            "list": self._list,
            "info": self._info,
            "log": self._log,
            "kill": self._kill,
        }

    def handle(self, document: Document, peer: Peer, client: Client) -> None:
        """One request. Raises `messages.Malformed`."""
        request = messages.check(document)
        self._supervisor.flush()  # nobody is told what a crash could still undo
        try:
            self._do[request["type"]](request, peer, client)
        except DefinitionError as error:
            client.finish(messages.error(str(error), error.problems))
        except Refused as error:
            client.finish(messages.error(str(error)))

    # Reading

    def _list(self, _request: Document, _peer: Peer, client: Client) -> None:
        now = self._supervisor.loop.time()
        shown = [views.process(one, now) for one in views.ordered(self._supervisor.instances.values())]
        client.finish({"type": "process_list", "processes": shown})

    def _info(self, request: Document, _peer: Peer, client: Client) -> None:
        details = [views.detail(self._supervisor, one) for one in self._named([request["name"]])]
        several = {"infos": details} if len(details) > 1 else {}
        client.finish({"type": "process_detail", "info": details[0], **several})

    def _snapshot(self, request: Document, _peer: Peer, client: Client) -> None:
        found = self._selected(request["project"], request["names"])

        def is_there(one: Instance) -> bool:
            return self._supervisor.instances.get(one.name) is one

        def answer(_waited: Any = None) -> None:
            shown = [one for one in found if is_there(one)]
            projects = {name: one for name, one in self.projects.items() if request["project"] in (None, name)}
            client.finish(
                {
                    "type": "snapshot",
                    "agent": self._hello(),
                    "instances": [views.snapshot(self._supervisor, one, request["log_lines"]) for one in shown],
                    "definitions": views.definitions(
                        self._supervisor, {name: one.definitions for name, one in projects.items()}
                    ),
                    "revisions": {
                        name: [views.revision(one) for one in self._supervisor.store.revisions(name)]
                        for name in projects
                    },
                }
            )

        if request["wait_for"] is None:
            answer()
        else:
            wait = walks.Until(
                self._supervisor,
                found,
                lambda one: views.is_online(one) or not is_there(one),
                float(request["timeout"]),
            )
            client.on_gone = wait.cancel
            wait.begin(answer)

    def _selected(self, project: str | None, names: Sequence[str] | None) -> list[Instance]:
        found = self._named(names) if names else list(self._supervisor.instances.values())
        return views.ordered(one for one in found if project is None or one.project == project)

    def _named(self, names: Iterable[str]) -> list[Instance]:
        """The instances that names mean: an instance, else a process, else a group. Raises `Refused` for a name that is none."""
        everything = self._supervisor.instances
        found: dict[str, Instance] = {}
        for name in names:
            if name in everything:
                matches = [everything[name]]
            else:
                matches = [one for one in everything.values() if one.process == name]
                matches = matches or [one for one in everything.values() if one.definition.group == name]
            if not matches:
                raise Refused(f"process or group not found: {name}")
            found.update((one.name, one) for one in matches)
        return views.ordered(found.values())

    def _log(self, request: Document, _peer: Peer, client: Client) -> None:
        found = (
            self._named([request["name"]])
            if request["name"] is not None
            else views.ordered(self._supervisor.instances.values())
        )
        files = [
            (one.name, stream, path)
            for one in found
            for stream, path in zip(("out", "err"), self._supervisor.logs(one.name))
        ]
        named = len(found) > 1

        def emit(name: str, line: str) -> bool:
            client.send(
                {"type": "log_line", "name": name, "line": line} if named else {"type": "log_line", "line": line}
            )
            return not client.blocked

        lines = min(request["lines"], _MOST_LINES)
        reader: Tail | Follower
        if request["follow"]:
            reader = Follower(self._supervisor.loop, files, emit, lines)
        else:
            reader = Tail(self._supervisor.loop, files, lines, emit, client.end)
        client.on_gone, client.on_drained = reader.close, reader.resume

    # Applying

    def _plan(self, request: Document, _peer: Peer, client: Client) -> None:
        found = self._planned(request)
        predicted = [
            rows.row(change, _predicted(change.action, found.state, self._status(change.name))) for change in found.rows
        ]
        client.finish(self._result(request, found, predicted, self._revision(request["project"], found)))

    def _apply(self, request: Document, peer: Peer, client: Client) -> None:
        self._planned(request)  # mistakes are told at once, also where the project is busy
        project = str(request["project"])

        def steps() -> Steps:
            found = self._planned(request)
            changed = found.definitions != self._current(project)
            walk = walks.Apply(self._supervisor, found, project, request["path"], on_row=_progress(request, client))
            if not request["wait"]:
                begun = [rows.row(one, self._status(one.name)) for one in found.rows]
                client.finish(self._result(request, found, begun, self._revision(project, found), in_progress=True))
            number = self._keep(project, found, request["label"], peer) if changed else self._revision(project)
            made = yield from walk.steps()
            if found.changed or changed:
                self._supervisor.checkpoint()
            client.finish(self._result(request, found, made, number))

        self._in_turn([project], request["definitions"], steps, client)

    def _planned(self, request: Document) -> Plan:
        project, state = request["project"], State(request["state"])
        tables = {name: dict(table) for name, table in request["definitions"].items()}
        for name, secrets in request["secrets"].items():
            if name in tables:
                tables[name]["secrets"] = {**(tables[name].get("secrets") or {}), **secrets}
        if not tables and state is not State.ABSENT:
            raise DefinitionError([Problem("nothing is defined; to remove a project, ask for state absent")])
        try:
            desired = loading.load(tables, request["base"], request["overlay"])
        except DefinitionError as error:
            raise error.located(request["file"]) if request["file"] else error from None
        return plan(
            project,
            desired,
            self._supervisor.actual(),
            cpus=_cpus(),
            current=self._current(project),
            state=state,
            prune=request["prune"],
            only=request["only"],
        )

    def _current(self, project: str) -> Mapping[str, Definition]:
        return self.projects[project].definitions if project in self.projects else {}

    def _status(self, name: str) -> str:
        return self._supervisor.instances[name].life.status.value if name in self._supervisor.instances else "absent"

    def _revision(self, project: str, after: Plan | None = None) -> int:
        """The project's current revision, or the one that it will have after `after`."""
        number = self.projects[project].revision if project in self.projects else 0
        return number + (1 if after is not None and after.definitions != self._current(project) else 0)

    def _keep(self, project: str, found: Plan, label: str | None, peer: Peer) -> int:
        """Makes the plan's definitions the project's new revision."""
        changed = sorted({row.process for row in found.rows if row.action is not Action.NONE})
        made = Revision(
            project, self._revision(project) + 1, label, time.time(), peer.uid, tuple(changed), found.definitions
        )
        self._supervisor.store.add_revision(made)
        self.projects[project] = made
        return made.revision

    def _result(
        self, request: Document, found: Plan, made: list[rows.Row], revision: int, in_progress: bool = False
    ) -> Document:
        failed = [row for row in made if row["action"] == Action.FAILED.value]
        return {
            "type": "result",
            "ok": not failed,
            "message": "; ".join(f"{row['name']} {row['reason']}" for row in failed) or None,
            "changed": any(row["changed"] for row in made),
            "project": request["project"],
            "revision": revision or None,
            "previous_revision": revision - 1 if revision > 1 else None,
            "reverted": False,
            "timed_out": False,
            "in_progress": in_progress,
            "instances": made,
            "summary": rows.summary(made),
            "diff": difference.of(request["project"], found),
            "report": rows.report(made),
            "warnings": definitions.cautions(request["definitions"]),
        }

    # pm3's own changes

    def _start(self, request: Document, _peer: Peer, client: Client) -> None:
        running = {one.process for one in self._supervisor.instances.values()}
        configs = loading.load(request["configs"], None, request["env"], elsewhere=running)
        chosen = _with_dependencies(configs, _chosen(configs, request["names"]))
        project = self._owner(chosen)

        def steps() -> Steps:
            if self._owner(chosen) != project:  # what went before it has changed that, so another turn is due
                self._start(request, _peer, client)
                return
            found = plan(
                project,
                {name: configs[name] for name in configs if name in chosen},
                self._supervisor.actual(),
                cpus=_cpus(),
                current=self._current(project) if project else None,
                prune=False,
            )
            if project is not None and found.definitions != self._current(project):
                self._keep(project, found, None, _peer)
            walk = walks.Apply(
                self._supervisor,
                found,
                project,
                request["path"],
                patient=request["wait"],
                on_row=_progress(request, client),
            )
            made = yield from walk.steps()
            client.finish(_started(made))

        self._in_turn([project], chosen, steps, client)

    def _owner(self, processes: Iterable[str]) -> str | None:
        """The project that all of them belong to, as far as they exist; None where there is no such one."""
        owners = {one.project for one in self._supervisor.instances.values() if one.process in processes}
        return owners.pop() if len(owners) == 1 else None

    def _stop(self, request: Document, _peer: Peer, client: Client) -> None:
        targets = self._targets(request["names"])
        running = [one for one in targets if not walks.rests(one)]
        for one in targets:
            self._supervisor.change(one, wanted=False, stops=one.stops + 1)

        def steps() -> Steps:
            resisting = yield from walks.stop_in_order(self._supervisor, targets)
            if resisting:
                names = ", ".join(one.name for one in resisting)
                client.finish(messages.error(f"failed to stop '{names}': it does not react to SIGKILL"))
            else:
                client.finish(messages.success("stopped: " + ", ".join(one.name for one in running)))

        self._run(steps, client)

    def _restart(self, request: Document, _peer: Peer, client: Client) -> None:
        def steps() -> Steps:
            targets = self._to_restart(request["names"])
            for one in targets:
                self._supervisor.change(one, wanted=True)
            yield from walks.stop_in_order(self._supervisor, targets)
            yield from walks.start_in_order(self._supervisor, targets, machine.Restart())
            failed = [one for one in targets if one.wanted and walks.has_failed(one)]
            if failed:
                why = "; ".join(f"'{one.name}': {walks.why_failed(one)}" for one in failed)
                client.finish(messages.error(f"failed to restart {why}"))
            else:
                client.finish(messages.success("restarted: " + ", ".join(one.name for one in targets)))

        targets = self._to_restart(request["names"])
        self._in_turn({one.project for one in targets}, {one.process for one in targets}, steps, client)

    def _to_restart(self, names: Sequence[str] | None) -> list[Instance]:
        """What is named, and what depends on it; but a dependent that was stopped on purpose stays so (I3)."""
        named = self._named(names) if names else views.ordered(self._supervisor.instances.values())
        dependents = [one for one in walks.with_dependents(self._supervisor, named) if one.wanted]
        return views.ordered({*named, *dependents})

    def _targets(self, names: Sequence[str] | None) -> list[Instance]:
        if not names:
            return views.ordered(self._supervisor.instances.values())
        return views.ordered(walks.with_dependents(self._supervisor, self._named(names)))

    def _kill(self, _request: Document, _peer: Peer, client: Client) -> None:
        client.finish(messages.success("daemon shutting down"))
        self._supervisor.loop.soon(self._shutdown)

    # Turns

    def come_up(self, instances: Iterable[Instance], then: Callable[[], None]) -> None:
        """Starts what is meant to run, in order: after a boot or an orderly end, or where a crash cut a change off."""
        wanted = list(instances)

        def over(task: Task) -> None:
            self._tasks.discard(task)
            then()
            task.value()

        self._coming_up = {one.project for one in wanted}
        task = Task(
            walks.start_in_order(self._supervisor, wanted, machine.Start(), lambda one: one.project in self._coming_up)
        )
        self._tasks.add(task)
        # On the loop, which tells errors.
        self._supervisor.loop.soon(lambda: task.start().begin(over))

    def abandon(self) -> None:
        """The agent is ending: nothing that is under way may start anything any more."""
        for task in self._tasks:
            task.cancel()

    def _in_turn(
        self, projects: Iterable[str | None], processes: Iterable[str], steps: Callable[[], Steps], client: Client
    ) -> None:
        """Runs a change when the changes of the same projects and processes that were asked for before it are done."""
        owners = set(projects)

        def begin(done: Callable[[], None]) -> None:
            self._coming_up -= owners  # from here on the change decides what of them starts
            self._run(steps, client, done)

        self._turns.take([*(("project", name) for name in owners), *(("process", name) for name in processes)], begin)

    def _run(self, steps: Callable[[], Steps], client: Client, then: Callable[[], None] = lambda: None) -> None:
        """Runs a task to its end; what it raises becomes the client's answer."""

        def over(task: Task) -> None:
            self._tasks.discard(task)
            try:
                task.value()
            except DefinitionError as error:
                client.finish(messages.error(str(error), error.problems))
            except Refused as error:
                client.finish(messages.error(str(error)))
            except Exception as error:
                client.finish(messages.error(f"the agent failed at this request: {type(error).__name__}: {error}"))
                raise
            finally:
                then()

        task = Task(steps())
        self._tasks.add(task)
        task.start().begin(over)


class Refused(Exception):
    """A request that cannot be met; the text is the answer."""


def _chosen(configs: Mapping[str, Definition], names: Sequence[str] | None) -> list[str]:
    """The processes that `start` names: by name, else by group (spec: pm3.md, section 2)."""
    if not names:
        return list(configs)
    chosen: list[str] = []
    for name in names:
        matches = [name] if name in configs else [one for one in configs if configs[one].group == name]
        if not matches:
            raise Refused(f"process or group '{name}' not found in configs")
        chosen.extend(matches)
    return chosen


def _with_dependencies(configs: Mapping[str, Definition], names: Iterable[str]) -> list[str]:
    """The processes and those of the same file that they need, so that each can be started on its own (W2)."""
    found: dict[str, None] = {}
    left = list(names)
    while left:
        name = left.pop(0)
        if name in configs and name not in found:
            found[name] = None
            left.extend(graph.base(other) for other in configs[name].depends_on)
    return sorted(found)


def _started(made: Sequence[rows.Row]) -> Document:
    """pm3's answer to `start` (spec: pm3.md, section 3.3)."""
    failed = [row for row in made if row["action"] == Action.FAILED.value]
    if failed:
        names = ", ".join(row["name"] for row in failed)
        immediate = all("exited with code" in row["reason"] or "ended by signal" in row["reason"] for row in failed)
        why = "process exited immediately" if immediate else "; ".join(sorted({row["reason"] for row in failed}))
        detail = "; ".join(f"{row['name']} {row['reason']}" for row in failed)
        return messages.error(f"failed to start '{names}': {why}" + (f" ({detail})" if immediate else ""))
    started = [row["name"] for row in made if row["changed"] and row["action"] != Action.REMOVED.value]
    return messages.success("started: " + ", ".join(started) if started else "everything is already running")


def _predicted(action: Action, state: State, status: str) -> str:
    """The status that an instance will have once the action has succeeded."""
    if action in (Action.REMOVED, Action.STOPPED) or state is State.STOPPED:
        return "stopped"
    return status if action in (Action.NONE, Action.UPDATED) else "online"


def _progress(request: Document, client: Client) -> Callable[[rows.Row], None]:
    if not request["progress"]:
        return lambda row: None
    return lambda row: client.send({"type": "row", **row})


def _cpus() -> int:
    return len(os.sched_getaffinity(0))
