# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Dataclasses of which an agent may hold thousands: without a `__dict__` in each of them."""

from __future__ import annotations

import dataclasses
from typing import TypeVar, cast

Made = TypeVar("Made")


def slotted(made: type[Made]) -> type[Made]:
    """The same dataclass with `__slots__`, as `slots=True` makes it from Python 3.10 on."""
    names = tuple(field.name for field in dataclasses.fields(made))  # type: ignore[arg-type]
    body = {name: value for name, value in vars(made).items() if name not in (*names, "__dict__", "__weakref__")}
    return cast("type[Made]", type(made.__name__, made.__bases__, {**body, "__slots__": names}))
