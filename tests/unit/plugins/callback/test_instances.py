# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ansible import constants
from ansible_collections.pm3.fleet.plugins.callback.instances import CallbackModule, coloured

REPORT = ["db     ok       online", "web    failed   errored    exited with code 3", "    | out of cheese"]
ROWS = [{"action": "none", "log_tail": []}, {"action": "failed", "log_tail": ["out of cheese"]}]
FOUND = {"changed": True, "report": REPORT, "instances": ROWS}


def result_of(found: dict[str, Any]) -> Any:
    return SimpleNamespace(result=found, host=SimpleNamespace(get_name=lambda: "app1"), task=SimpleNamespace())


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A callback and the lines that it has displayed."""
    lines: list[str] = []
    callback = CallbackModule()
    monkeypatch.setattr(callback, "_display", SimpleNamespace(display=lambda line, color=None: lines.append(line)))
    return callback, lines


def test_lines_stand_below_the_stdout_callbacks_own(shown: Any) -> None:
    callback, lines = shown
    callback.v2_runner_on_ok(result_of(FOUND))
    assert lines == [f"  {line}" for line in REPORT]


def test_failures_and_items_of_loops(shown: Any) -> None:
    callback, lines = shown
    callback.v2_runner_item_on_ok(result_of(FOUND))
    callback.v2_runner_item_on_failed(result_of({**FOUND, "failed": True}))
    callback.v2_runner_on_failed(result_of({"failed": True, "results": [FOUND, FOUND]}))  # the sum of the loop
    assert len(lines) == 2 * len(REPORT)


@pytest.mark.parametrize(
    "found", [{}, {"report": "text", "instances": []}, {"report": [], "instances": []}, {"report": ["x"]}]
)
def test_other_results_are_none_of_its_business(shown: Any, found: dict[str, Any]) -> None:
    callback, lines = shown
    callback.v2_runner_on_ok(result_of(found))
    assert lines == []


def settings(monkeypatch: pytest.MonkeyPatch, stdout: str, ok: bool = True) -> None:
    known = {"DEFAULT_STDOUT_CALLBACK": stdout, "display_ok_hosts": ok}
    monkeypatch.setattr(constants.config, "get_config_value", lambda name, **words: known[name])


def test_a_header_where_there_is_no_other(shown: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    callback, lines = shown
    settings(monkeypatch, "default", ok=False)
    callback.v2_runner_on_ok(result_of({**FOUND, "changed": False}))
    callback.v2_runner_on_ok(result_of(FOUND))
    assert [line for line in lines if line.endswith("[app1]")] == ["ok: [app1]"]
    settings(monkeypatch, "somebodys.own.callback")
    callback.v2_runner_on_failed(result_of({**FOUND, "failed": True}))
    assert "failed: [app1]" in lines


@pytest.mark.parametrize("stdout", ["json", "ansible.posix.json", "ansible.posix.jsonl"])
def test_json_is_left_alone(shown: Any, monkeypatch: pytest.MonkeyPatch, stdout: str) -> None:
    callback, lines = shown
    settings(monkeypatch, stdout)
    callback.v2_runner_on_ok(result_of(FOUND))
    assert lines == []


def test_each_line_has_its_instances_colour() -> None:
    colours = [colour for line, colour in coloured(REPORT, ROWS)]
    assert colours == [constants.COLOR_OK, constants.COLOR_ERROR, constants.COLOR_ERROR]
    assert [colour for line, colour in coloured(["?"], ROWS)] == [None]
