"""Waiting for what other processes do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

DEADLINE = 60.0  # seconds: only a hang takes that long, also where much else runs beside


def until(condition: Callable[[], Any], what: str) -> Any:
    """Waits for a condition that some other process brings about; gives its value."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"not in {DEADLINE:g} s: {what}")
