"""`update`: how many instances are replaced at a time."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model import update
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.definition import parse


@pytest.mark.parametrize(
    ("table", "count", "at_once"),
    [
        ({}, 8, 1),
        ({"max_unavailable": 3}, 8, 3),
        ({"max_unavailable": "25%"}, 8, 2),
        ({"max_unavailable": "25%"}, 7, 1),  # rounded down: one more missing is felt
        ({"max_unavailable": "1%"}, 8, 1),
        ({"max_unavailable": "100%"}, 8, 8),
        ({"order": "start_first"}, 8, 1),
        ({"order": "start_first", "max_surge": 4, "max_unavailable": 2}, 8, 4),
        ({"order": "start_first", "max_surge": "25%"}, 7, 2),  # rounded up: one more beside is not
    ],
)
def test_how_many_at_once(table: dict[str, Any], count: int, at_once: int) -> None:
    made, problems = parse("web", {"command": "x", "update": table})
    assert made is not None, problems
    assert update.of(made.update).at_once(count) == at_once
