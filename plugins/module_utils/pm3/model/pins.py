# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A definition that starts where it once did, although a symbolic link in one of its paths leads elsewhere by now.

A release behind a link `current` is not kept by the definition's text, which is the same for all of them: what brings it back is the
place where the link led at that time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .definition import Definition

_PATHS = ("cwd", "env_file", "watch", "restart_when_changed")  # fields of one path, or of several


def pinned(definition: Definition, places: Mapping[str, str]) -> Definition:
    """The definition with every path in `places` (by what it is written as) replaced by where it led, also as the beginning of a path."""
    if not places:
        return definition
    written = re.compile(
        r"(?<![^\s'\"=:,])("
        + "|".join(re.escape(path) for path in sorted(places, key=len, reverse=True))
        + r")(?=[/\s'\":,]|$)"
    )

    def moved(text: str) -> str:
        return written.sub(lambda found: places[found.group(1)], text)

    found: dict[str, Any] = {"command": moved(definition.command)}
    for field in _PATHS:
        value = getattr(definition, field)
        if isinstance(value, str):
            found[field] = moved(value)
        elif isinstance(value, tuple):
            found[field] = tuple(map(moved, value))
    return replace(definition, **found)
