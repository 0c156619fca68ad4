# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Long work in small parts: a generator that yields between two of them, where whoever runs it may do something else."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

Result = TypeVar("Result")


def whole(parts: Generator[None, None, Result]) -> Result:
    """The result, without a pause."""
    while True:
        try:
            next(parts)
        except StopIteration as stop:
            result: Result = stop.value
            return result
