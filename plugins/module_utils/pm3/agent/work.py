# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Changes under way: whose turn it is, and who is told how each of them ended.

Changes of one project run one after the other; nobody waits for another project's. A client that leaves ends nothing but its own
listening: what it began is carried through.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Callable, Protocol

from ..model import machine
from ..model.problems import DefinitionError, Unfit
from ..wire import messages
from . import walks
from .instance import Instance
from .schemas import StoreError
from .supervisor import Supervisor
from .tasks import Steps, Task, Turns


class Refused(Exception):
    """A request that cannot be met; the text is the answer."""


class Answered(Protocol):
    """Whoever is told how a change ended."""

    def finish(self, document: messages.Document) -> None: ...


class Work:
    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._turns = Turns()
        self._tasks: set[Task] = set()
        self._coming_up: set[str] = set()  # processes that `come_up` still starts when their turn comes

    def come_up(self, instances: Iterable[Instance], then: Callable[[], None]) -> None:
        """Starts what is meant to run, in order: after a boot or an orderly end, or where a crash cut a change off."""
        wanted = list(instances)

        def over(task: Task) -> None:
            self._tasks.discard(task)
            then()
            task.value()

        self._coming_up = {one.process for one in wanted}
        task = Task(
            walks.start_in_order(self._supervisor, wanted, machine.Start(), lambda one: one.process in self._coming_up)
        )
        self._tasks.add(task)
        # On the loop, which tells errors.
        self._supervisor.loop.soon(lambda: task.start().begin(over))

    def abandon(self) -> None:
        """The agent is ending: nothing that is under way may start anything any more."""
        for task in self._tasks:
            task.cancel()

    def in_turn(
        self, projects: Iterable[str | None], processes: Iterable[str], steps: Callable[[], Steps], client: Answered
    ) -> None:
        """Runs a change when the changes of the same projects and processes that were asked for before it are done.

        What is ad hoc (project None) has only its processes in common: a hook that hangs in one of them delays no other (W25).
        """
        changed = set(processes)

        def begin(done: Callable[[], None]) -> None:
            self._coming_up -= changed  # from here on the change decides whether they start
            self.run(steps, client, done)

        owners = {name for name in projects if name is not None}
        self._turns.take([*(("project", name) for name in owners), *(("process", name) for name in changed)], begin)

    def run(self, steps: Callable[[], Steps], client: Answered, then: Callable[[], None] = lambda: None) -> None:
        """Runs a task to its end; what it raises becomes the client's answer."""

        def over(task: Task) -> None:
            self._tasks.discard(task)
            try:
                task.value()
            except DefinitionError as error:
                client.finish(messages.error(str(error), error.problems))
            except (Refused, Unfit, StoreError) as error:
                client.finish(messages.error(str(error)))
            except Exception as error:
                client.finish(messages.error(f"the agent failed at this request: {type(error).__name__}: {error}"))
                raise
            finally:
                then()

        task = Task(steps())
        self._tasks.add(task)
        task.start().begin(over)
