# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes down what became of a run: what failed, and which instances were changed. For programs, and for whoever comes later."""

from __future__ import annotations

DOCUMENTATION = r"""
name: outcome
type: notification
short_description: Write what became of a run into a file, as JSON
version_added: 0.1.0
description:
  - At the end of a run it writes one JSON document with C(ok), C(hosts) (those on which anything was played), C(changed) (the number of
    tasks that changed anything), C(failures) (each with C(host), C(task) and C(message); of a loop, every item that failed) and
    C(instances), the rows of all instances that tasks of this collection have changed (each with C(host), C(project), C(name),
    C(action), C(status) and C(reason)).
  - The role P(pm3.fleet.gitops#role) uses it for its status file.
author:
  - pm3.fleet maintainers (@pm3-fleet)
requirements:
  - Enable it with C(ANSIBLE_CALLBACKS_ENABLED=pm3.fleet.outcome), or with C(callbacks_enabled) in C(ansible.cfg).
options:
  file:
    description: The file. Without one nothing is written.
    type: path
    env:
      - name: PM3_OUTCOME_FILE
    ini:
      - section: callback_pm3_outcome
        key: file
"""

import json
import os
from typing import Any

from ansible.plugins.callback import CallbackBase

KEYS = ("name", "action", "status", "reason")


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "pm3.fleet.outcome"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._failures: list[dict[str, Any]] = []
        self._instances: list[dict[str, Any]] = []
        self._changed = 0
        self._items: dict[
            tuple[str, str], list[str]
        ] = {}  # what failed items of a loop that is not through yet have said

    def v2_runner_on_ok(self, result: Any) -> None:
        self._note(result)
        self._changed += bool(result.result.get("changed"))

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._note(result)
        # Of a loop it is known here only that something of it failed.
        messages = self._items.pop(_place(result), None)
        if not ignore_errors:
            self._fails(result, *messages or ())

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self._fails(result)

    # The items of a loop have the rows, the sum of them whether it is changed or has failed.
    def v2_runner_item_on_ok(self, result: Any) -> None:
        self._note(result)

    def v2_runner_item_on_failed(self, result: Any) -> None:
        self._note(result)
        self._items.setdefault(_place(result), []).append(_message(result))

    def v2_playbook_on_stats(self, stats: Any) -> None:
        path = self.get_option("file")
        if not path:
            return
        document = {
            "ok": not any(
                stats.summarize(host)["failures"] or stats.summarize(host)["unreachable"] for host in stats.processed
            ),
            "hosts": sorted(stats.processed),
            "changed": self._changed,
            "failures": self._failures,
            "instances": self._instances,
        }
        new = f"{path}.new"
        with open(new, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=2)
        os.replace(new, path)

    def _note(self, result: Any) -> None:
        found = result.result
        rows = found.get("instances") if not result.task.check_mode else None
        for row in rows if isinstance(rows, list) else ():
            if isinstance(row, dict) and row.get("changed") and "action" in row:
                place = {"host": result.host.get_name(), "project": found.get("project")}
                self._instances.append({**place, **{key: row.get(key) for key in KEYS}})

    def _fails(self, result: Any, *messages: str) -> None:
        place = {"host": result.host.get_name(), "task": result.task.get_name()}
        self._failures += [{**place, "message": one} for one in messages or (_message(result),)]


def _message(result: Any) -> str:
    return str(result.result.get("msg") or "it failed")


def _place(result: Any) -> tuple[str, str]:
    return result.host.get_name(), result.task._uuid
