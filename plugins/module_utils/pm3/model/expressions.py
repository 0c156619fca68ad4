# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What stands inside `@{…}`: a name or arithmetic with whole numbers, parsed, checked and computed.

Python's own parser reads it. With that it is a third of a megabyte, so only `placeholders` imports it, when it meets one.
"""

from __future__ import annotations

import ast
from functools import lru_cache
from typing import TYPE_CHECKING, Callable, Union

from .problems import Unfit, nearest

if TYPE_CHECKING:
    from .placeholders import Scope

NAMES = ("instance", "count", "slot", "process", "name", "project")
_NUMBERS = ("instance", "count", "slot")

Value = Union[int, str]
_LONGEST = 200  # characters of a placeholder: keeps the parser's depth and the size of numbers in bounds
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


def names(place: str) -> list[str]:
    """The names that a placeholder mentions. Raises `Unfit` for one that is none."""
    return [node.id for node in ast.walk(_parsed(place)) if isinstance(node, ast.Name)]


def value(place: str, scope: Scope) -> Value:
    """What stands for a placeholder. Raises `Unfit` where it cannot be computed."""
    return _computed(_parsed(place), scope, place)


def can_fail(place: str) -> bool:
    """Whether a placeholder can be computed depends on the instance, or never is: it divides by what may be zero. Raises `Unfit`."""
    divisors = (
        node.right
        for node in ast.walk(_parsed(place))
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.FloorDiv, ast.Mod))
    )
    return any(not (isinstance(one, ast.Constant) and one.value) for one in divisors)


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
