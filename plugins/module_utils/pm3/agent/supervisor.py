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
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, Callable

from ..model import checks, machine, plan
from ..model.life import Cause, End, Work
from ..model.life import Timer as Kind
from ..model.machine import Event
from ..model.plan import Actual
from . import accounts, environment, launch, log_files, spawn
from .cells import Cells
from .descendants import Survey
from .descriptors import ServiceManager
from .errands import Errand
from .fingerprints import Fingerprints
from .health import Health
from .holds import Holds
from .instance import Instance, has_tale, is_up
from .ledger import Ledger
from .log import LogFile
from .loop import READ, Loop, Timer
from .output import Pumps, Streams, last_lines
from .points import reached
from .sockets import Sockets
from .spawn import Process
from .store import Store
from .triggers import Triggers

_SPAWN_TURN = 0.01  # seconds of spawning after which other news gets its turn
_REAP_TURN = 0.01  # seconds of reaping, as well
_LAST_WORDS = 10  # lines of output that are kept of an end


class Supervisor:
    def __init__(
        self,
        loop: Loop,
        store: Store,
        pumps: Pumps,
        cells: Cells,
        manager: ServiceManager,
        data_dir: str,
        run: str,
        boot: str,
        ends: Callable[[], Mapping[tuple[int, int], End]],
        diagnose: Callable[[str], None],
    ) -> None:
        self.instances: dict[str, Instance] = {}
        self.beside: set[Instance] = set()  # copies that take over from one, or leave for one
        self.loop = loop
        self.store = store
        self.ledger = Ledger(loop, store, self.instances, boot, diagnose)
        self.holds = Holds(store)
        self.pumps = pumps
        self.cells = cells
        self.manager = manager
        self.sockets = Sockets(manager)
        self.ends = ends
        self.diagnose = diagnose
        self.triggers = Triggers(loop, self.deliver, self.survey, (data_dir, run), diagnose)
        self.fingerprints = Fingerprints()
        self._logs = os.path.join(data_dir, "logs")
        self._tty = os.environ.get("PM3_DEFAULT_TTY") == "1"  # every stdout is a terminal, as in pm3
        self._run = run
        self._watchers: dict[str, list[Callable[[Instance], None]]] = {}
        self._added_watchers: list[Callable[[Instance], None]] = []
        self._spawning: deque[tuple[Instance, Work]] = deque()
        self._children: dict[
            int, Callable[[], None]
        ] = {}  # by pid, whose end has not been seen yet: what is to be done then
        self._sent = 0  # commands beside programs, so far
        health = Health(loop, self.deliver, self._send, self.members)
        # Made once, and not once for each instance.
        self._tell_of_log, self._on_exit = self._log_fails, self._exited
        self._do: dict[type, Callable[[Instance, Any], object]] = {
            machine.Spawn: self._queue_spawn,
            machine.Signal: self._ask_to_end,
            machine.Ask: self._ask_to_end,
            machine.Kill: self._kill,
            machine.Sweep: self._sweep,
            machine.Arm: self._arm,
            machine.Disarm: self._disarm,
            machine.Probe: health.probe,
            machine.EndProbe: health.end,
            machine.Tell: lambda instance, effect: self._tell(instance.name, effect.message),
        }

    # Instances

    def add(self, instance: Instance) -> Instance:
        self.instances[instance.name] = instance
        self.ledger.mark(instance)
        for watcher in list(self._added_watchers):
            watcher(instance)
        return instance

    def remove(self, instance: Instance) -> None:
        """Forgets an instance that rests."""
        del self.instances[instance.name]
        self.ledger.drop(instance)
        self.triggers.update(instance, there=False)
        self.sockets.release(instance)
        self._tell_watchers(instance)

    def deliver(self, instance: Instance, event: Event) -> None:
        """Takes one event through the machine and does what follows from it."""
        before = instance.life
        instance.life, effects = machine.step(before, event, self.loop.time())
        self.carry_out(instance, effects, changed=instance.life is not before)

    def change(self, instance: Instance, **facts: Any) -> None:
        """Sets attributes that are not the machine's (wanted, definition, count, project) and keeps them."""
        for name, value in facts.items():
            setattr(instance, name, value)
        self.ledger.mark(instance)
        self.triggers.update(instance)
        self.sockets.trim(instance)

    def watch(self, name: str, watcher: Callable[[Instance], None]) -> None:
        """Calls `watcher(instance)` after every event of that instance, until `unwatch`."""
        self._watchers.setdefault(name, []).append(watcher)

    def unwatch(self, name: str, watcher: Callable[[Instance], None]) -> None:
        watchers = self._watchers.get(name, [])
        if watcher in watchers:
            watchers.remove(watcher)
        if not watchers:
            self._watchers.pop(name, None)

    def watch_added(self, watcher: Callable[[Instance], None]) -> None:
        """Calls `watcher(instance)` for every instance that is added, until `unwatch_added`."""
        self._added_watchers.append(watcher)

    def unwatch_added(self, watcher: Callable[[Instance], None]) -> None:
        if watcher in self._added_watchers:
            self._added_watchers.remove(watcher)

    def actual(self, stale: Mapping[str, str] = MappingProxyType({})) -> list[Actual]:
        """All instances as the planner wants to see them. `stale`: why processes are, by spawn id (`Fingerprints.stale`)."""
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
                stale.get(one.spawn_id, ""),
            )
            for one in self.instances.values()
        ]

    def logs(self, instance: Instance) -> tuple[LogFile, LogFile]:
        """The logs of an instance's stdout and stderr. Raises `Unfit`."""
        return log_files.of(instance, self._logs)

    def _log_sizes(self, instance: Instance) -> tuple[int, int]:
        out, err = (os.path.getsize(log.path) if os.path.exists(log.path) else 0 for log in self.logs(instance))
        return out, err

    def last_words(self, instance: Instance) -> tuple[str, ...]:
        """The last lines that it wrote since it was last started: to stderr, or if there are none, to stdout. Without secrets."""
        (out, err), (out_start, err_start) = self.logs(instance), instance.log_starts
        lines = last_lines(err, _LAST_WORDS, err_start)
        lines = lines or last_lines(out, _LAST_WORDS, out_start)
        # Now: they are kept, and a definition that comes later knows other secrets.
        secrets = instance.definition.secrets.values()
        return tuple(plan.masked(line, secrets) for line in lines)

    def empty_logs(self, instances: Iterable[Instance], done: Callable[[list[str]], None]) -> None:
        """Empties their logs and removes the rotated ones; `done` gets a sentence for each that could not be."""
        self.pumps.flush([log for one in instances for log in self.logs(one)], done)

    def see_files(self, instance: Instance) -> None:
        """Files that its process was started without being compared count from now on, as its definition names them."""
        seen = self.fingerprints.completed(instance) if instance.pid is not None else instance.seen
        if seen is not instance.seen:
            self.change(instance, seen=seen)
            self.loop.soon(self.fingerprints.forget)

    def reconfigure(self, instance: Instance) -> None:
        """Has its output logged as its definition says now."""
        if instance.streams is not None:
            self.pumps.reconfigure(instance.streams, self.logs(instance))

    def survey(self) -> Survey:
        """One look at the processes of all instances."""
        return self.cells.survey()

    def members(self, instance: Instance) -> list[int]:
        """The processes of an instance."""
        return self.cells.members(instance.spawn_id, instance.running) if instance.spawn_id else []

    def carry_out(self, instance: Instance, effects: Iterable[machine.Effect], changed: bool = True) -> None:
        if changed:
            self.ledger.mark(instance)
        for effect in effects:
            self._do[type(effect)](instance, effect)
        self.triggers.update(instance, instance.name in self.instances)
        self._tell_watchers(instance)

    def _tell_watchers(self, instance: Instance) -> None:
        for watcher in list(self._watchers.get(instance.name, ())):
            watcher(instance)

    # Starting

    def _queue_spawn(self, instance: Instance, effect: machine.Spawn) -> None:
        if not self._spawning:
            self.loop.soon(self._spawn_turn)
        self._spawning.append((instance, effect.work))
        self.fingerprints.forget()  # of those that wait together, the files are read once
        instance.spawn_id = ""

    def _spawn_turn(self) -> None:
        """Spawns what is queued, for a while; first the intent of all of it is written, so that no crash can leave a stranger (I4)."""
        for instance, _work in self._spawning:
            if not instance.spawn_id:
                instance.spawn_id = self.ledger.next_spawn_id()
                # A copy beside another is not in the store, but the number that it has taken is.
                self.ledger.mark(self.instances.get(instance.name, instance))
        until = self.loop.time() + _SPAWN_TURN
        reached("spawn.before_intent")
        self.ledger.flush()
        reached("spawn.after_intent")
        try:
            while self._spawning:
                self._spawn(*self._spawning.popleft())
                if self.loop.time() > until:
                    break
        finally:
            if self._spawning:
                self.loop.after(0, self._spawn_turn)  # not `soon`, which may still be in this turn
            else:
                self.fingerprints.forget()

    def _spawn(self, instance: Instance, work: Work) -> None:
        try:
            self._try_to_spawn(instance, work)
        except Exception as error:
            if instance.running is not None:
                self.cells.kill(instance.spawn_id, instance.running)
            self._clear(instance)
            self.deliver(instance, machine.SpawnFailed(launch.reason(error)))
            if not isinstance(error, launch.OBSTACLES):
                raise  # a defect of ours: told, but no reason for an instance to wait for ever
            return
        self.deliver(instance, machine.Spawned())
        if work is Work.PROGRAM:
            self.triggers.spawned(instance)

    def _try_to_spawn(self, instance: Instance, work: Work) -> None:
        spawn.check_room(len(self._children))
        instance.log_starts = self._log_sizes(instance)
        if work is Work.PROGRAM:  # before it reads them: what changes in between has changed since
            instance.seen = self.fingerprints.take(instance)
        what = launch.program(instance) if work is Work.PROGRAM else launch.hook(instance, work)
        # Also where there are cells: the agent after us may have none (`pm3 unstartup`).
        what.env[environment.SPAWN_ID] = self.cells.descendants.mark(instance.spawn_id)
        account, sockets = launch.account(instance), []
        if work is Work.PROGRAM:
            sockets = self.sockets.take(instance, (account.uid, account.gid))
            what.env.update(environment.listening(instance.process, len(sockets)))
            if checks.is_notify(instance.definition.readiness_check):
                from .notify import NotifySocket  # not before somebody has something to say

                instance.notify = NotifySocket()
                what.env[environment.NOTIFY_SOCKET] = instance.notify.address
        procs = self.cells.procs(instance.spawn_id)
        self.cells.limit(instance.spawn_id, instance.definition, new=True)
        known = self.instances.get(instance.name, instance)
        streams = instance.streams = self.pumps.prepare(
            instance.spawn_id,
            account.owner,
            instance.definition.tty or self._tty,
            None if known is instance else instance.name,
        )
        reached("spawn.piped")
        # Before the spawn: a FIFO's content vanishes with its last opener, and that must not be us.
        self.manager.keep(instance.spawn_id, _readable(instance))
        reached("spawn.pipes_kept")
        output = streams.open_write()
        try:
            process = spawn.spawn(what, output, procs, self.report(instance.spawn_id), sockets)
        finally:
            for fd in output:
                os.close(fd)
        reached("spawn.watched")
        self.manager.keep(instance.spawn_id, [process.pidfd])
        reached("spawn.pidfd_kept")
        instance.running = process
        self.cells.begun(instance.spawn_id, process)
        self.ledger.mark(instance)
        self.attend(instance)
        reached("spawn.attended")

    def attend(self, instance: Instance) -> None:
        """Follows a process that runs: its output, what it says of itself, and its end."""
        if instance.streams is not None:
            self.attach(instance, instance.streams)
        if instance.notify is not None:
            instance.notify.attend(self.loop, _uid(instance), partial(self.members, instance))
        if instance.running is not None and instance.running.pidfd >= 0:
            exited = _Exit(self._on_exit, instance)
            self._children[instance.running.pid] = exited
            self.loop.watch(instance.running.pidfd, READ, exited)

    def attach(self, instance: Instance, streams: Streams) -> None:
        """From now on the output of a spawn goes to the logs of the instance."""
        logs = self.logs(instance)
        self.triggers.writes(log.path for log in logs)
        self.pumps.attach(streams, logs, self._tell_of_log)

    def _log_fails(self, name: str, text: str) -> None:
        """In the pump's thread."""
        self.loop.from_thread(partial(self._tell, name, text))

    def _tell(self, name: str, text: str) -> None:
        self.diagnose(f"{name}: {text}")

    def unattend(self, running: Process) -> None:
        if running.pidfd >= 0:
            self.loop.unwatch(running.pidfd)
        self._children.pop(running.pid, None)

    def report(self, spawn_id: str) -> str:
        return os.path.join(self._run, f"{spawn_id}.failed")

    # Ending

    def _exited(self, instance: Instance, spawn_id: str) -> None:
        if instance.spawn_id != spawn_id or instance.running is None:
            return
        self.unattend(instance.running)
        end = spawn.reap(instance.running) or self.end_of(instance.running)
        reached("end.reaped")
        # When all that ended together has been reaped: then one look at what is left serves them all.
        self.loop.soon(lambda: self.ended(instance, end) if instance.spawn_id == spawn_id else None)

    def end_of(self, process: Process) -> End:
        """How a process that is not our child ended, as far as anybody knows: the kernel, its remains, or the keeper."""
        return (
            spawn.end_of_stranger(process.pidfd)
            or spawn.end_of_zombie(process)
            or self.ends().get((process.pid, process.start_time))
            or End(Cause.UNKNOWN)
        )

    def ended(self, instance: Instance, end: End) -> None:
        """The main process is known to have ended."""
        killed, unseen = end.signal == signal.SIGKILL, end.cause is Cause.UNKNOWN
        # Of an end that nobody saw the cgroup may tell at least that it took everything, the main process with it.
        if (killed or unseen) and self.cells.memory_kills(instance.spawn_id, whole=unseen):
            end = replace(end, cause=Cause.OOM, signal=int(signal.SIGKILL))
        self.deliver(instance, machine.Exited(spawn.failed_to_execute(self.report(instance.spawn_id), end) or end))
        reached("end.delivered")

    def signal(self, instance: Instance, name: str) -> bool:
        """To the process group; its leader is not reaped before its end is delivered, so the number cannot be another's yet.

        False: nobody is there to get it.
        """
        if instance.running is None or instance.running.pidfd < 0:
            return False
        self.cells.meet()
        try:
            signal.pidfd_send_signal(instance.running.pidfd, 0)
            os.killpg(instance.running.pid, getattr(signal, name))
            reached("stop.signalled")
        except ProcessLookupError:
            return False  # it has ended; the news is on its way
        except PermissionError:
            return False  # it has become another user's, who may not be ours to signal; kill_timeout follows
        return True

    def tell(self, instance: Instance, name: str) -> bool:
        """A signal to its program alone, which knows what to do with it. False: it does not run."""
        running = instance.running
        if instance.pid is None or running is None or running.pidfd < 0:
            return False
        try:
            signal.pidfd_send_signal(running.pidfd, getattr(signal, name))
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def replace(self, old: Instance, new: Instance) -> None:
        """`new`, which ran beside it, takes the place of `old`, which is to be stopped. It may have another name."""
        if new.name != old.name:
            del self.instances[old.name]
            self.ledger.drop(old)
        self.beside.discard(new)
        self.beside.add(old)
        new.beside, old.beside = False, True
        new.stops = old.stops
        if new.name == old.name:
            self.instances[new.name] = new
            self.ledger.mark(new)
        else:
            self.add(new)
        for one in (old, new):
            self.triggers.update(one)

    def _ask_to_end(self, instance: Instance, effect: machine.Signal | machine.Ask) -> None:
        """After the flush that is queued already: an agent that does not know that it was asked takes its end for one of its own."""
        spawn_id = instance.spawn_id

        def ask() -> None:
            if instance.spawn_id != spawn_id:
                return
            if isinstance(effect, machine.Signal):
                self.signal(instance, effect.name)
            else:
                self._ask(instance)

        self.loop.soon(ask)

    def _ask(self, instance: Instance) -> None:
        def answered(failure: str | None) -> None:
            if failure is not None:
                self.diagnose(f"{instance.name}: stop_command {failure}; kill_signal is sent instead")
                self.deliver(instance, machine.Unasked())

        try:
            # What takes longer than kill_timeout is killed with the rest.
            self._send(instance, launch.stop_command(instance), instance.life.policy.kill_timeout + 1, answered)
        except launch.OBSTACLES as error:
            reason = launch.reason(error)
            self.loop.soon(lambda: answered(reason))

    def _kill(self, instance: Instance, _effect: machine.Kill) -> None:
        if instance.running is not None:
            self.cells.kill(instance.spawn_id, instance.running)
            reached("stop.killed")
        for errand in list(instance.errands):
            errand.cancel()

    def _sweep(self, instance: Instance, _effect: machine.Sweep) -> None:
        spawn_id = instance.spawn_id

        def emptied() -> None:
            if instance.spawn_id == spawn_id and machine.is_swept(instance.life):
                reached("end.swept")
                self._drain(instance)

        if self.cells.when_empty(spawn_id, instance.running, emptied):
            emptied()

    def _drain(self, instance: Instance) -> None:
        spawn_id = instance.spawn_id

        def drained() -> None:
            if instance.spawn_id == spawn_id and machine.is_swept(instance.life):
                tail = self.last_words(instance) if has_tale(instance.life) else ()
                reached("end.drained")
                self._clear(instance)
                reached("end.cleared")
                self.deliver(instance, machine.Gone(tail))
                reached("end.gone")

        streams, instance.streams = (
            instance.streams,
            None,
        )  # from here on the pump may close its descriptors at any moment
        if streams is None:
            self.loop.soon(drained)
        else:
            self.pumps.drain(streams, drained)

    def _clear(self, instance: Instance) -> None:
        """Gives back what a spawn took: nothing of it runs any more."""
        for errand in list(instance.errands):
            errand.cancel()
        if instance.running is not None:
            self.unattend(instance.running)
            if instance.running.pidfd >= 0:
                os.close(instance.running.pidfd)
            instance.running = None
        if instance.streams is not None:
            self.pumps.drain(instance.streams, lambda: None)
            instance.streams = None
        if instance.notify is not None:
            instance.notify.close()
            instance.notify = None
        if instance.spawn_id:
            self.manager.forget(instance.spawn_id)
            self.cells.remove(instance.spawn_id)

    def reap_orphans(self) -> None:
        """On SIGCHLD: collects processes that came to us because their parents ended. An instance's own end is taken as news."""
        until = self.loop.time() + _REAP_TURN
        while True:
            if self.loop.time() > until:
                self.loop.soon(self.reap_orphans)
                break
            try:
                info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                break
            if info is None:
                break
            ended = self._children.get(info.si_pid)
            if ended is not None:
                ended()
            else:
                # The thread that checks a new version waits for a child of its own.
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(info.si_pid, os.WNOHANG)

    # Time, and commands beside the program

    def _arm(self, instance: Instance, effect: machine.Arm) -> None:
        self._disarm(instance, machine.Disarm((effect.timer,)))
        instance.timers[effect.timer] = self.loop.after(effect.seconds, partial(self._fired, instance, effect.timer))

    def _fired(self, instance: Instance, timer: Kind) -> None:
        instance.timers.pop(timer, None)
        _shrink(instance.timers)
        self.deliver(instance, machine.Fired(timer))

    def _disarm(self, instance: Instance, effect: machine.Disarm) -> None:
        for timer in effect.timers:
            armed = instance.timers.pop(timer, None)
            if armed is not None:
                armed.cancel()
        _shrink(instance.timers)

    def _send(
        self, instance: Instance, what: spawn.Launch, seconds: float, done: Callable[[str | None], None]
    ) -> Errand:
        """Runs a command beside the instance's program. Raises what prevents that."""
        self._sent += 1
        report = self.report(f"{instance.spawn_id}.{self._sent}")
        procs = self.cells.entrance(instance.spawn_id)
        what.env[environment.SPAWN_ID] = self.cells.descendants.mark(instance.spawn_id)

        def reaped(errand: Errand) -> None:
            if errand in instance.errands:
                instance.errands.remove(errand)
            self._children.pop(errand.process.pid, None)

        owner = launch.account(instance).owner
        errand = Errand(self.loop, what, procs, report, owner, seconds, done, reaped)
        instance.errands.append(errand)
        self._children[errand.process.pid] = errand.ended
        return errand

    def handles(self) -> dict[str, list[int]]:
        """The descriptors of every running instance, by spawn id, and the sockets of all: what an upgrade in place carries over."""
        found = self.sockets.handles()
        for instance in (*self.instances.values(), *self.beside):
            for errand in list(instance.errands):
                errand.abandon()
            if instance.running is not None:
                found[instance.spawn_id] = [fd for fd in (*_readable(instance), instance.running.pidfd) if fd >= 0]
        return found


class _Exit:
    """News of the end of one spawn. A closure would be four times as large, and there is one for each instance."""

    __slots__ = ("_exited", "_instance", "_spawn_id")

    def __init__(self, exited: Callable[[Instance, str], None], instance: Instance) -> None:
        self._exited, self._instance, self._spawn_id = exited, instance, instance.spawn_id

    def __call__(self) -> None:
        self._exited(self._instance, self._spawn_id)


def _readable(instance: Instance) -> list[int]:
    """What of a spawn's descriptors is read: its output, and what it says of itself."""
    pipes = list(instance.streams.read_fds) if instance.streams is not None else []
    return pipes if instance.notify is None else [*pipes, instance.notify.fileno()]


def _uid(instance: Instance) -> int:
    try:
        return launch.account(instance).uid
    except accounts.AccountError:
        return os.getuid()  # that user was removed while it ran


def _shrink(timers: dict[Kind, Timer]) -> None:
    """An empty dict keeps the room that it had, until it is cleared."""
    if not timers:
        timers.clear()
