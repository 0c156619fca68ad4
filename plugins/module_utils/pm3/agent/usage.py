# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What instances use of CPU and memory: all of their processes together, not only the first one (W46). Reads /proc and no more.

Memory is told as the sum of what is resident. What processes share is counted for each of them there, so this bounds the truth from
above and costs one small file per process. The truth shares it out among them (PSS), and the kernel walks through all their pages to
tell it; so it is asked for only where a limit seems to be exceeded. (memory.current of a cell would be one small file for all of them,
and is no answer: it counts what was read from files, which the kernel drops as soon as anybody needs the room.)

CPU is told in percent of one CPU, children that have ended and were waited for included: since the last look if that is 1 to 60
seconds ago, else over the life of the instance. What is asked for again within a second gets the same answer again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Callable, NamedTuple

from .descendants import Survey
from .loop import Loop, Timer
from .spawn import Process
from .tasks import Pace, Steps, Task

PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")  # per second
INTERVAL = 5.0  # seconds between two looks at limited memory (spec: pm3.md, section 3.7)
_FRESH, _STALE = 1.0, 60.0  # seconds between looks, for CPU


class Used(NamedTuple):
    """What an instance uses now."""

    cpu_percent: float
    memory_bytes: int


class Meter:
    """Tells what instances use. Remembers its last look at each of them, for as long as it is asked for them."""

    def __init__(self, now: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME)) -> None:
        self._now = now
        self._last: dict[str, _Look] = {}

    def read(self, spawn_id: str, leader: Process, pids: Iterable[int]) -> Used | None:
        """What the processes of a spawn use, `leader` being its main one; None where none of them is left."""
        ticks = pages = 0
        begun: int | None = None
        for pid in pids:
            found = _stat(pid)
            if found is not None:
                ticks += found.ticks
                pages += found.pages
                begun = found.start_time if begun is None else min(begun, found.start_time)
        if begun is None:
            self._last.pop(spawn_id, None)
            return None
        begun = leader.start_time or begun
        return Used(self._percent(spawn_id, ticks, begun / TICKS), pages * PAGE)

    def keep(self, spawn_ids: Iterable[str]) -> None:
        """Forgets all but these."""
        kept = set(spawn_ids)
        for spawn_id in self._last.keys() - kept:
            del self._last[spawn_id]

    def _percent(self, spawn_id: str, ticks: int, begun: float) -> float:
        now = self._now()
        last = self._last.get(spawn_id)
        if last is not None and now - last.at < _FRESH:
            return last.percent
        since, before = (last.at, last.ticks) if last is not None and now - last.at <= _STALE else (begun, 0)
        # Never negative: what a process had used is gone with it when nobody of the instance has waited for it.
        used = max(0, ticks - before) / TICKS
        percent = round(100 * used / max(now - since, 1 / TICKS), 1)
        self._last[spawn_id] = _Look(now, ticks, percent)
        return percent


class _Look(NamedTuple):
    at: float
    ticks: int
    percent: float


class MemoryLimits:
    """Looks after memory that is limited: every `interval` seconds at all of it, and with one timer, or none while nothing is limited.

    `survey` looks once at the processes of the host and tells those of every spawn. A round is cut into slices, so that it holds the
    loop for some milliseconds at most, however many are limited; only the pages of a single huge process can take longer.
    """

    def __init__(self, loop: Loop, survey: Callable[[], Survey], interval: float = INTERVAL) -> None:
        self._loop = loop
        self._survey = survey
        self._interval = interval
        self._limited: dict[str, _Limit] = {}
        self._timer: Timer | None = None
        self._round: Task | None = None

    def limit(self, spawn_id: str, leader: Process, limit: int, exceeded: Callable[[int], None]) -> None:
        """Calls `exceeded(bytes)` once when the processes of a spawn use more than `limit` bytes together. Replaces an earlier limit."""
        self._limited[spawn_id] = _Limit(leader, limit, exceeded)
        self._arm()

    def unlimit(self, spawn_id: str) -> None:
        """Ends the limit of a spawn, if it has one."""
        self._limited.pop(spawn_id, None)
        if not self._limited:
            self.close()

    def close(self) -> None:
        """Looks no more."""
        self._limited.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._round is not None:
            self._round.cancel()
            self._round = None

    def _arm(self) -> None:
        if self._timer is None and self._round is None and self._limited:
            self._timer = self._loop.after(self._interval, self._begin)

    def _begin(self) -> None:
        self._timer = None
        task = self._round = Task(self._look())
        task.start().begin(self._over)

    def _over(self, task: Any) -> None:
        self._round = None
        self._arm()
        task.value()

    def _look(self) -> Steps:
        survey = self._survey()
        pace = Pace(self._loop)
        for spawn_id, one in list(self._limited.items()):
            if pace.over():
                yield pace
            used = yield from exceeds(survey(spawn_id, one.leader), one.limit, pace)
            if used is not None:
                # By the loop, which deals with what it raises.
                self._loop.soon(partial(self._exceeded, spawn_id, one, used))

    def _exceeded(self, spawn_id: str, one: _Limit, used: int) -> None:
        if self._limited.get(spawn_id) is one:
            self.unlimit(spawn_id)
            one.exceeded(used)


class _Limit(NamedTuple):
    leader: Process
    limit: int
    exceeded: Callable[[int], None]


# What the kernel says


def memory(pids: Iterable[int]) -> int:
    """The bytes that processes have resident, added up: at least what they use together."""
    return sum(_resident(pid) for pid in pids)


def exceeds(pids: Sequence[int], limit: int, pace: Pace) -> Steps:
    """What processes use together, if that is more than `limit`, else None. Cheap as long as `memory` is within it."""
    if memory(pids) <= limit:
        return None
    used = 0
    for pid in pids:
        if pace.over():
            yield pace
        used += proportional(pid)
    return used if used > limit else None


def proportional(pid: int) -> int:
    """The bytes that a process uses, its part of what it shares with others; what is resident, where we may not know that."""
    try:
        for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # Linux before 4.14, another user's process, or one that has just ended
    return _resident(pid)


def _resident(pid: int) -> int:
    try:
        return int(_read(f"/proc/{pid}/statm").split()[1]) * PAGE
    except OSError:
        return 0


class _Stat(NamedTuple):
    ticks: int
    start_time: int
    pages: int


def _stat(pid: int) -> _Stat | None:
    """From one file what is shown of a process (proc(5), fields 14 to 17, 22 and 24 of stat)."""
    try:
        fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    except OSError:
        return None
    return _Stat(sum(map(int, fields[11:15])), int(fields[19]), int(fields[21]))


def _read(path: str) -> bytes:
    """A small file of /proc: without the layers of `open`, which cost more than the kernel's work."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)
