# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Visits the web servers every ten seconds, port after port until nobody answers, and asks the database for the sum."""

from __future__ import annotations

import itertools
import os
import socket
import sys
import time
import urllib.request

PAUSE = 10  # seconds


def visit(port: int) -> str | None:
    """What the web server at `port` says, or None where there is none."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
            said: str = answer.read().decode().strip()
            return said
    except OSError:
        return None


def visits() -> str:
    """How many visits the database has counted."""
    try:
        with socket.create_connection(("127.0.0.1", int(os.environ["DB_PORT"])), timeout=5) as connection:
            connection.sendall(b"get visits\n")
            return connection.makefile().readline().strip()
    except OSError as error:
        return f"the database does not answer: {error}"


if __name__ == "__main__":
    while True:
        for port in itertools.count(int(os.environ["WEB_PORT"])):
            said = visit(port)
            if said is None:
                break
            sys.stdout.write(f"{said}\n")
        sys.stdout.write(f"visits so far: {visits()}\n")
        sys.stdout.flush()
        time.sleep(PAUSE)
