# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One instance replaced without a gap: another copy comes up beside it, takes its place, and only then does it stop.

The copy is checked by itself: it has the other `slot`, its own descriptors, and a check on a port has to be answered by a process of
its own (W12). One that does not come up is ended, and the old one never noticed. A copy is not in the store before it has taken the
place: should the agent die, the next one ends it, and the old one goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Callable

from ..model import machine
from ..model.life import Phase
from . import walks
from .instance import Instance, has_completed
from .points import reached
from .supervisor import Supervisor
from .tasks import Steps


@dataclass
class Swap:
    """`new` was made for this and is in no table yet. `objection` says why the swap shall not be any more, or nothing."""

    supervisor: Supervisor
    old: Instance
    new: Instance
    judge: walks.Judgement
    objection: Callable[[], str]
    seconds: float | None = None  # in which the copy has to come up
    why: str = ""  # it failed
    late: bool = False
    died: bool = False
    last_words: Sequence[str] = field(default_factory=list)  # of the copy that failed

    def steps(self) -> Steps:
        """Gives whether `new` has taken the place of `old`."""
        old, new = self.old, self.new
        new.wanted, new.beside, new.slot = True, True, 1 - old.slot
        self.supervisor.beside.add(new)
        self.supervisor.deliver(new, machine.Start())
        wait = walks.Until(self.supervisor, [new], self.judge, self.seconds)
        in_time = yield wait
        self.late = not in_time
        if self.late:
            self.why = walks.too_late(self.seconds or 0)
        elif new.life.phase is not Phase.ONLINE and not has_completed(new.life):
            self.why = wait.failed.get(new) or walks.why_failed(new)
        if self.why:
            self.died = new.life.end is not None
            self.last_words = walks.last_words(self.supervisor, new)
        self.why = self.objection() or self.why
        if self.why:
            yield from self._end(new)
            return False
        reached("swap.up")
        self.supervisor.replace(old, new)
        reached("swap.replaced")
        # It has not stopped, it goes on as another process: what post_stop would clear away is in use (W12).
        old.life = replace(old.life, policy=replace(old.life.policy, post_stop=False))
        yield from self._end(old)
        reached("swap.ended")
        return True

    def _end(self, leaving: Instance) -> Steps:
        yield from walks.stop_in_order(self.supervisor, [leaving])
        self.supervisor.beside.discard(leaving)
        self.supervisor.sockets.release(leaving)
