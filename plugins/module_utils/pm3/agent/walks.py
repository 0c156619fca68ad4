# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Walks: changes of many instances, one dependency level after the other, each waiting for what it needs.

A walk delivers events to instances and waits for what becomes of them; what an instance does in between is the machine's affair.
Every wait here ends by itself: starts by the timeouts of their checks, stops by `kill_timeout` and `_STUCK`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable

from ..model import graph, machine
from ..model import rows as result_rows
from ..model.definition import Definition
from ..model.life import Phase, Policy
from ..model.plan import Action, Change, Plan, State
from . import views
from .instance import Instance, has_completed
from .loop import Timer
from .supervisor import Supervisor
from .tasks import All, Pace, Steps, Task

_STUCK = 10.0  # seconds after SIGKILL in which the kernel has ended every process that it can end
_LIVE = (Action.NONE, Action.UPDATED)  # actions that leave the process alone
_STOPPED_MEANWHILE = "was stopped meanwhile"

Judgement = Callable[[Instance], bool]


class Until:
    """Waits until `judge` is true of every instance; the answer is False when `seconds` (None: any time) were not enough.

    `failed` are those that had failed at that moment, and why: a moment later they may be tried again.
    """

    def __init__(
        self, supervisor: Supervisor, instances: Iterable[Instance], judge: Judgement, seconds: float | None = None
    ) -> None:
        self._supervisor = supervisor
        self._judge = judge
        self._seconds = seconds
        self.failed: dict[Instance, str] = {}
        self._left: set[Instance] = {instance for instance in instances if not self._judged(instance)}
        self._timer: Timer | None = None
        self._resume: Callable[[Any], None] | None = None

    def begin(self, resume: Callable[[Any], None]) -> None:
        if not self._left:
            resume(True)
            return
        self._resume = resume
        for instance in self._left:
            self._supervisor.watch(instance.name, self._look)
        if self._seconds is not None:
            self._timer = self._supervisor.loop.after(self._seconds, lambda: self._end(False))

    def cancel(self) -> None:
        self._resume = None
        for instance in self._left:
            self._supervisor.unwatch(instance.name, self._look)
        self._left.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _judged(self, instance: Instance) -> bool:
        if not self._judge(instance):
            return False
        if has_failed(instance):
            self.failed[instance] = why_failed(instance)
        return True

    def _look(self, instance: Instance) -> None:
        if instance in self._left and self._judged(instance):
            self._left.discard(instance)
            self._supervisor.unwatch(instance.name, self._look)
            if not self._left:
                # Later in this turn: we are called in the middle of an event's effects.
                self._supervisor.loop.soon(lambda: self._end(True))

    def _end(self, answer: bool) -> None:
        resume = self._resume  # None: cancelled, or the time was over in the very turn in which it came true
        self.cancel()
        if resume is not None:
            resume(answer)


# What a walk waits for


def rests(instance: Instance) -> bool:
    return instance.life.phase is Phase.DOWN


def has_failed(instance: Instance) -> bool:
    """It is not up and will not be by itself, or only by another attempt after a failure. Its output is complete."""
    life = instance.life
    return life.phase in (Phase.BACKOFF, Phase.UNHEALTHY) or (life.phase is Phase.DOWN and not has_completed(life))


def is_begun(instance: Instance) -> bool:
    """Its process is there (or not, and that is known), and without checks has survived its first moment."""
    life = instance.life
    return is_ready(instance) or (life.phase is Phase.STARTING and bool(life.checks))


def is_ready(instance: Instance) -> bool:
    """Dependents may start, or know that they cannot."""
    return instance.life.phase is Phase.ONLINE or has_completed(instance.life) or has_failed(instance)


def is_settled(instance: Instance) -> bool:
    """It counts as up: its checks passed and it has lived `min_uptime`. Or it has failed."""
    return (
        (instance.life.phase is Phase.ONLINE and instance.life.settled)
        or has_completed(instance.life)
        or has_failed(instance)
    )


def stops_of(supervisor: Supervisor) -> dict[str, int]:
    """How often each instance has been stopped by somebody: by this a change sees that a stop came after it was asked for."""
    return {name: instance.stops for name, instance in supervisor.instances.items()}


@dataclass
class Apply:
    """One plan being carried out. `rows` grow as instances are done; `failures` is what stopped the walk."""

    supervisor: Supervisor
    plan: Plan
    project: str | None
    path: str | None  # PATH for what is started, where the request carried one
    stops: Mapping[str, int]  # `stops_of` the moment before the plan was begun, which may take several turns
    patient: bool = True  # wait until everything has settled; else only as long as order and first moments need
    on_row: Callable[[result_rows.Row], None] = lambda row: None
    rows: dict[str, result_rows.Row] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    begun: set[str] = field(default_factory=set)

    def steps(self) -> Steps:
        """Removals first, so that what they hold (a port, a file) is free; then level by level. Returns the rows in the plan's order."""
        changes = self.plan.rows
        gone = [change for change in changes if change.action is Action.REMOVED]
        stopped = [change for change in changes if change.action is Action.STOPPED]
        yield from self._rest([*gone, *stopped])
        for change in gone:
            instance = self.supervisor.instances.get(change.name)
            if instance is not None and rests(instance):
                self.supervisor.remove(instance)
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
        if self.patient:
            yield from self._settle()
        for change in changes:
            if change.name not in self.rows:
                self._row(change, reached=not self.failures)
        return [self.rows[change.name] for change in changes]

    # Down

    def _rest(self, changes: Sequence[Change]) -> Steps:
        found = {change.name: self.supervisor.instances[change.name] for change in changes}
        for change in changes:
            self.supervisor.change(found[change.name], wanted=False)
        yield from stop_in_order(self.supervisor, found.values())
        for change in changes:
            instance = found[change.name]
            if rests(instance):
                self._adopt(instance, change)
                self._row(change)
            else:
                self._fail(change, instance, "could not be ended: it does not react to SIGKILL (uninterruptible sleep)")

    # Up

    def _process(self, changes: Sequence[Change], last: bool) -> Steps:
        """The changes of one process. What does not run starts first, all at once; only when that has come up is what does run replaced,
        one instance after the other: a release that cannot run costs no instance that does, however often it is tried."""
        fresh: list[Change] = []
        replaced: list[Change] = []
        for change in changes:
            if change.action in _LIVE:
                self._update(change)
            else:
                (fresh if self._is_down(change) else replaced).append(change)
        for change in list(fresh):
            if change.rests or self.plan.state is State.STOPPED:
                self._place(change, wanted=False)
                fresh.remove(change)
        if self.plan.state is State.STOPPED:
            return
        for change in fresh:
            if self._was_stopped(change):
                self._fail(change, self.supervisor.instances[change.name], _STOPPED_MEANWHILE)
        # Unchanged ones that are on their way up already: dependents wait for these too.
        coming = [change for change in changes if change.action in _LIVE and self._is_coming(change)]
        begun = {self._begin(change): change for change in fresh if change.name not in self.rows}
        begun.update((self.supervisor.instances[change.name], change) for change in coming)
        judge = is_settled if replaced else is_begun if last and not self.patient else is_ready
        yield from self._await(begun, judge)
        for change in replaced:
            if not self.failures:
                yield from self._replace(change, self.supervisor.instances[change.name])

    def _await(self, begun: Mapping[Instance, Change], judge: Judgement) -> Steps:
        """Waits for instances, and tells of each that has failed: of the moment of its failure, for it may be tried again by now."""
        wait = Until(self.supervisor, begun, judge)
        yield wait
        for instance, why in wait.failed.items():
            self._fail(begun[instance], instance, why)

    def _is_coming(self, change: Change) -> bool:
        instance = self.supervisor.instances.get(change.name)
        return instance is not None and instance.life.phase in (Phase.PREPARING, Phase.SPAWNING, Phase.STARTING)

    def _is_down(self, change: Change) -> bool:
        instance = self.supervisor.instances.get(change.name)
        return instance is None or instance.life.phase in (Phase.DOWN, Phase.BACKOFF)

    def _was_stopped(self, change: Change) -> bool:
        """Somebody has stopped it since this began: the later word counts (I3)."""
        instance = self.supervisor.instances.get(change.name)
        return instance is not None and instance.stops != self.stops.get(change.name, 0)

    def _begin(self, change: Change) -> Instance:
        instance = self._place(change, wanted=True)
        self.begun.add(change.name)
        self.supervisor.deliver(instance, machine.Start())
        return instance

    def _place(self, change: Change, wanted: bool) -> Instance:
        """The instance as the change wants it, at rest."""
        instance = self.supervisor.instances.get(change.name)
        if instance is None:
            instance = self.supervisor.add(
                Instance(
                    change.name, change.process, change.number, change.count, self.project, change.definition, self.path
                )
            )
        elif not rests(instance):
            self.supervisor.deliver(instance, machine.Stop())  # from BACKOFF, which it ends at once
        instance.redefine(change.definition)
        self.supervisor.change(
            instance, count=change.count, project=self.project, path=self.path or instance.path, wanted=wanted
        )
        return instance

    def _replace(self, change: Change, instance: Instance) -> Steps:
        yield from stop_in_order(self.supervisor, [instance])
        if not rests(instance):
            self._fail(change, instance, "could not be ended: it does not react to SIGKILL (uninterruptible sleep)")
        elif self._was_stopped(change):
            self._fail(change, instance, _STOPPED_MEANWHILE)
        else:
            self._begin(change)
            yield from self._await({instance: change}, is_settled)
            if change.name not in self.rows:
                self._row(change)

    def _update(self, change: Change) -> None:
        """What can change without the process noticing."""
        instance = self.supervisor.instances.get(change.name)
        if instance is None:
            return
        self._adopt(instance, change)
        if change.action is Action.UPDATED:
            self.supervisor.deliver(instance, machine.Redefined(Policy.of(change.definition)))
            self.supervisor.reconfigure(instance)

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
        yield from self._await(begun, is_settled)
        for change in begun.values():
            if change.name not in self.rows:
                self._row(change)

    # Rows

    def _row(self, change: Change, reached: bool = True) -> None:
        instance = self.supervisor.instances.get(change.name)
        made = views.row(self.supervisor, change, instance)
        if not reached and change.action is not Action.NONE:
            made = result_rows.skipped(made, f"not reached: {self.failures[0]} failed")
        self._tell(made)

    def _fail(self, change: Change, instance: Instance, why: str) -> None:
        self.failures.append(change.name)
        made = views.row(self.supervisor, change, instance)
        self._tell(result_rows.failed(made, why, self._last_words(instance)))

    def _last_words(self, instance: Instance) -> list[str]:
        """The output of its end, as it was told; of one that runs, the newest."""
        end = instance.life.end
        lines = end.tail if end is not None and instance.running is None else self.supervisor.last_words(instance)
        return [_masked(line, instance) for line in lines]

    def _tell(self, made: result_rows.Row) -> None:
        self.rows[made["name"]] = made
        self.on_row(made)


def why_failed(instance: Instance) -> str:
    """In words, without secrets: the command of a check may have said one."""
    life = instance.life
    if life.phase is Phase.UNHEALTHY:
        check = f"{life.checks[0].value} has not passed in time" if life.checks else "it is unhealthy"
        return f"did not become ready: {check}" + (f" ({_masked(life.complaint, instance)})" if life.complaint else "")
    if not instance.wanted:
        return _STOPPED_MEANWHILE
    return _masked(str(life.end), instance) if life.end is not None else f"is {life.status.value}"


def _masked(text: str, instance: Instance) -> str:
    return result_rows.masked(text, instance.definition.secrets.values())


def stop_in_order(
    supervisor: Supervisor, instances: Iterable[Instance], allowed: Judgement = lambda instance: True
) -> Steps:
    """Stops instances, dependents before what they depend on. Gives those that did not come to rest: they resist SIGKILL.

    `allowed` is asked of each when its turn comes."""
    resisting: list[Instance] = []
    for level in reversed(levels_of(instances)):
        told = yield from _deliver(supervisor, level, machine.Stop(), allowed)
        rested = yield Until(supervisor, told, rests, patience(told))
        if not rested:
            resisting += [one for one in told if not rests(one)]
    return resisting


def patience(instances: Iterable[Instance]) -> float:
    """Seconds in which all of them come to rest, unless one resists SIGKILL: for a stop, and for the hook after it."""
    longest = 0.0
    for instance in instances:
        policy = instance.life.policy
        hooks = policy.hook_timeout + _STUCK if policy.post_stop else 0.0
        longest = max(longest, policy.kill_timeout + hooks)
    return longest + _STUCK


def start_in_order(
    supervisor: Supervisor,
    instances: Iterable[Instance],
    event: machine.Event,
    allowed: Judgement = lambda instance: True,
) -> Steps:
    """Starts instances level by level. One that fails does not keep the others down: they may well do without it for a while."""
    for level in levels_of(instances):
        told = yield from _deliver(
            supervisor,
            level,
            event,
            # Somebody may have stopped or removed one since the walk began (I3).
            lambda one: one.wanted and supervisor.instances.get(one.name) is one and allowed(one),
        )
        yield Until(supervisor, told, is_ready)


def _deliver(supervisor: Supervisor, instances: Iterable[Instance], event: machine.Event, allowed: Judgement) -> Steps:
    """Tells instances of an event, a slice at a time; gives those that were told."""
    pace = Pace(supervisor.loop)
    told = []
    for instance in instances:
        if pace.over():
            yield pace
        if allowed(instance):
            supervisor.deliver(instance, event)
            told.append(instance)
    return told


def levels_of(instances: Iterable[Instance]) -> list[list[Instance]]:
    """Instances grouped by the order of their processes."""
    of_process: dict[str, list[Instance]] = {}
    definitions: dict[str, Definition] = {}
    for instance in instances:
        of_process.setdefault(instance.process, []).append(instance)
        definitions[instance.process] = instance.definition
    return [
        [one for name in level for one in sorted(of_process[name], key=lambda found: found.number)]
        for level in graph.levels(graph.of(definitions))
    ]


def with_dependents(supervisor: Supervisor, instances: Sequence[Instance]) -> list[Instance]:
    """The instances, and those that depend on them, directly or not. A dependency may name one instance only."""
    everything = supervisor.instances
    names: dict[str, set[str]] = {}  # what each instance depends on: instance names
    by_process: dict[str, list[str]] = {}
    for one in everything.values():
        by_process.setdefault(one.process, []).append(one.name)
    for one in everything.values():
        names[one.name] = {
            target
            for other in one.definition.depends_on
            for target in ([other] if other in everything else by_process.get(other, []))
        }
    found = graph.closure(names, [one.name for one in instances])
    return [everything[name] for name in everything if name in found]
