# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One instance as the agent holds it: what it is to be, its life, and the kernel's handles on it. And what its life amounts to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..model import placeholders
from ..model.definition import Definition
from ..model.life import After, Cause, End, Life, Phase, Policy
from ..model.life import Timer as Kind
from ..model.placeholders import Scope
from .loop import Timer
from .output import Streams
from .spawn import Process

if TYPE_CHECKING:
    from .notify import NotifySocket


class Instance:
    """One instance: what it is to be, its life, and the kernel's handles on it."""

    __slots__ = (
        "beside",
        "count",
        "definition",
        "errands",
        "life",
        "log_starts",
        "name",
        "notify",
        "number",
        "path",
        "probing",
        "process",
        "project",
        "running",
        "seen",
        "slot",
        "spawn_id",
        "stopper",
        "stops",
        "streams",
        "timers",
        "wanted",
    )

    def __init__(
        self,
        name: str,
        process: str,
        number: int,
        count: int,
        project: str | None,
        definition: Definition,
        path: str | None,
    ) -> None:
        self.name = name
        self.process = process
        self.number = number
        self.count = count
        self.project = project  # None: ad hoc, started by hand
        self.definition = definition  # what it runs as
        self.path = path
        self.log_starts = (0, 0)  # where in its logs the output of the present spawn begins, as far as known
        self.wanted = False  # it is meant to run, also after a reboot
        self.stops = (
            0  # times that somebody asked for it to stop: by this a change under way sees that one came after it
        )
        self.stopper = ""  # who that was the last time: "pm3 stop by root"
        self.life = Life(Policy.of(definition))
        self.spawn_id = ""
        self.running: Process | None = None
        self.streams: Streams | None = None
        self.notify: NotifySocket | None = None  # by which its program says that it is ready
        self.timers: dict[Kind, Timer] = {}
        self.probing: Any = None
        self.errands: list[Any] = []  # commands that run for it beside its process
        self.beside = False  # a second copy, for a moment: it is not in the table of instances
        self.slot = 0  # which of the two copies it is: one that takes over has the other number
        self.seen: Mapping[str, Any] | None = None  # what the files of `restart_when_changed` were when it was started

    @property
    def pid(self) -> int | None:
        """The pid of its program; a hook is none of it."""
        if self.running is None or self.life.phase in (Phase.PREPARING, Phase.CLEANING):
            return None
        return self.running.pid

    @property
    def scope(self) -> Scope:
        return Scope(self.number, self.count, self.process, self.name, self.project or "", self.slot)

    def filled(self, text: str) -> str:
        """A text of its definition as it is for this instance. Raises `Unfit`."""
        return placeholders.expand(text, self.scope)

    def redefine(self, definition: Definition) -> None:
        """Another definition for an instance that rests: it begins a new life."""
        if definition != self.definition:  # equal ones stay one object, of which there may be thousands
            self.definition = definition
        self.life = Life(Policy.of(definition), total_restarts=self.life.total_restarts)


def is_up(instance: Instance) -> bool:
    """Runs as it should, or has ended by itself as it may: a one-shot that succeeded needs no start (W23)."""
    life = instance.life
    if life.phase is Phase.DOWN:
        return instance.wanted and has_completed(life)
    return life.phase in (Phase.PREPARING, Phase.SPAWNING, Phase.STARTING, Phase.ONLINE)


def has_completed(life: Life) -> bool:
    """It did its work and ended well, and is not to be started again."""
    return life.phase is Phase.DOWN and life.end is not None and life.end.code == 0 and life.end.cause is Cause.EXIT


def is_cut_off(life: Life) -> bool:
    """It was stopped, or is being stopped, and nothing but its being wanted says what was to follow."""
    if life.after is not After.REST:
        return False
    if life.phase in (Phase.DOWN, Phase.SWEEPING, Phase.CLEANING):
        return life.end is None or life.end.cause is Cause.USER
    return life.phase in (Phase.STOPPING, Phase.KILLING, Phase.ABORTING, Phase.PREPARING)


def has_tale(life: Life) -> bool:
    """What ends now ended badly, so that its last lines are worth keeping."""
    ended: End | None = (
        life.hook if life.phase is Phase.PREPARING else life.end if life.phase is Phase.SWEEPING else None
    )
    return ended is not None and ended.code != 0 and ended.cause not in (Cause.USER, Cause.WATCH, Cause.CRON)
