# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the store is to know of instances: gathered as it changes, and written once in a turn of the loop, in one transaction.

Owns the numbers of spawns, of which none is used twice, and the calendar's time of what happened.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Callable

from .checkpoints import Checkpoints
from .instance import Instance
from .loop import Loop, Timer
from .schemas import StoreError
from .store import Record, Store

_PAUSE = 1.0  # seconds after which a store that could not be written is tried again
_CLOCK_STEP = 1.0  # seconds by which the clock has to be set before that is more than its ordinary corrections
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


class Ledger:
    """`instances` are those that are known, by name: what is told of others is nobody's. `boot` identifies the present one."""

    def __init__(
        self,
        loop: Loop,
        store: Store,
        instances: Mapping[str, Instance],
        boot: str,
        diagnose: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._store = store
        self._instances = instances
        self._boot = boot
        self._diagnose = diagnose
        self._dirty: set[Instance] = set()
        self._removed: set[str] = set()
        self._next_spawn = int(store.get("next_spawn") or "1")
        self._clock = float(store.get("clock") or "0")  # what the calendar's clock is ahead of ours, in seconds
        self.seen = float(store.get("seen") or "inf")  # when an agent before us last wrote, in seconds since the epoch
        self._pause: Timer | None = None  # while the store cannot be written
        self._fails = False  # told, and not written since
        self._checkpoints = Checkpoints(loop, store.checkpoint, diagnose)

    def mark(self, instance: Instance) -> None:
        """It has changed."""
        if self._instances.get(instance.name) is not instance:
            return  # it was removed: what is still told of it is nobody's
        if not self._dirty and not self._removed:
            self._loop.soon(self.flush)
        self._dirty.add(instance)
        self._removed.discard(instance.name)

    def drop(self, instance: Instance) -> None:
        """It is none any more: the store keeps nothing of it."""
        self._dirty.discard(instance)
        self.forget(instance.name)

    def forget(self, name: str) -> None:
        """The store keeps nothing of that name."""
        self._removed.add(name)
        self._loop.soon(self.flush)

    def flush(self) -> None:
        """Writes what has changed since the last time, in one transaction.

        What cannot be written (a full disk) is tried again, and supervising goes on. Should the agent die before that succeeds, the
        next one finds processes other than the stored ones, and ends them by the descriptors and cells that were kept of them.
        """
        if self._pause is not None or not (self._dirty or self._removed):
            return
        records = [self._record(instance) for instance in self._dirty]
        try:
            self._store.save(records, self._removed, self._facts())
        except StoreError as error:
            if not self._fails:
                self._diagnose(f"{error}; it is tried again every {_PAUSE:g} s")
            self._fails = True
            self._pause = self._loop.after(_PAUSE, self._flush_again)
            return
        self._fails = False
        self._dirty, self._removed = set(), set()
        if self._store.due:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Has everything that is written survive a loss of power, some time soon."""
        self.flush()
        self._checkpoints.ask()

    def next_spawn_id(self) -> str:
        """For a spawn to come. It counts as taken once this is written."""
        self._next_spawn += 1
        return _base36(self._next_spawn - 1)

    def reserve(self, spawn_id: str) -> None:
        """No spawn to come gets this id, also when the number of the last one could not be stored."""
        if spawn_id.isalnum():
            self._next_spawn = max(self._next_spawn, int(spawn_id, 36) + 1)

    def moment(self, then: float | None) -> float | None:
        """A time of the loop's clock in seconds since the epoch: the same one whenever it is asked for, unless the clock was set."""
        ahead = time.time() - self._loop.time()
        if abs(ahead - self._clock) > _CLOCK_STEP:
            self._clock = ahead
        return round(then + self._clock, 3) if then is not None else None

    def _flush_again(self) -> None:
        self._pause = None
        self.flush()

    def _facts(self) -> dict[str, str]:
        return {"next_spawn": str(self._next_spawn), "clock": repr(self._clock), "seen": repr(time.time())}

    def _record(self, one: Instance) -> Record:
        running = one.running
        return Record(
            one.name,
            one.process,
            one.number,
            one.count,
            one.project,
            one.definition,
            one.path,
            one.wanted,
            one.life,
            one.spawn_id,
            running.pid if running is not None else None,
            running.start_time if running is not None else None,
            self._boot,
            one.slot,
            one.seen,
        )


def _base36(number: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = _DIGITS[digit] + digits
    return digits or "0"
