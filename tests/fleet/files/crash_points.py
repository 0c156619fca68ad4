"""Crash points on a real host: the agent is under systemd, and its instances are in cells. For pytest, on that host, as root.

The scenarios and what is checked after them are those of tests/integration/agent/test_crash_points.py; here is what another service
manager and cells have of their own. The installed agent is replaced by a build of it that dies where it is told, and put back at the end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.pm3.fleet.tests.integration.agent import crash_build
from ansible_collections.pm3.fleet.tests.integration.agent import test_crash_points as shared
from ansible_collections.pm3.fleet.tests.integration.agent.waiting import until
from soak import LIBRARY, cells, populated, unit

DATA_DIR = Path("/var/lib/pm3")


class SystemdHost(shared.Host):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder, [], DATA_DIR)
        self._cursor = journal("--lines=0", "--show-cursor").rpartition("-- cursor: ")[2].strip()

    def up(self) -> None:
        systemctl("start", "pm3")
        until(self.answering_pid, "the agent answers")

    def down(self) -> None:
        """An agent that dies on its way leaves to the next one what it has not ended."""
        systemctl("stop", "pm3")

    def told(self) -> str:
        return journal(f"--after-cursor={self._cursor}")

    def belongings(self) -> dict[str, Counter[str]]:
        return {
            "agent": shared.descriptors(self.pid()),
            "run folder": Counter(os.listdir(self.run_folder)),
            "cells": Counter(path.name for path in cells().iterdir() if path.is_dir()),
            "systemd": Counter({"descriptors": int(unit("NFileDescriptorStore"))}),
        }

    def quiet(self) -> shared.Outcome | None:
        """And each process in a cell is beside one that the agent knows, and none of those outside."""
        found = super().quiet()
        if found is None:
            return None
        known = {pid for pid in self.pids().values() if pid}
        inside = [populated(path) for path in cells().iterdir() if path.is_dir() and path.name != "anchor"]
        tracked = [known.intersection(pids) for pids in inside if pids]
        return found if all(tracked) and set().union(*tracked) == known else None


def systemctl(*words: str) -> None:
    subprocess.run(["systemctl", *words], check=True, timeout=60)


def journal(*words: str) -> str:
    command = ["journalctl", "--unit=pm3", "--output=cat", "--no-pager", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def use(identity: str) -> None:
    """The version that is to run, from the next start on."""
    new = LIBRARY / "new"
    new.symlink_to(identity)
    new.rename(LIBRARY / "current")
    systemctl("restart", "pm3")


@pytest.fixture(scope="module")
def installed() -> Iterator[None]:
    first = os.readlink(LIBRARY / "current")
    second = LIBRARY / first[::-1]
    shutil.copytree(LIBRARY / first, second, dirs_exist_ok=True)
    package = second / "pm3" / "agent"
    shutil.copyfile(crash_build.__file__, package / "points.py")
    for compiled in package.glob("__pycache__/points.*"):
        compiled.unlink()
    use(second.name)
    yield
    use(first)
    shutil.rmtree(second)
    forget()


def forget() -> None:
    """What one case has told, and what its programs wrote."""
    for name in (crash_build.TOLD, crash_build.DONE):
        (DATA_DIR / name).unlink(missing_ok=True)
    for path in (DATA_DIR / "logs").rglob("*"):
        if path.is_file():
            path.unlink()


@pytest.fixture
def host(installed: None, tmp_path: Path) -> Iterator[SystemdHost]:
    forget()
    one = SystemdHost(tmp_path)
    one.up()
    yield one
    with contextlib.suppress(shared.ClientError):
        one.apply({}, state="absent")


def each_point_once() -> list[tuple[shared.Scenario, str]]:
    found, reached = [], set[str]()
    for scenario, point in shared.CASES:
        points = {one.partition(":")[0] for one in point.split(",")}
        if not points <= reached:
            found.append((scenario, point))
            reached |= points
    assert reached == set(crash_build.POINTS)
    return found


NUMBER, COUNT = map(int, os.environ.get("PM3_SHARE", "0/1").split("/"))  # this host's share of the cases


@pytest.mark.parametrize(
    ("scenario", "point"),
    [pytest.param(*case, id=f"{case[0].__name__}-{case[1]}") for case in each_point_once()[NUMBER::COUNT]],
)
def test_a_crash_at(host: SystemdHost, scenario: shared.Scenario, point: str) -> None:
    shared.check_crash(host, scenario, point)
