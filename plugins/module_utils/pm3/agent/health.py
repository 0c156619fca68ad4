# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Attempts of an instance's checks: a URL that is asked, a command that is run, or the program's own word that is waited for."""

from __future__ import annotations

from functools import partial
from typing import Any, Callable

from ..model import checks, machine
from ..model.life import Check
from ..model.machine import Event
from . import launch
from .instance import Instance
from .loop import Loop
from .spawn import Launch

_TIMEOUT = 2.0  # seconds for one attempt (spec: pm3.md, section 3.6)


class Health:
    """`deliver` takes what an attempt has found, `send` runs a command beside the program, `members` are an instance's processes."""

    def __init__(
        self,
        loop: Loop,
        deliver: Callable[[Instance, Event], None],
        send: Callable[[Instance, Launch, float, Callable[[str | None], None]], Any],
        members: Callable[[Instance], list[int]],
    ) -> None:
        self._loop = loop
        self._deliver = deliver
        self._send = send
        self._members = members

    def probe(self, instance: Instance, effect: machine.Probe) -> None:
        check = effect.check
        liveness = check is Check.LIVENESS
        seconds = float(instance.definition.liveness_timeout) if liveness else _TIMEOUT

        def answered(failure: str | None) -> None:
            instance.probing = None
            failure = failure or self._foreign(instance, check)
            self._deliver(instance, machine.Passed(check) if failure is None else machine.Failed(check, failure))

        self.end(instance)
        if check is Check.READINESS and checks.is_notify(instance.definition.readiness_check):
            self._await_word(instance, answered)
            return
        try:
            command = launch.check(instance, check)
            if command is not None:
                instance.probing = self._send(instance, command, seconds, answered)
            else:
                from .probes import probe  # not before there is something to check

                url = instance.filled(str(getattr(instance.definition, check.value) or ""))
                instance.probing = probe(self._loop, url, seconds, answered)
        except launch.OBSTACLES as error:
            reason = launch.reason(error)
            instance.probing = self._loop.after(0, lambda: answered(reason))

    def end(self, instance: Instance, _effect: machine.EndProbe | None = None) -> None:
        if instance.probing is not None:
            instance.probing.cancel()
            instance.probing = None

    def _await_word(self, instance: Instance, answered: Callable[[str | None], None]) -> None:
        """It says itself that it is ready: there is nobody to ask, and no attempt that fails."""
        from .notify import DEAF

        def complain(why: str) -> None:
            self._deliver(instance, machine.Waiting(Check.READINESS, why))

        notify = instance.notify
        if notify is not None and notify.ready:
            instance.probing = self._loop.after(0, lambda: answered(None))
            return
        if notify is not None:
            instance.probing = notify.wait(lambda: answered(None), complain)
        self._loop.soon(partial(complain, DEAF if notify is None else notify.complaint))

    def _foreign(self, instance: Instance, check: Check) -> str | None:
        """Of a copy beside another: why what has answered the check may not have been the copy (W12)."""
        if not instance.beside:
            return None
        from .listeners import listens

        target = checks.parse(instance.filled(str(getattr(instance.definition, check.value) or "")))
        if target.scheme in ("exec", "notify") or listens(self._members(instance), target.port):
            return None
        return f"port {target.port} is answered by another process, the new one does not listen there"
