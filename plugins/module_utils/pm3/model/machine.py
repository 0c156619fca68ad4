# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The life of one instance, as a state machine without I/O and without a clock.

The story: an instance rests (DOWN) until it is wanted. It is spawned (SPAWNING), and once its process is there it either has
checks to pass (STARTING, for as long as their timeouts allow, then UNHEALTHY) or merely a moment to survive; then it is ONLINE. A
stop asks it to end (STOPPING) and, when the patience of `kill_timeout` is over, kills it (KILLING). Whenever its main process has
ended, what it left behind is ended too (SWEEPING): only when nothing of it runs and its output is drained is it *gone*. What
follows is decided the moment before: rest, start again at once, or wait first (BACKOFF) and then start again.

`step(life, event, now)` gives the next life and the effects for the shell to carry out, in order. `TABLE` is the machine: which
events mean something in which phase. An event that a phase does not list is news that came too late (a timer that was disarmed,
a check of an earlier start) and changes nothing. Every other decision about an instance's life is in this file as well: whether
an exit is followed by a restart, how long the backoff is, what the counters show.

Promises: at most one process at a time (I1: Spawn is only ever ordered where none is left, in DOWN, BACKOFF and once gone), and a
stop stays a stop (I3: after Stop the machine comes to rest, and nothing but Start or Restart leads out of it).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Callable, Union

from .definition import Definition

GRACE = 0.05  # without checks: seconds to survive before counting as online (spec: pm3.md, section 3.1)
HEALTH_TIMEOUT = 30.0  # seconds that health_check may take to pass
PROBE_PAUSE = 1.0  # seconds between a failed attempt and the next
FIRST_BACKOFF, LONGEST_BACKOFF = 0.1, 30.0  # seconds
STABLE, LEAST_STABLE = 10, 1.0  # times min_uptime, and at least so many seconds: then earlier failures are forgotten


class Phase(str, enum.Enum):
    DOWN = "down"
    SPAWNING = "spawning"
    ABORTING = "aborting"  # stopped while being spawned
    STARTING = "starting"
    ONLINE = "online"
    UNHEALTHY = "unhealthy"
    STOPPING = "stopping"
    KILLING = "killing"
    SWEEPING = "sweeping"
    BACKOFF = "backoff"


class Status(str, enum.Enum):
    """pm3's five words for what a person sees."""

    STARTING = "starting"
    ONLINE = "online"
    UNHEALTHY = "unhealthy"
    STOPPED = "stopped"
    ERRORED = "errored"


class Cause(str, enum.Enum):
    """Why an instance ended."""

    EXIT = "exit"
    SIGNAL = "signal"
    SPAWN = "spawn"  # it could not be started
    USER = "user"  # it was stopped on purpose
    UNKNOWN = "unknown"  # it ended unseen, while no agent ran


class After(enum.Enum):
    """What follows once nothing of the instance is left."""

    REST = "rest"
    START = "start"
    BACKOFF = "backoff"


class Timer(enum.Enum):
    GRACE = "grace"  # survived its first moment
    SETTLE = "settle"  # has lived min_uptime
    ATTEMPT = "attempt"  # time for the next attempt of a check
    PATIENCE = "patience"  # a check's timeout
    KILL = "kill"  # kill_timeout is over
    BACKOFF = "backoff"


class Check(str, enum.Enum):
    READINESS = "readiness_check"
    HEALTH = "health_check"


@dataclass(frozen=True)
class Policy:
    """What of a definition the machine needs, in its own units (seconds)."""

    restart: str
    max_restarts: int
    min_uptime: float
    stop_exit_codes: tuple[int, ...]
    kill_signal: str
    kill_timeout: float
    checks: tuple[Check, ...]
    readiness_timeout: float

    @classmethod
    def of(cls, definition: Definition) -> Policy:
        checks = [check for check in Check if getattr(definition, check.value) is not None]
        return cls(
            definition.restart,
            definition.max_restarts,
            definition.min_uptime / 1000,
            definition.stop_exit_codes,
            definition.kill_signal,
            definition.kill_timeout / 1000,
            tuple(checks),
            float(definition.readiness_timeout),
        )


@dataclass(frozen=True)
class End:
    """How an instance's last process ended. At most one of `code` and `signal` is known."""

    cause: Cause
    code: int | None = None
    signal: int | None = None
    message: str = ""

    def __str__(self) -> str:
        if self.message:
            return self.message
        if self.code is not None:
            return f"exited with code {self.code}"
        return f"was ended by signal {self.signal}" if self.signal is not None else "ended unseen"


@dataclass(frozen=True)
class Life:
    """Everything that the machine knows of one instance. Times are on the caller's monotonic clock, in seconds."""

    policy: Policy
    phase: Phase = Phase.DOWN
    status: Status = Status.STOPPED  # in phases that have no word of their own: what it was, or what it will rest as
    after: After = After.REST
    restarts: int = 0  # pm3's counter: since it last lived min_uptime, manual restarts included
    total_restarts: int = 0  # since it was created
    failures: int = 0  # in a row: the crash budget, and the exponent of the backoff
    started: float | None = None  # when its process was there; None while there is none (W7)
    settled: bool = False  # this process has lived min_uptime
    checks: tuple[Check, ...] = ()  # still to pass, in order
    commanded: bool = False  # this start was asked for (and not the machine's own restart)
    end: End | None = None


# Events: what the shell has to tell.
@dataclass(frozen=True)
class Start:
    """Somebody wants it to run."""


@dataclass(frozen=True)
class Stop:
    """Somebody wants it to rest."""


@dataclass(frozen=True)
class Restart:
    """Somebody wants a new process of it."""


@dataclass(frozen=True)
class Spawned:
    """The process that Spawn ordered is there."""


@dataclass(frozen=True)
class SpawnFailed:
    """There is none, and nothing is left of the attempt."""

    message: str


@dataclass(frozen=True)
class Exited:
    """The main process has ended; others of the instance may go on."""

    end: End


@dataclass(frozen=True)
class Gone:
    """After Exited: no process of the instance is left, and its output has been read to the end."""


@dataclass(frozen=True)
class Passed:
    check: Check


@dataclass(frozen=True)
class Failed:
    check: Check


@dataclass(frozen=True)
class Fired:
    timer: Timer


@dataclass(frozen=True)
class Redefined:
    """Hot changes: another policy for the same process."""

    policy: Policy


Event = Union[Start, Stop, Restart, Spawned, SpawnFailed, Exited, Gone, Passed, Failed, Fired, Redefined]


# Effects: what the shell has to do.
@dataclass(frozen=True)
class Spawn:
    """Start the process; answer with Spawned or SpawnFailed."""


@dataclass(frozen=True)
class Signal:
    """Send it to the instance's process group."""

    name: str


@dataclass(frozen=True)
class Kill:
    """End every process of the instance, now."""


@dataclass(frozen=True)
class Sweep:
    """The main process has ended: tell when the rest has (Gone)."""


@dataclass(frozen=True)
class Arm:
    """Set this timer; it replaces one of the same kind."""

    timer: Timer
    seconds: float


@dataclass(frozen=True)
class Disarm:
    """Unset these timers, where they are set."""

    timers: tuple[Timer, ...]


@dataclass(frozen=True)
class Probe:
    """Make one attempt of the check; answer with Passed or Failed."""

    check: Check


@dataclass(frozen=True)
class EndProbe:
    """Abandon the attempt under way, if any."""


Effect = Union[Spawn, Signal, Kill, Sweep, Arm, Disarm, Probe, EndProbe]
Outcome = tuple[Life, list[Effect]]

_QUIET: list[Effect] = [EndProbe(), Disarm((Timer.GRACE, Timer.SETTLE, Timer.ATTEMPT, Timer.PATIENCE))]


def step(life: Life, event: Event, now: float) -> Outcome:
    """The life after `event`, and what is to be done. `now` is monotonic, in seconds."""
    handler = TABLE[life.phase].get(type(event))
    return handler(life, event, now) if handler is not None else (life, [])


def revived(life: Life, now: float) -> Outcome:
    """What an agent that has just started does for a life that an earlier one left, so that it goes on where it was.

    The shell first tells what the kernel knows: whether the process is still there. If it is not, Exited follows; a start of which
    no process came (the agent died between intent and fork) is taken up again.
    """
    rest: dict[Phase, list[Effect]] = {
        Phase.SPAWNING: [Spawn()],
        Phase.STOPPING: [Signal(life.policy.kill_signal), Arm(Timer.KILL, life.policy.kill_timeout)],
        Phase.KILLING: [Kill()],
        Phase.SWEEPING: [Kill(), Sweep()],
        Phase.BACKOFF: [Arm(Timer.BACKOFF, backoff(life.failures))],
    }
    if life.phase is Phase.ABORTING:
        return _aborted(life, SpawnFailed(""), now)
    effects = rest.get(life.phase, [])
    if life.phase in (Phase.STARTING, Phase.ONLINE, Phase.UNHEALTHY) and not life.settled:
        lived = now - life.started if life.started is not None else 0.0
        effects = [Arm(Timer.SETTLE, max(0.0, life.policy.min_uptime - lived))]
    if life.phase in (Phase.STARTING, Phase.UNHEALTHY):
        life, more = _begin_checks(life)
        effects = [*effects, *more]
    return life, effects


def backoff(failures: int) -> float:
    """Seconds to wait before the start that follows so many failures in a row (spec: pm3.md, section 3.4)."""
    return min(FIRST_BACKOFF * 2.0 ** min(failures, 30), LONGEST_BACKOFF)


# Starting


def _start(life: Life, event: Event, now: float) -> Outcome:
    """A start that was asked for has a fresh crash budget."""
    return _spawn(replace(life, failures=0, commanded=True))


def _restart_from_rest(life: Life, event: Event, now: float) -> Outcome:
    return _start(_counted(life), event, now)


def _abort(life: Life, event: Event, now: float) -> Outcome:
    return replace(life, phase=Phase.ABORTING, after=After.REST), []


def _abort_to_start(life: Life, event: Event, now: float) -> Outcome:
    return _then_start(replace(life, phase=Phase.ABORTING), event, now)


def _abort_to_restart(life: Life, event: Event, now: float) -> Outcome:
    return _abort_to_start(_counted(life), event, now)


def _spawn(life: Life) -> Outcome:
    fresh = replace(life, phase=Phase.SPAWNING, status=Status.STARTING, after=After.REST, settled=False, checks=())
    return fresh, [Disarm((Timer.BACKOFF, Timer.KILL)), Spawn()]


def _spawned(life: Life, event: Event, now: float) -> Outcome:
    # The checks of now: the policy may have changed since Spawn was ordered.
    life = replace(life, phase=Phase.STARTING, started=now, checks=life.policy.checks)
    life, effects = _begin_checks(life)
    return life, [Arm(Timer.SETTLE, life.policy.min_uptime), *effects]


def _spawned_in_vain(life: Life, event: Event, now: float) -> Outcome:
    return _ask(replace(life, started=now), life.after)


def _spawn_failed(life: Life, event: Event, now: float) -> Outcome:
    message = event.message if isinstance(event, SpawnFailed) else ""
    end = End(Cause.SPAWN, message=message)
    life = replace(life, end=end)
    if life.commanded or not _may_restart(life, end):
        return _given_up(life, end), []
    # A program that is missing for a moment, in the middle of a deployment, is no reason to give up (W21).
    return _wait(life)


def _aborted(life: Life, event: Event, now: float) -> Outcome:
    if life.after is After.START:
        return _spawn(life)
    return replace(life, phase=Phase.DOWN, status=Status.STOPPED, after=After.REST), []


# Checks


def _begin_checks(life: Life) -> Outcome:
    return _next_check(life) if life.checks else (life, [Arm(Timer.GRACE, GRACE)])


def _next_check(life: Life) -> Outcome:
    if not life.checks:
        return replace(life, phase=Phase.ONLINE, status=Status.ONLINE), [Disarm((Timer.ATTEMPT, Timer.PATIENCE))]
    patience = life.policy.readiness_timeout if life.checks[0] is Check.READINESS else HEALTH_TIMEOUT
    return life, [Arm(Timer.PATIENCE, patience), Probe(life.checks[0])]


def _survived(life: Life, event: Event, now: float) -> Outcome:
    if isinstance(event, Fired) and event.timer is Timer.GRACE and not life.checks:
        return replace(life, phase=Phase.ONLINE, status=Status.ONLINE), []
    return _fired(life, event, now)


def _fired(life: Life, event: Event, now: float) -> Outcome:
    timer = event.timer if isinstance(event, Fired) else None
    if timer is Timer.SETTLE:
        return replace(life, settled=True), []
    if timer is Timer.ATTEMPT and life.checks:
        return life, [Probe(life.checks[0])]
    if timer is Timer.PATIENCE and life.phase is Phase.STARTING:
        return replace(life, phase=Phase.UNHEALTHY, status=Status.UNHEALTHY), []
    return life, []


def _passed(life: Life, event: Event, now: float) -> Outcome:
    if not life.checks or not isinstance(event, Passed) or event.check is not life.checks[0]:
        return life, []
    return _next_check(replace(life, checks=life.checks[1:]))


def _failed(life: Life, event: Event, now: float) -> Outcome:
    """Try again: also when the timeout is over, so that what was only slow becomes online after all (W15)."""
    if not life.checks or not isinstance(event, Failed) or event.check is not life.checks[0]:
        return life, []
    return life, [Arm(Timer.ATTEMPT, PROBE_PAUSE)]


# Stopping


def _stop(life: Life, event: Event, now: float) -> Outcome:
    return _ask(life, After.REST)


def _restart(life: Life, event: Event, now: float) -> Outcome:
    return _ask(_counted(replace(life, failures=0, commanded=True)), After.START)


def _ask(life: Life, after: After) -> Outcome:
    """Ask the process to end."""
    asked = replace(life, phase=Phase.STOPPING, after=after)
    return asked, [*_QUIET, Signal(life.policy.kill_signal), Arm(Timer.KILL, life.policy.kill_timeout)]


def _kill(life: Life, event: Event, now: float) -> Outcome:
    if isinstance(event, Fired) and event.timer is Timer.KILL:
        return replace(life, phase=Phase.KILLING if life.phase is Phase.STOPPING else life.phase), [Kill()]
    return life, []


def _then_rest(life: Life, event: Event, now: float) -> Outcome:
    # In SWEEPING the status is already what the instance will rest as.
    status = Status.STOPPED if life.phase is Phase.SWEEPING else life.status
    return replace(life, after=After.REST, status=status), []


def _then_start(life: Life, event: Event, now: float) -> Outcome:
    return replace(life, after=After.START, failures=0, commanded=True), []


def _then_restart(life: Life, event: Event, now: float) -> Outcome:
    return _then_start(_counted(life), event, now)


def _rest(life: Life, event: Event, now: float) -> Outcome:
    return replace(life, phase=Phase.DOWN, status=Status.STOPPED, after=After.REST), [Disarm((Timer.BACKOFF,))]


# Ending


def _exited_as_asked(life: Life, event: Event, now: float) -> Outcome:
    """The rest of the group keeps what is left of kill_timeout: it got the signal too."""
    end = replace(event.end, cause=Cause.USER) if isinstance(event, Exited) else life.end
    sweeping = replace(life, phase=Phase.SWEEPING, status=Status.STOPPED, started=None, end=end)
    if life.phase is Phase.KILLING:
        return sweeping, [Kill(), Sweep()]
    return sweeping, [Sweep()]


def _exited(life: Life, event: Event, now: float) -> Outcome:
    """It ended by itself: decide what follows, and clear away what it left (W17)."""
    end = event.end if isinstance(event, Exited) else End(Cause.UNKNOWN)
    lived = now - life.started if life.started is not None else 0.0
    if lived >= life.policy.min_uptime:
        life = replace(life, restarts=0)
    if lived >= max(STABLE * life.policy.min_uptime, LEAST_STABLE):
        life = replace(life, failures=0)
    life = replace(life, started=None, end=end)
    life = (
        replace(life, after=After.BACKOFF, status=Status.ERRORED) if _may_restart(life, end) else _given_up(life, end)
    )
    return replace(life, phase=Phase.SWEEPING), [*_QUIET, Kill(), Sweep()]


def _gone(life: Life, event: Event, now: float) -> Outcome:
    if life.after is After.START:
        return _spawn(life)
    if life.after is After.BACKOFF:
        return _wait(life)
    return replace(life, phase=Phase.DOWN), [Disarm((Timer.KILL,))]


def _wait(life: Life) -> Outcome:
    waiting = replace(life, phase=Phase.BACKOFF, status=Status.ERRORED, after=After.REST)
    return waiting, [Disarm((Timer.KILL,)), Arm(Timer.BACKOFF, backoff(life.failures))]


def _backed_off(life: Life, event: Event, now: float) -> Outcome:
    if not isinstance(event, Fired) or event.timer is not Timer.BACKOFF:
        return life, []
    end = life.end or End(Cause.UNKNOWN)
    if not _may_restart(life, end):  # the policy changed during the wait
        return _given_up(life, end), []
    return _spawn(_counted(replace(life, failures=life.failures + 1, commanded=False)))


def _asks_for_restart(policy: Policy, end: End) -> bool:
    """Whether `end` is one after which the policy starts it again (spec: pm3.md, sections 3.4 and 9.12)."""
    if policy.restart == "never" or (end.code is not None and end.code in policy.stop_exit_codes):
        return False
    return policy.restart == "always" or end.code != 0


def _may_restart(life: Life, end: End) -> bool:
    return _asks_for_restart(life.policy, end) and life.failures < life.policy.max_restarts


def _given_up(life: Life, end: End) -> Life:
    """At rest without having been asked. When the budget is what ended it, pm3's counter shows the whole budget."""
    if life.failures and _asks_for_restart(life.policy, end):
        life = replace(life, restarts=life.policy.max_restarts)
    status = Status.STOPPED if end.code == 0 else Status.ERRORED
    return replace(life, phase=Phase.DOWN, status=status, after=After.REST)


def _counted(life: Life) -> Life:
    return replace(life, restarts=life.restarts + 1, total_restarts=life.total_restarts + 1)


# Changing


def _redefined(life: Life, event: Event, now: float) -> Outcome:
    return (replace(life, policy=event.policy), []) if isinstance(event, Redefined) else (life, [])


def _redefined_while_checked(life: Life, event: Event, now: float) -> Outcome:
    """Checks that are under way begin again as they are now defined."""
    life = _redefined(life, event, now)[0]
    life, effects = _begin_checks(
        replace(life, phase=Phase.STARTING, status=Status.STARTING, checks=life.policy.checks)
    )
    return life, [EndProbe(), Disarm((Timer.GRACE, Timer.ATTEMPT, Timer.PATIENCE)), *effects]


Handler = Callable[[Life, Event, float], Outcome]

_RUNS: Mapping[type[Event], Handler] = {
    Stop: _stop,
    Restart: _restart,
    Exited: _exited,
    Redefined: _redefined,
    Fired: _fired,
}
_CHECKED: Mapping[type[Event], Handler] = {
    **_RUNS,
    Passed: _passed,
    Failed: _failed,
    Redefined: _redefined_while_checked,
}
_ENDS: Mapping[type[Event], Handler] = {
    Stop: _then_rest,
    Start: _then_start,
    Restart: _then_restart,
    Exited: _exited_as_asked,
    Fired: _kill,
    Redefined: _redefined,
}

TABLE: dict[Phase, Mapping[type[Event], Handler]] = {
    Phase.DOWN: {Start: _start, Restart: _restart_from_rest, Stop: _rest, Redefined: _redefined},
    Phase.SPAWNING: {
        Spawned: _spawned,
        SpawnFailed: _spawn_failed,
        Stop: _abort,
        Restart: _abort_to_restart,
        Redefined: _redefined,
    },
    Phase.ABORTING: {
        Spawned: _spawned_in_vain,
        SpawnFailed: _aborted,
        Start: _abort_to_start,
        Stop: _abort,
        Restart: _abort_to_restart,
        Redefined: _redefined,
    },
    Phase.STARTING: {**_CHECKED, Fired: _survived},
    Phase.ONLINE: _RUNS,
    Phase.UNHEALTHY: _CHECKED,
    Phase.STOPPING: _ENDS,
    Phase.KILLING: _ENDS,
    Phase.SWEEPING: {
        Gone: _gone,
        Stop: _then_rest,
        Start: _then_start,
        Restart: _then_restart,
        Fired: _kill,
        Redefined: _redefined,
    },
    Phase.BACKOFF: {Start: _start, Restart: _restart_from_rest, Stop: _rest, Fired: _backed_off, Redefined: _redefined},
}
