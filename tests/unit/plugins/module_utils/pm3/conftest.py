"""A fake agent for the tests of clients: a real socket that gives prepared answers and remembers what it was asked."""

from __future__ import annotations

import contextlib
import json
import pathlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.wire import messages, paths

Answer = Any  # a document, or bytes as they are to be sent


class FakeAgent:
    """`answers` maps a request's type to the answers it gets, one after another; a function of the request gives them, too."""

    def __init__(self, data_dir: pathlib.Path) -> None:
        self.data_dir = str(data_dir)
        self.answers: dict[str, list[Answer] | Callable[[dict[str, Any]], list[Answer]]] = {}
        self.requests: list[dict[str, Any]] = []
        data_dir.mkdir(parents=True, exist_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        paths.reach(self._listener.bind, paths.socket(self.data_dir))
        self._listener.listen(16)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _peer = self._listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a client may leave early
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as lines:
            request = json.loads(lines.readline())
        messages.check(request)
        unknown = set(request) - {"type"} - set(messages.REQUESTS[request["type"]])
        self.requests.append({**request, **({"UNKNOWN": sorted(unknown)} if unknown else {})})
        answers = self.answers.get(request["type"], [])
        for answer in answers(request) if callable(answers) else answers:
            connection.sendall(answer if isinstance(answer, bytes) else json.dumps(answer).encode() + b"\n")

    def close(self) -> None:
        if self._listener.fileno() < 0:
            return
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def fake_agent(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeAgent]:
    """One that commands of this process find."""
    agent = FakeAgent(tmp_path / "data")
    monkeypatch.setenv("PM3_DATA_DIR", agent.data_dir)
    yield agent
    agent.close()


@pytest.fixture
def make_agent() -> Iterator[Callable[[pathlib.Path], FakeAgent]]:
    """Makes them where a test wants them."""
    made: list[FakeAgent] = []

    def make(data_dir: pathlib.Path) -> FakeAgent:
        made.append(FakeAgent(data_dir))
        return made[-1]

    yield make
    for agent in made:
        agent.close()
