# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is written down at the end of a run. With real runs: tests/fleet/test_gitops.py."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.pm3.fleet.plugins.callback.outcome import CallbackModule


def result_of(found: dict[str, Any], task: str = "A task", check_mode: bool = False) -> Any:
    told = SimpleNamespace(get_name=lambda: task, _uuid=task, check_mode=check_mode)
    return SimpleNamespace(result=found, host=SimpleNamespace(get_name=lambda: "app1"), task=told)


def stats(failures: int = 0, unreachable: int = 0) -> Any:
    summary = {"failures": failures, "unreachable": unreachable}
    return SimpleNamespace(processed={"app1": 1}, summarize=lambda _host: summary)


@pytest.fixture
def callback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CallbackModule:
    one = CallbackModule()
    monkeypatch.setattr(one, "get_option", lambda name: {"file": str(tmp_path / "outcome.json")}[name])
    return one


def written(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "outcome.json").read_text())
    return found


def test_what_was_changed(callback: CallbackModule, tmp_path: Path) -> None:
    rows = [
        {"name": "web:0", "action": "rolled", "changed": True, "status": "online", "reason": "cwd", "pid": 7},
        {"name": "db", "action": "none", "changed": False, "status": "online", "reason": ""},
    ]
    callback.v2_runner_on_ok(result_of({"changed": True, "project": "shop", "instances": rows}))
    callback.v2_runner_on_ok(result_of({"changed": True, "project": "shop", "instances": rows}, check_mode=True))
    callback.v2_runner_on_ok(result_of({"changed": False}))
    callback.v2_playbook_on_stats(stats())
    row = {"host": "app1", "project": "shop", "name": "web:0", "action": "rolled", "status": "online", "reason": "cwd"}
    found = {"ok": True, "hosts": ["app1"], "changed": 2, "failures": [], "instances": [row]}
    assert written(tmp_path) == found


def test_every_item_of_a_loop_that_fails_is_told(callback: CallbackModule, tmp_path: Path) -> None:
    callback.v2_runner_on_failed(result_of({"msg": "ignored"}), ignore_errors=True)
    callback.v2_runner_item_on_failed(result_of({"msg": "ignored 1"}, "An ignored loop"))
    callback.v2_runner_on_failed(result_of({"msg": "One or more items failed"}, "An ignored loop"), ignore_errors=True)
    for number in (1, 3):
        callback.v2_runner_item_on_failed(result_of({"msg": f"no {number}"}, "Looked through"))
    callback.v2_runner_on_failed(result_of({"msg": "One or more items failed"}, "Looked through"))
    callback.v2_playbook_on_stats(stats(failures=1))
    found = written(tmp_path)
    assert found["ok"] is False
    assert found["failures"] == [
        {"host": "app1", "task": "Looked through", "message": "no 1"},
        {"host": "app1", "task": "Looked through", "message": "no 3"},
    ]


def test_a_host_that_is_not_there(callback: CallbackModule, tmp_path: Path) -> None:
    callback.v2_runner_on_unreachable(result_of({"msg": "no route to host"}))
    callback.v2_playbook_on_stats(stats(unreachable=1))
    assert written(tmp_path)["failures"] == [{"host": "app1", "task": "A task", "message": "no route to host"}]
