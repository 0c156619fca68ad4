# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When what the store holds is made to survive a loss of power: one checkpoint at a time, in a thread, because it waits for the disk.

On a disk that others flood one takes a minute; the loop does not notice, and what is asked for meanwhile is one more checkpoint.
"""

from __future__ import annotations

from typing import Callable

from .loop import Loop
from .tasks import Aside


class Checkpoints:
    """`write` does it, in the thread; it raises `StoreError`, and `diagnose` is told that in words, by the loop."""

    def __init__(self, loop: Loop, write: Callable[[], None], diagnose: Callable[[str], None]) -> None:
        self._loop = loop
        self._write = write
        self._diagnose = diagnose
        self._busy = self._again = False

    def ask(self) -> None:
        """Has everything that is committed by now survive a loss of power, some time soon."""
        self._again = self._busy  # the one that is under way may not see what was committed since it began
        if not self._busy:
            self._busy = True
            Aside(self._loop, self._write).begin(self._done)

    def _done(self, failure: Exception | None) -> None:
        self._busy = False
        if failure is not None:
            self._diagnose(f"{failure}; until it can be, a loss of power would undo what was changed last")
        if self._again:
            self.ask()
