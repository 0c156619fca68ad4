# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent's socket with real clients: the loop in a second thread, blocking clients in this one."""

from __future__ import annotations

import json
import os
import queue
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent import server as server_module
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.loop import Loop
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.server import Client, Peer, Server
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.wire import messages

from .conftest import descriptors
from .waiting import DEADLINE

# A server in a process of its own, with few descriptors. It counts what its loop calls and what it was told as errors.
SMALL = """
import os, resource, sys
sys.path.insert(0, sys.argv[1])
from pm3.agent.loop import Loop
from pm3.agent.server import Server

class Counting(Loop):
    calls = 0
    def _call(self, callback):
        self.calls += 1
        super()._call(callback)

errors, filled = [], []
def handler(request, peer, client):
    if request["type"] == "fill":  # the worst case: not even the reserve is left
        os.close(server._reserve)
        server._reserve = -1
        try:
            while True:
                filled.append(os.open("/", os.O_RDONLY))
        except OSError:
            pass
    if request["type"] == "empty":
        while filled:
            os.close(filled.pop())
    count = len(os.listdir("/proc/self/fd")) if request["type"] == "count" else None
    client.finish({"type": "success", "errors": len(errors), "calls": loop.calls, "descriptors": count})

resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
loop = Counting(errors.append)
server = Server(loop, sys.argv[2], handler, errors.append)
os.write(1, b"ready\\n")
loop.run()
"""


class Running:
    """A server whose requests wait in `requests` until the test takes them."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.errors: queue.Queue[BaseException] = queue.Queue()
        self.requests: queue.Queue[tuple[dict[str, Any], Peer, Client]] = queue.Queue()
        self.loop = Loop(self.errors.put)
        self.server = Server(self.loop, self.path, self._handle, self.errors.put)
        self._thread = threading.Thread(target=self.loop.run)
        self._thread.start()

    def _handle(self, request: dict[str, Any], peer: Peer, client: Client) -> None:
        if request["type"] == "echo":
            client.finish({"type": "success", "request": request, "peer": peer})
        elif request["type"] == "defect":
            raise LookupError("no such drawer")
        elif request["type"] == "malformed":
            raise messages.Malformed("not like that")
        else:
            self.requests.put((request, peer, client))

    def call(self, function: Callable[[], Any]) -> Any:
        """What `function` gives when the loop calls it."""
        answer: queue.Queue[Any] = queue.Queue()
        self.loop.from_thread(lambda: answer.put(function()))
        return answer.get(timeout=DEADLINE)

    def taken(self) -> Client:
        return self.requests.get(timeout=DEADLINE)[2]

    def end(self) -> None:
        self.loop.from_thread(self.server.close)
        self.loop.from_thread(self.loop.stop)
        self._thread.join(DEADLINE)
        self.loop.close()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    it = Running(tmp_path / "pm3.sock")
    yield it
    it.end()


def connected(path: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(DEADLINE)
    client.connect(path)
    return client


def sent(path: str, request: bytes, half_close: bool = True) -> socket.socket:
    client = connected(path)
    client.sendall(request)
    if half_close:
        client.shutdown(socket.SHUT_WR)
    return client


def answers(client: socket.socket) -> list[dict[str, Any]]:
    with client, client.makefile("rb") as lines:
        return [json.loads(line) for line in lines]


def ask(path: str, request: bytes) -> dict[str, Any]:
    (answer,) = answers(sent(path, request))
    return answer


def until(condition: Callable[[], bool]) -> None:
    """For what nothing tells us: asks again and again, up to a deadline."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline


# The request


def test_a_request_is_answered_and_the_peer_is_known(running: Running) -> None:
    answer = ask(running.path, b'{"type":"echo","names":["web"]}\n')
    assert answer["request"] == {"type": "echo", "names": ["web"]}
    assert answer["peer"] == [os.getpid(), os.getuid(), os.getgid()]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b'{"type":"echo"}',  # ended by the half-close alone
        b'{"type":"echo"}  \n',
        b'{"type":"echo"}\n{"type":"defect"}\nmore',
    ],
)
def test_a_request_ends_at_the_newline_or_the_end(running: Running, request_bytes: bytes) -> None:
    assert ask(running.path, request_bytes)["request"] == {"type": "echo"}


def test_a_client_need_not_half_close(running: Running) -> None:
    assert answers(sent(running.path, b'{"type":"echo"}\n', half_close=False))[0]["type"] == "success"


def test_a_request_may_come_in_pieces(running: Running) -> None:
    client = connected(running.path)
    for byte in b'{"type":"echo","text":"\xc3\xa4"}\n':
        client.sendall(bytes([byte]))
    assert answers(client)[0]["request"]["text"] == "ä"


def test_input_after_the_newline_does_not_reset_the_answer(running: Running) -> None:
    client = sent(running.path, b'{"type":"wait"}\n', half_close=False)
    waiting = running.taken()
    client.sendall(b"x" * 1000)
    running.call(lambda: waiting.finish({"type": "success"}))
    assert answers(client) == [{"type": "success"}]


@pytest.mark.parametrize(
    ("request_bytes", "message"),
    [
        (b"", "expected one JSON object"),
        (b"\n", "expected one JSON object"),
        (b"hello\n", "expected one JSON object"),
        (b"[1]\n", "expected one JSON object"),
        (b'{"type":"\xff"}\n', "UTF-8"),
        (b'{"type":"echo","n":NaN}\n', "number"),
        (b"[" * 100_000 + b"\n", "nesting"),
        (b"{}\n", "type"),
        (b'{"type":7}\n', "type"),
        (b'{"type":"malformed"}\n', "not like that"),
        (b'{"type":"defect"}\n', "LookupError: no such drawer"),
    ],
)
def test_what_cannot_be_used_gets_a_sentence(running: Running, request_bytes: bytes, message: str) -> None:
    answer = ask(running.path, request_bytes)
    assert answer["type"] == "error"
    assert message in answer["message"]


def test_a_defect_of_the_handler_is_told(running: Running) -> None:
    ask(running.path, b'{"type":"defect"}\n')
    assert isinstance(running.errors.get(timeout=DEADLINE), LookupError)


def test_an_oversize_request_is_read_to_its_end_and_refused(running: Running) -> None:
    client = connected(running.path)
    for _part in range((messages.LONGEST_REQUEST >> 20) + 2):
        client.sendall(b" " * (1 << 20))
    client.sendall(b"\n")
    assert "MiB" in answers(client)[0]["message"]


def test_a_silent_client_is_dropped(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "REQUEST_SECONDS", 0.05)
    client = connected(running.path)
    client.sendall(b'{"type":')
    assert "no whole request" in answers(client)[0]["message"]


def test_the_deadline_is_for_the_request_alone(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "REQUEST_SECONDS", 0.2)
    client = sent(running.path, b'{"type":"wait"}\n')
    waiting = running.taken()
    silent = connected(running.path)  # connected later, so when its time is over the other's would have been
    assert answers(silent)
    running.call(lambda: waiting.finish({"type": "success"}))
    assert answers(client) == [{"type": "success"}]


# The answer


def test_lines_stream_in_order_and_end(running: Running) -> None:
    client = sent(running.path, b'{"type":"wait"}\n')
    waiting = running.taken()

    def stream() -> None:
        for number in range(10_000):
            waiting.send({"type": "row", "number": number})
        waiting.finish({"type": "result"})
        waiting.send({"type": "late"})
        waiting.finish({"type": "later"})

    running.call(stream)
    lines = answers(client)
    assert [line.get("number") for line in lines] == [*range(10_000), None]


def test_a_paused_reader_blocks_itself_only_and_is_told_when_it_reads_again(running: Running) -> None:
    client = sent(running.path, b'{"type":"wait"}\n')
    waiting = running.taken()
    drained: queue.Queue[None] = queue.Queue()
    count = 0

    def fill() -> None:
        nonlocal count
        waiting.on_drained = lambda: drained.put(None)
        while not waiting.blocked:
            waiting.send({"type": "log_line", "line": "x" * 1000})
            count += 1

    running.call(fill)
    assert ask(running.path, b'{"type":"echo"}')["type"] == "success"
    assert drained.empty()
    with client.makefile("rb") as lines:
        for _line in range(count):
            assert lines.readline().endswith(b"}\n")
        drained.get(timeout=DEADLINE)
        running.call(lambda: waiting.finish({"type": "success"}))
        assert lines.read() == b'{"type":"success"}\n'
    client.close()
    assert drained.empty()


def test_who_never_reads_costs_a_bounded_queue(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "QUEUE_LIMIT", 4 << 20)
    gone: queue.Queue[None] = queue.Queue()
    client = sent(running.path, b'{"type":"wait"}\n')
    waiting = running.taken()
    waiting.on_gone = lambda: gone.put(None)

    def flood() -> int:
        most = 0
        for _line in range(100):
            waiting.send({"type": "log_line", "line": "x" * (1 << 20)})
            most = max(most, waiting.pending_bytes)
        return most

    assert running.call(flood) < 6 << 20
    gone.get(timeout=DEADLINE)
    assert waiting.closed
    client.close()


# Leaving


def test_leaving_is_noticed_without_a_write(running: Running) -> None:
    gone: queue.Queue[str] = queue.Queue()
    clients, waiting = [], []
    for name in ("quiet", "half-closed", "stays"):
        clients.append(sent(running.path, b'{"type":"wait"}\n', half_close=name != "quiet"))
        waiting.append(running.taken())
        waiting[-1].on_gone = lambda name=name: gone.put(name)  # type: ignore[misc]
    clients[0].close()
    assert gone.get(timeout=DEADLINE) == "quiet"
    clients[1].close()
    assert gone.get(timeout=DEADLINE) == "half-closed"
    assert [one.closed for one in waiting] == [True, True, False]
    running.call(lambda: [one.finish({"type": "success"}) for one in waiting])
    assert answers(clients[2]) == [{"type": "success"}]
    assert gone.empty()


def test_half_closing_later_is_not_leaving(running: Running) -> None:
    gone: queue.Queue[None] = queue.Queue()
    client = sent(running.path, b'{"type":"wait"}\n', half_close=False)
    waiting = running.taken()
    waiting.on_gone = lambda: gone.put(None)
    client.shutdown(socket.SHUT_WR)
    ask(running.path, b'{"type":"echo"}')
    running.call(lambda: waiting.finish({"type": "success"}))
    assert answers(client) == [{"type": "success"}]
    assert gone.empty()


def test_leaving_with_lines_unread_is_noticed(running: Running) -> None:
    gone: queue.Queue[None] = queue.Queue()
    client = sent(running.path, b'{"type":"wait"}\n')
    waiting = running.taken()
    waiting.on_gone = lambda: gone.put(None)
    running.call(lambda: [waiting.send({"line": "x" * 1000}) for _line in range(2000)])
    client.close()
    gone.get(timeout=DEADLINE)


def test_a_request_whose_client_has_left_is_still_done(running: Running) -> None:
    sent(running.path, b'{"type":"wait"}\n').close()
    running.taken()


def test_idle_means_idle_while_followers_wait(running: Running) -> None:
    """Half-closed connections are readable for ever; they must not wake the loop."""
    clients = [sent(running.path, b'{"type":"wait"}\n') for _client in range(20)]
    for _client in clients:
        running.taken()
    calls = 0
    inner = running.loop._call

    def counting(callback: Callable[[], None]) -> None:
        nonlocal calls
        calls += 1
        inner(callback)

    running.loop._call = counting  # type: ignore[method-assign]
    for _turn in range(10):
        ask(running.path, b'{"type":"echo"}')
    assert calls < 100
    for client in clients:
        client.close()


def test_no_descriptor_stays(running: Running) -> None:
    before = descriptors()
    for number in range(200):
        if number % 2:
            ask(running.path, b'{"type":"echo"}')
        else:
            connected(running.path).close()
    running.call(lambda: None)
    until(lambda: not running.call(lambda: len(running.server._clients)))
    assert descriptors() == before


# The socket


def test_a_stale_socket_is_replaced_and_the_mode_is_private(tmp_path: Path) -> None:
    path = tmp_path / "pm3.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    running = Running(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert ask(str(path), b'{"type":"echo"}')["type"] == "success"
    running.end()
    assert not path.exists()


def test_an_admin_group_may_connect(tmp_path: Path) -> None:
    path, group = tmp_path / "pm3.sock", os.getgroups()[0] if os.getgroups() else os.getgid()
    loop = Loop(print)
    server = Server(loop, str(path), lambda *_request: None, print, group=group)
    assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_gid) == (0o660, group)
    server.close()
    loop.close()


def test_another_kind_of_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "pm3.sock"
    path.write_text("precious")
    loop = Loop(print)
    with pytest.raises(FileExistsError):
        Server(loop, str(path), lambda *_request: None, print)
    assert path.read_text() == "precious"
    loop.close()


def test_a_long_path_works(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    running = Running(folder / "pm3.sock")
    descriptor = os.open(folder, os.O_RDONLY)
    assert ask(f"/proc/self/fd/{descriptor}/pm3.sock", b'{"type":"echo"}')["type"] == "success"
    os.close(descriptor)
    running.end()
    assert not (folder / "pm3.sock").exists()


def test_a_listener_survives_its_server(tmp_path: Path) -> None:
    """As at an upgrade in place: who connects in between waits and is served by the next."""
    path = str(tmp_path / "pm3.sock")
    loop = Loop(print)
    first = Server(loop, path, lambda *_request: None, print)
    kept = os.dup(first.fileno())
    first.close(unlink=False)
    client = sent(path, b'{"type":"hello"}\n')
    second = Server(
        loop, path, lambda _request, _peer, client: (client.finish({"n": 2}), loop.stop())[0], print, listener=kept
    )
    loop.run()
    assert answers(client) == [{"n": 2}]
    second.close()
    loop.close()


# Without descriptors


@pytest.fixture
def small(tmp_path: Path) -> Iterator[str]:
    path = str(tmp_path / "pm3.sock")
    source = str(Path(server_module.__file__).parents[2])
    with subprocess.Popen([sys.executable, "-c", SMALL, source, path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield path
        process.terminate()


def test_without_descriptors_newcomers_get_a_sentence_and_nobody_else_anything(small: str) -> None:
    early = connected(small)
    idle = [connected(small) for _client in range(60)]
    assert "Too many open files" in answers(idle[-1])[0]["message"]
    early.sendall(b'{"type":"hello"}\n')
    (answer,) = answers(early)
    assert answer["errors"] == 1  # one episode is told once
    assert answer["calls"] < 300
    for client in idle:
        client.close()
    until(lambda: ask(small, b'{"type":"hello"}')["type"] != "error")  # until it has noticed that they left
    until(lambda: ask(small, b'{"type":"count"}').get("descriptors", 40) < 15)


def test_without_even_the_reserve_newcomers_wait(small: str) -> None:
    first, last = connected(small), connected(small)
    first.sendall(b'{"type":"fill"}\n')
    assert answers(first)
    # The descriptor of `first` is free again, so one newcomer takes it; the next finds none, and no reserve.
    late = [sent(small, b'{"type":"hello"}\n', half_close=False) for _client in range(3)]
    last.sendall(b'{"type":"empty"}\n')
    assert answers(last)[0]["type"] == "success"
    assert all(answers(client)[0]["type"] in ("success", "error") for client in late)
    assert ask(small, b'{"type":"hello"}')["calls"] < 300
