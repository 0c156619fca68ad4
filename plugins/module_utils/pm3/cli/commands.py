# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each command does: a request to the agent, and its answer said to a person or a program. Gives the exit status.

What a command defines is read and checked here first, so that mistakes in a file are shown before any agent is asked or started.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any, Callable

from ..model.order import natural
from ..wire import messages
from ..wire.messages import Document
from . import table
from .autostart import Agent
from .console import Console

if TYPE_CHECKING:
    from ..model.problems import DefinitionError

Run = Callable[[argparse.Namespace, Agent, Console], int]


def _start(options: argparse.Namespace, agent: Agent, console: Console) -> int:
    from ..formats import pm3_toml
    from ..model.problems import DefinitionError

    try:
        found = pm3_toml.load_for_start(pm3_toml.read("pm3.toml"), "pm3.toml", os.getcwd())
    except DefinitionError as error:
        status = _unusable(error, console)
        if not os.path.exists("pm3.toml") and not console.as_json:
            console.warning(
                "start reads the pm3.toml of the current folder; what was started before is started again by restart"
            )
        return status
    request = {
        "type": "start",
        # pm3's daemons require `environments`, even if it is empty.
        "configs": {name: {"environments": {}, **definition.data()} for name, definition in found.items()},
        **({"names": options.names} if options.names else {}),
        **({"env": options.env} if options.env is not None else {}),
        "wait": options.wait,
        "path": os.environ.get("PATH"),
    }
    return _change(request, agent, console)


def _stop(options: argparse.Namespace, agent: Agent, console: Console) -> int:
    return _change({"type": "stop", **({"names": options.names} if options.names else {})}, agent, console)


def _restart(options: argparse.Namespace, agent: Agent, console: Console) -> int:
    return _change({"type": "restart", **({"names": options.names} if options.names else {})}, agent, console)


def _list(_options: argparse.Namespace, agent: Agent, console: Console) -> int:
    answer = agent.request({"type": "list"})
    if answer.get("type") == "error":
        return _refused(answer, console)
    answer["processes"] = sorted(answer["processes"], key=lambda one: natural(one["name"]))
    if console.as_json:
        console.document(answer)
    else:
        _table(answer, console)
    return 0


def _info(options: argparse.Namespace, agent: Agent, console: Console) -> int:
    found: list[Document] = []
    refused: list[str] = []
    names = list(dict.fromkeys(options.names))
    for name in names:
        answer = agent.request({"type": "info", "name": name})
        if answer.get("type") == "error":
            refused.append(str(answer.get("message")))
        else:
            # A name that stands for several processes has them all in `infos`.
            found += answer.get("infos") or [answer["info"]]
    found = list({info["name"]: info for info in found}.values())
    if console.as_json and not refused:
        several = {"infos": found} if len(found) > 1 else {}
        console.document({"type": "process_detail", "info": found[0], **several})
    elif not console.as_json:
        for number, info in enumerate(found):
            for line in [""] * bool(number) + table.details(info, console.paint):
                console.line(line)
    if console.as_json and refused:
        return console.failure("; ".join(refused))
    for message in refused:
        console.error(message)
    return 1 if refused else 0


def _log(options: argparse.Namespace, agent: Agent, console: Console) -> int:
    if options.lines < 0:
        console.error("--lines: expected a whole number, 0 or more")
        return 2
    name = {"name": options.name} if options.name is not None else {}
    answers = agent.stream({"type": "log", **name, "lines": options.lines, "follow": options.follow})
    try:
        for answer in answers:
            if answer.get("type") == "error":
                return _refused(answer, console)
            if console.as_json:
                console.document(answer)
            else:
                shown = f"[{answer['name']}] " if answer.get("name") is not None else ""
                console.line(shown + str(answer.get("line", "")))
            if options.follow:
                console.flush()
    finally:
        answers.close()
    if options.follow:
        console.error("the pm3 agent closed the connection; it ended or is being upgraded")
        return 1
    return 0


def _apply(options: argparse.Namespace, agent: Agent, console: Console) -> int:
    return _reconcile("apply", options, agent, console)


def _plan(options: argparse.Namespace, agent: Agent, console: Console) -> int:
    return _reconcile("plan", options, agent, console)


def _check(options: argparse.Namespace, _agent: Agent, console: Console) -> int:
    from ..formats import pm3_toml
    from ..model.problems import DefinitionError

    try:
        text, file, base = _read(options.file)
        pm3_toml.load(text, file, base, options.env)
    except DefinitionError as error:
        if console.as_json:
            return _unusable(error, console)
        for problem in error.problems:
            console.line(str(problem))
        return 1
    if console.as_json:
        console.document(messages.success())
    return 0


def _kill(_options: argparse.Namespace, agent: Agent, console: Console) -> int:
    answer = agent.request_if_running({"type": "kill"}) or messages.success("daemon shutting down")
    if answer.get("type") == "error":
        return _refused(answer, console)
    return _said(answer, console)


RUN: dict[str, Run] = {
    "start": _start,
    "stop": _stop,
    "restart": _restart,
    "list": _list,
    "info": _info,
    "log": _log,
    "apply": _apply,
    "plan": _plan,
    "check": _check,
    "kill": _kill,
}


def _change(request: Document, agent: Agent, console: Console) -> int:
    """A request of pm3's that changes processes: its message, then the table, also after an error."""
    answer = _walked(request, agent, console)
    status = _refused(answer, console) if answer.get("type") == "error" else _said(answer, console)
    if not console.as_json:
        listed = agent.request({"type": "list"})
        if listed.get("type") == "process_list":
            console.flush()
            _table(listed, console)
    return status


def _reconcile(kind: str, options: argparse.Namespace, agent: Agent, console: Console) -> int:
    from ..formats import pm3_toml
    from ..model.problems import DefinitionError

    try:
        text, file, base = _read(options.file)
        pm3_toml.load(text, file, base, options.env)
        tables = pm3_toml.parse(text, file)
    except DefinitionError as error:
        return _unusable(error, console)
    project = options.project or os.path.basename(base)
    if not project:
        return console.failure(f"no project name: {file} is in the root folder; give one with --project")
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
        "path": os.environ.get("PATH"),
        "file": file,
    }
    answer = _walked(request, agent, console)
    if answer.get("type") == "error":
        status = _refused(answer, console)
        if not options.project and not console.as_json and "belongs to project" in str(answer.get("message")):
            console.error(f"the project is {project}, after the folder; --project names another")
        return status
    if console.as_json:
        console.document(answer)
    else:
        _result(kind, answer, console)
    return 0 if answer.get("ok") else 1


def _read(file: str) -> tuple[str, str, str]:
    """The text of a pm3.toml, what messages call it, and the folder that its paths are relative to."""
    from ..formats import pm3_toml

    if file == "-":
        return pm3_toml.decode(sys.stdin.buffer.read(), "standard input"), "standard input", os.getcwd()
    return pm3_toml.read(file), file, os.path.dirname(os.path.abspath(file))


def _walked(request: Document, agent: Agent, console: Console) -> Document:
    """The answer to a request that walks a plan; on a terminal its progress is seen meanwhile."""
    if not console.shows_progress:
        return agent.request(request)
    try:
        return agent.request({**request, "progress": True}, console.progress)
    finally:
        console.progress_done()


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
    console.line(f"project {result.get('project')}{revision}: {summary}")
    if not result.get("ok"):
        console.error(str(result.get("message") or "the request failed"))


def _report(result: Document, console: Console) -> list[str]:
    """The agent's ready lines; coloured by action where they can be told apart: one line per row, and one per line of its log."""
    from .console import GREY, RED, YELLOW

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


def _table(answer: Document, console: Console) -> None:
    for line in table.table(answer["processes"], console.paint):
        console.line(line)


def _said(answer: Document, console: Console) -> int:
    if console.as_json:
        console.document(answer)
    elif answer.get("message"):
        console.success(str(answer["message"]))
    return 0


def _refused(answer: Document, console: Console) -> int:
    """The agent's error reply."""
    if console.as_json:
        console.document(answer)
        return 1
    return console.failure(str(answer.get("message")), answer.get("problems") or ())


def _unusable(error: DefinitionError, console: Console) -> int:
    reply = messages.error(str(error), error.problems)
    return console.failure(reply["message"], reply["problems"])
