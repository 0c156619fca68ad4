# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Placement: every number once, shares even, the same whoever asks, and few moves."""

from __future__ import annotations

import math
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.pm3.fleet.plugins.filter.place import FilterModule
from ansible_collections.pm3.fleet.plugins.plugin_utils import _placement
from ansible_collections.pm3.fleet.tests.unit.examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

place = FilterModule().filters()["place"]
names = st.one_of(
    st.text(min_size=1, max_size=8),
    st.integers(1, 400).map("app{}".format),
    st.integers(1, 400).map("app{}.example.org".format),
)
groups = st.sets(names, min_size=1, max_size=30)
counts = st.integers(0, 200)


def owners(count: int, hosts: Any, name: str = "") -> dict[int, str]:
    """By number, the host that has it. Each has one."""
    found = [(number, host) for host in sorted(set(hosts)) for number in place(count, hosts, host, name)]
    assert sorted(number for number, _host in found) == list(range(count))
    return dict(found)


def moved(one: dict[int, str], other: dict[int, str]) -> int:
    return sum(one[number] != other[number] for number in one.keys() & other.keys())


@given(counts, groups)
def test_every_number_has_one_host_and_shares_are_even(count: int, hosts: set[str]) -> None:
    shares = [place(count, hosts, host) for host in hosts]
    assert sorted(number for share in shares for number in share) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert all(share == sorted(share) for share in shares)


@given(counts, groups, st.data())
def test_order_and_repetitions_do_not_matter(count: int, hosts: set[str], data: st.DataObject) -> None:
    listed = data.draw(st.permutations(sorted(hosts)))
    again = data.draw(st.lists(st.sampled_from(listed), max_size=5))
    _placement._homes.cache_clear()
    before = owners(count, listed)
    _placement._homes.cache_clear()
    assert owners(count, [*again, *reversed(listed), *again]) == before


@given(counts, groups)
def test_it_is_what_the_scores_say(count: int, hosts: set[str]) -> None:
    """Against the definition, pair by pair: the quick way through the pairs leaves none out."""
    listed = sorted(hosts)
    scores = [_placement._scores(host, count, "") for host in listed]
    pairs = sorted((drawn[number], number, at) for at, drawn in enumerate(scores) for number in range(count))
    share, over = divmod(count, len(listed))
    load, expected = [0] * len(listed), {}
    for _score, number, at in pairs:
        if number not in expected and load[at] < share + bool(over):
            over -= load[at] == share
            load[at] += 1
            expected[number] = listed[at]
    assert owners(count, hosts) == expected


# The names could be unlucky ones; those that are tried here are always the same.
@settings(derandomize=True, max_examples=examples(150))
@given(counts, st.sets(names, min_size=2, max_size=30), st.data())
def test_a_host_that_goes_or_comes_moves_little_else_than_its_share(
    count: int, hosts: set[str], data: st.DataObject
) -> None:
    one = data.draw(st.sampled_from(sorted(hosts)))
    share = -(-count // len(hosts))
    with_it, without = owners(count, hosts), owners(count, hosts - {one})
    assert moved(with_it, without) >= len(place(count, hosts, one))
    assert moved(with_it, without) <= (1 + math.log(len(hosts))) * (share + 3)


@settings(derandomize=True, max_examples=examples(150))
@given(counts, groups)
def test_a_number_more_or_less_moves_few_others(count: int, hosts: set[str]) -> None:
    assert moved(owners(count, hosts), owners(count + 1, hosts)) <= 3 * (1 + math.log(len(hosts)))


@given(counts, st.sets(names, min_size=2, max_size=2))
def test_of_two_hosts_the_one_that_stays_keeps_what_it_has(count: int, hosts: set[str]) -> None:
    one, other = sorted(hosts)
    assert set(place(count, hosts, one)) <= set(place(count, [one], one))
    assert moved(owners(count, hosts), owners(count, [one])) == len(place(count, hosts, other))


def test_it_stays_the_same_for_ever() -> None:
    """Whoever updates the collection expects nothing to move."""
    hosts = [f"app{number}" for number in range(1, 4)]
    assert [place(7, hosts, host) for host in hosts] == [[3, 5], [2, 4], [0, 1, 6]]
    assert [place(7, hosts, host, "mailer") for host in hosts] == [[2, 3], [1, 5, 6], [0, 4]]


def test_names_of_their_own_are_placed_on_their_own() -> None:
    hosts = [f"app{number}" for number in range(10)]
    assert len({owners(1, hosts, f"job{number}")[0] for number in range(40)}) > 5


@given(st.integers(0, 40), groups)
def test_a_count_may_be_a_text_as_the_command_line_has_it(count: int, hosts: set[str]) -> None:
    host = min(hosts)
    assert place(str(count), hosts, host) == place(count, hosts, host)


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        ((5, ["app1", "app2"], "app9"), "host app9 is not among the 2 hosts of the list: app1, app2"),
        (
            (5, [f"app{number:02}" for number in range(40)], "db"),
            "host db is not among the 40 hosts of the list: "
            + "".join(f"app{number:02}, " for number in range(10))
            + "…",
        ),
        (
            (5, [], "app1"),
            "the list of hosts is empty; expected all hosts of a group, such as groups['workers']",
        ),
        ((-1, ["app1"], "app1"), "expected a number of instances from 0 to 100000 before the filter, found -1"),
        (
            (100_001, ["app1"], "app1"),
            "expected a number of instances from 0 to 100000 before the filter, found 100001",
        ),
        (("many", ["app1"], "app1"), "expected a whole number of instances before the filter, found 'many'"),
        ((True, ["app1"], "app1"), "expected a whole number of instances before the filter, found True"),
        ((2.5, ["app1"], "app1"), "expected a whole number of instances before the filter, found 2.5"),
        ((5, "app1", "app1"), "expected a list of hosts, such as groups['workers'], found 'app1'"),
        ((5, None, "app1"), "expected a list of hosts, such as groups['workers'], found None"),
        (
            (5, ["app1", 2], "app1"),
            "expected names of hosts, which are texts, such as groups['workers'] and inventory_hostname",
        ),
    ],
    ids=lambda one: str(one)[:40],
)
def test_what_cannot_be_answered_is_said_in_one_sentence(question: tuple[Any, ...], sentence: str) -> None:
    with pytest.raises(AnsibleFilterError) as caught:
        place(*question)
    assert str(caught.value) == sentence
