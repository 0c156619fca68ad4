# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`log`: whose lines a client wants, and how they reach it (spec: pm3.md, sections 4 and 6.4).

A name is attached to lines only where more than one instance is shown, and the time where it was asked for and is known. Who follows
a process, a group or all of them is shown instances that come later, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..wire import messages
from . import log_file
from .follower import Follower
from .instance import Instance
from .log_file import File
from .logs import Tail, rfc3339
from .selection import Selection
from .server import Client
from .supervisor import Supervisor
from .work import Refused

_MOST_LINES = 10_000  # pm3's cap


class LogRequest:
    """One client's reading. It ends with the client."""

    def __init__(
        self, supervisor: Supervisor, selection: Selection, request: Mapping[str, Any], client: Client
    ) -> None:
        """Raises `Refused`."""
        self._supervisor = supervisor
        self._request = request
        self._client = client
        self._names = [*(request["names"] or ()), *([request["name"]] if request["name"] is not None else ())]
        found = selection.named(self._names or None)
        self._shown = {one.name for one in found}
        self._follower: Follower | None = None
        files = [file for one in found for file in self._files(one)]
        lines = min(request["lines"], _MOST_LINES)
        since = int(request["since"] * 1e9) if request["since"] is not None else None
        if request["follow"]:
            self._follow(files, lines, since)
        else:
            tail = Tail(supervisor.loop, files, lines, self._emit, client.end, since, self._fail)
            client.on_gone, client.on_drained = tail.close, tail.resume

    def _files(self, one: Instance) -> list[File]:
        found = log_file.files(one.name, self._supervisor.logs(one))
        return [file for file in found if self._request["stream"] in (None, file.stream)]

    def _emit(self, file: File, moment: int | None, line: str) -> bool:
        answer = {"type": "log_line", "line": line, "stream": file.stream}
        if len(self._shown) > 1:
            answer["name"] = file.name
        if self._request["timestamps"] and moment is not None:
            answer["time"] = rfc3339(moment)
        self._client.send(answer)
        return not self._client.blocked

    def _follow(self, files: list[File], lines: int, since: int | None) -> None:
        # What the names mean now, they mean of instances that come later, too.
        everything = self._supervisor.instances.values()
        self._processes = {name for name in self._names if any(name in (one.name, one.process) for one in everything)}
        self._groups = set(self._names) - self._processes
        try:
            self._follower = Follower(self._supervisor.loop, files, self._emit, lines, since, self._end, self._fail)
        except OSError as error:
            raise Refused(_sentence(error)) from None
        self._supervisor.watch_added(self._follow_too)
        self._client.on_gone, self._client.on_drained = self._leave, self._follower.resume

    def _follow_too(self, one: Instance) -> None:
        if self._names and one.process not in self._processes and one.definition.group not in self._groups:
            return
        self._shown.add(one.name)
        try:
            if self._follower is not None:
                self._follower.add(self._files(one))
        except OSError as error:
            self._fail(error)

    def _leave(self) -> None:
        self._supervisor.unwatch_added(self._follow_too)
        if self._follower is not None:
            self._follower.close()

    def _end(self) -> None:
        self._leave()
        self._client.end()

    def _fail(self, error: OSError) -> None:
        self._leave()
        self._client.finish(messages.error(_sentence(error)))


def _sentence(error: OSError) -> str:
    """A limit of the host's: the text says which, and what to do."""
    return f"cannot read the log: {error.strerror or error}"
