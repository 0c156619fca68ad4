# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands about a project: what a file says, made so, predicted, or only checked.

Mistakes in the file are found and shown before any agent is asked or started.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from ..formats import pm3_toml
from ..model import definition
from ..model.problems import DefinitionError
from ..model.screen import one_line
from ..wire import messages
from ..wire.messages import Document
from .answers import Run, here, refused, unusable, walked, warned
from .autostart import Agent
from .console import GREY, RED, YELLOW, Console
from .table import printable


def _apply(options: argparse.Namespace, agent: Agent, console: Console) -> int:
    return _reconcile("apply", options, agent, console)


def _plan(options: argparse.Namespace, agent: Agent, console: Console) -> int:
    return _reconcile("plan", options, agent, console)


def _check(options: argparse.Namespace, _agent: Agent, console: Console) -> int:
    try:
        text, file, base = _read(options.file)
        pm3_toml.load(text, file, base, options.env)
        cautions = definition.cautions(pm3_toml.parse(text, file))
    except DefinitionError as error:
        if console.as_json:
            return unusable(error, console)
        for problem in error.problems:
            console.line(str(problem))
        return 1
    if console.as_json:
        console.document(warned(messages.success(), cautions))
    else:
        for caution in cautions:
            console.warning(caution)
    return 0


def _reconcile(kind: str, options: argparse.Namespace, agent: Agent, console: Console) -> int:
    unsaid = _unsaid(options)
    if unsaid:
        return console.failure(unsaid)
    try:
        tables, file, base = _asked_for(options)
    except DefinitionError as error:
        return unusable(error, console)
    project = options.project or os.path.basename(base)
    if not project:
        return console.failure(f"no project name: {file} is in the root folder; give one with --project")
    if not options.project and not messages.is_name(project):
        return console.failure(
            f"the name of the folder, {one_line(project)}, cannot be that of a project; give one with --project"
        )
    request = {
        "type": kind,
        "project": project,
        "definitions": tables,
        "overlay": options.env,
        "base": base,
        "state": options.state,
        "prune": not options.no_prune,
        "only": options.only,
        "label": options.label,
        "take_over": options.take_over,
        "retry_failed": not options.no_retry_failed,
        "path": os.environ.get("PATH"),
        "file": file,
    }
    answer = (
        walked(request, agent, console, "pm3 apply again shows how it ends")
        if kind == "apply"
        else agent.request(request)
    )
    answer = _with_flags(answer)
    status = reported(kind, answer, console)
    foreign = answer.get("type") == "error" and "belongs to project" in str(answer.get("message"))
    if foreign and not options.project and not console.as_json:
        console.error(f"the project is {project}, after the folder; --project names another")
    return status


def _with_flags(answer: Document) -> Document:
    """A refusal that names a field of the request, as what a person types for it."""
    if answer.get("type") != "error":
        return answer
    problems = [
        {**one, "message": str(one.get("message")).replace("(take_over)", "(--take-over)")}
        for one in answer.get("problems") or ()
    ]
    message = str(answer.get("message")).replace("(take_over)", "(--take-over)")
    return {**answer, "message": message, **({"problems": problems} if problems else {})}


def _unsaid(options: argparse.Namespace) -> str | None:
    """What is wrong with names that were given empty, most likely by a variable that nobody has set; None: nothing is."""
    if options.project == "":
        return "--project is empty; name the project, or leave --project out for the name of the file's folder"
    if options.label == "":
        return "--label is empty; give the revision a name, or leave --label out"
    return None


def _asked_for(options: argparse.Namespace) -> tuple[dict[str, Any], str, str]:
    """The tables of the file, what messages call it, and the folder of its paths. What is to go needs a name and no file."""
    if options.state == "absent" and options.project and not options.file:
        return {}, "", here()
    text, file, base = _read(options.file)
    # Of a part of a project only the agent knows what else there is that it may depend on.
    pm3_toml.load(text, file, base, options.env, None if options.no_prune else ())
    return pm3_toml.parse(text, file), file, base


def reported(kind: str, answer: Document, console: Console) -> int:
    """Says the answer to an `apply` or a `plan`; gives the exit status."""
    if answer.get("type") == "error":
        return refused(answer, console)
    if console.as_json:
        console.document(answer)
    else:
        _result(kind, answer, console)
    return 0 if answer.get("ok") else 1


def _read(file: str | None) -> tuple[str, str, str]:
    """The text of a pm3.toml, what messages call it, and the folder that its paths are relative to."""
    file = file or "pm3.toml"
    if file == "-":
        return pm3_toml.decode(sys.stdin.buffer.read(), "standard input"), "standard input", here()
    path = file if os.path.isabs(file) else os.path.join(here(), file)
    return pm3_toml.read(file), file, os.path.dirname(os.path.normpath(path))


def _result(kind: str, result: Document, console: Console) -> None:
    for text in result.get("warnings") or []:
        console.warning(text)
    for line in _report(result, console):
        console.line(line)
    counts: dict[str, Any] = result.get("summary") or {}
    if kind == "plan":
        summary = f"{counts.get('ok', 0)} ok, {counts.get('changed', 0)} to change"
    else:
        summary = f"{counts.get('ok', 0)} ok, {counts.get('changed', 0)} changed, {counts.get('failed', 0)} failed"
        if counts.get("skipped"):
            summary += f", {counts['skipped']} skipped"
    revision = f" (revision {result['revision']})" if kind == "apply" and result.get("revision") is not None else ""
    console.line(f"project {printable(result.get('project'))}{revision}: {summary}")
    if not result.get("ok"):
        console.error(str(result.get("message") or "the request failed"))


def _report(result: Document, console: Console) -> list[str]:
    """The agent's ready lines; coloured by action where they can be told apart: one line per row, and one per line of its log."""
    lines = list(result.get("report") or [])
    rows = result.get("instances") or []
    if len(lines) != sum(1 + len(row.get("log_tail") or ()) for row in rows):
        return lines
    painted: list[str] = []
    for row in rows:
        colour = RED if row.get("action") == "failed" else YELLOW if row.get("changed") else None
        line = lines[len(painted)]
        painted.append(console.paint(line, colour) if colour else line)
        for _text in row.get("log_tail") or ():
            painted.append(console.paint(lines[len(painted)], GREY))
    return painted


RUN: dict[str, Run] = {"apply": _apply, "plan": _plan, "check": _check}
