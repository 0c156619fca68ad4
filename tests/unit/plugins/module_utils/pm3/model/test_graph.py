# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Order: levels against an oracle that is too simple to be wrong, and dependencies that cannot be."""

from __future__ import annotations

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model import graph
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.definition import Definition, load
from hypothesis import given
from hypothesis import strategies as st

NAMES = "abcdef"
graphs = st.dictionaries(st.sampled_from(NAMES), st.lists(st.sampled_from(NAMES + "xy"), max_size=3), max_size=6)


def defined(**depends_on: list[str]) -> dict[str, Definition]:
    return load({name: {"command": "run", "depends_on": others} for name, others in depends_on.items()})


def reachable(links: dict[str, list[str]], start: str) -> set[str]:
    """Everything that `start` depends on, directly or not."""
    found: set[str] = set()
    edge = list(links.get(start, []))
    while edge:
        name = edge.pop()
        if name not in found:
            found.add(name)
            edge.extend(links.get(name, []))
    return found


def test_levels() -> None:
    links = {"web": ["api", "cache"], "api": ["db"], "cache": [], "db": [], "cron": ["api"]}
    assert graph.levels(links) == [["cache", "db"], ["api"], ["cron", "web"]]
    assert graph.levels({}) == []


def test_w1_what_is_outside_orders_nothing() -> None:
    assert graph.levels({"web": ["api"], "job": ["db"]}) == [["job", "web"]]


@given(graphs)
def test_levels_are_the_longest_way_down(links: dict[str, list[str]]) -> None:
    """A name stands one level above the highest of those it depends on; what is in a cycle, or above one, comes last."""
    inside = {name: [other for other in others if other in links and other != name] for name, others in links.items()}
    level: dict[str, int] = {}
    for _round in inside:
        for name, others in inside.items():
            if all(other in level for other in others):
                level[name] = max((level[other] + 1 for other in others), default=0)
    expected: list[list[str]] = [[] for _number in range(max(level.values(), default=-1) + 1)]
    for name in sorted(level):
        expected[level[name]].append(name)
    rest = sorted(set(links) - set(level))
    assert graph.levels(links) == expected + [rest] * bool(rest)


@given(graphs)
def test_the_order_of_a_graph_does_not_depend_on_how_it_is_written(links: dict[str, list[str]]) -> None:
    backwards = {name: list(reversed(links[name])) for name in reversed(list(links))}
    assert graph.levels(links) == graph.levels(backwards)


def test_closure_is_whoever_would_miss_them() -> None:
    links = {"web": ["api"], "api": ["db"], "db": [], "cron": []}
    assert graph.closure(links, ["db"]) == {"db", "api", "web"}
    assert graph.closure(links, ["api", "cron"]) == {"api", "web", "cron"}
    assert graph.closure(links, ["elsewhere"]) == {"elsewhere"}
    assert graph.closure(links, []) == set()


@given(graphs, st.sets(st.sampled_from(NAMES + "xy"), max_size=3))
def test_closure_against_the_oracle(links: dict[str, list[str]], names: set[str]) -> None:
    assert graph.closure(links, names) == names | {name for name in links if reachable(links, name) & names}


def test_an_instance_stands_for_its_process() -> None:
    assert graph.base("db:3") == graph.base("db") == "db"
    assert graph.of(defined(web=["db:0", "db:1"], db=[])) == {"web": ("db", "db"), "db": ()}


@pytest.mark.parametrize(
    "depends_on",
    [["db"], ["db:0"], ["db:3"], ["many:7"], ["some:7"], ["none"], ["elsewhere"], ["elsewhere:4"], []],
    ids=repr,
)
def test_dependencies_that_can_be(depends_on: list[str]) -> None:
    tables = {"db": {"command": "db", "instances": 4}, "many": {"command": "many", "instances": "max"}}
    tables |= {"some": {"command": "some", "instance_ids": [7]}, "none": {"command": "none", "instance_ids": []}}
    definitions = load({**tables, "web": {"command": "web", "depends_on": depends_on}})
    assert graph.problems(definitions, elsewhere=["elsewhere"]) == []


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("dbs", "depends on dbs, which is not defined; did you mean db?"),
        ("nothing", "depends on nothing, which is not defined"),
        ("", "depends on , which is not defined"),
        ("nothing:0", "depends on nothing:0, which is not defined"),
        ("db:4", "depends on db:4, an instance that db does not have"),
        ("db:", "depends on db:, an instance that db does not have"),
        ("db:-1", "depends on db:-1, an instance that db does not have"),
        ("db:01", "depends on db:01, an instance that db does not have"),
        ("db:²", "depends on db:², an instance that db does not have"),
        ("db:" + "9" * 5000, "depends on db:" + "9" * 5000 + ", an instance that db does not have"),
        ("one:0", "depends on one:0, an instance that one does not have"),
        ("many:x", "depends on many:x, an instance that many does not have"),
        ("some:0", "depends on some:0, an instance that some does not have"),
        ("some:x", "depends on some:x, an instance that some does not have"),
    ],
    ids=lambda text: text[:12],
)
def test_dependencies_that_cannot_be(other: str, message: str) -> None:
    tables = {
        "db": {"command": "db", "instances": 4},
        "one": {"command": "one"},
        "many": {"command": "m", "instances": "max"},
        "some": {"command": "some", "instance_ids": [7]},
    }
    definitions = load({**tables, "web": {"command": "web", "depends_on": [other]}})
    (problem,) = graph.problems(definitions)
    assert (problem.table, problem.field, problem.message) == ("web", "depends_on", message)


@pytest.mark.parametrize(
    ("links", "path"),
    [
        ({"a": ["a"]}, "a -> a"),
        ({"a": ["b"], "b": ["a"]}, "a -> b -> a"),
        ({"z": ["c"], "c": ["d"], "d": ["c"]}, "c -> d -> c"),
        ({"a": ["b:0"], "b": ["a"]}, "a -> b -> a"),
    ],
)
def test_a_cycle_is_shown(links: dict[str, list[str]], path: str) -> None:
    found = [problem for problem in graph.problems(defined(**links)) if "circular" in problem.message]
    assert [problem.message for problem in found] == [f"circular dependency detected: {path}"]


@given(graphs)
def test_a_cycle_is_found_where_there_is_one(links: dict[str, list[str]]) -> None:
    links = {**links, "lonely": []}
    messages = [problem.message for problem in graph.problems(defined(**links), elsewhere="xy" + NAMES)]
    inside = {name: [other for other in others if other in links] for name, others in links.items()}
    assert bool(messages) == any(name in reachable(inside, name) for name in links)
    for message in messages:
        path = message.partition(": ")[2].split(" -> ")
        assert path[0] == path[-1]
        assert all(after in links[before] for before, after in zip(path, path[1:]))
