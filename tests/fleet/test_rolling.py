"""Releases behind real traffic: a good one loses no request, a bad one costs none and is taken back. And drift, put right."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import Play, Played, Result, processes
from hosts import Fleet

HOST = "app1"
INSTANCES = 8
SHARED, PROXY, FIRST = 8000, 8001, 8100  # ports: the inherited socket, the proxy, and the first of its backends


def inheriting(release: str, way: str = "well", **fields: Any) -> dict[str, Any]:
    """All instances share a socket of the agent's."""
    return {
        "command": f"python3 /srv/shop/release.py {release} {way}",
        "instances": INSTANCES,
        "listen": [f"tcp://127.0.0.1:{SHARED}"],
        "readiness_check": "notify://",
        "min_uptime": "50ms",
        **fields,
    }


def slotted(release: str, way: str = "well", **fields: Any) -> dict[str, Any]:
    """Each copy of each instance has a port of its own, and a proxy knows them all."""
    port = f"@{{{FIRST} + 2 * instance + slot}}"
    return {
        "command": f"python3 /srv/shop/release.py {release} {way}",
        "instances": INSTANCES,
        "env": {"PORT": port},
        "readiness_check": f"http://127.0.0.1:{port}/",
        "update": {
            "order": "start_first",
            "max_surge": "100%",
        },  # all at once: whoever stops an old one too early loses all
        "min_uptime": "50ms",
        **fields,
    }


Made = Callable[..., dict[str, Any]]
KINDS = {inheriting: [SHARED], slotted: [PROXY, FIRST, FIRST + 2 * INSTANCES - 1]}
BOTH = pytest.mark.parametrize("made", KINDS, ids=["listen", "start_first"])


class Traffic:
    """Clients on the host that ask without pause while the block runs."""

    def __init__(self, fleet: Fleet, made: Made) -> None:
        self._words = fleet.ssh_command(HOST, "python3", "/srv/shop/traffic.py", *map(str, KINDS[made]))
        self.answers: dict[str, int] = {}
        self.failed: list[str] = []
        self.last: list[str] = []

    def __enter__(self) -> Traffic:
        self._clients = subprocess.Popen(self._words, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._clients.stdout is not None
        assert self._clients.stdout.readline() == "begun\n"
        return self

    def __exit__(self, *_error: object) -> None:
        told, _nothing = self._clients.communicate(timeout=60)
        vars(self).update(json.loads(told))


def several(play: Play, **tasks: dict[str, Any]) -> dict[str, Result]:
    """Runs tasks in one play, also after one that fails; gives the result of each. Those named `checked` are in check mode."""
    listed = [
        {**task, "register": name, "ignore_errors": True, **({"check_mode": True} if name == "checked" else {})}
        for name, task in tasks.items()
    ]
    found = {"ansible.builtin.set_fact": {"found": {name: f"{{{{ {name} }}}}" for name in tasks}}}
    done = play([*listed, found], hosts=HOST)
    assert done.status == 0, done.output
    results: dict[str, Result] = done.results[HOST]["ansible_facts"]["found"]
    return results


@pytest.fixture(scope="module")
def shop(agents: str, play: Play) -> Iterator[Callable[..., Result]]:
    """Applies definitions where nothing of the project was."""
    absent = processes(state="absent")

    def begin(label: str = "v1", **definitions: Any) -> Result:
        found = several(play, absent=absent, began=processes(definitions=definitions, label=label))["began"]
        assert not found.get("failed"), found
        return found

    yield begin
    done = play([absent], hosts=HOST)
    assert done.status == 0, done.output


def history(fleet: Fleet, since: int) -> list[tuple[int, str, int | None]]:
    """Number, label and origin of the revisions from one on: those of earlier tests are remembered as well."""
    found = json.loads(fleet.ssh(HOST, "pm3 --json history shop").stdout)["revisions"]
    return [(one["revision"], one["label"], one["origin"]) for one in found if one["revision"] >= since]


def failing(play: Play, **options: Any) -> tuple[Played, Result]:
    done = play([processes(**options)], hosts=HOST, vars={"keep_going": True})
    result = done.results[HOST]
    assert result["failed"], result
    return done, result


# Good ones


@BOTH
def test_a_roll_behind_traffic_loses_no_request(
    fleet: Fleet, play: Play, shop: Callable[..., Result], made: Made
) -> None:
    first = shop(web=made("1"))["revision"]
    with Traffic(fleet, made) as traffic:
        done = play([processes(definitions={"web": made("2")}, label="v2")], hosts=HOST)
        assert done.status == 0, done.output
    assert traffic.failed == []
    assert set(traffic.answers) == {"1", "2"}
    assert set(traffic.last) == {"2"}
    assert done.actions() == {f"web:{number}": "rolled" for number in range(INSTANCES)}
    assert done.results[HOST]["revision"] == first + 1
    assert history(fleet, first) == [(first, "v1", None), (first + 1, "v2", None)]
    again = play([processes(definitions={"web": made("2")}, label="v2")], hosts=HOST)
    assert "changed=0" in again.output


# Bad ones


BAD = {
    "crashes": (inheriting, {}, "exited with code 1", "cannot find the ledger"),
    "hangs": (
        slotted,
        {"readiness_timeout": "500ms", "update": {"order": "start_first"}},
        "did not become ready",
        "release 2 listens",
    ),
    "silent": (inheriting, {"readiness_timeout": "500ms"}, "has not sent READY=1", "release 2 listens"),
    "dies": (inheriting, {"min_uptime": "5s"}, "exited with code 9", "cannot write the ledger"),
}


@pytest.mark.parametrize("way", BAD)
def test_a_bad_release_goes_back_and_costs_no_request(
    fleet: Fleet, play: Play, shop: Callable[..., Result], way: str
) -> None:
    made, fields, why, last_line = BAD[way]
    began = shop(web=made("1"))
    first = began["revision"]
    with Traffic(fleet, made) as traffic:
        done, result = failing(play, definitions={"web": made("2", way, **fields)}, label="v2")
    assert traffic.failed == []
    assert set(traffic.last) == {"1"}
    assert set(traffic.answers) == ({"1", "2"} if way == "dies" else {"1"})  # that one answers while it lives

    for words in ("web:0 ", why, f"| {last_line}", f"went back to revision {first}"):
        assert words in result["msg"]
        assert words in done.output
    assert result["reverted"] is True
    assert why in result["instances"][0]["reason"]
    assert result["instances"][0]["log_tail"][-1] == last_line
    assert [row["action"] for row in result["instances"]] == ["failed", *["skipped"] * (INSTANCES - 1)]
    before, after = ({row["name"]: row["pid"] for row in one["instances"]} for one in (began, result))
    replaced = [name for name in before if before[name] != after[name]]
    assert replaced == ["web:0"] * (made is inheriting)  # where a copy is tried beside it nothing is replaced at all
    assert history(fleet, first) == [(first, "v1", None), (first + 1, "v2", None), (first + 2, "v1", first)]
    again = play([processes(definitions={"web": made("1")}, label="v1")], hosts=HOST)
    assert "changed=0" in again.output


def test_one_that_falls_in_the_middle_takes_those_before_it_back(
    fleet: Fleet, play: Play, shop: Callable[..., Result]
) -> None:
    """Two at a time; one of the third pair cannot run."""
    shop(web=inheriting("1"))
    update = {"order": "start_first", "max_surge": 2}
    bad = inheriting("2")
    bad["command"] = "sh -c 'test $PM3_INSTANCE_ID -ne 4 || exit 5; exec " + bad["command"] + "'"
    with Traffic(fleet, inheriting) as traffic:
        _done, result = failing(play, definitions={"web": bad}, label="v2", update=update)
    assert traffic.failed == []
    assert set(traffic.last) == {"1"}
    actions = {row["name"]: row["action"] for row in result["instances"]}
    assert [actions[f"web:{number}"] for number in (0, 1, 2, 3, 4, 6, 7)] == [
        *["reverted"] * 4,
        "failed",
        *["skipped"] * 2,
    ]
    assert result["reverted"] is True


# Drift


def test_drift_is_reported_and_put_right(fleet: Fleet, play: Play, shop: Callable[..., Result]) -> None:
    there = {
        "stopped": {"command": "sleep 1000000", "min_uptime": "50ms"},
        "killed": {"command": "sleep 1000001", "min_uptime": "50ms", "max_restarts": 1},
        "deleted": {"command": "sleep 1000000", "min_uptime": "50ms", "instances": 2},
        "left": {"command": "sleep 1000000", "min_uptime": "50ms"},
    }
    before = {row["name"]: row["pid"] for row in shop(**there)["instances"]}
    given_up = """pm3 --json info killed | grep -q '"phase":"down"'"""
    hand = f"pm3 stop stopped; pm3 delete deleted; until {given_up}; do pkill -KILL -fx '.*sleep 1000001'; done"
    fleet.ssh(HOST, hand, timeout=30)

    shown = {"pm3.fleet.process_info": {"project": "shop"}}
    apply = processes(definitions=there)
    found = several(play, drifted=shown, checked=apply, after_it=shown, run=apply, again=apply)
    drifted, unchanged = (
        [(one["name"], one["status"], one["pid"]) for one in found[name]["instances"]]
        for name in ("drifted", "after_it")
    )
    assert unchanged == drifted
    assert [one[:2] for one in drifted] == [("killed", "errored"), ("left", "online"), ("stopped", "stopped")]
    for name in ("checked", "run"):
        assert {row["name"]: (row["action"], row["reason"]) for row in found[name]["instances"]} == {
            "stopped": ("started", "was stopped"),
            "killed": ("started", "was errored"),
            "deleted:0": ("created", "was missing"),
            "deleted:1": ("created", "was missing"),
            "left": ("none", ""),
        }
    after = {row["name"]: row for row in found["run"]["instances"]}
    assert {row["status"] for row in after.values()} == {"online"}
    assert after["left"]["pid"] == before["left"]
    assert found["run"]["changed"]
    assert not found["again"]["changed"]
