# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests about processes by their names, without their definitions, as the module `process` makes them."""

from __future__ import annotations

from typing import Any

from .conftest import Agent, alive
from .waiting import until

SLEEP = {"command": "sleep 1000", "min_uptime": 1}


def known(agent: Agent, *names: str, kind: str = "apply", project: str = "default", **fields: Any) -> dict[str, Any]:
    """What the module sends where no command is given."""
    about = {name: fields.pop("known", {}) for name in names}
    return agent.ask(kind, **{"project": project, "known": about, "prune": False, **fields})


def single(agent: Agent, name: str, kind: str = "apply", **table: Any) -> dict[str, Any]:
    """What the module sends where one is."""
    return agent.ask(kind, project="default", definitions={name: {**SLEEP, **table}}, prune=False)


def actions(result: dict[str, Any]) -> dict[str, str]:
    assert result["type"] == "result", result
    return {row["name"]: row["action"] for row in result["instances"]}


def test_each_is_defined_on_its_own_and_nothing_is_pruned(agent: Agent) -> None:
    assert actions(single(agent, "web")) == {"web": "created"}
    assert actions(single(agent, "worker", depends_on=["web"])) == {"worker": "created"}
    assert actions(single(agent, "worker", depends_on=["web"])) == {"worker": "none"}
    assert set(agent.pids()) == {"web", "worker"}
    assert {one["project"] for one in agent.instances().values()} == {"default"}
    wrong = single(agent, "other", depends_on=["wep"])
    assert [problem["field"] for problem in wrong["problems"]] == ["depends_on"]
    circle = single(agent, "web", depends_on=["worker"])
    assert "circular" in circle["message"]


def test_states_of_what_is_known(agent: Agent) -> None:
    single(agent, "web")
    single(agent, "other")
    before = agent.pids()
    assert actions(known(agent, "web")) == {"web": "none"}
    assert actions(known(agent, "web", state="restarted", kind="plan")) == {"web": "restarted"}
    assert agent.pids() == before
    restarted = known(agent, "web", state="restarted")
    assert (actions(restarted), restarted["project"], restarted["revision"]) == ({"web": "restarted"}, "default", 2)
    assert actions(known(agent, "web", state="stopped")) == {"web": "stopped"}
    assert actions(known(agent, "web", state="stopped")) == {"web": "none"}
    assert actions(known(agent, "web")) == {"web": "started"}
    assert agent.pids()["other"] == before["other"]
    assert actions(known(agent, "web", "nothing", state="absent")) == {"web": "removed"}
    gone = known(agent, "web", "nothing", state="absent")
    assert (gone["changed"], gone["instances"]) == (False, [])
    assert set(agent.pids()) == {"other"}


def test_instances_are_changed_and_everything_else_stays(agent: Agent) -> None:
    single(agent, "web", env={"PORT": "@{8000 + instance}"}, secrets={"TOKEN": "correct-horse"}, cwd=str(agent.folder))
    before = agent.ask("snapshot")["definitions"]["default"]["web"]
    scaled = known(agent, "web", known={"instances": 2})
    assert actions(scaled) == {"web:0": "rolled", "web:1": "created"}
    after = agent.ask("snapshot")["definitions"]["default"]["web"]
    assert after == {**before, "instances": 2}
    assert not known(agent, "web", known={"instances": 2})["changed"]
    wrong = known(agent, "web", known={"instances": "many"})
    assert [(one["table"], one["field"]) for one in wrong["problems"]] == [("web", "instances")]


def test_of_another_project(agent: Agent) -> None:
    agent.apply({"web": SLEEP, "db": SLEEP})
    before = agent.pids()
    result = known(agent, "web", state="restarted")
    assert (actions(result), result["project"], result["revision"]) == ({"web": "restarted"}, "shop", 1)
    assert agent.pids()["db"] == before["db"]
    assert actions(known(agent, "web", state="stopped")) == {"web": "stopped"}
    for refused in (
        known(agent, "web", known={"instances": 3}),
        known(agent, "web", state="absent"),
        single(agent, "web", nice=1),
    ):
        assert [one["table"] for one in refused["problems"]] == ["web"]
        assert "project shop" in refused["message"]
    assert set(agent.pids()) == {"web", "db"}


def test_of_several_projects_and_of_none(agent: Agent) -> None:
    agent.apply({"web": SLEEP})
    single(agent, "clock")
    before = agent.pids()
    refused = known(agent, "web", "clock", state="restarted")
    assert refused["owners"] == {"shop": ["web"], "default": ["clock"]}
    wrong = known(agent, "wep", "clock:0", "clock", state="restarted")
    assert wrong["unknown"] == ["wep", "clock:0"]
    assert [one["message"].rpartition("; ")[2] for one in wrong["problems"]] == [
        "did you mean web?",
        "is an instance; expected the name of its process, clock".rpartition("; ")[2],
    ]
    assert agent.pids() == before


def test_what_was_started_by_hand_is_taken_over(agent: Agent) -> None:
    agent.file('[job]\ncommand = "sleep 1000"\nmin_uptime = 1\n')
    agent.pm3("start")
    pid = agent.pids()["job"]
    assert actions(known(agent, "job")) == {"job": "none"}
    assert (agent.instance("job")["project"], agent.pids()["job"]) == ("default", pid)


def test_a_name_starts_what_does_not_start_by_itself(agent: Agent) -> None:
    single(agent, "job", autostart=False)
    assert agent.pids() == {"job": None}
    assert actions(known(agent, "job")) == {"job": "started"}
    assert alive(agent.pids()["job"])


def test_a_restart_that_had_to_wait_brings_back_nothing_old(agent: Agent) -> None:
    """It takes the definition of when its turn comes: not that of when it was asked for."""
    single(agent, "web", env={"RELEASE": "41"})
    hook = f"while ! test -e {agent.folder}/go; do sleep 0.02; done"
    apply = {"type": "apply", "project": "default", "prune": False}
    busy = agent.client.stream({**apply, "definitions": {"slow": {**SLEEP, "pre_start": hook}}})
    until(lambda: len(agent.ask("snapshot")["revisions"]["default"]) == 2, "the project is busy")
    release = agent.client.stream({**apply, "definitions": {"web": {**SLEEP, "env": {"RELEASE": "42"}}}})
    for _turn in range(10):
        agent.ask("hello")  # whoever has asked before has its turn before
    restart = agent.client.stream({**apply, "known": {"web": {}}, "state": "restarted"})
    for _turn in range(10):
        agent.ask("hello")
    (agent.folder / "go").touch()
    expected = [{"slow": "created"}, {"web": "rolled"}, {"web": "restarted"}]
    assert [actions(next(one)) for one in (busy, release, restart)] == expected
    assert agent.ask("snapshot")["definitions"]["default"]["web"]["env"] == {"RELEASE": "42"}
