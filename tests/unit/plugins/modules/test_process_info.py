# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from ansible_collections.pm3.fleet.plugins.modules import process_info

ONLINE = {"name": "web:0", "status": "online"}
STOPPED = {"name": "web:1", "status": "stopped", "held": "held by ada since 2026-11-20 19:34: looking"}
HOLD = {"kind": "process", "name": "web", "reason": "looking", "since": 1.5, "uid": 1000, "user": "ada"}
REVISION = {
    **{"revision": 2, "label": "42", "at": 1.5, "uid": 1000, "user": "ada", "changed": ["web"], "origin": 1},
    **{"current": True, "failed_at": None, "failure": None},
}


def snapshot(*instances: Any) -> dict[str, Any]:
    return {
        "type": "snapshot",
        "agent": {"version": "0.1.0"},
        "instances": list(instances),
        "definitions": {"shop": {}},
        "revisions": {"shop": [REVISION]},
        "holds": [HOLD],
    }


def options(data_dir: Path, **more: Any) -> dict[str, Any]:
    return {"scope": "user", "data_dir": str(data_dir), **more}


def test_asks_once_and_hands_the_answer_on(agent: Any, run: Any) -> None:
    agent.answers["snapshot"] = snapshot(ONLINE, STOPPED)
    result = run(process_info.main, **options(agent.data_dir, project="shop", names=["web"], log_lines=3))
    assert len(agent.asked) == 1
    asked = agent.asked[0]
    assert (asked["project"], asked["names"], asked["log_lines"]) == ("shop", ["web"], 3)
    assert not result["changed"]
    assert result["installed"]
    assert result["instances"] == [ONLINE, STOPPED]
    assert result["agent"] == {"version": "0.1.0"}
    assert result["revisions"] == {"shop": [REVISION]}
    assert result["holds"] == [HOLD]


def test_all_keys_are_documented() -> None:
    shown = yaml.safe_load(process_info.RETURN)
    assert set(shown["revisions"]["sample"]["shop"][0]) == set(REVISION)
    assert set(shown["holds"]["contains"]) == set(HOLD)


def test_an_agent_that_knows_no_holds(agent: Any, run: Any) -> None:
    agent.answers["snapshot"] = {key: value for key, value in snapshot(ONLINE).items() if key != "holds"}
    assert run(process_info.main, **options(agent.data_dir))["holds"] == []


def test_waiting_that_ends_too_early_is_a_failure(agent: Any, run: Any) -> None:
    agent.answers["snapshot"] = snapshot(ONLINE, STOPPED)
    result = run(process_info.main, **options(agent.data_dir, wait_for="online", timeout=2))
    assert agent.asked[0]["wait_for"] == "online"
    assert result["failed"]
    assert result["msg"] == "not online within 2 s: web:1 is stopped"
    assert result["instances"] == [ONLINE, STOPPED]


def test_check_mode_does_not_wait(agent: Any, run: Any) -> None:
    agent.answers["snapshot"] = snapshot(STOPPED)
    result = run(process_info.main, check=True, **options(agent.data_dir, wait_for="online"))
    assert agent.asked[0]["wait_for"] is None
    assert not result.get("failed", False)


def test_not_installed_is_an_answer(tmp_path: Path, run: Any) -> None:
    result = run(process_info.main, **options(tmp_path))
    assert not result.get("failed", False)
    assert (result["installed"], result["agent"], result["instances"]) == (False, None, [])
    assert run(process_info.main, **options(tmp_path, wait_for="online"))["failed"]


def test_down_is_a_failure(data_dir: Path, run: Any) -> None:
    result = run(process_info.main, **options(data_dir))
    assert result["failed"]
    assert "does not run" in result["msg"]
