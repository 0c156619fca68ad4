# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the commands of every day do: a request to the agent, and its answer said to a person or a program. Gives the exit status.

What a command defines is read and checked here first, so that mistakes in a file are shown before any agent is asked or started.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from ..model.order import natural
from ..wire import messages
from ..wire.messages import Document
from . import table
from .answers import Run, here, refused, said, unusable, walked, warned
from .autostart import Agent
from .console import Console, place

_NOBODY = "delete forgets processes, so it wants them named; --all means all of them"


def _start(options: argparse.Namespace, agent: Agent, console: Console) -> int:
    from ..formats import pm3_toml
    from ..model import definition as definitions
    from ..model.problems import DefinitionError

    folder = here()
    try:
        text = pm3_toml.read("pm3.toml")
        found = pm3_toml.load_for_start(text, "pm3.toml", folder)
        cautions = definitions.cautions(pm3_toml.parse(text, "pm3.toml"))
    except DefinitionError as error:
        status = unusable(error, console)
        if not os.path.exists("pm3.toml") and not console.as_json:
            console.warning(
                "start reads the pm3.toml of the current folder; what was started before is started again by restart"
            )
        return status
    request = {
        "type": "start",
        # pm3's daemons require `environments`, even if it is empty.
        "configs": {name: {"environments": {}, **definition.data()} for name, definition in found.items()},
        **_names(options),
        **({"env": options.env} if options.env is not None else {}),
        "wait": options.wait,
        "path": os.environ.get("PATH"),
    }
    for caution in cautions if not console.as_json else ():
        console.warning(caution)
    return _change(request, agent, console, "pm3.toml", cautions)


def _stop(options: argparse.Namespace, agent: Agent, console: Console) -> int:
    return _change({"type": "stop", **_names(options)}, agent, console)


def _restart(options: argparse.Namespace, agent: Agent, console: Console) -> int:
    return _change({"type": "restart", **_names(options)}, agent, console)


def _reload(options: argparse.Namespace, agent: Agent, console: Console) -> int:
    return _change({"type": "reload", **_names(options), "path": os.environ.get("PATH")}, agent, console)


def _delete(options: argparse.Namespace, agent: Agent, console: Console) -> int:
    if bool(options.names) == options.all:
        console.error("name the processes to forget, or say --all; not both" if options.all else _NOBODY)
        return 2
    names = options.names
    if options.all:
        listed = agent.request({"type": "list"})
        if listed.get("type") == "error":
            return refused(listed, console)
        # Processes and not their instances: a process is forgotten as a whole.
        names = list(dict.fromkeys(one.get("process") or one["name"] for one in listed["processes"]))
        if not names:
            return said(messages.success("deleted: "), console)
    return _change({"type": "delete", "names": names}, agent, console)


def _flush(options: argparse.Namespace, agent: Agent, console: Console) -> int:
    return _told({"type": "flush", **_names(options)}, agent, console)


def _signal(options: argparse.Namespace, agent: Agent, console: Console) -> int:
    return _told({"type": "signal", "name": options.name, "signal": options.signal}, agent, console)


def _save(_options: argparse.Namespace, agent: Agent, console: Console) -> int:
    return _told({"type": "save"}, agent, console)


def _resurrect(_options: argparse.Namespace, agent: Agent, console: Console) -> int:
    return _told({"type": "resurrect", "path": os.environ.get("PATH")}, agent, console)


def _hold(options: argparse.Namespace, agent: Agent, console: Console) -> int:
    return _held({"type": "hold", "reason": options.reason}, options, agent, console)


def _release(options: argparse.Namespace, agent: Agent, console: Console) -> int:
    return _held({"type": "release"}, options, agent, console)


def _held(request: Document, options: argparse.Namespace, agent: Agent, console: Console) -> int:
    if not options.names and options.project is None:
        console.error(f"name the processes or projects to {request['type']}")
        return 2
    project = {"project": options.project} if options.project is not None else {}
    return _told({**request, **_names(options), **project}, agent, console)


def _list(_options: argparse.Namespace, agent: Agent, console: Console) -> int:
    answer = agent.request({"type": "list"})
    if answer.get("type") == "error":
        return refused(answer, console)
    answer["processes"] = sorted(answer["processes"], key=lambda one: natural(one["name"]))
    if console.as_json:
        console.document(answer)
    else:
        _table(answer, console)
    return 0


def _info(options: argparse.Namespace, agent: Agent, console: Console) -> int:
    found: list[Document] = []
    unknown: list[str] = []
    names = list(dict.fromkeys(options.names))
    for name in names:
        answer = agent.request({"type": "info", "name": name})
        if answer.get("type") == "error":
            unknown.append(str(answer.get("message")))
        else:
            # A name that stands for several processes has them all in `infos`.
            found += answer.get("infos") or [answer["info"]]
    found = list({info["name"]: info for info in found}.values())
    if console.as_json and not unknown:
        several = {"infos": found} if len(found) > 1 else {}
        console.document({"type": "process_detail", "info": found[0], **several})
    elif not console.as_json:
        for number, info in enumerate(found):
            for line in [""] * bool(number) + table.details(info, console.paint):
                console.line(line)
    if console.as_json and unknown:
        return console.failure("; ".join(unknown))
    for message in unknown:
        console.error(message)
    return 1 if unknown else 0


def _kill(_options: argparse.Namespace, agent: Agent, console: Console) -> int:
    answer = agent.request_if_running({"type": "kill"}) or messages.success("daemon shutting down")
    return _say(answer, console)


RUN: dict[str, Run] = {
    "start": _start,
    "stop": _stop,
    "restart": _restart,
    "reload": _reload,
    "delete": _delete,
    "list": _list,
    "info": _info,
    "flush": _flush,
    "signal": _signal,
    "save": _save,
    "hold": _hold,
    "release": _release,
    "resurrect": _resurrect,
    "kill": _kill,
}


def _change(
    request: Document, agent: Agent, console: Console, file: str | None = None, cautions: Sequence[str] = ()
) -> int:
    """A request of pm3's that changes processes: its message, then the table, also after an error. `file` is what it comes from."""
    answer = warned(walked(request, agent, console), cautions)
    if file is not None and answer.get("problems"):  # only the agent could find them, and it does not know the file
        problems = [{**one, "file": one.get("file") or file} for one in answer["problems"]]
        answer = {**answer, "message": "\n".join(map(place, problems)), "problems": problems}
    status = _say(answer, console)
    failed: dict[str, str] = answer.get("failed") or {}
    if failed and not console.as_json:
        for name, why in sorted(failed.items()):
            console.error(f"{name}: {why}")
    status = status or bool(failed)
    if not console.as_json:
        listed = agent.request({"type": "list"})
        if listed.get("type") == "process_list":
            console.flush()
            _table(listed, console)
    return status


def _told(request: Document, agent: Agent, console: Console) -> int:
    """A request whose answer is one message."""
    return _say(agent.request(request), console)


def _say(answer: Document, console: Console) -> int:
    return refused(answer, console) if answer.get("type") == "error" else said(answer, console)


def _names(options: argparse.Namespace) -> Document:
    """The field for what was named; absent, which is all, where nothing was."""
    return {"names": options.names} if options.names else {}


def _table(answer: Document, console: Console) -> None:
    for line in [*table.table(answer["processes"], console.paint), *table.holds(answer["processes"], console.paint)]:
        console.line(line)
