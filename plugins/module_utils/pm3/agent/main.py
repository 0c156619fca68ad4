# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent's own life: it takes the data dir, takes over what an earlier agent left, serves, and ends in one of three ways.

An orderly end (SIGTERM, `kill`) stops every instance first. An upgrade in place (SIGHUP) becomes the version that is installed now
by execve: same pid, same children, same descriptors. And any other death leaves every instance running for the next agent to adopt.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import grp
import os
import signal
import sys
import threading
import time
from typing import Any

from .. import VERSION
from ..model.life import End
from ..wire import locks, messages, paths
from . import cells, descriptors, spawn, upgrade, walks
from .adoption import Adoption
from .cells import Cells
from .keeper import ENDS_NAME, TAKEN, ends
from .loop import READ, Loop
from .output import Pumps
from .points import reached
from .requests import Requests
from .schemas import StoreError
from .server import Server
from .store import Store
from .supervisor import Supervisor
from .tasks import Steps, Task

_ANSWER_SECONDS = 2.0  # for another agent to say that it is there
_LOOK_SECONDS = 0.05
_LOCK, _LISTEN = "agent-lock", "agent-listen"  # hyphens, so that no spawn id is ever the same
_HOST_PIDS = "pid:[4026531836]"  # the first namespace of pids, PROC_PID_INIT_INO of the kernel
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


def main(data_dir: str) -> int:
    """Runs the agent of a data dir until it ends; gives its exit status."""
    gc.freeze()  # what has been imported stays: no collection has to look through it, and hold up the loop for that
    try:
        return Agent(data_dir).run()
    except _Taken as error:
        diagnose(str(error))
        return TAKEN
    except (StoreError, OSError) as error:
        diagnose(f"cannot run: {error}")
        return 1


class _Taken(Exception):
    """Another agent serves this data dir; the whole sentence for the user."""


def diagnose(text: str) -> None:
    """To standard error, which is the journal under systemd and agent.log under a keeper."""
    try:
        sys.stderr.write(f"pm3: {text}\n")
        sys.stderr.flush()
    except OSError:
        pass  # a full disk is no reason to stop supervising


class Agent:
    def __init__(self, data_dir: str) -> None:
        self._started = time.monotonic()
        self._restore_seconds = 0.0
        self._data_dir = data_dir
        self._scope = paths.scope(data_dir)
        self._run = paths.run(data_dir)
        self._identity = upgrade.identity(upgrade.package())  # now: `current` may come to name another while we run
        self._inherited = descriptors.inherited()
        self._seen = self._inherited.pop(ENDS_NAME, [])  # what a keeper lets us see of ends that nobody else saw
        self._stderr = self._inherited.pop(upgrade.STDERR, [-1])[0]
        reached("agent.begun")
        os.makedirs(data_dir, 0o755 if self._scope == "system" else 0o700, exist_ok=True)
        self._lock = self._take_lock()
        self._make_folders()  # only now: who held the lock may have removed some
        spawn.raise_limit()
        spawn.close_on_exec()
        self._loop = Loop(on_error=_loop_failed)
        address = os.environ.get("NOTIFY_SOCKET")
        self._manager_kind = "keeper" if self._seen else "systemd" if address else "none"
        self._manager = descriptors.ServiceManager(address)
        self._upgrades = upgrade.Upgrades(data_dir, self._run, diagnose)
        self._upgrades.return_store()
        self._store = Store(self._path("store.sqlite"))
        self._pumps = Pumps(self._loop, self._run)
        self._cells = Cells(self._loop, cells.find_root(), self._run)
        self._boot = _boot_id()
        self._supervisor = Supervisor(
            self._loop,
            self._store,
            self._pumps,
            self._cells,
            self._manager,
            data_dir,
            self._run,
            self._boot,
            self._unseen,
            diagnose,
        )
        self._requests = Requests(self._supervisor, data_dir, self._hello, self._doctor, self._shut_down)
        self._server: Server | None = None
        self._signals = -1  # the numbers of those that have come
        self._ending = False
        self._checking = False  # whether a version can be become
        self._status = 0

    def run(self) -> int:
        self._listen_to_signals()
        fresh = self._store.get("boot") != self._boot or self._store.get("ended") == "orderly"
        listener = self._inherited.pop(_LISTEN, [None])[0]
        self._manager.account(self._inherited)
        try:
            self._store.tidy()
        except StoreError as error:
            diagnose(str(error))
        if not fresh:
            self._supervisor.triggers.seen = self._supervisor.ledger.seen
        cut_off = Adoption(self._supervisor, self._boot).restore(self._store.instances(), self._inherited)
        self._supervisor.triggers.seen = None
        reached("agent.restored")
        instances = self._supervisor.instances.values()
        wanted = [one for one in instances if one.wanted and (one in cut_off or (fresh and walks.rests(one)))]
        self._requests.work.come_up([*wanted, *(self._requests.changes.dumped() if fresh else ())], self._is_up)
        self._requests.runs.resume()
        self._server = Server(
            self._loop, paths.socket(self._data_dir), self._requests.handle, _on_error, self._group(), listener
        )
        self._write_pid()
        reached("agent.open")
        self._manager.tell("READY=1")
        reached("agent.ready")
        self._upgrades.settle(self._stderr)
        self._restore_seconds = time.monotonic() - self._started
        self._feed_watchdog()
        self._loop.run()
        return self._status

    def _is_up(self) -> None:
        """Only now: should we die before, then the next agent is still one after a boot, or after an orderly end."""
        self._store.set("boot", self._boot)
        self._store.set("ended", "")

    def _path(self, name: str) -> str:
        return os.path.join(self._data_dir, name)

    # Coming up

    def _make_folders(self) -> None:
        os.makedirs(self._run, 0o700, exist_ok=True)
        os.makedirs(self._path("logs"), 0o750, exist_ok=True)
        group = self._group()
        if group is not None:
            os.chown(self._path("logs"), -1, group)
            os.chmod(self._path("logs"), 0o2750)  # so that who may see the logs may read what is in them
        os.chdir("/")

    def _take_lock(self) -> int:
        """The lock of the data dir. Where another agent answers we are one too many; whoever else holds it is waited for: it is ending,
        or coming up, or a child of one that died and has not yet executed its program."""
        kept = self._inherited.pop(_LOCK, [])
        if kept:
            return kept[0]
        lock = os.open(self._path("lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        told = False
        while not _locked(lock):
            self._give_way()
            if not told:
                told = True
                pid = locks.holder(lock)
                who = f"an agent (pid {pid})" if pid else "a process"
                diagnose(f"{who} that does not answer holds {self._path('lock')}; waiting for it to end")
            time.sleep(
                _LOOK_SECONDS
            )  # a lock that is waited for in the kernel would come without another look at who answers
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        return lock

    def _give_way(self) -> None:
        """Raises `_Taken` where another agent answers. What files say of it is not believed: only what it says itself."""
        from ..wire import client  # one that is alone does without

        try:
            hello = client.Client(self._data_dir, _ANSWER_SECONDS).request({"type": "hello"})
        except client.ClientError:
            return
        if hello.get("type") == "hello":
            raise _Taken(
                f"the daemon is already running for {self._data_dir} (pid {hello.get('pid')}); this ends it, with all that it runs:"
                f" {paths.stop(self._data_dir)}"
            )

    def _group(self) -> int | None:
        """The admin group of a system-wide agent: its members may use it like root."""
        name = os.environ.get("PM3_ADMIN_GROUP", paths.GROUP if self._scope == "system" else "")
        try:
            return grp.getgrnam(name).gr_gid if name else None
        except KeyError:
            diagnose(f"there is no group {name}, so only root may use this agent")
            return None

    def _unseen(self) -> dict[tuple[int, int], End]:
        """How instances that are not our children ended, by pid and start time, as the keeper has seen it."""
        return {identity: spawn.from_wait_status(status) for fd in self._seen for identity, status in ends(fd).items()}

    def _write_pid(self) -> None:
        try:
            with open(self._path("pm3.pid"), "w", encoding="ascii") as file:
                file.write(str(os.getpid()))
        except OSError as error:
            diagnose(f"{self._path('pm3.pid')}: {error}")  # a full disk is no reason not to supervise

    # News

    def _listen_to_signals(self) -> None:
        read, write = os.pipe()
        for fd in (read, write):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, _noted)
        if self._cells.root is None:
            if self._manager_kind != "keeper":  # which has seen to it
                _become_subreaper()
            signal.signal(signal.SIGCHLD, _noted)
        self._signals = read
        signal.pthread_sigmask(
            signal.SIG_UNBLOCK, _SIGNALS
        )  # an upgrade in place blocks them, lest one kills us in its midst

        def news() -> None:
            numbers = self._noted_signals()
            if signal.SIGCHLD in numbers:
                self._supervisor.reap_orphans()
            if signal.SIGTERM in numbers or signal.SIGINT in numbers:
                self._shut_down()
            if signal.SIGHUP in numbers:
                self._upgrade()

        self._loop.watch(read, READ, news)

    def _noted_signals(self) -> set[int]:
        try:
            return set(os.read(self._signals, 4096))
        except BlockingIOError:
            return set()

    def _feed_watchdog(self) -> None:
        interval = int(os.environ.get("WATCHDOG_USEC", "0")) / 2_000_000
        if interval:
            self._manager.tell("WATCHDOG=1")
            self._loop.after(interval, self._feed_watchdog)

    def _hello(self) -> dict[str, Any]:
        instances = self._supervisor.instances.values()
        return {
            "type": "hello",
            "version": VERSION,
            "identity": self._identity,
            "protocol": messages.PROTOCOL,
            "pid": os.getpid(),
            "data_dir": self._data_dir,
            "scope": self._scope,
            "manager": self._manager_kind,
            "instances": {"total": len(instances), "running": sum(one.pid is not None for one in instances)},
            "features": {"cgroup": self._cells.root is not None, "pidfd": True, "trial": True},
            "upgrade": self._upgrades.told,
        }

    def _doctor(self) -> dict[str, Any]:
        from . import doctor  # a healthy agent does without

        about = doctor.About(
            self._data_dir, self._manager_kind, self._started, self._restore_seconds, self._upgrades.told
        )
        found = doctor.facts(about, self._loop, self._supervisor, self._cells, self._manager)
        return {"type": "doctor", "facts": found}

    # Ending

    def _shut_down(self) -> None:
        """The orderly end: nobody can ask for anything more, then all instances stop, dependents first."""
        if self._ending:
            return
        self._ending = True
        self._requests.runs.abandon(
            "interrupted: the agent was asked to end; it goes on with this when it is started again"
        )
        if self._server is not None:
            self._server.close()
        self._requests.work.abandon()
        self._manager.tell("STOPPING=1")
        Task(self._stop_all()).start().begin(self._ended)

    def _stop_all(self) -> Steps:
        instances = [*self._supervisor.instances.values(), *self._supervisor.beside]
        longest = sum(walks.patience(level) for level in walks.levels_of(instances))
        self._manager.tell(f"EXTEND_TIMEOUT_USEC={int(longest * 1_000_000)}")
        yield from walks.stop_in_order(self._supervisor, instances)
        for instance in instances:
            if instance.project is None and walks.rests(instance) and not instance.beside:
                self._supervisor.remove(instance)
        self._supervisor.sockets.close()
        reached("agent.rests")
        self._supervisor.ledger.flush()
        self._store.set("ended", "orderly")
        reached("agent.ended")
        self._store.close()
        self._pumps.close()
        _unlink(self._path("pm3.pid"))
        if os.path.isdir(self._run) and not os.listdir(self._run):
            os.rmdir(self._run)

    def _ended(self, ending: Task) -> None:
        """Whatever went wrong on the way, an agent that was asked to end does."""
        if ending.error is not None:
            _on_error(ending.error)
        self._loop.stop()

    def _upgrade(self) -> None:
        """Becomes the version that is to be, when that can go on with what there is. It says so itself, in another process."""
        if self._ending or self._checking:
            return
        self._checking = True
        target = upgrade.Target()

        def look() -> None:
            check = upgrade.Check(target, self._path("store.sqlite"), self._run)
            self._loop.from_thread(lambda: self._checked(target, check))

        threading.Thread(target=look, daemon=True).start()

    def _checked(self, target: upgrade.Target, check: upgrade.Check) -> None:
        self._checking = False
        if check.wrong is not None:
            self._upgrades.refused(target, check.wrong)
        elif not self._ending and self._server is not None:
            self._become(target, check.reads)

    def _become(self, target: upgrade.Target, reads: int) -> None:
        began = time.monotonic()
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        if self._noted_signals() & {signal.SIGTERM, signal.SIGINT}:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            self._shut_down()
            return
        self._requests.runs.abandon(
            "interrupted: the agent becomes the installed version, and then goes on with this; ask again"
        )
        self._manager.tell("RELOADING=1", f"MONOTONIC_USEC={int(began * 1_000_000)}")
        self._supervisor.ledger.flush()
        self._pumps.close()
        reached("upgrade.closed")
        kept = {
            **self._supervisor.handles(),
            _LOCK: [self._lock],
            _LISTEN: [self._server.fileno()] if self._server is not None else [],
            ENDS_NAME: self._seen,
            upgrade.STDERR: [self._upgrades.listen()],
        }
        self._store.close()
        variables: dict[str, str] = {}
        try:
            self._upgrades.begin(target, reads, began)
            reached("upgrade.noted")
            variables = {**descriptors.hand_over(kept), **spawn.variables()}
            self._upgrades.set_alarm()
            reached("upgrade.before_exec")
            command = [*target.command, "--daemon"]
            os.execve(command[0], command, {**os.environ, **variables, "PM3_DATA_DIR": self._data_dir})
        except (OSError, StoreError) as error:
            # Nothing was touched that a new start of ourselves would not find again: the manager does that.
            if variables:
                descriptors.take_back(kept, variables)
            self._upgrades.undone(str(error))
            self._status = 1
            self._loop.stop()


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _noted(_number: int, _frame: Any) -> None:
    """Signals are handled on the loop, by way of the wake-up descriptor."""


def _loop_failed(error: BaseException) -> None:
    """What could not be done for want of a descriptor would never be done. So the manager has another agent begin anew, with all of it."""
    if isinstance(error, OSError) and error.errno in spawn.NO_DESCRIPTOR:
        raise error
    _on_error(error)


def _on_error(error: BaseException) -> None:
    try:
        import traceback  # half a megabyte that a healthy agent does without
    except OSError:  # there is no descriptor to read it with
        diagnose(repr(error))
        return
    diagnose("".join(traceback.format_exception(type(error), error, error.__traceback__)).rstrip())


def _become_subreaper() -> None:
    """Without cells, what an instance left behind must come to us when its parent ends, and not to init."""
    import ctypes

    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


def _boot_id() -> str:
    """The boot in which a pid and its start time mean one process. A container that is begun anew has the boot id of its host still, but
    nothing that ran in it before; so there the start of its first process counts, too."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    try:
        contained = os.readlink("/proc/self/ns/pid") != _HOST_PIDS
    except OSError:
        contained = False  # a kernel without namespaces
    return f"{boot}/{spawn.start_time(1)}" if contained else boot


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
