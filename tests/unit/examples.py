"""How many examples hypothesis tries of a thing."""

from __future__ import annotations

import os

# Set by `ansible-test units` alone, which runs everything again on each Python that a host may have. What it looks for there is what a
# Python lacks or does differently, and that shows in a tenth of the examples.
ON_EACH_PYTHON = "ANSIBLE_CONTROLLER_MIN_PYTHON_VERSION" in os.environ


def examples(usual: int = 100) -> int:
    """So many here and now. PM3_HISTORIES=10000 makes it a long night."""
    wanted = os.environ.get("PM3_HISTORIES", "")
    if wanted.isdigit():
        return max(usual, int(wanted))
    return usual // 10 if ON_EACH_PYTHON else usual
