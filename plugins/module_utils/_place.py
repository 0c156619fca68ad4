# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which agent a module means, where that agent lives, and a question to it.

Every module pays for each line of this file at every call: it holds what a run that changes nothing needs, and imports the wire's
client and nothing else. Writes nothing. Private to this collection.
"""

from __future__ import annotations

import os
import typing as t

from .pm3.wire import messages, paths
from .pm3.wire.client import Client, ClientError

Document = dict[str, t.Any]

ROLE = "the role pm3.fleet.agent (or the module of that name)"
OPTIONS: dict[str, t.Any] = {
    "scope": {"type": "str", "choices": ["system", "user"], "default": "system"},
    "data_dir": {"type": "path"},
}


class Unanswered(Exception):
    """No answer from the agent, with the whole sentence for the user. `absent`: there is none, it is not even down."""

    def __init__(self, message: str, reason: str, absent: bool = False) -> None:
        self.reason = reason
        self.absent = absent
        super().__init__(message)


class Refused(Exception):
    """The agent answered that it will not; `problems` where definitions are at fault. `answer` is all that it said."""

    def __init__(self, message: str, answer: Document) -> None:
        self.problems: list[Document] = answer.get("problems") or []
        self.answer = answer
        super().__init__(message)


class Place:
    """Where an agent lives on this host: all paths follow from the options `scope` and `data_dir`."""

    def __init__(self, scope: str, data_dir: str | None = None) -> None:
        self.scope = scope
        usual = paths.SYSTEM if scope == "system" else paths.user_data_dir(os.environ)
        self.data_dir = os.path.abspath(data_dir) if data_dir else usual
        self.usual = self.data_dir == usual
        if scope == "system":
            self.prefix = "/usr/local"
        elif self.usual:
            self.prefix = os.path.join(os.path.expanduser("~"), ".local")
        else:
            self.prefix = self.data_dir
        self.library = os.path.join(self.prefix, "lib", "pm3")
        self.current = os.path.join(self.library, "current")
        self.command = os.path.join(self.prefix, "bin", "pm3")

    @property
    def installed(self) -> bool:
        return os.path.lexists(self.current)

    def ask(self, document: Document, timeout: float | None = None) -> Document:
        """The agent's final answer. Raises `Unanswered` or `Refused`."""
        try:
            answer = Client(self.data_dir, timeout).request(document)
        except ClientError as error:
            raise self._unanswered(error) from None
        if answer.get("type") == "error":
            raise Refused(self._outdated() or str(answer.get("message")), answer)
        return answer

    def _unanswered(self, error: ClientError) -> Unanswered:
        if error.reason != "absent":
            return Unanswered(str(error), error.reason)
        if not self.installed:
            user = "" if self.scope == "system" else " by this user"
            return Unanswered(
                f"the agent pm3 is not installed on this host{user} (there is no {self.current}); run {ROLE} first",
                error.reason,
                absent=True,
            )
        start = paths.managed(self.data_dir) or f"PM3_DATA_DIR={self.data_dir} {self.command} list"
        return Unanswered(
            f"the agent pm3 is installed on this host, but it does not run (nothing answers at"
            f" {paths.socket(self.data_dir)}); start it with: {start}, or run {ROLE}",
            error.reason,
        )

    def _outdated(self) -> str | None:
        """What to say where an agent that is older than this collection may not have understood; None where it is not."""
        try:
            hello = Client(self.data_dir, 10).request({"type": "hello"})
        except ClientError:
            return None
        if hello.get("protocol", 0) >= messages.PROTOCOL:
            return None
        version = hello.get("version", "unknown")
        return f"the agent on this host (version {version}) is older than this collection; run {ROLE} to upgrade it in place"
