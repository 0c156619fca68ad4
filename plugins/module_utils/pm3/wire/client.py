# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The blocking client: one request on one connection, the answers as they come.

An `error` reply is an answer like any other. What prevents an answer is a `ClientError`, whose text is the whole sentence for the
user. Modules import this file at every call: it imports little and stays small.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from typing import Any, Callable

from . import paths
from .messages import Document, Malformed, decode, encode


class ClientError(Exception):
    """No answer. `reason`: absent (no agent runs), denied, closed (before the answer), garbled, timeout or failed."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


class Client:
    """Speaks to the agent of a data dir. `timeout` (seconds, None for ever) bounds each silence of the agent."""

    def __init__(self, data_dir: str, timeout: float | None = None) -> None:
        self.data_dir = data_dir
        self.timeout = timeout

    def request(self, document: Document, on_row: Callable[[Document], Any] | None = None) -> Document:
        """The final answer to `document`; rows and steps of its progress that come before it go to `on_row`. Raises `ClientError`."""
        answers = self.stream(document)
        try:
            for answer in answers:
                if answer.get("type") not in ("row", "step"):
                    return answer
                if on_row is not None:
                    on_row(answer)
        finally:
            answers.close()
        raise ClientError(
            "closed",
            "the pm3 agent closed the connection before it answered; it may be ending or being upgraded: try again",
        )

    def stream(self, document: Document) -> Answers:
        """All answers to `document` until the agent closes the connection; none may be right (log). Raises `ClientError`."""
        return Answers(self._connected(), encode(document), self)

    def failure(self, error: OSError) -> ClientError:
        """What `error`, met while talking to the agent, means for the user."""
        path = paths.socket(self.data_dir)
        if isinstance(error, PermissionError):
            return ClientError(
                "denied",
                f"permission denied: this user may not use the pm3 agent at {path}; use become (or sudo), or join its admin"
                f" group {paths.GROUP}",
            )
        if isinstance(error, (FileNotFoundError, NotADirectoryError, ConnectionRefusedError)):
            start = paths.managed(self.data_dir)
            remedy = (
                f"start it with: {start}" if start else f"any pm3 command with PM3_DATA_DIR={self.data_dir} starts one"
            )
            return ClientError("absent", f"no pm3 agent is running for {self.data_dir}; {remedy}")
        if isinstance(error, socket.timeout):
            return ClientError("timeout", f"the pm3 agent at {path} said nothing for {self.timeout:g} s")
        return ClientError("failed", f"talking to the pm3 agent at {path} failed: {error.strerror or error}")

    def _connected(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(self.timeout)
            paths.reach(connection.connect, paths.socket(self.data_dir))
        except OSError as error:
            connection.close()
            raise self.failure(error) from None
        return connection


class Answers:
    """The answers on one connection, in turn. Sends the request at once; close it when not read to its end."""

    def __init__(self, connection: socket.socket, request: bytes, client: Client) -> None:
        self._client = client
        self._connection = connection
        self._lines = connection.makefile("rb")
        try:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the agent may have refused a request that it did not read to its end: its answer is still to be read
        except OSError as error:
            self.close()
            raise client.failure(error) from None

    def __iter__(self) -> Iterator[Document]:
        return self

    def __next__(self) -> Document:
        try:
            line = self._lines.readline()
        except ConnectionResetError:
            line = b""
        except OSError as error:
            self.close()
            raise self._client.failure(error) from None
        if not line.endswith(b"\n"):  # cut short: the agent died while it wrote
            self.close()
            raise StopIteration
        try:
            return decode(line)
        except Malformed as error:
            self.close()
            path = paths.socket(self._client.data_dir)
            raise ClientError("garbled", f"the answer at {path} is not one of a pm3 agent: {error}") from None

    def wait(self, listener: int) -> bool:
        """Waits until there is more to read, or its end; False if meanwhile nobody reads what is written to `listener` any more."""
        self._connection.setblocking(False)
        try:
            if self._lines.peek(1):  # read already, which no poll would tell
                return True
        except OSError:
            return True  # for the read to say
        finally:
            self._connection.settimeout(self._client.timeout)
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        poll.register(listener, 0)  # POLLERR of a pipe and POLLHUP come unasked
        ready = dict(poll.poll())
        return self._connection.fileno() in ready or listener not in ready

    def close(self) -> None:
        self._lines.close()
        self._connection.close()
