# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Probes against real servers: the loop in this thread, the servers in others."""

from __future__ import annotations

import queue
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3 import VERSION
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent import probes
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.loop import Loop

from .conftest import descriptors
from .waiting import DEADLINE

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def moved(location: str, status: int = 302) -> bytes:
    return f"HTTP/1.1 {status} Moved\r\nlocation: {location}\r\n\r\n".encode()


class Server:
    """Answers a request for a path with the bytes in `answers`, and closes; None: says nothing until the client leaves."""

    def __init__(self, host: str = "127.0.0.1", context: ssl.SSLContext | None = None) -> None:
        self.answers: dict[str, bytes | None] = {"/": OK}
        self.requests: queue.Queue[bytes] = queue.Queue()
        self._context = context
        self._listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _address = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,)).start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(DEADLINE)
        try:
            if self._context is not None:
                connection = self._context.wrap_socket(connection, server_side=True)
            request = b""
            while b"\r\n\r\n" not in request:
                chunk = connection.recv(1000)
                if not chunk:
                    return
                request += chunk
            self.requests.put(request)
            answer = self.answers.get(request.split()[1].decode(), b"HTTP/1.1 404 Not Found\r\n\r\n")
            if answer is None:
                connection.recv(1)
            else:
                connection.sendall(answer)
        except OSError:
            pass  # the probe has left
        finally:
            connection.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(DEADLINE)


@pytest.fixture
def server() -> Iterator[Server]:
    it = Server()
    yield it
    it.close()


@pytest.fixture
def loop() -> Iterator[Loop]:
    errors: list[BaseException] = []
    it = Loop(errors.append)
    yield it
    it.close()
    assert errors == []


def outcomes(loop: Loop, *urls: str, timeout: float = DEADLINE) -> list[str | None]:
    """How probes of these addresses, all at once, end."""
    found: dict[int, str | None] = {}

    def done(number: int, failure: str | None) -> None:
        assert number not in found
        found[number] = failure
        if len(found) == len(urls):
            loop.stop()

    for number, url in enumerate(urls):
        probes.probe(loop, url, timeout, lambda failure, number=number: done(number, failure))  # type: ignore[misc]
    assert found == {}  # never from within the call
    limit = loop.after(DEADLINE + 5, loop.stop)
    loop.run()
    limit.cancel()
    return [found[number] for number in range(len(urls))]


def outcome(loop: Loop, url: str, timeout: float = DEADLINE) -> str | None:
    return outcomes(loop, url, timeout=timeout)[0]


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def until(condition: Callable[[], bool]) -> None:
    """For what nothing tells us: asks again and again, up to a deadline."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline


# tcp


def test_tcp_passes_with_a_connection(loop: Loop, server: Server) -> None:
    assert outcomes(loop, f"tcp://127.0.0.1:{server.port}", f"tcp://localhost:{server.port}") == [None, None]


def test_tcp_reaches_ipv6(loop: Loop) -> None:
    try:
        server = Server("::1")
    except OSError:
        pytest.skip("this machine has no IPv6")
    assert outcomes(loop, f"tcp://[::1]:{server.port}", f"http://localhost:{server.port}") == [None, None]
    assert f"Host: localhost:{server.port}".encode() in server.requests.get(timeout=DEADLINE)
    assert outcome(loop, f"http://[::1]:{server.port}/") is None
    assert f"Host: [::1]:{server.port}\r\n".encode() in server.requests.get(timeout=DEADLINE)
    server.close()


@pytest.mark.parametrize("scheme", ["tcp", "http", "https"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_nobody_listens(loop: Loop, scheme: str, host: str) -> None:
    assert outcome(loop, f"{scheme}://{host}:{closed_port()}") == "connection refused"


def test_an_address_that_cannot_be(loop: Loop) -> None:
    failure = outcome(loop, "ftp://127.0.0.1:1")
    assert failure is not None
    assert failure.startswith("expected http://")


# http


def test_the_request(loop: Loop, server: Server) -> None:
    assert outcome(loop, f"http://127.0.0.1:{server.port}/ä b?q=%20#x".replace(" ", "")) == "answered 404"
    assert (
        server.requests.get(timeout=DEADLINE)
        == (
            f"GET /%C3%A4b?q=%20 HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
            f"User-Agent: pm3/{VERSION}\r\nAccept: */*\r\nConnection: close\r\n\r\n"
        ).encode()
    )


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (OK, None),
        (b"HTTP/1.0 204 \r\n\r\n", None),
        (b"HTTP/1.1 299\n\n", None),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" + OK, None),
        (b"HTTP/1.1 503 Unavailable\r\n\r\n", "answered 503"),
        (b"HTTP/1.1 304 Not Modified\r\n\r\n", "answered 304"),
        (b"HTTP/1.1 302 Found\r\n\r\n", "answered 302"),
        (b"", "closed the connection before it had answered"),
        (b"HTTP/1.1 200 OK\r\nContent-", "closed the connection before it had answered"),
        (b"SSH-2.0-OpenSSH\r\n", "answered something that is not HTTP"),
        (b"HTTP/1.1 fine\r\n\r\n", "answered something that is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000, "answered with a head of more than 64 KiB"),
    ],
)
def test_answers(loop: Loop, server: Server, answer: bytes, failure: str | None) -> None:
    server.answers["/"] = answer
    assert outcome(loop, f"http://127.0.0.1:{server.port}") == failure


def test_a_body_is_not_waited_for(loop: Loop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        kept: list[socket.socket] = []

        def serve() -> None:
            kept.append(listener.accept()[0])
            kept[0].sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        assert outcome(loop, url) is None
        thread.join()
        kept[0].close()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(loop: Loop, server: Server, status: int) -> None:
    other = Server()
    server.answers["/"] = moved("/a/b", status)
    server.answers["/a/b"] = moved("c?x=1#part", status)
    server.answers["/a/c?x=1"] = moved(f"http://localhost:{other.port}/", status)
    assert outcome(loop, f"http://127.0.0.1:{server.port}") is None
    other.answers["/"] = b"HTTP/1.1 500 Broken\r\n\r\n"
    assert outcome(loop, f"http://127.0.0.1:{server.port}") == "answered 500"
    other.close()


def test_redirects_end(loop: Loop, server: Server) -> None:
    server.answers["/"] = moved("/")
    assert outcome(loop, f"http://127.0.0.1:{server.port}") == "redirected more than 5 times"
    assert server.requests.qsize() == 6
    server.answers["/"] = moved("tcp://127.0.0.1:1")
    assert outcome(loop, f"http://127.0.0.1:{server.port}") == (
        "redirected to tcp://127.0.0.1:1, which is no http or https address"
    )


# Time


def test_no_answer(loop: Loop, server: Server) -> None:
    server.answers["/"] = None
    assert outcome(loop, f"http://127.0.0.1:{server.port}", timeout=0.25) == "no answer within 0.25 s"


def test_a_host_that_does_not_take_connections(loop: Loop) -> None:
    """A full backlog: the kernel drops what knocks."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        with socket.create_connection(address):
            assert outcome(loop, f"tcp://127.0.0.1:{address[1]}", timeout=0.25) == "no answer within 0.25 s"


def test_one_that_hangs_delays_nobody(loop: Loop, server: Server) -> None:
    server.answers["/hangs"] = None
    base = f"http://127.0.0.1:{server.port}"
    hanging = probes.probe(loop, f"{base}/hangs", DEADLINE, pytest.fail)
    assert outcomes(loop, *[base] * 50) == [None] * 50
    hanging.cancel()


# Names


def test_a_name_is_looked_up_off_the_loop(loop: Loop, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow resolver: one look-up for all who ask for the same name meanwhile, and nobody else waits."""
    answer, asked = threading.Event(), queue.SimpleQueue[str]()
    real = probes._look_up

    def slow(host: str, port: int, flags: int) -> Any:
        if host != "shop.example" or flags:
            return real(host, port, flags)
        asked.put(threading.current_thread().name)
        assert answer.wait(DEADLINE)
        return real("127.0.0.1", port, 0)

    monkeypatch.setattr(probes, "_look_up", slow)
    found: list[str | None] = []
    url = f"http://shop.example:{server.port}/"
    for _number in range(10):
        probes.probe(loop, url, DEADLINE, found.append)
    assert outcome(loop, f"tcp://127.0.0.1:{server.port}") is None
    assert outcome(loop, url, timeout=0.1) == "no answer within 0.1 s"
    assert found == []
    answer.set()
    assert outcome(loop, url) is None
    while len(found) < 10:
        assert outcome(loop, f"tcp://127.0.0.1:{server.port}") is None
    assert found == [None] * 10
    assert asked.get(timeout=DEADLINE) != threading.main_thread().name
    assert asked.qsize() <= 1  # the last one may have come after the answer
    assert f"Host: shop.example:{server.port}".encode() in server.requests.get(timeout=DEADLINE)


def test_real_names(loop: Loop, server: Server) -> None:
    failure = outcome(loop, f"tcp://nowhere.invalid:{server.port}")
    assert failure is not None
    assert failure.startswith("nowhere.invalid cannot be resolved: ")
    name = "ip6-localhost"
    try:
        addresses = {one[4][0] for one in socket.getaddrinfo(name, 1)}
    except OSError:
        addresses = set()
    if addresses == {"::1"}:
        assert outcome(loop, f"tcp://{name}:{closed_port()}") == "connection refused"


def test_the_next_address_is_tried(loop: Loop, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with three addresses, of which the first hangs, the second refuses and the third answers."""
    with socket.socket() as full:
        full.bind(("127.0.0.2", server.port))
        full.listen(0)
        addresses = [(socket.AF_INET, (f"127.0.0.{number}", server.port)) for number in (2, 3, 1)]
        monkeypatch.setattr(probes, "_look_up", lambda _host, _port, _flags: addresses)
        with socket.create_connection(("127.0.0.2", server.port)):
            assert outcome(loop, f"http://shop.example:{server.port}", timeout=0.5) is None


# https


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a key and a certificate for localhost and 127.0.0.1 that nobody has signed but itself."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run(
        [*command, "-addext", names, "-keyout", f"{path}.key", "-out", f"{path}.crt"],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    path.write_bytes(Path(f"{path}.key").read_bytes() + Path(f"{path}.crt").read_bytes())
    return path


@pytest.fixture
def secure(certificate: Path) -> Iterator[Server]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    it = Server(context=context)
    yield it
    it.close()


def test_https_verifies_the_certificate(loop: Loop, secure: Server, certificate: Path, monkeypatch: Any) -> None:
    base = f"https://127.0.0.1:{secure.port}"
    failure = outcome(loop, base)
    assert failure is not None
    assert failure.startswith("its certificate is not valid: self")
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")  # from now on a known authority
    assert outcomes(loop, base, f"https://localhost:{secure.port}/") == [None, None]
    assert f"Host: localhost:{secure.port}".encode() in secure.requests.queue[0] + secure.requests.queue[1]
    failure = outcome(loop, f"https://127.0.0.2:{secure.port}")
    assert failure == "connection refused"
    secure.answers["/"] = b"HTTP/1.1 503 Unavailable\r\n\r\n"
    assert outcome(loop, base) == "answered 503"
    secure.answers["/"] = None
    assert outcome(loop, base, timeout=0.25) == "no answer within 0.25 s"
    secure.answers["/"] = b""
    assert outcome(loop, base) == "closed the connection before it had answered"


def test_the_name_in_the_certificate_counts(loop: Loop, secure: Server, certificate: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    monkeypatch.setattr(
        probes, "_look_up", lambda _host, _port, flags: [(socket.AF_INET, ("127.0.0.1", secure.port))] * (not flags)
    )
    failure = outcome(loop, f"https://shop.example:{secure.port}")
    assert failure is not None
    assert "shop.example" in failure


def test_a_redirect_may_lead_to_https(
    loop: Loop, server: Server, secure: Server, certificate: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    server.answers["/"] = moved(f"https://localhost:{secure.port}/")
    assert outcome(loop, f"http://127.0.0.1:{server.port}") is None


def test_https_to_one_who_speaks_http(loop: Loop, server: Server) -> None:
    server.answers["/"] = OK
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with listener.accept()[0] as connection:
                connection.recv(10_000)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        failure = outcome(loop, f"https://127.0.0.1:{listener.getsockname()[1]}")
        thread.join()
    assert failure is not None
    assert failure.startswith("TLS failed: ")


def test_what_is_not_needed_is_not_loaded() -> None:
    source = str(Path(probes.__file__).parents[2])
    code = f"""
import socket, sys
sys.path.insert(0, {source!r})
from pm3.agent import loop, probes
looper = loop.Loop(print)
listener = socket.create_server(("127.0.0.1", 0))
probes.probe(looper, f"tcp://127.0.0.1:{{listener.getsockname()[1]}}", 10, lambda failure: looper.stop())
looper.run()
print(sorted({{"ssl", "http.client", "urllib.parse", "encodings.idna", "asyncio"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# Ending early


def test_cancelled_is_silent(loop: Loop, server: Server) -> None:
    server.answers["/"] = None
    url = f"http://127.0.0.1:{server.port}"
    probes.probe(loop, url, DEADLINE, pytest.fail).cancel()
    waiting = probes.probe(loop, url, DEADLINE, pytest.fail)
    assert outcome(loop, url, timeout=0.1) is not None
    waiting.cancel()
    waiting.cancel()
    assert outcome(loop, f"tcp://127.0.0.1:{server.port}") is None


def test_no_descriptor_stays(loop: Loop, server: Server, secure: Server, certificate: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    server.answers.update({"/moved": moved("/"), "/hangs": None, "/odd": b"odd"})
    plain, tls = f"127.0.0.1:{server.port}", f"localhost:{secure.port}"
    secure.answers["/hangs"] = None
    kinds: list[str] = [
        f"tcp://{plain}",
        f"tcp://127.0.0.1:{closed_port()}",
        "tcp://nowhere.invalid:1",
        f"https://{plain}",
    ]
    kinds += [f"http://{plain}{path}" for path in ("/", "/moved", "/hangs", "/odd")]
    kinds += [f"https://{tls}{path}" for path in ("/", "/hangs")]
    cancel: list[Callable[[], None]] = []

    before = descriptors()
    for _turn in range(5):
        for stage in range(10):
            # Each of them left at another stage: before its first step, and after some events of the others.
            cancel += [probes.probe(loop, url, DEADLINE, lambda _failure: None).cancel for url in kinds]
            if stage:
                outcome(loop, f"tcp://{plain}")
            if stage % 2:
                while cancel:
                    cancel.pop()()
        outcomes(loop, *kinds, timeout=0.5)
    while cancel:
        cancel.pop()()
    until(lambda: descriptors() == before)  # the servers close their ends in threads of their own
