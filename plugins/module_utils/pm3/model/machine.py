# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The life of one instance, as a state machine without I/O and without a clock.

The story: an instance rests (DOWN) until it is wanted. Its `pre_start` runs, if it has one (PREPARING); then it is spawned (SPAWNING),
and once its process is there it either has checks to pass (STARTING, for as long as their timeouts allow, then UNHEALTHY) or merely a
moment to survive; then it is ONLINE, and its `liveness_check`, if it has one, is made again and again. A stop asks it to end
(STOPPING) and, when the patience of `kill_timeout` is over, kills it (KILLING). Whenever its main process has ended, what it left
behind is ended too (SWEEPING), and its `post_stop` runs (CLEANING): only when nothing of it runs and its output is drained is it
*gone*. What follows is decided the moment before: rest, start again at once, or wait first (BACKOFF) and then start again.

`step(life, event, now)` gives the next life and the effects for the shell to carry out, in order. `TABLE` is the machine: which
events mean something in which phase. An event that a phase does not list is news that came too late (a timer that was disarmed,
a check of an earlier start) and changes nothing. Every other decision about an instance's life is in this file as well: whether
an exit is followed by a restart, how long the backoff is, what the counters show.

Promises: at most one process at a time (I1: Spawn is only ever ordered where none is left, in DOWN, BACKOFF and once gone), and a
stop stays a stop (I3: after Stop the machine comes to rest, and nothing but Start or Restart leads out of it).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Callable, Union

from .life import After, Cause, Check, End, Life, Phase, Policy, Status, Timer, Work

GRACE = 0.05  # without checks: seconds to survive before counting as online (spec: pm3.md, section 3.1)
HEALTH_TIMEOUT = 30.0  # seconds that health_check may take to pass
PROBE_PAUSE = 1.0  # seconds between a failed attempt and the next
FIRST_BACKOFF, LONGEST_BACKOFF = 0.1, 30.0  # seconds
STABLE, LEAST_STABLE = 10, 1.0  # times min_uptime, and at least so many seconds: then earlier failures are forgotten


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
class Tripped:
    """Its own definition asks for a new process of it now: of MEMORY, WATCH or CRON."""

    cause: Cause
    message: str


@dataclass(frozen=True)
class Spawned:
    """The process that Spawn ordered is there."""


@dataclass(frozen=True)
class SpawnFailed:
    """There is none, and nothing is left of the attempt."""

    message: str


@dataclass(frozen=True)
class Exited:
    """The main process (or the hook's) has ended; others of the instance may go on."""

    end: End


@dataclass(frozen=True)
class Gone:
    """After Exited: no process of the instance is left, and its output has been read to the end."""

    tail: tuple[str, ...] = ()  # its last lines


@dataclass(frozen=True)
class Unasked:
    """`stop_command` could not do its work."""


@dataclass(frozen=True)
class Passed:
    """One attempt of a check was a success."""

    check: Check


@dataclass(frozen=True)
class Failed:
    """One attempt of a check was none."""

    check: Check
    message: str = ""


@dataclass(frozen=True)
class Waiting:
    """An attempt that has no end of its own goes on, and this is what it waits for."""

    check: Check
    message: str


@dataclass(frozen=True)
class Fired:
    """The time that was asked for has come."""

    timer: Timer


@dataclass(frozen=True)
class Redefined:
    """Hot changes: another policy for the same process."""

    policy: Policy


Event = Union[
    Start,
    Stop,
    Restart,
    Tripped,
    Spawned,
    SpawnFailed,
    Exited,
    Gone,
    Unasked,
    Passed,
    Failed,
    Waiting,
    Fired,
    Redefined,
]


# Effects: what the shell has to do.
@dataclass(frozen=True)
class Spawn:
    """Start the process; answer with Spawned or SpawnFailed."""

    work: Work = Work.PROGRAM


@dataclass(frozen=True)
class Signal:
    """Send it to the instance's process group."""

    name: str


@dataclass(frozen=True)
class Ask:
    """Run `stop_command`; answer with Unasked if it fails."""


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


@dataclass(frozen=True)
class Tell:
    """Say it where the agent says things: nobody else would hear of it."""

    message: str


Effect = Union[Spawn, Signal, Ask, Kill, Sweep, Arm, Disarm, Probe, EndProbe, Tell]
Outcome = tuple[Life, list[Effect]]

_QUIET: list[Effect] = [EndProbe(), Disarm((Timer.GRACE, Timer.SETTLE, Timer.ATTEMPT, Timer.PATIENCE))]


def step(life: Life, event: Event, now: float) -> Outcome:
    """The life after `event`, and what is to be done. `now` is monotonic, in seconds."""
    if isinstance(event, (Start, Stop, Restart)):
        life = replace(life, wanted=not isinstance(event, Stop))
    handler = TABLE[life.phase].get(type(event))
    after, effects = handler(life, event, now) if handler is not None else (life, [])
    return _dated(life, after, now), effects


def _dated(before: Life, life: Life, now: float) -> Life:
    changed = life.status is not before.status or (life is not before and life.since is None)
    return replace(life, since=now) if changed else life


def revived(life: Life, now: float, running: bool = True) -> Outcome:
    """What an agent that has just started does for a life that an earlier one left, so that it goes on where it was.

    `running`: a process of the instance was found. If it has ended meanwhile, Exited follows; a start of which no process came (the
    agent died between intent and fork) is taken up again.
    """
    after, effects = _revived(life, now, running)
    return _dated(life, after, now), effects


def _revived(life: Life, now: float, running: bool) -> Outcome:
    if life.phase is Phase.ABORTING:
        return _aborted(life, SpawnFailed(""), now)
    if life.phase in _HOOKS:
        return _revived_in_hook(life, now, running)
    rest: dict[Phase, list[Effect]] = {
        Phase.SPAWNING: [Spawn()],
        Phase.STOPPING: [*_asking(life), Arm(Timer.KILL, life.policy.kill_timeout)],
        Phase.KILLING: [Kill()],
        Phase.SWEEPING: [Kill(), Sweep()],
        Phase.BACKOFF: [Arm(Timer.BACKOFF, backoff(life.failures))],
        Phase.ONLINE: _next_liveness(life),
    }
    effects = rest.get(life.phase, [])
    if life.phase in (Phase.STARTING, Phase.ONLINE, Phase.UNHEALTHY):
        effects = [*_settling(life, now), *effects]
    if life.phase in (Phase.STARTING, Phase.UNHEALTHY):
        life, more = _begin_checks(life)
        effects = [*effects, *more]
    return life, effects


def is_swept(life: Life) -> bool:
    """Whether its process, or its hook's, is known to have ended, and Gone is still to come."""
    return life.phase is Phase.SWEEPING or (life.phase in _HOOKS and life.hook is not None)


def backoff(failures: int) -> float:
    """Seconds to wait before the start that follows so many failures in a row (spec: pm3.md, section 3.4)."""
    return min(FIRST_BACKOFF * 2.0 ** min(failures, 30), LONGEST_BACKOFF)


# Starting


def _start(life: Life, event: Event, now: float) -> Outcome:
    """A start that was asked for has a fresh crash budget."""
    return _begin(replace(life, failures=0, commanded=True))


def _restart_from_rest(life: Life, event: Event, now: float) -> Outcome:
    return _start(_counted(life), event, now)


def _begin(life: Life) -> Outcome:
    if not life.policy.pre_start:
        return _spawn(life)
    return _fresh(life, Phase.PREPARING, After.GO_ON), [
        Disarm((Timer.BACKOFF, Timer.KILL)),
        Spawn(Work.PRE_START),
    ]


def _spawn(life: Life) -> Outcome:
    return _fresh(life, Phase.SPAWNING, After.REST), [Disarm((Timer.BACKOFF, Timer.KILL)), Spawn()]


def _fresh(life: Life, phase: Phase, after: After) -> Life:
    """The life of a process that is to come: nothing of the one before is said of it."""
    life = replace(life, settled=False, checks=(), complaint="", missed=0, answered=0, ending=None, hook=None)
    return replace(life, phase=phase, status=Status.STARTING, after=after)


def _abort(life: Life, event: Event, now: float) -> Outcome:
    return replace(life, phase=Phase.ABORTING, after=After.REST), []


def _abort_to_start(life: Life, event: Event, now: float) -> Outcome:
    return _then_start(replace(life, phase=Phase.ABORTING), event, now)


def _abort_to_restart(life: Life, event: Event, now: float) -> Outcome:
    return _abort_to_start(_counted(life), event, now)


def _spawned(life: Life, event: Event, now: float) -> Outcome:
    # The checks of now: the policy may have changed since Spawn was ordered.
    life = replace(life, phase=Phase.STARTING, started=now, checks=life.policy.checks)
    life, effects = _begin_checks(life)
    return life, [Arm(Timer.SETTLE, life.policy.min_uptime), *effects]


def _spawned_in_vain(life: Life, event: Event, now: float) -> Outcome:
    return _ask(replace(life, started=now), life.after, End(Cause.USER))


def _spawn_failed(life: Life, event: Event, now: float) -> Outcome:
    message = event.message if isinstance(event, SpawnFailed) else ""
    end = End(Cause.SPAWN, message=message, at=now, tail=life.hook.tail if life.hook is not None else ())
    life = replace(life, end=end, hook=None)
    if life.commanded or not _may_restart(life, end):
        return _given_up(life, end), []
    # A program that is missing for a moment, in the middle of a deployment, is no reason to give up (W21).
    return _wait(life)


def _aborted(life: Life, event: Event, now: float) -> Outcome:
    if life.after is After.START:
        return _begin(life)
    return replace(life, phase=Phase.DOWN, status=Status.STOPPED, after=After.REST), []


# Hooks


def _hook_began(life: Life, event: Event, now: float) -> Outcome:
    began: list[Effect] = [Arm(Timer.HOOK, life.policy.hook_timeout)]
    in_vain = life.phase is Phase.PREPARING and life.after is not After.GO_ON
    return life, [*began, Kill()] if in_vain else began


def _hook_ended(life: Life, event: Event, now: float) -> Outcome:
    end = event.end if isinstance(event, Exited) else End(Cause.UNKNOWN)
    if life.ending is not None:  # it was we who ended it, and why
        end = replace(end, code=None, message=life.ending.message)
    return replace(life, hook=end, ending=None), [Disarm((Timer.HOOK,)), Kill(), Sweep()]


def _hook_fired(life: Life, event: Event, now: float) -> Outcome:
    if not isinstance(event, Fired) or event.timer is not Timer.HOOK or life.hook is not None:
        return life, []
    message = f"took longer than hook_timeout, {life.policy.hook_timeout:g} s"
    return replace(life, ending=End(Cause.USER, message=message)), [Kill()]


def _prepared(life: Life, event: Event, now: float) -> Outcome:
    """pre_start is over: the program follows, unless it failed or something else was wanted meanwhile."""
    end = life.hook or End(Cause.UNKNOWN)
    if life.after is not After.GO_ON:
        return _aborted(replace(life, hook=None), event, now)
    if end.code == 0:
        return _spawn(life)
    tail = event.tail if isinstance(event, Gone) else ()
    return _spawn_failed(replace(life, hook=replace(end, tail=tail)), SpawnFailed(f"hook failed: pre_start {end}"), now)


def _prepared_in_vain(life: Life, event: Event, now: float) -> Outcome:
    """pre_start could not even be spawned."""
    if life.after is not After.GO_ON:
        return _aborted(life, event, now)
    message = event.message if isinstance(event, SpawnFailed) else ""
    return _spawn_failed(life, SpawnFailed(f"hook failed: pre_start: {message}"), now)


def _unprepare(life: Life, event: Event, now: float) -> Outcome:
    """pre_start is not needed any more; where it has not begun yet, it is ended as soon as it does."""
    return replace(life, after=After.REST), [Kill()]


def _unprepare_to_start(life: Life, event: Event, now: float) -> Outcome:
    return (life, []) if life.after is After.GO_ON else _then_start(life, event, now)


def _unprepare_to_restart(life: Life, event: Event, now: float) -> Outcome:
    return _then_restart(life, event, now)[0], [Kill()]


def _cleaned(life: Life, event: Event, now: float) -> Outcome:
    """post_stop is over. That it failed changes nothing (spec: pm3.md, section 3.5)."""
    failed = life.hook if life.hook is not None and life.hook.code != 0 else None
    message = f": {event.message}" if isinstance(event, SpawnFailed) else f" {failed}"
    life, effects = _follow(replace(life, hook=None))
    if failed is None and not isinstance(event, SpawnFailed):
        return life, effects
    return life, [Tell(f"hook failed: post_stop{message}"), *effects]


def _revived_in_hook(life: Life, now: float, running: bool) -> Outcome:
    if life.hook is not None:
        return life, [Kill(), Sweep()]
    if running:
        life, effects = _hook_began(life, Spawned(), now)
        return life, [*effects, Kill()] if life.ending is not None else effects
    # The definition may have changed since it was ordered.
    if life.phase is Phase.CLEANING:
        return (life, [Spawn(Work.POST_STOP)]) if life.policy.post_stop else _follow(life)
    return _begin(life) if life.after is After.GO_ON else _aborted(life, SpawnFailed(""), now)


# Checks


def _begin_checks(life: Life) -> Outcome:
    return _next_check(life) if life.checks else (life, [Arm(Timer.GRACE, GRACE)])


def _next_check(life: Life) -> Outcome:
    if not life.checks:
        life, effects = _online(life)
        return life, [Disarm((Timer.ATTEMPT, Timer.PATIENCE)), *effects]
    patience = life.policy.readiness_timeout if life.checks[0] is Check.READINESS else HEALTH_TIMEOUT
    return life, [Arm(Timer.PATIENCE, patience), Probe(life.checks[0])]


def _online(life: Life) -> Outcome:
    life = replace(life, phase=Phase.ONLINE, status=Status.ONLINE, complaint="", missed=0, answered=0)
    return life, _next_liveness(life)


def _settling(life: Life, now: float) -> list[Effect]:
    """What is left of min_uptime."""
    return [] if life.settled else [Arm(Timer.SETTLE, max(0.0, life.policy.min_uptime - _lived(life, now)))]


def _next_liveness(life: Life) -> list[Effect]:
    return [Arm(Timer.ATTEMPT, life.policy.liveness.interval)] if life.policy.liveness is not None else []


def _survived(life: Life, event: Event, now: float) -> Outcome:
    if isinstance(event, Fired) and event.timer is Timer.GRACE and not life.checks:
        return _online(life)
    return _fired(life, event, now)


def _fired(life: Life, event: Event, now: float) -> Outcome:
    timer = event.timer if isinstance(event, Fired) else None
    if timer is Timer.SETTLE:
        return replace(life, settled=True), []
    if timer is Timer.ATTEMPT and life.checks:
        return life, [Probe(life.checks[0])]
    if timer is Timer.ATTEMPT and life.phase is Phase.ONLINE and life.policy.liveness is not None:
        return life, [Probe(Check.LIVENESS)]
    if timer is Timer.PATIENCE and life.phase is Phase.STARTING:
        return replace(life, phase=Phase.UNHEALTHY, status=Status.UNHEALTHY), []
    return life, []


def _passed(life: Life, event: Event, now: float) -> Outcome:
    if not life.checks or not isinstance(event, Passed) or event.check is not life.checks[0]:
        return life, []
    return _next_check(replace(life, checks=life.checks[1:], complaint=""))


def _failed(life: Life, event: Event, now: float) -> Outcome:
    """Try again: also when the timeout is over, so that what was only slow becomes online after all (W15)."""
    if not life.checks or not isinstance(event, Failed) or event.check is not life.checks[0]:
        return life, []
    return replace(life, complaint=event.message), [Arm(Timer.ATTEMPT, PROBE_PAUSE)]


def _waiting(life: Life, event: Event, now: float) -> Outcome:
    if not life.checks or not isinstance(event, Waiting) or event.check is not life.checks[0]:
        return life, []
    return replace(life, complaint=event.message), []


def _is_alive(life: Life, event: Event, now: float) -> Outcome:
    liveness = life.policy.liveness
    if liveness is None or not isinstance(event, Passed) or event.check is not Check.LIVENESS:
        return life, []
    if not life.missed:
        return life, _next_liveness(life)
    answered = life.answered + 1
    missed = 0 if answered >= liveness.successes else life.missed
    life = replace(life, answered=answered, missed=missed, complaint="" if missed == 0 else life.complaint)
    return life, _next_liveness(life)


def _is_hung(life: Life, event: Event, now: float) -> Outcome:
    """One failure is nothing; so many in a row are a failure like a crash, with backoff and budget."""
    liveness = life.policy.liveness
    if liveness is None or not isinstance(event, Failed) or event.check is not Check.LIVENESS:
        return life, []
    life = replace(life, missed=life.missed + 1, answered=0, complaint=event.message)
    if life.missed < liveness.failures:
        return life, _next_liveness(life)
    times = "once" if life.missed == 1 else f"{life.missed} times in a row"
    message = f"liveness_check failed {times}: {life.complaint}"
    return _ask(life, After.BACKOFF, End(Cause.PROBE, message=message))


# Stopping


def _stop(life: Life, event: Event, now: float) -> Outcome:
    return _ask(life, After.REST, End(Cause.USER))


def _restart(life: Life, event: Event, now: float) -> Outcome:
    return _ask(_counted(replace(life, failures=0, commanded=True)), After.START, End(Cause.USER))


def _tripped(life: Life, event: Event, now: float) -> Outcome:
    """Whatever the restart policy says, and without a price for the crash budget (spec: pm3.md, sections 9.12 and 10)."""
    if not isinstance(event, Tripped):
        return life, []
    return _ask(_counted(replace(life, commanded=False)), After.START, End(event.cause, message=event.message))


def _tripped_at_rest(life: Life, event: Event, now: float) -> Outcome:
    """A job that is due, or one that has ended and whose files have changed, begins anew; what was stopped stays stopped (I3)."""
    if not _wakes(life, event, waits=life.phase is Phase.BACKOFF):
        return life, []
    return _begin(_counted(replace(life, failures=0, commanded=False)))


def _tripped_at_the_end(life: Life, event: Event, now: float) -> Outcome:
    """As at rest, once nothing of it is left: a tick or a change that comes while post_stop runs is not lost."""
    if life.after is After.START or not _wakes(life, event, waits=life.after is After.BACKOFF):
        return life, []
    return replace(_counted(life), after=After.START, failures=0, commanded=False), []


def _wakes(life: Life, event: Event, waits: bool) -> bool:
    """`waits`: it will be started again in any case, later. Changed files are a reason not to wait, the time is none."""
    cause = event.cause if isinstance(event, Tripped) else None
    return life.wanted and (cause is Cause.WATCH or (cause is Cause.CRON and not waits))


def _ask(life: Life, after: After, ending: End) -> Outcome:
    """Ask the process to end."""
    asked = replace(life, phase=Phase.STOPPING, after=after, ending=ending)
    return asked, [*_QUIET, *_asking(life), Arm(Timer.KILL, life.policy.kill_timeout)]


def _asking(life: Life) -> list[Effect]:
    return [Ask()] if life.policy.stop_command else [Signal(life.policy.kill_signal)]


def _unasked(life: Life, event: Event, now: float) -> Outcome:
    return life, [Signal(life.policy.kill_signal)]


def _kill(life: Life, event: Event, now: float) -> Outcome:
    if isinstance(event, Fired) and event.timer is Timer.KILL:
        return replace(life, phase=Phase.KILLING if life.phase is Phase.STOPPING else life.phase), [Kill()]
    return life, []


def _then_rest(life: Life, event: Event, now: float) -> Outcome:
    # Once its end is known, the status is already what the instance will rest as.
    status = Status.STOPPED if life.phase in (Phase.SWEEPING, Phase.CLEANING) else life.status
    return replace(_claimed(life), after=After.REST, status=status), []


def _then_start(life: Life, event: Event, now: float) -> Outcome:
    return replace(_claimed(life), after=After.START, failures=0, commanded=True), []


def _claimed(life: Life) -> Life:
    """What ends for a reason of its own ends because somebody wants it, from now on."""
    return replace(life, ending=End(Cause.USER)) if life.phase in (Phase.STOPPING, Phase.KILLING) else life


def _then_restart(life: Life, event: Event, now: float) -> Outcome:
    return _then_start(_counted(life), event, now)


def _rest(life: Life, event: Event, now: float) -> Outcome:
    return replace(life, phase=Phase.DOWN, status=Status.STOPPED, after=After.REST), [Disarm((Timer.BACKOFF,))]


# Ending


def _exited_as_asked(life: Life, event: Event, now: float) -> Outcome:
    """The rest of the group keeps what is left of kill_timeout: it got the signal too."""
    ending = life.ending or End(Cause.USER)
    end = event.end if isinstance(event, Exited) else End(Cause.UNKNOWN)
    end = replace(end, cause=ending.cause, message=ending.message, at=now)
    rest: list[Effect] = [Kill(), Sweep()] if life.phase is Phase.KILLING else [Sweep()]
    if life.after is After.BACKOFF:  # it was not asked by anybody, but given up
        life = _judged(life, end, now)
    else:
        life = replace(_steadied(life, now), started=None, end=end, status=Status.STOPPED)
    return replace(life, phase=Phase.SWEEPING, ending=None), rest


def _exited(life: Life, event: Event, now: float) -> Outcome:
    """It ended by itself: decide what follows, and clear away what it left (W17)."""
    end = event.end if isinstance(event, Exited) else End(Cause.UNKNOWN)
    life = _judged(life, replace(end, at=now), now)
    return replace(life, phase=Phase.SWEEPING), [*_QUIET, Kill(), Sweep()]


def _judged(life: Life, end: End, now: float) -> Life:
    """The life after a failure, or an end of its own: whether it is to be started again, and what the counters show."""
    if _lived(life, now) >= life.policy.min_uptime:
        life = replace(life, restarts=0)
    life = replace(_steadied(life, now), started=None, end=end)
    if _may_restart(life, end):
        return replace(life, after=After.BACKOFF, status=Status.ERRORED)
    return _given_up(life, end)


def _lived(life: Life, now: float) -> float:
    return now - life.started if life.started is not None else 0.0


def _steadied(life: Life, now: float) -> Life:
    """Whoever lived for long has recovered, however that life ends (W20). The time in which it hung was no life."""
    hung = life.missed * life.policy.liveness.interval if life.policy.liveness is not None else 0.0
    stable = _lived(life, now) - hung >= max(STABLE * life.policy.min_uptime, LEAST_STABLE)
    return replace(life, failures=0) if stable else life


def _gone(life: Life, event: Event, now: float) -> Outcome:
    if isinstance(event, Gone) and event.tail and life.end is not None:
        life = replace(life, end=replace(life.end, tail=event.tail))
    if life.policy.post_stop:
        cleaning: list[Effect] = [Disarm((Timer.KILL,)), Spawn(Work.POST_STOP)]
        return replace(life, phase=Phase.CLEANING, hook=None), cleaning
    return _follow(life)


def _follow(life: Life) -> Outcome:
    if life.after is After.START:
        return _begin(life)
    if life.after is After.BACKOFF:
        return _wait(life)
    return replace(life, phase=Phase.DOWN, after=After.REST), [Disarm((Timer.KILL,))]


def _wait(life: Life) -> Outcome:
    waiting = replace(life, phase=Phase.BACKOFF, status=Status.ERRORED, after=After.REST)
    return waiting, [Disarm((Timer.KILL,)), Arm(Timer.BACKOFF, backoff(life.failures))]


def _backed_off(life: Life, event: Event, now: float) -> Outcome:
    if not isinstance(event, Fired) or event.timer is not Timer.BACKOFF:
        return life, []
    end = life.end or End(Cause.UNKNOWN)
    if not _may_restart(life, end):  # the policy changed during the wait
        return _given_up(life, end), []
    return _begin(_counted(replace(life, failures=life.failures + 1, commanded=False)))


def _asks_for_restart(policy: Policy, end: End) -> bool:
    """Whether `end` is one after which the policy starts it again (spec: pm3.md, sections 3.4 and 9.12)."""
    if policy.restart == "never":
        return False
    if end.cause is Cause.PROBE:  # how it took its end says nothing of what was wrong
        return True
    if end.code is not None and end.code in policy.stop_exit_codes:
        return False
    return policy.restart == "always" or end.code != 0


def _may_restart(life: Life, end: End) -> bool:
    return _asks_for_restart(life.policy, end) and life.failures < life.policy.max_restarts


def _given_up(life: Life, end: End) -> Life:
    """At rest without having been asked. When the budget is what ended it, pm3's counter shows the whole budget."""
    if life.failures and _asks_for_restart(life.policy, end):
        life = replace(life, restarts=life.policy.max_restarts)
    status = Status.STOPPED if end.code == 0 and end.cause is not Cause.PROBE else Status.ERRORED
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
    return life, [EndProbe(), Disarm((Timer.GRACE, Timer.ATTEMPT, Timer.PATIENCE)), *_settling(life, now), *effects]


def _redefined_online(life: Life, event: Event, now: float) -> Outcome:
    before = life.policy.liveness
    life = replace(_redefined(life, event, now)[0], complaint="", missed=0, answered=0)
    settling = _settling(life, now)
    if before is None and life.policy.liveness is None:
        return life, settling
    return life, [EndProbe(), Disarm((Timer.ATTEMPT,)), *settling, *_next_liveness(life)]


Handler = Callable[[Life, Event, float], Outcome]

_HOOKS = (Phase.PREPARING, Phase.CLEANING)
_RUNS: Mapping[type[Event], Handler] = {
    Stop: _stop,
    Restart: _restart,
    Tripped: _tripped,
    Exited: _exited,
    Redefined: _redefined,
    Fired: _fired,
}
_CHECKED: Mapping[type[Event], Handler] = {
    **_RUNS,
    Passed: _passed,
    Failed: _failed,
    Waiting: _waiting,
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
_HOOK: Mapping[type[Event], Handler] = {
    Spawned: _hook_began,
    Exited: _hook_ended,
    Fired: _hook_fired,
    Redefined: _redefined,
}

TABLE: dict[Phase, Mapping[type[Event], Handler]] = {
    Phase.DOWN: {
        Start: _start,
        Restart: _restart_from_rest,
        Stop: _rest,
        Tripped: _tripped_at_rest,
        Redefined: _redefined,
    },
    Phase.PREPARING: {
        **_HOOK,
        SpawnFailed: _prepared_in_vain,
        Gone: _prepared,
        Stop: _unprepare,
        Start: _unprepare_to_start,
        Restart: _unprepare_to_restart,
    },
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
    Phase.ONLINE: {**_RUNS, Passed: _is_alive, Failed: _is_hung, Redefined: _redefined_online},
    Phase.UNHEALTHY: _CHECKED,
    Phase.STOPPING: {**_ENDS, Unasked: _unasked},
    Phase.KILLING: _ENDS,
    Phase.SWEEPING: {
        Gone: _gone,
        Stop: _then_rest,
        Start: _then_start,
        Restart: _then_restart,
        Tripped: _tripped_at_the_end,
        Fired: _kill,
        Redefined: _redefined,
    },
    Phase.CLEANING: {
        **_HOOK,
        SpawnFailed: _cleaned,
        Gone: _cleaned,
        Stop: _then_rest,
        Start: _then_start,
        Restart: _then_restart,
        Tripped: _tripped_at_the_end,
    },
    Phase.BACKOFF: {
        Start: _start,
        Restart: _restart_from_rest,
        Stop: _rest,
        Tripped: _tripped_at_rest,
        Fired: _backed_off,
        Redefined: _redefined,
    },
}
