# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils import _process
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model import definition
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.definition import FIELDS
from ansible_collections.pm3.fleet.plugins.modules import process

from .test_processes import KEYS, RESULT

DONE = {**RESULT, "project": "default", "warnings": []}


def options(data_dir: Path, **more: Any) -> dict[str, Any]:
    return {"name": "web", "scope": "user", "data_dir": str(data_dir), **more}


def test_a_definition_is_sent_once_and_prunes_nothing(agent: Any, run: Any) -> None:
    agent.answers["apply"] = DONE
    given = {"command": "web", "instances": 2, "env": {"A": "1"}, "kill_timeout": "10s", "umask": "022", "watch": True}
    result = run(process.main, **options(agent.data_dir, label="7", wait=False, **given))
    (asked,) = agent.asked
    assert asked["definitions"] == {"web": given}
    assert (asked["project"], asked["state"], asked["prune"], asked["known"]) == ("default", "present", False, {})
    assert (asked["label"], asked["wait"]) == ("7", False)
    assert set(result) - {"invocation"} == KEYS


def test_a_project_without_a_name_is_refused(agent: Any, run: Any) -> None:
    result = run(process.main, **options(agent.data_dir, command="sleep 9", project=""))
    assert result["failed"]
    assert "project is empty" in result["msg"]
    assert agent.asked == []


def test_several_names_have_one_definition(agent: Any, run: Any) -> None:
    agent.answers["plan"] = DONE
    result = run(process.main, check=True, diff=True, **options(agent.data_dir, name=["a", "b"], command="x"))
    assert agent.asked[0]["definitions"] == {"a": {"command": "x"}, "b": {"command": "x"}}
    assert agent.asked[0]["type"] == "plan"
    assert result["diff"] == DONE["diff"]


@pytest.mark.parametrize(
    ("state", "wanted"),
    [("started", "present"), ("stopped", "stopped"), ("restarted", "restarted"), ("reloaded", "reloaded")],
)
def test_names_alone(agent: Any, run: Any, state: str, wanted: str) -> None:
    agent.answers["apply"] = {**DONE, "project": "shop"}
    result = run(process.main, **options(agent.data_dir, state=state, instances=3))
    assert agent.asked[0]["known"] == {"web": {"instances": 3}}
    run(process.main, **options(agent.data_dir, instance_ids=[12, "7"]))
    assert agent.asked[1]["known"] == {"web": {"instance_ids": [12, 7]}}
    assert (agent.asked[0]["definitions"], agent.asked[0]["state"]) == ({}, wanted)
    assert result["project"] == "shop"


def test_absent_needs_no_definition(agent: Any, run: Any) -> None:
    agent.answers["apply"] = DONE
    run(process.main, **options(agent.data_dir, state="absent", command="web", nice=1))
    assert (agent.asked[0]["known"], agent.asked[0]["definitions"]) == ({"web": {}}, {})


def test_fields_without_a_command_are_refused(agent: Any, run: Any) -> None:
    for given, said in (
        ({"nice": 1}, "nice is given, but no command"),
        ({"nice": 1, "env": {}}, "env, nice are given"),
        ({"update": {"deadline": 5}}, "update is given"),
        ({"secrets": "e30="}, "secrets is given"),
    ):
        result = run(process.main, **options(agent.data_dir, **given))
        assert result["failed"]
        assert said in result["msg"]
        assert set(result) >= KEYS
    assert not agent.asked
    assert "name is empty" in run(process.main, **{**options(agent.data_dir), "name": []})["msg"]


def test_what_templates_make_of_numbers(agent: Any, run: Any) -> None:
    """A variable from a command line is a text, whatever it looks like."""
    agent.answers["apply"] = DONE
    texts = {"instances": "-1", "kill_timeout": "5000", "max_memory": "4096", "watch": "True", "nice": "3"}
    texts["cpu_max"] = "0.5"
    run(process.main, **options(agent.data_dir, command="web", update={"deadline": "30", "max_surge": "2"}, **texts))
    assert agent.asked[0]["definitions"]["web"] == {
        **{"command": "web", "instances": -1, "kill_timeout": 5000, "max_memory": 4096, "watch": True, "nice": 3},
        "cpu_max": 0.5,
    }
    assert agent.asked[0]["update"] == {"deadline": 30, "max_surge": 2}


def test_octal_digits_that_yaml_read_as_a_number_stay_one(agent: Any, run: Any) -> None:
    """As a text, 0077 would be 63, which is octal digits as well."""
    agent.answers["apply"] = DONE
    run(process.main, **options(agent.data_dir, command="web", umask=0o077))
    table = agent.asked[0]["definitions"]["web"]
    assert definition.parse("web", table)[1][0].field == "umask"


def test_secrets_reach_the_agent_and_nobody_else(agent: Any, run: Any) -> None:
    agent.answers["apply"] = DONE
    secrets = {"web": {"TOKEN": "correct-horse"}}
    encoded = base64.b64encode(json.dumps(secrets).encode()).decode()
    for given in (encoded, secrets["web"]):
        result = run(process.main, **options(agent.data_dir, command="web", secrets=given))
        assert agent.asked[-1]["secrets"] == secrets
        assert "secrets" not in agent.asked[-1]["definitions"]["web"]
        assert encoded not in json.dumps(result)
        assert "correct-horse" not in json.dumps(result)


def test_names_of_several_projects_take_a_request_for_each(agent: Any, run: Any) -> None:
    owners = {"shop": ["web"], "default": ["clock", "bell"]}
    refusal = {"type": "error", "message": "these are of several projects", "owners": owners}

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        if len(request["known"]) == 3:
            return refusal
        names = sorted(request["known"])
        rows = [{"name": name, "action": "restarted"} for name in names]
        summary = {"ok": 0, "changed": len(names), "failed": 0, "skipped": 0}
        return {**DONE, "instances": rows, "report": names, "summary": summary, "ok": True}

    agent.answers["apply"] = answer
    result = run(process.main, **options(agent.data_dir, name=["web", "clock", "bell"], state="restarted"))
    assert [sorted(one["known"]) for one in agent.asked if one["type"] == "apply"] == [
        ["bell", "clock", "web"],
        ["web"],
        ["bell", "clock"],
    ]
    assert result["report"] == ["web", "bell", "clock"]
    assert result["summary"] == {"ok": 0, "changed": 3, "failed": 0, "skipped": 0}
    assert (result["changed"], result["project"], result["revision"]) == (True, None, None)
    assert set(result) - {"invocation"} == KEYS

    agent.asked.clear()
    agent.answers["apply"] = lambda request: {
        **answer(request),
        **({"ok": False, "message": "web failed"} if list(request["known"]) == ["web"] else {}),
    }
    result = run(process.main, **options(agent.data_dir, name=["web", "clock", "bell"], state="restarted"))
    assert [sorted(one["known"]) for one in agent.asked if one["type"] == "apply"] == [
        ["bell", "clock", "web"],
        ["web"],
    ]
    assert result["msg"] == "web failed\nweb"


def test_what_does_not_exist(agent: Any, run: Any, warned: list[str]) -> None:
    problem = {"file": None, "table": "web", "field": None, "message": "there is no such process"}
    refusal = {"type": "error", "message": "[web]: there is no such process", "problems": [problem], "unknown": ["web"]}
    agent.answers.update(apply=refusal, plan=refusal)
    result = run(process.main, **options(agent.data_dir, state="restarted"))
    assert result["failed"]
    assert result["msg"] == "[web]: there is no such process"
    assert result["problems"] == [problem]

    predicted = run(process.main, check=True, **options(agent.data_dir, state="restarted"))
    assert not predicted.get("failed", False)
    assert "becomes of web: there is no such process" in warned[0]
    assert set(predicted) - {"invocation"} == KEYS


def test_not_installed(tmp_path: Path, run: Any, warned: list[str]) -> None:
    assert "not installed" in run(process.main, **options(tmp_path, command="web"))["msg"]
    assert "not installed" in run(process.main, **options(tmp_path, state="restarted"))["msg"]
    for check in (False, True):
        absent = run(process.main, check=check, **options(tmp_path, state="absent"))
        assert (absent.get("failed", False), absent["changed"]) == (False, False)

    planned = run(process.main, check=True, **options(tmp_path, command="web", instances=2, depends_on=["db"]))
    assert [(row["name"], row["action"]) for row in planned["instances"]] == [
        ("web:0", "created"),
        ("web:1", "created"),
    ]
    named = run(process.main, check=True, **options(tmp_path, state="restarted"))
    assert not named["changed"]
    assert "becomes of web: the agent pm3 is not installed" in warned[0]


def test_installed_but_down(data_dir: Path, run: Any) -> None:
    for given in ({"command": "web"}, {"state": "restarted"}, {"state": "absent"}):
        for check in (False, True):
            assert "does not run" in run(process.main, check=check, **options(data_dir, **given))["msg"]


def test_every_field_is_an_option_that_takes_its_default() -> None:
    """What a kind checks has to be what the option's type lets through."""
    left_out = {name for name in FIELDS if name not in _process.OPTIONS}
    assert left_out == {"environments"}
    types = {"str": str, "path": str, "bool": bool, "int": int, "dict": dict, "list": list}
    for row in _process.DEFINITION:
        option = _process.option(row)
        default = list(row.default) if isinstance(row.default, tuple) else row.default
        if default is not None and option["type"] != "raw":
            assert isinstance(default, types[option["type"]]), row.name
