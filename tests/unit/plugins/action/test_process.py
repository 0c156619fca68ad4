# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.pm3.fleet.plugins.action.process import check
from ansible_collections.pm3.fleet.plugins.module_utils import _process
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.problems import DefinitionError

NONE: dict[str, Any] = dict.fromkeys(_process.OPTIONS) | {"name": ["web"], "state": "started"}


def test_all_mistakes_are_told_before_a_host_is_touched() -> None:
    wrong = {"command": "x", "kill_signal": "SIGTREM", "secrets": {"A": 1}, "cwd": "relative", "instances": "many"}
    with pytest.raises(DefinitionError) as caught:
        check({**NONE, **wrong, "name": ["a", "b"]})
    found = {(problem.table, problem.field) for problem in caught.value.problems}
    fields = ("kill_signal", "secrets", "instances")
    assert found == {(name, field) for name in ("a", "b") for field in fields}
    assert "correct-horse" not in str(caught.value)


def test_what_only_the_host_knows_is_left_to_it() -> None:
    check({**NONE, "command": "x", "depends_on": ["elsewhere"]})
    check({**NONE, "instances": 2})
    check({**NONE, "state": "absent", "command": "x", "nice": 99})
