"""Clients that mean harm, or know no better: each gets an error or the end of its connection, and the agent is none the worse for it."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.definition import FIELDS
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.wire import messages, paths
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .conftest import Agent
from .test_agent import at_rest, descriptors
from .waiting import DEADLINE, until

KINDS = sorted(set(messages.REQUESTS) - {"kill"})
ANSWERS = {
    "hello",
    "doctor",
    "error",
    "success",
    "history",
    "process_list",
    "process_detail",
    "snapshot",
    "result",
    "log_line",
    "row",
}
GROWTH = 12_000  # KB of memory that may stay behind: the allocator keeps some of what was freed


class Victim:
    """One agent for all attacks; after each of them it must be what it was."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.pid = agent.pid()
        self.path = paths.socket(str(agent.data_dir))
        self.descriptors = at_rest(self.count_descriptors)

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(DEADLINE)
        paths.reach(client.connect, self.path)
        return client

    def send(self, data: bytes) -> list[dict[str, Any]]:
        """The answers to bytes; the connection may be closed on us while we send."""
        with self.connect() as client:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)
            received = bytearray()
            with contextlib.suppress(ConnectionResetError):
                while chunk := client.recv(1 << 20):
                    received += chunk
        return [json.loads(line) for line in received.splitlines()]

    def ask(self, document: dict[str, Any]) -> list[dict[str, Any]]:
        return self.send(json.dumps(document).encode() + b"\n")

    def count_descriptors(self) -> int:
        return len(descriptors(self.pid))

    def memory(self) -> int:
        (line,) = [
            line for line in Path(f"/proc/{self.pid}/status").read_text().splitlines() if line.startswith("VmRSS:")
        ]
        return int(line.split()[1])

    def check(self) -> None:
        (hello,) = self.ask({"type": "hello"})
        assert hello["pid"] == self.pid
        log = self.agent.data_dir / "agent.log"
        assert "Traceback" not in log.read_text() if log.exists() else True


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    agent = Agent(tmp_path_factory.mktemp("hostile"))
    agent.pm3("list")
    talker = "sh -c 'seq -f %.0f-xxxxxxxxxxxxxxxxxxxxxxxxxx 40000; exec sleep 1000'"
    agent.apply(
        {
            "talker": {"command": talker, "min_uptime": 50},
            "web": {"command": "sleep 1000", "instances": 3, "min_uptime": 50},
        },
        "own",
    )
    until(lambda: "40000-" in agent.log("talker-out"), "the talker has talked")
    one = Victim(agent)
    yield one
    agent.end()


@pytest.fixture(autouse=True)
def unharmed(victim: Victim) -> Iterator[None]:
    yield
    victim.check()
    until(lambda: victim.count_descriptors() <= victim.descriptors, "all descriptors are given back")


# Bytes


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"\0" * 10_000,
        b"\xff\xfe\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b'{"type":"hello"',
        b'"hello"\n',
        b'{"type":"hello"}}\n',
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"type":"hello","x":' + b"[" * 990 + b"]" * 990 + b"}\n",
        b'{"type":"list","x":NaN}\n',
        b'{"type":"list","x":-Infinity}\n',
        b'{"type":"log","name":"web:0","lines":1e400}\n',
        b'{"type":"log","name":"web:0","lines":1' + b"0" * 400 + b"}\n",
        b'{"type":"log","lines":1' + b"0" * 3_000_000 + b"}\n",
        b'{"type":"snapshot","timeout":-0.0001}\n',
        b'{"type":"\\ud800"}\n',
        b'{"type":"' + b"x" * 1_000_000 + b'"}\n',
        b"x" * (10 << 20),
        b" " * (messages.LONGEST_REQUEST + 1) + b"\n",
        b'{"type":"hello","x":"' + b"x" * (20 << 20) + b'"}\n',
        b'{"type":"hello"' + b"," * 1_000_000 + b"}\n",
    ],
    ids=lambda data: f"{data[:24]!r}-{len(data)}",
)
def test_bytes_that_are_no_request_get_a_sentence(victim: Victim, data: bytes) -> None:
    answers = victim.send(data)
    assert [answer["type"] for answer in answers] in (["error"], ["hello"], ["process_list"], [])
    if answers and answers[0]["type"] == "error":
        assert "the agent failed" not in answers[0]["message"]


def test_the_last_of_equal_keys_counts(victim: Victim) -> None:
    assert victim.send(b'{"type":"kill","type":"hello"}\n')[0]["type"] == "hello"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(st.binary(max_size=300), st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")))
)
def test_random_bytes_get_a_sentence(victim: Victim, data: bytes) -> None:
    answers = victim.send(data)
    assert [answer["type"] for answer in answers] == ["error"]


def test_half_requests_and_idle_connections_are_in_nobodys_way(victim: Victim) -> None:
    clients = [victim.connect() for _client in range(400)]
    for number, client in enumerate(clients):
        if number % 2:
            client.sendall(b'{"type":"apply","definitions":{"web"')
    victim.check()
    for client in clients:
        client.close()


# Requests with the wrong things in them

ODD_TEXTS = [
    "",
    " ",
    "\0",
    "\ud800",
    "\udcff",
    "a/b",
    "../../x",
    "/etc/passwd",
    "x" * 100_000,
    "web:0",
    "web",
    "web:99",
    "-x",
    "\n",
    "ü\u202e",
    "talker",
    "*",
]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 1, 2**31, 2**53 - 1, 2**53, 2**64, 10**300]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(ODD_TEXTS),
    st.text(max_size=10),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(ODD_TEXTS), st.text(max_size=5)), inner, max_size=3),
    ),
    max_leaves=6,
)
# A table that could run would run: its program does not exist.
TABLE = st.dictionaries(st.sampled_from([*FIELDS, "env_x", "nonsense"]), JSON, max_size=4).map(
    lambda table: {**table, "command": "/does/not/exist"}
)
TABLES = st.dictionaries(st.one_of(st.sampled_from(ODD_TEXTS), st.text(max_size=5)), st.one_of(TABLE, JSON), max_size=3)


def values(kind: str, field: str) -> st.SearchStrategy[Any]:
    spec = messages.REQUESTS[kind][field]
    fitting: dict[str, st.SearchStrategy[Any]] = {
        messages.TEXT: st.sampled_from([*(spec.choices or ODD_TEXTS)]),
        messages.NAME: st.sampled_from(ODD_TEXTS),
        messages.PATH: st.sampled_from(ODD_TEXTS),
        messages.TEXTS: st.lists(st.sampled_from(ODD_TEXTS), max_size=3),
        messages.FLAG: st.booleans(),
        messages.COUNT: st.sampled_from([0, 1, 10_000, 2**53 - 1]),
        messages.SECONDS: st.sampled_from([0, 0.001]),
        messages.TABLE: st.dictionaries(st.sampled_from(ODD_TEXTS), JSON, max_size=2),
        messages.TABLES: TABLES,
        messages.SECRETS: st.dictionaries(
            st.sampled_from(ODD_TEXTS),
            st.dictionaries(st.sampled_from(ODD_TEXTS), st.sampled_from(ODD_TEXTS), max_size=2),
            max_size=2,
        ),
    }
    return st.one_of(fitting[spec.words], fitting[spec.words], JSON)


def requests(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    required = {name: values(kind, name) for name, field in messages.REQUESTS[kind].items() if field.required}
    optional = {name: values(kind, name) for name, field in messages.REQUESTS[kind].items() if not field.required}
    return st.fixed_dictionaries(required, optional=optional).map(lambda fields: {**fields, "type": kind})


@pytest.mark.parametrize("kind", KINDS)
@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_every_field_of_every_request_takes_anything(victim: Victim, kind: str, data: st.DataObject) -> None:
    request = data.draw(requests(kind))
    if request.get("follow") is True:
        request["follow"] = None  # it would never end
    if request.get("wait_for") == "online":
        request["timeout"] = 0.01
    if (kind == "apply" and request.get("state") == "absent") or request.get("project") == "own":
        request["project"] = "other"  # what the other attacks need is left to them
    answers = victim.ask(request)
    assert answers or kind == "log"
    for answer in answers:
        assert answer["type"] in ANSWERS
        assert "the agent failed" not in (answer.get("message") or "")
    victim.check()


@pytest.mark.parametrize(
    "name",
    [
        "../../evil",
        "a/b",
        "/etc/evil",
        "..",
        ".",
        "",
        "a\0b",
        "a\ud800b",
        "x" * 300,
        "web:7",
        "-rf",
        " x",
        "a\nb",
        "a\\b",
    ],
)
@pytest.mark.parametrize("kind", ["start", "apply"])
def test_a_name_that_names_no_process_is_refused_by_the_agent_itself(victim: Victim, kind: str, name: str) -> None:
    """W58: a client of somebody else's has no checks of its own."""
    field = "configs" if kind == "start" else "definitions"
    (answer,) = victim.ask({"type": kind, "project": "evil", field: {name: {"command": "sleep 1000"}}})
    assert answer["type"] == "error"
    assert answer["problems"][0]["table"] == name
    assert name not in victim.agent.instances()


@pytest.mark.parametrize(
    "table",
    [
        {},
        {"command": ""},
        {"command": "sleep 1", "cwd": "a\0b"},
        {"command": "sleep 1", "cwd": "relative"},
        {"command": "sleep 1", "user": "root:x y"},
        {"command": "sleep 1", "instances": 10**9},
        {"command": "sleep 1", "kill_signal": "SIGNOTHING"},
        {"command": "sleep 1", "kill_timeout": -1},
        {"command": "sleep 1", "readiness_check": "file:///etc/passwd"},
        {"command": "sleep 1", "depends_on": ["nothing"]},
        {"command": "sleep 1", "depends_on": ["one"]},
        {"command": "sleep 1", "env": {"A=B": "c"}},
        {"command": "sleep 1", "env": {"A": "b\0c"}},
        {"command": "sleep 1", "unknown": 1},
    ],
)
def test_a_definition_that_skipped_the_checks_is_refused(victim: Victim, table: dict[str, Any]) -> None:
    for request in (
        {"type": "start", "configs": {"one": table}},
        {"type": "apply", "project": "evil", "definitions": {"one": table}},
    ):
        (answer,) = victim.ask(request)
        assert answer["type"] == "error"
        assert answer["problems"]
    assert "one" not in victim.agent.instances()


@pytest.mark.parametrize("field", ["min_uptime", "kill_timeout", "readiness_timeout"])
def test_a_time_longer_than_the_kernel_can_sleep_is_only_long(victim: Victim, field: str) -> None:
    """epoll_wait takes no more than 24 days; 2**64 milliseconds are allowed."""
    table = {"command": "sleep 1000", "readiness_check": "tcp://127.0.0.1:1", field: 2**64 - 1}
    client = victim.connect()
    client.sendall(
        json.dumps({"type": "apply", "project": "long", "definitions": {"long": table}, "wait": False}).encode() + b"\n"
    )
    with client:
        assert client.recv(1 << 20)
    until(lambda: victim.agent.instance("long")["pid"], "it runs")
    victim.check()
    assert victim.ask({"type": "stop", "names": ["long"]})[-1]["type"] == "success"
    assert victim.ask({"type": "apply", "project": "long", "definitions": {}, "state": "absent"})[-1]["ok"]


@pytest.mark.parametrize("text", ODD_TEXTS, ids=lambda text: f"{text[:12]!r}")
def test_odd_texts_beside_good_definitions(victim: Victim, text: str) -> None:
    """Everything that is kept or passed on: what the store, the kernel or another client could choke on."""
    good = {"odd": {"command": "/does/not/exist", "min_uptime": 50}}
    for field in ("project", "label", "path", "base", "file", "overlay"):
        request = {"type": "apply", "project": "odd", "base": "/", "definitions": good, field: text}
        for answer in victim.ask(request):
            assert answer["type"] in ("result", "error")
            assert "the agent failed" not in (answer.get("message") or "")
        victim.check()
        for project in (text, "odd") if "\0" not in text else ("odd",):
            victim.ask({"type": "apply", "project": project, "definitions": {}, "state": "absent"})
    for field in ("group", "user", "cwd", "env_file", "command"):
        (answer,) = victim.ask(
            {"type": "plan", "project": "odd", "base": "/", "definitions": {"odd": {**good["odd"], field: text}}}
        )
        assert "the agent failed" not in (answer.get("message") or "")
        victim.ask({"type": "start", "configs": {"odd": {**good["odd"], field: text}}, "path": text})
        victim.ask({"type": "snapshot"})
    victim.agent.pm3("list")


# Readers that do not read


def test_a_client_that_never_reads_delays_nobody_and_costs_little(victim: Victim) -> None:
    before = victim.memory()
    clients = []
    for number in range(20):
        client = victim.connect()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(
            json.dumps({"type": "log", "name": "talker", "lines": 10_000, "follow": number % 2 == 0}).encode() + b"\n"
        )
        clients.append(client)
    for _again in range(20):
        victim.check()
    assert victim.memory() - before < 20 * 3000 + GROWTH
    for client in clients:
        client.close()


def test_memory_and_descriptors_do_not_grow(victim: Victim) -> None:
    """The same attacks again and again: at some time nothing more is left behind. What leaks, leaks in each round."""
    chance = random.Random(7)

    def attack() -> None:
        victim.send(b"x" * (12 << 20))
        victim.send(b'{"type":"list","x":' + b"[" * 100_000)
        victim.ask(
            {
                "type": "plan",
                "project": "many",
                "base": "/",
                "definitions": {f"p{number}": {"command": "sleep 1"} for number in range(3000)},
            }
        )
        clients = [victim.connect() for _client in range(100)]
        for client in clients:
            client.sendall(bytes(chance.randrange(256) for _byte in range(chance.randrange(300))))
            client.close()
        threads = [
            threading.Thread(target=victim.ask, args=({"type": "snapshot", "log_lines": 1000},))
            for _client in range(10)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        victim.check()

    sizes: list[int] = []  # the greatest so far: how many of the requests meet is chance, and so is the peak of a round
    while len(sizes) < 4 or sizes[-1] - sizes[-4] > 1000:  # KB
        assert len(sizes) < 30, sizes
        attack()
        sizes.append(max([victim.memory(), *sizes[-1:]]))
