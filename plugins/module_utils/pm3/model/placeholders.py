# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What differs from instance to instance, written once: `PORT = "@{3000 + instance}"`.

`@{EXPRESSION}` stands for a number or a name of the instance that is being started. Shells, Jinja and systemd give `@{` no
meaning, so the text survives a template and a quoted command line; `@@{` is the two characters `@{` themselves. Expressions are
checked when a definition is loaded, so that an instance can never fail to start for a misspelt one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_PLACE = re.compile(r"@@\{|@\{([^{}]*)\}?")


@dataclass(frozen=True)
class Scope:
    """Whom the placeholders of one instance speak of."""

    instance: int  # 0-based
    count: int  # of the process's instances, at least 1
    process: str
    name: str
    project: str
    slot: int = 0  # 0 or 1: a copy that takes over while the one before it still runs has the other number


def expand(text: str, scope: Scope) -> str:
    """`text` with every placeholder replaced. Raises `Unfit` for one that cannot be computed."""
    if "@{" not in text:
        return text
    from . import expressions

    return _PLACE.sub(
        lambda place: "@{" if place.group(1) is None else str(expressions.value(place.group(0), scope)), text
    )


def used(text: str) -> frozenset[str]:
    """The names that `text`'s placeholders mention. Raises `Unfit` for a placeholder that is none."""
    if "@{" not in text:
        return frozenset()
    from . import expressions

    return frozenset(name for place in _places(text) for name in expressions.names(place))


def can_fail(text: str) -> bool:
    """Whether `text` is one that cannot be expanded for some instances, or for any. Raises `Unfit` for a placeholder that is none."""
    if "@{" not in text:
        return False
    from . import expressions

    return any(map(expressions.can_fail, _places(text)))


def _places(text: str) -> list[str]:
    return [place.group(0) for place in _PLACE.finditer(text) if place.group(1) is not None]
