"""Limits of instances as a whole, where no cgroup can keep them: an agent under its keeper has none. Those that are kept are tested on a
machine of their own (tests/machine)."""

from __future__ import annotations

import json

from .conftest import Agent

LIMITED = """
[calm]
command = "sleep 1000"

[hungry]
command = "sleep 1000"
memory_max = "64M"
cpu_max = "50%"
"""
WHY = "cannot be kept on this host, there is no cgroup for it: the agent does not run as a systemd service"


def test_what_nobody_would_keep_is_refused_and_nothing_is_done(agent: Agent) -> None:
    path = agent.file(LIMITED)
    made = agent.pm3("apply", str(path), check=False)
    assert made.returncode == 1
    for field in ("memory_max", "cpu_max"):
        assert f"[hungry] {field}: {WHY}" in made.stderr
    assert agent.instances() == {}
    made = agent.pm3("apply", str(path), "--only", "calm", check=False)
    assert made.returncode == 0, made.stderr
    assert list(agent.instances()) == ["calm"]


def test_a_plan_warns_of_it(agent: Agent) -> None:
    foreseen = json.loads(agent.pm3("plan", str(agent.file(LIMITED)), "--json").stdout)
    assert [one["action"] for one in foreseen["instances"]] == ["created", "created"]
    assert [text.partition(":")[0] for text in foreseen["warnings"]] == ["[hungry] memory_max", "[hungry] cpu_max"]
    assert WHY in foreseen["warnings"][0]


def test_a_start_by_hand_says_so_too(agent: Agent) -> None:
    agent.file(LIMITED)
    agent.pm3("start", check=False)
    found = agent.instance("hungry")
    assert found["status"] == "errored"
    assert "memory_max needs a cgroup for each instance" in json.dumps(found)
    assert agent.instance("calm")["status"] == "online"
