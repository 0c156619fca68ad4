# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an agent knows about how well it can do its work on this host: one fact a line, and what to do where one is not as it should be.

Loaded when somebody asks. Reads only: what the agent holds, and a few small files of the kernel's. A fact is `{name, ok, severity,
text}`; the severity (`error`, `warning`, `info`) says how bad it is where it is not ok.
"""

from __future__ import annotations

import fcntl
import glob
import os
import re
import resource
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from . import cells, spawn
from .cells import Cells
from .descriptors import MOST_NAME_BYTES, ServiceManager
from .loop import Lag, Loop
from .supervisor import Supervisor

Fact = dict[str, Any]
_CONTROLLERS = ("memory", "cpu", "pids")  # that limits need
_EXIT_IN_PIDFD = (6, 15)  # the Linux that tells by a pidfd how a process ended which is not our child
_SPARE_BYTES = 100 << 20  # free on the disk of the logs
_NEARLY = 0.8  # of a limit


@dataclass(frozen=True)
class About:
    """What only the agent's own life knows."""

    data_dir: str
    manager: str  # systemd, keeper or none
    started: float  # by the loop's clock, in seconds
    restore_seconds: float  # from the start of the agent until it could be asked something
    upgrade: Mapping[str, Any]  # the newest one, as `Upgrades.told` has it


def facts(about: About, loop: Loop, supervisor: Supervisor, cells_: Cells, manager: ServiceManager) -> list[Fact]:
    """All facts, in an order to read them in."""
    found: list[Fact] = [
        _life(about, loop, supervisor),
        *_upgrade(about.upgrade),
        _lag(loop.lag, loop.time()),
        *_cells(cells_),
        *_kernel(),
        *_manager(about, manager),
        _open_files(supervisor),
        _inotify(),
        _store(about.data_dir, supervisor),
        _logs(os.path.join(about.data_dir, "logs")),
        *_lost(supervisor),
    ]
    return found


def _fact(name: str, text: str, wrong: str | None = None) -> Fact:
    """`wrong` is the severity of a fact that is not as it should be."""
    return {"name": name, "ok": wrong is None, "severity": wrong or "info", "text": text}


def _life(about: About, loop: Loop, supervisor: Supervisor) -> Fact:
    instances = supervisor.instances.values()
    running = sum(one.pid is not None for one in instances)
    return _fact(
        "runs",
        f"for {_time(loop.time() - about.started)}, with {len(instances)} instances, {running} of them running;"
        f" it was ready after {_milliseconds(about.restore_seconds)} and uses {_bytes(_resident())} of memory",
    )


def _upgrade(newest: Mapping[str, Any]) -> Iterator[Fact]:
    if newest["result"] == "done":
        gap = (
            "" if newest["gap"] is None else f", in which it answered nobody for {_milliseconds(newest['gap'] / 1000)}"
        )
        yield _fact("upgrade", f"the newest one, to {newest['to'] or 'what is installed'}, is done{gap}")
    elif newest["result"] is not None:
        what = "was refused" if newest["result"] == "refused" else "failed, and this version is back"
        yield _fact(
            "upgrade", f"the newest one, to {newest['to'] or 'what is installed'}, {what}: {newest['why']}", "warning"
        )


def _lag(lag: Lag, now: float) -> Fact:
    where = f" (in {lag.culprit})" if lag.culprit else ""
    text = (
        f"the longest turn took {_milliseconds(lag.longest)}{where}, in the last minute"
        f" {_milliseconds(lag.last_minute(now))}; {lag.slow} took longer than {_milliseconds(lag.SLOW)}"
    )
    if lag.last_minute(now) <= 1.0:
        return _fact("loop", text)
    return _fact("loop", f"{text}: this host is short of CPU or memory, or waits for a slow disk", "warning")


# What the kernel lets us do


def _cells(found: Cells) -> Iterator[Fact]:
    if found.root is None:
        yield _fact(
            "cgroups",
            f"none for instances: {cells.obstacle()}; so a process that hides from the agent can outlive a stop."
            " Run the agent as a systemd service (pm3 startup, or the role pm3.fleet.agent) on a host with cgroup v2",
            "warning",
        )
        return
    yield _fact("cgroups", f"one for each instance, below {found.root}")
    enabled = _words(os.path.join(found.root, "cgroup.subtree_control"))
    given = _words(os.path.join(found.root, "cgroup.controllers"))
    missing = [name for name in _CONTROLLERS if name not in {*enabled, *given}]
    if missing:
        text = f"{', '.join(missing)} not given to {cells.UNIT}, so these limits cannot be set: {found.no_controller(missing[0])}"
        yield _fact("controllers", text, "info")
    else:
        yield _fact("controllers", ", ".join(sorted({*enabled, *given})))


def _kernel() -> Iterator[Fact]:
    version = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
    try:
        pidfd = os.pidfd_open(os.getpid())
    except OSError as error:
        text = f"cannot be opened: {error.strerror}; Linux 5.3 or newer is needed, and a sandbox that allows pidfd_open"
        yield _fact("pidfd", text, "error")
        return
    try:
        fcntl.ioctl(pidfd, spawn.PIDFD_GET_INFO, struct.pack("Q56x", spawn.PIDFD_INFO_EXIT))
        told = version >= _EXIT_IN_PIDFD
    except OSError:
        told = False
    finally:
        os.close(pidfd)
    if told:
        yield _fact("pidfd", "tells how a process ended, also of one that ended while no agent ran")
    else:
        yield _fact(
            "pidfd",
            "works; how a process ended while no agent ran is known from a keeper, or not at all (Linux 6.15 would tell)",
        )


def _manager(about: About, manager: ServiceManager) -> Iterator[Fact]:
    if about.manager == "none":
        yield _fact(
            "descriptors",
            "nobody keeps them for the agent: if it dies, the output of its instances and how they end is lost, and nobody"
            " starts it again. Start it as a service, or let the pm3 command start it",
            "warning",
        )
        return
    used = f"{manager.count} of ours kept by {'a keeper' if about.manager == 'keeper' else _systemd()}"
    share = f"{manager.name_bytes} of {MOST_NAME_BYTES} bytes of names"
    if manager.name_bytes < _NEARLY * MOST_NAME_BYTES:
        yield _fact("descriptors", f"{used}, {share}")
    else:
        text = f"{used}, {share}: instances beyond it lose output if the agent dies; spread them over several agents"
        yield _fact("descriptors", text, "warning")


def _systemd() -> str:
    """systemd and its version, as far as the name of its library tells."""
    for folder in ("/usr/lib/systemd", "/lib/systemd", "/usr/lib64/systemd", "/usr/lib/*/systemd"):
        for path in glob.glob(f"{folder}/libsystemd-shared-*.so"):
            return "systemd " + os.path.basename(path)[len("libsystemd-shared-") : -len(".so")]
    return "systemd"


def _open_files(supervisor: Supervisor) -> Fact:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    needed = spawn.open_files(len(supervisor.instances))
    text = f"{len(os.listdir('/proc/self/fd'))} of at most {limit}; {needed} are needed when all instances run"
    if limit == resource.RLIM_INFINITY or needed < limit:
        return _fact("open files", text)
    return _fact("open files", f"{text}: raise LimitNOFILE of the agent's service, or ulimit -Hn", "error")


def _inotify() -> Fact:
    texts = []
    wrong = None
    for name, least in (("max_user_instances", 64), ("max_user_watches", 8192)):
        words = _words(f"/proc/sys/fs/inotify/{name}")
        if words and int(words[0]) < least:
            wrong = "warning"
            texts.append(f"fs.inotify.{name} is {words[0]}, so that log -f may fail: raise it with sysctl")
        elif words:
            texts.append(f"{name} {words[0]}")
    return _fact("inotify", ", ".join(texts) or "its limits cannot be read", wrong)


# Files


def _store(data_dir: str, supervisor: Supervisor) -> Fact:
    store = supervisor.store
    sizes = [os.path.getsize(path) for path in (store.path, store.path + "-wal") if os.path.exists(path)]
    if not sizes:
        text = f"{store.path} is gone: somebody removed it. Restart the agent; what it runs goes on, and apply brings the rest back"
        return _fact("store", text, "error")
    text = f"{store.path}, {_bytes(sum(sizes))}"
    if store.error is None:
        return _fact("store", text)
    return _fact("store", f"{text}: {store.error}; make room on {data_dir}, or let its owner write there", "error")


def _logs(folder: str) -> Fact:
    try:
        disk = os.statvfs(folder)
    except OSError as error:
        return _fact("logs", f"{folder}: {error.strerror}; output is lost until it is there again", "error")
    free = disk.f_bavail * disk.f_frsize
    text = f"{folder}, {_bytes(free)} free"
    if not os.access(folder, os.W_OK | os.X_OK):
        return _fact("logs", f"{text}: the agent may not write there; output is lost until it may", "error")
    if free < _SPARE_BYTES:
        return _fact("logs", f"{text}: make room, or output will be lost", "error" if free == 0 else "warning")
    return _fact("logs", text)


def _lost(supervisor: Supervisor) -> Iterator[Fact]:
    for instance in supervisor.instances.values():
        lost = sum(instance.streams.lost) if instance.streams is not None else 0
        if lost:
            text = f"{instance.name} lost {_bytes(lost)} since it was started, because its log could not be written"
            yield _fact("output", f"{text}; see agent.log or the journal for why", "warning")


# Words


def _words(path: str) -> list[str]:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().split()
    except OSError:
        return []


def _resident() -> int:
    return int(_words("/proc/self/statm")[1]) * resource.getpagesize()


def _bytes(count: float) -> str:
    for unit, size in (("GB", 1 << 30), ("MB", 1 << 20), ("KB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"


def _time(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
