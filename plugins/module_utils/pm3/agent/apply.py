# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One plan being carried out: removals first, then level by level, each process as its `update` says.

What does not run starts first, all at once; only when that has come up is what does run replaced, so many at a time: a release that
cannot run costs no instance that does. The first instance that does not come up ends the walk, and so does one that came up and fell
before the end. What is to become of the others then is not decided here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Callable

from ..model import graph, machine
from ..model import rows as result_rows
from ..model import update as updates
from ..model.life import Cause, Life, Phase, Policy
from ..model.plan import Action, Change, Plan, State
from ..model.update import Update
from . import limits, views, walks
from .instance import Instance
from .limits import LimitError
from .points import reached
from .reload import Reload
from .supervisor import Supervisor
from .swap import Swap
from .tasks import All, Aside, Steps, Task

_LIVE = (Action.NONE, Action.UPDATED)  # actions that leave the process alone
_NO_FALL = (Cause.USER, Cause.WATCH, Cause.CRON)  # ends after which an instance that has come up is still up

OnStep = Callable[[str, str], None]  # an instance, and what is being done with it


@dataclass
class Apply:
    """`rows` grow as instances are done; `failures` names what ended the walk."""

    supervisor: Supervisor
    plan: Plan
    project: str | None
    path: str | None  # PATH for what is started, where the request carried one
    stops: Mapping[str, int]  # `stops_of` the moment when this was asked for
    patient: bool = True  # wait until everything has settled; else only as long as order and first moments need
    on_row: Callable[[result_rows.Row], None] = lambda row: None
    on_step: OnStep = lambda name, step: None
    unproven: Collection[
        str
    ] = ()  # processes that an agent before us had begun to change: what runs of them has to come up yet
    once: Mapping[str, Any] = field(default_factory=dict)  # keys of `update` for this run, whatever the definitions say
    rows: dict[str, result_rows.Row] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    culprit: Change | None = None  # the first that failed for a reason of its own, and not because somebody stopped it
    timed_out: bool = False
    begun: set[str] = field(default_factory=set)
    came_up: dict[str, tuple[Change, str]] = field(default_factory=dict)  # and the spawn that did
    fallen: dict[str, str] = field(default_factory=dict)  # what has come up and is not up any more, and why
    since: dict[str, float] = field(default_factory=dict)  # when the work on an instance began
    awaited: dict[str, float] = field(default_factory=dict)  # since when it is waited for that an instance comes up
    soaking: walks.Pause | None = None

    def steps(self) -> Steps:
        """Removals first, so that what they hold (a port, a file) is free; then level by level. Returns the rows in the plan's order."""
        with self.supervisor.sockets.changing():
            return (yield from self._steps())

    def _steps(self) -> Steps:
        changes = self.plan.rows
        gone = [change for change in changes if change.action is Action.REMOVED]
        stopped = [change for change in changes if change.action is Action.STOPPED]
        yield from self._rest([*gone, *stopped])
        reached("apply.rested")
        for change in gone:
            instance = self.supervisor.instances.get(change.name)
            if instance is not None and walks.rests(instance):
                self.supervisor.remove(instance)
                reached("apply.removed")
        of_process: dict[str, list[Change]] = {}
        for change in changes:
            if change.action not in (Action.REMOVED, Action.STOPPED):
                of_process.setdefault(change.process, []).append(change)
        levels = graph.levels(graph.of({name: found[0].definition for name, found in of_process.items()}))
        for place, level in enumerate(levels):
            if self.failures:
                break
            last = place == len(levels) - 1
            tasks = [Task(self._process(of_process[name], last)) for name in level]
            yield All(self.supervisor.loop, tasks)
            for task in tasks:
                task.value()
            reached("apply.level")
        if self.patient:
            yield from self._settle()
            yield from self._soak()
        self._look_back()
        self._look_away()
        for change in changes:
            if change.name not in self.rows:
                self._row(change, reached=not self.failures)
        return [self.rows[change.name] for change in changes]

    # Down

    def _rest(self, changes: Sequence[Change]) -> Steps:
        found = {change.name: self.supervisor.instances[change.name] for change in changes}
        for change in changes:
            self.supervisor.change(found[change.name], wanted=False)
            self._step(change, "stopping")
        yield from walks.stop_in_order(self.supervisor, found.values())
        for change in changes:
            instance = found[change.name]
            if walks.rests(instance):
                self._adopt(instance, change)
                self._row(change)
            else:
                self._fail(change, instance, walks.RESISTS)

    # Up

    def _process(self, changes: Sequence[Change], last: bool) -> Steps:
        """The changes of one process."""
        fresh: list[Change] = []
        replaced: list[Change] = []
        changes = [change for change in changes if not change.held]  # it is there for the order
        for change in changes:
            if change.action in _LIVE:
                yield from self._update(change)
                if change.name in self.failures:
                    return
            else:
                (fresh if self._is_down(change) else replaced).append(change)
        for change in list(fresh):
            if change.rests or self.plan.state is State.STOPPED:
                self._place(change, wanted=False)
                fresh.remove(change)
        if self.plan.state is State.STOPPED:
            return
        for change in fresh:
            if self._was_stopped(change.name):
                instance = self.supervisor.instances[change.name]
                self._fail(change, instance, walks.stopped_meanwhile(instance))
        # Unchanged ones that are on their way up already: dependents wait for these too.
        coming = [change for change in changes if change.action in _LIVE and self._is_coming(change)]
        begun = {self._begin(change): change for change in fresh if change.name not in self.rows}
        begun.update((self.supervisor.instances[change.name], change) for change in coming)
        unproven = any(change.process in self.unproven for change in changes)
        judge = (
            walks.is_settled
            if replaced or unproven
            else walks.is_begun
            if last and not self.patient
            else walks.is_ready
        )
        yield from self._await(begun, judge)
        if replaced:
            yield from self._roll(replaced)

    def _roll(self, replaced: Sequence[Change]) -> Steps:
        """Replaces instances that run, as many at a time as `update` allows."""
        update = self._update_of(replaced[0])
        left = deque(replaced)

        def some() -> Steps:
            while left and not self.failures:
                yield from self._replace(left.popleft(), update)
                reached("roll.replaced")
                self._look_back()

        tasks = [Task(some()) for _one in range(min(len(replaced), update.at_once(replaced[0].count)))]
        yield All(self.supervisor.loop, tasks)
        for task in tasks:
            task.value()

    def _await(self, begun: Mapping[Instance, Change], judge: walks.Judgement) -> Steps:
        """Waits for instances, and tells of each that has failed: of the moment of its failure, for it may be tried again by now."""
        seconds = next((self._deadline(change) for change in begun.values()), None)  # all are of one process
        now = self.supervisor.loop.time()
        waited = max((now - self.awaited.setdefault(change.name, now) for change in begun.values()), default=0.0)
        left = None if seconds is None else max(0.0, seconds - waited)
        wait = walks.Until(self.supervisor, begun, judge, left)
        in_time = yield wait
        for instance, why in wait.failed.items():
            self._fail(begun[instance], instance, why)
        if not in_time:
            self.timed_out = True
            for instance in wait.late:
                self._fail(begun[instance], instance, walks.too_late(seconds or 0))
        if judge is walks.is_settled:
            for instance, change in begun.items():
                self._has_come_up(change, instance)

    def _is_coming(self, change: Change) -> bool:
        instance = self.supervisor.instances.get(change.name)
        if instance is None:
            return False
        phase = instance.life.phase
        is_unproven = phase is Phase.ONLINE and change.process in self.unproven
        return phase in (Phase.PREPARING, Phase.SPAWNING, Phase.STARTING) or is_unproven

    def _is_down(self, change: Change) -> bool:
        instance = self.supervisor.instances.get(change.was or change.name)
        return instance is None or instance.life.phase in (Phase.DOWN, Phase.BACKOFF)

    def _was_stopped(self, name: str) -> bool:
        """Somebody has stopped it since this was asked for: the later word counts (I3)."""
        instance = self.supervisor.instances.get(name)
        return instance is not None and walks.was_stopped_since(instance, self.stops)

    def _begin(self, change: Change) -> Instance:
        self._step(change, "starting")
        instance = self._place(change, wanted=True)
        self.begun.add(change.name)
        reached("apply.placed")
        self.supervisor.deliver(instance, machine.Start())
        return instance

    def _place(self, change: Change, wanted: bool) -> Instance:
        """The instance as the change wants it, at rest."""
        self._forget_predecessor(change)
        instance = self.supervisor.instances.get(change.name)
        if instance is None:
            instance = self.supervisor.add(self._made(change, self.path))
        elif not walks.rests(instance):
            self.supervisor.deliver(instance, machine.Stop())  # from BACKOFF, which it ends at once
        instance.redefine(change.definition)
        self.supervisor.change(
            instance, count=change.count, project=self.project, path=self.path or instance.path, wanted=wanted
        )
        return instance

    def _forget_predecessor(self, change: Change) -> None:
        """The one of another name that it replaces, and that is down by now."""
        was = self.supervisor.instances.get(change.was)
        if was is not None:
            if not walks.rests(was):
                self.supervisor.deliver(was, machine.Stop())
            self.supervisor.remove(was)

    def _made(self, change: Change, path: str | None) -> Instance:
        return Instance(change.name, change.process, change.number, change.count, self.project, change.definition, path)

    def _replace(self, change: Change, update: Update) -> Steps:
        instance = self.supervisor.instances.get(change.was or change.name)
        if instance is None:
            return  # deleted meanwhile: its row will say that it is absent
        if change.action is Action.RELOADED:
            yield from self._reload(change, instance)
        elif update.order == updates.START_FIRST:
            yield from self._swap(change, instance)
        else:
            yield from self._stop_and_start(change, instance)

    def _stop_and_start(self, change: Change, instance: Instance) -> Steps:
        self._step(change, "stopping")
        yield from walks.stop_in_order(self.supervisor, [instance])
        if not walks.rests(instance):
            self._fail(change, instance, walks.RESISTS)
        elif self._was_stopped(instance.name):
            self._fail(change, instance, walks.stopped_meanwhile(instance))
        else:
            reached("roll.stopped")
            begun = self._begin(change)
            yield from self._await({begun: change}, walks.is_settled)
            if change.name not in self.rows:
                self._row(change)

    def _swap(self, change: Change, old: Instance) -> Steps:
        def objection() -> str:
            is_there = self.supervisor.instances.get(old.name) is old
            return "" if is_there and not self._was_stopped(old.name) else walks.stopped_meanwhile(old)

        new = self._made(change, self.path or old.path)
        new.life = Life(Policy.of(change.definition), total_restarts=old.life.total_restarts)
        self._step(change, "starting")
        swap = Swap(self.supervisor, old, new, walks.is_settled, objection, self._deadline(change))
        swapped = yield from swap.steps()
        if swapped:
            self._has_come_up(change, new)
            self._row(change)
        else:
            self.timed_out = self.timed_out or swap.late
            self._fail(change, old, swap.why, swap.last_words)

    def _reload(self, change: Change, instance: Instance) -> Steps:
        self._step(change, "reloading")
        why = yield from Reload(self.supervisor, [instance], self.path, self.stops).one(instance)
        if why:
            self._fail(change, instance, why)
        else:
            self._row(change)

    def _update(self, change: Change) -> Steps:
        """What can change without the process noticing."""
        instance = self.supervisor.instances.get(change.name)
        if instance is None:
            return
        # Before it is said to have them, so that an apply after a crash in between finds a difference.
        why = yield from self._limit(change, instance)
        if self.supervisor.instances.get(change.name) is not instance:
            return  # deleted meanwhile
        if why:
            self._fail(change, instance, why)
            return
        self._adopt(instance, change)
        self.supervisor.see_files(instance)
        if change.action is Action.UPDATED:
            self.supervisor.deliver(instance, machine.Redefined(Policy.of(change.definition)))
            self.supervisor.reconfigure(instance)

    def _limit(self, change: Change, instance: Instance) -> Steps:
        """Has the kernel keep the limits of the change for what runs; returns why that cannot be, or ""."""
        cells = self.supervisor.cells
        if limits.are_equal(instance.definition, change.definition) and change.process not in self.unproven:
            return ""
        self._step(change, "updating")
        while instance.running is not None:
            spawn_id = instance.spawn_id
            kills = cells.memory_kills(spawn_id)
            # The kernel first takes away what a lower memory_max has no room for, and kills when nothing helps; only then we go on.
            error = yield Aside(self.supervisor.loop, partial(cells.limit, spawn_id, change.definition))

            def has_ended(one: Instance, spawn_id: str = spawn_id) -> bool:
                return one.running is None or one.spawn_id != spawn_id

            if cells.memory_kills(spawn_id) > kills:
                yield walks.Until(self.supervisor, [instance], has_ended, walks.STUCK)
            if has_ended(instance):
                if instance.life.end is not None and instance.life.end.cause is Cause.OOM:
                    return f"holds more than the new memory_max allows: {walks.why_failed(instance)}"
            elif error is None:
                break
            elif isinstance(error, LimitError):
                return str(error)
            else:
                raise error
        return ""

    def _adopt(self, instance: Instance, change: Change) -> None:
        if (
            instance.project != self.project
            or instance.definition != change.definition
            or instance.count != change.count
        ):
            self.supervisor.change(instance, project=self.project, definition=change.definition, count=change.count)

    def _settle(self) -> Steps:
        """A release that dies after a moment has not come up."""
        begun = {
            self.supervisor.instances[change.name]: change
            for change in self.plan.rows
            if change.name in self.begun and change.name not in self.rows and change.name in self.supervisor.instances
        }
        of_process: dict[str, dict[Instance, Change]] = {}
        for instance, change in begun.items():
            of_process.setdefault(change.process, {})[instance] = change
        for some in of_process.values():
            yield from self._await(some, walks.is_settled)
        for change in begun.values():
            if change.name not in self.rows:
                self._row(change)

    def _soak(self) -> Steps:
        """What has come up must go on being up for a while: the longest that anything of it asks for."""
        self._look_back()
        if self.failures:
            return
        seconds = {name: self._update_of(change).soak for name, (change, _spawn) in self.came_up.items()}
        longest = max(seconds.values(), default=0)
        if not longest:
            return
        for name, (change, _spawn) in self.came_up.items():
            if seconds[name]:
                self._step(change, "soaking")
        self.soaking = walks.Pause(self.supervisor, longest)
        reached("apply.soaks")
        yield self.soaking

    def _has_come_up(self, change: Change, instance: Instance) -> None:
        """From now on until the end it must stay up: a release may well die after some seconds."""
        is_ours = change.action not in _LIVE or change.process in self.unproven
        if change.name not in self.failures and is_ours and change.name not in self.came_up:
            self.came_up[change.name] = (change, instance.spawn_id)
            self.supervisor.watch(change.name, self._look)
            self._look(instance)

    def _look(self, instance: Instance) -> None:
        __, spawn_id = self.came_up[instance.name]
        if self.supervisor.instances.get(instance.name) is not instance:
            return
        if not instance.wanted:
            if self.soaking is None:  # all is done then, and a stop is no failure of the release
                self.fallen.setdefault(instance.name, walks.stopped_meanwhile(instance))
            return
        if _has_fallen(instance, spawn_id):
            self.fallen.setdefault(instance.name, f"came up, and then {walks.why_failed(instance)}")
        elif self.soaking is not None and instance.life.missed:
            self.fallen.setdefault(instance.name, "came up, and then liveness_check has failed")
        else:
            return
        if self.soaking is not None:
            self.soaking.end()

    def _look_back(self) -> None:
        for name, why in self.fallen.items():
            instance = self.supervisor.instances.get(name)
            if instance is not None and name not in self.failures:
                self._fail(self.came_up[name][0], instance, why)

    def _look_away(self) -> None:
        for name in self.came_up:
            self.supervisor.unwatch(name, self._look)

    def _update_of(self, change: Change) -> Update:
        return updates.of(change.definition.update, self.once)

    def _deadline(self, change: Change) -> float | None:
        return self._update_of(change).deadline or None

    # Rows

    def _step(self, change: Change, step: str) -> None:
        self.since.setdefault(change.name, self.supervisor.loop.time())
        self.on_step(change.name, step)

    def _row(self, change: Change, reached: bool = True) -> None:
        instance = self.supervisor.instances.get(change.name)
        made = views.row(self.supervisor, change, instance)
        if not reached and change.action is not Action.NONE:
            what = "failed" if self.culprit is not None else walks.STOPPED_MEANWHILE
            made = result_rows.skipped(made, f"not reached: {self.failures[0]} {what}")
        self._tell(made)

    def _fail(self, change: Change, instance: Instance, why: str, lines: Sequence[str] | None = None) -> None:
        if self.culprit is None and not why.startswith(walks.STOPPED_MEANWHILE):
            self.culprit = change
        self.failures.append(change.name)
        made = views.row(self.supervisor, change, instance)
        tail = lines if lines is not None else walks.last_words(self.supervisor, instance)
        self._tell(result_rows.failed(made, why, tail))

    def _tell(self, made: result_rows.Row) -> None:
        begun = self.since.get(made["name"])
        if begun is not None:
            made["seconds"] = round(self.supervisor.loop.time() - begun, 3)
        self.rows[made["name"]] = made
        self.on_row(made)


def _has_fallen(instance: Instance, spawn_id: str) -> bool:
    end = instance.life.end
    if walks.has_failed(instance):
        return True
    return instance.spawn_id != spawn_id and end is not None and end.cause not in _NO_FALL
