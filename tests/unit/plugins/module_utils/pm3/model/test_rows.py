# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Result rows and the lines that people read."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.definition import load
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.plan import Action, Actual, Change, plan
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.rows import failed, report, row, summary

WEB = load({"web": {"command": "serve", "cwd": "/srv/shop/releases/41"}})["web"]
KEYS = (
    *("name", "process", "action", "changed", "status", "pid"),
    *("restarts", "total_restarts", "last_exit", "reason", "changes", "log_tail", "seconds"),
)


def change(name: str, action: Action, reason: str = "") -> Change:
    return Change(name, name.partition(":")[0], 0, 1, action, WEB, reason)


def test_a_row_has_the_keys_of_the_contract() -> None:
    made = row(
        change("web", Action.ROLLED, "why"), "online", pid=7, restarts=2, total_restarts=5, last_exit={"cause": "exit"}
    )
    assert tuple(made) == KEYS
    assert made == {
        "name": "web",
        "process": "web",
        "action": "rolled",
        "changed": True,
        "status": "online",
        "pid": 7,
        "restarts": 2,
        "total_restarts": 5,
        "last_exit": {"cause": "exit"},
        "reason": "why",
        "changes": [],
        "log_tail": [],
        "seconds": None,
    }


@pytest.mark.parametrize("action", list(Action))
def test_everything_but_none_is_a_change(action: Action) -> None:
    assert row(change("web", action), "online")["changed"] is (action is not Action.NONE)


def test_a_failed_row_keeps_that_something_was_touched() -> None:
    rolled, untouched = (row(change("web", action), "errored") for action in (Action.ROLLED, Action.NONE))
    assert failed(rolled, "exited with code 1", ["Traceback"]) == {
        **rolled,
        "action": "failed",
        "reason": "exited with code 1",
        "log_tail": ["Traceback"],
    }
    assert failed(untouched, "held")["changed"] is False
    assert rolled["action"] == "rolled"


def test_summary_counts_each_row_once() -> None:
    made = [
        row(change("web", action), "online") for action in (Action.NONE, Action.NONE, Action.UPDATED, Action.REMOVED)
    ]
    assert summary([*made, failed(made[0], "held"), failed(made[2], "gone")]) == {
        "ok": 2,
        "changed": 2,
        "failed": 2,
        "skipped": 0,
    }
    assert summary([]) == {"ok": 0, "changed": 0, "failed": 0, "skipped": 0}


def test_the_report_of_the_readme() -> None:
    """The lines of DESIGN's first page, made from a plan."""
    tables: dict[str, Any] = {"db": {"command": "db", "instances": 2}, "worker": {"command": "work", "instances": 2}}
    tables["web"] = {"command": "serve", "cwd": "/srv/shop/releases/41", "env": {"PORT": "80"}}
    before = load(tables)
    actual = [
        Actual(one.name, one.process, one.number, "shop", one.definition, one.count, True, True, "online")
        for one in plan("shop", before, [], cpus=4).rows
    ]
    tables["web"].update(cwd="/srv/shop/releases/42", env={})
    tables["worker"].update(command="work @{count}", instances=3)
    made = plan("shop", load(tables), actual, cpus=4)
    assert report([row(one, "online") for one in made.rows]) == [
        "db:0        ok         online",
        "db:1        ok         online",
        'web         rolled     online     cwd: "/srv/shop/releases/41" -> "/srv/shop/releases/42"; env.PORT: "80" -> none',
        'worker:0    rolled     online     command: "work" -> "work @{count}"',
        'worker:1    rolled     online     command: "work" -> "work @{count}"',
        "worker:2    created    online     instances: 2 -> 3",
    ]


def test_the_columns_are_as_wide_as_the_longest_name() -> None:
    made = [row(change(name, Action.NONE), "online") for name in ("web", "a-rather-long-name:12")]
    assert report(made) == ["web                    ok         online", "a-rather-long-name:12  ok         online"]
    assert report([]) == []
    wide = [row(change(name, Action.NONE), "online") for name in ("プロセスの名前", "web")]
    assert report(wide) == ["プロセスの名前  ok         online", "web             ok         online"]


def test_a_failure_shows_its_reason_and_the_last_output_below() -> None:
    made = failed(
        row(change("web", Action.CREATED), "errored"), "exited with code 1", ["Traceback", "KeyError: 'PORT'"]
    )
    assert report([made]) == [
        "web         failed     errored    exited with code 1",
        "    | Traceback",
        "    | KeyError: 'PORT'",
    ]


def test_what_a_program_writes_does_nothing_to_a_terminal() -> None:
    tail = ["\x1b]0;pwned\x07 \x1b[2J", "\tat main", "caf\u00e9 \udcff"]
    assert report(
        [failed(row(change("web", Action.CREATED), "errored"), "exited with code 1: \x1b[31m\rboom", tail)]
    ) == [
        "web         failed     errored    exited with code 1: \\x1b[31m\\rboom",
        "    | \\x1b]0;pwned\\x07 \\x1b[2J",
        "    |         at main",
        "    | caf\u00e9 \\xff",
    ]


def test_a_reason_stands_before_the_fields() -> None:
    made = row(change("web", Action.STARTED, "was errored"), "online")
    made["changes"] = [{"field": "kill_timeout", "before": 5000, "after": 100, "effect": "hot"}]
    assert report([made]) == ["web         started    online     was errored; kill_timeout: 5000 -> 100"]


def test_a_value_of_several_lines_stays_on_one() -> None:
    made = row(change("web", Action.ROLLED), "online")
    made["changes"] = [{"field": "env.KEY", "before": None, "after": "two\nlines", "effect": "restart"}]
    assert report([made]) == ['web         rolled     online     env.KEY: none -> "two\\nlines"']
