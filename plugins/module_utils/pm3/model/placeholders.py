# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What differs from instance to instance, written once: `PORT = "@{3000 + instance}"`.

`@{EXPRESSION}` stands for a number or a name of the instance that is being started. Shells, Jinja and systemd give `@{` no
meaning, so the text survives a template and a quoted command line; `@@{` is the two characters `@{` themselves. Expressions are
checked when a definition is loaded, so that an instance can never fail to start for a misspelt one.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Callable, Union

from .problems import Unfit, nearest

NAMES = ("instance", "count", "slot", "process", "name", "project")
_NUMBERS = ("instance", "count", "slot")

Value = Union[int, str]
_LONGEST = 200  # characters of a placeholder: keeps the parser's depth and the size of numbers in bounds
_PLACE = re.compile(r"@@\{|@\{([^{}]*)\}?")
_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: lambda one, other: one + other,
    ast.Sub: lambda one, other: one - other,
    ast.Mult: lambda one, other: one * other,
    ast.FloorDiv: lambda one, other: one // other,
    ast.Mod: lambda one, other: one % other,
}
_EXPECTED = (
    "expected @{instance}, @{count}, @{slot}, @{process}, @{name}, @{project} or arithmetic with whole numbers such as"
    " @{3000 + instance} (a plain @{ is written @@{)"
)


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
    return _PLACE.sub(lambda place: "@{" if place.group(1) is None else str(_value(place.group(0), scope)), text)


def used(text: str) -> frozenset[str]:
    """The names that `text`'s placeholders mention. Raises `Unfit` for a placeholder that is none."""
    names: list[str] = []
    for place in _PLACE.finditer(text):
        if place.group(1) is not None:
            names.extend(node.id for node in ast.walk(_parsed(place.group(0))) if isinstance(node, ast.Name))
    return frozenset(names)


def _value(place: str, scope: Scope) -> Value:
    return _computed(_parsed(place), scope, place)


@lru_cache(maxsize=256)
def _parsed(place: str) -> ast.expr:
    """The checked expression inside `@{…}`."""
    tree = None
    try:
        if place.endswith("}") and len(place) <= _LONGEST:
            tree = ast.parse(place[2:-1].strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        pass
    if tree is None:
        raise Unfit(f"{_EXPECTED}, found {place}")
    _check(tree, place)
    return tree


def _check(node: ast.expr, place: str) -> None:
    if isinstance(node, ast.Constant) and isinstance(node.value, int) and not isinstance(node.value, bool):
        return
    if isinstance(node, ast.Name):
        if node.id in NAMES:
            return
        meant = nearest(node.id, NAMES)
        raise Unfit(f"{_EXPECTED}, found {place}" + (f"; did you mean {meant}?" if meant else ""))
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        for side in (node.left, node.right):
            _check(side, place)
            if isinstance(side, ast.Name) and side.id not in _NUMBERS:
                raise Unfit(f"{place}: {side.id} is a text and cannot be computed with")
        return
    raise Unfit(f"{_EXPECTED}, found {place}")


def _computed(node: ast.expr, scope: Scope, place: str) -> Value:
    if isinstance(node, ast.Name):
        found: Value = getattr(scope, node.id)
        return found
    if isinstance(node, ast.BinOp):
        left, right = _computed(node.left, scope, place), _computed(node.right, scope, place)
        try:
            return _OPERATORS[type(node.op)](int(left), int(right))
        except ZeroDivisionError:
            raise Unfit(f"{place} divides by zero for instance {scope.instance} of {scope.count}") from None
    return int(ast.literal_eval(node))
