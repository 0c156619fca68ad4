# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Walks: changes of many instances, one dependency level after the other, each waiting for what it needs.

A walk delivers events to instances and waits for what becomes of them; what an instance does in between is the machine's affair.
Every wait here ends by itself: starts by the timeouts of their checks and `RESTARTS`, stops by `kill_timeout` and `STUCK`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Callable

from ..model import graph, machine, plan
from ..model.definition import Definition
from ..model.life import Cause, Phase
from .instance import Instance, has_completed
from .loop import Timer
from .supervisor import Supervisor
from .tasks import Pace, Steps

STUCK = 10.0  # seconds after SIGKILL in which the kernel has ended every process that it can end
RESTARTS = 3  # times that what is to come up may be begun anew because its own definition asks for that
STOPPED_MEANWHILE = "was stopped meanwhile"
_TRIGGERED = (Cause.WATCH, Cause.CRON, Cause.MEMORY)
RESISTS = "could not be ended: it does not react to SIGKILL (uninterruptible sleep)"

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
        self.late: list[Instance] = []  # those that were not there in time
        self._left: set[Instance] = {instance for instance in instances if not self._judged(instance)}
        # The newest end of each, and how many since then were for a new beginning.
        self._ends = {one: (one.life.end, 0) for one in self._left if one.life.end is not None}
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

    def _is_begun_for_ever(self, instance: Instance) -> bool:
        """Whether it has been begun anew so often, before it came up, that it will not: it may write what it watches itself."""
        end = instance.life.end
        last, times = self._ends.get(instance, (None, 0))
        if (
            end is None
            or end is last
            or end.cause not in _TRIGGERED
            or self._judge not in (is_begun, is_ready, is_settled)
        ):
            return False
        self._ends[instance] = (end, times + 1)
        if times + 1 < RESTARTS:
            return False
        self.failed[instance] = f"was restarted {RESTARTS} times by {end.cause.value} before it had come up"
        return True

    def _look(self, instance: Instance) -> None:
        if instance in self._left and (self._judged(instance) or self._is_begun_for_ever(instance)):
            self._left.discard(instance)
            self._supervisor.unwatch(instance.name, self._look)
            if not self._left:
                # Later in this turn: we are called in the middle of an event's effects.
                self._supervisor.loop.soon(lambda: self._end(True))

    def _end(self, answer: bool) -> None:
        resume = self._resume  # None: cancelled, or the time was over in the very turn in which it came true
        self.late = list(self._left)
        self.cancel()
        if resume is not None:
            resume(answer)


class Pause:
    """Waits so many seconds, or until it is ended before."""

    def __init__(self, supervisor: Supervisor, seconds: float) -> None:
        self._loop = supervisor.loop
        self._seconds = seconds
        self._timer: Timer | None = None
        self._resume: Callable[[Any], None] | None = None

    def begin(self, resume: Callable[[Any], None]) -> None:
        self._resume = resume
        self._timer = self._loop.after(self._seconds, self._over)

    def end(self) -> None:
        self._loop.soon(self._over)

    def cancel(self) -> None:
        self._resume = None
        if self._timer is not None:
            self._timer.cancel()

    def _over(self) -> None:
        resume = self._resume
        self.cancel()
        if resume is not None:
            resume(None)


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


def was_stopped_since(instance: Instance, stops: Mapping[str, int]) -> bool:
    """Whether somebody has stopped it after `stops` were taken, and nothing has undone that. One that has come to be since counts, too."""
    return not instance.wanted and instance.stops != stops.get(instance.name, 0)


def why_failed(instance: Instance) -> str:
    """In words, without secrets: the command of a check may have said one."""
    life = instance.life
    if life.phase is Phase.UNHEALTHY:
        check = f"{life.checks[0].value} has not passed in time" if life.checks else "it is unhealthy"
        return f"did not become ready: {check}" + (f" ({masked(life.complaint, instance)})" if life.complaint else "")
    if not instance.wanted:
        return stopped_meanwhile(instance)
    return masked(str(life.end), instance) if life.end is not None else f"is {life.status.value}"


def stopped_meanwhile(instance: Instance) -> str:
    """And by whom, where that is known."""
    return STOPPED_MEANWHILE + (f" ({instance.stopper})" if instance.stopper else "")


def too_late(seconds: float) -> str:
    return f"did not come up within update.deadline ({seconds:g} s)"


def last_words(supervisor: Supervisor, instance: Instance) -> list[str]:
    """The output of its end, as it was told; of one that runs, the newest. Without secrets."""
    end = instance.life.end
    lines = end.tail if end is not None and instance.running is None else supervisor.last_words(instance)
    return [masked(line, instance) for line in lines]


def masked(text: str, instance: Instance) -> str:
    return plan.masked(text, instance.definition.secrets.values())


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
        hooks = policy.hook_timeout + STUCK if policy.post_stop else 0.0
        longest = max(longest, policy.kill_timeout + hooks)
    return longest + STUCK


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
