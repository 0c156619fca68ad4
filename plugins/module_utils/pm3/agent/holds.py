# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Holds: what somebody wants every apply to leave alone, a process or all of a project. In the store, and in memory.

Owns which holds there are and how they are said. That nothing of a held process changes is the plan's affair; whoever starts or
stops one by hand may.
"""

from __future__ import annotations

import pwd
import time
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from ..model.order import natural
from ..model.plan import Actual
from .points import reached
from .store import Hold, Store

Document = dict[str, Any]

PROCESS, PROJECT = "process", "project"


class Target(NamedTuple):
    """What can be held."""

    kind: str  # PROCESS or PROJECT
    name: str


class Holds:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._held = {Target(one.kind, one.name): one for one in store.holds()}
        self._users: dict[int, str | None] = {}  # names, asked for once each

    def __contains__(self, target: Target) -> bool:
        return target in self._held

    def text(self, process: str, project: str | None, known: Collection[Target] | None = None) -> str | None:
        """How a process is held, itself or with its project; None: it is not. With `known` no holds but these count."""
        targets = [Target(PROCESS, process)] + ([Target(PROJECT, project)] if project is not None else [])
        one = next((self._held[it] for it in targets if it in self._held and (known is None or it in known)), None)
        if one is None:
            return None
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.since))
        return f"held by {self._holder(one.uid)} since {since}: {one.reason}"

    def among(
        self,
        project: str | None,
        names: Iterable[str],
        actual: Iterable[Actual],
        known: Collection[Target] | None = None,
    ) -> dict[str, str]:
        """What is held of the processes that a change of `project` may touch (`names`, and all instances of the project), and how.

        A process that still belongs to another project is also held with that one. With `known` no holds but these count.
        """
        if not self._held:
            return {}
        owners: dict[str, set[str | None]] = {name: {project} for name in names}
        for one in actual:
            if one.project == project or one.process in owners:
                owners.setdefault(one.process, set()).add(one.project)
        found = {}
        for name, projects in owners.items():
            texts = [text for owner in projects if (text := self.text(name, owner, known)) is not None]
            if texts:
                found[name] = min(texts)
        return found

    def documents(self) -> list[Document]:
        return [
            {**vars(one), "user": self._user(one.uid)}
            for one in sorted(self._held.values(), key=lambda one: (one.kind, natural(one.name)))
        ]

    def hold(self, targets: Iterable[Target], reason: str, uid: int | None) -> None:
        """Holds them, or those that are held already for this reason from now on. Raises `StoreError`."""
        made = {target: Hold(*target, reason, time.time(), uid) for target in targets}
        reached("hold.made")
        self._store.hold(made.values())
        reached("hold.kept")
        self._held.update(made)

    def release(self, targets: Iterable[Target]) -> list[Target]:
        """Gives those that were held. Raises `StoreError`."""
        ended = [target for target in targets if target in self._held]
        self._store.release(self._held[target] for target in ended)
        reached("hold.released")
        for target in ended:
            del self._held[target]
        return ended

    def targets(self) -> list[Target]:
        return list(self._held)

    def names(self) -> list[str]:
        return [target.name for target in self._held]

    def _holder(self, uid: int | None) -> str:
        return "nobody" if uid is None else self._user(uid) or f"uid {uid}"

    def _user(self, uid: int | None) -> str | None:
        if uid is None:
            return None
        if uid not in self._users:
            try:
                self._users[uid] = pwd.getpwuid(uid).pw_name
            except KeyError:
                self._users[uid] = None
        return self._users[uid]
