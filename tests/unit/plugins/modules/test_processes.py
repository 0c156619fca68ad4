# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.wire import messages
from ansible_collections.pm3.fleet.plugins.modules import processes

KEYS = {
    "changed",
    "project",
    "revision",
    "label",
    "previous_revision",
    "previous_label",
    "reverted",
    "timed_out",
    "in_progress",
    "instances",
    "summary",
    "report",
}
SLEEP = {"sleeper": {"command": "sleep 9"}}
RESULT = {
    "type": "result",
    "ok": True,
    "changed": True,
    "project": "shop",
    "revision": 3,
    "label": None,
    "previous_revision": 2,
    "previous_label": None,
    "instances": [{"name": "web", "action": "rolled"}],
    "summary": {"ok": 0, "changed": 1, "failed": 0},
    "report": ["web  rolled"],
    "diff": [{"before": "a", "after": "b"}],
    "warnings": ["be careful"],
}


def options(data_dir: Path, **more: Any) -> dict[str, Any]:
    return {"project": "shop", "scope": "user", "data_dir": str(data_dir), **more}


def test_asks_once_and_hands_the_answer_on(agent: Any, run: Any) -> None:
    agent.answers["apply"] = RESULT
    result = run(processes.main, **options(agent.data_dir, definitions=SLEEP, chdir="/srv", label="7", prune=False))
    assert [request["type"] for request in agent.asked] == ["apply"]
    asked = agent.asked[0]
    assert asked["definitions"] == SLEEP
    assert (asked["base"], asked["label"], asked["prune"], asked["state"]) == ("/srv", "7", False, "present")
    assert set(result) - {"invocation", "warnings"} == KEYS
    assert result["changed"]
    assert result["report"] == ["web  rolled"]


@pytest.mark.parametrize("project", ["", " "])
def test_a_project_without_a_name_is_refused(agent: Any, run: Any, project: str) -> None:
    result = run(processes.main, **{**options(agent.data_dir, definitions=SLEEP), "project": project})
    assert result["failed"]
    assert "project is empty" in result["msg"]
    assert set(result) >= KEYS
    assert agent.asked == []


def test_check_mode_asks_for_the_plan(agent: Any, run: Any) -> None:
    agent.answers["plan"] = RESULT
    result = run(processes.main, check=True, diff=True, **options(agent.data_dir, definitions=SLEEP))
    assert [request["type"] for request in agent.asked] == ["plan"]
    assert result["diff"] == RESULT["diff"]


def test_how_instances_are_replaced_is_handed_on(agent: Any, run: Any) -> None:
    agent.answers["apply"] = RESULT
    update = {"order": "start_first", "max_surge": 2, "deadline": "90", "on_scale": "roll"}
    more = {"update": update, "retry_failed": False, "take_over": True, "state": "reloaded"}
    run(processes.main, **options(agent.data_dir, definitions=SLEEP, **more))
    run(processes.main, **options(agent.data_dir, definitions=SLEEP))
    asked, usual = agent.asked
    assert asked["update"] == {**update, "deadline": 90}
    assert (asked["retry_failed"], asked["take_over"], asked["state"]) == (False, True, "reloaded")
    assert (usual["update"], usual["retry_failed"], usual["take_over"]) == ({}, True, False)
    assert (usual["rollback_to"], usual["rollback_from"]) == (None, None)
    for one in agent.asked:
        messages.check(one)


@pytest.mark.parametrize("back", [{"rollback_to": "41"}, {"rollback_to": ""}, {"rollback_from": "42"}])
def test_going_back_takes_no_definitions(agent: Any, run: Any, back: dict[str, str]) -> None:
    agent.answers.update(apply={**RESULT, "reverted": True}, plan=RESULT)
    result = run(processes.main, **options(agent.data_dir, **back))
    run(processes.main, check=True, **options(agent.data_dir, **back))
    assert [one["type"] for one in agent.asked] == ["apply", "plan"]
    for one in agent.asked:
        assert {name: one[name] for name in ("rollback_to", "rollback_from") if one[name] is not None} == back
        assert one["definitions"] == {}
        messages.check(one)
    assert result["reverted"]

    assert "mutually exclusive" in run(processes.main, **options(agent.data_dir, definitions=SLEEP, **back))["msg"]
    assert "state: present" in run(processes.main, **options(agent.data_dir, state="absent", **back))["msg"]
    assert run(processes.main, **options(agent.data_dir, state="stopped", **back))["failed"]
    both = {"rollback_to": "1", "rollback_from": "2"}
    assert "mutually exclusive" in run(processes.main, **options(agent.data_dir, **both))["msg"]
    assert len(agent.asked) == 2


def test_nothing_to_go_back_to_without_an_agent(tmp_path: Path, run: Any) -> None:
    for check in (False, True):
        assert "not installed" in run(processes.main, check=check, **options(tmp_path, rollback_to="1"))["msg"]


def test_secrets_reach_the_agent_and_nobody_else(agent: Any, run: Any) -> None:
    agent.answers["apply"] = RESULT
    secrets = {"sleeper": {"TOKEN": "correct-horse"}}
    encoded = base64.b64encode(json.dumps(secrets).encode()).decode()
    result = run(processes.main, **options(agent.data_dir, definitions=SLEEP, secrets=encoded))
    assert agent.asked[0]["secrets"] == secrets
    assert encoded not in json.dumps(result)
    assert "correct-horse" not in json.dumps(result)


def test_a_failure_has_the_same_keys_and_says_everything(agent: Any, run: Any) -> None:
    report = ["web  failed  errored  exited with code 3", "    | out of cheese"]
    agent.answers["apply"] = {**RESULT, "ok": False, "message": "web exited with code 3", "report": report}
    result = run(processes.main, **options(agent.data_dir, definitions=SLEEP))
    assert result["failed"]
    assert set(result) - {"invocation", "warnings", "failed", "msg"} == KEYS
    assert result["msg"].splitlines() == ["web exited with code 3", *report]


def test_definitions_that_the_agent_refuses(agent: Any, run: Any) -> None:
    problem = {"file": None, "table": "web", "field": "cwd", "message": "there is no such folder"}
    agent.answers["apply"] = {"type": "error", "message": "…", "problems": [problem]}
    result = run(processes.main, **options(agent.data_dir, definitions=SLEEP))
    assert result["failed"]
    assert result["problems"] == [problem]
    assert "[web] cwd: there is no such folder" in result["msg"]


def test_an_older_agent_is_named(agent: Any, run: Any) -> None:
    agent.answers["hello"] = {**agent.answers["hello"], "protocol": 0, "version": "0.0.1"}
    result = run(processes.main, **options(agent.data_dir, definitions=SLEEP))
    assert "0.0.1" in result["msg"]
    assert "role pm3.fleet.agent" in result["msg"]


def test_installed_but_down(data_dir: Path, run: Any) -> None:
    for state in ("present", "absent"):
        for check in (False, True):
            result = run(processes.main, check=check, **options(data_dir, definitions=SLEEP, state=state))
            assert result["failed"]
            assert "does not run" in result["msg"]
            assert set(result) >= KEYS


def test_not_installed(tmp_path: Path, run: Any) -> None:
    result = run(processes.main, **options(tmp_path, definitions=SLEEP))
    assert result["failed"]
    assert "not installed" in result["msg"]
    assert "role pm3.fleet.agent" in result["msg"]

    absent = run(processes.main, **options(tmp_path, state="absent"))
    assert (absent.get("failed", False), absent["changed"], absent["instances"]) == (False, False, [])


def test_not_installed_is_planned_for_in_check_mode(tmp_path: Path, run: Any) -> None:
    definitions = {
        "web": {"command": "web", "instances": 2, "depends_on": ["db"]},
        "db": {"command": "db"},
    }
    secrets = base64.b64encode(json.dumps({"db": {"PASSWORD": "correct-horse"}}).encode()).decode()
    result = run(
        processes.main,
        check=True,
        diff=True,
        **options(tmp_path, definitions=definitions, secrets=secrets),
    )
    assert [row["name"] for row in result["instances"]] == ["db", "web:0", "web:1"]
    assert {row["action"] for row in result["instances"]} == {"created"}
    assert [diff["after_header"] for diff in result["diff"]] == ["shop/db", "shop/web"]
    assert set(result) - {"invocation", "diff", "warnings"} == KEYS
    assert "correct-horse" not in json.dumps(result)


@pytest.mark.skipif("os.geteuid() == 0", reason="root may use every socket")
def test_a_socket_that_refuses_names_become(agent: Any, run: Any) -> None:
    (agent.data_dir / "pm3.sock").chmod(0)
    result = run(processes.main, **options(agent.data_dir, definitions=SLEEP))
    assert "become" in result["msg"]
    assert "admin group" in result["msg"]


def test_definitions_on_the_host(agent: Any, run: Any, tmp_path: Path) -> None:
    pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    agent.answers["apply"] = RESULT
    file = tmp_path / "pm3.toml"
    file.write_text('[web]\ncommand = "web"\ncwd = "here"\n')
    run(processes.main, **options(agent.data_dir, remote_src=str(file)))
    assert agent.asked[0]["definitions"] == {"web": {"command": "web", "cwd": "here"}}
    assert agent.asked[0]["base"] == str(tmp_path)
    assert agent.asked[0]["file"] == str(file)

    # Of a part of a project only the agent knows what else there is.
    file.write_text('[web]\ncommand = "web"\ndepends_on = ["db"]\n')
    result = run(processes.main, **options(agent.data_dir, remote_src=str(file)))
    assert [problem["field"] for problem in result["problems"]] == ["depends_on"]
    run(processes.main, **options(agent.data_dir, remote_src=str(file), prune=False))
    assert agent.asked.pop()["definitions"]["web"]["depends_on"] == ["db"]

    file.write_text('[web]\ncomand = "web"\n')
    result = run(processes.main, **options(agent.data_dir, remote_src=str(file)))
    assert {problem["field"] for problem in result["problems"]} == {"command", "comand"}
    assert len(agent.asked) == 1


def test_a_run_that_changes_nothing_imports_the_client_alone() -> None:
    """What it imports is compiled anew at every call on every host."""
    words = "import sys; from ansible_collections.pm3.fleet.plugins.module_utils import _processes; print(*sys.modules)"
    path = [str(Path(module.__path__[0]).parent) for module in (sys.modules["ansible_collections"],)]
    loaded = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}; {words}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    ours = {name.partition("module_utils.")[2] for name in loaded if "module_utils." in name and "fleet" in name}
    assert ours == {"_place", "_processes", "pm3", "pm3.wire", "pm3.wire.client", "pm3.wire.messages", "pm3.wire.paths"}
