# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is found when tables are loaded, beyond what is wrong with a single field."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model import loading
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.problems import DefinitionError


def problems(tables: dict[str, Any]) -> list[str]:
    try:
        loading.load({name: {"command": "web", **table} for name, table in tables.items()}, "/srv")
    except DefinitionError as error:
        return [str(problem) for problem in error.problems]
    return []


ZERO = "divides by zero for instance"


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"command": "sleep @{1000 // 0}"}, ["command: @{1000 // 0} " + ZERO + " 0 of 1"]),
        ({"command": "x @{9 // instance}", "instances": 3}, ["command: @{9 // instance} " + ZERO + " 0 of 3"]),
        ({"pre_start": "@{9 // (instance - 2)}", "instances": 3}, ["pre_start: @{9 // (instance - 2)} " + ZERO + " 2 of 3"]),
        ({"cwd": "/@{9 % slot}"}, ["cwd: @{9 % slot} " + ZERO + " 0 of 1"]),
        ({"cwd": "/@{9 % (slot - 1)}"}, ["cwd: @{9 % (slot - 1)} " + ZERO + " 0 of 1"]),
        ({"env": {"A": "@{5 % 0}", "B": "@{1 // 0}"}}, ["env: A: @{5 % 0} " + ZERO + " 0 of 1", "env: B: @{1 // 0} " + ZERO + " 0 of 1"]),
        ({"env_prod": {"A": "@{5 % 0}"}}, ["env_prod: A: @{5 % 0} " + ZERO + " 0 of 1"]),
        ({"env_file": ["a", "@{1 // 0}"]}, ["env_file: @{1 // 0} " + ZERO + " 0 of 1"]),
        ({"instances": "max", "command": "x @{9 % instance}"}, ["command: @{9 % instance} " + ZERO + " 0 of 100000"]),
        ({"instance_ids": [7, 12], "command": "x @{9 % (instance - 12)}"}, ["command: @{9 % (instance - 12)} " + ZERO + " 12 of 2"]),
    ],
)  # fmt: skip
def test_a_placeholder_that_cannot_be_computed_is_a_problem(table: dict[str, Any], said: list[str]) -> None:
    assert problems({"web": table}) == ["[web] " + one for one in said]


@pytest.mark.parametrize(
    "table",
    [
        {"command": "x @{9 // (instance + 1)} @{instance % 2}", "instances": 3},
        {"command": "x @{9 // (count - 1)}", "instances": "max"},  # whether it can be is for the host to say
        {"command": "x @{9 // instance}", "instance_ids": [7]},
        {"command": "x @{9 // instance}", "instance_ids": []},
        {"env": {"A": "@@{1 // 0}"}, "secrets": {"B": "@{1 // 0}"}},
    ],
)
def test_a_placeholder_that_can_be_computed_is_none(table: dict[str, Any]) -> None:
    assert problems({"web": table}) == []
