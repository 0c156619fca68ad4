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


OWNED = "a log has one stream that fills it"


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        ({"stdout_file": "x.log"}, {"stdout_file": "x.log"}, f"[b] stdout_file: is /srv/x.log for b, which is stdout_file of a: {OWNED}"),
        ({"stderr_file": "x.log"}, {"stdout_file": "./x.log"}, f"[b] stdout_file: is /srv/x.log for b, which is stderr_file of a: {OWNED}"),
        (
            {"stdout_file": "x.log", "stderr_file": "y/../x.log"},
            {},
            f"[a] stderr_file: is /srv/x.log for a, which is stdout_file of a: {OWNED}",
        ),
        (
            {"stdout_file": "@{instance % 2}.log", "instances": 3},
            {},
            f"[a] stdout_file: is /srv/0.log for a:2, which is stdout_file of a:0: {OWNED}",
        ),
        (
            {"stdout_file": "a.log"},
            {"stdout_file": "@{process}.log", "stderr_file": "/srv/b.log"},
            f"[b] stderr_file: is /srv/b.log for b, which is stdout_file of b: {OWNED}",
        ),
        (
            {"stdout_file": "@{name}.log", "instance_ids": [3, 4]},
            {"stderr_file": "a:4.log"},
            f"[b] stderr_file: is /srv/a:4.log for b, which is stdout_file of a:4: {OWNED}",
        ),
    ],
)  # fmt: skip
def test_no_two_streams_fill_one_file(a: dict[str, Any], b: dict[str, Any], said: str) -> None:
    assert problems({"a": a, "b": b}) == [said]


@pytest.mark.parametrize(
    "table",
    [
        {"stdout_file": "@{name}-@{slot}.log", "stderr_file": "@{name}-err.log", "instances": 3},
        {"stdout_file": "@{process}.log", "stderr_file": "@{process}.err", "instances": 1},
        {"stdout_file": "@{instance // 0}.log", "instances": 1},  # is another mistake
        {"stdout_file": "@{instance}", "instance_ids": []},
        {"stdout_file": "/dev/null"},
    ],
)
def test_each_stream_has_a_file_of_its_own(table: dict[str, Any]) -> None:
    other = {"stdout_file": "other.log", "stderr_file": "/dev/null"}
    assert not [one for one in problems({"web": table, "worker": other}) if OWNED in one]
