# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The life of one instance: the contract with pm3 as examples, and random histories that try to break the promises.

`World` is a host with one instance on it: it honours effects (a process is there after Spawn and Spawned, it ends when killed, a
timer fires only while it is armed) and holds the machine to its promises at every step. A history is what a world lets happen; when
one breaks a promise, hypothesis shrinks it and prints it as a story.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.definition import load
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.machine import (
    FIRST_BACKOFF,
    GRACE,
    LONGEST_BACKOFF,
    STABLE,
    TABLE,
    After,
    Arm,
    Cause,
    Check,
    Disarm,
    Effect,
    End,
    EndProbe,
    Event,
    Exited,
    Failed,
    Fired,
    Gone,
    Kill,
    Life,
    Passed,
    Phase,
    Policy,
    Probe,
    Redefined,
    Restart,
    Signal,
    Spawn,
    Spawned,
    SpawnFailed,
    Start,
    Status,
    Stop,
    Sweep,
    Timer,
    backoff,
    revived,
    step,
)
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

READY, HEALTHY = Check.READINESS, Check.HEALTH
KILLED = Exited(End(Cause.SIGNAL, signal=9))
UNSEEN = Exited(End(Cause.UNKNOWN))


def policy(**table: Any) -> Policy:
    """The policy of a definition that says so much beside its command."""
    return Policy.of(load({"web": {"command": "serve", **table}})["web"])


def exited(code: int) -> Exited:
    return Exited(End(Cause.EXIT, code=code))


# The world ------------------------------------------------------------------------------------------------------------

# Which timers a phase may have set. Whoever rests has none.
TIMERS: dict[Phase, frozenset[Timer]] = {
    Phase.DOWN: frozenset(),
    Phase.SPAWNING: frozenset(),
    Phase.ABORTING: frozenset(),
    Phase.STARTING: frozenset({Timer.GRACE, Timer.SETTLE, Timer.ATTEMPT, Timer.PATIENCE}),
    Phase.ONLINE: frozenset({Timer.SETTLE}),
    Phase.UNHEALTHY: frozenset({Timer.SETTLE, Timer.ATTEMPT, Timer.PATIENCE}),
    Phase.STOPPING: frozenset({Timer.KILL}),
    Phase.KILLING: frozenset(),
    Phase.SWEEPING: frozenset({Timer.KILL}),
    Phase.BACKOFF: frozenset({Timer.BACKOFF}),
}
ALIVE = (Phase.STARTING, Phase.ONLINE, Phase.UNHEALTHY, Phase.STOPPING, Phase.KILLING)


@dataclass
class World:
    """A host with one instance on it, and the shell that carries out what the machine orders."""

    life: Life
    now: float = 1000.0
    spawning: bool = False  # ordered, not answered
    main: bool = False  # the process runs
    rest: bool = False  # others of the instance run
    sweeping: bool = False  # Gone is owed
    asked: bool = False  # it got its signal
    killed: bool = False  # nothing of it will live on
    probe: Check | None = None
    timers: dict[Timer, float] = field(default_factory=dict)
    stopped: bool = True  # the user's last word was Stop, or there was none yet
    commanded: bool = False  # the user's word is why the next Spawn is ordered
    story: list[str] = field(default_factory=list)
    spawns: int = 0
    lost: bool = False  # the agent dies between deciding and acting
    phases: list[Phase] = field(default_factory=list)

    def tell(self, *events: Event) -> World:
        for event in events:
            before = self.life
            if isinstance(event, (Start, Restart)):
                self.stopped, self.commanded = False, True
            elif isinstance(event, Stop):
                self.stopped, self.commanded = True, False
            elif isinstance(event, Spawned):
                assert self.spawning, "Spawned tells of a spawn that was ordered"
                self.spawning, self.main, self.asked, self.killed = False, True, False, False
                self.commanded = self.commanded and before.phase is Phase.ABORTING
            elif isinstance(event, SpawnFailed):
                assert self.spawning
                self.spawning = False
                self.commanded = self.commanded and before.phase is Phase.ABORTING
            elif isinstance(event, Exited):
                self.main = False
            elif isinstance(event, Gone):
                assert (self.sweeping, self.main) == (True, False)
                self.sweeping = self.rest = False
            elif isinstance(event, Fired):
                self.timers.pop(event.timer, None)
            elif isinstance(event, (Passed, Failed)) and event.check is self.probe:
                self.probe = None
            self.life, effects = step(before, event, self.now)
            self.story.append(
                f"{self.now - 1000:9.2f}  {event!r}: {before.phase.value} -> {self.life.phase.value}, {effects}"
            )
            if not self.lost:
                self.carry_out(effects)
        return self

    def carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Spawn):
                left = [self.spawning, self.main, self.rest, self.sweeping]
                assert not any(left), "I1: two processes at a time"
                assert not self.stopped, "I3: a stop was undone"
                if not self.commanded:
                    assert self.life.policy.restart != "never", "never means never"
                    assert self.life.policy.max_restarts > 0, "0 means never"
                self.spawning = True
                self.spawns += 1
            elif isinstance(effect, Signal):
                assert effect.name == self.life.policy.kill_signal
                self.asked = True
            elif isinstance(effect, Kill):
                self.killed, self.rest = True, False
            elif isinstance(effect, Sweep):
                assert not self.main, "what is left is swept away when the main process has ended"
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
                assert effect.check in self.life.policy.checks, "a check that is not defined cannot be made"
                self.probe = effect.check
            else:
                assert isinstance(effect, EndProbe)
                self.probe = None
        self.look()

    def look(self) -> None:
        """What must be so in every moment."""
        life = self.life
        self.phases.append(life.phase)
        assert set(self.timers) <= TIMERS[life.phase], f"timers that are left armed: {self.timers}"
        assert self.main == (life.phase in ALIVE)
        assert self.spawning == (life.phase in (Phase.SPAWNING, Phase.ABORTING))
        assert self.sweeping == (life.phase is Phase.SWEEPING)
        assert (life.started is not None) == self.main, "W7: uptime of what does not run"
        if life.phase not in (Phase.STARTING, Phase.UNHEALTHY):
            assert self.probe is None, "a check goes on for a process that needs none"
        words = {Phase.ONLINE: [Status.ONLINE], Phase.UNHEALTHY: [Status.UNHEALTHY], Phase.BACKOFF: [Status.ERRORED]}
        words.update({Phase.STARTING: [Status.STARTING], Phase.SPAWNING: [Status.STARTING]})
        words.update({phase: [Status.STOPPED, Status.ERRORED] for phase in (Phase.DOWN, Phase.SWEEPING)})
        assert life.status in words.get(life.phase, list(Status)), "W7: the status lies"
        assert 0 <= life.restarts <= max(life.total_restarts, life.policy.max_restarts)
        if self.stopped:
            assert life.after is After.REST, "I3: something is still to follow a stop"

    def fire(self, timer: Timer | None = None) -> World:
        """The next timer fires, when its time has come."""
        timer = timer or min(self.timers, key=lambda one: self.timers[one])
        self.now = max(self.now, self.timers[timer])
        return self.tell(Fired(timer))

    def die(self, *, came: bool = False, ended: bool = False) -> None:
        """The agent is killed and started again. `came`: what it was spawning is there. `ended`: the process ended meanwhile."""
        self.story.append(f"{self.now - 1000:9.2f}  the agent dies {'came ' * came}{'ended ' * ended}")
        self.timers.clear()
        self.probe, self.lost = None, False
        if self.spawning and came:
            self.tell(Spawned())
        else:
            self.spawning = self.sweeping = False
            if self.life.phase is Phase.SPAWNING:
                self.commanded = True  # this start was decided before, by the policy of then
            self.life, effects = revived(self.life, self.now)
            self.story.append(f"           revived: {self.life.phase.value}, {effects}")
            self.carry_out(effects)
        if ended and self.main:
            self.tell(UNSEEN)

    def cooperate(self, *, stubborn: bool = False) -> bool:
        """The one next thing that happens where all goes well, or False when nothing is left to happen."""
        if self.spawning:
            self.tell(Spawned())
        elif self.main and (self.killed or (self.asked and not stubborn)):
            self.tell(KILLED if self.killed else Exited(End(Cause.SIGNAL, signal=15)))
        elif self.sweeping and not (self.rest and stubborn):
            self.tell(Gone())
        elif self.probe is not None:
            self.tell(Passed(self.probe))
        elif self.timers:
            self.fire()
        else:
            return False
        return True

    def settle(self, *, stubborn: bool = False) -> World:
        """Lets happen what happens by itself, until nothing is left to happen."""
        for _turn in range(20):
            if not self.cooperate(stubborn=stubborn):
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
    assert crash(up(), 3).life.end == End(Cause.EXIT, code=3)
    assert up().tell(KILLED).life.end == End(Cause.SIGNAL, signal=9)
    assert up().tell(Stop(), exited(143)).life.end == End(Cause.USER, code=143)
    failed = World(Life(policy())).tell(Start(), SpawnFailed("no such program"))
    assert failed.life.end == End(Cause.SPAWN, message="no such program")


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (End(Cause.EXIT, code=3), "exited with code 3"),
        (End(Cause.SIGNAL, signal=9), "was ended by signal 9"),
        (End(Cause.UNKNOWN), "ended unseen"),
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
        checks=(HEALTHY,),
        readiness_timeout=30.0,
    )


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
    assert world.life.end == End(Cause.EXIT, code=1)


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
    world = World(Life(policy())).tell(Start())
    world.die(came=True)
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


# Histories --------------------------------------------------------------------------------------------------------------

POLICIES: tuple[Policy, ...] = (
    policy(),
    policy(restart="always", max_restarts=2, readiness_check="tcp://localhost:1", readiness_timeout=1),
    policy(restart="never", health_check="tcp://localhost:1"),
    policy(max_restarts=3, min_uptime=0, stop_exit_codes=[2], kill_timeout=0, kill_signal="SIGINT"),
    policy(restart="always", readiness_check="tcp://localhost:1", health_check="tcp://localhost:2", min_uptime="20s"),
    policy(max_restarts=0),
    policy(max_restarts=1, restart="always"),
)
LATE: tuple[Event, ...] = (
    *(Fired(timer) for timer in Timer),
    *(kind(check) for kind in (Passed, Failed) for check in Check),
)
ENDS: tuple[Exited, ...] = (exited(0), exited(1), exited(2), KILLED, UNSEEN)


@dataclass(frozen=True)
class Turn:
    """One thing that may happen; hypothesis prints it."""

    event: Event | None
    how: str = ""

    def __repr__(self) -> str:
        return f"{self.event!r} {self.how}".strip() if self.event is not None else self.how

    def happen(self, world: World) -> None:
        if self.how == "time passes":
            world.now += 7
        elif self.how.startswith("agent dies"):
            world.die(came="came" in self.how, ended="ended" in self.how)
        elif self.event is not None:
            if isinstance(self.event, Fired):
                world.now = max(world.now, world.timers.get(self.event.timer, 0))
            world.rest = world.rest or self.how == "leaving others"
            world.lost = self.how == UNDONE
            world.tell(self.event)
            if world.lost:
                world.die()


UNDONE = "stored, and the agent dies before it acts"
COMMANDS = (
    *(Turn(event, how) for event in (Start(), Stop(), Restart()) for how in ("", UNDONE)),
    *(Turn(Redefined(other)) for other in POLICIES),
    Turn(None, "time passes"),
    Turn(None, "agent dies"),
    *(Turn(None, f"agent dies, {how}") for how in ("it came", "it ended", "it came and ended")),
)
EXITS = tuple(Turn(event, how) for event in ENDS for how in ("", "leaving others", UNDONE))


def turns(world: World) -> list[Turn]:
    """All that may happen now: what is owed by the world first, so that shrinking ends there."""
    possible: list[Turn] = []
    if world.spawning:
        possible += [Turn(Spawned()), Turn(SpawnFailed("no such program"))] * 3
    if world.main:
        possible += EXITS if not world.killed else [Turn(KILLED)]
    if world.sweeping and not world.rest:
        possible += [Turn(Gone())] * 5 + [Turn(Gone(), UNDONE)]
    if world.probe is not None:
        possible += [Turn(Passed(world.probe)), Turn(Failed(world.probe))] * 3
    if world.timers:
        due = Fired(min(world.timers, key=lambda one: world.timers[one]))
        possible += [Turn(due)] * 5 + [Turn(due, UNDONE)]
    possible += COMMANDS
    # News that comes late is heard in phases where the kernel's own clock cannot have meant it.
    possible += [Turn(event) for event in LATE if not relevant(world, event)]
    return possible


def relevant(world: World, event: Event) -> bool:
    """Whether it would be taken for news of now. The shell keeps those apart: EndProbe and Disarm are its word for that."""
    if isinstance(event, Fired):
        return event.timer in TIMERS[world.life.phase]
    return world.life.phase in (Phase.STARTING, Phase.UNHEALTHY)


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


histories = settings(deadline=None, max_examples=400, suppress_health_check=list(HealthCheck))


@histories
@given(data=st.data())
def test_after_a_stop_it_comes_to_rest_and_stays_there(data: st.DataObject) -> None:
    """I1, I2, I3 and all that `World.look` asks hold along the way; the process may ignore signals, and so may its children."""
    world = lived(data)
    try:
        world.rest = world.rest or (world.main and data.draw(st.booleans(), label="has children"))
        world.tell(Stop()).settle(stubborn=data.draw(st.booleans(), label="stubborn"))
        assert (world.life.phase, world.life.status) == (Phase.DOWN, Status.STOPPED)
        assert (world.main, world.rest, world.timers) == (False, False, {})
        for event in LATE:
            assert step(world.life, event, world.now) == (world.life, [])
    except AssertionError:
        note("\n".join(world.story))
        raise


@histories
@given(data=st.data())
def test_who_is_wanted_comes_up_again_whenever_the_agent_dies(data: st.DataObject) -> None:
    world = lived(data, 40)
    life = world.life
    # Wanted is who runs or is being started, and of whom an end is awaited who is to follow it.
    wanted = life.phase in (Phase.SPAWNING, Phase.STARTING, Phase.ONLINE, Phase.UNHEALTHY) or life.after is After.START
    if life.phase is Phase.BACKOFF or life.after is After.BACKOFF:
        wanted = life.failures < life.policy.max_restarts and life.end == UNSEEN.end and life.policy.restart != "never"
    try:
        world.die(came=data.draw(st.booleans(), label="came"))
        world.settle()
        if wanted:
            assert world.life.status is Status.ONLINE
        if world.stopped:
            assert world.life.phase is Phase.DOWN
    except AssertionError:
        note("\n".join(world.story))
        raise


@settings(deadline=None, max_examples=100)
@given(
    restart=st.sampled_from(["always", "on_failure"]), most=st.integers(0, 20), code=st.integers(1, 255), data=st.data()
)
def test_exhaustion_shows_the_whole_budget(restart: str, most: int, code: int, data: st.DataObject) -> None:
    world = World(Life(policy(restart=restart, max_restarts=most))).tell(Start(), Spawned())
    manual = data.draw(st.integers(0, 2), label="manual restarts")
    for _time in range(manual):
        world.tell(Restart(), exited(0), Gone(), Spawned())
    for _time in range(most + 1):
        assert world.life.restarts == world.life.failures + manual
        if world.life.phase is Phase.BACKOFF:
            world.fire(Timer.BACKOFF).tell(Spawned())
        world.now += data.draw(st.sampled_from([0.0, 0.5, 0.9]))
        crash(world, code)
    assert (world.life.phase, world.life.status) == (Phase.DOWN, Status.ERRORED)
    assert world.life.restarts == (most or manual)
    assert world.life.total_restarts == most + manual


# The table --------------------------------------------------------------------------------------------------------------

EVENTS: tuple[Event, ...] = (
    Start(),
    Stop(),
    Restart(),
    Spawned(),
    SpawnFailed("no such program"),
    *ENDS,
    Gone(),
    *LATE,
    *(Redefined(other) for other in POLICIES),
)


def lives() -> Iterator[Life]:
    """Lives in every phase: every way of a few turns, one of each kind."""
    seen: dict[tuple[Any, ...], Life] = {}
    for start in POLICIES[:5]:
        edge = [Life(start)]
        while edge:
            life = edge.pop()
            key = (life.phase, life.status, life.after, life.checks, life.commanded, min(life.failures, 4), life.policy)
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
            assert isinstance(revived(life, now)[0], Life)


def test_a_step_changes_nothing_but_what_it_returns() -> None:
    """The effects are a fresh list each time, so that a shell may keep or change them."""
    life = up().life
    first, second = step(life, Stop(), 5.0), step(life, Stop(), 5.0)
    assert first == second
    first[1].clear()
    assert step(life, Stop(), 5.0) == second


def test_only_a_start_or_a_restart_leads_out_of_rest() -> None:
    for life in LIVES:
        if life.phase is Phase.DOWN:
            leading = {type(event) for event in EVENTS if step(life, event, 5.0)[0].phase is not Phase.DOWN}
            assert leading == {Start, Restart}


def test_spawn_is_only_ordered_where_nothing_is_left() -> None:
    """I1, read from the table: in DOWN, in BACKOFF, once gone, and where a start was given up before anything came of it."""
    places = {(life.phase, type(event)) for life in LIVES for event in EVENTS if Spawn() in step(life, event, 5.0)[1]}
    assert places == {
        (Phase.DOWN, Start),
        (Phase.DOWN, Restart),
        (Phase.BACKOFF, Start),
        (Phase.BACKOFF, Restart),
        (Phase.BACKOFF, Fired),
        (Phase.SWEEPING, Gone),
        (Phase.ABORTING, SpawnFailed),
    }
