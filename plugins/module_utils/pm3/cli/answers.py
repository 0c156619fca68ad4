# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An answer of the agent, said to a person or a program: what all commands share. Gives exit statuses."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Callable

from ..wire import messages
from ..wire.client import ClientError
from ..wire.messages import Document
from .autostart import Agent
from .console import Console

if TYPE_CHECKING:
    from ..model.problems import DefinitionError

Run = Callable[[argparse.Namespace, Agent, Console], int]


def here() -> str:
    """The current folder. Raises `ClientError` where somebody has removed it."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        raise ClientError("failed", "the current folder has been removed; change to one that is there (cd)") from None


def walked(request: Document, agent: Agent, console: Console, then: str = "pm3 list shows how it ends") -> Document:
    """The answer to a request that walks a plan; on a terminal its progress is seen meanwhile.

    `then` is for whoever does not wait: it ends nothing but the waiting.
    """
    try:
        if not console.shows_progress:
            return agent.request(request)
        with console.live() as message:
            return agent.request({**request, "progress": True}, message)
    except KeyboardInterrupt:
        if not console.as_json:
            console.note(f"the agent goes on with it; {then}")
        raise


def warned(answer: Document, cautions: Sequence[str]) -> Document:
    """With what a file says and probably does not mean; for programs."""
    return {**answer, "warnings": list(cautions)} if cautions else answer


def said(answer: Document, console: Console) -> int:
    if console.as_json:
        console.document(answer)
    elif answer.get("message"):
        console.success(str(answer["message"]))
    return 0


def refused(answer: Document, console: Console) -> int:
    """The agent's error reply."""
    if console.as_json:
        console.document(answer)
        return 1
    return console.failure(str(answer.get("message")), answer.get("problems") or ())


def unusable(error: DefinitionError, console: Console) -> int:
    reply = messages.error(str(error), error.problems)
    return console.failure(reply["message"], reply["problems"])
