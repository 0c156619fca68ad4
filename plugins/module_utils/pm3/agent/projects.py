# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Projects and their revisions: what each was last told to be. In the store, and the newest of each in memory."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from ..model.definition import Definition
from ..model.plan import Action, Plan
from .instance import Instance
from .store import Revision, Store


class Projects:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._current: dict[str, Revision] = store.projects()

    def definitions(self, project: str | None) -> Mapping[str, Definition]:
        """What the project was last told to be."""
        return self._current[project].definitions if project in self._current else {}

    def revision(self, project: str, after: Plan | None = None) -> int:
        """The project's current revision, or the one that it will have after `after`. 0: it has none."""
        number = self._current[project].revision if project in self._current else 0
        return number + (1 if after is not None and after.definitions != self.definitions(project) else 0)

    def revisions(self, project: str) -> list[Revision]:
        return self._store.revisions(project)

    def of(self, project: str | None) -> dict[str, Revision]:
        """The current revision of one project, or of all."""
        return {name: one for name, one in self._current.items() if project in (None, name)}

    def keep(self, project: str, found: Plan, label: str | None, uid: int | None) -> int:
        """Makes the plan's definitions the project's new revision."""
        changed = sorted({row.process for row in found.rows if row.action is not Action.NONE})
        made = Revision(
            project, self.revision(project) + 1, label, time.time(), uid, tuple(changed), found.definitions, {}
        )
        self._store.add_revision(made)
        self._current[project] = made
        return made.revision


def owner(instances: Iterable[Instance], processes: Iterable[Any]) -> str | None:
    """The project that all of the processes belong to, as far as they exist; None where there is no such one."""
    names = set(processes)
    owners = {one.project for one in instances if one.process in names}
    return owners.pop() if len(owners) == 1 else None
