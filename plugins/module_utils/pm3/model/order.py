# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The order in which names are shown, the same everywhere."""

from __future__ import annotations

import re
from typing import Any

_NUMBER = re.compile(r"([0-9]{1,18})")


def natural(name: str) -> tuple[list[Any], str]:
    """The key that sorts `web:2` before `web:10`."""
    parts = _NUMBER.split(name)
    return [int(part) if at % 2 else part for at, part in enumerate(parts)], name
