# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The life of one instance: the contract with pm3 as examples, and random histories that try to break the promises.

`World` is a host with one instance on it: it honours effects (a process is there after Spawn and Spawned, it ends when killed, a
timer fires only while it is armed) and holds the machine to its promises at every step. A history is what a world lets happen; when
one breaks a promise, hypothesis shrinks it and prints it as a story.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.definition import load
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.life import (
    After,
    Cause,
    Check,
    End,
    Life,
    Liveness,
    Phase,
    Policy,
    Status,
    Timer,
    Work,
)
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.machine import (
    FIRST_BACKOFF,
    GRACE,
    LONGEST_BACKOFF,
    STABLE,
    TABLE,
    Arm,
    Ask,
    Disarm,
    Effect,
    EndProbe,
    Event,
    Exited,
    Failed,
    Fired,
    Gone,
    Kill,
    Passed,
    Probe,
    Redefined,
    Restart,
    Signal,
    Spawn,
    Spawned,
    SpawnFailed,
    Start,
    Stop,
    Sweep,
    Tell,
    Tripped,
    Unasked,
    Waiting,
    backoff,
    is_swept,
    revived,
    step,
)
from ansible_collections.pm3.fleet.tests.unit.examples import examples
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

READY, HEALTHY, LIVELY = Check.READINESS, Check.HEALTH, Check.LIVENESS
KILLED = Exited(End(Cause.SIGNAL, signal=9))
UNSEEN = Exited(End(Cause.UNKNOWN))
MEMORY = Tripped(Cause.MEMORY, "used 200 MiB")
WATCH = Tripped(Cause.WATCH, "app.py changed")
CRON = Tripped(Cause.CRON, "it was time")
PRE, PROGRAM, POST = Work.PRE_START, Work.PROGRAM, Work.POST_STOP
HOOKED = {"pre_start": "migrate", "post_stop": "tidy"}
WATCHED = {"liveness_check": "tcp://localhost:9", "liveness_failures": 2}


def policy(**table: Any) -> Policy:
    """The policy of a definition that says so much beside its command."""
    return Policy.of(load({"web": {"command": "serve", **table}})["web"])


def exited(code: int) -> Exited:
    return Exited(End(Cause.EXIT, code=code))


# The world ------------------------------------------------------------------------------------------------------------

# Which timers a phase may have set. Whoever rests has none.
TIMERS: dict[Phase, frozenset[Timer]] = {
    Phase.DOWN: frozenset(),
    Phase.PREPARING: frozenset({Timer.HOOK}),
    Phase.SPAWNING: frozenset(),
    Phase.ABORTING: frozenset(),
    Phase.STARTING: frozenset({Timer.GRACE, Timer.SETTLE, Timer.ATTEMPT, Timer.PATIENCE}),
    Phase.ONLINE: frozenset({Timer.SETTLE, Timer.ATTEMPT}),
    Phase.UNHEALTHY: frozenset({Timer.SETTLE, Timer.ATTEMPT, Timer.PATIENCE}),
    Phase.STOPPING: frozenset({Timer.KILL}),
    Phase.KILLING: frozenset(),
    Phase.SWEEPING: frozenset({Timer.KILL}),
    Phase.CLEANING: frozenset({Timer.HOOK}),
    Phase.BACKOFF: frozenset({Timer.BACKOFF}),
}
UP = (Phase.STARTING, Phase.ONLINE, Phase.UNHEALTHY)
ALIVE = (*UP, Phase.STOPPING, Phase.KILLING)
HOOKS = {Phase.PREPARING: Work.PRE_START, Phase.CLEANING: Work.POST_STOP}
ENDED = [Status.STOPPED, Status.ERRORED]
WORDS: dict[Phase, list[Status]] = {  # what a person may be told; the other phases have no word of their own
    **dict.fromkeys((Phase.DOWN, Phase.SWEEPING, Phase.CLEANING), ENDED),
    **{phase: [Status.STARTING] for phase in (Phase.PREPARING, Phase.SPAWNING, Phase.ABORTING, Phase.STARTING)},
    Phase.ONLINE: [Status.ONLINE],
    Phase.UNHEALTHY: [Status.UNHEALTHY],
    Phase.BACKOFF: [Status.ERRORED],
}


def words(thing: Any) -> str:
    """An event, effect or end, told without what it does not say."""
    if isinstance(thing, Redefined):
        usual = policy()
        other = {row.name: getattr(thing.policy, row.name) for row in fields(usual)}
        return f"Redefined({', '.join(f'{name}={value}' for name, value in other.items() if value != getattr(usual, name))})"
    if isinstance(thing, enum.Enum):
        return str(thing.value)
    if isinstance(thing, tuple):
        return ", ".join(words(one) for one in thing)
    if not is_dataclass(thing):
        return repr(thing)
    said = [words(getattr(thing, row.name)) for row in fields(thing) if getattr(thing, row.name) not in (None, "", ())]
    return f"{type(thing).__name__}({', '.join(said)})"


def is_effective(life: Life, event: Tripped) -> bool:
    """Whether a new process follows from it: what runs is replaced, what has ended wakes, what was stopped does not."""
    if life.phase in UP:
        return True
    follows = After.BACKOFF if life.phase is Phase.BACKOFF else life.after
    ended = life.phase in (Phase.DOWN, Phase.BACKOFF, Phase.SWEEPING, Phase.CLEANING)
    if not (life.wanted and ended and event.cause in (Cause.WATCH, Cause.CRON)):
        return False
    return follows is After.REST or (follows is After.BACKOFF and event.cause is Cause.WATCH)


def begins(effects: list[Effect]) -> bool:
    return any(isinstance(effect, Spawn) and effect.work is not Work.POST_STOP for effect in effects)


@dataclass
class World:
    """A host with one instance on it, and the shell that carries out what the machine orders."""

    life: Life
    now: float = 1000.0
    spawning: Work | None = None  # ordered, not answered
    running: Work | None = None  # the main process
    rest: bool = False  # others of the instance run
    sweeping: bool = False  # Gone is owed
    asked: bool = False  # it got its signal, or stop_command was run
    asking: bool = False  # stop_command runs
    killed: bool = False  # nothing of it will live on
    probe: Check | None = None
    timers: dict[Timer, float] = field(default_factory=dict)
    wanted: bool = False  # the user's last word was Start or Restart
    called: bool = False  # there is a word, or a trigger, from which the next start follows
    prepared: bool = False  # pre_start has passed, for the program that is spawned in this very moment
    owed: bool = False  # a program ran, and its post_stop did not yet
    counted: int = 0  # restarts, by our own count
    streak: int = 0  # restarts after failures, in a row
    spawns: int = 0  # of the program
    works: list[Work] = field(default_factory=list)  # all that was spawned, in order
    said: list[str] = field(default_factory=list)  # by Tell
    signals: list[str] = field(default_factory=list)
    asks: int = 0
    kills: int = 0
    lost: bool = False  # the agent dies between deciding and acting
    phases: list[Phase] = field(default_factory=list)
    seen: tuple[Status, float | None, int] | None = None
    story: list[str] = field(default_factory=list)

    def tell(self, *events: Event) -> World:
        for event in events:
            before = self.life
            self.happens(event)
            self.life, effects = step(before, event, self.now)
            told = ", ".join(words(effect) for effect in effects)
            self.story.append(
                f"{self.now - 1000:9.2f}  {words(event)}: {before.phase.value} -> {self.life.phase.value}"
                + (f", {told}" if told else "")
            )
            self.judge(before, event, effects)
            if not self.lost:
                self.carry_out(effects)
            self.prepared = False
        return self

    def happens(self, event: Event) -> None:
        """What the event itself says of the host."""
        if isinstance(event, (Start, Stop, Restart)):
            self.wanted = self.called = not isinstance(event, Stop)
            self.streak = 0
            self.counted += isinstance(event, Restart)
        elif isinstance(event, Spawned):
            assert self.spawning is not None, "Spawned tells of a spawn that was ordered"
            self.running, self.spawning = self.spawning, None
            self.asked = self.asking = self.killed = False
            self.owed = self.owed or self.running is Work.PROGRAM
        elif isinstance(event, SpawnFailed):
            assert self.spawning is not None
            self.spawning = None
        elif isinstance(event, Exited):
            lived = self.now - (self.life.started or self.now)
            if self.running is Work.PROGRAM and lived >= max(STABLE * self.life.policy.min_uptime, 1.0):
                self.streak = 0
            self.running, self.asking = None, False
        elif isinstance(event, Gone):
            assert (self.sweeping, self.running) == (True, None)
            hook = self.life.hook
            self.prepared = self.life.phase is Phase.PREPARING and hook is not None and hook.code == 0
            self.sweeping = self.rest = False
            self.owed = self.owed and self.life.policy.post_stop
        elif isinstance(event, Fired):
            self.timers.pop(event.timer, None)
        elif isinstance(event, Unasked):
            self.asking = False
        elif isinstance(event, (Passed, Failed)) and event.check is self.probe:
            self.probe = None

    def judge(self, before: Life, event: Event, effects: list[Effect]) -> None:
        """Whether what was decided may be decided: a restart has its reason, its count, and its place in the budget."""
        start = begins(effects)
        if isinstance(event, Tripped) and is_effective(before, event):
            self.counted += 1
            self.called = True
            if before.phase in UP:
                assert self.life.failures == before.failures, "a trigger is no failure"
            else:
                self.streak = 0
        elif isinstance(event, Tripped):
            assert (self.life, effects) == (before, []), "a trigger that means nothing changes nothing"
        if start and isinstance(event, Fired):
            assert event.timer is Timer.BACKOFF
            assert before.policy.restart != "never", "never means never"
            self.counted += 1
            self.streak += 1
            assert self.streak <= before.policy.max_restarts, "it is restarted more often than it may be"
        elif start and before.phase is not Phase.PREPARING:
            assert self.called, "a start without a reason"
        self.called = self.called and not start

    def carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Spawn):
                self.spawn(effect.work)
            elif isinstance(effect, Signal):
                assert effect.name == self.life.policy.kill_signal
                self.asked = True
                self.signals.append(effect.name)
            elif isinstance(effect, Ask):
                assert self.life.policy.stop_command
                self.asked = self.asking = True
                self.asks += 1
            elif isinstance(effect, Kill):
                self.killed, self.rest, self.asking = True, False, False
                self.kills += 1
            elif isinstance(effect, Sweep):
                assert self.running is None, "what is left is swept away when the main process has ended"
                self.sweeping = True
            elif isinstance(effect, Arm):
                assert effect.seconds >= 0
                if effect.timer is Timer.BACKOFF:
                    assert effect.seconds == min(FIRST_BACKOFF * 2.0**self.life.failures, LONGEST_BACKOFF)
                self.timers[effect.timer] = self.now + effect.seconds
            elif isinstance(effect, Disarm):
                for timer in effect.timers:
                    self.timers.pop(timer, None)
            elif isinstance(effect, Probe):
                known = effect.check in self.life.policy.checks
                assert known or (effect.check is LIVELY and self.life.policy.liveness), "no such check is defined"
                assert self.probe is None, "two attempts at a time"
                self.probe = effect.check
            elif isinstance(effect, Tell):
                self.said.append(effect.message)
            else:
                assert isinstance(effect, EndProbe)
                self.probe = None
        self.look()

    def spawn(self, work: Work) -> None:
        left = [self.spawning, self.running, self.rest, self.sweeping]
        assert not any(left), "I1: two processes at a time"
        if work is Work.POST_STOP:
            assert self.owed, "post_stop of what did not run, or once more"
            self.owed = False
        else:
            assert self.wanted, "I3: a stop was undone"
            assert not self.owed, "a start before post_stop"
        if work is Work.PRE_START:
            assert self.life.policy.pre_start, "a hook that is not defined"
        if work is Work.PROGRAM:
            assert self.prepared or not self.life.policy.pre_start, "a start without its pre_start"
            self.spawns += 1
        self.spawning = work
        self.works.append(work)

    def look(self) -> None:
        """What must be so in every moment."""
        life = self.life
        self.phases.append(life.phase)
        self.look_at_processes()
        self.look_at_timers()
        assert life.wanted == self.wanted, "it does not know who wants what"
        assert (life.started is not None) == (self.running is Work.PROGRAM), "W7: uptime of what does not run"
        assert life.status in WORDS.get(life.phase, list(Status)), "W7: the status lies"
        assert life.total_restarts == self.counted, "the counter lies"
        assert 0 <= life.restarts <= life.total_restarts
        if not self.wanted:
            assert life.after is After.REST, "I3: something is still to follow a stop"
        status, since, total = self.seen or (life.status, life.since, 0)
        assert total <= life.total_restarts, "total_restarts shrinks"
        if life.status is status:
            assert since in (None, life.since), "since when it is so has changed, and it has not"
        else:
            assert life.since == self.now, "it has just become so"
        self.seen = (life.status, life.since, life.total_restarts)

    def look_at_processes(self) -> None:
        life = self.life
        places = [self.spawning is not None, self.running is not None, self.sweeping]
        assert sum(places) == (life.phase not in (Phase.DOWN, Phase.BACKOFF)), "one thing at a time is under way"
        hook = HOOKS.get(life.phase)
        if hook is not None:
            assert {self.spawning, self.running} <= {None, hook}
            assert self.sweeping == (life.hook is not None)
            unwanted = life.after is not After.GO_ON and hook is Work.PRE_START
            assert self.killed or not (unwanted and self.running), "a start that nobody wants goes on"
        else:
            assert (self.running is Work.PROGRAM) == (life.phase in ALIVE)
            assert (self.spawning is Work.PROGRAM) == (life.phase in (Phase.SPAWNING, Phase.ABORTING))
            assert self.sweeping == (life.phase is Phase.SWEEPING)
            assert life.hook is None
        assert is_swept(life) == self.sweeping
        assert not (self.sweeping and self.rest) or Timer.KILL in self.timers, "what it left behind lives on"
        if life.phase is Phase.STOPPING:
            assert self.asked
        if life.phase is Phase.KILLING:
            assert self.killed
        if life.phase not in (Phase.SWEEPING, *ALIVE):
            assert not self.owed or self.spawning, "a post_stop is left out"
        assert (life.ending is not None) <= (life.phase in (Phase.STOPPING, Phase.KILLING) or self.running is not None)

    def look_at_timers(self) -> None:
        life, armed = self.life, set(self.timers)
        assert armed <= TIMERS[life.phase], f"timers that are left armed: {self.timers}"
        needed: set[Timer] = set()  # without which it could wait for ever
        if life.phase in HOOKS and self.running and not self.killed:
            needed = {Timer.HOOK}
        elif life.phase is Phase.STARTING:
            needed = {Timer.PATIENCE} if life.checks else {Timer.GRACE}
        elif life.phase in (Phase.STOPPING, Phase.BACKOFF):
            needed = set(TIMERS[life.phase])
        assert needed <= armed, f"nothing will ever happen: {self.timers}"
        checked = bool(life.checks) if life.phase is not Phase.ONLINE else life.policy.liveness is not None
        if life.phase in UP and checked:
            assert (Timer.ATTEMPT in armed) != (self.probe is not None), "an attempt is due, or under way"
            assert self.probe in (None, life.checks[0] if life.checks else LIVELY)
        else:
            assert (Timer.ATTEMPT in armed, self.probe) == (False, None), "a check goes on for what needs none"

    def fire(self, timer: Timer | None = None) -> World:
        """The next timer fires, when its time has come."""
        timer = timer or min(self.timers, key=lambda one: self.timers[one])
        self.now = max(self.now, self.timers[timer])
        return self.tell(Fired(timer))

    def die(self, *, ended: bool = False) -> None:
        """The agent is killed and started again. `ended`: the process ended meanwhile. A spawn that was not recorded is undone."""
        self.story.append(f"{self.now - 1000:9.2f}  the agent dies{', and meanwhile the process ends' * ended}")
        phase, running = self.life.phase, self.running is not None
        self.timers.clear()
        self.owed = self.owed or self.spawning is Work.POST_STOP
        self.owed = self.owed and (self.life.policy.post_stop or phase is not Phase.CLEANING)
        self.probe, self.spawning, self.sweeping, self.asking, self.lost = None, None, False, False, False
        if not (running and ended) or phase in (Phase.STOPPING, Phase.KILLING):
            self.prepared = phase is Phase.SPAWNING
            self.life, effects = revived(self.life, self.now, running or is_swept(self.life))
            told = ", ".join(words(effect) for effect in effects)
            self.story.append(f"           revived: {phase.value} -> {self.life.phase.value}, {told}")
            self.called = self.called and not begins(effects)
            self.carry_out(effects)
            self.prepared = False
        if running and ended:
            self.tell(UNSEEN)

    def cooperate(self, *, stubborn: bool = False, hung: bool = False) -> bool:
        """The one next thing that happens where all goes well, or False when nothing is left to happen.

        `stubborn`: signals are ignored. `hung`: hooks never end by themselves.
        """
        idle = {Timer.ATTEMPT} if self.life.phase is Phase.ONLINE else set()
        if self.spawning:
            self.tell(Spawned())
        elif self.running and self.killed:
            self.tell(KILLED)
        elif self.running in HOOKS.values():
            self.fire(Timer.HOOK) if hung else self.tell(exited(0))
        elif self.running and self.asked and not stubborn:
            self.tell(Exited(End(Cause.SIGNAL, signal=15)))
        elif self.sweeping and not (self.rest and stubborn):
            self.tell(Gone())
        elif self.probe is not None:
            self.tell(Passed(self.probe))
        elif set(self.timers) - idle:
            self.fire(min(set(self.timers) - idle, key=lambda one: self.timers[one]))
        else:
            return False
        return True

    def settle(self, *, stubborn: bool = False, hung: bool = False) -> World:
        """Lets happen what happens by itself, until nothing is left to happen."""
        for _turn in range(30):
            if not self.cooperate(stubborn=stubborn, hung=hung):
                return self
        raise AssertionError("comes to no rest")


def up(**table: Any) -> World:
    """An instance that was started and is online."""
    world = World(Life(policy(**table))).tell(Start()).settle()
    assert world.life.phase is Phase.ONLINE
    return world


def crash(world: World, code: int = 1) -> World:
    """It ends by itself, and all of it is gone."""
    return world.tell(exited(code), Gone())


# Examples: an ordinary life ---------------------------------------------------------------------------------------------


def test_a_life_without_checks() -> None:
    world = World(Life(policy()))
    assert (world.life.phase, world.life.status) == (Phase.DOWN, Status.STOPPED)
    world.tell(Start())
    assert (world.life.phase, world.life.status) == (Phase.SPAWNING, Status.STARTING)
    world.tell(Spawned())
    assert world.life.phase is Phase.STARTING
    assert world.timers == {Timer.GRACE: world.now + GRACE, Timer.SETTLE: world.now + 1.0}
    world.fire(Timer.GRACE)
    assert (world.life.phase, world.life.status) == (Phase.ONLINE, Status.ONLINE)
    world.tell(Stop())
    assert (world.life.phase, world.asked) == (Phase.STOPPING, True)
    world.tell(exited(0))
    assert (world.life.phase, world.life.status) == (Phase.SWEEPING, Status.STOPPED)
    world.tell(Gone())
    assert (world.life.phase, world.life.status, world.life.restarts) == (Phase.DOWN, Status.STOPPED, 0)


def test_what_an_attempt_waits_for_is_the_complaint_until_it_passes() -> None:
    """notify://: one attempt that takes as long as it takes, and no other is ever due."""
    world = World(Life(policy(readiness_check="notify://", health_check="http://localhost/")))
    world.tell(Start(), Spawned(), Waiting(READY, "no word yet"))
    assert (world.probe, world.life.complaint) == (READY, "no word yet")
    assert Timer.ATTEMPT not in world.timers
    world.fire(Timer.PATIENCE).tell(Waiting(HEALTHY, "not its turn"), Waiting(READY, "it warms up"))
    assert (world.life.phase, world.probe, world.life.complaint) == (Phase.UNHEALTHY, READY, "it warms up")
    world.tell(Passed(READY))
    assert (world.probe, world.life.complaint) == (HEALTHY, "")
    world.tell(Waiting(READY, "too late"))
    assert world.life.complaint == ""
    world.tell(Passed(HEALTHY))
    assert world.life.phase is Phase.ONLINE


def test_readiness_comes_first_then_health_then_it_is_online() -> None:
    world = World(Life(policy(readiness_check="tcp://localhost:1", health_check="http://localhost/")))
    world.tell(Start(), Spawned())
    assert (world.life.phase, world.probe) == (Phase.STARTING, READY)
    world.tell(Failed(READY))
    assert world.probe is None
    world.fire(Timer.ATTEMPT)
    assert world.probe is READY
    world.tell(Passed(READY))
    assert (world.life.phase, world.probe) == (Phase.STARTING, HEALTHY)
    world.tell(Passed(HEALTHY))
    assert (world.life.status, world.probe) == (Status.ONLINE, None)


@pytest.mark.parametrize(
    ("table", "seconds"),
    [
        ({"readiness_check": "tcp://localhost:1"}, 30.0),
        ({"readiness_check": "tcp://localhost:1", "readiness_timeout": "250ms"}, 0.25),
        ({"health_check": "tcp://localhost:1"}, 30.0),
    ],
)
def test_a_check_that_does_not_pass_in_time_is_unhealthy(table: dict[str, Any], seconds: float) -> None:
    world = World(Life(policy(**table))).tell(Start(), Spawned())
    assert world.timers[Timer.PATIENCE] == world.now + seconds
    world.fire(Timer.PATIENCE)
    assert (world.life.phase, world.life.status) == (Phase.UNHEALTHY, Status.UNHEALTHY)


def test_w15_what_was_only_slow_becomes_online_after_all() -> None:
    world = World(Life(policy(readiness_check="tcp://localhost:1"))).tell(Start(), Spawned())
    world.fire(Timer.PATIENCE).tell(Failed(READY)).fire(Timer.ATTEMPT).tell(Passed(READY))
    assert world.life.status is Status.ONLINE


def test_who_does_not_stop_in_time_is_killed() -> None:
    world = up(kill_timeout=300, kill_signal="INT").tell(Stop())
    assert world.life.policy.kill_signal == "SIGINT"
    assert world.timers == {Timer.KILL: world.now + 0.3}
    world.fire(Timer.KILL)
    assert (world.life.phase, world.killed) == (Phase.KILLING, True)
    world.tell(KILLED, Gone())
    assert (world.life.phase, world.life.status) == (Phase.DOWN, Status.STOPPED)


def test_w17_the_group_has_what_is_left_of_kill_timeout_then_it_is_killed() -> None:
    world = up().tell(Stop())
    world.rest = True
    world.tell(exited(0))
    assert world.life.phase is Phase.SWEEPING
    assert not world.killed
    world.fire(Timer.KILL)
    assert world.killed
    assert world.tell(Gone()).life.phase is Phase.DOWN


def test_w17_what_a_crash_leaves_is_killed_before_anything_follows() -> None:
    world = up()
    world.rest = True
    world.tell(exited(1))
    assert world.killed
    assert world.life.phase is Phase.SWEEPING


def test_what_was_forked_during_the_kill_is_killed_too() -> None:
    world = up().tell(Stop()).fire(Timer.KILL)
    world.rest = True
    world.tell(KILLED)
    assert (world.life.phase, world.rest) == (Phase.SWEEPING, False)


def test_w18_who_cannot_be_killed_is_not_said_to_be_stopped() -> None:
    world = up().tell(Stop()).fire(Timer.KILL)
    assert world.life.phase is Phase.KILLING
    assert world.timers == {}
    assert world.tell(Start()).life.phase is Phase.KILLING


def test_the_end_is_kept_with_its_cause() -> None:
    at = up().now
    assert crash(up(), 3).life.end == End(Cause.EXIT, code=3, at=at)
    assert up().tell(KILLED).life.end == End(Cause.SIGNAL, signal=9, at=at)
    assert up().tell(Stop(), exited(143)).life.end == End(Cause.USER, code=143, at=at)
    failed = World(Life(policy())).tell(Start(), SpawnFailed("no such program"))
    assert failed.life.end == End(Cause.SPAWN, message="no such program", at=failed.now)


def test_the_end_is_kept_with_its_last_lines_until_the_next() -> None:
    world = up().tell(exited(1))
    world.now += 3
    world.tell(Gone(("Traceback", "KeyError: 'port'")))
    ended = End(Cause.EXIT, code=1, at=world.now - 3, tail=("Traceback", "KeyError: 'port'"))
    assert world.life.end == ended
    assert world.settle().life.end == ended
    assert world.tell(Stop()).settle().life.end == End(Cause.USER, signal=15, at=world.now)


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (End(Cause.EXIT, code=3), "exited with code 3"),
        (End(Cause.SIGNAL, signal=9), "was ended by signal 9"),
        (End(Cause.UNKNOWN), "ended unseen"),
        (End(Cause.OOM, signal=9), "was ended by the kernel: out of memory"),
        (
            End(Cause.PROBE, signal=9, message="liveness_check failed once: refused"),
            "liveness_check failed once: refused",
        ),
        (End(Cause.SPAWN, message="no such program"), "no such program"),
    ],
)
def test_an_end_in_words(end: End, words: str) -> None:
    assert str(end) == words


def test_a_policy_is_a_definition_in_the_machines_units() -> None:
    assert policy(
        min_uptime="2s", kill_timeout=250, stop_exit_codes=[3, 2], health_check="tcp://localhost:1"
    ) == Policy(
        restart="on_failure",
        max_restarts=15,
        min_uptime=2.0,
        stop_exit_codes=(2, 3),
        kill_signal="SIGTERM",
        kill_timeout=0.25,
        stop_command=False,
        pre_start=False,
        post_stop=False,
        hook_timeout=300.0,
        checks=(HEALTHY,),
        readiness_timeout=30.0,
        liveness=None,
    )
    other = policy(**HOOKED, **WATCHED, stop_command="quit", hook_timeout="2m", liveness_interval="500ms")
    assert (other.stop_command, other.pre_start, other.post_stop, other.hook_timeout) == (True, True, True, 120.0)
    assert (other.checks, other.liveness) == ((), Liveness(interval=0.5, failures=2, successes=1))


# Examples: the contract with pm3 (spec: pm3.md, sections 3.1, 3.4, 9.12 and 10) -----------------------------------------


def run_out(world: World, code: int) -> World:
    """It exits at once, every time, until it is left alone."""
    for _time in range(world.life.policy.max_restarts + 1):
        if world.life.phase is Phase.BACKOFF:
            world.fire(Timer.BACKOFF).tell(Spawned())
        crash(world, code)
    assert world.life.phase is Phase.DOWN
    return world


def test_always_and_exit_0_with_a_limit_of_2_ends_stopped_with_counter_2() -> None:
    world = World(Life(policy(restart="always", max_restarts=2))).tell(Start(), Spawned())
    life = run_out(world, 0).life
    assert (life.status, life.restarts, life.started) == (Status.STOPPED, 2, None)
    assert world.spawns == 3


def test_on_failure_and_exit_1_with_a_limit_of_3_ends_errored_with_counter_3_within_2_seconds() -> None:
    world = World(Life(policy(max_restarts=3))).tell(Start(), Spawned())
    began = world.now
    life = run_out(world, 1).life
    assert (life.status, life.restarts) == (Status.ERRORED, 3)
    assert world.now - began < 2


def test_a_crash_after_a_long_enough_run_shows_counter_1() -> None:
    world = up()
    for _time in range(2):
        world.now += 5
        crash(world).settle()
    assert (world.life.status, world.life.restarts, world.life.total_restarts) == (Status.ONLINE, 1, 2)


def test_a_manual_restart_shows_counter_1() -> None:
    world = up().tell(Restart()).settle()
    assert (world.life.status, world.life.restarts, world.spawns) == (Status.ONLINE, 1, 2)


@pytest.mark.parametrize(
    "told",
    [[], [Stop()], [exited(1)], [exited(1), Gone()], [Stop(), exited(0)]],
    ids=["up", "stopping", "swept", "waiting", "ended"],
)
def test_a_manual_restart_counts_one_wherever_it_comes(told: list[Event]) -> None:
    world = up().tell(*told, Restart()).settle()
    assert (world.life.status, world.life.restarts, world.spawns) == (Status.ONLINE, 1, 2)


def test_a_manual_restart_while_it_is_being_spawned_counts_and_has_a_fresh_budget() -> None:
    world = World(Life(policy(max_restarts=1))).tell(Start(), Spawned())
    crash(world).fire(Timer.BACKOFF)
    assert (world.life.phase, world.life.failures) == (Phase.SPAWNING, 1)
    world.tell(Restart())
    assert (world.life.phase, world.life.restarts, world.life.failures) == (Phase.ABORTING, 2, 0)
    assert world.settle().life.status is Status.ONLINE


def test_a_stop_code_is_errored_and_not_started_again() -> None:
    life = crash(up(stop_exit_codes=[7]), 7).life
    assert (life.phase, life.status, life.restarts) == (Phase.DOWN, Status.ERRORED, 0)


def test_always_honours_stop_codes() -> None:
    life = crash(up(restart="always", stop_exit_codes=[7]), 7).life
    assert (life.phase, life.status) == (Phase.DOWN, Status.ERRORED)
    life = crash(up(restart="always", stop_exit_codes=[0]), 0).life
    assert (life.phase, life.status) == (Phase.DOWN, Status.STOPPED)


@pytest.mark.parametrize(
    ("restart", "event", "follows"),
    [
        ("on_failure", exited(0), Status.STOPPED),
        ("on_failure", exited(1), None),
        ("on_failure", KILLED, None),
        ("on_failure", UNSEEN, None),
        ("always", exited(0), None),
        ("always", exited(1), None),
        ("always", KILLED, None),
        ("always", UNSEEN, None),
        ("never", exited(0), Status.STOPPED),
        ("never", exited(1), Status.ERRORED),
        ("never", KILLED, Status.ERRORED),
        ("never", UNSEEN, Status.ERRORED),
    ],
    ids=repr,
)
def test_what_follows_an_exit(restart: str, event: Exited, follows: Status | None) -> None:
    """`follows` is the word that it rests with, None: it is started again."""
    life = up(restart=restart).tell(event, Gone()).life
    assert (life.phase, life.status) == ((Phase.DOWN, follows) if follows else (Phase.BACKOFF, Status.ERRORED))


def test_a_limit_of_0_never_restarts() -> None:
    life = crash(up(restart="always", max_restarts=0)).life
    assert (life.phase, life.status, life.restarts) == (Phase.DOWN, Status.ERRORED, 0)


def test_a_clean_exit_with_the_budget_used_up_is_no_exhaustion() -> None:
    world = World(Life(policy(max_restarts=1))).tell(Start(), Spawned())
    crash(world).settle()
    world.now += 5
    life = crash(world, 0).life
    assert (life.status, life.restarts) == (Status.STOPPED, 0)


def test_an_instant_exit_is_seen_before_it_is_online() -> None:
    world = World(Life(policy())).tell(Start(), Spawned(), exited(1))
    assert Phase.ONLINE not in world.phases
    assert world.life.status is Status.ERRORED


# Examples: backoff and budget -------------------------------------------------------------------------------------------


def test_the_backoff_doubles_from_100_ms_and_ends_at_30_s() -> None:
    assert [backoff(failures) for failures in range(11)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0]
    assert backoff(2**32) == LONGEST_BACKOFF


def test_the_waits_of_a_crash_loop() -> None:
    world = World(Life(policy(max_restarts=5))).tell(Start(), Spawned())
    waits = []
    for _time in range(5):
        crash(world)
        waits.append(round(world.timers[Timer.BACKOFF] - world.now, 6))
        world.fire(Timer.BACKOFF).tell(Spawned())
    assert crash(world).life.phase is Phase.DOWN
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6]


def test_w20_a_crash_loop_is_not_forgotten_after_min_uptime() -> None:
    """It dies every 1.1 s, always a little later than min_uptime: the waits grow all the same, and it is given up in the end."""
    world = up(max_restarts=4)
    for wait in (0.1, 0.2, 0.4, 0.8):
        world.now += 1.1
        crash(world)
        assert round(world.timers[Timer.BACKOFF] - world.now, 6) == wait
        world.settle()
    world.now += 1.1
    crash(world)
    assert (world.life.status, world.life.restarts) == (Status.ERRORED, 4)


def test_w20_who_recovered_for_good_has_a_fresh_budget() -> None:
    world = up(max_restarts=1)
    for _time in range(5):
        world.now += STABLE * 1.0
        crash(world).settle()
    assert world.life.status is Status.ONLINE


@pytest.mark.parametrize("command", [Start(), Restart()], ids=repr)
def test_w20_a_start_after_exhaustion_has_a_fresh_budget(command: Event) -> None:
    world = World(Life(policy(max_restarts=2))).tell(Start(), Spawned())
    run_out(world, 1).tell(command, Spawned())
    assert world.life.failures == 0
    run_out(world, 1)
    assert world.spawns == 6
    assert world.life.restarts == 2


def test_w20_manual_restarts_do_not_eat_the_budget() -> None:
    world = up(max_restarts=2)
    for _time in range(5):
        world.tell(Restart()).settle()
    assert world.life.restarts == 5
    assert crash(world).settle().life.status is Status.ONLINE


def test_w21_a_transient_spawn_failure_is_tried_again() -> None:
    world = crash(up()).fire(Timer.BACKOFF).tell(SpawnFailed("no such program"))
    assert (world.life.phase, world.life.status) == (Phase.BACKOFF, Status.ERRORED)
    assert world.settle().life.status is Status.ONLINE


def test_w21_and_is_given_up_when_the_budget_is_used_up() -> None:
    world = crash(up(max_restarts=2))
    for _time in range(2):
        world.fire(Timer.BACKOFF).tell(SpawnFailed("no such program"))
    assert (world.life.phase, world.life.status, world.life.restarts) == (Phase.DOWN, Status.ERRORED, 2)


def test_a_start_that_was_asked_for_fails_at_once() -> None:
    life = World(Life(policy())).tell(Start(), SpawnFailed("no such program")).life
    assert (life.phase, life.status) == (Phase.DOWN, Status.ERRORED)


# Examples: defects of pm3 that are none of ours -------------------------------------------------------------------------


def test_w7_while_nothing_runs_the_status_says_so() -> None:
    world = crash(up())
    assert (world.life.status, world.life.started) == (Status.ERRORED, None)
    assert world.life.end == End(Cause.EXIT, code=1, at=world.now)


def test_w8_a_stop_during_the_restart_after_a_crash_is_a_stop() -> None:
    world = crash(up()).fire(Timer.BACKOFF).tell(Stop())
    assert world.life.phase is Phase.ABORTING
    world.tell(Spawned())
    assert (world.life.phase, world.asked) == (Phase.STOPPING, True)
    world.settle()
    assert (world.life.phase, world.life.status) == (Phase.DOWN, Status.STOPPED)


def test_w8_a_stop_during_the_backoff_is_a_stop() -> None:
    world = crash(up()).tell(Stop())
    assert (world.life.phase, world.life.status, world.timers) == (Phase.DOWN, Status.STOPPED, {})
    assert world.tell(Fired(Timer.BACKOFF)).life.phase is Phase.DOWN


def test_w8_a_stop_between_crash_and_backoff_is_a_stop() -> None:
    world = up().tell(exited(1), Stop(), Gone())
    assert (world.life.phase, world.life.status) == (Phase.DOWN, Status.STOPPED)


def test_w8_a_stop_of_an_errored_instance_makes_it_stopped() -> None:
    assert crash(up(restart="never")).tell(Stop()).life.status is Status.STOPPED


@pytest.mark.parametrize("command", [Start(), Restart()], ids=repr)
def test_w9_a_start_during_the_backoff_is_the_only_one(command: Event) -> None:
    world = crash(up()).tell(command)
    assert (world.life.phase, world.timers) == (Phase.SPAWNING, {})
    world.tell(Fired(Timer.BACKOFF))
    assert (world.life.phase, world.spawns) == (Phase.SPAWNING, 2)


def test_w14_nothing_of_an_earlier_start_reaches_the_next() -> None:
    """It crashes while it is checked: the check under way and its timers end with it, and what comes late is not listened to."""
    world = World(Life(policy(readiness_check="tcp://localhost:1"))).tell(Start(), Spawned())
    effects = step(world.life, exited(1), world.now)[1]
    assert effects[:2] == [EndProbe(), Disarm((Timer.GRACE, Timer.SETTLE, Timer.ATTEMPT, Timer.PATIENCE))]
    crash(world)
    late: list[Event] = [Failed(READY), Passed(READY), Fired(Timer.PATIENCE), Fired(Timer.ATTEMPT), Fired(Timer.GRACE)]
    for event in late:
        assert step(world.life, event, world.now) == (world.life, [])
    world.fire(Timer.BACKOFF)
    for event in late:
        assert step(world.life, event, world.now) == (world.life, [])
    world.tell(Spawned())
    assert world.timers[Timer.PATIENCE] == world.now + 30
    assert world.tell(Passed(READY)).life.status is Status.ONLINE


# Examples: hooks (spec: pm3.md, sections 3.5, 9.3 and 9.12) -------------------------------------------------------------


def test_pre_start_comes_before_the_program_and_post_stop_after_it() -> None:
    world = World(Life(policy(**HOOKED))).tell(Start())
    assert (world.life.phase, world.life.status, world.life.started) == (Phase.PREPARING, Status.STARTING, None)
    world.tell(Spawned())
    assert world.timers == {Timer.HOOK: world.now + 300}
    world.tell(exited(0))
    assert (world.life.phase, world.sweeping) == (Phase.PREPARING, True)
    world.tell(Gone())
    assert (world.life.phase, world.works) == (Phase.SPAWNING, [PRE, PROGRAM])
    world.settle().tell(Stop(), exited(0), Gone())
    assert (world.life.phase, world.life.status, world.life.started) == (Phase.CLEANING, Status.STOPPED, None)
    world.settle()
    assert (world.life.phase, world.works) == (Phase.DOWN, [PRE, PROGRAM, POST])


def test_a_restart_runs_post_stop_and_then_pre_start() -> None:
    assert up(**HOOKED).tell(Restart()).settle().works == [PRE, PROGRAM, POST, PRE, PROGRAM]


@pytest.mark.parametrize("event", [exited(0), exited(1), KILLED, MEMORY, WATCH, CRON], ids=words)
def test_w24_post_stop_runs_after_every_end(event: Event) -> None:
    world = up(**HOOKED, restart="never").tell(event).settle()
    again = [PRE, PROGRAM] if isinstance(event, Tripped) else []
    assert world.works == [PRE, PROGRAM, POST, *again]


def test_post_stop_comes_at_once_after_a_crash_and_pre_start_after_the_backoff() -> None:
    world = crash(up(**HOOKED))
    assert (world.life.phase, world.life.status) == (Phase.CLEANING, Status.ERRORED)
    world.tell(Spawned(), exited(0), Gone())
    assert (world.life.phase, world.works) == (Phase.BACKOFF, [PRE, PROGRAM, POST])
    assert world.settle().works == [PRE, PROGRAM, POST, PRE, PROGRAM]


def test_without_a_program_there_is_no_post_stop() -> None:
    world = World(Life(policy(**HOOKED))).tell(Start(), Spawned(), exited(0), Gone(), SpawnFailed("no such program"))
    assert (world.life.phase, world.life.status, world.works) == (Phase.DOWN, Status.ERRORED, [PRE, PROGRAM])
    assert world.tell(Stop()).works == [PRE, PROGRAM]


def failing(world: World) -> World:
    """Its pre_start fails."""
    return world.tell(Spawned(), exited(3), Gone(("no database",)))


@pytest.mark.parametrize("command", [Start(), Restart()], ids=words)
def test_a_start_that_was_asked_for_fails_with_its_hook(command: Event) -> None:
    world = failing(World(Life(policy(**HOOKED, restart="always"))).tell(command))
    assert (world.life.phase, world.life.status, world.works) == (Phase.DOWN, Status.ERRORED, [PRE])
    message = "hook failed: pre_start exited with code 3"
    assert world.life.end == End(Cause.SPAWN, message=message, at=world.now, tail=("no database",))


def test_a_hook_that_cannot_be_run_has_failed() -> None:
    world = World(Life(policy(**HOOKED))).tell(Start(), SpawnFailed("/srv/shop does not exist"))
    assert (world.life.phase, world.life.status) == (Phase.DOWN, Status.ERRORED)
    assert str(world.life.end) == "hook failed: pre_start: /srv/shop does not exist"


def test_w21_a_hook_that_fails_during_an_automatic_restart_is_tried_again_and_again() -> None:
    world = crash(up(**HOOKED, max_restarts=2))
    world.tell(Spawned(), exited(0), Gone()).fire(Timer.BACKOFF)
    assert world.life.phase is Phase.PREPARING
    failing(world)
    assert (world.life.phase, world.life.status) == (Phase.BACKOFF, Status.ERRORED)
    assert world.timers == {Timer.BACKOFF: world.now + 0.2}
    failing(world.fire(Timer.BACKOFF))
    assert (world.life.phase, world.life.status, world.life.restarts) == (Phase.DOWN, Status.ERRORED, 2)
    assert world.works == [PRE, PROGRAM, POST, PRE, PRE]


def test_w21_a_hook_that_fails_for_a_moment_only_ends_no_supervision() -> None:
    world = crash(up(**HOOKED)).tell(Spawned(), exited(0), Gone()).fire(Timer.BACKOFF)
    assert failing(world).settle().life.status is Status.ONLINE


def test_w24_a_pre_start_that_hangs_is_killed_and_has_failed() -> None:
    world = World(Life(policy(**HOOKED, hook_timeout="90s"))).tell(Start(), Spawned()).fire(Timer.HOOK)
    assert (world.life.phase, world.killed) == (Phase.PREPARING, True)
    world.tell(KILLED, Gone())
    assert (world.life.phase, world.life.status) == (Phase.DOWN, Status.ERRORED)
    assert str(world.life.end) == "hook failed: pre_start took longer than hook_timeout, 90 s"


def test_a_hook_that_ends_in_the_moment_its_time_is_over_has_failed_all_the_same() -> None:
    world = World(Life(policy(**HOOKED))).tell(Start(), Spawned()).fire(Timer.HOOK).tell(exited(0), Gone())
    assert (world.life.phase, world.life.status) == (Phase.DOWN, Status.ERRORED)


def test_w24_a_post_stop_that_hangs_is_killed_and_what_follows_follows() -> None:
    world = up(**HOOKED, hook_timeout=2).tell(Restart(), exited(0), Gone(), Spawned()).fire(Timer.HOOK)
    assert world.killed
    assert world.settle().life.status is Status.ONLINE
    assert world.said == ["hook failed: post_stop took longer than hook_timeout, 2 s"]


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([Spawned(), exited(0), Gone()], []),
        ([Spawned(), exited(1), Gone()], ["hook failed: post_stop exited with code 1"]),
        ([Spawned(), KILLED, Gone()], ["hook failed: post_stop was ended by signal 9"]),
        ([SpawnFailed("no such user")], ["hook failed: post_stop: no such user"]),
    ],
)
def test_a_post_stop_that_fails_is_told_and_changes_nothing(events: list[Event], said: list[str]) -> None:
    world = up(**HOOKED).tell(Stop(), exited(0), Gone(), *events)
    assert (world.life.phase, world.life.status, world.said) == (Phase.DOWN, Status.STOPPED, said)
    assert world.life.end == End(Cause.USER, code=0, at=world.now)


def test_what_a_hook_leaves_behind_is_killed() -> None:
    world = World(Life(policy(**HOOKED))).tell(Start(), Spawned())
    world.rest = True
    assert (world.tell(exited(0)).rest, world.sweeping) == (False, True)


@pytest.mark.parametrize("told", [[], [Spawned()], [Spawned(), exited(0)]], ids=["ordered", "running", "ended"])
def test_w8_a_stop_during_pre_start_is_a_stop(told: list[Event]) -> None:
    world = World(Life(policy(**HOOKED))).tell(Start(), *told, Stop())
    assert (world.life.phase, world.kills > 0) == (Phase.PREPARING, True)
    world.settle(hung=True)
    assert (world.life.phase, world.life.status, world.works) == (Phase.DOWN, Status.STOPPED, [PRE])


def test_a_stop_before_pre_start_could_not_be_run_is_a_stop() -> None:
    world = World(Life(policy(**HOOKED))).tell(Start(), Stop(), SpawnFailed("no such user"))
    assert (world.life.phase, world.life.status, world.life.end) == (Phase.DOWN, Status.STOPPED, None)


def test_a_stop_during_post_stop_lets_it_end_and_nothing_follow() -> None:
    world = up(**HOOKED).tell(Restart(), exited(0), Gone(), Spawned(), Stop())
    assert (world.life.phase, world.killed) == (Phase.CLEANING, False)
    assert world.settle().works == [PRE, PROGRAM, POST]
    assert world.life.status is Status.STOPPED


def test_a_stop_of_the_post_stop_of_a_crash_makes_it_stopped() -> None:
    world = crash(up(**HOOKED)).tell(Spawned(), Stop())
    assert world.life.status is Status.STOPPED
    assert world.settle().life.phase is Phase.DOWN


@pytest.mark.parametrize("command", [Start(), Restart()], ids=words)
def test_a_start_during_hooks_is_the_only_one(command: Event) -> None:
    world = crash(up(**HOOKED)).tell(Spawned(), command).settle()
    assert (world.works, world.life.status) == ([PRE, PROGRAM, POST, PRE, PROGRAM], Status.ONLINE)
    world = World(Life(policy(**HOOKED))).tell(Start(), Spawned(), Stop(), command).settle()
    assert (world.works, world.life.status) == ([PRE, PRE, PROGRAM], Status.ONLINE)


def test_a_start_during_pre_start_changes_nothing_and_a_restart_begins_it_anew() -> None:
    world = World(Life(policy(**HOOKED))).tell(Start(), Spawned(), Start())
    assert (world.kills, world.life.after) == (0, After.GO_ON)
    world.tell(Restart())
    assert (world.killed, world.life.restarts) == (True, 1)
    assert world.settle().works == [PRE, PRE, PROGRAM]


def test_a_hot_change_decides_which_hooks_follow() -> None:
    world = up().tell(Redefined(policy(post_stop="tidy")), Stop()).settle()
    assert world.works == [PROGRAM, POST]
    assert world.life.phase is Phase.DOWN


# Examples: triggers (spec: pm3.md, sections 3.7 to 3.9, 9.6 and 10) -----------------------------------------------------


@pytest.mark.parametrize("restart", ["never", "on_failure", "always"])
@pytest.mark.parametrize("trip", [MEMORY, WATCH, CRON], ids=words)
def test_a_trigger_restarts_under_every_policy_counts_and_costs_nothing(trip: Tripped, restart: str) -> None:
    world = up(restart=restart, max_restarts=0)
    for _time in range(3):
        world.tell(trip)
        assert (world.life.phase, world.asked) == (Phase.STOPPING, True)
        world.settle()
    assert (world.life.status, world.life.restarts, world.life.total_restarts) == (Status.ONLINE, 3, 3)
    assert (world.life.failures, world.spawns) == (0, 4)
    assert world.life.end == End(trip.cause, signal=15, message=trip.message, at=world.now - GRACE - 0.95)


def test_a_trigger_during_a_crash_loop_leaves_its_budget_as_it_is() -> None:
    world = crash(up(max_restarts=2)).fire(Timer.BACKOFF).tell(Spawned(), WATCH, exited(0), Gone(), Spawned())
    assert (world.life.failures, world.life.restarts) == (1, 2)
    assert crash(world).timers == {Timer.BACKOFF: world.now + 0.2}
    crash(world.fire(Timer.BACKOFF).tell(Spawned()))
    assert (world.life.phase, world.life.restarts) == (Phase.DOWN, 2)


def test_w20_who_lived_for_long_before_a_trigger_has_recovered_too() -> None:
    world = crash(up(max_restarts=1)).settle()
    world.now += 3600
    world.tell(CRON).settle()
    assert world.life.failures == 0
    assert crash(world).settle().life.status is Status.ONLINE


def test_a_trigger_whose_process_does_not_end_kills_it() -> None:
    world = up().tell(MEMORY).fire(Timer.KILL)
    assert world.killed
    world.tell(KILLED)
    assert world.life.end == End(Cause.MEMORY, signal=9, message="used 200 MiB", at=world.now)
    assert world.settle().life.status is Status.ONLINE


@pytest.mark.parametrize("trip", [MEMORY, WATCH, CRON], ids=words)
@pytest.mark.parametrize("told", [[], [Spawned()]], ids=["spawning", "asked"])
def test_a_stop_is_not_undone_by_a_trigger(told: list[Event], trip: Event) -> None:
    world = World(Life(policy())).tell(Start(), *told, Stop(), trip).settle().tell(trip)
    assert (world.life.phase, world.life.status, world.spawns) == (Phase.DOWN, Status.STOPPED, 1)
    assert world.life.total_restarts == 0


def test_a_stop_during_a_restart_by_a_trigger_is_a_stop() -> None:
    world = up().tell(WATCH, Stop(), exited(0), Gone())
    assert (world.life.phase, world.life.end) == (Phase.DOWN, End(Cause.USER, code=0, at=world.now))


@pytest.mark.parametrize("restart", ["never", "on_failure"])
@pytest.mark.parametrize("code", [0, 1])
def test_w45_cron_starts_what_has_ended(restart: str, code: int) -> None:
    world = crash(up(restart=restart, max_restarts=0), code)
    assert world.life.phase is Phase.DOWN
    world.tell(CRON).settle()
    assert (world.life.status, world.life.restarts, world.spawns) == (Status.ONLINE, 1, 2)


def test_w45_cron_starts_what_has_ended_while_its_post_stop_still_runs() -> None:
    world = crash(up(**HOOKED, restart="never"), 0).tell(Spawned(), CRON)
    assert world.life.phase is Phase.CLEANING
    assert world.settle().works == [PRE, PROGRAM, POST, PRE, PROGRAM]
    assert world.life.restarts == 1


def test_cron_never_starts_what_nobody_ever_started() -> None:
    assert World(Life(policy())).tell(CRON, WATCH).life == Life(policy())


def test_cron_does_not_shorten_a_backoff() -> None:
    world = crash(up())
    assert step(world.life, CRON, world.now) == (world.life, [])
    world = up().tell(exited(1), CRON, Gone())
    assert (world.life.phase, world.life.total_restarts) == (Phase.BACKOFF, 0)


@pytest.mark.parametrize("told", [[exited(1), Gone()], [exited(1)]], ids=["at rest", "being swept"])
def test_watch_wakes_what_is_errored(told: list[Event]) -> None:
    world = up(restart="never").tell(*told)
    assert world.life.status is Status.ERRORED
    assert world.tell(WATCH).settle().life.status is Status.ONLINE
    assert (world.life.restarts, world.spawns) == (1, 2)


def test_watch_wakes_what_waits_and_what_is_exhausted_with_a_fresh_budget() -> None:
    world = crash(up(max_restarts=1)).tell(WATCH)
    assert (world.life.phase, world.timers, world.life.failures) == (Phase.SPAWNING, {}, 0)
    run_out(world.tell(Spawned()), 1)
    assert world.life.status is Status.ERRORED
    assert crash(world.tell(WATCH).settle()).life.phase is Phase.BACKOFF


def test_w21_a_restart_by_a_trigger_is_the_machines_own_and_its_failed_start_is_tried_again() -> None:
    for trip in (MEMORY, WATCH, CRON):
        world = up(**HOOKED).tell(trip, exited(0), Gone(), Spawned(), exited(0), Gone())
        assert world.life.phase is Phase.PREPARING
        assert failing(world).life.phase is Phase.BACKOFF
        assert world.settle().life.status is Status.ONLINE


@pytest.mark.parametrize("told", [[Gone()], []], ids=["at rest", "being swept"])
def test_whoever_is_woken_is_no_commanded_start_and_has_a_fresh_budget(told: list[Event]) -> None:
    world = World(Life(policy(max_restarts=1))).tell(Start(), Spawned())
    crash(world).fire(Timer.BACKOFF).tell(Spawned(), exited(1), *told, WATCH)
    assert (world.life.failures, world.life.commanded) == (0, False)
    if not told:
        world.tell(Gone())
    assert world.tell(SpawnFailed("no such program")).life.phase is Phase.BACKOFF


def test_memory_wakes_nothing() -> None:
    for world in (crash(up()), crash(up(restart="never"))):
        assert step(world.life, MEMORY, world.now) == (world.life, [])


# Examples: liveness -----------------------------------------------------------------------------------------------------


def hung(world: World, failures: int = 2) -> World:
    """It does not answer, so many times."""
    for _time in range(failures):
        world.fire(Timer.ATTEMPT).tell(Failed(LIVELY, "no answer within 2 s"))
    return world


def test_liveness_is_checked_again_and_again_while_it_is_online() -> None:
    world = up(liveness_check="tcp://localhost:9", liveness_interval="10s", readiness_check="tcp://localhost:1")
    assert world.timers[Timer.ATTEMPT] == world.now + 9  # it has lived min_uptime meanwhile
    for _time in range(3):
        assert world.probe is None
        world.fire(Timer.ATTEMPT)
        assert world.probe is LIVELY
        before = world.life
        assert world.tell(Passed(LIVELY)).life is before
        assert world.timers[Timer.ATTEMPT] == world.now + 10
    world.fire(Timer.ATTEMPT).tell(Stop())
    assert (world.probe, set(world.timers)) == (None, {Timer.KILL})


def test_as_many_failures_in_a_row_restart_it_like_a_crash() -> None:
    world = hung(up(**WATCHED), 1)
    assert (world.life.phase, world.life.status, world.life.complaint) == (
        Phase.ONLINE,
        Status.ONLINE,
        "no answer within 2 s",
    )
    hung(world, 1)
    assert (world.life.phase, world.asked, world.probe) == (Phase.STOPPING, True, None)
    world.fire(Timer.KILL).tell(KILLED)
    message = "liveness_check failed 2 times in a row: no answer within 2 s"
    assert world.life.end == End(Cause.PROBE, signal=9, message=message, at=world.now)
    assert (world.life.status, world.life.started) == (Status.ERRORED, None)
    world.tell(Gone())
    assert world.life.phase is Phase.BACKOFF
    world.settle()
    assert (world.life.status, world.life.restarts, world.life.failures) == (Status.ONLINE, 1, 1)
    assert (world.life.missed, world.life.complaint) == (0, "")


def test_liveness_has_the_budget_and_the_waits_of_crashes() -> None:
    world = up(**WATCHED, liveness_interval="100ms", max_restarts=3)
    waits = []
    for _time in range(3):
        hung(world).tell(exited(0), Gone())
        waits.append(round(world.timers[Timer.BACKOFF] - world.now, 6))
        world.fire(Timer.BACKOFF).tell(Spawned()).fire(Timer.GRACE)
    hung(world).tell(exited(0), Gone())
    assert waits == [0.1, 0.2, 0.4]
    assert (world.life.phase, world.life.status, world.life.restarts) == (Phase.DOWN, Status.ERRORED, 3)


@pytest.mark.parametrize("code", [0, 7, 143])
def test_how_a_hung_process_takes_its_end_says_nothing(code: int) -> None:
    """Neither code 0 nor a stop code makes it a success."""
    world = hung(up(**WATCHED, stop_exit_codes=[0, 7])).tell(exited(code), Gone())
    assert (world.life.phase, world.life.status) == (Phase.BACKOFF, Status.ERRORED)


def test_under_never_what_hangs_is_ended_and_left_errored() -> None:
    world = hung(up(**WATCHED, restart="never")).tell(exited(0), Gone())
    assert (world.life.phase, world.life.status, world.life.restarts) == (Phase.DOWN, Status.ERRORED, 0)


def test_successes_in_a_row_make_earlier_failures_forgotten() -> None:
    world = up(**WATCHED)
    for _time in range(3):
        hung(world, 1).fire(Timer.ATTEMPT).tell(Passed(LIVELY))
        assert (world.life.missed, world.life.complaint) == (0, "")
    world = up(**WATCHED, liveness_successes=2)
    hung(world, 1).fire(Timer.ATTEMPT).tell(Passed(LIVELY))
    assert (world.life.missed, world.life.complaint) == (1, "no answer within 2 s")
    world.fire(Timer.ATTEMPT).tell(Passed(LIVELY))
    assert world.life.missed == 0
    hung(world, 1).fire(Timer.ATTEMPT).tell(Passed(LIVELY))
    assert hung(world, 1).life.phase is Phase.STOPPING


def test_one_failure_may_be_enough() -> None:
    world = hung(up(liveness_check="tcp://localhost:9", liveness_failures=1), 1)
    assert world.life.ending == End(Cause.PROBE, message="liveness_check failed once: no answer within 2 s")


def test_a_stop_of_what_hangs_is_a_stop() -> None:
    world = hung(up(**WATCHED)).tell(Stop(), exited(0))
    assert world.life.end == End(Cause.USER, code=0, at=world.now)
    assert world.tell(Gone()).life.phase is Phase.DOWN
    world = hung(up(**WATCHED)).tell(exited(0), Stop(), Gone())
    assert (world.life.phase, world.life.status) == (Phase.DOWN, Status.STOPPED)


def test_liveness_changes_while_it_is_online() -> None:
    world = up()
    assert Timer.ATTEMPT not in world.timers
    world.tell(Redefined(policy(**WATCHED, liveness_interval=7)))
    assert world.timers == {Timer.ATTEMPT: world.now + 7}
    hung(world, 1).fire(Timer.ATTEMPT)
    assert world.probe is LIVELY
    world.tell(Redefined(policy(**WATCHED, liveness_interval=1)))
    assert (world.probe, world.timers) == (None, {Timer.ATTEMPT: world.now + 1})
    assert (world.life.missed, world.life.complaint) == (0, "")
    hung(world, 1).fire(Timer.ATTEMPT).tell(Redefined(policy()))
    assert (world.probe, world.timers, world.life.complaint) == (None, {}, "")
    for late in (Fired(Timer.ATTEMPT), Failed(LIVELY), Passed(LIVELY)):
        assert step(world.life, late, world.now) == (world.life, [])


@pytest.mark.parametrize("fields", [{}, {"readiness_check": "tcp://localhost:1"}, WATCHED])
def test_another_min_uptime_counts_for_what_runs(fields: dict[str, Any]) -> None:
    world = World(Life(policy(**fields, min_uptime=40_000))).tell(Start(), Spawned())
    begun = world.now
    world.now += 3
    world.tell(Redefined(policy(**fields, min_uptime=5_000)))
    assert world.timers[Timer.SETTLE] == begun + 5
    world.tell(Redefined(policy(**fields, min_uptime=1_000)))
    assert world.timers[Timer.SETTLE] == world.now
    world.fire(Timer.SETTLE).tell(Redefined(policy(**fields, min_uptime=50_000)))
    assert world.life.settled
    assert Timer.SETTLE not in world.timers


def test_liveness_waits_until_it_is_online() -> None:
    world = World(Life(policy(**WATCHED, readiness_check="tcp://localhost:1"))).tell(Start(), Spawned())
    assert world.probe is READY
    world.fire(Timer.PATIENCE).tell(Failed(READY)).fire(Timer.ATTEMPT)
    assert (world.life.phase, world.probe) == (Phase.UNHEALTHY, READY)
    world.tell(Passed(READY))
    assert (world.life.phase, Timer.ATTEMPT in world.timers, Timer.PATIENCE in world.timers) == (
        Phase.ONLINE,
        True,
        False,
    )


# Examples: stop_command -------------------------------------------------------------------------------------------------


def test_stop_command_is_run_instead_of_the_signal() -> None:
    world = up(stop_command="quit", kill_timeout=700)
    for event in (Restart(), MEMORY, Stop()):
        world.tell(event)
        assert (world.life.phase, world.asking, world.timers) == (Phase.STOPPING, True, {Timer.KILL: world.now + 0.7})
        world.settle()
    assert (world.asks, world.signals, world.life.status) == (3, [], Status.STOPPED)


def test_the_signal_is_sent_where_stop_command_fails() -> None:
    world = up(stop_command="quit", kill_signal="SIGINT").tell(Stop())
    kill = dict(world.timers)
    world.tell(Unasked())
    assert (world.signals, world.timers, world.life.phase) == (["SIGINT"], kill, Phase.STOPPING)


def test_a_stop_command_that_does_not_help_is_followed_by_a_kill() -> None:
    world = up(stop_command="quit").tell(Stop()).fire(Timer.KILL)
    assert (world.life.phase, world.killed) == (Phase.KILLING, True)
    assert step(world.life, Unasked(), world.now) == (world.life, [])
    world.tell(KILLED)
    assert step(world.life, Unasked(), world.now) == (world.life, [])


def test_what_was_spawned_in_vain_is_asked_by_stop_command_too() -> None:
    world = World(Life(policy(stop_command="quit", post_stop="tidy"))).tell(Start(), Stop(), Spawned())
    assert (world.asks, world.signals) == (1, [])
    assert world.settle().works == [PROGRAM, POST]


# Examples: what is known of it ------------------------------------------------------------------------------------------


def test_since_is_when_it_came_to_be_so() -> None:
    world = World(Life(policy(**WATCHED)))
    world.tell(Stop())
    assert world.life.since == world.now
    seen = []
    for event in (Start(), Spawned(), Fired(Timer.GRACE), Fired(Timer.SETTLE), Failed(LIVELY), exited(1), Gone()):
        world.now += 1
        world.probe = LIVELY if isinstance(event, Failed) else None
        if isinstance(event, Failed):
            world.timers.pop(Timer.ATTEMPT)
        world.tell(event)
        seen.append((world.life.status.value, (world.life.since or 0) - 1000))
    assert seen == [
        ("starting", 1),
        ("starting", 1),
        ("online", 3),
        ("online", 3),
        ("online", 3),
        ("errored", 6),
        ("errored", 6),
    ]


def test_wanted_is_the_last_word_of_a_person_not_what_became_of_it() -> None:
    assert not Life(policy()).wanted
    world = World(Life(policy(restart="never"))).tell(Start(), SpawnFailed("no such program"))
    assert (world.life.phase, world.life.wanted) == (Phase.DOWN, True)
    assert not world.tell(Stop()).life.wanted
    assert crash(up(restart="never"), 0).life.wanted
    assert crash(up()).life.wanted
    assert up().tell(Stop(), Restart()).life.wanted
    assert not up().tell(MEMORY, Stop()).life.wanted


# Examples: other policies while it lives --------------------------------------------------------------------------------


def test_a_change_of_policy_leaves_a_running_process_alone() -> None:
    world = up()
    life, effects = step(world.life, Redefined(policy(kill_signal="HUP", health_check="tcp://localhost:1")), world.now)
    assert effects == []
    assert life == replace(world.life, policy=life.policy)


def test_checks_under_way_begin_again_as_they_are_defined_now() -> None:
    world = World(Life(policy(readiness_check="tcp://localhost:1"))).tell(Start(), Spawned())
    world.fire(Timer.PATIENCE)
    world.tell(Redefined(policy(readiness_check="tcp://localhost:2", readiness_timeout=3)))
    assert (world.life.phase, world.probe) == (Phase.STARTING, READY)
    assert world.timers[Timer.PATIENCE] == world.now + 3


def test_a_change_in_the_first_moment_does_not_make_it_online() -> None:
    world = World(Life(policy())).tell(Start(), Spawned(), Redefined(policy(max_restarts=1)))
    assert (world.life.phase, set(world.timers)) == (Phase.STARTING, {Timer.GRACE, Timer.SETTLE})
    assert world.fire(Timer.GRACE).life.phase is Phase.ONLINE


def test_a_change_during_the_spawn_decides_what_is_checked() -> None:
    checked = policy(readiness_check="tcp://localhost:1")
    world = World(Life(policy())).tell(Start(), Redefined(checked), Spawned())
    assert world.probe is READY
    world = World(Life(checked)).tell(Start(), Redefined(policy()), Spawned())
    assert (world.probe, Timer.GRACE in world.timers) == (None, True)


def test_never_during_the_backoff_means_never() -> None:
    world = crash(up()).tell(Redefined(policy(restart="never"))).fire(Timer.BACKOFF)
    assert (world.life.phase, world.life.status, world.spawns) == (Phase.DOWN, Status.ERRORED, 1)


# Examples: an agent that dies -------------------------------------------------------------------------------------------


def test_who_runs_is_left_alone_when_the_agent_comes_back() -> None:
    world = up()
    world.now += 60
    world.die()
    assert (world.life.phase, world.spawns, world.asked) == (Phase.ONLINE, 1, False)


def test_a_stop_goes_on_when_the_agent_comes_back() -> None:
    world = up().tell(Stop())
    world.die()
    assert (world.asked, set(world.timers)) == (True, {Timer.KILL})


def test_a_kill_that_was_decided_is_carried_out_when_the_agent_comes_back() -> None:
    world = up().tell(Stop())
    world.lost = True
    world.fire(Timer.KILL)
    assert (world.life.phase, world.killed) == (Phase.KILLING, False)
    world.die()
    assert world.killed


def test_a_start_of_which_nothing_came_is_taken_up_again() -> None:
    world = World(Life(policy())).tell(Start())
    world.die()
    assert world.settle().life.status is Status.ONLINE


def test_a_stop_of_a_start_of_which_nothing_came_is_a_stop() -> None:
    world = World(Life(policy())).tell(Start(), Stop())
    world.die()
    assert (world.life.phase, world.life.status) == (Phase.DOWN, Status.STOPPED)


def test_who_ended_unseen_is_started_again_but_not_under_never() -> None:
    for restart, spawns in (("on_failure", 2), ("always", 2), ("never", 1)):
        world = up(restart=restart)
        world.die(ended=True)
        assert world.settle().spawns == spawns


@pytest.mark.parametrize("running", [True, False], ids=["its pre_start runs", "nothing came of it"])
def test_a_start_goes_on_with_its_pre_start_when_the_agent_comes_back(running: bool) -> None:
    world = World(Life(policy(**HOOKED))).tell(Start(), *([Spawned()] if running else []))
    world.die()
    assert (world.life.phase, world.works) == (Phase.PREPARING, [PRE] if running else [PRE, PRE])
    assert world.settle().life.status is Status.ONLINE


@pytest.mark.parametrize("ending", [[], [Spawned()], [Spawned(), exited(0)]], ids=["ordered", "running", "ended"])
def test_post_stop_goes_on_when_the_agent_comes_back(ending: list[Event]) -> None:
    world = up(**HOOKED).tell(Stop(), exited(0), Gone(), *ending)
    world.die()
    assert world.settle().works == [PRE, PROGRAM, POST, *([] if ending else [POST])]
    assert (world.life.phase, world.life.status) == (Phase.DOWN, Status.STOPPED)


def test_a_stop_of_a_pre_start_of_which_nothing_came_is_a_stop_since_then() -> None:
    world = World(Life(policy(**HOOKED))).tell(Start(), Stop())
    world.now += 5
    world.die()
    assert (world.life.phase, world.life.status, world.life.since) == (Phase.DOWN, Status.STOPPED, world.now)


def test_a_hook_whose_time_was_over_is_killed_when_the_agent_comes_back() -> None:
    for world in (
        World(Life(policy(**HOOKED))).tell(Start(), Spawned()),
        up(**HOOKED).tell(exited(0), Gone(), Spawned()),
    ):
        world.lost = True
        world.fire(Timer.HOOK)
        assert not world.killed
        world.die()
        assert world.killed


def test_a_hook_that_is_not_defined_any_more_is_not_run_when_the_agent_comes_back() -> None:
    world = World(Life(policy(**HOOKED))).tell(Start(), Redefined(policy()))
    world.die()
    assert (world.life.phase, world.works) == (Phase.SPAWNING, [PRE, PROGRAM])
    world = up(**HOOKED).tell(Stop(), exited(0), Gone(), Redefined(policy()))
    world.die()
    assert (world.life.phase, world.works) == (Phase.DOWN, [PRE, PROGRAM, POST])


def test_liveness_goes_on_when_the_agent_comes_back() -> None:
    world = up(**WATCHED).fire(Timer.ATTEMPT).tell(Failed(LIVELY)).fire(Timer.ATTEMPT)
    world.die()
    assert (world.probe, world.life.missed, Timer.ATTEMPT in world.timers) == (None, 1, True)
    assert world.fire(Timer.ATTEMPT).tell(Failed(LIVELY)).life.phase is Phase.STOPPING


def test_what_was_asked_to_end_is_asked_again_in_its_own_way() -> None:
    world = up(stop_command="quit").tell(Stop())
    world.die()
    assert (world.asks, world.signals) == (2, [])


# Histories --------------------------------------------------------------------------------------------------------------

POLICIES: tuple[Policy, ...] = (
    policy(),
    policy(restart="always", max_restarts=2, readiness_check="tcp://localhost:1", readiness_timeout=1),
    policy(restart="never", health_check="tcp://localhost:1"),
    policy(max_restarts=3, min_uptime=0, stop_exit_codes=[2], kill_timeout=0, kill_signal="SIGINT"),
    policy(restart="always", readiness_check="tcp://localhost:1", health_check="tcp://localhost:2", min_uptime="20s"),
    policy(max_restarts=0),
    policy(max_restarts=1, restart="always"),
    policy(**HOOKED, hook_timeout="1s", max_restarts=2),
    policy(restart="never", post_stop="tidy", stop_command="quit", **WATCHED),
    policy(**HOOKED, **WATCHED, restart="always", readiness_check="tcp://localhost:1", stop_command="quit"),
    policy(pre_start="migrate", liveness_check="tcp://localhost:9", liveness_failures=1, liveness_successes=2),
)
LATE: tuple[Event, ...] = (
    *(Fired(timer) for timer in Timer),
    *(kind(check) for kind in (Passed, Failed) for check in Check),
    *(Waiting(check, "it warms up") for check in Check),
)
ENDS: tuple[Exited, ...] = (exited(0), exited(1), exited(2), KILLED, UNSEEN)
TRIPS: tuple[Event, ...] = (MEMORY, WATCH, CRON)
UNDONE = "stored, and the agent dies before it acts"


@dataclass(frozen=True)
class Turn:
    """One thing that may happen; hypothesis prints it."""

    event: Event | None
    how: str = ""

    def __repr__(self) -> str:
        return f"{words(self.event)} {self.how}".strip() if self.event is not None else self.how

    def happen(self, world: World) -> None:
        if self.how == "time passes":
            world.now += 7
        elif self.how.startswith("agent dies"):
            world.die(ended="ended" in self.how)
        elif self.event is not None:
            if isinstance(self.event, Fired):
                world.now = max(world.now, world.timers.get(self.event.timer, 0))
            world.rest = world.rest or self.how == "leaving others"
            world.lost = self.how == UNDONE
            world.tell(self.event)
            if world.lost:
                world.die()


def ways(*events: Event, often: int = 1) -> list[Turn]:
    """Each of the events; and rarely, as the last thing that an agent stores."""
    return [Turn(event) for event in events] * often + [Turn(event, UNDONE) for event in events]


COMMANDS = (
    *ways(Start(), Stop(), Restart(), *TRIPS),
    *(Turn(Redefined(other)) for other in POLICIES),
    Turn(None, "time passes"),
    Turn(None, "agent dies"),
    Turn(None, "agent dies, it ended"),
)
EXITS = [Turn(event, how) for event in ENDS for how in ("", "leaving others", UNDONE)]


def turns(world: World) -> list[Turn]:
    """All that may happen now: what is owed by the world first, so that shrinking ends there."""
    possible: list[Turn] = []
    if world.spawning:
        possible += ways(Spawned(), SpawnFailed("no such program"), often=4)
    if world.running and world.killed:
        possible += ways(KILLED, exited(0), often=4)  # it may have ended by itself, just before
    elif world.running in HOOKS.values():
        possible += [*ways(exited(0), often=8), *EXITS]
    elif world.running:
        possible += EXITS
    if world.asking:
        possible += ways(Unasked(), often=2)
    if world.sweeping and not world.rest:
        possible += ways(Gone(), often=5)
    if world.probe is not None:
        possible += ways(Passed(world.probe), Failed(world.probe, "refused"), Waiting(world.probe, "no word"), often=4)
    if world.timers:
        possible += ways(Fired(min(world.timers, key=lambda one: world.timers[one])), often=5)
    possible += COMMANDS
    # News that comes late is heard in phases where the kernel's own clock cannot have meant it.
    possible += [Turn(event) for event in LATE if not relevant(world, event)]
    return possible


def relevant(world: World, event: Event) -> bool:
    """Whether it would be taken for news of now. The shell keeps those apart: EndProbe and Disarm are its word for that."""
    life = world.life
    if isinstance(event, Fired) and event.timer is Timer.HOOK:
        return life.phase in HOOKS and life.hook is None
    if isinstance(event, (Passed, Failed)):
        checks = (LIVELY,) if life.phase is Phase.ONLINE else life.checks if life.phase in UP else ()
        return event.check in checks and (event.check is not LIVELY or life.policy.liveness is not None)
    if life.phase is Phase.ONLINE and event == Fired(Timer.ATTEMPT):
        return life.policy.liveness is not None
    return isinstance(event, Fired) and event.timer in TIMERS[life.phase]


def lived(data: st.DataObject, most: int = 60) -> World:
    """A world after a random history."""
    world = World(Life(data.draw(st.sampled_from(POLICIES), label="policy")))
    try:
        first: Event = Start() if data.draw(st.booleans(), label="started") else Stop()
        world.tell(first)
        for _turn in range(data.draw(st.integers(0, most), label="turns")):
            possible = turns(world)
            possible[data.draw(st.integers(0, len(possible) - 1))].happen(world)
    except AssertionError:
        note("\n".join(world.story))
        raise
    return world


histories = settings(max_examples=examples(500), suppress_health_check=list(HealthCheck))


@histories
@given(data=st.data())
def test_after_a_stop_it_comes_to_rest_and_stays_there(data: st.DataObject) -> None:
    """I1, I2, I3 and all that `World.look` asks hold along the way.

    The process may ignore signals, and so may its children; hooks may hang.
    """
    world = lived(data)
    try:
        hung = data.draw(st.booleans(), label="hooks hang")
        world.rest = world.rest or (world.running is PROGRAM and data.draw(st.booleans(), label="has children"))
        world.tell(Stop())
        done, stopped = len(world.works), world.now
        tidies = world.life.phase is Phase.CLEANING or world.life.policy.post_stop
        world.settle(stubborn=data.draw(st.booleans(), label="stubborn"), hung=hung)
        assert (world.life.phase, world.life.status) == (Phase.DOWN, Status.STOPPED)
        assert (world.running, world.rest, world.timers) == (None, False, {})
        assert world.works[done:] in ([], [POST]), "I3: something was started after the stop"
        # A hung pre_start blocks no stop; only what post_stop and the program themselves are given is waited for.
        assert tidies or world.now - stopped <= 5.001  # sums of floats
        for event in (*LATE, *TRIPS):
            assert step(world.life, event, world.now) == (world.life, [])
    except AssertionError:
        note("\n".join(world.story))
        raise


def comes_up(world: World) -> bool:
    """Whether it is wanted, and nothing that has happened yet is a reason to leave it alone or to give it up."""
    life = world.life
    if life.phase is Phase.PREPARING and life.after is After.GO_ON:
        ended = life.hook.code == 0 if life.hook is not None else True
        return ended and not world.killed
    if life.phase is Phase.BACKOFF or life.after is After.BACKOFF:
        cause = (life.ending or life.end or End(Cause.EXIT)).cause
        return (
            life.failures < life.policy.max_restarts
            and cause in (Cause.UNKNOWN, Cause.PROBE)
            and life.policy.restart != "never"
        )
    return life.phase in (Phase.SPAWNING, *UP) or life.after is After.START


@histories
@given(data=st.data())
def test_who_is_wanted_comes_up_again_whenever_the_agent_dies(data: st.DataObject) -> None:
    world = lived(data, 40)
    up_again = comes_up(world)
    try:
        for _time in range(data.draw(st.integers(1, 3), label="deaths")):
            world.die()
        world.settle()
        if up_again:
            assert world.life.status is Status.ONLINE
        if not world.wanted:
            assert world.life.phase is Phase.DOWN
    except AssertionError:
        note("\n".join(world.story))
        raise


@settings(max_examples=examples(100))
@given(
    restart=st.sampled_from(["always", "on_failure"]),
    most=st.integers(0, 20),
    code=st.integers(1, 255),
    hooks=st.sampled_from([{}, {"post_stop": "tidy"}, HOOKED]),
    data=st.data(),
)
def test_exhaustion_shows_the_whole_budget(
    restart: str, most: int, code: int, hooks: dict[str, str], data: st.DataObject
) -> None:
    """However often it was restarted by hand or by a trigger on the way: those restarts are counted, and cost nothing."""

    def until(world: World, *phases: Phase) -> World:
        while world.life.phase not in phases:
            assert world.cooperate()
        return world

    world = until(World(Life(policy(restart=restart, max_restarts=most, **hooks))).tell(Start()), Phase.STARTING)
    others = 0
    for _time in range(data.draw(st.integers(0, 2), label="manual restarts")):
        until(world.tell(Restart(), exited(0)), Phase.STARTING)
        others += 1
    for _time in range(most + 1):
        until(world, Phase.STARTING, Phase.DOWN)
        if data.draw(st.booleans(), label="trips"):
            until(world.tell(data.draw(st.sampled_from(TRIPS)), exited(0)), Phase.STARTING)
            others += 1
        assert world.life.restarts == world.life.failures + others
        world.now += data.draw(st.sampled_from([0.0, 0.5, 0.9]))
        until(world.tell(exited(code)), Phase.BACKOFF, Phase.DOWN)
    assert (world.life.phase, world.life.status) == (Phase.DOWN, Status.ERRORED)
    assert world.life.restarts == (most or others)
    assert world.life.total_restarts == most + others


# The table --------------------------------------------------------------------------------------------------------------

EVENTS: tuple[Event, ...] = (
    Start(),
    Stop(),
    Restart(),
    Spawned(),
    SpawnFailed("no such program"),
    *ENDS,
    Gone(("its last line",)),
    Unasked(),
    *TRIPS,
    *LATE,
    *(Redefined(other) for other in POLICIES),
)


def lives() -> Iterator[Life]:
    """Lives in every phase: every way of a few turns, one of each kind."""
    seen: dict[tuple[Any, ...], Life] = {}
    for start in (*POLICIES[:5], *POLICIES[-3:]):
        edge = [Life(start)]
        while edge:
            life = edge.pop()
            known = (life.ending is None, life.hook.code if life.hook is not None else None, life.wanted, life.missed)
            key = (
                life.phase,
                life.status,
                life.after,
                life.checks,
                life.commanded,
                min(life.failures, 2),
                life.policy,
                known,
            )
            if key in seen:
                continue
            seen[key] = life
            for kind in TABLE[life.phase]:
                edge.extend(
                    step(life, event, 5.0)[0] for event in EVENTS if isinstance(event, kind) and kind is not Redefined
                )
    return iter(seen.values())


LIVES = list(lives())


def test_every_phase_can_be_reached() -> None:
    assert {life.phase for life in LIVES} == set(Phase) == set(TABLE)


def test_every_kind_of_event_means_something_somewhere() -> None:
    kinds: list[type[Any]] = [type(event) for event in EVENTS]
    assert {kind for row in TABLE.values() for kind in row} == set(kinds)
    assert {event.check for event in EVENTS if isinstance(event, (Passed, Failed))} == set(Check)


@pytest.mark.parametrize("phase", list(Phase))
def test_every_event_is_survived_in_every_phase(phase: Phase) -> None:
    """Also those that cannot come: what the table does not list changes nothing, and time that runs backwards breaks nothing."""
    for life in LIVES:
        if life.phase is not phase:
            continue
        for event in EVENTS:
            for now in (5.0, 1e9, -3.0):
                after, effects = step(life, event, now)
                assert isinstance(after, Life)
                assert isinstance(effects, list)
                if type(event) not in TABLE[phase]:
                    assert (after, effects) == (life, [])
        for now in (5.0, 1e9, -3.0):
            for running in (False, True):
                assert isinstance(revived(life, now, running)[0], Life)


def test_a_step_changes_nothing_but_what_it_returns() -> None:
    """The effects are a fresh list each time, so that a shell may keep or change them."""
    life = up().life
    first, second = step(life, Stop(), 5.0), step(life, Stop(), 5.0)
    assert first == second
    first[1].clear()
    assert step(life, Stop(), 5.0) == second


def test_only_a_start_or_a_restart_leads_out_of_rest_and_a_trigger_where_it_is_still_wanted() -> None:
    for life in LIVES:
        if life.phase is Phase.DOWN:
            leading = {words(event) for event in EVENTS if step(life, event, 5.0)[0].phase is not Phase.DOWN}
            assert leading == {words(event) for event in (Start(), Restart(), *((WATCH, CRON) if life.wanted else ()))}


def test_spawn_is_only_ordered_where_nothing_is_left() -> None:
    """I1, read from the table: in DOWN, in BACKOFF, once gone, and where a start was given up before anything came of it."""
    places: dict[Work, set[tuple[Phase, type[Event]]]] = {work: set() for work in Work}
    for life in LIVES:
        for event in EVENTS:
            for effect in step(life, event, 5.0)[1]:
                if isinstance(effect, Spawn):
                    places[effect.work].add((life.phase, type(event)))
    starts: set[tuple[Phase, type[Event]]] = {
        *((phase, kind) for phase in (Phase.DOWN, Phase.BACKOFF) for kind in (Start, Restart, Tripped)),
        (Phase.BACKOFF, Fired),
        (Phase.SWEEPING, Gone),
        (Phase.CLEANING, Gone),
        (Phase.CLEANING, SpawnFailed),
        (Phase.PREPARING, Gone),
        (Phase.ABORTING, SpawnFailed),
    }
    assert places == {
        PROGRAM: starts,
        PRE: {*starts, (Phase.PREPARING, SpawnFailed)},
        POST: {(Phase.SWEEPING, Gone)},
    }
