# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reload: new processes of the same definitions, without a gap where that can be had (spec: pm3.md, section 3.12).

A program that can read its files anew gets its `reload_signal`. One with a check gets a second copy beside it, which takes its place
once the check has passed; a copy that does not come up is ended, and the old one never noticed. The check has to be answered by the
copy itself, not by the old one on the same port (W12). Whatever has neither is restarted. In each process one instance at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..model import machine
from ..model.life import Life, Policy
from . import walks
from .instance import Instance
from .supervisor import Supervisor
from .swap import Swap
from .tasks import All, Steps, Task


@dataclass
class Reload:
    """One `reload` request: every instance replaced without a gap, process by process in order of dependency."""

    supervisor: Supervisor
    targets: Sequence[Instance]
    path: str | None  # PATH for the new processes, where the request carried one
    stops: Mapping[str, int]  # `walks.stops_of` the moment when this was asked for
    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # and why

    def steps(self) -> Steps:
        for level in walks.levels_of(self.targets):
            of_process: dict[str, list[Instance]] = {}
            for one in level:
                of_process.setdefault(one.process, []).append(one)
            tasks = [Task(self._each(instances)) for instances in of_process.values()]
            yield All(self.supervisor.loop, tasks)
            for task in tasks:
                task.value()

    def _each(self, instances: Sequence[Instance]) -> Steps:
        for instance in instances:
            if self.supervisor.instances.get(instance.name) is not instance:
                continue  # removed meanwhile
            if self.path is not None:
                self.supervisor.change(instance, path=self.path)
            why = yield from self.one(instance)
            if why:
                self.failed[instance.name] = why
            else:
                self.done.append(instance.name)

    def one(self, instance: Instance) -> Steps:
        """Reloads one instance; gives why it failed, or ""."""
        if walks.was_stopped_since(instance, self.stops):
            return walks.stopped_meanwhile(instance)
        runs = instance.pid is not None
        if runs and instance.definition.reload_signal is not None:
            return "" if self.supervisor.tell(instance, instance.definition.reload_signal) else "is not running"
        if runs and instance.life.policy.checks:
            return (yield from self._swap(instance))
        return (yield from self._restart(instance))

    def _restart(self, instance: Instance) -> Steps:
        stops = instance.stops
        self.supervisor.change(instance, wanted=True)
        resisting = yield from walks.stop_in_order(self.supervisor, [instance])
        if resisting:
            return "does not react to SIGKILL"
        if instance.stops != stops:
            return walks.stopped_meanwhile(instance)
        yield from walks.start_in_order(self.supervisor, [instance], machine.Restart())
        return walks.why_failed(instance) if walks.has_failed(instance) else ""

    def _swap(self, old: Instance) -> Steps:
        stops = old.stops
        new = Instance(old.name, old.process, old.number, old.count, old.project, old.definition, old.path)
        life = old.life
        new.life = Life(Policy.of(old.definition), restarts=life.restarts, total_restarts=life.total_restarts)

        def objection() -> str:
            is_there = self.supervisor.instances.get(old.name) is old
            return "" if is_there and old.stops == stops else walks.stopped_meanwhile(old)

        swap = Swap(self.supervisor, old, new, walks.is_ready, objection)
        yield from swap.steps()
        # "address already in use" is all that there is to know.
        return swap.why + (f": {swap.last_words[-1]}" if swap.died and swap.last_words else "")
