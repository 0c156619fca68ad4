# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which numbers of a fleet-wide count are at home on which host.

Every controller and every run has to come to the same answer, with no memory of an earlier one, so the placement is a pure function of the
names. Each pair of a number and a host has a score, drawn from a hash of the host's name: pseudo-random, and independent of who else is in
the list. The pairs are gone through from the lowest score on; a pair is taken if its number has no host yet and its host has room. That is
rendezvous hashing with a limit to each host's share: a stable matching of numbers and hosts that both prefer low scores.

What comes of it (docs/placement.md has figures): shares are even to ±1, always. When a host goes, its numbers look for new homes; each may
push out one with a higher score, and that one another. The scores grow along such a chain, so it is short. A host that comes is the same,
backwards. For names that somebody chose for the purpose a chain can be long; no function without a memory is even and has few moves
for all names.

Pure. Private to this collection.
"""

from __future__ import annotations

import array
import functools
import hashlib
import re
import sys
import typing as t

_TOP = 1 << 32  # scores are below
_SHOWN = 10  # hosts in a message
_MOST = 100_000  # as in model/kinds.py: numbers of one host, were it alone


class Misplaced(ValueError):
    """What is wrong with the question, in one sentence."""


def place(count: t.Any, hosts: t.Any, host: t.Any, name: t.Any = "") -> list[int]:
    """The numbers, of 0 to count - 1, of one of the hosts. Raises `Misplaced`."""
    if isinstance(count, str) and re.fullmatch(r"\s*-?[0-9]{1,9}\s*", count):
        count = int(count)  # what comes from the command line
    if isinstance(count, bool) or not isinstance(count, int):
        raise Misplaced(f"expected a whole number of instances before the filter, found {count!r}")
    if not 0 <= count <= _MOST:
        raise Misplaced(f"expected a number of instances from 0 to {_MOST} before the filter, found {count}")
    if isinstance(hosts, (str, bytes, t.Mapping)) or not isinstance(hosts, t.Iterable):
        raise Misplaced(f"expected a list of hosts, such as groups['workers'], found {hosts!r}")
    listed = list(hosts)
    if not all(isinstance(one, str) for one in (*listed, host, name)):
        raise Misplaced("expected names of hosts, which are texts, such as groups['workers'] and inventory_hostname")
    everywhere = sorted({str(one) for one in listed})
    if not everywhere:
        raise Misplaced("the list of hosts is empty; expected all hosts of a group, such as groups['workers']")
    if host not in everywhere:
        shown = ", ".join(everywhere[:_SHOWN]) + (", …" if len(everywhere) > _SHOWN else "")
        raise Misplaced(f"host {host} is not among the {len(everywhere)} hosts of the list: {shown}")
    return list(_homes(int(count), tuple(everywhere), str(name))[everywhere.index(host)])


@functools.lru_cache(maxsize=16)
def _homes(count: int, hosts: tuple[str, ...], name: str) -> list[list[int]]:
    """The numbers of each of the hosts, in order.

    The pairs with the lowest scores come first, a slice at a time, because of all the others few are ever needed.
    """
    size = len(hosts)
    share, over = divmod(count, size)
    scores = [_scores(host, count, name) for host in hosts]
    homes: list[list[int]] = [[] for _host in hosts]
    placed = bytearray(count)
    left: t.Sequence[int] = range(count)
    low, high = 0, 4 * _TOP // size
    while left:
        pairs: list[int] = []  # score, number and host in one: plain numbers are sorted fastest
        for at, drawn in enumerate(scores):
            if len(homes[at]) < share + (over > 0):
                pairs += [
                    (drawn[number] * count + number) * size + at for number in left if low <= drawn[number] < high
                ]
        for pair in sorted(pairs):
            number, at = pair // size % count, pair % size
            if not placed[number] and len(homes[at]) < share + (over > 0):
                over -= len(homes[at]) == share  # it is one of the few that have one more
                homes[at].append(number)
                placed[number] = True
        left = [number for number in left if not placed[number]]
        low, high = high, 4 * high
    return [sorted(one) for one in homes]


def _scores(host: str, count: int, name: str) -> t.Sequence[int]:
    """A host's score for each number: those of a shorter list are the beginning of a longer one's."""
    words = f"{name}\0{host}".encode("utf-8", "surrogatepass")
    drawn = array.array("I", hashlib.shake_256(words).digest(4 * count))
    if sys.byteorder == "little":
        drawn.byteswap()  # the same on every machine
    return drawn
