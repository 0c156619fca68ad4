"""Soaking: a release that has come up must go on being up for a while, and then has succeeded."""

from __future__ import annotations

import os
from typing import Any

import pytest

from .conftest import Agent
from .test_roll import actions, folders, history, reasons, release
from .waiting import until

SOAK = {"update_once": {"soak": "1h"}}  # for ever, if nothing ends it


def steps_of(agent: Agent, definitions: dict[str, Any], **fields: Any) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """An apply, and the steps that it told of."""
    told: list[tuple[str, str]] = []

    def on_row(document: dict[str, Any]) -> None:
        if document["type"] == "step":
            told.append((document["name"], document["step"]))

    return agent.apply(definitions, on_row=on_row, progress=True, **fields), told


def test_what_stays_up_has_succeeded(agent: Agent) -> None:
    web = {**release(agent, "1"), "instances": 2, "update": {"soak": "50ms"}}
    made, told = steps_of(agent, {"web": web, "db": release(agent, "1")})
    assert made["ok"], made
    assert [one for one in told if one[1] == "soaking"] == [("web:0", "soaking"), ("web:1", "soaking")]
    again, told = steps_of(agent, {"web": web, "db": release(agent, "1")})
    assert not again["changed"]
    assert told == [], "what has not changed has proved itself"


def test_who_falls_while_it_soaks_is_taken_back_at_once(agent: Agent) -> None:
    assert agent.apply({"web": {**release(agent, "1"), "instances": 2}})["ok"]
    fall = agent.folder / "fall"
    script = f"while ! test -e {fall}; do sleep 0.01; done; echo out of cheese >&2; exit 3"
    bad = {"web": {**release(agent, "2", script), "instances": 2}}

    def on_row(document: dict[str, Any]) -> None:
        if document.get("step") == "soaking":
            fall.touch()

    made = agent.apply(bad, on_row=on_row, progress=True, label="bad", **SOAK)
    assert not made["ok"]
    assert made["reverted"]
    assert any("came up, and then exited with code 3" in reason for reason in reasons(made).values()), made
    assert any(row["log_tail"] == ["out of cheese"] for row in made["instances"])
    until(lambda: folders(agent) == {"1"}, "all is as it was")
    fall.unlink()
    assert history(agent)[-2]["failure"]


def test_a_check_that_fails_once_ends_it_too(agent: Agent) -> None:
    """Long before there are so many failures in a row that the instance is restarted."""
    hung = agent.folder / "hung"
    assert agent.apply({"web": release(agent, "1")})["ok"]
    check = {"liveness_check": f"exec://test ! -e {hung}", "liveness_interval": "20ms", "liveness_failures": 1000}

    def on_row(document: dict[str, Any]) -> None:
        if document.get("step") == "soaking":
            hung.touch()

    made = agent.apply({"web": {**release(agent, "2"), **check}}, on_row=on_row, progress=True, **SOAK)
    assert made["reverted"], made
    assert reasons(made)["web"].startswith("came up, and then liveness_check has failed")


def test_what_a_run_is_given_is_not_kept(agent: Agent) -> None:
    """The definitions say what they said: the next run finds nothing changed."""
    web = {"web": {**release(agent, "1"), "update": {"deadline": "1m"}}}
    assert agent.apply(web)["ok"]
    broken = {"web": {**web["web"], **release(agent, "2", "exit 3")}}
    made = agent.apply(broken, update_once={"on_failure": "pause", "soak": 0})
    assert actions(made) == {"web": "failed"}
    assert not made["reverted"]
    assert "on_failure is pause" in made["message"]
    assert history(agent)[-1]["revision"] == 2, "nothing went back"
    repaired = {"web": {**web["web"], **release(agent, "2")}}
    assert agent.apply(repaired, update_once={"soak": "10ms", "max_unavailable": "50%"})["ok"]
    assert not agent.apply(repaired)["changed"]


def test_another_agent_goes_on_with_it(agent: Agent) -> None:
    """The time begins anew; who falls then is taken back all the same."""
    assert agent.apply({"web": release(agent, "1")})["ok"]
    assert agent.apply({"web": release(agent, "2")}, wait=False, **SOAK)["in_progress"]
    until(lambda: folders(agent) == {"2"}, "it is replaced")
    agent.crash()
    assert agent.under_way() == ["shop"]
    pid = agent.pids()["web"]
    until(lambda: "goes on with revision 2" in (agent.data_dir / "agent.log").read_text(), "it goes on")
    os.kill(pid, 9)
    until(lambda: folders(agent) == {"1"} and not agent.under_way(), "it is taken back")
    assert history(agent)[-1]["origin"] == 1


def test_somebodys_stop_is_no_failure_of_the_release(agent: Agent) -> None:
    assert agent.apply({"web": release(agent, "1")})["ok"]

    def on_row(document: dict[str, Any]) -> None:
        if document.get("step") == "soaking":
            assert agent.ask("stop", names=["web"])["type"] == "success"

    made = agent.apply({"web": release(agent, "2")}, on_row=on_row, progress=True, update_once={"soak": "300ms"})
    assert made["ok"], made
    assert agent.instance("web")["status"] == "stopped"
    assert not history(agent)[-1]["failure"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"soak": "soon"}, "update_once: soak: "),
        ({"order": "start_first"}, "update_once: order: not for a single run; write it into the definitions"),
        ({"sok": 3}, "update_once: sok: unknown key; did you mean soak?"),
    ],
)
def test_mistakes(agent: Agent, given: dict[str, Any], said: str) -> None:
    answer = agent.apply({"web": release(agent, "1")}, update_once=given)
    assert answer["type"] == "error"
    assert said in answer["message"]
    assert agent.instances() == {}
