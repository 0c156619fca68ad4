# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An agent before us: takes over the instances that it left, with their processes, pipes and timers, and ends what nobody knows.

Works once, before the agent answers anybody; after that the supervisor goes on. A pid is believed only with its start time, in the
boot in which it was written down (W30).
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Mapping
from typing import Callable

from ..model import machine
from ..model.life import Cause, Check, End, Phase
from . import cells, spawn
from .instance import Instance, is_cut_off
from .points import reached
from .sockets import is_listener
from .spawn import Process
from .store import Record
from .supervisor import Supervisor

_GONE_WITH_PROCESS = (Phase.DOWN, Phase.BACKOFF, Phase.SPAWNING, Phase.ABORTING)
_HOOKS = (Phase.PREPARING, Phase.CLEANING)


class Adoption:
    def __init__(self, supervisor: Supervisor, boot: str) -> None:
        self._supervisor = supervisor
        self._boot = boot

    def restore(self, records: Iterable[Record], kept: Mapping[str, list[int]]) -> list[Instance]:
        """Takes over what an earlier agent left; `kept` are the descriptors that survived it.

        Gives the instances that it was about to start again when it died, in the middle of a restart or a roll.
        """
        supervisor = self._supervisor
        left = {name: fds for name, fds in kept.items() if not is_listener(name)}
        # A copy beside another is in no record, and of what is half begun or half cleared away nobody keeps descriptors.
        unknown = {*supervisor.cells.spawn_ids(), *supervisor.pumps.spawn_ids()}
        cut_off = []
        for record in records:
            if record.wanted and is_cut_off(record.life):
                cut_off.append(record.name)
            supervisor.ledger.reserve(record.spawn_id)
            unknown.discard(record.spawn_id)
            if record.boot == self._boot:
                self._adopt(record, left.pop(record.spawn_id, []))
            elif record.project is not None:
                instance = _from_record(record)
                instance.spawn_id = ""
                instance.redefine(record.definition)
                supervisor.add(instance)
            else:
                supervisor.ledger.forget(record.name)  # started by hand: a reboot forgets it (spec: pm3.md, section 10)
        supervisor.sockets.restore(supervisor.instances.values(), kept)
        for spawn_id in {*left, *unknown}:
            supervisor.ledger.reserve(spawn_id)
            copied = supervisor.instances.get(supervisor.pumps.copied(spawn_id) or "")
            self._end_strangers(spawn_id, left.get(spawn_id, []), copied, lambda: None)
        reached("adoption.adopted")
        supervisor.ledger.flush()
        return [supervisor.instances[name] for name in cut_off if name in supervisor.instances]

    def _adopt(self, record: Record, fds: list[int]) -> None:
        instance = self._supervisor.add(_from_record(record))
        instance.seen = self._supervisor.fingerprints.shared(record.seen)
        phase = record.life.phase
        if phase in _GONE_WITH_PROCESS or (phase in _HOOKS and record.pid is None):
            if record.spawn_id and (fds or phase in (Phase.SPAWNING, Phase.ABORTING, *_HOOKS)):
                # It died between the intent and the record of a spawn: whatever came of it is ended, and the start begins anew.
                self._end_strangers(record.spawn_id, fds, instance, lambda: self._revive(instance, False))
            else:
                self._revive(instance, False)
            return
        pidfds = self._take_over(instance, record, fds)
        alive = bool(pidfds) and record.pid is not None and spawn.start_time(record.pid) == record.start_time
        if machine.is_swept(record.life):
            if instance.running is not None:
                self._supervisor.unattend(instance.running)  # its end is known already
            self._revive(instance)
        elif alive:
            if instance.running is not None:
                self._supervisor.cells.begun(record.spawn_id, instance.running)
            self._revive(instance)
        else:
            if phase in (Phase.STOPPING, Phase.KILLING):
                self._revive(instance)  # kill_timeout goes on for what it leaves behind
            self._supervisor.ended(instance, self._unseen_end(instance, record))

    def _take_over(self, instance: Instance, record: Record, fds: list[int]) -> list[int]:
        """Gives the instance its process and pipes again. Gives what pidfds there are of its process."""
        pipes = [fd for fd in fds if _is_pipe(fd)]
        sockets = [fd for fd in fds if stat.S_ISSOCK(os.fstat(fd).st_mode)]
        pidfds = [fd for fd in fds if fd not in pipes and fd not in sockets]
        if not pidfds and record.pid is not None:
            pidfds = _opened(record.pid, record.start_time)
        instance.streams = self._supervisor.pumps.reopen(record.spawn_id, pipes)
        if record.pid is not None:
            instance.running = Process(record.pid, record.start_time or 0, pidfds[0] if pidfds else -1)
        if sockets:
            from .notify import NotifySocket

            instance.notify = NotifySocket(sockets[0])
            instance.notify.ready = Check.READINESS not in record.life.checks
        self._supervisor.attend(instance)
        return pidfds

    def _unseen_end(self, instance: Instance, record: Record) -> End:
        """How an instance ended while no agent ran."""
        if instance.running is not None and instance.running.pidfd >= 0:
            self._supervisor.unattend(instance.running)
            return self._supervisor.end_of(instance.running)
        known = self._supervisor.ends().get((record.pid or 0, record.start_time or 0))
        return known or End(Cause.UNKNOWN)

    def _end_strangers(
        self, spawn_id: str, fds: Iterable[int], instance: Instance | None, then: Callable[[], None]
    ) -> None:
        """Ends whatever came of a spawn that was never recorded, gives back what it took (`fds`), and then calls `then`.

        What it wrote is in the logs of `instance` then.
        """
        supervisor = self._supervisor
        pipes = [fd for fd in fds if _is_pipe(fd)]

        def ended() -> None:
            for fd in fds:
                if fd not in pipes:
                    os.close(fd)
            streams = supervisor.pumps.reopen(spawn_id, pipes)
            if streams is None:
                drained()
                return
            if instance is not None:
                supervisor.attach(instance, streams)
            supervisor.pumps.drain(streams, drained)

        def drained() -> None:
            reached("adoption.strangers_ended")
            supervisor.manager.forget(spawn_id)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(supervisor.report(spawn_id))
            then()

        if supervisor.cells.root is not None:
            supervisor.cells.end(spawn_id, ended)
            return

        def find() -> list[int]:
            return supervisor.cells.descendants.of(spawn_id, None)

        cells.kill_all(find)
        if supervisor.cells.when_none(find, ended):
            ended()

    def _revive(self, instance: Instance, running: bool = True) -> None:
        if self._supervisor.instances.get(instance.name) is not instance:
            return  # removed meanwhile
        instance.life, effects = machine.revived(instance.life, self._supervisor.loop.time(), running)
        self._supervisor.carry_out(instance, effects)


def _from_record(record: Record) -> Instance:
    instance = Instance(
        record.name, record.process, record.number, record.count, record.project, record.definition, record.path
    )
    instance.wanted, instance.life, instance.spawn_id = record.wanted, record.life, record.spawn_id
    instance.slot, instance.seen = record.slot, record.seen
    return instance


def _opened(pid: int, start_time: int | None) -> list[int]:
    """A pidfd of the process, or none if another has its number by now."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return []
    if spawn.start_time(pid) == start_time:
        return [pidfd]
    os.close(pidfd)
    return []


def _is_pipe(fd: int) -> bool:
    """A FIFO, or the terminal that is one to us. What is neither is a socket or a pidfd."""
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)
