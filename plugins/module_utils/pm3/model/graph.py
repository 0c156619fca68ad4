# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Order: who must be up before whom.

A graph here is `{name: names that it depends on}`. Names that are not keys of the graph are outside it and order nothing: they
may well be running already, and asking for one process alone must work (W1, W2).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from .definition import Definition
from .problems import Problem, nearest

Graph = Mapping[str, Iterable[str]]

_NUMBER = re.compile("0|[1-9][0-9]{0,8}")  # as in the name of an instance


def base(name: str) -> str:
    """The process of an instance: `db` of `db:0` and of `db`."""
    return name.partition(":")[0]


def of(definitions: Mapping[str, Definition]) -> dict[str, tuple[str, ...]]:
    """Which process depends on which; a dependency on one instance is one on its process, as far as order goes."""
    return {name: tuple(base(other) for other in definition.depends_on) for name, definition in definitions.items()}


def levels(graph: Graph) -> list[list[str]]:
    """The names in groups, each group depending only on earlier ones; alphabetical inside a group.

    A cycle (which loading refuses) would end up, together, in the last group.
    """
    waiting: dict[str, set[str]] = {
        name: {other for other in graph[name] if other in graph and other != name} for name in graph
    }
    dependents: dict[str, list[str]] = {}
    for name, others in waiting.items():
        for other in others:
            dependents.setdefault(other, []).append(name)
    result: list[list[str]] = []
    ready = sorted(name for name, others in waiting.items() if not others)
    placed: set[str] = set()
    while ready:
        result.append(ready)
        placed.update(ready)
        following = []
        for name in ready:
            for dependent in dependents.get(name, ()):
                waiting[dependent].discard(name)
                if not waiting[dependent]:
                    following.append(dependent)
        ready = sorted(following)
    rest = sorted(name for name in graph if name not in placed)
    return [*result, rest] if rest else result


def closure(graph: Graph, names: Iterable[str]) -> set[str]:
    """`names` and everything that depends on them, directly or not."""
    dependents: dict[str, list[str]] = {}
    for name, others in graph.items():
        for other in others:
            dependents.setdefault(other, []).append(name)
    found: set[str] = set()
    open_names = list(names)
    while open_names:
        name = open_names.pop()
        if name not in found:
            found.add(name)
            open_names.extend(dependents.get(name, ()))
    return found


def problems(definitions: Mapping[str, Definition], elsewhere: Iterable[str] = ()) -> list[Problem]:
    """Dependencies that cannot be: on nothing known, on an instance that there will not be, on itself through others.

    `elsewhere` names processes that exist without being among `definitions`.
    """
    found: list[Problem] = []
    known = {*definitions, *elsewhere}
    for name, definition in definitions.items():
        for other in definition.depends_on:
            if other not in known and base(other) not in known:
                meant = nearest(other, known)
                hint = f"; did you mean {meant}?" if meant else ""
                found.append(Problem(f"depends on {other}, which is not defined{hint}", table=name, field="depends_on"))
            elif other not in known and not _has_instance(definitions.get(base(other)), other):
                found.append(
                    Problem(
                        f"depends on {other}, an instance that {base(other)} does not have",
                        table=name,
                        field="depends_on",
                    )
                )
    cycle = _cycle(of(definitions))
    if cycle:
        path = " -> ".join(cycle)
        found.append(Problem(f"circular dependency detected: {path}", table=cycle[0], field="depends_on"))
    return found


def _has_instance(definition: Definition | None, name: str) -> bool:
    number = name.partition(":")[2]
    if not _NUMBER.fullmatch(number):
        return False
    if definition is not None and definition.instance_ids is not None:
        return int(number) in definition.instance_ids
    if definition is None or not isinstance(definition.instances, int) or definition.instances < 1:
        return True  # how many there are is known on the host only
    return int(number) < definition.instances and definition.instances > 1


def _cycle(graph: Graph) -> list[str]:
    """One cycle as a path that ends where it began, or nothing. Always the same one for the same graph."""
    done: set[str] = set()
    for start in sorted(graph):
        path: list[str] = []
        left: dict[str, list[str]] = {}  # of the names on the path, what is still to follow
        following: str | None = start if start not in done else None
        while following is not None:
            if following in left:
                return [*path[path.index(following) :], following]
            path.append(following)
            left[following] = sorted((other for other in graph[following] if other in graph), reverse=True)
            following = None
            while path and following is None:
                ahead = left[path[-1]]
                following = ahead.pop() if ahead else None
                if following is None:
                    left.pop(path[-1])
                    done.add(path.pop())
                elif following in done:
                    following = None
    return []
