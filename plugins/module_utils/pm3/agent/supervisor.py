# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The shell around the state machine: the kernel's news become events, and effects become system calls.

Owns the instances. Decides nothing about their lives: `deliver` asks `model.machine.step` and does what it says. What must survive
the agent is written to the store before it is done (a spawn) or in the same turn of the loop (everything else).
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Callable

from ..model import machine, placeholders, words
from ..model.machine import Cause, End, Event, Phase
from ..model.plan import Actual
from ..model.problems import DefinitionError, Unfit
from . import accounts, environment, spawn
from . import cells as cells_room
from .cells import Cells
from .descriptors import ServiceManager
from .instance import Instance, is_cut_off, is_up
from .loop import READ, Loop, Timer
from .output import Pumps
from .probes import probe
from .spawn import Process
from .store import Record, Store, StoreError

_SPAWN_TURN = 0.02  # seconds of spawning after which other news gets its turn
_PROBE_TIMEOUT = 2.0  # seconds for one attempt of a check (spec: pm3.md, section 3.6)
_STORE_PAUSE = 1.0  # seconds after which a store that could not be written is tried again
_EXPECTED = (spawn.SpawnError, accounts.AccountError, DefinitionError, Unfit, OSError)  # what can prevent a start
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_GONE_WITH_PROCESS = (Phase.DOWN, Phase.BACKOFF, Phase.SPAWNING, Phase.ABORTING)


class Supervisor:
    def __init__(
        self,
        loop: Loop,
        store: Store,
        pumps: Pumps,
        cells: Cells,
        manager: ServiceManager,
        logs: str,
        run: str,
        boot: str,
        ends: Callable[[], Mapping[tuple[int, int], End]],
        diagnose: Callable[[str], None],
    ) -> None:
        self.instances: dict[str, Instance] = {}
        self.loop = loop
        self.store = store
        self._pumps = pumps
        self._cells = cells
        self._manager = manager
        self._logs = logs
        self._run = run
        self._boot = boot
        self._ends = ends
        self._diagnose = diagnose
        self._watchers: dict[str, list[Callable[[Instance], None]]] = {}
        self._dirty: set[Instance] = set()
        self._removed: set[str] = set()
        self._spawning: deque[Instance] = deque()
        self._by_pid: dict[int, Instance] = {}  # whose end has not been seen yet
        self._next_spawn = int(store.get("next_spawn") or "1")
        self._store_pause: Timer | None = None  # while the store cannot be written
        self._store_fails = False  # told, and not written since
        self._checkpointing = False
        self._do: dict[type, Callable[[Instance, Any], None]] = {
            machine.Spawn: self._queue_spawn,
            machine.Signal: self._signal,
            machine.Kill: self._kill,
            machine.Sweep: self._sweep,
            machine.Arm: self._arm,
            machine.Disarm: self._disarm,
            machine.Probe: self._probe,
            machine.EndProbe: self._end_probe,
        }

    # Instances

    def add(self, instance: Instance) -> Instance:
        self.instances[instance.name] = instance
        self._removed.discard(instance.name)
        self._mark(instance)
        return instance

    def remove(self, instance: Instance) -> None:
        """Forgets an instance that rests."""
        del self.instances[instance.name]
        self._dirty.discard(instance)
        self._removed.add(instance.name)
        self.loop.soon(self.flush)
        self._tell_watchers(instance)

    def deliver(self, instance: Instance, event: Event) -> None:
        """Takes one event through the machine and does what follows from it."""
        instance.life, effects = machine.step(instance.life, event, self.loop.time())
        self._carry_out(instance, effects)

    def deliver_all(self, instances: Iterable[Instance], event: Event) -> None:
        for instance in instances:
            self.deliver(instance, event)

    def change(self, instance: Instance, **facts: Any) -> None:
        """Sets attributes that are not the machine's (wanted, definition, count, project) and keeps them."""
        for name, value in facts.items():
            setattr(instance, name, value)
        self._mark(instance)

    def watch(self, name: str, watcher: Callable[[Instance], None]) -> None:
        """Calls `watcher(instance)` after every event of that instance, until `unwatch`."""
        self._watchers.setdefault(name, []).append(watcher)

    def unwatch(self, name: str, watcher: Callable[[Instance], None]) -> None:
        watchers = self._watchers.get(name, [])
        if watcher in watchers:
            watchers.remove(watcher)
        if not watchers:
            self._watchers.pop(name, None)

    def actual(self) -> list[Actual]:
        """All instances as the planner wants to see them."""
        return [
            Actual(
                one.name,
                one.process,
                one.number,
                one.project,
                one.definition,
                one.count,
                is_up(one),
                one.wanted,
                one.life.status.value,
            )
            for one in self.instances.values()
        ]

    def logs(self, name: str) -> tuple[str, str]:
        """The files of an instance's stdout and stderr."""
        return os.path.join(self._logs, f"{name}-out.log"), os.path.join(self._logs, f"{name}-err.log")

    def _log_sizes(self, name: str) -> tuple[int, int]:
        out, err = (os.path.getsize(path) if os.path.exists(path) else 0 for path in self.logs(name))
        return out, err

    def flush(self) -> None:
        """Writes what has changed since the last time, in one transaction.

        What cannot be written (a full disk) is tried again, and supervising goes on. Should the agent die before that succeeds, the
        next one finds processes other than the stored ones, and ends them by the descriptors and cells that were kept of them.
        """
        if self._store_pause is not None or not (self._dirty or self._removed):
            return
        records = [self._record(instance) for instance in self._dirty]
        try:
            self.store.save(records, self._removed, {"next_spawn": str(self._next_spawn)})
        except StoreError as error:
            if not self._store_fails:
                self._diagnose(f"{error}; it is tried again every {_STORE_PAUSE:g} s")
            self._store_fails = True
            self._store_pause = self.loop.after(_STORE_PAUSE, self._flush_again)
            return
        self._store_fails = False
        self._dirty, self._removed = set(), set()
        if self.store.due:
            self.checkpoint()

    def _flush_again(self) -> None:
        self._store_pause = None
        self.flush()

    def checkpoint(self) -> None:
        """Has everything that is written survive a loss of power, some time soon. Off the loop: it waits for the disk."""

        def work() -> None:
            try:
                self.store.checkpoint()
            finally:
                self._checkpointing = False

        self.flush()
        if not self._checkpointing:
            self._checkpointing = True
            threading.Thread(target=work, daemon=True).start()

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
        )

    def _mark(self, instance: Instance) -> None:
        if self.instances.get(instance.name) is not instance:
            return  # it was removed: what is still told of it is nobody's
        if not self._dirty and not self._removed:
            self.loop.soon(self.flush)
        self._dirty.add(instance)

    def _carry_out(self, instance: Instance, effects: Iterable[machine.Effect]) -> None:
        self._mark(instance)
        for effect in effects:
            self._do[type(effect)](instance, effect)
        self._tell_watchers(instance)

    def _tell_watchers(self, instance: Instance) -> None:
        for watcher in list(self._watchers.get(instance.name, ())):
            watcher(instance)

    # Starting

    def _queue_spawn(self, instance: Instance, _effect: machine.Spawn) -> None:
        if not self._spawning:
            self.loop.soon(self._spawn_turn)
        self._spawning.append(instance)
        instance.spawn_id = ""

    def _spawn_turn(self) -> None:
        """Spawns what is queued, for a while; first the intent of all of it is written, so that no crash can leave a stranger (I4)."""
        for instance in self._spawning:
            if not instance.spawn_id:
                instance.spawn_id = _base36(self._next_spawn)
                self._next_spawn += 1
                self._mark(instance)
        self.flush()
        until = self.loop.time() + _SPAWN_TURN
        try:
            while self._spawning and self.loop.time() < until:
                self._spawn(self._spawning.popleft())
        finally:
            if self._spawning:
                self.loop.soon(self._spawn_turn)

    def _spawn(self, instance: Instance) -> None:
        try:
            self._try_to_spawn(instance)
        except Exception as error:
            if instance.running is not None:
                self._cells.kill(instance.spawn_id, instance.running)
            self._clear(instance)
            reason = error.problems[0].message if isinstance(error, DefinitionError) else str(error)
            self.deliver(instance, machine.SpawnFailed(reason))
            if not isinstance(error, _EXPECTED):
                raise  # a defect of ours: told, but no reason for an instance to wait for ever
            return
        self.deliver(instance, machine.Spawned())

    def _try_to_spawn(self, instance: Instance) -> None:
        definition, scope = instance.definition, instance.scope
        instance.log_starts = self._log_sizes(instance.name)
        account = accounts.find(definition.user)
        env = environment.build(definition, scope, account, instance.path)
        if self._cells.root is None:
            env[environment.SPAWN_ID] = self._mark_of(instance.spawn_id)
        argv = [placeholders.expand(word, scope) for word in words.split(definition.command)]
        procs = self._cells.procs(instance.spawn_id)
        streams = instance.streams = self._pumps.prepare(instance.spawn_id, account.owner)
        # Before the spawn: a FIFO's content vanishes with its last opener, and that must not be us.
        self._manager.keep(instance.spawn_id, streams.read_fds)
        output = streams.open_write()
        try:
            process = spawn.spawn(
                argv, env, definition.cwd or "/", account.switch(), output, procs, self._report(instance.spawn_id)
            )
        finally:
            for fd in output:
                os.close(fd)
        self._manager.keep(instance.spawn_id, [process.pidfd])
        instance.running = process
        self._attend(instance)

    def _attend(self, instance: Instance) -> None:
        """Follows a process that runs: its output and its end."""
        if instance.streams is not None:
            self._pumps.attach(
                instance.streams, self.logs(instance.name), lambda text: self._diagnose(f"{instance.name}: {text}")
            )
        if instance.running is not None and instance.running.pidfd >= 0:
            spawn_id = instance.spawn_id
            self._by_pid[instance.running.pid] = instance
            self.loop.watch(instance.running.pidfd, READ, lambda: self._exited(instance, spawn_id))

    def _unattend(self, running: Process) -> None:
        if running.pidfd >= 0:
            self.loop.unwatch(running.pidfd)
        self._by_pid.pop(running.pid, None)

    def _mark_of(self, spawn_id: str) -> str:
        """What tells the processes of a spawn where there are no cells: other agents of this host number theirs as well."""
        return f"{spawn_id}@{os.path.realpath(self._run)}"

    def _report(self, spawn_id: str) -> str:
        return os.path.join(self._run, f"{spawn_id}.failed")

    # Ending

    def _exited(self, instance: Instance, spawn_id: str) -> None:
        if instance.spawn_id != spawn_id or instance.running is None:
            return
        self._unattend(instance.running)
        end = spawn.reap(instance.running) or self._end_of(instance.running)
        # When all that ended together has been reaped: then one look at what is left serves them all.
        self.loop.soon(lambda: self._ended(instance, end) if instance.spawn_id == spawn_id else None)

    def _end_of(self, process: Process) -> End:
        """How a process that is not our child ended, as far as anybody knows: the kernel, its remains, or the keeper."""
        return (
            spawn.end_of_stranger(process.pidfd)
            or spawn.end_of_zombie(process)
            or self._ends().get((process.pid, process.start_time))
            or End(Cause.UNKNOWN)
        )

    def _ended(self, instance: Instance, end: End) -> None:
        self.deliver(instance, machine.Exited(spawn.failed_to_execute(self._report(instance.spawn_id), end) or end))

    def _signal(self, instance: Instance, effect: machine.Signal) -> None:
        """To the process group; its leader is not reaped before its end is delivered, so the number cannot be another's yet."""
        if instance.running is None or instance.running.pidfd < 0:
            return
        try:
            signal.pidfd_send_signal(instance.running.pidfd, 0)
            os.killpg(instance.running.pid, getattr(signal, effect.name))
        except ProcessLookupError:
            pass  # it has ended; the news is on its way
        except PermissionError:
            pass  # it has become another user's, who may not be ours to signal; kill_timeout follows

    def _kill(self, instance: Instance, _effect: machine.Kill) -> None:
        if instance.running is not None:
            self._cells.kill(instance.spawn_id, instance.running)

    def _sweep(self, instance: Instance, _effect: machine.Sweep) -> None:
        spawn_id = instance.spawn_id

        def emptied() -> None:
            if instance.spawn_id == spawn_id and instance.life.phase is Phase.SWEEPING:
                self._drain(instance)

        if self._cells.when_empty(spawn_id, instance.running, emptied):
            emptied()

    def _drain(self, instance: Instance) -> None:
        spawn_id = instance.spawn_id

        def drained() -> None:
            if instance.spawn_id == spawn_id and instance.life.phase is Phase.SWEEPING:
                self._clear(instance)
                self.deliver(instance, machine.Gone())

        streams, instance.streams = (
            instance.streams,
            None,
        )  # from here on the pump may close its descriptors at any moment
        if streams is None:
            self.loop.soon(drained)
        else:
            self._pumps.drain(streams, drained)

    def _clear(self, instance: Instance) -> None:
        """Gives back what a spawn took: nothing of it runs any more."""
        if instance.running is not None:
            self._unattend(instance.running)
            if instance.running.pidfd >= 0:
                os.close(instance.running.pidfd)
            instance.running = None
        if instance.streams is not None:
            self._pumps.drain(instance.streams, lambda: None)
            instance.streams = None
        if instance.spawn_id:
            self._manager.forget(instance.spawn_id)
            self._cells.remove(instance.spawn_id)

    def reap_orphans(self) -> None:
        """On SIGCHLD: collects processes that came to us because their parents ended. An instance's own end is taken as news."""
        while True:
            try:
                info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                break
            if info is None:
                break
            instance = self._by_pid.get(info.si_pid)
            if instance is not None:
                self._exited(instance, instance.spawn_id)
            else:
                with contextlib.suppress(
                    ChildProcessError
                ):  # the thread that checks a new version waits for a child of its own
                    os.waitpid(info.si_pid, os.WNOHANG)

    # Time and checks

    def _arm(self, instance: Instance, effect: machine.Arm) -> None:
        self._disarm(instance, machine.Disarm((effect.timer,)))
        instance.timers[effect.timer] = self.loop.after(effect.seconds, lambda: self._fired(instance, effect.timer))

    def _fired(self, instance: Instance, timer: machine.Timer) -> None:
        instance.timers.pop(timer, None)
        self.deliver(instance, machine.Fired(timer))

    def _disarm(self, instance: Instance, effect: machine.Disarm) -> None:
        for timer in effect.timers:
            armed = instance.timers.pop(timer, None)
            if armed is not None:
                armed.cancel()

    def _probe(self, instance: Instance, effect: machine.Probe) -> None:
        check = effect.check
        url = placeholders.expand(str(getattr(instance.definition, check.value) or ""), instance.scope)

        def answered(failure: str | None) -> None:
            instance.probing = None
            self.deliver(instance, machine.Passed(check) if failure is None else machine.Failed(check))

        self._end_probe(instance)
        instance.probing = probe(self.loop, url, _PROBE_TIMEOUT, answered)

    def _end_probe(self, instance: Instance, _effect: machine.EndProbe | None = None) -> None:
        if instance.probing is not None:
            instance.probing.cancel()
            instance.probing = None

    # An agent before us

    def restore(self, records: Iterable[Record], kept: Mapping[str, list[int]]) -> list[Instance]:
        """Takes over what an earlier agent left; `kept` are the descriptors that survived it.

        Gives the instances that it was about to start again when it died, in the middle of a restart or a roll.
        """
        left = dict(kept)
        cells = set(self._cells.spawn_ids())
        cut_off = []
        for record in records:
            if record.wanted and is_cut_off(record.life):
                cut_off.append(record.name)
            self._reserve(record.spawn_id)
            cells.discard(record.spawn_id)
            if record.boot == self._boot:
                self._adopt(record, left.pop(record.spawn_id, []))
            elif record.project is not None:
                instance = self._from_record(record)
                instance.spawn_id = ""
                instance.redefine(record.definition)
                self.add(instance)
            else:
                self._removed.add(record.name)  # started by hand: a reboot forgets it (spec: pm3.md, section 10)
        for spawn_id in {*left, *cells}:
            self._reserve(spawn_id)
            self._end_strangers(spawn_id, left.get(spawn_id, []), lambda: None)
        self.flush()
        return [self.instances[name] for name in cut_off if name in self.instances]

    def _reserve(self, spawn_id: str) -> None:
        """No spawn to come gets this id, also when the number of the last one could not be stored."""
        if spawn_id.isalnum():
            self._next_spawn = max(self._next_spawn, int(spawn_id, 36) + 1)

    def _from_record(self, record: Record) -> Instance:
        instance = Instance(
            record.name, record.process, record.number, record.count, record.project, record.definition, record.path
        )
        instance.wanted, instance.life, instance.spawn_id = record.wanted, record.life, record.spawn_id
        return instance

    def _adopt(self, record: Record, fds: list[int]) -> None:
        instance = self.add(self._from_record(record))
        pipes = [fd for fd in fds if _is_pipe(fd)]
        pidfds = [fd for fd in fds if fd not in pipes]
        phase = record.life.phase
        if phase in _GONE_WITH_PROCESS:
            if record.spawn_id and (fds or phase in (Phase.SPAWNING, Phase.ABORTING)):
                # It died between the intent and the record of a spawn: whatever came of it is ended, and the start begins anew.
                self._end_strangers(record.spawn_id, fds, lambda: self._revive(instance))
            else:
                self._revive(instance)
            return
        if not pidfds and record.pid is not None:
            pidfds = _opened(record.pid)
        alive = bool(pidfds) and record.pid is not None and spawn.start_time(record.pid) == record.start_time
        instance.streams = self._pumps.reopen(record.spawn_id, (pipes[0], pipes[1]) if len(pipes) == 2 else None)
        if record.pid is not None:
            instance.running = Process(record.pid, record.start_time or 0, pidfds[0] if pidfds else -1)
        self._attend(instance)
        if phase is Phase.SWEEPING:
            if instance.running is not None:
                self._unattend(instance.running)  # its end is known already
            self._revive(instance)
        elif alive:
            self._revive(instance)
        else:
            if phase in (Phase.STOPPING, Phase.KILLING):
                self._revive(instance)  # kill_timeout goes on for what it leaves behind
            self._ended(instance, self._unseen_end(instance, record))

    def _unseen_end(self, instance: Instance, record: Record) -> End:
        """How an instance ended while no agent ran."""
        if instance.running is not None and instance.running.pidfd >= 0:
            self._unattend(instance.running)
            return self._end_of(instance.running)
        return self._ends().get((record.pid or 0, record.start_time or 0)) or End(Cause.UNKNOWN)

    def _end_strangers(self, spawn_id: str, fds: Iterable[int], then: Callable[[], None]) -> None:
        """Ends whatever came of a spawn that was never recorded, gives back what it took (`fds`), and then calls `then`."""

        def ended() -> None:
            streams = self._pumps.reopen(spawn_id, None)
            if streams is not None:
                self._pumps.drain(streams, lambda: None)
            for fd in fds:
                os.close(fd)
            self._manager.forget(spawn_id)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._report(spawn_id))
            then()

        if self._cells.root is not None:
            self._cells.end(spawn_id, ended)
            return

        def find() -> list[int]:
            return list(cells_room.spawned_with(environment.SPAWN_ID, self._mark_of(spawn_id)))

        cells_room.kill_all(find)
        if self._cells.when_none(find, ended):
            ended()

    def _revive(self, instance: Instance) -> None:
        if self.instances.get(instance.name) is not instance:
            return  # removed meanwhile
        instance.life, effects = machine.revived(instance.life, self.loop.time())
        self._carry_out(instance, effects)

    def handles(self) -> dict[str, list[int]]:
        """The descriptors of every running instance, by spawn id: what an upgrade in place carries over."""
        found: dict[str, list[int]] = {}
        for instance in self.instances.values():
            if instance.running is not None:
                pipes = list(instance.streams.read_fds) if instance.streams is not None else []
                found[instance.spawn_id] = [fd for fd in (*pipes, instance.running.pidfd) if fd >= 0]
        return found


def _opened(pid: int) -> list[int]:
    try:
        return [os.pidfd_open(pid)]
    except ProcessLookupError:
        return []


def _is_pipe(fd: int) -> bool:
    return stat.S_ISFIFO(os.fstat(fd).st_mode)


def _base36(number: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = _DIGITS[digit] + digits
    return digits or "0"
