# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What clients ask for, and what they are told. Each request type is one method; reads answer at once, changes are tasks.

Changes of one project run one after the other; nobody waits for another project's. A client that leaves ends nothing but its own
listening: what it began is carried through.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Callable

from ..model.problems import DefinitionError, Unfit
from ..wire import messages
from . import known, views, walks
from .changes import Changes
from .instance import Instance
from .projects import Projects
from .runs import Runs
from .selection import Selection, ordered
from .server import Client, Peer
from .supervisor import Supervisor
from .tasks import Pace, Steps
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
        self._selection = Selection(supervisor, self._projects)
        self.work = Work(supervisor)
        self._meter = Meter()
        self.changes = changes = Changes(supervisor, self._projects, self.work, data_dir)
        self.runs = Runs(supervisor, self._projects, self.work)
        self._do: dict[str, Callable[[Document, Peer, Client], None]] = {
            "hello": lambda request, peer, client: client.finish(self._hello()),
            "doctor": lambda request, peer, client: client.finish(doctor()),
            "apply": self._of_owner(self.runs.apply),
            "plan": self._of_owner(self.runs.plan),
            "history": self._history,
            "snapshot": self._snapshot,
            "list": self._list,
            "info": self._info,
            "log": self._log,
            "hold": self._hold,
            "release": self._hold,
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
        self._supervisor.ledger.flush()  # nobody is told what a crash could still undo
        try:
            self._do[request["type"]](request, peer, client)
        except DefinitionError as error:
            client.finish(messages.error(str(error), error.problems))
        except (Refused, Unfit) as error:
            client.finish(messages.error(str(error)))

    # Reading

    def _list(self, _request: Document, _peer: Peer, client: Client) -> None:
        def steps() -> Steps:
            found = ordered(self._supervisor.instances.values())
            shown = yield from self._shown(found, lambda one, used: views.process(self._supervisor, one, used))
            client.finish({"type": "process_list", "processes": shown})

        self.work.run(steps, client)

    def _info(self, request: Document, _peer: Peer, client: Client) -> None:
        found = self._selection.one_or_more(request["name"])

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
                        name: [
                            {**views.revision(one), "current": one.revision == current.revision}
                            for one in self._projects.revisions(name)
                        ]
                        for name, current in projects.items()
                    },
                    "holds": supervisor.holds.documents(),
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
        self._supervisor.ledger.flush()  # what has changed meanwhile
        return shown

    def _is_there(self, instance: Instance) -> bool:
        return self._supervisor.instances.get(instance.name) is instance

    def _selected(self, project: str | None, names: Sequence[str] | None) -> list[Instance]:
        found = self._selection.named(names or None)
        return [one for one in found if project is None or one.project == project]

    def _log(self, request: Document, _peer: Peer, client: Client) -> None:
        from .log_request import LogRequest  # a healthy agent does without

        LogRequest(self._supervisor, self._selection, request, client)

    def _of_owner(self, then: Callable[[Document, Peer, Client], None]) -> Callable[[Document, Peer, Client], None]:
        """Takes a request to the project that owns the processes which it names without defining them."""

        def take(request: Document, peer: Peer, client: Client) -> None:
            refusal = None
            if request["known"]:
                instances = self._supervisor.instances.values()
                request, refusal = known.addressed(request, self._projects, instances)
            if refusal is None:
                then(request, peer, client)
            else:
                client.finish(refusal)

        return take

    def _hold(self, request: Document, peer: Peer, client: Client) -> None:
        from . import hold_requests  # a healthy agent does without

        client.finish(hold_requests.answer(self._supervisor, self._projects, request, peer.uid))

    def _history(self, request: Document, _peer: Peer, client: Client) -> None:
        project = request["project"]
        current = self._projects.current(project)
        if current is None:
            raise Refused(f"project {project} has no revisions here")
        shown = [views.revision(one) for one in self._projects.revisions(project)]
        client.finish({"type": "history", "project": project, "current": current.revision, "revisions": shown})

    def _kill(self, _request: Document, _peer: Peer, client: Client) -> None:
        client.finish(messages.success("daemon shutting down"))
        self._supervisor.loop.soon(self._shutdown)
