# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page for users of pm3 is complete, and every test that it names exists."""

from __future__ import annotations

import ast
import functools
import pathlib
import re

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.cli.main import COMMANDS
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.definition import FIELDS

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "pm3-compatibility.md").read_text(encoding="utf-8")
DEFECTS = [f"W{number}" for number in range(1, 60)]
PM3_COMMANDS = {  # those of pm3 0.1.6
    *(
        "start",
        "stop",
        "restart",
        "reload",
        "list",
        "view",
        "info",
        "log",
        "flush",
        "signal",
        "save",
        "resurrect",
        "kill",
    ),
    *("init", "startup", "unstartup", "tui", "help"),
}


def rows(heading: str) -> list[list[str]]:
    """The cells of each line of the table under a heading, without its head."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def named(cells: list[str]) -> set[str]:
    """The first words of all code in a cell."""
    return {word for cell in cells for word in re.findall(r"`(\w+)", cell)}


def test_every_command_has_a_line() -> None:
    assert named([cells[0] for cells in rows("Commands")]) == PM3_COMMANDS | set(COMMANDS)
    absent = [cells[0] for cells in rows("Commands") if cells[2].startswith("Not there")]
    assert named(absent) == PM3_COMMANDS - set(COMMANDS) - {"view"}


def test_every_field_has_a_line() -> None:
    written = {"env_NAME" if name == "environments" else name for name in FIELDS}
    assert named([cells[0] for cells in rows("Fields")]) == written


def test_every_defect_has_a_line() -> None:
    assert [cells[0] for cells in rows("What went wrong with pm3")] == DEFECTS


@functools.cache
def defined_in(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {one.name for one in tree.body if isinstance(one, ast.FunctionDef) and one.name.startswith("test_")}


@pytest.mark.parametrize("cells", rows("What went wrong with pm3"), ids=lambda cells: str(cells[0]))
def test_every_defect_has_tests_that_exist(cells: list[str]) -> None:
    covered = re.findall(r"`(tests/[\w./]+\.py)::(\w+)`", cells[2])
    assert covered
    assert len(covered) == cells[2].count("`") / 2
    for path, test in covered:
        assert test in defined_in(path), f"{path}::{test}"
