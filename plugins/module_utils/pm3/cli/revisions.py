# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands about what a project was before: its revisions, and the way back to one of them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..wire.messages import Document
from .answers import Run, here, refused, walked
from .autostart import Agent
from .console import GREEN, RED, Console
from .projects import reported
from .table import boxed, listed, moment, printable

_COLUMNS = ("revision", "when", "who", "label", "changed", "what became of it")
_LONGEST = 80  # letters of a failure; --json has all of it


def _history(options: argparse.Namespace, agent: Agent, console: Console) -> int:
    if options.project == "":
        return console.failure(
            "the name of the project is empty; name it, or leave it out for that of the current folder"
        )
    project = options.project or os.path.basename(here())
    if not project:
        return console.failure("no project name: the root folder has none; name the project")
    answer = agent.request({"type": "history", "project": project})
    if answer.get("type") == "error":
        return refused(answer, console)
    if console.as_json:
        console.document(answer)
        return 0
    revisions = answer.get("revisions") or []
    if not revisions:
        console.line(f"project {printable(project)} has no revisions")
        return 0
    cells = [_cells(one, answer.get("current")) for one in revisions]
    for line in boxed(_COLUMNS, cells, lambda row: (_COLUMNS[-1], _colour(row[-1])), console.paint):
        console.line(line)
    return 0


def _rollback(options: argparse.Namespace, agent: Agent, console: Console) -> int:
    if options.to is not None and options.origin is not None:
        console.error("--to says where to go, --from whence; not both")
        return 2
    if options.to == "":
        console.error(
            "--to: expected a revision or a label; without it the way leads to the newest good one before the current one"
        )
        return 2
    kind = "plan" if options.dry_run else "apply"
    way: Document = {"rollback_from": options.origin} if options.origin is not None else {}
    way = way or {"rollback_to": options.to or ""}  # the empty one: back by one
    request = {"type": kind, "project": options.project, **way, "path": os.environ.get("PATH")}
    if options.dry_run:
        return reported(kind, agent.request(request), console)
    then = f"pm3 history {options.project} shows how it ends"
    return reported(kind, walked(request, agent, console, then), console)


RUN: dict[str, Run] = {"history": _history, "rollback": _rollback}


def _cells(one: Mapping[str, Any], current: Any) -> Sequence[str]:
    uid = one.get("uid")
    who = one.get("user") or (f"uid {uid}" if uid is not None else "-")
    changed = listed(one.get("changed") or []) or "-"
    cells = (one.get("revision"), moment(one.get("at")) or "-", who, one.get("label") or "-", changed)
    return [printable(cell) for cell in (*cells, _fate(one, current))]


def _fate(one: Mapping[str, Any], current: Any) -> str:
    """What became of a revision; that it failed stands first."""
    parts = []
    if one.get("failed_at") is not None or one.get("failure"):
        failure = " ".join(str(one.get("failure") or "").split())
        failure = failure if len(failure) <= _LONGEST else failure[: _LONGEST - 1] + "…"
        parts.append(f"failed: {failure}" if failure else "failed")
    if one.get("revision") == current and current is not None:
        parts.append("current")
    if one.get("origin") is not None:
        parts.append(f"brought back {one['origin']}")
    return ", ".join(parts) or "-"


def _colour(fate: str) -> str | None:
    if fate.startswith("failed"):
        return RED
    return GREEN if fate.startswith("current") else None
