"""The way back of a roll, and its end, where something else had happened before, meanwhile, or twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .conftest import Agent
from .test_races import in_background, processes_of
from .test_roll import actions, folders, history, reasons, release, rollback
from .waiting import until


def gated(
    agent: Agent, name: str, script: str = "exec sleep 1000", only: str = ""
) -> tuple[dict[str, Any], Callable[[], None]]:
    """A release whose instances (or only the one of this name) are not up before what is given with it is called."""
    gate = agent.folder / f"gate-{name}"
    check = f"exec://sh -c 'test \"$PM3_NAME\" != {only or '$PM3_NAME'} || test -e {gate}'"
    return {**release(agent, name, script), "readiness_check": check, "readiness_timeout": 60}, gate.touch


def test_what_fails_after_a_rollback_goes_back_to_what_was_there(agent: Agent) -> None:
    """And not to the release from which somebody had gone back."""
    agent.apply({"web": release(agent, "1")}, label="v1")
    agent.apply({"web": release(agent, "2")}, label="v2")
    assert rollback(agent)["ok"]
    made = agent.apply({"web": release(agent, "3", "exit 1")}, label="v3")
    assert made["reverted"], made
    assert folders(agent) == {"1"}
    assert [(one["label"], one["origin"]) for one in history(agent)][-1] == ("v1", 1)
    assert "no earlier revision" in rollback(agent)["message"]


def test_what_was_left_half_done_before_goes_back_too(agent: Agent) -> None:
    """The first change was paused when `db` was rolled already; the second one fails without having touched `db`."""
    pause = {"update": {"on_failure": "pause"}}
    good = {"db": release(agent, "1"), "web": {**release(agent, "1"), "depends_on": ["db"]}}
    agent.apply(good)
    half = {"db": release(agent, "2"), "web": {**release(agent, "bad", "exit 1"), **pause, "depends_on": ["db"]}}
    half["extra"] = release(agent, "2")
    made = agent.apply(half)
    assert actions(made) == {"db": "rolled", "extra": "created", "web": "failed"}
    half["web"] = {**release(agent, "worse", "exit 1"), "depends_on": ["db"]}
    made = agent.apply(half)
    assert made["reverted"], made
    assert sorted(agent.pids()) == ["db", "web"]
    assert folders(agent) == {"1"}
    assert not agent.apply(good)["changed"]


def test_going_back_starts_nothing_that_was_stopped_meanwhile(agent: Agent) -> None:
    """I3: also where the agent is killed in between, and the next one goes back."""
    good = {"db": release(agent, "1"), "web": release(agent, "1")}
    for crashes in (False, True):
        assert agent.apply(good)["ok"]
        name, gate = f"2-{crashes}", agent.folder / f"gate-{crashes}"
        check = {"readiness_check": "exec://false", "readiness_timeout": 60}
        web = {**release(agent, name, f"while [ ! -e {gate} ]; do sleep 0.01; done; exit 1"), **check}
        agent.apply({"db": release(agent, f"db-{crashes}"), "web": web}, wait=False)
        until(lambda name=name: name in folders(agent), "web is being checked")
        until(lambda: agent.instance("db")["status"] == "online", "db is up")
        agent.ask("stop", names=["db"])
        if crashes:
            agent.crash()
        gate.touch()
        until(lambda: not agent.under_way(), "it has gone back")
        assert history(agent)[-1]["origin"] is not None
        assert agent.instance("db")["status"] == "stopped"
        made = agent.apply(good)
        assert actions(made) == {"db": "started", "web": "none"}
        assert folders(agent) == {"1"}


def test_a_change_that_has_become_impossible_does_not_keep_its_place(agent: Agent) -> None:
    """It waits for its turn, and then what it names is gone. The same one again is not to wait for it."""
    db, ready = gated(agent, "1")
    fields = {"known": {"web": {"kill_timeout": 1234}}, "prune": False}
    both = {"web": release(agent, "0"), "db": db}
    agent.apply(both, wait=False)
    until(lambda: "1" in folders(agent), "it has begun")
    assert agent.apply({"db": db}, wait=False)["in_progress"]
    assert agent.apply({}, wait=False, **fields)["in_progress"]
    ready()
    until(lambda: list(agent.pids()) == ["db"] and not agent.under_way(), "web is removed")
    assert agent.apply(both)["ok"]
    assert agent.apply({}, **fields)["ok"]


def test_a_run_that_had_only_to_end_is_ended(agent: Agent) -> None:
    """All is begun when the agent dies: the next one has nothing to change, but to wait and to say how it ended."""
    for fields in ({"prune": False}, {"only": ["web"]}, {}):
        name = "-".join(fields) or "whole"
        web, ready = gated(agent, name)
        agent.apply({"web": web}, wait=False, **fields)
        until(lambda name=name: name in folders(agent), "it is being checked")
        agent.crash()
        assert agent.under_way() == ["shop"]
        ready()
        until(lambda: not agent.under_way(), f"it has ended: {name}")
        assert history(agent)[-1]["failure"] is None


def test_a_removal_goes_on_when_the_agent_is_back(agent: Agent) -> None:
    stubborn = "trap '' TERM; while :; do sleep 0.01; done"
    agent.apply(
        {"web": {**release(agent, "1", stubborn), "kill_timeout": 1500, "instances": 2}, "db": release(agent, "db")}
    )
    agent.apply({"web": release(agent, "1", stubborn)}, wait=False, state="absent", prune=False)
    until(lambda: not agent.instance("web:0")["wanted"], "it is being stopped")
    agent.crash()
    assert agent.under_way() == ["shop"]
    until(lambda: list(agent.pids()) == ["db"], "it is removed")
    until(lambda: not agent.under_way(), "and that is all")


def test_taking_over_goes_on_when_the_agent_is_back(agent: Agent) -> None:
    agent.apply({"web": {**release(agent, "1"), "instances": 2}}, project="other")
    web, ready = gated(agent, "2")
    agent.apply({"web": {**web, "instances": 2}}, wait=False, take_over=True)
    until(lambda: "2" in folders(agent), "it has begun")
    agent.crash()
    ready()
    until(lambda: not agent.under_way(), "it has ended")
    assert folders(agent) == {"2"}
    assert {one["project"] for one in agent.instances().values()} == {"shop"}


def test_a_release_that_falls_after_a_moment_is_bad_also_for_the_next_agent(agent: Agent) -> None:
    """It was online, but not long enough, when the agent died."""
    agent.apply({"web": release(agent, "1")})
    gate = agent.folder / "gate"
    script = f"while [ ! -e {gate} ]; do sleep 0.01; done; exit 3"
    agent.apply({"web": {**release(agent, "2", script), "min_uptime": 3000}}, wait=False)
    until(lambda: folders(agent) == {"2"} and agent.instance("web")["status"] == "online", "it runs")
    agent.crash()
    gate.touch()
    until(lambda: not agent.under_way(), "it has ended")
    until(lambda: folders(agent) == {"1"}, "what was there is back")
    assert [(one["failure"] is None, one["origin"]) for one in history(agent)] == [
        (True, None),
        (False, None),
        (True, 1),
    ]


@pytest.mark.parametrize("moment", ["comes up", "leaves"])
def test_a_stop_ends_both_copies_of_an_instance(agent: Agent, moment: str) -> None:
    """I2: also the one that takes over, and the one that leaves for it."""
    stubborn = "trap '' TERM; echo $$; while :; do sleep 0.01; done"
    common = {"update": {"order": "start_first"}, "kill_timeout": 1000, "env": {"PM3_TEST": str(agent.folder)}}
    agent.apply({"web": {**release(agent, "1", stubborn), **common}})
    new, ready = gated(agent, "2", stubborn if moment == "comes up" else "exec sleep 1000")
    agent.apply({"web": {**new, **common}}, wait=False)
    until(lambda: len(processes_of(agent, "web")) > 1 and agent.under_way(), "two copies run")
    before = agent.pids()["web"]
    if moment == "leaves":
        ready()
        until(lambda: agent.pids()["web"] != before, "the new one has taken the place of the old one")
    assert agent.ask("stop", names=["web"])["type"] == "success"
    assert not processes_of(agent, "web")
    until(lambda: not agent.under_way(), "that ends the roll")
    assert agent.instance("web")["status"] == "stopped"


def test_what_is_stopped_twice_is_not_started_by_the_next_agent(agent: Agent) -> None:
    """It was stopped when the apply began, which would have started it; but it was stopped once more."""
    agent.apply({"db": release(agent, "1"), "web": {**release(agent, "1"), "depends_on": ["db"]}})
    agent.ask("stop", names=["web"])
    db, ready = gated(agent, "2")
    definitions = {"db": db, "web": {**release(agent, "1"), "depends_on": ["db"]}}
    agent.apply(definitions, wait=False)
    until(lambda: "2" in folders(agent), "db is being checked")
    agent.ask("stop", names=["web"])
    agent.crash()
    ready()
    until(lambda: not agent.under_way(), "it has gone on")
    assert agent.instance("web")["status"] == "stopped"
    assert actions(agent.apply(definitions)) == {"db": "none", "web": "started"}


@pytest.mark.parametrize("crashes", [False, True])
def test_what_was_taken_over_in_vain_is_given_back(agent: Agent, crashes: bool) -> None:
    """It is its owner's again, and runs as that has it; it does not go as what is new goes."""
    theirs = {"web": {**release(agent, "theirs"), "instances": 2}, "db": release(agent, "db")}
    assert agent.apply(theirs, project="other")["ok"]
    assert agent.apply({"api": release(agent, "1")})["ok"]
    untouched = agent.pids()["web:1"]
    gate = agent.folder / "gate"
    bad = release(agent, "bad", f"while [ ! -e {gate} ]; do sleep 0.01; done; exit 1")
    bad.update(instances=2, min_uptime=3000)
    agent.apply({"api": release(agent, "2"), "web": bad}, wait=False, take_over=True)
    until(lambda: "bad" in folders(agent) and agent.instance("web:0")["status"] == "online", "web:0 is taken over")
    if crashes:
        agent.crash()
    gate.touch()
    until(lambda: not agent.under_way(), "it has gone back")
    until(lambda: folders(agent) == {"1", "theirs", "db"}, "all run as before")
    shown = agent.instances()
    assert {name: one["project"] for name, one in shown.items()} == {
        **{"web:0": "other", "web:1": "other", "db": "other", "api": "shop"},
    }
    assert agent.pids()["web:1"] == untouched
    assert not agent.apply(theirs, project="other")["changed"]
    assert not agent.apply({"api": release(agent, "1")})["changed"]


def test_what_a_first_apply_has_taken_over_in_vain_is_given_back(agent: Agent) -> None:
    """There is no revision to go back to, but an owner."""
    theirs = {"web": {**release(agent, "theirs"), "instances": 2}}
    assert agent.apply(theirs, project="other")["ok"]
    untouched = agent.pids()["web:1"]
    bad = {"web": {**release(agent, "bad", "exit 1"), "instances": 2}}
    made = agent.apply(bad, take_over=True)
    assert not made["ok"]
    assert reasons(made)["web:0"] == "exited with code 1; back with project other"
    assert "went back to project other" in made["message"]
    assert (made["revision"], made["reverted"]) == (history(agent)[-1]["revision"], False)
    assert {one["project"] for one in agent.instances().values()} == {"other"}
    assert folders(agent) == {"theirs"}
    assert agent.pids()["web:1"] == untouched
    assert list(agent.ask("snapshot")["definitions"]["other"]) == ["web"]
    assert not agent.apply(theirs, project="other")["changed"]
    refused = agent.apply(bad, take_over=True, retry_failed=False)
    assert "failed here at 20" in refused["message"]


def test_what_is_anothers_by_now_does_not_come_back(agent: Agent) -> None:
    """The good revision had it, a paused one removed it, and then another project began to use its name."""
    assert agent.apply({"api": release(agent, "1"), "web": release(agent, "web")})["ok"]
    pause = {"update": {"on_failure": "pause"}}
    assert actions(agent.apply({"api": {**release(agent, "bad", "exit 1"), **pause}}))["web"] == "removed"
    assert agent.apply({"web": release(agent, "theirs")}, project="other")["ok"]
    pid = agent.pids()["web"]
    made = agent.apply({"api": release(agent, "worse", "exit 1")})
    assert made["reverted"], made
    assert "web is of project other by now and stays there" in made["message"]
    assert folders(agent) == {"1", "theirs"}
    assert agent.pids()["web"] == pid
    assert agent.instance("web")["project"] == "other"
    assert history(agent)[-1]["failure"] is None
    assert not agent.under_way()


def test_what_was_taken_over_and_left_half_done_is_the_former_owners_no_more(agent: Agent) -> None:
    assert agent.apply({"web": release(agent, "theirs"), "db": release(agent, "db")}, project="other")["ok"]
    bad = {**release(agent, "bad", "exit 1"), "update": {"on_failure": "pause"}}
    made = agent.apply({"web": bad}, take_over=True)
    assert (actions(made), made["reverted"]) == ({"web": "failed"}, False)
    assert list(agent.ask("snapshot")["definitions"]["other"]) == ["db"]
    assert not agent.apply({"db": release(agent, "db")}, project="other")["changed"]
    assert agent.apply({"web": release(agent, "2")})["ok"]


@pytest.mark.parametrize("crashes", [False, True])
def test_what_is_held_in_the_midst_goes_back_with_the_rest(agent: Agent, crashes: bool) -> None:
    """The run had begun to change it when somebody held it: half of a bad release is nothing to be kept."""
    assert agent.apply({"web": {**release(agent, "1"), "instances": 2}})["ok"]
    fails = agent.folder / "fails"
    script = f'while [ "$PM3_INSTANCE_ID" = 0 ] || [ ! -e {fails} ]; do sleep 0.01; done; exit 1'
    web, _ready = gated(agent, "bad", script, only="web:1")
    rows: list[dict[str, Any]] = []
    bad = {"web": {**web, "instances": 2}}
    if crashes:
        agent.apply(bad, wait=False)
        until(lambda: agent.instance("web:1")["status"] == "starting", "web:1 is being replaced")
    else:
        made = in_background(lambda: agent.apply(bad, progress=True, on_row=rows.append))
        until(lambda: any(row["name"] == "web:1" for row in rows), "web:1 is being replaced")
    assert agent.ask("hold", names=["web"], reason="a look at it")["type"] == "success"
    if crashes:
        agent.crash()
    fails.touch()
    if not crashes:
        assert made()["reverted"]
    until(lambda: not agent.under_way(), "it has gone back")
    assert folders(agent) == {"1"}
    assert {one["status"] for one in agent.instances().values()} == {"online"}


def test_who_loses_a_process_is_not_changed_in_the_midst_of_its_own_apply(agent: Agent) -> None:
    db, ready = gated(agent, "2")
    assert agent.apply({"web": release(agent, "web"), "db": release(agent, "1")}, project="other")["ok"]
    assert agent.apply({"db": db}, project="other", prune=False, wait=False)["in_progress"]
    until(lambda: "2" in folders(agent), "it has begun")
    assert agent.apply({"web": release(agent, "web")}, take_over=True, wait=False)["in_progress"]
    assert agent.instance("web")["project"] == "other", "that waits"
    agent.crash()
    ready()
    until(lambda: not agent.under_way(), "it has ended")
    assert [one["failure"] for one in history(agent, "other")] == [None, None]
