# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From tables, wherever they come from, to definitions that can be run: one pass, and every mistake of every stage at once."""

from __future__ import annotations

import posixpath
from collections.abc import Generator, Iterable, Mapping
from dataclasses import replace
from typing import Any

from . import definition, graph, placeholders
from .definition import Definition
from .parts import whole
from .problems import DefinitionError, Problem, Unfit


def load(
    tables: Mapping[str, Any], base: str | None = None, overlay: str | None = None, elsewhere: Iterable[str] | None = ()
) -> dict[str, Definition]:
    """The definitions in `tables`, with absolute paths and the overlay merged in. Raises `DefinitionError` with all problems.

    `base` is the folder that relative paths are relative to, None where there is none (then they are problems). `elsewhere` names
    processes that may be depended on without being defined here; None means that only the agent knows them, so it will have to look.
    """
    return whole(load_in_parts(tables, base, overlay, elsewhere))


def load_in_parts(
    tables: Mapping[str, Any], base: str | None = None, overlay: str | None = None, elsewhere: Iterable[str] | None = ()
) -> Generator[None, None, dict[str, Definition]]:
    """As `load`, a table at a time."""
    found, problems = yield from _placed(tables, base, elsewhere)
    faulty = [table for name, table in tables.items() if name not in found and isinstance(table, Mapping)]
    try:
        found = definition.overlaid(found, overlay)
    except DefinitionError as error:
        if not any(f"env_{overlay}" in table for table in faulty):
            problems += error.problems
    if problems:
        raise DefinitionError(problems)
    return found


def placed(
    tables: Mapping[str, Any], base: str | None, elsewhere: Iterable[str] | None
) -> tuple[dict[str, Definition], list[Problem]]:
    """As `load`, without choosing an overlay. Every stage runs on what the earlier ones could use."""
    return whole(_placed(tables, base, elsewhere))


def _placed(
    tables: Mapping[str, Any], base: str | None, elsewhere: Iterable[str] | None
) -> Generator[None, None, tuple[dict[str, Definition], list[Problem]]]:
    problems: list[Problem] = []
    found: dict[str, Definition] = {}
    linked: dict[str, Definition] = {}  # with those that are of no use but for what they depend on
    for name in sorted(tables):
        parsed, wrong = definition.parse(name, tables[name])
        if parsed is not None:
            found[name], unplaced = definition.located(parsed, base)
            wrong = [*wrong, *unplaced, *definition.incomputable(parsed)]
        linked[name] = found.get(name) or _links(name, tables[name])
        problems += wrong
        yield
    if elsewhere is None:
        elsewhere = [graph.base(other) for one in linked.values() for other in one.depends_on]
    problems += _shared_logs(found)
    problems += graph.problems(linked, elsewhere)
    return found, problems


def _shared_logs(definitions: Mapping[str, Definition]) -> list[Problem]:
    """Files that several streams would fill: what each has written could not be told any more."""
    problems = []
    owners: dict[str, tuple[str, str]] = {}  # by file: the field that names it, and of which instance
    for definition_ in definitions.values():
        for field in ("stdout_file", "stderr_file"):
            file = getattr(definition_, field)
            message = _shared(file, field, definition_, owners) if file is not None else None
            if message is not None:
                problems.append(Problem(message, table=definition_.name, field=field))
    return problems


def _shared(file: str, field: str, one: Definition, owners: dict[str, tuple[str, str]]) -> str | None:
    """What is wrong with a file if another stream has it; else `owners` knows it now."""
    for scope in definition.scopes(one):
        try:
            path = posixpath.normpath(placeholders.expand(file, scope))
        except Unfit:
            return None  # that is another mistake
        if path == "/dev/null":  # keeps nothing that could be told apart
            return None
        other = owners.setdefault(path, (field, scope.name))
        if other != (field, scope.name):
            return f"is {path} for {scope.name}, which is {other[0]} of {other[1]}: a log has one stream that fills it"
        if "@{" not in file:
            return None
    return None


def _links(name: str, table: Any) -> Definition:
    """Of a table that has mistakes, what it depends on and which instances it has, where these can be read."""
    bare = (
        {key: table.get(key) for key in ("depends_on", "instances", "instance_ids")}
        if isinstance(table, Mapping)
        else {}
    )
    for keys in (bare, {"depends_on": bare.get("depends_on")}, {}):
        parsed, _wrong = definition.parse("process", {**keys, "command": "true"})
        if parsed is not None:
            return replace(parsed, name=name)
    raise AssertionError("a table with a command alone is one that can be used")
