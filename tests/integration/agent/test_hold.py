"""Holds, with a real agent: apply leaves what is held alone and says why; people may still do as they like."""

from __future__ import annotations

import getpass
import re
from typing import Any

import pytest

from .conftest import Agent

SLEEP = "sleep 1000000"
BEFORE: dict[str, Any] = {
    "db": {"command": SLEEP, "group": "back"},
    "web": {"command": SLEEP, "instances": 2, "depends_on": ["db"]},
}
AFTER: dict[str, Any] = {
    "db": {"command": SLEEP, "group": "back", "env": {"RELEASE": "2"}},
    "web": {"command": SLEEP, "instances": 2, "depends_on": ["db"], "env": {"RELEASE": "2"}},
}
WHY = re.compile(r"held by (\S+) since \d{4}-\d\d-\d\d \d\d:\d\d: a look at its memory")
REASON = "a look at its memory"


@pytest.fixture
def shop(agent: Agent) -> Agent:
    assert agent.apply(BEFORE)["ok"]
    return agent


def hold(agent: Agent, *names: str, **fields: Any) -> dict[str, Any]:
    named = {"names": list(names)} if names else {}
    return agent.ask("hold", reason=REASON, **named, **fields)


def release(agent: Agent, *names: str, **fields: Any) -> dict[str, Any]:
    return agent.ask("release", **({"names": list(names)} if names else {}), **fields)


def actions(result: dict[str, Any]) -> dict[str, str]:
    assert result["type"] == "result", result
    return {row["name"]: row["action"] for row in result["instances"]}


def reasons(result: dict[str, Any], process: str) -> set[str]:
    return {row["reason"] for row in result["instances"] if row["process"] == process}


def stable(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows, without what a run alone can know."""
    return [{**row, "pid": None, "seconds": None} for row in result["instances"]]


def is_held(result: dict[str, Any], process: str) -> bool:
    (reason,) = reasons(result, process)
    found = WHY.fullmatch(reason)
    return found is not None and found[1] == getpass.getuser()


def test_apply_leaves_what_is_held_and_goes_on_with_the_rest(shop: Agent) -> None:
    before = shop.pids()
    assert hold(shop, "db") == {"type": "success", "message": "held: db (project shop)"}
    predicted = shop.ask("plan", project="shop", definitions=AFTER, base=str(shop.folder))
    made = shop.apply(AFTER)
    assert actions(made) == {"db": "none", "web:0": "rolled", "web:1": "rolled"}
    assert made["ok"]
    assert is_held(made, "db")
    assert stable(predicted) == stable(made)
    after = shop.pids()
    assert after["db"] == before["db"]
    assert not {after["web:0"], after["web:1"]} & set(before.values())
    assert f"db          ok         online     {made['instances'][0]['reason']}" in made["report"]
    again = shop.apply(AFTER)
    assert not again["changed"]
    assert again["revision"] == made["revision"]


def test_the_first_apply_after_the_release_makes_the_change(shop: Agent) -> None:
    hold(shop, "db")
    shop.apply(AFTER)
    assert release(shop, "db") == {"type": "success", "message": "released: db (project shop)"}
    before = shop.pids()
    made = shop.apply(AFTER)
    assert actions(made) == {"db": "rolled", "web:0": "none", "web:1": "none"}
    assert shop.pids()["db"] != before["db"]
    assert made["instances"][0]["changes"][0]["field"] == "env.RELEASE"


def test_no_state_nor_prune_touches_what_is_held(shop: Agent) -> None:
    hold(shop, "web")
    before = shop.pids()
    for state, db in (
        ("restarted", "restarted"),
        ("stopped", "stopped"),
        ("present", "started"),
        ("absent", "removed"),
    ):
        made = shop.apply({"db": BEFORE["db"]}, state=state)
        assert actions(made) == {"db": db, "web:0": "none", "web:1": "none"}
        assert is_held(made, "web")
        assert {name: pid for name, pid in shop.pids().items() if name != "db"} == {
            name: pid for name, pid in before.items() if name != "db"
        }
    assert sorted(shop.ask("snapshot")["definitions"]["shop"]) == ["web"]
    release(shop, "web")
    assert actions(shop.apply({}, state="absent")) == {"web:0": "removed", "web:1": "removed"}


def test_scaling_waits_as_well(shop: Agent) -> None:
    hold(shop, "web")
    made = shop.apply({**BEFORE, "web": {**BEFORE["web"], "instances": 4}})
    assert actions(made) == {"db": "none", "web:0": "none", "web:1": "none"}
    release(shop, "web")
    made = shop.apply({**BEFORE, "web": {**BEFORE["web"], "instances": 1}})
    assert actions(made) == {"db": "none", "web": "rolled", "web:1": "removed"}


def test_a_whole_project_with_what_is_new_in_it(shop: Agent) -> None:
    shop.apply({"other": {"command": SLEEP}}, project="bank")
    before = shop.pids()
    assert hold(shop, "shop")["message"] == "held: project shop"
    definitions = {**AFTER, "job": {"command": SLEEP}}
    predicted = shop.ask("plan", project="shop", definitions=definitions, base=str(shop.folder))
    made = shop.apply(definitions)
    assert actions(made) == {"db": "none", "job": "none", "web:0": "none", "web:1": "none"}
    assert {row["name"]: row["status"] for row in made["instances"]}["job"] == "absent"
    assert stable(predicted) == stable(made)
    assert not made["changed"]
    assert made["diff"] == []
    assert shop.pids() == before
    changed = shop.apply({"other": {"command": SLEEP, "env": {"A": "1"}}}, project="bank")
    assert actions(changed) == {"other": "rolled"}
    assert release(shop, "shop")["message"] == "released: project shop"
    made = shop.apply(definitions)
    assert actions(made) == {"db": "rolled", "job": "created", "web:0": "rolled", "web:1": "rolled"}


def test_by_hand_everything_still_works(shop: Agent) -> None:
    hold(shop, "web", "db")
    for command in ("restart", "stop", "restart"):
        before = shop.pids()
        assert shop.ask(command, names=["web"])["type"] == "success"
        assert shop.pids()["web:0"] != before["web:0"]
    before = shop.pids()
    assert shop.ask("stop", names=["web:1"])["type"] == "success"
    made = shop.apply(AFTER)
    assert actions(made) == {"db": "none", "web:0": "none", "web:1": "none"}
    assert [row["status"] for row in made["instances"]] == ["online", "online", "stopped"]
    assert shop.pids()["web:1"] is None
    # Forgotten by hand it is not made anew, and the hold is there until somebody releases it.
    assert shop.ask("delete", names=["web"])["type"] == "success"
    made = shop.apply(AFTER)
    assert actions(made) == {"db": "none", "web": "none"}
    assert sorted(shop.pids()) == ["db"]
    assert [one["name"] for one in shop.ask("snapshot")["holds"]] == ["db", "web"]
    release(shop, "web", "db")
    assert actions(shop.apply(AFTER)) == {"db": "rolled", "web:0": "created", "web:1": "created"}


def test_what_is_held_and_broken_does_not_fail_the_apply(agent: Agent) -> None:
    """It may be what the incident is about."""
    broken = {"db": {"command": "sh -c 'exit 3'", "restart": "always", "max_restarts": 0}}
    assert not agent.apply(broken)["ok"]
    hold(agent, "db")
    made = agent.apply({**broken, "web": {"command": SLEEP, "depends_on": ["db"]}})
    assert made["ok"], made
    assert actions(made) == {"db": "none", "web": "created"}
    assert [row["status"] for row in made["instances"]] == ["errored", "online"]


def test_what_is_held_keeps_its_owner_and_is_not_waited_for(agent: Agent) -> None:
    """Started by hand and not ready yet: neither does apply take it over, nor does a dependent wait for it."""
    (agent.folder / "gate").touch()
    gated = {"command": SLEEP, "readiness_check": f"exec://test ! -e {agent.folder}/gate", "readiness_timeout": 60}
    agent.ask("start", configs={"db": {**gated, "environments": {}}})
    hold(agent, "db")
    made = agent.apply({"db": {**gated, "nice": 1}, "web": {"command": SLEEP, "depends_on": ["db"]}})
    assert actions(made) == {"db": "none", "web": "created"}
    assert {name: one["project"] for name, one in agent.instances().items()} == {"db": None, "web": "shop"}
    assert agent.instance("db")["phase"] == "starting"


def test_holds_survive_the_agent(shop: Agent) -> None:
    hold(shop, "db")
    hold(shop, project="shop")
    before = shop.ask("snapshot")["holds"]
    shop.crash()
    assert shop.ask("snapshot")["holds"] == before
    assert not shop.apply(AFTER)["changed"]
    release(shop, "db", project="shop")
    shop.crash()
    assert shop.ask("snapshot")["holds"] == []


def test_what_is_told_of_holds(shop: Agent) -> None:
    shop.ask("start", configs={"job": {"command": SLEEP, "environments": {}}})
    assert hold(shop, "back", "job")["message"] == "held: db (project shop), job"
    hold(shop, "shop")
    holds = shop.ask("snapshot")["holds"]
    assert [(one["kind"], one["name"], one["reason"]) for one in holds] == [
        ("process", "db", REASON),
        ("process", "job", REASON),
        ("project", "shop", REASON),
    ]
    assert {one["user"] for one in holds} == {getpass.getuser()}
    assert all(isinstance(one["since"], float) for one in holds)
    listed = {one["name"]: one.get("held") for one in shop.ask("list")["processes"]}
    assert sorted(listed) == ["db", "job", "web:0", "web:1"]
    assert all(WHY.fullmatch(text or "") for text in listed.values())
    assert WHY.fullmatch(shop.ask("info", name="job")["info"]["held"])
    shop.ask("hold", names=["job"], reason="  two\nlines \x1b[31m ")
    assert shop.ask("info", name="job")["info"]["held"].endswith(": two lines ?[31m")
    release(shop, "job", "shop")
    listed = {one["name"]: one.get("held") for one in shop.ask("list")["processes"]}
    assert [name for name, text in listed.items() if text] == ["db"]


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        ("hold", {"names": ["wbe"]}, "process, group or project not found: wbe; did you mean web?"),
        ("hold", {"names": ["web:0"]}, "web:0 is an instance, and a process is held as a whole: name web"),
        ("hold", {"names": ["db"], "reason": " \n"}, "hold needs a reason"),
        ("hold", {}, "hold needs the names of processes, groups or projects"),
        ("hold", {"project": "db"}, "project not found: db"),
        ("release", {"names": ["db", "nobody"]}, "process, group or project not found: nobody"),
        ("release", {"project": "bank"}, "project not found: bank"),
    ],
)
def test_what_cannot_be_held(shop: Agent, kind: str, fields: dict[str, Any], said: str) -> None:
    hold(shop, "db")
    answer = shop.ask(kind, **{**({"reason": "x"} if kind == "hold" else {}), **fields})
    assert answer["type"] == "error"
    assert said in answer["message"]
    assert [one["name"] for one in shop.ask("snapshot")["holds"]] == ["db"]


def test_to_release_what_is_not_held_is_no_mistake(shop: Agent) -> None:
    assert release(shop, "web") == {"type": "success", "message": "nothing was held"}
    hold(shop, "shop")
    assert release(shop, "web")["message"] == (
        "nothing was held; the whole project shop is held, which is released by its own name"
    )
