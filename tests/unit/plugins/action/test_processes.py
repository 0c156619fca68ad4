# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from ansible_collections.pm3.fleet.plugins.action.processes import ActionModule, empty
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.problems import DefinitionError
from ansible_collections.pm3.fleet.plugins.plugin_utils._tables import plain, without_secrets

NONE: dict[str, Any] = {
    "src": None,
    "content": None,
    "definitions": None,
    "template": False,
    "chdir": None,
    "overlay": None,
    "only": None,
}


def definitions(**options: Any) -> Any:
    action = object.__new__(ActionModule)  # reads nothing of what it would be given
    return action._definitions({**NONE, **options}, {})


def test_secrets_leave_the_definitions() -> None:
    tables = {"web": {"command": "web", "secrets": {"A": "correct-horse"}}, "db": {"command": "db", "secrets": {}}}
    clean, encoded = without_secrets(tables)
    assert clean == {"web": {"command": "web"}, "db": {"command": "db"}}
    assert encoded is not None
    assert json.loads(base64.b64decode(encoded)) == {"web": {"A": "correct-horse"}}
    assert without_secrets(clean) == (clean, None)


def test_data_becomes_plain() -> None:
    class Text(str):
        __slots__ = ()

    class Number(int):
        pass

    found = plain({Text("a"): [Text("b"), Number(1), True, None, 1.5]})
    assert found == {"a": ["b", 1, True, None, 1.5]}
    assert [type(item) for item in found["a"][:3]] == [str, int, bool]


def test_text_and_data_give_the_same() -> None:
    tables = {"web": {"command": "web", "instances": 2}}
    assert definitions(content='[web]\ncommand = "web"\ninstances = 2\n') == tables
    assert definitions(definitions=tables) == tables
    assert definitions() is None


@pytest.mark.parametrize("options", [{"content": ""}, {"content": "# nothing\n\n"}, {"definitions": {}}])
def test_nothing_is_an_error_that_prunes_nothing(options: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError, match="nothing pruned"):
        definitions(**options)


def test_all_mistakes_are_told() -> None:
    tables = {
        "a": {"comand": "x"},
        "b": {"command": "x", "env": {"PORT": 1}},
        "c": {"command": "x", "cwd": "relative"},
        "d": {"command": "x", "depends_on": ["e"]},
    }
    with pytest.raises(DefinitionError) as caught:
        definitions(definitions=tables)
    found = {(problem.file, problem.table, problem.field) for problem in caught.value.problems}
    assert found == {
        ("definitions", "a", "comand"),
        ("definitions", "a", "command"),
        ("definitions", "b", "env"),
        ("definitions", "c", "cwd"),
        ("definitions", "d", "depends_on"),
    }
    assert "put the value in quotes" in str(caught.value)


def test_a_mistake_never_quotes_a_secret() -> None:
    for wrong in (["correct-horse"], {"A": ["correct-horse"]}, "correct-horse"):
        with pytest.raises(DefinitionError) as caught:
            definitions(definitions={"a": {"command": "x", "secrets": wrong}})
        assert "correct-horse" not in str(caught.value)


def test_only_names_what_is_defined() -> None:
    with pytest.raises(DefinitionError, match=r"\[b\]: named in only"):
        definitions(definitions={"a": {"command": "x"}}, only=["a", "b"])


def test_with_chdir_paths_may_be_relative() -> None:
    definitions(definitions={"a": {"command": "x", "cwd": "below"}}, chdir="/srv")
    definitions(definitions={"a": {"command": "x", "cwd": "below"}}, chdir="~/srv")  # expanded on the host


def test_what_empty_says() -> None:
    assert str(empty("pm3.toml")).startswith("pm3.toml: defines no process at all")
