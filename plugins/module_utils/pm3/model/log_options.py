# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a log is kept: when it is rotated, what stays of it, and the shape of its lines. Only data; agent/log.py acts on it."""

from __future__ import annotations

from dataclasses import dataclass

RAW, JSON = "raw", "json"


@dataclass(frozen=True)
class LogOptions:
    """How the output of a process is kept: the `log_…` fields as a pump needs them."""

    max_size: int = 10 * 1024 * 1024  # bytes after which a log is rotated, at the end of a line; 0: never
    max_age: float = 0.0  # seconds after its first byte at which it is rotated, when more output comes; 0: never
    keep: int = 3  # rotated copies; 0: none
    total_size: int = 0  # bytes of all rotated copies together, the oldest go first; 0: no limit
    compress: bool = False  # rotated copies, with gzip
    date_format: str | None = None  # strftime; before every line, or the form of "time" in JSON
    format: str = RAW  # or JSON: one object per line

    @property
    def shaped(self) -> bool:
        """Whether lines are changed on their way, so that bytes cannot simply be moved."""
        return self.format == JSON or self.date_format is not None
