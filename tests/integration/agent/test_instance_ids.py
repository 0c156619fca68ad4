# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Instances by their numbers: `instance_ids = [7, 12]` runs web:7 and web:12, and a change of the list touches no other."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Agent, alive
from .test_agent import actions
from .test_known import known
from .test_pm3_changes import ended, start
from .test_roll import rollback
from .test_upgrade import NEW, OLD, Installed, installed
from .waiting import until

__all__ = ["installed"]  # a fixture

WEB = {"command": "sleep 1000", "min_uptime": 1}


def web(*numbers: int, **fields: Any) -> dict[str, Any]:
    return {"web": {**WEB, "instance_ids": list(numbers), **fields}}


def applied(agent: Agent, *numbers: int, **fields: Any) -> dict[str, str]:
    """What check mode says, and then what is done; they have to be the same."""
    planned = agent.ask("plan", project="shop", definitions=web(*numbers, **fields), base=str(agent.folder))
    done = agent.apply(web(*numbers, **fields))
    assert done["ok"], done
    told = [[(row["name"], row["action"], row["reason"]) for row in one["instances"]] for one in (planned, done)]
    assert told[0] == told[1]
    again = agent.apply(web(*numbers, **fields))
    assert not again["changed"], again["report"]
    return actions(done)


def environment(pid: int) -> dict[str, str]:
    entries = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(entry.split("=", 1) for entry in entries if entry)


def names(numbers: Iterable[int]) -> list[str]:
    return [f"web:{number}" for number in numbers]


def test_each_instance_is_told_its_number(agent: Agent) -> None:
    fields: dict[str, Any] = {"env": {"PORT": "@{3000 + instance}", "NAME": "@{name}"}}
    assert list(applied(agent, 12, 100, 7, **fields)) == names([7, 12, 100])
    for number in (7, 12, 100):
        env = environment(agent.pids()[f"web:{number}"])
        assert env["PM3_INSTANCE_ID"] == env["NODE_APP_INSTANCE"] == str(number)
        assert (env["PM3_INSTANCE_COUNT"], env["PM3_NAME"]) == ("3", f"web:{number}")
        assert (env["PORT"], env["NAME"]) == (str(3000 + number), f"web:{number}")


def test_whoever_lists_them_lists_them_in_the_order_of_their_numbers(agent: Agent) -> None:
    applied(agent, 100, 7, 12)
    in_order = names([7, 12, 100])
    assert list(agent.instances()) == in_order
    listed = agent.pm3("list").stdout
    places = [listed.index(f" {name} ") for name in in_order]
    assert places == sorted(places)
    plan = json.loads(agent.pm3("apply", "--project", "shop", "--json", str(agent.file(TOML))).stdout.splitlines()[-1])
    assert [row["name"] for row in plan["instances"]] == in_order
    assert [line.split(":")[1] for line in agent.pm3("info", "web").stdout.splitlines() if line.startswith("web:")] == [
        *("7", "12", "100")
    ]
    assert agent.pm3("stop", "web").stdout.splitlines()[0] == "stopped: web:7, web:12, web:100"


TOML = """
[web]
command = "sleep 1000"
min_uptime = 1
instance_ids = [100, 7, 12]
"""


def test_a_change_of_the_list_touches_what_it_adds_and_removes(agent: Agent) -> None:
    assert set(applied(agent, 2, 7, 12).values()) == {"created"}
    before = agent.pids()
    assert applied(agent, 7, 9, 12, 30) == {
        "web:7": "none",
        "web:9": "created",
        "web:12": "none",
        "web:30": "created",
        "web:2": "removed",
    }
    after = agent.pids()
    assert {name: after[name] for name in names([7, 12])} == {name: before[name] for name in names([7, 12])}
    assert list(after) == names([7, 9, 12, 30])
    assert not alive(before["web:2"])


def test_to_none_and_back(agent: Agent) -> None:
    """A host that has no number for now still knows the process."""
    applied(agent, 3, 5)
    before = agent.pids()
    assert applied(agent) == {"web:3": "removed", "web:5": "removed"}
    assert agent.pids() == {}
    assert not [pid for pid in before.values() if alive(pid)]
    restarted = known(agent, "web", state="restarted")
    assert (restarted["changed"], restarted["instances"]) == (False, [])
    shown = agent.ask("snapshot", names=["web"])
    assert (shown["instances"], shown["definitions"]["shop"]["web"]["instance_ids"]) == ([], [])
    assert agent.ask("snapshot", names=["wep"])["message"].startswith("process or group not found: wep")
    for command, said in {
        "stop": "stopped",
        "restart": "restarted",
        "reload": "reloaded",
        "flush": "flushed logs",
    }.items():
        assert agent.ask(command, names=["web"])["message"] == f"{said}: "
    assert agent.pm3("log", "web").stdout == ""
    for question in ({"kind": "info"}, {"kind": "signal", "signal": "HUP"}):
        assert agent.ask(**question, name="web")["message"] == "process 'web' has no instance here"
    assert agent.ask("stop", names=["wep"])["message"] == "process or group not found: wep; did you mean web?"
    agent.crash()
    assert agent.pids() == {}
    assert applied(agent, 5) == {"web:5": "created"}
    more = known(agent, "web", known={"instance_ids": [5, 6]}, project="shop")
    assert actions(more) == {"web:5": "none", "web:6": "created"}
    counted = known(agent, "web", known={"instances": 1}, project="shop")
    assert actions(counted) == {"web": "created", "web:5": "removed", "web:6": "removed"}


def test_who_depends_on_a_process_without_instances_does_not_wait_for_it(agent: Agent) -> None:
    done = agent.apply({**web(), "job": {**WEB, "depends_on": ["web"]}})
    assert actions(done) == {"job": "created"}
    done = agent.apply({**web(7), "job": {**WEB, "depends_on": ["web:7"]}})
    assert actions(done) == {"web:7": "created", "job": "updated"}
    wrong = agent.apply({**web(8), "job": {**WEB, "depends_on": ["web:7"]}})
    assert wrong["message"] == "[job] depends_on: depends on web:7, an instance that web does not have"


def test_start_and_stop_by_number(agent: Agent) -> None:
    applied(agent, 7, 12)
    before = agent.pids()
    agent.pm3("stop", "web:7")
    assert (agent.instance("web:7")["status"], agent.instance("web:12")["pid"]) == ("stopped", before["web:12"])
    assert applied(agent, 12) == {"web:12": "none", "web:7": "removed"}
    assert applied(agent, 7, 12) == {"web:7": "created", "web:12": "none"}
    agent.pm3("stop", "web:7")
    agent.pm3("restart", "web:7")
    assert agent.instance("web:7")["status"] == "online"
    assert agent.pids()["web:12"] == before["web:12"]
    unknown = agent.pm3("stop", "web:0", check=False)
    assert unknown.returncode == 1
    assert "process or group not found: web:0" in unknown.stderr


def test_start_by_number_from_a_file(agent: Agent) -> None:
    agent.file(TOML)
    agent.pm3("start", "web:12")
    assert list(agent.pids()) == ["web:12"]
    pid = agent.pids()["web:12"]
    agent.pm3("start", "web:7")
    agent.pm3("stop", "web:7")
    agent.pm3("start", "web:7")
    assert {name: one["status"] for name, one in agent.instances().items()} == dict.fromkeys(names([7, 12]), "online")
    assert agent.pids()["web:12"] == pid
    missing = agent.pm3("start", "web:1", check=False)
    assert missing.returncode == 1
    assert "'web:1' not found" in missing.stderr


def test_an_agent_that_dies_finds_them_all_again(agent: Agent) -> None:
    applied(agent, 7, 12)
    before = agent.pids()
    agent.crash()
    assert agent.pids() == before
    os.kill(before["web:12"], signal.SIGKILL)
    until(lambda: agent.pids()["web:12"] not in (None, before["web:12"]), "it is restarted")
    assert environment(agent.pids()["web:12"])["PM3_INSTANCE_ID"] == "12"
    assert applied(agent, 7, 12, 13) == {"web:7": "none", "web:12": "none", "web:13": "created"}


def test_another_version_takes_them_over(installed: Installed) -> None:
    installed.apply({"worker": {**WEB, "instance_ids": [7, 12]}}, project="numbers")
    before = installed.pids()
    installed.install(NEW)
    assert installed.try_out()["result"] == "done"
    assert installed.pids() == before
    done = installed.apply({"worker": {**WEB, "instance_ids": [12, 13]}}, project="numbers")
    assert actions(done) == {"worker:12": "none", "worker:13": "created", "worker:7": "removed"}
    assert installed.try_out(OLD)["result"] == "done"


def test_a_rollback_brings_the_list_of_then_back(agent: Agent) -> None:
    applied(agent, 7, 12)
    before = agent.pids()
    applied(agent, 12, 13)
    back = rollback(agent)
    assert actions(back) == {"web:7": "created", "web:12": "none", "web:13": "removed"}
    assert agent.pids()["web:12"] == before["web:12"]


def test_one_that_does_not_come_up_has_the_list_go_back(agent: Agent) -> None:
    """As with scaling: what was to go is still there."""
    check = {"command": "sh -c 'test @{instance} != 13 && exec sleep 1000'", "min_uptime": 50, "max_restarts": 0}
    agent.apply(web(7, 12, **check))
    before = agent.pids()
    failed = agent.apply(web(12, 13, **check))
    assert (failed["ok"], failed["reverted"]) == (False, True)
    after = agent.pids()
    assert list(after) == names([7, 12])
    assert after["web:12"] == before["web:12"]


def test_from_a_count_to_numbers_and_back(agent: Agent) -> None:
    agent.apply({"web": {**WEB, "instances": 3}})
    before = agent.pids()
    assert applied(agent, 1, 2, 7) == {"web:1": "none", "web:2": "none", "web:7": "created", "web:0": "removed"}
    done = agent.apply({"web": {**WEB, "instances": 2}})
    assert actions(done) == {"web:0": "created", "web:1": "none", "web:2": "removed", "web:7": "removed"}
    assert agent.pids()["web:1"] == before["web:1"]
    single = agent.apply({"web": WEB})
    assert actions(single) == {"web": "rolled", "web:1": "removed"}
    assert applied(agent, 0, 7) == {"web:0": "rolled", "web:7": "created"}


def test_a_roll_goes_by_number(agent: Agent) -> None:
    applied(agent, 100, 7, 12)
    steps: list[str] = []
    done = agent.ask(
        "apply",
        lambda row: steps.append(row["name"]) if row.get("step") == "stopping" else None,
        project="shop",
        definitions=web(7, 12, 100, env={"A": "1"}),
        base=str(agent.folder),
        progress=True,
    )
    assert set(actions(done).values()) == {"rolled"}
    assert steps == names([7, 12, 100])


def test_what_was_saved_is_back_with_its_numbers(agent: Agent) -> None:
    start(agent, **web(7, 12))
    agent.ask("save")
    assert [entry["name"] for entry in json.loads((agent.data_dir / "dump.json").read_text())] == names([7, 12])
    ended(agent)
    agent.pm3("list")
    until(lambda: {one["status"] for one in agent.instances().values()} == {"online"}, "all is up")
    assert list(agent.pids()) == names([7, 12])
    assert environment(agent.pids()["web:7"])["PM3_INSTANCE_ID"] == "7"


@pytest.mark.parametrize("numbers", [[7, 7], [-1], "7", [True]], ids=repr)
def test_a_list_that_is_none_changes_nothing(agent: Agent, numbers: Any) -> None:
    applied(agent, 7)
    before = agent.pids()
    refused = agent.apply({"web": {**WEB, "instance_ids": numbers}})
    assert [problem["field"] for problem in refused["problems"]] == ["instance_ids"]
    both = agent.apply({"web": {**WEB, "instances": 1, "instance_ids": [7]}})
    assert both["message"] == "[web] instance_ids: takes the place of instances; give one of the two"
    assert agent.pids() == before
