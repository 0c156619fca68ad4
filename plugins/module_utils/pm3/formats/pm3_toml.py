# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pm3.toml: its text to tables and to definitions.

A problem names the file, and where TOML itself is broken line and column; it never repeats the text of a line, which may hold a
secret. Reads the file it is told to read and nothing else.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

from ..model import definition, loading
from ..model.definition import Definition
from ..model.problems import DefinitionError, Problem

if sys.version_info >= (3, 11):
    import tomllib

    TOML: Any = tomllib
else:
    try:
        import tomli
    except ImportError:
        TOML = None
    else:
        TOML = tomli

_PLACE = re.compile(r"\s*\(at (?:line (\d+), column (\d+)|end of document)\)$")
_SAFE = re.compile(r"[A-Za-z '/\[\]=.-]+?(?:'[^']{1,6}')?[A-Za-z /.-]*")  # at most one character is quoted
_KEYS = {  # messages of tomllib that go on with a key, and what we say instead
    "Cannot declare": "the same table is defined twice",
    "Cannot overwrite a value": "the same key is given twice",
    "Duplicate inline table key": "the same key is given twice",
    "Cannot mutate immutable namespace": "something is added to an inline table or array, which is complete as it is",
    "Cannot redefine namespace": "the same table is defined twice",
}


def read(path: str, name: str | None = None) -> str:
    """The text of the file at `path`, called `name` in problems. Raises `DefinitionError`."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise DefinitionError([Problem(getattr(error, "strerror", None) or str(error), file=name or path)]) from None
    return decode(data, name or path)


def decode(data: bytes, file: str) -> str:
    """The text that the bytes of a file are. Raises `DefinitionError`."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        _fail(file, f"TOML parse error: line {line}: expected UTF-8, found a byte that is not")


def parse(text: str, file: str) -> dict[str, dict[str, Any]]:
    """The raw tables of a pm3.toml: `{name: {field: value}}`, the values as TOML has them. Raises `DefinitionError`."""
    tables = _top(text, file)
    scalars: list[Problem] = []
    for name, table in tables.items():
        if not isinstance(table, dict):
            scalars += definition.parse(name, table)[1]
    if scalars:
        raise DefinitionError(scalars).located(file)
    return tables


def load(
    text: str, file: str, base: str | None = None, overlay: str | None = None, elsewhere: Iterable[str] | None = ()
) -> dict[str, Definition]:
    """The definitions of a pm3.toml, as `loading.load` makes them. Raises `DefinitionError` with all problems, all in `file`."""
    try:
        return loading.load(_top(text, file), base, overlay, elsewhere)
    except DefinitionError as error:
        raise error.located(file) from None


def load_for_start(text: str, file: str, base: str) -> dict[str, Definition]:
    """As `load`, with the overlays still in `environments`: pm3's `start` chooses among them in the agent, which knows the rest, too."""
    placed = loading.placed(_top(text, file), base, None)
    if placed[1]:
        raise DefinitionError(placed[1]).located(file)
    return placed[0]


def _top(text: str, file: str) -> dict[str, Any]:
    if TOML is None:
        _fail(
            file,
            f"Python {sys.version_info[0]}.{sys.version_info[1]} needs the library tomli to read TOML, and it is not installed",
        )
    if text.startswith("\ufeff"):
        _fail(file, "TOML parse error: line 1, column 1: begins with a byte order mark; save it as UTF-8 without one")
    try:
        tables: dict[str, Any] = TOML.loads(text)
    except TOML.TOMLDecodeError as error:
        _fail(file, _syntax(str(error), text))
    except (ValueError, RecursionError):
        _fail(file, "TOML parse error: a number is too long, or arrays or tables are nested too deeply")
    if not tables:
        _fail(file, "the config file is empty; expected at least one [name] table with a command")
    return tables


def _syntax(said: str, text: str) -> str:
    """tomllib's message as one of ours: place first, and nothing quoted but single characters."""
    place = _PLACE.search(said)
    what = said[: place.start()] if place else said
    for start, ours in _KEYS.items():
        if what.startswith(start):
            what = ours
    if not _SAFE.fullmatch(what):
        what = "invalid TOML"
    what = what[:1].lower() + what[1:]
    if place is None:
        return f"TOML parse error: {what}"
    if place.group(1):
        return f"TOML parse error: line {place.group(1)}, column {place.group(2)}: {what}"
    lines = text.split("\n")
    return f"TOML parse error: line {len(lines)}, column {len(lines[-1]) + 1}, the end of the file: {what}"


def _fail(file: str, message: str) -> NoReturn:
    raise DefinitionError([Problem(message, file=file)])
