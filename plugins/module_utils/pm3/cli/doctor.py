# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`pm3 doctor`: what is well and what is not, one fact per line; ours first, then the agent's own.

A fact is `{name, ok, text}`, and where it is not ok `severity`: `error`, or else a warning. Reads only: no agent is started, and no
service manager is asked, so that it also says what it can where nothing works.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from .. import VERSION
from ..wire import paths, units
from ..wire.client import Client, ClientError
from ..wire.messages import Document
from . import autostart
from .answers import Run
from .autostart import Agent
from .console import GREEN, RED, YELLOW, Console
from .table import printable

_PATIENCE = 10  # seconds of silence of an agent that is well
_OLDEST = (3, 9)


def _doctor(_options: argparse.Namespace, agent: Agent, console: Console) -> int:
    hello, trouble = _asked(agent.data_dir, "hello")
    facts = [_data_dir(agent.data_dir), _reached(agent.data_dir, hello, trouble)]
    if hello is not None and hello.get("type") != "hello":
        hello = None
    if hello is not None:
        facts.append(_versions(hello))
    facts += [_python(), _manager(hello), *_service(agent.data_dir)]
    if hello is not None:
        facts += _of_agent(agent.data_dir)
    well = not any(fact.get("severity") == "error" and not fact.get("ok") for fact in facts)
    if console.as_json:
        console.document({"type": "doctor", "ok": well, "facts": facts})
    else:
        for line in _lines(facts, console):
            console.line(line)
    return 0 if well else 1


def _lines(facts: list[Document], console: Console) -> list[str]:
    width = max(len(printable(fact.get("name"))) for fact in facts)
    lines = []
    for fact in facts:
        mark, colour = (
            ("✓", GREEN) if fact.get("ok") else ("✗", RED) if fact.get("severity") == "error" else ("!", YELLOW)
        )
        lines.append(
            f"{console.paint(mark, colour)} {printable(fact.get('name')).ljust(width)}  {printable(fact.get('text'))}"
        )
    return lines


def _fact(name: str, text: str, severity: str | None = None) -> Document:
    return {"name": name, "ok": severity is None, "text": text, **({"severity": severity} if severity else {})}


def _asked(data_dir: str, kind: str) -> tuple[Document | None, ClientError | None]:
    try:
        return Client(data_dir, _PATIENCE).request({"type": kind}), None
    except ClientError as error:
        return None, error


def _data_dir(data_dir: str) -> Document:
    if os.environ.get("PM3_DATA_DIR"):
        why = "PM3_DATA_DIR says so"
    elif data_dir == paths.user_data_dir(os.environ):
        why = "your own; PM3_DATA_DIR names another"
    else:
        why = "the system's, because you have none of your own; PM3_DATA_DIR names another"
    return _fact("data dir", f"{data_dir} ({why})")


def _reached(data_dir: str, hello: Document | None, trouble: ClientError | None) -> Document:
    if hello is not None and hello.get("type") == "hello":
        count = (hello.get("instances") or {}).get("running", 0)
        return _fact(
            "agent", f"answers at {paths.socket(data_dir)} (pid {hello.get('pid')}, {count} instances running)"
        )
    if trouble is None:
        return _fact("agent", f"answers at {paths.socket(data_dir)}, but not as one of ours does", "error")
    if trouble.reason == "absent" and paths.managed(data_dir) is None:
        return _fact("agent", "none runs; commands that need one start it")
    return _fact("agent", str(trouble), "error")


def _versions(hello: Document) -> Document:
    theirs = hello.get("version", "unknown")
    if theirs == VERSION:
        return _fact("version", f"{VERSION}, command and agent")
    return _fact(
        "version",
        f"the command is {VERSION}, and the agent that runs is {theirs}; kill -HUP {hello.get('pid')} upgrades it in place to what"
        " is installed",
        "warning",
    )


def _python() -> Document:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < _OLDEST:
        return _fact("python", f"{version} at {sys.executable}; pm3 needs 3.9 or newer", "error")
    from ..formats import pm3_toml

    if pm3_toml.TOML is None:
        return _fact("python", f"{version}, which reads no TOML, and the library tomli is not installed", "warning")
    return _fact("python", f"{version} at {sys.executable}")


def _manager(hello: Document | None) -> Document:
    host = "systemd runs this host" if units.booted() else "no systemd runs this host"
    kept = {
        "systemd": "systemd keeps the agent",
        "keeper": "a keeper of its own keeps the agent, until the next boot; no shutdown waits for what it runs to stop in order",
        "none": "nobody keeps the agent: if it dies, it stays dead",
    }
    manager = str(hello.get("manager")) if hello else ""
    text = "; ".join([host, *([kept[manager]] if manager in kept else [])])
    return _fact("manager", text, "warning" if manager == "none" else None)


def _service(data_dir: str) -> list[Document]:
    """The boot service: installed, enabled, and for a user lingering."""
    scope = paths.scope(data_dir)
    path = units.path(scope)
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            return [_fact("service", f"{path}: {error.strerror}", "warning")]
        if units.booted():
            text = f"none at {path}, so nothing comes back after a boot; pm3 startup installs it"
        else:
            text = f"none that we know: nothing comes back after a boot unless the host then runs {autostart.at_boot(data_dir)}"
        return [_fact("service", text, "warning")]
    own = units.environment_of(text).get("PM3_DATA_DIR")
    if own != data_dir:
        return [_fact("service", f"{path} is that of another agent, at {own}", "warning")]
    target = "multi-user.target" if scope == "system" else "default.target"
    enabled = os.path.lexists(os.path.join(units.folder(scope), f"{target}.wants", units.SERVICE))
    facts = [
        _fact("service", path)
        if enabled
        else _fact("service", f"{path} is not enabled, so it does not start at boot; pm3 startup enables it", "error")
    ]
    if scope == "user":
        user = units.user_name()
        facts.append(
            _fact("lingering", f"{user}: processes go on without a session")
            if units.lingers(user)
            else _fact(
                "lingering",
                f"{user} does not: everything ends with the last session, and nothing starts at boot; loginctl enable-linger {user}",
                "error",
            )
        )
    return facts


def _of_agent(data_dir: str) -> list[Document]:
    answer, trouble = _asked(data_dir, "doctor")
    if answer is None:
        return [_fact("facts", str(trouble), "error")]
    facts: Any = answer.get("facts")
    if answer.get("type") == "error" or not isinstance(facts, list):
        said = answer.get("message") or "the answer holds no facts"
        return [_fact("facts", f"the agent tells nothing of itself: {said}", "warning")]
    return [fact for fact in facts if isinstance(fact, dict)]


RUN: dict[str, Run] = {"doctor": _doctor}
