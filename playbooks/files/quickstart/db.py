# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for a database: numbers by name, in memory, over TCP. One line asks, one line answers: "add NAME NUMBER", "get NAME"."""

from __future__ import annotations

import os
import socketserver
import sys
import threading

numbers: dict[str, int] = {}
lock = threading.Lock()


class Conversation(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            words = line.decode("utf-8", "replace").split()
            self.wfile.write(f"{self.answer(words)}\n".encode())

    def answer(self, words: list[str]) -> int | str:
        with lock:
            if len(words) == 3 and words[0] == "add" and words[2].isdigit():
                numbers[words[1]] = numbers.get(words[1], 0) + int(words[2])
            elif len(words) != 2 or words[0] != "get":
                return "expected: add NAME NUMBER, or get NAME"
            return numbers.get(words[1], 0)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


if __name__ == "__main__":
    address = ("127.0.0.1", int(os.environ["PORT"]))
    try:
        server = Server(address, Conversation)
    except OSError as error:
        sys.exit(f"port {address[1]}: {error.strerror}. Choose others: make quickstart ARGS='-e quickstart_port=28080'")
    sys.stdout.write(f"numbers are kept at {address[0]}:{address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()
