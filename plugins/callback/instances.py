# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shows what became of every instance, below the line that Ansible itself prints for a host."""

from __future__ import annotations

DOCUMENTATION = r"""
name: instances
type: aggregate
short_description: Show one line for each instance below a task's result
version_added: 0.1.0
description:
  - Prints the RV(pm3.fleet.processes#module:report) of a task, one line for each instance with what was
    done and why, below the line that the stdout callback prints for the host.
  - A failure shows its lines in its own message, so they are not printed once more.
  - Works beside any stdout callback that prints line by line. Below those that print JSON it stays silent.
author:
  - pm3.fleet maintainers (@pm3-fleet)
requirements:
  - Enable it with C(ANSIBLE_CALLBACKS_ENABLED=pm3.fleet.instances), or with C(callbacks_enabled) in C(ansible.cfg).
"""

from typing import Any

from ansible import constants
from ansible.plugins.callback import CallbackBase

COLOURS = {"none": constants.COLOR_OK, "skipped": constants.COLOR_SKIP, "failed": constants.COLOR_ERROR}
INDENT = "  "


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "pm3.fleet.instances"
    CALLBACK_NEEDS_ENABLED = True

    def v2_runner_on_ok(self, result: Any) -> None:
        self._show(result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._show(result)

    # The items of a loop come here one by one; the sum of them, which comes at the end as well, has no report of its own.
    v2_runner_item_on_ok = v2_runner_on_ok
    v2_runner_item_on_failed = v2_runner_on_failed

    def _show(self, result: Any) -> None:
        found = result.result
        report, instances = found.get("report"), found.get("instances")
        if not isinstance(report, list) or not isinstance(instances, list) or not report:
            return
        if found.get("failed") and "\n".join(report) in str(found.get("msg")):
            return  # everybody has seen them in the message
        stdout = str(constants.config.get_config_value("DEFAULT_STDOUT_CALLBACK")).rpartition(".")[2]
        if stdout in ("json", "jsonl", "null"):
            return
        header = header_of(found, result.host.get_name())
        if stdout != "default" or (header.startswith("ok") and not self._shows_ok()):
            self._display.display(header, color=constants.COLOR_CHANGED if found.get("changed") else constants.COLOR_OK)
        for line, colour in coloured(report, instances):
            self._display.display(INDENT + line, color=colour)

    def _shows_ok(self) -> bool:
        """Whether Ansible's own callback prints a line for a host that was ok."""
        return bool(
            constants.config.get_config_value("display_ok_hosts", plugin_type="callback", plugin_name="default")
        )


def header_of(found: dict[str, Any], host: str) -> str:
    return f"{'failed' if found.get('failed') else 'changed' if found.get('changed') else 'ok'}: [{host}]"


def coloured(report: list[str], instances: list[dict[str, Any]]) -> list[tuple[str, str | None]]:
    """The lines of a report with their colours. Each instance has a line, and below it what it wrote before it failed."""
    colours: list[str | None] = []
    for row in instances:
        colour = COLOURS.get(row.get("action", ""), constants.COLOR_CHANGED)
        colours += [colour] * (1 + len(row.get("log_tail") or ()))
    if len(colours) != len(report):
        colours = [None] * len(report)
    return list(zip(report, colours))
