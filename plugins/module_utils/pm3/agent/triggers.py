# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What, beside an instance's own end, asks for a new process of it: the time (cron_restart), a file (watch), its memory (max_memory).

Owns the schedule, the file watches and the memory limits of all instances, and keeps them in step with what the instances are:
`update` is called whenever one of them has changed, and costs nothing for one that has none of the three. Decides nothing: what a
trigger means is the machine's affair (`machine.Tripped`).

What watches and tells the time is loaded when the first instance needs it: most agents never do.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Callable

from ..model import kinds
from ..model.life import Cause
from ..model.machine import Tripped
from ..model.problems import Unfit
from .descendants import Survey
from .instance import Instance
from .loop import Loop
from .usage import MemoryLimits

if TYPE_CHECKING:
    from .wallclock import WallClock
    from .watches import Watches

_ROTATED = re.compile(r"\.[0-9]+(\.gz(\.tmp)?)?$")

Deliver = Callable[[Instance, Tripped], None]


class _Set:
    """What is set for one instance; None where nothing is."""

    __slots__ = ("alarm", "cron", "memory", "watch")

    def __init__(self) -> None:
        self.cron: tuple[str, str | None] | None = None
        self.alarm: Any = None
        self.watch: tuple[str, tuple[str, ...]] | None = None
        self.memory: tuple[str, int] | None = None  # spawn id and bytes


class Triggers:
    def __init__(
        self,
        loop: Loop,
        deliver: Deliver,
        survey: Callable[[], Survey],
        own: tuple[str, ...],
        diagnose: Callable[[str], None],
    ) -> None:
        """`own` are the folders in which the agent itself writes. They may be in a watched tree: nothing in them is a change."""
        self._loop = loop
        self._deliver = deliver
        self._diagnose = diagnose
        self._set: dict[Instance, _Set] = {}
        self._wall_clock: WallClock | None = None
        self.seen: float | None = None  # while instances are taken over: what was due since then, nobody has seen to
        self._own = {*own, *map(os.path.realpath, own)}
        self._below_own = tuple(f"{folder}/" for folder in self._own)
        self._own_names = tuple(f"/{os.path.basename(folder)}" for folder in self._own)
        self._named: set[str] = set()
        self._file_watches: Watches | None = None
        self._limits = MemoryLimits(loop, survey)

    def update(self, instance: Instance, there: bool = True) -> None:
        """Brings what is set for the instance in line with it. `there` is False for one that is forgotten."""
        definition = instance.definition
        wanted = there and instance.life.wanted and not instance.beside
        timed = (definition.cron_restart, definition.env.get("TZ")) if wanted and definition.cron_restart else None
        root = _root(instance) if wanted and definition.watch is not False else None
        watched = (root, definition.watch_ignore) if root is not None else None
        limited = there and instance.pid is not None and definition.max_memory is not None
        limit = (instance.spawn_id, definition.max_memory or 0) if limited else None
        found = self._set.get(instance)
        if found is None:
            if timed is None and watched is None and limit is None:
                return
            found = self._set[instance] = _Set()
        self._schedule(instance, found, timed)
        self._watch(instance, found, watched)
        self._limit(instance, found, limit)
        if timed is None and watched is None and limit is None:
            del self._set[instance]

    def spawned(self, instance: Instance) -> None:
        """A new process of it begins: what was written before is what it will read."""
        found = self._set.get(instance)
        if found is not None and found.watch is not None:
            wanted, found.watch = found.watch, None
            self._watch(instance, found, wanted)

    def writes(self, paths: Iterable[str]) -> None:
        """These files are logs, whether they are in the logs folder or not: what the agent writes is no change."""
        self._named.update(path for path in paths if not path.startswith(self._below_own))

    def _is_own(self, path: str) -> bool:
        """The agent writes there itself: were that a change, each restart would cause the next."""
        if path in self._own or path.startswith(self._below_own):
            return True
        if path.endswith(self._own_names) and os.path.realpath(path) in self._own:
            return True  # the root leads to it through a symbolic link
        return path in self._named or _ROTATED.sub("", path) in self._named

    def trouble(self, instance: Instance) -> str | None:
        """Why its files cannot all be watched, or None."""
        found = self._set.get(instance)
        if found is None or found.watch is None:
            return None
        root = found.watch[0]
        if root in self._own or root.startswith(self._below_own):
            return f"{root} is not watched: the agent itself writes there; watch a folder outside its data dir"
        return self._watches.trouble(instance.name)

    # Time

    @property
    def _clock(self) -> WallClock:
        if self._wall_clock is None:
            from .wallclock import WallClock

            self._wall_clock = WallClock(self._loop)
            self._wall_clock.stepped.append(self._schedule_anew)
        return self._wall_clock

    def _schedule(self, instance: Instance, found: _Set, wanted: tuple[str, str | None] | None) -> None:
        if wanted == found.cron:
            return
        if found.alarm is not None:
            found.alarm.cancel()
            found.alarm = None
        found.cron = wanted
        if wanted is not None:
            self._arm(instance, found)

    def _arm(self, instance: Instance, found: _Set) -> None:
        if found.cron is None:
            return
        from ..model import cron

        text, zone = found.cron
        now = time.time()
        try:
            if self.seen is not None and cron.following(text, min(self.seen, now), zone) <= now:
                self._loop.soon(lambda: self._tell_due(instance, found))
            when = cron.following(text, now, zone)
        except Unfit as error:
            self._diagnose(f"{instance.name}: cron_restart: {error}")
            return
        found.alarm = self._clock.at(when, lambda: self._due(instance, found))

    def _due(self, instance: Instance, found: _Set) -> None:
        if self._set.get(instance) is not found or found.cron is None:
            return
        self._arm(instance, found)
        self._tell_due(instance, found)

    def _tell_due(self, instance: Instance, found: _Set) -> None:
        if self._set.get(instance) is found and found.cron is not None:
            self._deliver(instance, Tripped(Cause.CRON, f"it was time for cron_restart ({found.cron[0]})"))

    def _schedule_anew(self) -> None:
        for instance, found in list(self._set.items()):
            if found.alarm is not None:
                found.alarm.cancel()
                self._arm(instance, found)

    # Files

    @property
    def _watches(self) -> Watches:
        if self._file_watches is None:
            from .watches import Watches

            self._file_watches = Watches(self._loop, self._diagnose, self._is_own)
        return self._file_watches

    def _watch(self, instance: Instance, found: _Set, wanted: tuple[str, tuple[str, ...]] | None) -> None:
        if wanted == found.watch:
            return
        found.watch = wanted
        if wanted is None:
            self._watches.unwatch(instance.name)
        else:
            self._watches.watch(instance.name, *wanted, lambda path: self._changed(instance, path))

    def _changed(self, instance: Instance, path: str) -> None:
        self._deliver(instance, Tripped(Cause.WATCH, f"{path} changed"))

    # Memory

    def _limit(self, instance: Instance, found: _Set, wanted: tuple[str, int] | None) -> None:
        if wanted == found.memory:
            return
        if found.memory is not None:
            self._limits.unlimit(found.memory[0])
        found.memory = wanted
        if wanted is not None and instance.running is not None:
            self._limits.limit(wanted[0], instance.running, wanted[1], lambda used: self._exceeded(instance, used))

    def _exceeded(self, instance: Instance, used: int) -> None:
        limit = kinds.SIZE.written(instance.definition.max_memory)
        self._deliver(instance, Tripped(Cause.MEMORY, f"used {used / 2**20:.1f} MiB, more than max_memory ({limit})"))


def _root(instance: Instance) -> str | None:
    """The folder or file that an instance watches."""
    watch = instance.definition.watch
    if watch is False:
        return None
    try:
        return instance.filled(watch if isinstance(watch, str) else instance.definition.cwd or "/")
    except Unfit:
        return None  # the start has failed for the same reason, and said so
