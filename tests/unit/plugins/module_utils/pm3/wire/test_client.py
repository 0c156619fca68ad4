from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Any

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.wire import messages, paths
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.wire.client import Client, ClientError

PACKAGE = pathlib.Path(messages.__file__).parents[1]


def failure(data_dir: Any, timeout: float | None = None) -> ClientError:
    with pytest.raises(ClientError) as caught:
        Client(str(data_dir), timeout).request({"type": "hello"})
    return caught.value


def test_a_request_gets_its_answer(fake_agent: Any) -> None:
    fake_agent.answers["hello"] = [{"type": "hello", "pid": 7}, {"type": "never read"}]
    assert Client(fake_agent.data_dir).request({"type": "hello"}) == {"type": "hello", "pid": 7}
    assert fake_agent.requests == [{"type": "hello"}]


def test_rows_come_before_the_result(fake_agent: Any) -> None:
    rows = [{"type": "row", "name": f"web:{number}"} for number in range(3)]
    fake_agent.answers["plan"] = [*rows, {"type": "result", "ok": True}]
    seen: list[dict[str, Any]] = []
    plan = {"type": "plan", "project": "shop", "definitions": {}}
    assert Client(fake_agent.data_dir).request(plan, seen.append)["ok"] is True
    assert seen == rows
    assert Client(fake_agent.data_dir).request(plan)["ok"] is True


def test_an_error_reply_is_an_answer(fake_agent: Any) -> None:
    fake_agent.answers["info"] = [messages.error("process not found: web")]
    assert Client(fake_agent.data_dir).request({"type": "info", "name": "web"})["message"] == "process not found: web"


def test_a_stream_ends_with_the_connection(fake_agent: Any) -> None:
    fake_agent.answers["log"] = [{"type": "log_line", "line": str(number)} for number in range(1000)]
    lines = [answer["line"] for answer in Client(fake_agent.data_dir).stream({"type": "log"})]
    assert lines == [str(number) for number in range(1000)]
    fake_agent.answers["log"] = []
    assert list(Client(fake_agent.data_dir).stream({"type": "log"})) == []


def test_a_long_answer_arrives_whole(fake_agent: Any) -> None:
    text = "x" * 3_000_000
    fake_agent.answers["hello"] = [{"type": "hello", "text": text}]
    assert Client(fake_agent.data_dir).request({"type": "hello"})["text"] == text


def test_a_socket_with_a_long_path(tmp_path: pathlib.Path, make_agent: Callable[[pathlib.Path], Any]) -> None:
    agent = make_agent(tmp_path / ("d" * 100) / ("e" * 100))
    agent.answers["hello"] = [{"type": "hello"}]
    assert Client(agent.data_dir).request({"type": "hello"}) == {"type": "hello"}


def test_no_agent_says_what_to_do(tmp_path: pathlib.Path) -> None:
    error = failure(tmp_path)
    assert error.reason == "absent"
    assert (
        str(error) == f"no pm3 agent is running for {tmp_path}; any pm3 command with PM3_DATA_DIR={tmp_path} starts one"
    )
    (tmp_path / "managed").touch()
    assert (
        str(failure(tmp_path)) == f"no pm3 agent is running for {tmp_path}; start it with: systemctl --user start pm3"
    )
    assert failure(tmp_path / "missing").reason == "absent"


def test_a_socket_that_nobody_listens_on_is_no_agent(tmp_path: pathlib.Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(paths.socket(str(tmp_path)))
    assert failure(tmp_path).reason == "absent"


def test_a_socket_that_refuses_us_is_named_as_that() -> None:
    with tempfile.TemporaryDirectory() as data_dir, socket.socket(socket.AF_UNIX) as server:
        server.bind(paths.socket(data_dir))
        server.listen()
        os.chmod(paths.socket(data_dir), 0)
        if os.geteuid() != 0:
            said = failure(data_dir)
            assert said.reason == "denied"
            assert "become" in str(said)
            assert "group pm3" in str(said)
            return
        # Root is refused nothing: ask as somebody else.
        os.chmod(data_dir, 0o711)
        code = (
            "import os, sys; sys.path.insert(0, sys.argv[1]); import pm3.wire.client as client\n"
            "os.setgid(65534); os.setuid(65534)\n"
            "try: client.Client(sys.argv[2]).request({'type': 'hello'})\n"
            "except client.ClientError as error: sys.stdout.write(error.reason + ': ' + str(error))"
        )
        run = [sys.executable, "-B", "-c", code, str(PACKAGE.parent), data_dir]
        said_by_nobody = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert said_by_nobody.startswith("denied: permission denied")
    assert "become" in said_by_nobody
    assert "group pm3" in said_by_nobody


def test_a_connection_closed_without_an_answer(fake_agent: Any) -> None:
    assert failure(fake_agent.data_dir).reason == "closed"
    fake_agent.answers["hello"] = [b'{"type":"hello","cut sho']
    assert failure(fake_agent.data_dir).reason == "closed"
    fake_agent.answers["hello"] = [{"type": "row"}]
    assert failure(fake_agent.data_dir).reason == "closed"


def test_an_answer_that_is_none(fake_agent: Any) -> None:
    fake_agent.answers["hello"] = [b"HTTP/1.1 400 Bad Request\r\n"]
    error = failure(fake_agent.data_dir)
    assert error.reason == "garbled"
    assert paths.socket(fake_agent.data_dir) in str(error)


def test_silence_ends_only_where_that_was_asked(tmp_path: pathlib.Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(paths.socket(str(tmp_path)))
        server.listen()
        error = failure(tmp_path, timeout=0.01)
    assert error.reason == "timeout"
    assert "0.01 s" in str(error)
    assert Client(str(tmp_path)).timeout is None


def test_a_refusal_is_read_even_if_the_request_was_not(tmp_path: pathlib.Path) -> None:
    """The agent answers a request that is too long before its end and hangs up."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(paths.socket(str(tmp_path)))
        server.listen()

        def refuse() -> None:
            with server.accept()[0] as connection:
                connection.recv(10)
                connection.sendall(messages.encode(messages.error("too long")))

        thread = threading.Thread(target=refuse)
        thread.start()
        answer = Client(str(tmp_path)).request({"type": "info", "name": "x" * 5_000_000})
        thread.join()
    assert answer["message"] == "too long"


def test_no_descriptor_is_left(fake_agent: Any) -> None:
    fake_agent.answers["log"] = [{"type": "log_line", "line": "a"}, b"garbage\n"]
    before = len(os.listdir("/proc/self/fd"))
    answers = Client(fake_agent.data_dir).stream({"type": "log"})
    next(answers)
    with pytest.raises(ClientError):
        next(answers)
    answers = Client(fake_agent.data_dir).stream({"type": "log"})
    next(answers)
    answers.close()
    fake_agent.close()
    failure(fake_agent.data_dir)
    assert len(os.listdir("/proc/self/fd")) <= before


def test_the_client_imports_little() -> None:
    """A module pays for every import at every call."""
    code = (
        "import __future__, json, sys, socket, typing, collections.abc; before = set(sys.modules); sys.path.insert(0, sys.argv[1])\n"
        "import pm3.wire.client; sys.stdout.write(' '.join(sorted(set(sys.modules) - before)))"
    )
    run = [sys.executable, "-B", "-I", "-S", "-c", code, str(PACKAGE.parent)]
    loaded = subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()
    assert loaded == ["pm3", "pm3.wire", "pm3.wire.client", "pm3.wire.messages", "pm3.wire.paths"]
