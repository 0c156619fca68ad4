"""What the agent does without descriptors, and without room on its disk: it says so, what runs goes on, and all is well afterwards."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from .conftest import Agent, alive
from .test_doctor import facts
from .test_races import stored_pids
from .waiting import until

SLEEP = {"command": "sleep 1000", "min_uptime": 0}


@contextlib.contextmanager
def descriptors_below(agent: Agent, number: int) -> Iterator[None]:
    """The agent gets no descriptor of that number or above; those that it has it keeps."""
    pid = agent.pid()
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (number, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def test_more_instances_than_descriptors(agent: Agent) -> None:
    few = {"web": {**SLEEP, "instances": 3}}
    many = {**few, "more": {**SLEEP, "instances": 40, "max_restarts": 1000}}
    assert agent.apply(few)["ok"]
    before, pid = agent.pids(), agent.pid()
    with descriptors_below(agent, 64 + 5 * 20):
        made = agent.apply(many)
        assert made["reverted"], made
        reasons = [row["reason"] for row in made["instances"] if row["action"] == "failed"]
        assert reasons, made
        assert all("too many open files" in reason for reason in reasons), reasons
        # It still answers, and ends what ought to end.
        assert agent.pids() == before
        assert agent.ask("stop", names=["web:1"])["type"] == "success"
        assert not alive(before["web:1"])
    assert agent.pid() == pid
    made = agent.apply(many)
    assert made["ok"], made
    assert all(map(alive, agent.pids().values()))
    assert len(agent.pids()) == 43
    assert not agent.apply(many)["changed"]
    assert agent.pids()["web:0"] == before["web:0"]
    assert "Traceback" not in (agent.data_dir / "agent.log").read_text()


def test_a_crash_with_more_descriptors_than_a_usual_limit_allows(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip("this machine allows too few descriptors")
    agent = Agent(tmp_path)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        agent.pm3("list")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        assert agent.apply({"web": {**SLEEP, "instances": 400}})["ok"]
        before = agent.pids()
        agent.crash()
        assert agent.pids() == before
        assert agent.ask("restart", names=["web:0"])["type"] == "success"
        limits = Path(f"/proc/{agent.pids()['web:0']}/limits").read_text()
        assert re.search(r"^Max open files +1024 ", limits, re.MULTILINE), limits
    finally:
        agent.end()


def test_without_a_single_descriptor(agent: Agent) -> None:
    """The agent cannot even look at what is left of a process that has ended. It leaves that to the next one, and all goes on."""
    say = "sh -c 'echo begun; exec sleep 1000'"
    assert agent.apply({"web": {"command": say, "instances": 2, "min_uptime": 0, "max_restarts": 1000}})["ok"]
    before, pid = agent.pids(), agent.pid()
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, 1024))  # below are those that everybody has
    os.kill(before["web:0"], signal.SIGKILL)
    until(lambda: not alive(pid), "the agent has ended")
    until(lambda: agent.answering_pid() is not None, "another one answers")
    until(lambda: agent.pids()["web:0"] not in (None, before["web:0"]), "it is started again")
    assert agent.pids()["web:1"] == before["web:1"]
    assert agent.instance("web:0")["last_exit"]["signal"] == signal.SIGKILL
    until(lambda: agent.log("web:0-out") == "begun\nbegun\n", "both have said it")
    assert "Too many open files" in (agent.data_dir / "agent.log").read_text()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Agent]:
    """An agent whose data dir is on a disk of its own, of two megabytes."""
    one = Agent(tmp_path)
    one.data_dir.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "pm3-test", str(one.data_dir)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        one.pm3("list")
        try:
            yield one
        finally:
            one.end()
    finally:
        subprocess.run(["umount", "--lazy", one.data_dir], check=True)


@contextlib.contextmanager
def full(agent: Agent) -> Iterator[None]:
    """Not a byte more fits on the disk."""
    filler = agent.data_dir / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
    try:
        yield
    finally:
        filler.unlink()


def test_a_full_disk_ends_nothing_and_changes_nothing(small: Agent) -> None:
    web = {"web": {**SLEEP, "instances": 2, "max_restarts": 1000}}
    assert small.apply(web)["ok"]
    before = small.pids()
    with full(small):
        large = {
            f"PART_{number}": "x" * 100_000 for number in range(8)
        }  # more than the store's file has room for inside
        made = small.apply({"web": {**web["web"], "env": large}, "new": SLEEP})
        assert "disk is full" in made["message"], made
        assert small.pids() == before
        os.kill(before["web:0"], signal.SIGKILL)
        until(lambda: small.pids()["web:0"] not in (None, before["web:0"]), "it is started again all the same")
        assert small.ask("stop", names=["web:1"])["type"] == "success"
        assert not alive(before["web:1"])
    now = small.pids()
    until(lambda: stored_pids(small) == now, "what happened is stored once that is possible")
    small.crash()
    assert small.pids() == now
    assert small.instance("web:1")["status"] == "stopped"
    assert small.apply(web)["ok"]
    assert small.pids()["web:0"] == now["web:0"]


def test_an_agent_that_dies_on_a_full_disk_is_followed_by_one_that_finds_everything(small: Agent) -> None:
    web = {"web": {**SLEEP, "command": "sh -c 'echo begun; exec sleep 1000'", "instances": 2}}
    assert small.apply(web)["ok"]
    assert small.ask("restart", names=["web:0"])["type"] == "success"
    until(lambda: small.log("web:0-out") == "begun\nbegun\n", "it has begun twice")
    before = small.pids()
    with full(small):
        pid = small.answering_pid()
        os.kill(small.pid(), signal.SIGKILL)
        until(lambda: small.answering_pid() not in (None, pid), "another agent answers")
        assert small.pids() == before
        assert small.instance("web:0")["total_restarts"] == 1
        assert small.log("web:0-out") == "begun\nbegun\n"
        assert small.ask("stop", names=["web:1"])["type"] == "success"
        assert not alive(before["web:1"])
    assert small.apply(web)["ok"]
    assert small.pids()["web:0"] == before["web:0"]


def test_lines_for_which_there_is_no_room_are_counted_and_hold_nobody_up(small: Agent) -> None:
    go = small.folder / "go"
    count = f"n=0; while [ $n -lt 20 ]; do n=$((n+1)); echo $n; done; while ! test -e {go}; do sleep 0.01; done"
    script = f"{count}; while [ $n -lt 60000 ]; do n=$((n+1)); echo $n; done; echo over >&2; exec sleep 1000"
    assert small.apply({"web": {**SLEEP, "command": f"sh -c '{script}'", "stderr_file": str(small.folder / "err")}})[
        "ok"
    ]
    pid = small.pids()["web"]
    log = small.data_dir / "logs" / "web-out.log"
    until(lambda: log.exists() and log.read_text().endswith("20\n"), "it has begun")
    with full(small):
        go.touch()
        until(lambda: (small.folder / "err").read_text() == "over\n", "it has written all, and was not held up")
    assert small.pids()["web"] == pid
    kept = [int(line) for line in log.read_text().splitlines()]
    assert kept[:20] == list(range(1, 21))
    backwards = [number for before, number in pairwise(kept) if number <= before]
    assert len(backwards) <= 1, "what is there is in order and whole, but for a line that what was lost has cut"
    assert "web lost" in facts(small)["output"]["text"]
