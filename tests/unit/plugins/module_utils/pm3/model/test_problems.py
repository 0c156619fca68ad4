# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Problems: said with their place, all together, and with the word that was probably meant."""

from __future__ import annotations

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.problems import DefinitionError, Problem, nearest
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (Problem("nothing is defined"), "nothing is defined"),
        (Problem("expected a table", table="web"), "[web]: expected a table"),
        (Problem("missing", table="web", field="command"), "[web] command: missing"),
        (Problem("missing", file="pm3.toml", table="web", field="command"), "pm3.toml: [web] command: missing"),
        (Problem("empty", file="pm3.toml"), "pm3.toml: empty"),
        (Problem("it is empty", table=""), "[]: it is empty"),
    ],
)
def test_a_problem_says_where_it_is(problem: Problem, text: str) -> None:
    assert str(problem) == text


def test_an_error_holds_all_problems_a_line_each() -> None:
    error = DefinitionError(
        [Problem("missing", table="a", field="command"), Problem("unknown field", table="b", field="comand")]
    )
    assert str(error) == "[a] command: missing\n[b] comand: unknown field"
    assert [problem.table for problem in error.problems] == ["a", "b"]


def test_an_error_can_be_told_its_file_later() -> None:
    error = DefinitionError([Problem("missing", table="a", field="command")])
    assert str(error.located("pm3.toml")) == "pm3.toml: [a] command: missing"
    assert error.problems[0].file is None


@pytest.mark.parametrize(
    ("word", "known", "meant"),
    [
        ("comand", ["command", "cwd"], "command"),
        ("instance", ["instances", "group"], "instances"),
        ("max_restart", ["max_restarts", "restart"], "max_restarts"),
        ("cdw", ["cwd", "env"], None),  # two letters of three
        ("exec", ["env", "cwd"], None),
        ("", ["env"], None),
        ("env", [], None),
        ("bat", ["cat", "bar"], "bar"),  # the first in alphabetical order
        ("cat", ["bat", "cat"], "cat"),
    ],
)
def test_the_nearest_name(word: str, known: list[str], meant: str | None) -> None:
    assert nearest(word, known) == meant


def distance(one: str, other: str) -> int:
    if not one or not other:
        return len(one) + len(other)
    if one[0] == other[0]:
        return distance(one[1:], other[1:])
    return 1 + min(distance(one[1:], other), distance(one, other[1:]), distance(one[1:], other[1:]))


@given(st.text(alphabet="abc", max_size=6), st.lists(st.text(alphabet="abc", max_size=6), max_size=4))
def test_nearest_is_the_least_edit_distance(word: str, known: list[str]) -> None:
    close = [(distance(word, one), one) for one in known if distance(word, one) <= max(1, len(word) // 3)]
    assert nearest(word, known) == (min(close)[1] if close else None)
