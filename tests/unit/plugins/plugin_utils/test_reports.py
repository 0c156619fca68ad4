# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a whole fleet has to say, from the results of its hosts."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

from ansible_collections.pm3.fleet.plugins.plugin_utils import _reports


def instance(name: str, status: str = "online", **fields: Any) -> dict[str, Any]:
    runs = status != "stopped" and status != "errored"
    return {
        "name": name,
        "process": name.partition(":")[0],
        "project": "shop",
        "status": status,
        "wanted": True,
        "pid": 4711 if runs else None,
        "uptime": 60 if runs else None,
        "restarts": 0,
        "total_restarts": 2,
        "cpu_percent": 1.5 if runs else None,
        "memory_bytes": 30 << 20 if runs else None,
        "last_exit": None,
        **fields,
    }


def found(*instances: dict[str, Any], version: str = "0.1.0") -> dict[str, Any]:
    """What `process_info` gives on a host."""
    current = {"revision": 7, "label": "v42", "current": True}
    return {
        "agent": {"version": version},
        "instances": list(instances),
        "revisions": {"shop": [{"revision": 6, "label": None, "current": False}, current]},
    }


UNREACHABLE = {"unreachable": True, "msg": "Failed to connect:\nno route to host"}
FAILED = {"failed": False, "msg": "permission denied: use become", "instances": []}


def row(name: str, action: str = "none", reason: str = "", *changes: dict[str, Any]) -> dict[str, Any]:
    made = {"name": name, "process": name.partition(":")[0], "action": action, "changed": action != "none"}
    return {**made, "status": "online", "reason": reason, "changes": list(changes), "log_tail": []}


# Status


def test_trouble_comes_first_then_what_somebody_wished_then_what_is_well() -> None:
    document = _reports.status(
        {
            "app10": found(instance("web:0", "unhealthy"), instance("web:1")),
            "app2": found(instance("web:10"), instance("web:9"), instance("job", "stopped", wanted=False)),
            "app1": found(instance("db", "errored", last_exit={"message": "exited with code 3"})),
        }
    )
    assert [(one["host"], one["name"]) for one in document["instances"]] == [
        ("app1", "db"),
        ("app10", "web:0"),
        ("app2", "job"),
        ("app2", "web:9"),
        ("app2", "web:10"),
        ("app10", "web:1"),
    ]
    assert document["summary"]["trouble"] == 2
    assert document["instances"][0]["note"] == "exited with code 3"
    assert document["instances"][0]["revision"] == "v42"
    assert document["report"] == [
        "HOST   INSTANCE  STATUS     RESTARTS   MEMORY   CPU  REVISION  NOTE",
        "app1   db        errored           2                 v42       exited with code 3",
        "app10  web:0     unhealthy         2  30.0 MB  1.5%  v42",
        "app2   job       stopped           2                 v42",
        "app2   web:9     online            2  30.0 MB  1.5%  v42",
        "app2   web:10    online            2  30.0 MB  1.5%  v42",
        "app10  web:1     online            2  30.0 MB  1.5%  v42",
        "6 instances on 3 hosts: 1 errored, 1 unhealthy, 1 stopped, 3 online",
        "agents: 0.1.0 on 3",
    ]


def test_who_gave_no_answer_is_said_first() -> None:
    document = _reports.status(
        {"app1": UNREACHABLE, "app2": FAILED, "app3": {}, "app4": found(), "app5": found(version="9")}
    )
    assert document["report"] == [
        "app1: unreachable: Failed to connect:",
        "app2: failed: permission denied: use become",
        "app3: failed: it was not asked",
        "0 instances on 5 hosts",
        "agents: 0.1.0 on 1, 9 on 1",
    ]
    assert [document["summary"][key] for key in ("hosts", "unreachable", "failed")] == [5, 1, 2]


def test_a_host_without_an_agent_and_a_fleet_without_hosts() -> None:
    nothing = {"agent": None, "instances": [], "revisions": {}}
    assert _reports.status({"app1": nothing})["summary"]["without_agent"] == 1
    assert _reports.status({"app1": nothing})["report"][-1] == "agents: none on 1"
    assert _reports.status({})["report"] == ["0 instances on 0 hosts"]


# The page


class Reader(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def fleet(hosts: int, instances: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for number in range(1, hosts + 1):
        states = ("errored", "unhealthy") if number % 30 == 7 else ("online",)
        rows = [
            instance(f"web:{place}", states[place % 20 % len(states)] if place < 3 else "online")
            for place in range(instances)
        ]
        results[f"app{number}"] = found(*rows)
    return results


def test_a_page_of_a_hundred_hosts_with_fifty_instances_needs_nothing_else() -> None:
    page = _reports.page(_reports.status(fleet(100, 50)), "2026-11-20 19:34")
    reader = Reader(page)
    assert sum(tag == "details" for tag, _attributes in reader.elements) == 101
    assert page.count("<tr><td>web:") == 5000
    links = [attributes for _tag, attributes in reader.elements if {"src", "href"} & attributes.keys()]
    assert links == []
    assert "@import" not in page
    assert "url(" not in page
    assert page.index("In trouble") < page.index(">Hosts<")
    assert (
        page.index("<b>app7</b>") < page.index("<b>app1</b>") < page.index("<b>app2</b>") < page.index("<b>app10</b>")
    )


def test_what_hosts_say_is_text_on_the_page() -> None:
    evil = '<script>alert("1")</script>'
    results = {
        evil: found(instance(evil, "errored", project=evil, last_exit={"message": evil}, held=evil), version=evil),
        "app1": {"unreachable": True, "msg": evil},
        "app2": {"failed": True, "msg": evil},
    }
    reader = Reader(_reports.page(_reports.status(results), evil))
    assert sum(tag == "script" for tag, _attributes in reader.elements) == 1  # its own
    assert sum(evil in text for text in reader.texts) >= 8


def test_pages_of_little() -> None:
    assert "No host gave an answer" in _reports.page(_reports.status({}), "now")
    assert "is unreachable" in _reports.page(_reports.status({"app1": UNREACHABLE}), "now")
    assert "no agent" in _reports.page(_reports.status({"app1": {"agent": None, "instances": []}}), "now")


# Drift


def test_drift_is_one_line_for_each_instance_with_the_reason() -> None:
    change = {"field": "env.PORT", "before": "1", "after": "2", "effect": "restart"}
    document = _reports.drift(
        {
            "app2": {"project": "shop", "instances": [row("web:0"), row("web:1", "started", "was stopped")]},
            "app1": {
                "project": "shop",
                "instances": [row("db", "rolled", "", change), row("job", reason="held by ada since noon")],
            },
        }
    )
    assert document["report"] == [
        "HOST  INSTANCE  ACTION   WHY",
        'app1  db        rolled   env.PORT: "1" -> "2"',
        "app2  web:1     started  was stopped",
        "app1  job       held     held by ada since noon",
        "drift: 2 instances on 2 of 2 hosts",
    ]
    assert [(one["host"], one["project"], one["name"]) for one in document["drifted"]] == [
        ("app1", "shop", "db"),
        ("app2", "shop", "web:1"),
    ]
    json.dumps(document)


def test_what_is_held_alone_is_no_drift() -> None:
    document = _reports.drift({"app1": {"project": "shop", "instances": [row("job", reason="held by ada since noon")]}})
    assert document["drifted"] == []
    assert document["report"][-1] == "no drift on 1 host"


def test_results_of_a_loop_and_hosts_that_gave_no_answer() -> None:
    document = _reports.drift(
        {
            "app1": {"results": [{"project": "shop", "instances": [row("web", "created", "new")]}, FAILED]},
            "app2": {"results": [UNREACHABLE, UNREACHABLE], "unreachable": True},
            "app3": UNREACHABLE,
        }
    )
    assert [one["name"] for one in document["drifted"]] == ["web"]
    assert [one["host"] for one in document["failed"]] == ["app1"]
    assert [one["host"] for one in document["unreachable"]] == ["app2", "app3"]
    assert document["report"][0] == "app2: unreachable: Failed to connect:"


def test_a_host_that_gave_no_answer_is_none_without_drift() -> None:
    well = {"results": [{"project": "shop", "instances": [row("web")]}]}
    raised = {"failed": True, "msg": "'mine' is undefined"}
    document = _reports.drift({"app1": well, "app2": raised, "app3": {"results": [raised, raised]}, "app4": {}})
    assert {one["host"] for one in document["failed"]} == {"app2", "app3", "app4"}
    assert document["report"][-1] == "no drift on 1 of 4 hosts"


# Rollouts


def applied(before: str, after: str, *rows: dict[str, Any], **fields: Any) -> dict[str, Any]:
    changed = sum(one["changed"] for one in rows)
    summary = {"ok": len(rows) - changed, "changed": changed, "failed": 0}
    facts = {"previous_label": before, "label": after, "changed": bool(changed), "reverted": False}
    return {**facts, "summary": summary, "instances": list(rows), **fields}


def outcome(result: dict[str, Any], error: str = "", **fields: Any) -> dict[str, Any]:
    made = {"result": result, "error": error, "unreachable": False, "leave": False, "drained": False, "seconds": 1.5}
    made["release"] = "shop to 42"
    return {"pm3_rollout_outcome": {**made, **fields}, "pm3_rollout_stopped": bool(error)}


def test_a_rollout_that_went_well() -> None:
    rolled = applied("41", "42", row("web:0", "rolled"), row("db"))
    document = _reports.rollout(
        {"app2": outcome(applied("42", "42", row("db"))), "app1": outcome(rolled)}, "shop", "42"
    )
    assert document["ok"] is True
    assert document["report"] == [
        "HOST  STATE     BEFORE  AFTER  OK  CHANGED  FAILED  REVERTED  SECONDS",
        "app1  released  41      42      1        1       0         0      1.5",
        "app2  ok        42      42      1        0       0         0      1.5",
        "release 42 of shop: done: 1 released, 1 ok",
    ]


def test_a_rollout_that_went_back() -> None:
    """One is at fault, one went back with it, one was never reached, one cannot be; and one is left drained."""
    failed = {**row("web:0", "failed", "exited with code 3"), "log_tail": ["out of cheese"]}
    back = {
        "release": "shop to 42",
        "error": "",
        "unreachable": False,
        "result": applied("42", "41", row("web:0", "rolled")),
    }
    nothing = {"release": "shop to 42", "error": "", "unreachable": False, "result": applied("41", "41", row("web:0"))}
    document = _reports.rollout(
        {
            "app1": {**outcome(applied("41", "42", row("web:0", "rolled"))), "pm3_rollout_return": back},
            "app2": {
                **outcome(applied("41", "41", failed, reverted=True), "web:0 exited with code 3\nweb:0 failed"),
                "pm3_rollout_return": nothing,
            },
            "app3": outcome({}, "cannot be reached: no route", unreachable=True),
            "app4": {"pm3_rollout_return": nothing},
            "app5": outcome(applied("41", "42", failed), "web:0 exited with code 3", drained=True),
        },
        "shop",
        "42",
    )
    assert {one["host"]: one["state"] for one in document["hosts"]} == {
        "app1": "went back",
        "app2": "went back",
        "app3": "unreachable",
        "app4": "not reached",
        "app5": "failed",
    }
    assert [(one["before"], one["after"]) for one in document["hosts"]][:2] == [("41", "41"), ("41", "41")]
    assert document["stopped"]
    assert not document["ok"]
    assert document["report"][6:] == [
        "app2: web:0 exited with code 3",
        "    | out of cheese",
        "app3: cannot be reached: no route",
        "app5: web:0 exited with code 3",
        "    | out of cheese",
        "app5: is still drained",
        "release 42 of shop: stopped: 2 went back, 1 failed, 1 unreachable, 1 not reached",
    ]


def test_a_rollback_and_no_hosts() -> None:
    left = outcome(applied("42", "41", row("web", "rolled")), leave=True, release="shop from 42")
    assert _reports.rollout({"app1": left}, "shop", "42")["report"][-1] == "release 42 of shop: done: 1 went back"
    assert _reports.rollout({}, "shop", "42")["report"] == ["release 42 of shop: done: no hosts"]


def test_who_was_not_reached_or_has_dropped_out_is_no_success() -> None:
    well = outcome(applied("41", "42", row("web", "rolled")))
    document = _reports.rollout({"app1": well, "app2": {}}, "shop", "42")
    assert [one["state"] for one in document["hosts"]] == ["released", "not reached"]
    assert not document["ok"]
    document = _reports.rollout({"app1": well, "app2": {}}, "shop", "42", ["app2"])
    assert not document["ok"]
    assert document["report"][-2:] == [
        "app2: failed outside of the rollout, see above",
        "release 42 of shop: done, with failures: 1 released, 1 failed",
    ]


def test_what_an_earlier_rollout_has_left_is_none_of_this_one() -> None:
    earlier = outcome({}, "web exited with code 3", release="mail to 7")
    back = {
        "release": "mail to 7",
        "error": "",
        "unreachable": False,
        "result": applied("7", "6", row("web", "rolled")),
    }
    document = _reports.rollout({"app1": {**earlier, "pm3_rollout_return": back}}, "shop", "42", ["app1"])
    assert not document["stopped"]
    assert document["report"][-2:] == [
        "app1: failed outside of the rollout, see above",
        "release 42 of shop: done, with failures: 1 failed",
    ]
