# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`pm3 log`: the newest lines of output, in order of time, and with -f what comes."""

from __future__ import annotations

import argparse

from ..wire.messages import Document
from .answers import Run, refused
from .autostart import Agent
from .console import RED, Console

_ALL_LINES = 10_000  # as many as the agent shows


def _log(options: argparse.Namespace, agent: Agent, console: Console) -> int:
    if options.lines is not None and options.lines < 0:
        console.error("--lines: expected a whole number, 0 or more")
        return 2
    since = _moment(options.since) if options.since is not None else None
    if options.since is not None and since is None:
        console.error(
            f"--since: expected a duration such as 10m or 2h, or a time such as 2026-01-31T12:00, found {options.since!r}"
        )
        return 2
    lines = options.lines if options.lines is not None else 15 if since is None else _ALL_LINES
    names = list(dict.fromkeys(options.names))
    request: Document = {"type": "log", "lines": lines, "follow": options.follow}
    if names:
        request.update({"name": names[0]} if len(names) == 1 else {"names": names})
    if options.out != options.err:
        request["stream"] = "out" if options.out else "err"
    if since is not None:
        request["since"] = since
    if options.timestamps:
        request["timestamps"] = True
    answers = agent.stream(request)
    try:
        while not options.follow or answers.wait(console.descriptor):
            answer = next(answers, None)
            if answer is None:
                break
            if answer.get("type") == "error":
                return refused(answer, console)
            if console.as_json:
                console.document(answer)
            else:
                console.line(_log_line(answer, console))
            if options.follow:
                console.flush()
        else:
            raise BrokenPipeError  # `pm3 log -f | head -1`: found out without a line to write
    finally:
        answers.close()
    if options.follow:
        console.error("the pm3 agent closed the connection; it ended or is being upgraded")
        return 1
    return 0


def _log_line(answer: Document, console: Console) -> str:
    line = str(answer.get("line", ""))
    moment = f"{answer['time']} " if answer.get("time") is not None else ""
    name = f"[{answer['name']}] " if answer.get("name") is not None else ""
    return moment + name + (console.paint(line, RED) if answer.get("stream") == "err" else line)


def _moment(text: str) -> float | None:
    """Seconds since the epoch of "10m" (ago) or of an ISO 8601 time; None: it is neither."""
    import time
    from datetime import datetime

    from ..model.kinds import duration
    from ..model.problems import Unfit

    try:
        return max(0.0, time.time() - float(duration(text, 1000)))
    except Unfit:
        pass
    try:
        return max(0.0, datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith("Z") else text).timestamp())
    except (ValueError, OverflowError, OSError):
        return None


RUN: dict[str, Run] = {"log": _log}
