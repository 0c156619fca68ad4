# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the paths of definitions lead: what a revision keeps of symbolic links, so that it can start there again. Reads only."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from ..model.definition import Definition

Places = Mapping[str, Mapping[str, str]]  # by process: a path as it is written, and the one that it led to

_NOT_ONE_PATH = ("@{", "*", "?", "[")


def taken(definitions: Mapping[str, Definition]) -> dict[str, dict[str, str]]:
    """The paths of each process that lead through symbolic links, and where."""
    found: dict[str, dict[str, str]] = {}
    real: dict[str, str] = {}  # most processes of a project are in one folder
    for name, one in definitions.items():
        for path in _paths(one):
            if path not in real:
                real[path] = os.path.realpath(path)
        leads = {path: real[path] for path in _paths(one)}
        through_links = {path: lead for path, lead in leads.items() if lead != path}
        if through_links:
            found[name] = through_links
    return found


def moved(places: Places) -> dict[str, dict[str, str]]:
    """Those of them that lead elsewhere by now."""
    found: dict[str, dict[str, str]] = {}
    for name, leads in places.items():
        left = {path: real for path, real in leads.items() if os.path.realpath(path) != real}
        if left:
            found[name] = left
    return found


def missing(places: Places) -> list[str]:
    """The places that are not there any more."""
    return sorted({real for leads in places.values() for real in leads.values() if not os.path.exists(real)})


def of_process(pid: int) -> str | None:
    """The folder that a process is in."""
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return None


def _paths(definition: Definition) -> Iterator[str]:
    paths = [definition.cwd, *definition.restart_when_changed]
    for path in paths:
        if path is not None and not any(mark in path for mark in _NOT_ONE_PATH):
            yield path
