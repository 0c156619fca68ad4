# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a change reaches the instances of one process: the table `update` of a definition. One row for each of its keys.

The rules are those of Kubernetes and Nomad under their names: how many may be missing, how many there may be beside, and what
becomes of a release that does not come up.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import kinds
from .kinds import Kind
from .problems import Unfit, every, nearest

STOP_FIRST, START_FIRST = "stop_first", "start_first"
REVERT, PAUSE = "revert", "pause"
KEEP, ROLL = "keep", "roll"

_PERCENT = re.compile(r"([1-9][0-9]?|100)%")


def _share(value: Any) -> int | str:
    if isinstance(value, str) and not _PERCENT.fullmatch(value):
        raise Unfit(f'expected a whole number from 1, or a part such as "25%", found {value!r}')
    found: int | str = value if isinstance(value, str) else kinds.POSITIVE.check(value)
    return found


_SHARE = Kind('a whole number, or a part such as "25%"', _share)


def _row(kind: Kind, default: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"kind": kind, "help": text})  # pylint: disable=invalid-field-call


@dataclass(frozen=True)
class Update:
    """The rows. See `of`."""

    order: str = _row(
        kinds.one_of(STOP_FIRST, START_FIRST),
        STOP_FIRST,
        "Whether the old instance stops before the new one starts, or only when the new one is up.",
    )
    max_unavailable: int | str = _row(_SHARE, 1, "With stop_first: instances that may be down at a time.")
    max_surge: int | str = _row(
        _SHARE, 1, "With start_first: new instances that may run beside the old ones at a time."
    )
    on_failure: str = _row(
        kinds.one_of(REVERT, PAUSE),
        REVERT,
        "Whether what was replaced goes back when an instance does not come up, or stays as it is.",
    )
    deadline: float = _row(
        kinds.SECONDS, 0, "How long one instance may take to come up; 0 means as long as its own checks may take."
    )
    soak: float = _row(
        kinds.SECONDS,
        0,
        "How long the new instances must then stay up, without a restart or a failed check, before the change has succeeded.",
    )
    on_scale: str = _row(
        kinds.one_of(KEEP, ROLL), KEEP, "Whether instances that go on are replaced when their number changes."
    )

    def at_once(self, count: int) -> int:
        """How many of `count` instances may be replaced at a time: at least one."""
        share = self.max_surge if self.order == START_FIRST else self.max_unavailable
        if isinstance(share, int):
            return share
        part = count * int(share[:-1])
        # One more beside costs nobody anything, one more that is missing does.
        return max(1, -(-part // 100) if self.order == START_FIRST else part // 100)


ROWS = {row.name: row for row in dataclasses.fields(Update)}
# Keys that one run can be given: how carefully it goes about. What the others say is checked, or planned, with the definition.
ONCE = ("max_unavailable", "max_surge", "on_failure", "deadline", "soak")


def of(table: Mapping[str, Any], once: Mapping[str, Any] | None = None) -> Update:
    """What a definition's `update` says, and for the rest the defaults. What a run was given (`once`) counts more."""
    return Update(**{**table, **(once or {})})


def once(value: Any) -> dict[str, Any]:
    """What a run is given, checked. Raises `Unfit`."""
    found = _checked(value)
    for key in found:
        if key not in ONCE:
            raise Unfit(
                f"{key}: not for a single run; write it into the definitions. A run can be given {', '.join(ONCE)}"
            )
    return found


def _check(value: Any) -> dict[str, Any]:
    """Keys that differ from their default."""
    return {key: one for key, one in _checked(value).items() if one != ROWS[key].default}


def _checked(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise Unfit('expected a table such as { order = "start_first" }')

    def checked(key: Any) -> tuple[str, Any]:
        row = ROWS.get(str(key))
        if row is None:
            meant = nearest(str(key), ROWS)
            raise Unfit(
                f"{key}: unknown key" + (f"; did you mean {meant}?" if meant else f"; known: {', '.join(ROWS)}")
            )
        try:
            return row.name, row.metadata["kind"].check(value[key])
        except Unfit as unfit:
            raise unfit.within(key) from None

    return dict(every(sorted(value, key=str), checked))


KIND = Kind("a table with " + ", ".join(ROWS), _check)
