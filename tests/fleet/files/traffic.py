"""Clients that ask without pause, until their stdin ends: `traffic.py PORT [FIRST LAST]`.

With FIRST and LAST there is a proxy on PORT, and the ports from FIRST to LAST are its backends. It does what proxies do by default: where a
backend refuses it, or has not begun to answer, it asks the next one. What a backend has begun is never asked for again.

Says `begun` when all clients have had an answer, and at the end, as JSON: how often each release answered, every failure, and what the last
requests got, which were begun when stdin had ended.
"""

from __future__ import annotations

import collections
import itertools
import json
import socket
import sys
import threading

CLIENTS = 2
REQUEST = b"GET / HTTP/1.0\r\n\r\n"
PATIENCE = 1.0  # seconds in which a backend begins to answer


def everything(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(4096), b""))


def ask(port: int) -> str:
    """One request; gives the body of a whole answer, else raises."""
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        connection.sendall(REQUEST)
        answer = everything(connection)
    head, _blank, body = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.0 200") or not head.endswith(b"Content-Length: %d" % len(body)):
        raise ValueError(f"half an answer: {answer!r}")
    return body.decode()


class Proxy:
    def __init__(self, port: int, backends: range) -> None:
        self.listener = socket.create_server(("127.0.0.1", port))
        self.backends = backends
        self.turn = itertools.count()

    def run(self) -> None:
        while True:
            threading.Thread(target=self.forward, args=[self.listener.accept()[0]], daemon=True).start()

    def forward(self, client: socket.socket) -> None:
        with client:
            client.recv(4096)
            first = next(self.turn)
            for place in range(len(self.backends)):
                if self.passed_on(self.backends[(first + place) % len(self.backends)], client):
                    return

    def passed_on(self, port: int, client: socket.socket) -> bool:
        """Whether the backend has begun to answer. If it does not go on then, the client gets what there is."""
        try:
            backend = socket.create_connection(("127.0.0.1", port), PATIENCE)
            backend.sendall(REQUEST)
            begun = backend.recv(4096)
        except OSError:
            return False
        if begun:
            backend.settimeout(30)
            client.sendall(begun)
            client.sendall(everything(backend))
        backend.close()
        return bool(begun)


class Client(threading.Thread):
    def __init__(self, port: int, over: threading.Event) -> None:
        super().__init__(daemon=True)
        self.port, self.over, self.begun = port, over, threading.Event()
        self.answers: collections.Counter[str] = collections.Counter()
        self.failed: list[str] = []
        self.last = ""

    def run(self) -> None:
        while True:
            is_last = self.over.is_set()
            try:
                self.last = ask(self.port)
                self.answers[self.last] += 1
            except (OSError, ValueError) as error:
                self.last = f"{type(error).__name__}: {error}"
                self.failed.append(self.last)
            self.begun.set()
            if is_last:
                return


def main(port: int, first: int = 0, last: int = -1) -> None:
    if first:
        threading.Thread(target=Proxy(port, range(first, last + 1)).run, daemon=True).start()
    over = threading.Event()
    clients = [Client(port, over) for _one in range(CLIENTS)]
    for one in clients:
        one.start()
    for one in clients:
        one.begun.wait()
    print("begun", flush=True)
    sys.stdin.read()
    over.set()
    for one in clients:
        one.join()
    said = {
        "answers": sum((one.answers for one in clients), collections.Counter()),
        "failed": [failure for one in clients for failure in one.failed],
        "last": [one.last for one in clients],
    }
    print(json.dumps(said), flush=True)


main(*map(int, sys.argv[1:]))
