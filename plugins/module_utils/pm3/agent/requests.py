# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What clients ask for, and what they are told. Each request type is one method; reads answer at once, changes are tasks.

Changes of one project run one after the other; nobody waits for another project's. A client that leaves ends nothing but its own
listening: what it began is carried through.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Callable

from ..model import definition as definitions
from ..model import difference, loading, rows
from ..model.definition import Definition
from ..model.plan import Action, Change, Plan, State, plan_in_parts
from ..model.problems import DefinitionError, Problem, Unfit
from ..wire import messages
from . import selection, views, walks
from .changes import Changes, cpus, progress
from .instance import Instance
from .projects import Projects
from .server import Client, Peer
from .supervisor import Supervisor
from .tasks import Pace, Steps, paced
from .usage import Meter, Used
from .work import Refused, Work

Document = dict[str, Any]


class Requests:
    """Answers requests. `hello` and `doctor` give facts about this agent; `shutdown` ends it after all instances were stopped."""

    def __init__(
        self,
        supervisor: Supervisor,
        data_dir: str,
        hello: Callable[[], Document],
        doctor: Callable[[], Document],
        shutdown: Callable[[], None],
    ) -> None:
        self._supervisor = supervisor
        self._hello = hello
        self._shutdown = shutdown
        self._projects = Projects(supervisor.store)
        self.work = Work(supervisor)
        self._meter = Meter()
        self.changes = changes = Changes(supervisor, self._projects, self.work, data_dir)
        self._do: dict[str, Callable[[Document, Peer, Client], None]] = {
            "hello": lambda request, peer, client: client.finish(self._hello()),
            "doctor": lambda request, peer, client: client.finish(doctor()),
            "apply": self._apply,
            "plan": self._plan,
            "snapshot": self._snapshot,
            "list": self._list,
            "info": self._info,
            "log": self._log,
            "start": changes.start,
            "stop": changes.stop,
            "restart": changes.restart,
            "reload": changes.reload,
            "delete": changes.delete,
            "signal": changes.signal,
            "flush": changes.flush,
            "save": changes.save,
            "resurrect": changes.resurrect,
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
        except (Refused, Unfit) as error:
            client.finish(messages.error(str(error)))

    # Reading

    def _list(self, _request: Document, _peer: Peer, client: Client) -> None:
        def steps() -> Steps:
            found = selection.ordered(self._supervisor.instances.values())
            shown = yield from self._shown(found, lambda one, used: views.process(self._supervisor, one, used))
            client.finish({"type": "process_list", "processes": shown})

        self.work.run(steps, client)

    def _info(self, request: Document, _peer: Peer, client: Client) -> None:
        found = selection.named(self._supervisor, [request["name"]])

        def steps() -> Steps:
            details = yield from self._shown(found, lambda one, used: views.detail(self._supervisor, one, used))
            several = {"infos": details} if len(details) > 1 else {}
            client.finish({"type": "process_detail", "info": details[0], **several})

        self.work.run(steps, client)

    def _snapshot(self, request: Document, _peer: Peer, client: Client) -> None:
        found = self._selected(request["project"], request["names"])
        supervisor, lines = self._supervisor, request["log_lines"]

        def steps() -> Steps:
            shown = yield from self._shown(found, lambda one, used: views.snapshot(supervisor, one, used, lines))
            projects = self._projects.of(request["project"])
            definitions_of = {name: one.definitions for name, one in projects.items()}
            client.finish(
                {
                    "type": "snapshot",
                    "agent": self._hello(),
                    "instances": shown,
                    "definitions": views.definitions(supervisor, definitions_of),
                    "revisions": {
                        name: [views.revision(one) for one in self._projects.revisions(name)] for name in projects
                    },
                }
            )

        if request["wait_for"] is None:
            self.work.run(steps, client)
        else:
            wait = walks.Until(
                supervisor,
                found,
                lambda one: views.is_online(one) or not self._is_there(one),
                float(request["timeout"]),
            )
            client.on_gone = wait.cancel
            wait.begin(lambda _all_online: self.work.run(steps, client))

    def _shown(self, instances: Iterable[Instance], show: Callable[[Instance, Used | None], Document]) -> Steps:
        """What `show` makes of instances and what they use, one by one and in slices: a thousand of them may not hold the loop.

        The first one is shown in this turn; one that is removed before it is its turn is left out.
        """
        survey = self._supervisor.survey()
        self._meter.keep(one.spawn_id for one in self._supervisor.instances.values())
        pace = Pace(self._supervisor.loop)
        shown = []
        for one in instances:
            if pace.over():
                yield pace
            if not self._is_there(one):
                continue
            running = one.running
            used = self._meter.read(one.spawn_id, running, survey(one.spawn_id, running)) if running else None
            shown.append(show(one, used))
        self._supervisor.flush()  # what has changed meanwhile
        return shown

    def _is_there(self, instance: Instance) -> bool:
        return self._supervisor.instances.get(instance.name) is instance

    def _selected(self, project: str | None, names: Sequence[str] | None) -> list[Instance]:
        found = selection.named_or_all(self._supervisor, names or None)
        return [one for one in found if project is None or one.project == project]

    def _log(self, request: Document, _peer: Peer, client: Client) -> None:
        from .log_request import LogRequest  # a healthy agent does without

        LogRequest(self._supervisor, request, client)

    # Applying

    def _plan(self, request: Document, _peer: Peer, client: Client) -> None:
        pace = Pace(self._supervisor.loop)

        def steps() -> Steps:
            desired = yield from _desired(request, pace)
            found = yield from self._planned(request, desired, pace)
            predicted = [self._foreseen(change, found.state) for change in found.rows]
            if pace.over():
                yield pace
            client.finish(self._result(request, found, predicted, self._projects.revision(request["project"], found)))

        self.work.run(steps, client)

    def _apply(self, request: Document, peer: Peer, client: Client) -> None:
        pace = Pace(self._supervisor.loop)
        project = str(request["project"])
        desired: dict[str, Definition] = {}

        def first() -> Steps:
            yield pace  # its text was large, if it is much
            desired.update((yield from _desired(request, pace)))
            yield from self._planned(
                request, desired, pace
            )  # mistakes are told at once, also where the project is busy
            self.work.in_turn([project], desired, steps, client)

        def steps() -> Steps:
            stops = walks.stops_of(self._supervisor)
            found = yield from self._planned(request, desired, pace)
            changed = found.definitions != self._projects.definitions(project)
            walk = walks.Apply(
                self._supervisor, found, project, request["path"], stops, on_row=progress(request, client)
            )
            after = self._projects.revision(project, found)
            if not request["wait"]:
                everything = self._supervisor.instances
                begun = [views.row(self._supervisor, one, everything.get(one.name)) for one in found.rows]
                client.finish(self._result(request, found, begun, after, in_progress=True))
            if changed:
                self._projects.keep(project, found, request["label"], peer.uid)
            if pace.over():
                yield pace
            made = yield from walk.steps()
            if found.changed or changed:
                self._supervisor.checkpoint()
            if pace.over():
                yield pace
            client.finish(self._result(request, found, made, after))

        self.work.run(first, client)

    def _planned(self, request: Document, desired: Mapping[str, Definition], pace: Pace) -> Steps:
        project = request["project"]
        parts = plan_in_parts(
            project,
            desired,
            self._supervisor.actual(),
            cpus=cpus(),
            current=self._projects.definitions(project),
            state=State(request["state"]),
            prune=request["prune"],
            only=request["only"],
        )
        return (yield from paced(pace, parts))

    def _foreseen(self, change: Change, state: State) -> rows.Row:
        """The row that the change will have, as far as that is known: counters and the last exit are those of now."""
        made = views.row(self._supervisor, change, self._supervisor.instances.get(change.name))
        pid = made["pid"] if change.action in (Action.NONE, Action.UPDATED) else None
        return {**made, "status": _predicted(change, state, made["status"]), "pid": pid}

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

    def _kill(self, _request: Document, _peer: Peer, client: Client) -> None:
        client.finish(messages.success("daemon shutting down"))
        self._supervisor.loop.soon(self._shutdown)


def _desired(request: Document, pace: Pace) -> Steps:
    """The definitions that an `apply` or a `plan` brings."""
    tables = {name: dict(table) for name, table in request["definitions"].items()}
    for name, secrets in request["secrets"].items():
        if name in tables:
            tables[name]["secrets"] = {**(tables[name].get("secrets") or {}), **secrets}
    if not tables and request["state"] != State.ABSENT.value:
        raise DefinitionError([Problem("nothing is defined; to remove a project, ask for state absent")])
    try:
        return (yield from paced(pace, loading.load_in_parts(tables, request["base"], request["overlay"])))
    except DefinitionError as error:
        raise error.located(request["file"]) if request["file"] else error from None


def _predicted(change: Change, state: State, status: str) -> str:
    """The status that an instance will have once the change has succeeded."""
    if change.action in (Action.REMOVED, Action.STOPPED) or change.rests or state is State.STOPPED:
        return "stopped"
    return status if change.action in (Action.NONE, Action.UPDATED) else "online"
