"""A server that says which release it is: `release.py RELEASE WAY`.

It takes connections from the socket that it inherits, or opens PORT. Asked to end it finishes what it has begun. WAY is `well`, or how
it is broken: `crashes`, `hangs` (takes no connection), `silent` (never says that it is ready), `dies` (after three seconds of service).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time

WORK = 0.005  # seconds that an answer takes
LIFE = 3.0  # seconds that the one that dies lives


def serve(listener: socket.socket, release: str) -> None:
    connection, _peer = listener.accept()
    with connection:
        connection.setblocking(True)
        asked = b"\r\n\r\n"
        while asked not in (read := connection.recv(4096)):
            if not read:
                return  # a check only knocks
        # From here on the request is begun: the client has seen a part of its answer, and nobody can ask once more for it.
        connection.sendall(b"HTTP/1.0 200 OK\r\n")
        select.select([], [], [], WORK)
        connection.sendall(f"Content-Length: {len(release)}\r\n\r\n{release}".encode())


def main(release: str, way: str) -> None:
    if way == "crashes":
        sys.exit("cannot find the ledger")
    asked, ask = os.pipe()
    signal.signal(signal.SIGTERM, lambda *_: os.write(ask, b"x"))
    inherits = "LISTEN_FDS" in os.environ
    listener = (
        socket.socket(fileno=3)
        if inherits
        else socket.create_server((os.environ.get("ADDRESS", "127.0.0.1"), int(os.environ["PORT"])), backlog=128)
    )
    listener.setblocking(False)
    print(f"release {release} listens", flush=True)
    if way in ("hangs", "silent"):
        select.select([asked], [], [])
        sys.exit()
    if "NOTIFY_SOCKET" in os.environ:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.sendto(b"READY=1", "\0" + os.environ["NOTIFY_SOCKET"][1:])
    end = time.monotonic() + LIFE if way == "dies" else float("inf")
    while asked not in select.select([listener, asked], [], [], LIFE)[0]:
        if time.monotonic() >= end:
            print("cannot write the ledger", file=sys.stderr)
            sys.exit(9)
        with contextlib.suppress(BlockingIOError, ConnectionError):  # another one was faster; a check has gone
            serve(listener, release)
    with contextlib.suppress(BlockingIOError):
        while not inherits:  # what waits in a queue that nobody else has
            with contextlib.suppress(ConnectionError):
                serve(listener, release)


main(*sys.argv[1:])
