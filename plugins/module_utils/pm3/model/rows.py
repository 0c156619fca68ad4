# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Result rows: what a request says of each instance, and the ready lines that people read.

The shape is the contract of DESIGN: the agent makes rows, modules return them, the callback and `pm3 apply` print `report`. It is
the same in success, failure and check mode.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .plan import Action, Change, FieldChange, said
from .screen import columns_of, one_line, padded

Row = dict[str, Any]


def row(
    change: Change,
    status: str,
    pid: int | None = None,
    restarts: int = 0,
    total_restarts: int = 0,
    last_exit: Mapping[str, Any] | None = None,
) -> Row:
    """A change as a result row, as if it had succeeded. `last_exit` is the document that `list` shows."""
    return {
        "name": change.name,
        "process": change.process,
        "action": change.action.value,
        "changed": change.action is not Action.NONE,
        "status": status,
        "pid": pid,
        "restarts": restarts,
        "total_restarts": total_restarts,
        "last_exit": last_exit,
        "reason": change.reason,
        "changes": [_field(field) for field in change.changes],
        "log_tail": [],
        "seconds": None,  # that the work on it has taken
    }


def failed(made: Row, reason: str, log_tail: Sequence[str] = ()) -> Row:
    """The row of a change that did not succeed. `changed` stays: something was touched."""
    return {**made, "action": Action.FAILED.value, "reason": reason, "log_tail": list(log_tail)}


def skipped(made: Row, reason: str) -> Row:
    """The row of a change that was not begun."""
    return {**made, "action": Action.SKIPPED.value, "changed": False, "reason": reason, "changes": []}


def summary(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How many instances there are of each kind: as described already, changed, failed, or not reached."""
    counts = {"ok": 0, "changed": 0, "failed": 0, "skipped": 0}
    for one in rows:
        kind = one["action"] if one["action"] in (Action.FAILED.value, Action.SKIPPED.value) else None
        counts[kind or ("changed" if one["changed"] else "ok")] += 1
    return counts


def report(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line per instance: name, action, status, why; the last output of a failed one below its line.

    All of it as a terminal can show it, for a program writes what it likes.
    """
    width = max((columns_of(one["name"]) for one in rows), default=0)
    lines = []
    for one in rows:
        action = "ok" if one["action"] == Action.NONE.value else one["action"]
        lines.append(
            one_line(f"{padded(one['name'], max(width, 10))}  {action:<9}  {one['status']:<9}  {why(one)}".rstrip())
        )
        lines.extend(f"    | {one_line(text.expandtabs())}" for text in one["log_tail"])
    return lines


def why(one: Mapping[str, Any]) -> str:
    """Of a row: its reason, and what of the definition differs."""
    return "; ".join([one["reason"]] * bool(one["reason"]) + [_line(change) for change in one["changes"]])


def _field(change: FieldChange) -> dict[str, Any]:
    return {"field": change.field, "before": change.before, "after": change.after, "effect": change.effect.value}


def _line(change: Mapping[str, Any]) -> str:
    return f"{change['field']}: {said(change['before'])} -> {said(change['after'])}"
