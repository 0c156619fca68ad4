# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A web server that counts visits in the database. Every instance listens on its own port."""

from __future__ import annotations

import os
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME = os.environ["PM3_NAME"]
DATABASE = ("127.0.0.1", int(os.environ["DB_PORT"]))


def asked(question: str) -> str:
    """The database's answer."""
    with socket.create_connection(DATABASE, timeout=5) as connection:
        connection.sendall(f"{question}\n".encode())
        return connection.makefile().readline().strip()


class Visit(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        try:
            text = "ok" if self.path == "/health" and asked("get visits") else self.greeting()
            self.answer(200, text)
        except OSError as error:
            self.answer(503, f"the database does not answer: {error}")

    def greeting(self) -> str:
        mine, all_ = asked(f"add visits-of-{NAME} 1"), asked("add visits 1")
        return f"{NAME} (process {os.getpid()}): visit {mine} here, {all_} to the whole shop"

    def answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.end_headers()
        self.wfile.write(f"{text}\n".encode())

    def log_message(self, format: str, *values: object) -> None:
        if self.path != "/health":
            sys.stdout.write(f"{self.command} {self.path}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    port = int(os.environ["PORT"])
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Visit)
    except OSError as error:
        sys.exit(f"port {port}: {error.strerror}. Choose others: make quickstart ARGS='-e quickstart_port=28080'")
    sys.stdout.write(f"{NAME} listens on http://127.0.0.1:{port}/\n")
    sys.stdout.flush()
    server.serve_forever()
