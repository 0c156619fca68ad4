"""Rolls, and their way back: what an apply does to instances that run, and what becomes of a release that does not come up."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Agent, alive
from .test_listen import upgrade
from .test_races import in_background
from .waiting import until

LIVES = "sh -c 'exec sleep 1000'"
# Much more than a script takes to its end that fails at once, also on a busy machine.
QUICK = {"min_uptime": 150}


def release(agent: Agent, name: str, script: str = "exec sleep 1000") -> dict[str, Any]:
    """A release in a folder of its own, whose program is a script."""
    folder = agent.folder / "releases" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.sh").write_text(script + "\n")
    return {"command": "sh run.sh", "cwd": str(folder), **QUICK}


def actions(result: dict[str, Any]) -> dict[str, str]:
    return {row["name"]: row["action"] for row in result["instances"]}


def reasons(result: dict[str, Any]) -> dict[str, str]:
    return {row["name"]: row["reason"] for row in result["instances"]}


def folders(agent: Agent) -> set[str]:
    """Where the programs really run."""
    found = set()
    for pid in filter(None, agent.pids().values()):
        with contextlib.suppress(FileNotFoundError):  # it has ended meanwhile
            found.add(os.path.basename(os.readlink(f"/proc/{pid}/cwd")))
    return found


def history(agent: Agent, project: str = "shop") -> list[dict[str, Any]]:
    answer = agent.ask("history", project=project)
    assert answer["type"] == "history", answer
    assert answer["current"] == answer["revisions"][-1]["revision"]
    return list(answer["revisions"])


def rollback(agent: Agent, to: str | None = "", **fields: Any) -> dict[str, Any]:
    return agent.ask("apply", project="shop", rollback_to=to, **fields)


# One after the other


def test_instances_roll_one_after_the_other(agent: Agent) -> None:
    """Each new one is up before the next old one stops."""
    seen = agent.folder / "seen"
    script = (
        f"echo start $PM3_INSTANCE_ID >> {seen}; trap 'echo stop '$PM3_INSTANCE_ID' >> {seen}; exit' TERM\n"
        "while :; do sleep 0.01; done"
    )
    assert agent.apply({"web": {**release(agent, "1", script), "instances": 3}})["ok"]
    until(lambda: seen.exists() and len(seen.read_text().split()) == 6, "all have begun")
    seen.write_text("")
    made = agent.apply({"web": {**release(agent, "2", script), "instances": 3}})
    assert actions(made) == dict.fromkeys(("web:0", "web:1", "web:2"), "rolled")
    told = seen.read_text().split("\n")[:-1]
    assert told == ["stop 0", "start 0", "stop 1", "start 1", "stop 2", "start 2"]
    assert all(row["seconds"] > 0 for row in made["instances"])


@pytest.mark.parametrize(("share", "most"), [(2, 2), ("50%", 3), (6, 6)])
def test_so_many_may_be_missing(agent: Agent, share: Any, most: int) -> None:
    """The new ones wait for a gate: those that are down are as many as may be, and not one more."""
    gate, begun = agent.folder / "gate", agent.folder / "begun"
    begun.mkdir()
    waits = f"touch {begun}/$PM3_INSTANCE_ID; exec sleep 1000"
    common = {"instances": 6, "update": {"max_unavailable": share}}
    agent.apply({"web": {**release(agent, "1"), **common}})
    check = {"readiness_check": f"exec://test -e {gate}", "readiness_timeout": 60}
    agent.apply({"web": {**release(agent, "2", waits), **common, **check}}, wait=False)
    until(lambda: len(os.listdir(begun)) == most, "so many are replaced at a time")
    assert sum(one["status"] == "online" for one in agent.instances().values()) == 6 - most
    gate.touch()
    until(lambda: folders(agent) == {"2"}, "all are replaced")


# Start first


def server(agent: Agent, name: str, **fields: Any) -> dict[str, Any]:
    """A server that says which release it is, on a port of its own for each copy."""
    release(agent, name)
    folder = agent.folder / "releases" / name
    (folder / "server.py").write_text(
        "import http.server, os, sys\n"
        "class Handler(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        body = open('name').read().encode()\n"
        "        self.send_response(200)\n"
        "        self.send_header('Content-Length', str(len(body)))\n"
        "        self.end_headers()\n"
        "        self.wfile.write(body)\n"
        "    def log_message(self, *args): pass\n"
        "http.server.ThreadingHTTPServer.allow_reuse_address = True\n"
        "http.server.ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), Handler).serve_forever()\n"
    )
    (folder / "name").write_text(name)
    port = f"@{{{BASE} + 2 * instance + slot}}"
    return {
        "command": f"python3 server.py {port}",
        "cwd": str(folder),
        "readiness_check": f"http://127.0.0.1:{port}/",
        "update": {"order": "start_first"},
        **QUICK,
        **fields,
    }


BASE = 20000 + os.getpid() % 5000 * 2


def test_the_new_one_is_up_before_the_old_one_stops(agent: Agent) -> None:
    made = agent.apply({"web": server(agent, "1", instances=2)})
    assert made["ok"], made
    before = agent.pids()
    answered = agent.apply({"web": server(agent, "2", instances=2)})
    assert actions(answered) == {"web:0": "rolled", "web:1": "rolled"}, answered
    assert folders(agent) == {"2"}
    assert not any(alive(pid) for pid in before.values() if pid)
    assert all(one["total_restarts"] == 0 for one in agent.instances().values())
    # The other slot is free again, and is the next one's.
    assert agent.apply({"web": server(agent, "3", instances=2)})["ok"]
    assert folders(agent) == {"3"}
    agent.crash()
    assert agent.apply({"web": server(agent, "4", instances=2)})["ok"], "the slot is remembered"
    assert not agent.apply({"web": server(agent, "4", instances=2)})["changed"]


def test_a_new_one_that_does_not_come_up_costs_nothing(agent: Agent) -> None:
    agent.apply({"web": server(agent, "1", instances=2)})
    before = agent.pids()
    made = agent.apply({"web": {**server(agent, "2", instances=2), "command": "sh -c 'echo broken >&2; exit 3'"}})
    assert not made["ok"]
    assert made["reverted"]
    assert agent.pids() == before
    failed = made["instances"][0]
    assert (failed["action"], failed["log_tail"]) == ("failed", ["broken"])
    assert failed["reason"].startswith("exited with code 3")
    assert actions(made)["web:1"] == "skipped"
    assert not agent.apply({"web": server(agent, "1", instances=2)})["changed"], "all is as it was"


# Back


RELEASES = {
    "crashes": ("echo no database >&2; exit 7", {}, "exited with code 7", ["no database"]),
    "is never ready": (
        "echo waiting; exec sleep 1000",
        {"readiness_check": "exec://false", "readiness_timeout": 0.3},
        "did not become ready",
        ["waiting"],
    ),
    "hangs before": (
        "exec sleep 1000",
        {"pre_start": "sleep 1000", "update": {"deadline": 0.3}},
        "did not come up within update.deadline (0.3 s)",
        [],
    ),
    "cannot be started": ("exit 0", {"command": "/does/not/exist"}, "", []),
}


@pytest.mark.parametrize("order", ["stop_first", "start_first"])
@pytest.mark.parametrize("kind", RELEASES)
def test_what_does_not_come_up_is_taken_back(agent: Agent, kind: str, order: str) -> None:
    script, fields, why, lines = RELEASES[kind]
    common: dict[str, Any] = {"instances": 3, "update": {"order": order}}
    good = {**release(agent, "1"), **common}
    assert agent.apply({"web": good}, label="v1")["ok"]
    bad = {**release(agent, "2", script), **common, **fields}
    bad["update"] = {**common["update"], **fields.get("update", {})}
    made = agent.apply({"web": bad}, label="v2")
    assert not made["ok"]
    assert made["instances"][0]["action"] == "failed"
    assert why in made["instances"][0]["reason"]
    assert made["instances"][0]["log_tail"] == lines
    assert made["timed_out"] == ("deadline" in why)
    assert [row["action"] for row in made["instances"][1:]] == ["skipped", "skipped"]
    assert made["reverted"]
    assert "went back to revision 1" in made["message"]
    until(lambda: folders(agent) == {"1"} and len([pid for pid in agent.pids().values() if pid]) == 3, "all are back")
    assert {one["status"] for one in agent.instances().values()} == {"online"}
    told = history(agent)
    assert [(one["label"], one["origin"]) for one in told] == [("v1", None), ("v2", None), ("v1", 1)]
    assert told[1]["failed_at"] is not None
    assert why in told[1]["failure"]
    assert not agent.apply({"web": good}, label="v1")["changed"], "the host is as the first apply left it"


def test_what_was_replaced_before_goes_back_too(agent: Agent) -> None:
    """The third of four is the first that does not come up: two go back, one was never reached."""
    agent.apply({"web": {**release(agent, "1"), "instances": 4}, "db": release(agent, "db")})
    untouched = agent.pids()["web:3"], agent.pids()["db"]
    script = 'if [ "$PM3_INSTANCE_ID" = 2 ]; then echo two >&2; exit 1; fi; exec sleep 1000'
    definitions = {"web": {**release(agent, "2", script), "instances": 4}, "db": release(agent, "db")}
    messages: list[dict[str, Any]] = []
    made = agent.ask("apply", project="shop", definitions=definitions, base="/", progress=True, on_row=messages.append)
    assert actions(made) == {
        "db": "none",
        "web:0": "reverted",
        "web:1": "reverted",
        "web:2": "failed",
        "web:3": "skipped",
    }
    assert reasons(made)["web:0"] == "web:2 failed; back on revision 1"
    assert reasons(made)["web:2"] == "exited with code 1; back on revision 1"
    assert (agent.pids()["web:3"], agent.pids()["db"]) == untouched
    steps = [(one["name"], one["step"]) for one in messages if one["type"] == "step"]
    assert ("web:0", "reverting") in steps
    assert ("web:0", "starting") in steps
    assert made["summary"] == {"ok": 1, "changed": 2, "failed": 1, "skipped": 1}


def test_one_that_falls_later_takes_all_back(agent: Agent) -> None:
    """web:0 comes up, and dies while web:1 is being checked."""
    agent.apply({"web": {**release(agent, "1"), "instances": 2}})
    gate = agent.folder / "gate"
    script = (
        f'if [ "$PM3_INSTANCE_ID" = 0 ]; then while [ ! -e {gate} ]; do sleep 0.01; done; echo later >&2; exit 9; fi\n'
        f"touch {gate}; exec sleep 1000"
    )
    check = {"readiness_check": "exec://sh -c 'test $PM3_INSTANCE_ID = 0 || test -e /nowhere'", "readiness_timeout": 30}
    check["update"] = {"deadline": 2}
    made = agent.apply({"web": {**release(agent, "2", script), "instances": 2, **check}})
    assert not made["ok"]
    assert reasons(made)["web:0"].startswith("came up, and then exited with code 9")
    assert made["instances"][0]["log_tail"] == ["later"]
    assert folders(agent) == {"1"}


def test_what_is_new_goes_and_what_was_removed_comes_back(agent: Agent) -> None:
    before = {"web": release(agent, "1"), "old": release(agent, "old")}
    agent.apply(before)
    made = agent.apply({"web": {**release(agent, "2", "exit 1")}, "new": release(agent, "new")})
    assert actions(made) == {"new": "reverted", "web": "failed", "old": "reverted"}
    assert sorted(agent.pids()) == ["old", "web"]
    assert folders(agent) == {"1", "old"}
    assert not agent.apply(before)["changed"]


def test_one_becomes_several_and_back(agent: Agent) -> None:
    """`web` becomes `web:0` in its turn, and a bad release brings `web` back."""
    agent.apply({"web": release(agent, "1")})
    made = agent.apply({"web": {**release(agent, "2", "exit 1"), "instances": 3}})
    assert not made["ok"]
    assert list(agent.pids()) == ["web"]
    assert folders(agent) == {"1"}
    made = agent.apply({"web": {**release(agent, "2"), "instances": 3}})
    assert actions(made) == {"web:0": "rolled", "web:1": "created", "web:2": "created"}
    made = agent.apply({"web": {**release(agent, "3"), "update": {"order": "start_first"}}})
    assert actions(made) == {"web": "rolled", "web:1": "removed", "web:2": "removed"}
    assert folders(agent) == {"3"}


def test_the_first_apply_has_nothing_to_go_back_to(agent: Agent) -> None:
    made = agent.apply({"web": release(agent, "1", "exit 1"), "api": release(agent, "api")})
    assert actions(made)["web"] == "failed"
    assert not made["reverted"]
    assert agent.apply({"web": release(agent, "1"), "api": release(agent, "api")})["ok"]


def test_the_deadline_is_the_same_at_a_first_start_and_in_a_roll(agent: Agent) -> None:
    """It is for all that an instance needs to come up, its checks and `min_uptime` together."""
    slow = {"readiness_check": "exec://sh -c 'sleep 0.5'", "min_uptime": 1500, "update": {"deadline": 1.0}}
    made = agent.apply({"web": {**release(agent, "1"), **slow}})
    assert reasons(made)["web"] == "did not come up within update.deadline (1 s)"
    assert made["timed_out"]


def test_that_it_could_not_go_back_is_said_once(agent: Agent) -> None:
    gate = agent.folder / "gate"
    gate.touch()
    agent.apply({"web": release(agent, "1", f"test -e {gate} || exit 4; exec sleep 1000")})
    gate.unlink()
    made = agent.apply({"web": release(agent, "2", "exit 3")})
    assert not made["reverted"]
    assert made["message"] == "web exited with code 3; could not go back to revision 1: exited with code 4"


def test_one_that_restarts_itself_for_ever_does_not_come_up(agent: Agent) -> None:
    """It writes what it watches. Nobody waits for that without end."""
    agent.apply({"web": release(agent, "1")})
    script = "while :; do echo x >> state; sleep 0.1; done"
    made = agent.apply({"web": {**release(agent, "2", script), "watch": True, "min_uptime": 60000}})
    assert made["reverted"], made
    assert reasons(made)["web"].startswith("was restarted 3 times by watch before it had come up")
    assert folders(agent) == {"1"}


# Pause


def test_pause_leaves_it_half_done_and_the_next_apply_goes_on(agent: Agent) -> None:
    common = {"instances": 3, "update": {"on_failure": "pause"}}
    agent.apply({"web": {**release(agent, "1"), **common}})
    ready = agent.folder / "ready"
    script = f'if [ "$PM3_INSTANCE_ID" = 1 ] && [ ! -e {ready} ]; then exit 1; fi; exec sleep 1000'
    made = agent.apply({"web": {**release(agent, "2", script), **common}})
    assert [row["action"] for row in made["instances"]] == ["rolled", "failed", "skipped"]
    assert "left half done" in made["message"]
    assert folders(agent) == {"1", "2"}
    kept = agent.pids()["web:0"]
    ready.touch()
    made = agent.apply({"web": {**release(agent, "2", script), **common}})
    assert made["ok"], made
    assert agent.pids()["web:0"] == kept
    assert folders(agent) == {"2"}
    assert [one["failure"] for one in history(agent)] == [None, None]


def test_what_was_paused_before_goes_back_with_the_next(agent: Agent) -> None:
    """The way back leads to the newest revision that has come up, whatever was left half done in between."""
    common = {"instances": 2, "update": {"on_failure": "pause"}}
    good = {"web": {**release(agent, "1"), **common}, "api": release(agent, "api1")}
    agent.apply(good)
    half = 'if [ "$PM3_INSTANCE_ID" = 1 ]; then exit 1; fi; exec sleep 1000'
    paused = {**good, "web": {**release(agent, "2", half), **common}}
    assert [row["action"] for row in agent.apply(paused)["instances"] if row["process"] == "web"] == [
        "rolled",
        "failed",
    ]
    made = agent.apply({**paused, "web": {**paused["web"], "instances": 1}, "api": release(agent, "api2", "exit 1")})
    assert not made["ok"]
    assert made["reverted"], made
    assert folders(agent) == {"1", "api1"}
    assert not agent.apply(good)["changed"]


def test_a_paused_release_can_be_rolled_back(agent: Agent) -> None:
    common = {"instances": 2, "update": {"on_failure": "pause"}}
    agent.apply({"web": {**release(agent, "1"), **common}})
    assert not agent.apply({"web": {**release(agent, "2", 'exec test "$PM3_INSTANCE_ID" != 0'), **common}})["ok"]
    made = rollback(agent)
    assert made["ok"], made
    assert folders(agent) == {"1"}


@pytest.mark.parametrize("way", ["only", "held", "stopped", "started"])
def test_what_was_not_brought_up_is_not_good(agent: Agent, way: str) -> None:
    """The revision is current, and a change of its project succeeds that does not try it; so the next bad one does not go back to it."""
    pause = {"update": {"on_failure": "pause"}}
    good = {"web": release(agent, "1"), "db": release(agent, "db")}
    assert agent.apply(good)["ok"]
    bad = {**good, "web": {**release(agent, "bad", "exit 1"), **pause}}
    if way == "stopped":
        assert agent.apply(bad, state="stopped")["ok"]
    elif way == "started":
        assert agent.ask("stop", names=["web"])["type"] == "success"
        assert agent.ask("start", configs={"web": bad["web"]}, wait=True)["type"] == "error"
    else:
        assert not agent.apply(bad)["ok"]
        agent.ask("stop", names=["db"])
    assert history(agent)[-1]["revision"] == 2
    if way == "only":
        assert actions(agent.apply(bad, only=["db"]))["db"] == "started"
    elif way == "held":
        agent.ask("hold", names=["web"], reason="a look at it")
        assert actions(agent.apply(bad)) == {"web": "none", "db": "started"}
        agent.ask("release", names=["web"])
    assert history(agent)[-1]["failure"], history(agent)
    worse = {"web": release(agent, "worse", "exit 1"), "db": release(agent, "db")}
    made = agent.apply(worse)
    assert made["reverted"], made
    assert history(agent)[-1]["origin"] == 1
    assert agent.apply(good)["ok"]
    assert folders(agent) == {"1", "db"}


def test_what_was_applied_at_rest_is_good_once_it_has_come_up(agent: Agent) -> None:
    tool = {**release(agent, "tool"), "autostart": False}
    web = release(agent, "1")
    agent.apply({"web": web, "tool": tool}, state="stopped")
    assert history(agent)[-1]["failure"] == "not finished"
    assert agent.apply({"web": web, "tool": tool})["ok"]
    assert history(agent)[-1]["failure"] is None, "what is not to be started is not waited for"
    assert agent.apply({}, state="absent")["ok"]
    assert [one["failure"] for one in history(agent)] == [None, None]


# Revisions


def test_rolling_back_twice_goes_back_further(agent: Agent) -> None:
    for number in "123":
        agent.apply({"web": release(agent, number)}, label=f"v{number}")
    planned = agent.ask("plan", project="shop", rollback_to="")
    made = rollback(agent)
    assert [(row["name"], row["action"], row["changes"]) for row in planned["instances"]] == [
        (row["name"], row["action"], row["changes"]) for row in made["instances"]
    ]
    assert folders(agent) == {"2"}
    assert rollback(agent)["ok"]
    assert folders(agent) == {"1"}
    assert "has no earlier revision that it could go back to" in rollback(agent)["message"]
    assert [(one["label"], one["origin"]) for one in history(agent)] == [
        *(("v1", None), ("v2", None), ("v3", None), ("v2", 2), ("v1", 1)),
    ]
    assert rollback(agent, "v3")["ok"]
    assert folders(agent) == {"3"}
    assert not rollback(agent, "3")["changed"], "it is there already"
    assert not rollback(agent, "v3")["changed"]
    assert "has no revision 77; there are 1 (v1), 2 (v2)" in rollback(agent, "77")["message"]


def test_back_leads_to_what_was_there_before_and_not_to_what_had_been_left(agent: Agent) -> None:
    for way in ({"to": ""}, {"to": None, "rollback_from": "v3"}):
        agent.apply({"web": release(agent, "1")}, label="v1")
        agent.apply({"web": release(agent, "2")}, label="v2")
        assert rollback(agent)["ok"]
        agent.apply({"web": release(agent, "3")}, label="v3")
        assert rollback(agent, **way)["ok"]
        assert folders(agent) == {"1"}
        assert (history(agent)[-1]["label"], history(agent)[-1]["origin"]) == ("v1", 1)
        assert "no earlier revision" in rollback(agent)["message"]


def test_back_to_a_release_after_many_that_failed(agent: Agent) -> None:
    """Nothing that is kept but them and what each of them has given way to."""
    agent.apply({"web": release(agent, "1")})
    for number in range(10):
        assert agent.apply({"web": {**release(agent, "2"), "command": f"/does/not/exist/{number}"}})["reverted"]
    agent.apply({"web": release(agent, "3")})
    assert rollback(agent)["ok"]
    assert folders(agent) == {"1"}


def test_back_from_a_label_is_done_once(agent: Agent) -> None:
    made = rollback(agent, None, rollback_from="v2")
    assert made["ok"], made
    assert not made["changed"], "what never was here has gone"
    agent.apply({"web": release(agent, "1")}, label="v1")
    agent.apply({"web": release(agent, "2")}, label="v2")
    agent.apply({"web": {**release(agent, "2"), "env": {"A": "1"}}}, label="v2")
    assert rollback(agent, None, rollback_from="v2")["changed"]
    assert folders(agent) == {"1"}
    assert not rollback(agent, None, rollback_from="v2")["changed"]
    assert not rollback(agent, None, rollback_from="v9")["changed"]


def test_twenty_revisions_are_kept(agent: Agent) -> None:
    for number in range(25):
        agent.apply({"web": {"command": LIVES, **QUICK, "kill_timeout": 1000 + number}})
    assert [one["revision"] for one in history(agent)] == list(range(6, 26))
    assert agent.ask("history", project="nobody")["message"] == "project nobody has no revisions here"


def test_a_release_behind_a_link_comes_back(agent: Agent) -> None:
    """The link has moved on when the release turns out bad: the old one starts where it was."""
    release(agent, "1")
    release(agent, "2", "exit 1")
    current = agent.folder / "current"
    current.symlink_to(agent.folder / "releases" / "1")
    web = {"command": "sh run.sh", "cwd": str(current), "instances": 2, "restart_when_changed": [str(current)], **QUICK}
    assert agent.apply({"web": web})["ok"]
    assert folders(agent) == {"1"}
    untouched = agent.pids()["web:1"]
    current.unlink()
    current.symlink_to(agent.folder / "releases" / "2")
    made = agent.apply({"web": web})
    assert not made["ok"]
    assert made["reverted"], made
    assert folders(agent) == {"1"}
    assert agent.pids()["web:1"] == untouched
    os.kill(agent.pids()["web:1"] or 0, signal.SIGKILL)
    until(lambda: agent.pids()["web:1"] not in (None, untouched), "it starts again")
    assert folders(agent) == {"1"}, "also one that was never replaced starts there"
    current.unlink()
    current.symlink_to(agent.folder / "releases" / "1")
    assert agent.apply({"web": web})["ok"]
    assert not agent.apply({"web": web})["changed"]


def test_what_was_overwritten_in_place_cannot_come_back(agent: Agent) -> None:
    web = {**release(agent, "1"), "instances": 2, "restart_when_changed": ["run.sh"]}
    assert agent.apply({"web": web})["ok"]
    untouched = agent.pids()["web:1"]
    release(agent, "1", "exit 1")
    made = agent.apply({"web": web}, label="v2")
    assert not made["ok"]
    assert not made["reverted"]
    assert "nothing can go back" in made["message"]
    assert agent.pids()["web:1"] == untouched
    release(agent, "1")
    assert agent.apply({"web": web})["ok"]
    assert {one["status"] for one in agent.instances().values()} == {"online"}


def test_what_failed_is_not_tried_again_unattended(agent: Agent) -> None:
    agent.apply({"web": release(agent, "1")})
    bad = {"web": release(agent, "2", "exit 1")}
    assert not agent.apply(bad, label="v2")["ok"]
    before = agent.pids()
    for kind in ("apply", "plan"):
        refused = agent.ask(kind, project="shop", definitions=bad, base="/", retry_failed=False)
        assert refused["type"] == "error"
        assert "revision 2 of project shop failed here at 20" in refused["message"]
        assert "not retried: web exited with code 1" in refused["message"]
    assert agent.pids() == before
    assert agent.apply({"web": release(agent, "3")}, retry_failed=False)["ok"]
    release(agent, "2")
    assert agent.apply(bad)["ok"], "somebody who is there may try again"
    again = agent.apply(bad, retry_failed=False)
    assert (again["ok"], again["changed"]) == (True, False), "it has come up since"


# The agent dies


@pytest.mark.parametrize("way", [Agent.crash, upgrade], ids=["killed", "upgraded"])
@pytest.mark.parametrize("order", ["stop_first", "start_first"])
def test_a_roll_goes_on_when_the_agent_is_back(agent: Agent, order: str, way: Callable[[Agent], None]) -> None:
    common: dict[str, Any] = {"instances": 3, "update": {"order": order}}
    agent.apply({"web": {**release(agent, "1"), **common}})
    gate = agent.folder / "gate"
    check = {"readiness_check": f"exec://sh -c 'test $PM3_INSTANCE_ID = 0 || test -e {gate}'", "readiness_timeout": 60}
    definitions = {"web": {**release(agent, "2"), **common, **check}}
    agent.apply(definitions, wait=False)
    until(lambda: folders(agent) == {"1", "2"}, "the roll has begun")
    way(agent)
    gate.touch()
    until(
        lambda: folders(agent) == {"2"} and {one["status"] for one in agent.instances().values()} == {"online"},
        "it goes on",
    )
    assert agent.apply(definitions)["ok"]  # perhaps it joins
    assert not agent.apply(definitions)["changed"]
    assert [one["failure"] for one in history(agent)] == [None, None]


def test_going_back_goes_on_when_the_agent_is_back(agent: Agent) -> None:
    """Killed while it went back: the next agent goes on with that."""
    gate = agent.folder / "gate"
    slow = f"exec://test -e {gate}"
    good = {**release(agent, "1"), "instances": 3, "readiness_check": slow, "readiness_timeout": 60}
    gate.touch()
    agent.apply({"web": good})
    gate.unlink()
    script = 'if [ "$PM3_INSTANCE_ID" = 2 ]; then exit 1; fi; exec sleep 1000'
    agent.apply({"web": {**release(agent, "2", script), "instances": 3}}, wait=False)
    until(lambda: [one["origin"] for one in history(agent)] == [None, None, 1], "it is on its way back")
    agent.crash()
    gate.touch()
    until(
        lambda: folders(agent) == {"1"} and {one["status"] for one in agent.instances().values()} == {"online"},
        "all are back",
    )
    assert agent.apply({"web": good})["ok"]
    assert not agent.apply({"web": good})["changed"]


def test_a_stop_before_the_agent_died_is_obeyed_by_the_next(agent: Agent) -> None:
    agent.apply({"web": {**release(agent, "1"), "instances": 2}, "job": release(agent, "job")})
    gate = agent.folder / "gate"
    check = {"readiness_check": f"exec://test -e {gate}", "readiness_timeout": 60}
    agent.apply({"web": {**release(agent, "2"), "instances": 2, **check}, "job": release(agent, "job")}, wait=False)
    until(lambda: "2" in folders(agent), "the roll has begun")
    agent.ask("stop", names=["job"])
    agent.crash()
    gate.touch()
    until(
        lambda: (
            folders(agent) == {"2"}
            and {one["status"] for name, one in agent.instances().items() if name != "job"} == {"online"}
        ),
        "it goes on",
    )
    assert agent.instance("job")["status"] == "stopped"
    assert (
        actions(agent.apply({"web": {**release(agent, "2"), "instances": 2, **check}, "job": release(agent, "job")}))[
            "job"
        ]
        == "started"
    )


# Several at once


def test_the_same_again_joins_and_another_one_waits(agent: Agent) -> None:
    agent.apply({"web": {**release(agent, "1"), "instances": 2}})
    gate = agent.folder / "gate"
    second = {
        "web": {
            **release(agent, "2"),
            "instances": 2,
            "readiness_check": f"exec://test -e {gate}",
            "readiness_timeout": 60,
        }
    }
    third = {"web": {**release(agent, "3"), "instances": 2}}
    results: dict[str, Any] = {}

    def ask(name: str, definitions: dict[str, Any]) -> threading.Thread:
        thread = threading.Thread(target=lambda: results.update({name: agent.apply(definitions)}))
        thread.start()
        return thread

    threads = [ask("one", second)]
    until(lambda: "2" in folders(agent), "the roll has begun")
    threads.append(ask("again", second))
    rows: list[dict[str, Any]] = []
    joined = threading.Thread(
        target=lambda: results.update(
            joined=agent.ask(
                "apply", project="shop", definitions=second, base=str(agent.folder), progress=True, on_row=rows.append
            )
        )
    )
    joined.start()
    until(lambda: rows, "it is told what had happened before it came")
    threads.append(ask("other", third))
    gate.touch()
    for thread in [*threads, joined]:
        thread.join(20)
    assert results["one"] == results["again"] == results["joined"]
    assert results["one"]["ok"]
    assert actions(results["other"]) == {"web:0": "rolled", "web:1": "rolled"}
    assert folders(agent) == {"3"}
    assert [one["revision"] for one in history(agent)] == [1, 2, 3]


def test_a_stop_ends_the_roll_and_nothing_goes_back(agent: Agent) -> None:
    agent.apply({"web": {**release(agent, "1"), "instances": 3}})
    gate = agent.folder / "gate"
    check = {"readiness_check": f"exec://sh -c 'test $PM3_INSTANCE_ID = 0 || test -e {gate}'", "readiness_timeout": 60}
    definitions = {"web": {**release(agent, "2"), "instances": 3, **check}}
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(agent.apply(definitions)))
    thread.start()
    until(
        lambda: (
            len([one for one in agent.instances().values() if one["status"] == "starting"]) == 1
            and "2" in folders(agent)
        ),
        "web:1 is being checked",
    )
    until(lambda: agent.instance("web:1")["status"] == "starting", "web:1 is being checked")
    agent.ask("stop", names=["web:1"])
    thread.join(20)
    (made,) = results
    assert [row["action"] for row in made["instances"]] == ["rolled", "failed", "skipped"]
    assert reasons(made)["web:1"].startswith("was stopped meanwhile (pm3 stop by ")
    assert not made["reverted"]
    assert agent.instance("web:1")["status"] == "stopped"
    assert folders(agent) == {"1", "2"}
    gate.touch()
    made = agent.apply(definitions)
    assert actions(made) == {"web:0": "none", "web:1": "started", "web:2": "rolled"}


@pytest.mark.parametrize("order", ["stop_first", "start_first"])
def test_a_stop_of_what_has_come_up_already_ends_the_roll_too(agent: Agent, order: str) -> None:
    common: dict[str, Any] = {"instances": 3, "update": {"order": order}}
    agent.apply({"web": {**release(agent, "1"), **common}})
    before = agent.pids()
    check = {"readiness_check": f"exec://sh -c 'test $PM3_INSTANCE_ID = 0 || test -e {agent.folder}/gate'"}
    definitions = {"web": {**release(agent, "2"), **common, **check, "readiness_timeout": 60}}
    rows: list[dict[str, Any]] = []
    made = in_background(lambda: agent.apply(definitions, progress=True, on_row=rows.append))
    until(lambda: any(row["name"] == "web:1" for row in rows), "web:0 is replaced, and web:1 is being so")
    assert agent.ask("stop", names=["web:0"])["type"] == "success"
    (agent.folder / "gate").touch()
    result = made()
    assert not result["ok"]
    assert not result["reverted"]
    assert reasons(result)["web:0"].startswith("was stopped meanwhile (pm3 stop by ")
    assert actions(result) == {"web:0": "failed", "web:1": "rolled", "web:2": "skipped"}
    assert agent.instance("web:0")["status"] == "stopped"
    assert agent.pids()["web:2"] == before["web:2"]


def test_a_name_means_all_instances_while_one_becomes_several(agent: Agent) -> None:
    agent.apply({"web": release(agent, "1")})
    check = {"readiness_check": f"exec://test -e {agent.folder}/gate", "readiness_timeout": 60}
    made = in_background(lambda: agent.apply({"web": {**release(agent, "1"), **check, "instances": 3}}))
    until(
        lambda: sorted(filter(agent.pids().get, agent.pids())) == ["web", "web:1", "web:2"],
        "the others are being checked",
    )
    assert agent.ask("stop", names=["web"])["message"] == "stopped: web, web:1, web:2"
    assert not made()["ok"]
    assert {one["status"] for one in agent.instances().values()} == {"stopped"}


def test_who_leaves_ends_nothing(agent: Agent) -> None:
    agent.apply({"web": {**release(agent, "1"), "instances": 2}})
    gate = agent.folder / "gate"
    check = {"readiness_check": f"exec://test -e {gate}", "readiness_timeout": 60}
    (agent.folder / "pm3.toml").write_text(
        f'[web]\ncommand = "sh run.sh"\ncwd = {str(agent.folder / "releases" / "2")!r}\ninstances = 2\nmin_uptime = 30\n'
        f'readiness_check = "{check["readiness_check"]}"\nreadiness_timeout = 60\n'.replace("'", '"')
    )
    release(agent, "2")
    process = agent.begin("apply", "pm3.toml", "--project", "shop")
    until(lambda: "2" in folders(agent), "the roll has begun")
    process.kill()
    process.wait()
    gate.touch()
    until(lambda: folders(agent) == {"2"}, "it goes on")


def test_an_agent_that_ends_says_what_becomes_of_it(agent: Agent) -> None:
    agent.apply({"web": {**release(agent, "1"), "instances": 2}})
    definitions = {
        "web": {**release(agent, "2"), "instances": 2, "readiness_check": "exec://false", "readiness_timeout": 60}
    }
    results: list[Any] = []
    thread = threading.Thread(
        target=lambda: results.append(agent.ask("apply", project="shop", definitions=definitions, base="/"))
    )
    thread.start()
    until(lambda: "2" in folders(agent), "the roll has begun")
    agent.end()
    thread.join(20)
    assert results[0]["message"].startswith("interrupted: the agent was asked to end")


# Owners


def test_a_name_is_taken_over(agent: Agent) -> None:
    agent.apply({"web": release(agent, "1")}, project="other")
    pid = agent.pids()["web"]
    assert (
        "belongs to project other"
        in agent.ask("apply", project="shop", definitions={"web": release(agent, "1")}, base="/")["message"]
    )
    made = agent.apply({"web": release(agent, "1")}, take_over=True)
    assert (actions(made), reasons(made)) == ({"web": "updated"}, {"web": "belonged to project other"})
    assert agent.pids()["web"] == pid
    assert agent.instance("web")["project"] == "shop"
    assert (
        "belongs to project shop"
        in agent.ask("apply", project="other", definitions={"web": release(agent, "1")}, base="/")["message"]
    )
    assert agent.apply({}, project="other", state="absent")["ok"]
    assert agent.pids()["web"] == pid


def test_what_was_taken_over_is_the_others_no_more(agent: Agent) -> None:
    agent.apply({"web": release(agent, "1"), "api": release(agent, "api")}, project="other")
    assert agent.apply({"web": release(agent, "1")}, take_over=True)["ok"]
    definitions = agent.ask("snapshot")["definitions"]
    assert (list(definitions["other"]), list(definitions["shop"])) == (["api"], ["web"])
    assert not agent.apply({"api": release(agent, "api")}, project="other")["changed"]


def test_what_comes_too_late_to_be_done_leaves_nothing_to_join(agent: Agent) -> None:
    """Two go back at once, and there is one place to go back to: the second fails in its turn, and so does the same again."""
    for number in "12":
        agent.apply({"web": release(agent, number)})
    gate = agent.folder / "gate"
    check = {"readiness_check": f"exec://test -e {gate}", "readiness_timeout": 60}
    agent.apply({"web": {**release(agent, "3"), **check}}, wait=False)
    until(lambda: "3" in folders(agent), "something is under way")
    results: list[Any] = []
    threads = [
        threading.Thread(target=lambda: results.append(rollback(agent, "2"))),
        threading.Thread(target=lambda: results.append(agent.apply({"web": release(agent, "4")}))),
    ]
    for thread in threads:
        thread.start()
    gate.touch()
    for thread in threads:
        thread.join(20)
    assert len(results) == 2
    assert all(one["ok"] for one in results)
    for _again in range(3):
        rollback(agent)
    assert "has no earlier revision" in rollback(agent)["message"]
    assert "has no earlier revision" in rollback(agent)["message"]


def test_what_cannot_be_ended_brings_nothing_back(agent: Agent) -> None:
    """A project that is to go goes, also when it had failed before."""
    agent.apply({"web": release(agent, "1")})
    assert not agent.apply({"web": release(agent, "2", "exit 1")})["ok"]
    assert agent.apply({}, state="absent")["ok"]
    assert agent.instances() == {}
    assert rollback(agent)["ok"], "and can come back"
    assert folders(agent) == {"1"}


def test_how_an_update_goes_may_come_with_the_request(agent: Agent) -> None:
    own = {**release(agent, "2"), "update": {"max_unavailable": 2}}
    made = agent.apply({"web": release(agent, "1"), "api": own}, update={"on_failure": "pause"})
    assert made["ok"]
    definitions = agent.ask("snapshot")["definitions"]["shop"]
    assert definitions["web"]["update"] == {"on_failure": "pause"}
    assert definitions["api"]["update"] == {"max_unavailable": 2}


def test_reloaded(agent: Agent) -> None:
    agent.apply(
        {
            "web": {
                "command": shlex.join(["sh", "-c", "trap 'echo again' HUP; while :; do sleep 0.01; done"]),
                "reload_signal": "HUP",
                **QUICK,
            },
            "api": server(agent, "1"),
        }
    )
    before = agent.pids()
    definitions = agent.ask("snapshot")["definitions"]["shop"]
    made = agent.apply(definitions, state="reloaded")
    assert actions(made) == {"web": "reloaded", "api": "reloaded"}, made
    until(lambda: Path(agent.data_dir / "logs" / "web-out.log").read_text() == "again\n", "it got its signal")
    assert agent.pids()["web"] == before["web"]
    assert agent.pids()["api"] != before["api"]
