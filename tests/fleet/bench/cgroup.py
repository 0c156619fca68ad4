"""The cgroups that hold the bench's processes: what runs is what the kernel shows in there, and `kill` reaches all of it.

Recorded pids can lie (reuse, a crash before the record was written); membership in a cgroup cannot, and it is inherited by every
descendant. On a hybrid machine systemd-nspawn derives a host's cgroup from two hierarchies, the unified one and `name=systemd`,
so a group is a folder in each; everything is asked of the unified one alone.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from pathlib import Path


def hierarchies() -> list[Path]:
    """Mount points of the unified hierarchy (first) and of systemd's named one, if there is one."""
    unified: list[Path] = []
    named: list[Path] = []
    with open("/proc/self/mountinfo", encoding="utf-8") as lines:
        for line in lines:
            fields, _dash, file_system = line.partition(" - ")
            kind, _source, options = file_system.split(maxsplit=2)
            if kind == "cgroup2":
                unified.append(Path(fields.split()[4]))
            elif kind == "cgroup" and "name=systemd" in options.strip().split(","):
                named.append(Path(fields.split()[4]))
    return unified[:1] + named[:1] if unified else []


def reason_against() -> str | None:
    """Why groups cannot be made here, or None."""
    if not hierarchies():
        return "no cgroup v2 hierarchy is mounted (neither /sys/fs/cgroup nor /sys/fs/cgroup/unified)"
    trial = hierarchies()[0] / f"pm3-fleet-check-{os.getpid()}"
    try:
        trial.mkdir()
    except OSError as error:
        return f"no cgroup can be made in {trial.parent}: {error.strerror}"
    try:
        return None if (trial / "cgroup.kill").exists() else "no cgroup.kill: the kernel is older than 5.14"
    finally:
        trial.rmdir()


class Group:
    """One cgroup by its name; it may or may not exist."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.folders = [mount / name for mount in hierarchies()]

    def make(self) -> None:
        for folder in self.folders:
            folder.mkdir(parents=True, exist_ok=True)

    def joining(self, command: list[str]) -> list[str]:
        """The command so that it enters the group, which is made, before it begins."""
        self.make()
        return ["sh", "-c", f'echo $$ > "{self.folders[0]}/cgroup.procs" && exec "$@"', "sh", *command]

    def child(self, name: str) -> Group:
        return Group(f"{self.name}/{name}")

    def children(self) -> list[Group]:
        try:
            return [self.child(entry.name) for entry in self.folders[0].iterdir() if entry.is_dir()]
        except FileNotFoundError:
            return []

    def pids(self) -> Iterator[int]:
        """The processes of the group and of all groups below it."""
        for place, __, __ in os.walk(self.folders[0]):
            try:
                yield from map(int, Path(place, "cgroup.procs").read_text().split())
            except OSError:
                continue  # It went away between the two calls.

    def populated(self) -> bool:
        try:
            return "populated 1" in (self.folders[0] / "cgroup.events").read_text()
        except OSError:
            return False

    def wait_empty(self, timeout: float) -> bool:
        """Wait until no process is left; the kernel tells of it by POLLPRI on `cgroup.events`."""
        deadline = time.monotonic() + timeout
        try:
            events = os.open(self.folders[0] / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            poll = select.poll()
            poll.register(events, select.POLLPRI)
            while b"populated 1" in os.pread(events, 4096, 0):
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return False
                poll.poll(remaining * 1000)
            return True
        except OSError:
            return not self.populated()  # ENODEV: removed while we looked.
        finally:
            os.close(events)

    def kill(self) -> None:
        """SIGKILL to everything in it, at once and without a race against fork; wait until it is gone."""
        try:
            (self.folders[0] / "cgroup.kill").write_text("1")
        except FileNotFoundError:
            return
        if not self.wait_empty(30):
            raise TimeoutError(f"processes in {self.folders[0]} survive SIGKILL (uninterruptible in the kernel?)")

    def remove(self) -> None:
        """Remove the group and the groups below it. They must be empty of processes."""
        for folder in self.folders:
            for place, __, __ in os.walk(folder, topdown=False):
                os.rmdir(place)
