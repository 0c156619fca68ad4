# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run says of itself, at its end or beforehand."""

from __future__ import annotations

from typing import Any

from ..model import definition as definitions
from ..model import difference, rows
from ..model.plan import Action, Change, Plan
from .store import Revision
from .wishes import Wish

Document = dict[str, Any]

_UNTOUCHED = (Action.NONE.value, Action.SKIPPED.value)


class Result:
    def __init__(
        self,
        wish: Wish,
        found: Plan,
        made: list[rows.Row],
        revision: int,
        label: str | None,
        before: Revision | None = None,
        in_progress: bool = False,
    ) -> None:
        self.wish = wish
        self.found = found
        self.rows = made
        self.revision = revision
        self.label = label
        self.before = before
        self.in_progress = in_progress
        self.culprit: Change | None = None
        self.timed_out = False
        self.reverted = False
        self.remarks: list[str] = []

    def failed(self) -> list[rows.Row]:
        return [row for row in self.rows if row["action"] == Action.FAILED.value]

    def why(self) -> str:
        """What of it failed, in a sentence; "" if nothing did."""
        return "; ".join(f"{row['name']} {row['reason']}" for row in self.failed())

    def said(self) -> str:
        """All that there is to be said of it beside its rows."""
        return "; ".join(text for text in (self.why(), *self.remarks) if text)

    def take_back(self, back: Result, to: int, made: Revision) -> None:
        """`back` is what has become of going back to revision `to`, as revision `made`."""
        self._join(back, f"revision {to}", f"back on revision {to}")
        self.revision, self.label = made.revision, made.label
        self.reverted = not back.failed()

    def give_back(self, back: Result, owners: str) -> None:
        """`back` is what has become of giving back what was taken over from these projects."""
        self._join(back, f"project {owners}", f"back with project {owners}")

    def _join(self, back: Result, to: str, there: str) -> None:
        failures = self.failed()
        first = failures[0]["name"] if failures else ""
        was = {row.name: row.was for row in back.found.rows if row.was}
        successors = {before: after for after, before in was.items()}
        after = {row["name"]: row for row in back.rows}
        found = [
            _reverted(row, after.pop(successors.get(row["name"], row["name"]), None), first, to, there)
            for row in self.rows
        ]
        # What the failed release had renamed, or had taken away, and what is of no row before.
        found += [_reverted(None, row, first, to, there) for row in after.values() if row["changed"]]
        self.rows = found
        self.timed_out = self.timed_out or back.timed_out
        if not back.failed():  # else the rows say what could not go back
            self.remarks.append(f"went back to {to}")

    def document(self, request: Document | None) -> Document:
        """Its message for the client."""
        return {
            "type": "result",
            "ok": not self.failed(),
            "message": self.said() or None,
            "changed": any(row["changed"] for row in self.rows),
            "project": self.wish.project,
            "revision": self.revision or None,
            "label": self.label,
            "previous_revision": self.before.revision if self.before is not None else None,
            "previous_label": self.before.label if self.before is not None else None,
            "reverted": self.reverted,
            "timed_out": self.timed_out,
            "in_progress": self.in_progress,
            "instances": self.rows,
            "summary": rows.summary(self.rows),
            "diff": difference.of(self.wish.project, self.found),
            "report": rows.report(self.rows),
            "warnings": definitions.cautions(request["definitions"]) if request is not None else [],
        }


def _reverted(row: rows.Row | None, back: rows.Row | None, culprit: str, to: str, there: str) -> rows.Row:
    """The row of an instance once its change was taken back. `row` is what it was before that, `back` what going back has done."""
    if row is None:
        row = {**(back or {}), "log_tail": []}
    if back is None:
        return row
    now = {key: back[key] for key in ("status", "pid", "restarts", "total_restarts", "last_exit")}
    if back["action"] == Action.FAILED.value:
        why = f"could not go back to {to}: {back['reason']}"
        if row["action"] == Action.FAILED.value:
            why = f"{row['reason']}; {why}"
        return {
            **row,
            **now,
            "action": Action.FAILED.value,
            "changed": True,
            "reason": why,
            "log_tail": back["log_tail"],
        }
    if not back["changed"] or (back["action"] == Action.UPDATED.value and row["action"] in _UNTOUCHED):
        return {**row, **now}
    if row["action"] == Action.FAILED.value:
        return {**row, **now, "reason": f"{row['reason']}; {there}"}
    reason = f"{culprit} failed; {there}"
    return {**row, **now, "action": Action.REVERTED.value, "changed": True, "reason": reason}
