# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The paths that a glob means on this host, in an order that is always the same. Lists folders; opens no file, and follows no link
for `**`, so that a link to a folder above it is no loop."""

from __future__ import annotations

import os
from collections.abc import Iterator

from ..model import patterns

MOST_NAMES = 32768  # that are looked at for one glob: what comes after them is not found


def matching(glob: str) -> Iterator[str]:
    """What `glob`, which is absolute, means; and "" now and then, where nothing was found for a while.

    A glob without `*`, `?` or `[…]` means one path, whether that is there or not. A path may come twice. Raises `Unfit`.
    """
    steps = patterns.steps(glob)
    if all(isinstance(step, str) and step != patterns.ANY for step in steps):
        yield "/" + "/".join(map(str, steps))
        return
    left = MOST_NAMES
    waiting = [("", 0)]  # folders in which a step is to be looked for, the next one last
    while waiting and left > 0:
        folder, at = waiting.pop()
        left -= 1
        yield ""
        step, last = steps[at], at == len(steps) - 1
        if isinstance(step, str) and step != patterns.ANY:
            path = f"{folder}/{step}"
            if not last:
                waiting.append((path, at + 1))
            elif os.path.lexists(path):
                yield path
            continue
        deeper = []
        for name, is_folder in _listed(folder or "/")[:left]:
            left -= 1
            path = f"{folder}/{name}"
            if isinstance(step, str):
                if name.startswith("."):
                    continue
                if is_folder:
                    deeper.append((path, at))
            elif not step.fullmatch(name):
                continue
            elif not last:
                deeper.append((path, at + 1))
            if last:
                yield path
        waiting += reversed(deeper)
        if isinstance(step, str) and not last:
            waiting.append((folder, at + 1))  # `**` is also no folder at all


def _listed(folder: str) -> list[tuple[str, bool]]:
    """The names in a folder, and which of them are folders themselves (links are none). Nothing where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    except OSError:
        return []
