# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What real processes use, and limits that real processes exceed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent import cells, usage
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.cells import Cells
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.descendants import Survey
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.loop import Loop
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.requests import Requests
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.spawn import Process, start_time
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.tasks import Pace, Task
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.usage import MemoryLimits, Meter

from .conftest import Agent
from .waiting import DEADLINE, until

MB = 1 << 20

# Reads all of its 64 MB, so that they are resident, then forks: nobody writes, so the pages stay common.
PREFORKING = """
import os, sys, time
data = bytearray(os.urandom(1 << 20) * 64)
children = [os.fork() for number in range(4) if os.getppid() == PARENT]
""".replace("PARENT", "int(sys.argv[1])")
PREFORKING += "sys.stdout.write('x'); sys.stdout.flush(); time.sleep(1000)\n"
# A shell, whose child is a Python, whose child has the memory.
DEEP = """
import os, sys, time
if os.fork() == 0:
    data = bytearray(os.urandom(1 << 20) * 64)
    open(sys.argv[1], "w").close()
time.sleep(1000)
"""
# Lets a child of its own work, and waits for that.
BUSY = """
import os, sys, time
pid = os.fork()
if pid == 0:
    while time.process_time() < 0.3:
        pass
    os._exit(0)
os.waitpid(pid, 0)
sys.stdout.write("x"); sys.stdout.flush()
time.sleep(1000)
"""


@pytest.fixture
def loop() -> Iterator[Loop]:
    raised: list[BaseException] = []
    one = Loop(raised.append)
    yield one
    one.close()
    assert not raised


class Program:
    """A Python program in a session of its own, as an instance is."""

    def __init__(self, code: str, *words: str) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", code, *words], stdout=subprocess.PIPE, start_new_session=True
        )
        self.process = Process(self.popen.pid, start_time(self.popen.pid) or 0, -1)

    def read(self, size: int) -> None:
        assert self.popen.stdout is not None
        assert len(self.popen.stdout.read(size)) == size

    def end(self) -> None:
        cells.kill_all(lambda: session_of(self.process))
        self.popen.wait()
        assert self.popen.stdout is not None
        self.popen.stdout.close()


def session_of(process: Process) -> list[int]:
    """All processes in the session that this one leads."""
    found = []
    for name in os.listdir("/proc"):
        with contextlib.suppress(ValueError, ProcessLookupError):  # no process, or one that is gone
            if os.getsid(int(name)) == process.pid:
                found.append(int(name))
    return found


@pytest.fixture
def program() -> Iterator[Callable[..., Program]]:
    begun: list[Program] = []

    def begin(code: str, *words: str) -> Program:
        begun.append(Program(code, *words))
        return begun[-1]

    yield begin
    for one in begun:
        one.end()


@pytest.fixture
def preforking(program: Callable[..., Program]) -> Program:
    one = program(PREFORKING, str(os.getpid()))
    one.read(5)
    return one


def exceeded(loop: Loop, pids: list[int], limit: int) -> int | None:
    task = Task(usage.exceeds(pids, limit, Pace(loop))).start()
    task.begin(lambda _task: loop.stop())
    if not task.done:
        run(loop)
    value: int | None = task.value()
    return value


def run(loop: Loop) -> None:
    """Until something stops it."""
    too_late = loop.after(DEADLINE, loop.stop)
    loop.run()
    assert too_late.callback is not None, f"nothing came in {DEADLINE:g} s"
    too_late.cancel()


# Memory


def test_what_processes_share_counts_once(loop: Loop, preforking: Program) -> None:
    pids = session_of(preforking.process)
    assert len(pids) == 5
    assert usage.memory(pids) > 5 * 64 * MB  # from above
    found = exceeded(loop, pids, 60 * MB)
    assert found is not None
    assert 64 * MB < found < 2 * 64 * MB
    assert exceeded(loop, pids, found + 10 * MB) is None


def test_the_pages_are_asked_for_only_above_the_limit(
    loop: Loop, preforking: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = session_of(preforking.process)
    asked: list[int] = []
    truth = usage.proportional
    monkeypatch.setattr(usage, "proportional", lambda pid: asked.append(pid) or truth(pid))
    assert exceeded(loop, pids, usage.memory(pids) + MB) is None
    assert not asked
    assert exceeded(loop, pids, MB) is not None
    assert asked == pids


def test_processes_that_are_gone_use_nothing(loop: Loop, program: Callable[..., Program]) -> None:
    one = program("pass")
    one.popen.wait()
    assert usage.memory([one.popen.pid]) == usage.proportional(one.popen.pid) == 0
    assert exceeded(loop, [one.popen.pid], 0) is None
    assert Meter().read("a", one.process, [one.popen.pid]) is None


def test_children_of_children_are_shown(agent: Agent) -> None:
    ready = agent.folder / "ready"
    (agent.folder / "deep.py").write_text(DEEP)
    command = f"sh -c '{sys.executable} -I -S deep.py {ready}; true'"
    agent.apply({"deep": {"command": command, "cwd": str(agent.folder)}, "flat": {"command": "sleep 1000"}})
    until(ready.exists, "the memory is there")
    shown = {one["name"]: one for one in agent.ask("list")["processes"]}
    assert 64 * MB < shown["deep"]["memory_bytes"] < 200 * MB
    assert 0 < shown["flat"]["memory_bytes"] < 20 * MB
    assert agent.ask("info", name="deep")["info"]["memory_bytes"] > 64 * MB
    assert agent.instance("deep")["memory_bytes"] > 64 * MB
    agent.ask("stop", names=["deep"])
    stopped = agent.ask("info", name="deep")["info"]
    assert {"memory_bytes", "cpu_percent"}.isdisjoint(stopped)


# CPU


def test_cpu_is_of_all_processes_since_the_last_look(program: Callable[..., Program]) -> None:
    one = program(BUSY)
    one.read(1)
    begun = one.process.start_time / usage.TICKS
    now = begun + 10.0
    meter = Meter(lambda: now)

    def percent() -> float:
        used = meter.read("a", one.process, session_of(one.process))
        assert used is not None
        return used.cpu_percent

    over_its_life = percent()
    # 0.3 s of 10, and what it costs to start a Python.
    assert 2.9 <= over_its_life < 30
    now = begun + 10.5
    assert percent() == over_its_life  # too soon
    now = begun + 20.0
    assert percent() < 0.5  # it sleeps
    now = begun + 100.0
    assert 0.29 <= percent() <= over_its_life / 9  # too late: over its life
    meter.keep(["b"])
    now = begun + 100.1
    assert 0.29 <= percent() <= over_its_life / 9
    assert not Meter(lambda: now)._last


def test_the_meter_forgets(program: Callable[..., Program]) -> None:
    one = program(BUSY)
    meter = Meter()
    for number in range(10):
        meter.read(str(number), one.process, [one.popen.pid])
    meter.keep(["3", "7"])
    assert sorted(meter._last) == ["3", "7"]
    meter.read("3", one.process, [])
    assert sorted(meter._last) == ["7"]


# Limits


def test_who_exceeds_a_limit_is_told_once(loop: Loop, preforking: Program) -> None:
    told: list[tuple[str, int]] = []
    limits = MemoryLimits(loop, Cells(loop, None, "/run").survey, interval=0.01)
    limits.limit("low", preforking.process, 30 * MB, lambda used: told.append(("low", used)))
    limits.limit("high", preforking.process, 250 * MB, lambda used: told.append(("high", used)))
    limits.limit("replaced", preforking.process, MB, lambda used: told.append(("replaced", used)))
    limits.limit("replaced", preforking.process, 10**12, lambda used: told.append(("replaced", used)))
    limits.limit("ended", preforking.process, MB, lambda used: told.append(("ended", used)))
    limits.unlimit("ended")

    def last(used: int) -> None:
        told.append(("high", used))
        loop.stop()

    def lower() -> None:
        limits.limit("high", preforking.process, 31 * MB, last)

    loop.after(0.1, lower)
    run(loop)
    assert [name for name, _used in told] == ["low", "high"]
    assert all(64 * MB < used < 250 * MB for _name, used in told)
    limits.close()


def test_without_limits_there_is_no_timer(loop: Loop) -> None:
    limits = MemoryLimits(loop, lambda: lambda _spawn_id, _leader: [os.getpid()], interval=0.001)
    here = Process(os.getpid(), start_time(os.getpid()) or 0, -1)
    for name in ("a", "b"):
        limits.limit(name, here, 10**12, lambda used: None)
    for name in ("a", "b", "c"):
        limits.unlimit(name)
    assert not [timer for timer in loop._timers if timer.callback is not None]
    limits.limit("a", here, 1, lambda used: loop.stop())
    run(loop)
    assert not [timer for timer in loop._timers if timer.callback is not None]


def test_one_that_raises_ends_no_other_limit() -> None:
    raised: list[BaseException] = []
    loop = Loop(raised.append)
    here = Process(os.getpid(), start_time(os.getpid()) or 0, -1)
    limits = MemoryLimits(loop, lambda: lambda _spawn_id, _leader: [os.getpid()], interval=0.001)

    def fails(_used: int) -> None:
        raise ValueError("wrong")

    limits.limit("a", here, 1, fails)
    limits.limit("b", here, 1, lambda used: loop.stop())
    run(loop)
    assert [str(one) for one in raised] == ["wrong"]
    loop.close()


def test_a_thousand_limits_are_one_look_and_hold_nobody(loop: Loop) -> None:
    here = Process(os.getpid(), start_time(os.getpid()) or 0, -1)
    looks: list[int] = []
    asked: list[str] = []
    turns: list[int] = []

    def survey() -> Survey:
        looks.append(len(asked))

        def members(spawn_id: str, _leader: Process | None) -> list[int]:
            asked.append(spawn_id)
            return [os.getpid()] * 20

        return members

    def turn() -> None:
        if looks and len(asked) < 1000:
            turns.append(len(asked))
        if len(looks) > 1:
            loop.stop()
        else:
            loop.after(0, turn)

    limits = MemoryLimits(loop, survey, interval=0.05)
    for number in range(1000):
        limits.limit(str(number), here, 10**12, lambda used: None)
    turn()
    run(loop)
    assert looks[:2] == [0, 1000]
    assert len(set(turns)) > 2  # others had their turns in the middle of it
    limits.close()


# One look at the host


def test_one_look_serves_all(loop: Loop, program: Callable[..., Program], monkeypatch: pytest.MonkeyPatch) -> None:
    programs = [program(BUSY) for _number in range(3)]
    for one in programs:
        one.read(1)
    folders: list[Any] = []
    scanned = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: folders.append(path) or scanned(path))
    found = Cells(loop, None, "/run").survey()
    assert [found("", one.process) for one in programs] == [[one.popen.pid] for one in programs]
    assert folders == ["/proc"]
    # The number of a process that is another one by now.
    assert found("", Process(programs[0].popen.pid, 1, -1)) == []
    assert found("", None) == []


def test_a_cell_is_asked_itself(tmp_path: Path, loop: Loop) -> None:
    (tmp_path / "a1").mkdir()
    (tmp_path / "a1" / "cgroup.procs").write_text("17\n4\n")
    found = Cells(loop, str(tmp_path), "/run").survey()
    assert found("a1", None) == [17, 4]
    assert found("b2", None) == []


def test_lists_are_whole_while_instances_come_and_go(agent: Agent) -> None:
    over = threading.Event()
    wrong: list[Any] = []
    seen: list[int] = []

    def ask() -> None:
        while not over.is_set():
            for kind, key in (("list", "processes"), ("snapshot", "instances")):
                names = [one["name"] for one in agent.ask(kind)[key]]
                seen.append(len(names))
                if len(set(names)) != len(names):
                    wrong.append(names)
            info = agent.ask("info", name="web")
            if info["type"] != "process_detail":
                wrong.append(info)

    agent.apply({"web": {"command": "sleep 1000", "instances": 3, "min_uptime": 1}})
    thread = threading.Thread(target=ask)
    thread.start()
    try:
        for count in (120, 2, 120, 2):
            seen.clear()
            assert agent.apply({"web": {"command": "sleep 1000", "instances": count, "min_uptime": 1}})["ok"]
            until(lambda count=count: count in seen, f"a list shows {count}")
    finally:
        over.set()
        thread.join(DEADLINE)
    assert not wrong


def test_what_is_removed_in_the_middle_of_a_list_is_left_out(loop: Loop) -> None:
    there = {name: SimpleNamespace(name=name, spawn_id=name, running=None) for name in "abc"}
    requests: Any = object.__new__(Requests)  # this part of it needs no more than that
    requests._supervisor = SimpleNamespace(
        loop=loop, instances=dict(there), survey=Cells(loop, None, "/run").survey, ledger=SimpleNamespace(flush=list)
    )
    requests._meter = Meter()

    def show(one: Any, _used: object) -> str:
        requests._supervisor.instances.pop("b", None)
        return str(one.name)

    task = Task(requests._shown(there.values(), show)).start()
    task.begin(lambda _task: loop.stop())
    if not task.done:
        run(loop)
    assert task.value() == ["a", "c"]


def test_a_list_loads_no_library(agent: Agent) -> None:
    agent.apply({"web": {"command": "sleep 1000"}})
    assert agent.ask("list")["processes"][0]["memory_bytes"] > 0
    assert "psutil" not in Path(f"/proc/{agent.pid()}/maps").read_text()
