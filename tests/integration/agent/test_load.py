"""A thousand instances in one file: everything that is right for one is right for a thousand, and costs the agent nothing that stays.

How long things take is for tests/benchmarks.
"""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.wire.client import Client

from .conftest import Agent, alive
from .waiting import until

# Each takes five descriptors of the agent.
COUNT = min(1000, resource.getrlimit(resource.RLIMIT_NOFILE)[1] // 6)
PATIENCE = 120.0  # seconds of silence: a thousand processes on a busy machine
GROWTH = 1.1  # times the memory of the first round
TABLES: dict[str, Any] = {
    f"w{number}": {"command": "sleep 1000", "env": {"N": str(number)}} for number in range(COUNT // 2)
}
DEFINITIONS: dict[str, Any] = {
    **TABLES,
    "many": {"command": "sleep 1000", "instances": COUNT - COUNT // 2, "min_uptime": 50},
}


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    one = Agent(tmp_path)
    one.client = Client(str(one.data_dir), timeout=PATIENCE)
    one.pm3("list")
    yield one
    one.end()


def natural(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def descriptors(agent: Agent) -> int:
    return len(os.listdir(f"/proc/{agent.pid()}/fd"))


def memory(agent: Agent) -> int:
    (line,) = [
        line for line in Path(f"/proc/{agent.pid()}/status").read_text().splitlines() if line.startswith("VmRSS:")
    ]
    return int(line.split()[1])


def running(agent: Agent) -> dict[str, int]:
    """The pids of all instances, each of them alive, no two the same."""
    shown = agent.ask("list")["processes"]
    names = [one["name"] for one in shown]
    assert names == sorted(names, key=natural)
    assert {one["status"] for one in shown} == {"online"}
    pids = {one["name"]: one["pid"] for one in shown}
    assert len(set(pids.values())) == len(pids) == COUNT
    assert all(alive(pid) for pid in pids.values())
    return pids


def test_a_thousand_start_stay_survive_and_stop(agent: Agent) -> None:
    empty = descriptors(agent)
    measured = []
    for _round in range(4):
        answer = agent.apply(DEFINITIONS)
        assert answer["ok"], answer["message"]
        assert answer["summary"] == {"ok": 0, "changed": COUNT, "failed": 0, "skipped": 0}
        pids = running(agent)

        again = agent.apply(DEFINITIONS)
        assert again["summary"] == {"ok": COUNT, "changed": 0, "failed": 0, "skipped": 0}
        assert running(agent) == pids
        assert len(agent.pm3("list").stdout.splitlines()) > COUNT

        assert agent.ask("stop")["type"] == "success"
        assert not [pid for pid in pids.values() if alive(pid)]
        assert {one["status"] for one in agent.ask("list")["processes"]} == {"stopped"}
        # A checkpoint has some open for a moment, in its own thread.
        until(lambda: descriptors(agent) <= empty + 2, "the descriptors are given back")
        measured.append(memory(agent))
    assert measured[-1] < GROWTH * measured[-2]  # the first rounds fill what the later ones use again


def test_a_crash_leaves_a_thousand_alone(agent: Agent) -> None:
    assert agent.apply(DEFINITIONS)["ok"]
    pids = running(agent)
    before = descriptors(agent)
    for _again in range(2):
        agent.crash()
        assert running(agent) == pids
        assert agent.apply(DEFINITIONS)["changed"] is False
        until(
            lambda: descriptors(agent) <= before + 2, "no descriptor more than before"
        )  # two for the keeper's list of ends
    assert agent.ask("restart", names=["many"])["type"] == "success"
    after = running(agent)
    assert all((after[name] == pid) == (not name.startswith("many:")) for name, pid in pids.items())
    removed = agent.apply({"w1": TABLES["w1"]})
    assert removed["ok"]
    assert list(agent.pids()) == ["w1"]
    assert not [pid for name, pid in after.items() if name != "w1" and alive(pid)]
