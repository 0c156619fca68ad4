# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Visits all web servers in turn, every ten seconds, and says what they answered."""

from __future__ import annotations

import os
import sys
import time
import urllib.request

PAUSE = 10  # seconds

if __name__ == "__main__":
    while True:
        for port in os.environ["WEB_PORTS"].split():
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                    said = answer.read().decode().strip()
            except OSError as error:
                said = f"port {port}: {error}"
            sys.stdout.write(f"{said}\n")
            sys.stdout.flush()
        time.sleep(PAUSE)
