# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Problems: said with their place, all together, and with the word that was probably meant."""

from __future__ import annotations

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.problems import DefinitionError, Problem, nearest


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
        ("trem", ["term", "hup"], "term"),
        ("exec", ["env", "cwd"], None),
        ("", ["env"], None),
        ("env", [], None),
        ("cat", ["bat", "cat"], "cat"),
    ],
)
def test_the_nearest_name(word: str, known: list[str], meant: str | None) -> None:
    assert nearest(word, known) == meant
