# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What there is to know of one instance's life: its phase and status, how it ended, the policy that it is led by.

Values only, frozen; what becomes of them is decided in machine.py. Times are seconds on the caller's monotonic clock.
"""

from __future__ import annotations

import enum
import functools
from dataclasses import dataclass
from typing import Any

from .definition import Definition
from .slots import slotted


class Phase(str, enum.Enum):
    DOWN = "down"
    PREPARING = "preparing"  # pre_start runs
    SPAWNING = "spawning"
    ABORTING = "aborting"  # stopped while being spawned
    STARTING = "starting"
    ONLINE = "online"
    UNHEALTHY = "unhealthy"
    STOPPING = "stopping"
    KILLING = "killing"
    SWEEPING = "sweeping"
    CLEANING = "cleaning"  # post_stop runs
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
    OOM = "oom"  # the kernel ended it, for want of memory
    SPAWN = "spawn"  # it could not be started
    USER = "user"  # it was stopped on purpose
    MEMORY = "memory"  # it used more than max_memory
    WATCH = "watch"  # a file that it watches changed
    CRON = "cron"  # it was time for cron_restart
    PROBE = "probe"  # its liveness_check failed
    UNKNOWN = "unknown"  # it ended unseen, while no agent ran


class After(enum.Enum):
    """What follows once nothing of the instance (or of its hook) is left."""

    REST = "rest"
    START = "start"
    BACKOFF = "backoff"
    GO_ON = "go on"  # after pre_start: to the program


class Timer(enum.Enum):
    GRACE = "grace"  # survived its first moment
    SETTLE = "settle"  # has lived min_uptime
    ATTEMPT = "attempt"  # time for the next attempt of a check
    PATIENCE = "patience"  # a check's timeout
    KILL = "kill"  # kill_timeout is over
    BACKOFF = "backoff"
    HOOK = "hook"  # hook_timeout is over


class Check(str, enum.Enum):
    READINESS = "readiness_check"
    HEALTH = "health_check"
    LIVENESS = "liveness_check"


class Work(enum.Enum):
    """What is spawned for an instance. One at a time."""

    PROGRAM = "program"
    PRE_START = "pre_start"
    POST_STOP = "post_stop"


@dataclass(frozen=True)
class Liveness:
    """How often a check is made of what is online, and how many failures in a row end it."""

    interval: float  # seconds
    failures: int
    successes: int  # in a row, after which earlier failures are forgotten


@slotted
@dataclass(frozen=True)
class Policy:
    """What of a definition the machine needs, in its own units (seconds)."""

    restart: str
    max_restarts: int
    min_uptime: float
    stop_exit_codes: tuple[int, ...]
    kill_signal: str
    kill_timeout: float
    stop_command: bool
    pre_start: bool
    post_stop: bool
    hook_timeout: float
    checks: tuple[Check, ...]  # to be passed at the start, in order
    readiness_timeout: float
    liveness: Liveness | None

    @staticmethod
    def of(definition: Definition) -> Policy:
        checks = [check for check in (Check.READINESS, Check.HEALTH) if getattr(definition, check.value) is not None]
        liveness = Liveness(
            float(definition.liveness_interval), definition.liveness_failures, definition.liveness_successes
        )
        return _one_of(
            definition.restart,
            definition.max_restarts,
            definition.min_uptime / 1000,
            definition.stop_exit_codes,
            definition.kill_signal,
            definition.kill_timeout / 1000,
            definition.stop_command is not None,
            definition.pre_start is not None,
            definition.post_stop is not None,
            float(definition.hook_timeout),
            tuple(checks),
            float(definition.readiness_timeout),
            liveness if definition.liveness_check is not None else None,
        )


@functools.lru_cache(maxsize=256)
def _one_of(*values: Any) -> Policy:
    """Equal policies are one object: there are few of them, and thousands of lives."""
    return Policy(*values)


@dataclass(frozen=True)
class End:
    """How an instance's last process ended. At most one of `code` and `signal` is known."""

    cause: Cause
    code: int | None = None
    signal: int | None = None
    message: str = ""
    at: float | None = None
    tail: tuple[str, ...] = ()  # the last lines that it wrote

    def __str__(self) -> str:
        if self.message:
            return self.message
        if self.cause is Cause.OOM:
            return "was ended by the kernel: out of memory"
        if self.code is not None:
            return f"exited with code {self.code}"
        return f"was ended by signal {self.signal}" if self.signal is not None else "ended unseen"


@slotted
@dataclass(frozen=True)
class Life:
    """Everything that the machine knows of one instance."""

    policy: Policy
    phase: Phase = Phase.DOWN
    status: Status = Status.STOPPED  # in phases that have no word of their own: what it was, or what it will rest as
    since: float | None = None  # when it came to have this status
    wanted: bool = False  # the last word of a person or an apply was a start, not a stop
    after: After = After.REST
    restarts: int = 0  # pm3's counter: since it last lived min_uptime, manual restarts included
    total_restarts: int = 0  # since it was created
    failures: int = 0  # in a row: the crash budget, and the exponent of the backoff
    started: float | None = None  # when its process was there; None while there is none (W7)
    settled: bool = False  # this process has lived min_uptime
    checks: tuple[Check, ...] = ()  # still to pass, in order
    complaint: str = ""  # why the last attempt of a check failed
    missed: int = 0  # failures of liveness_check in a row
    answered: int = 0  # ... and successes
    commanded: bool = False  # this start was asked for (and not the machine's own restart)
    ending: End | None = None  # while it is asked to end: why
    hook: End | None = None  # how the hook ended that is now being swept
    end: End | None = None
