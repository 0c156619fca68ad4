# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wrong with a definition, said so that the reader can mend it.

Checks never stop at the first mistake: each one becomes a `Problem`, and whoever loads definitions raises them together as one
`DefinitionError`. Nothing here (or in any message) repeats the text of a line or the value of a secret.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Callable, TypeVar

from .screen import one_line

Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Problem:
    """One mistake: where it is and what was expected there."""

    message: str
    file: str | None = None
    table: str | None = None
    field: str | None = None

    def __str__(self) -> str:
        table = f"[{self.table}]" if self.table is not None else None
        place = " ".join(part for part in (table, self.field) if part)
        return one_line(": ".join(part for part in (self.file, place, self.message) if part))


class DefinitionError(Exception):
    """Definitions that cannot be used, with all their problems (never none)."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def located(self, file: str) -> DefinitionError:
        """The same problems, said to be in `file`."""
        return DefinitionError(replace(problem, file=file) for problem in self.problems)


class Unfit(ValueError):
    """A value that a field cannot take; the text says what the field expects instead. Of a table or a list, all that is wrong."""

    def __init__(self, *messages: str) -> None:
        super().__init__("; ".join(messages))
        self.messages = messages

    def within(self, place: str) -> Unfit:
        """The same, said of a part of the value."""
        return Unfit(*(f"{place}: {message}" for message in self.messages))


def every(items: Iterable[Item], check: Callable[[Item], Made]) -> list[Made]:
    """What `check` makes of each. Raises one `Unfit` with all that is wrong with any of them."""
    made: list[Made] = []
    wrong: list[str] = []
    for item in items:
        try:
            made.append(check(item))
        except Unfit as unfit:
            wrong += unfit.messages
    if wrong:
        raise Unfit(*dict.fromkeys(wrong))
    return made


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` was probably meant to be, or None."""
    from difflib import get_close_matches  # only where there is a mistake to explain

    found = get_close_matches(word, sorted(known), 1, 0.6)
    return found[0] if found else None
