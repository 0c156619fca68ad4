# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Projects and their revisions: what each was told to be, and what became of that. In the store, and the newest of each in memory.

A revision is made by every apply that changes what a project is told to be. Going back makes a new one that names the one it brought
back (`origin`), so the history only grows, and going back twice goes back further. A revision that has not come up yet, or has
failed, is no place to go back to.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ..model.definition import Definition
from ..model.problems import DefinitionError, Problem
from .instance import Instance
from .places import Places
from .schemas import StoreError
from .store import Revision, Store

UNFINISHED = "not finished"  # as the failure of a revision whose instances are still being changed


class Projects:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._current: dict[str, Revision] = store.projects()

    def current(self, project: str | None) -> Revision | None:
        return self._current.get(project) if project is not None else None

    def definitions(self, project: str | None) -> Mapping[str, Definition]:
        """What the project was last told to be."""
        found = self.current(project)
        return found.definitions if found is not None else {}

    def revisions(self, project: str) -> list[Revision]:
        return self._store.revisions(project)

    def of(self, project: str | None) -> dict[str, Revision]:
        """The current revision of one project, or of all."""
        return {name: one for name, one in self._current.items() if project in (None, name)}

    # New ones

    def made(
        self,
        project: str,
        definitions: Mapping[str, Definition],
        changed: Iterable[str],
        places: Places,
        label: str | None,
        uid: int | None,
        origin: int | None = None,
    ) -> Revision:
        """The project's next revision, unfinished and not yet kept."""
        found = self.current(project)
        number = found.revision + 1 if found is not None else 1
        facts = (label, time.time(), uid, tuple(sorted(changed)), definitions, places)
        return Revision(project, number, *facts, origin, None, UNFINISHED)

    def keep(self, made: Revision, run: Mapping[str, Any] | None = None) -> None:
        """Makes it the current one, and `run` what another agent would have to go on with; both or neither."""
        self._store.add_revision(made, run)
        self._current[made.project] = made

    def judge(self, project: str, failure: str | None, at: float | None = None) -> None:
        """Notes what became of the current revision: None, or why it could not run (`at`: and that it is not worth another try)."""
        found = self._current[project]
        if failure is not None:  # it may name a path with bytes that are no UTF-8
            failure = failure.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        if (found.failure, found.failed_at) != (failure, at):
            self._store.set_failure(project, found.revision, at, failure)
            self._current[project] = replace(found, failure=failure, failed_at=at)

    def disown(self, project: str, processes: Iterable[str]) -> None:
        """These are that project's now, and no other's."""
        taken = set(processes)
        for other, found in list(self._current.items()):
            theirs = taken & set(found.definitions)
            if other != project and theirs:
                left = {name: one for name, one in found.definitions.items() if name not in theirs}
                kept = {name: places for name, places in found.places.items() if name not in theirs}
                made = replace(self.made(other, left, theirs, kept, found.label, None), failure=found.failure)
                self.keep(made, self._store.runs().get(other))

    def stopped(self, names: Iterable[str]) -> None:
        """Somebody stops instances: an agent that goes on with what is under way is not to start them again (I3)."""
        gone = set(names)
        for project, run in self._store.runs().items():
            left = [name for name in run["resting"] if name not in gone]
            if left != run["resting"]:
                with contextlib.suppress(StoreError):  # a full disk does not prevent a stop
                    self._store.set_run(project, {**run, "resting": left})

    # Back

    def good_before(
        self, project: str, number: int, other_label: str | None = None, brought_back: bool = False
    ) -> Revision | None:
        """The newest revision before that one which has come up; of another label, if one is given.

        Where that one brought back another it is the other one, as long as that is kept: going back twice is to go back further.
        With `brought_back` it is itself.
        """
        kept = self._store.revisions(project)
        of_number = {one.revision: one for one in kept}
        for one in reversed(kept):
            if one.revision >= number or one.failure is not None:
                continue
            found = one if brought_back else of_number.get(_root(kept, one), one)
            if other_label is None or other_label not in (one.label, found.label):
                return self._store.revision(project, found.revision)
        return None

    def root(self, revision: Revision) -> int:
        """The number of the revision whose definitions it has: its own, or that of the one which it brought back in the end."""
        return _root(self._store.revisions(revision.project), revision)

    def changed_since(self, project: str, number: int) -> list[str]:
        """The processes that revisions after that one have changed."""
        later = (one for one in self._store.revisions(project) if one.revision > number)
        return sorted({name for one in later for name in one.changed})

    def back_to(self, project: str, to: str | None, of_label: str | None) -> tuple[Revision | None, Revision]:
        """The revision that a rollback asks for, None where the project is there already; and the current one.

        `to` is a number, a label, or "" for one good revision back. With `of_label` it is the same, if the current one has this label.
        Raises `DefinitionError` where there is no such revision.
        """
        current = self.current(project)
        if current is None:
            raise _refusal(f"project {project} has no revisions here")
        if to:
            return self._named(project, to, current), current
        if of_label is not None and current.label != of_label:
            return None, current
        found = self.good_before(project, self.root(current), of_label)
        if found is None:
            raise _refusal(
                f"project {project} has no earlier revision that it could go back to; see pm3 history {project}"
            )
        return found, current

    def _named(self, project: str, to: str, current: Revision) -> Revision | None:
        kept = self._store.revisions(project)
        numbers = {str(one.revision) for one in kept} | {str(one.origin) for one in kept if one.origin is not None}
        # What can be a number is one, and else a label.
        is_there = to in (str(current.revision), str(current.origin)) if to in numbers else to == current.label
        if is_there and current.failure is None:
            return None
        named = [one for one in kept if str(one.revision) == to] or [one for one in kept if one.label == to]
        good = [one for one in named if one.failure is None]
        if not named:
            known = ", ".join(str(one.revision) + (f" ({one.label})" if one.label else "") for one in kept)
            raise _refusal(f"project {project} has no revision {to}; there are {known}")
        if not good:
            raise _refusal(f"revision {to} of project {project} has not come up here: {named[-1].failure}")
        return self._store.revision(project, good[-1].revision)

    def failed_like(self, project: str, definitions: Mapping[str, Definition], places: Places) -> Revision | None:
        """The revision that was taken back here and asked for exactly this, unless a newer one that did so has come up."""
        current = self.current(project)
        for one in reversed(self._store.revisions(project)):
            is_current = current is not None and one.revision == current.revision
            if one.places != places or (one.failure is not None and one.failed_at is None and not is_current):
                continue  # of one that nobody has seen to its end nothing is known
            whole = self._store.revision(project, one.revision)
            if whole is not None and whole.definitions == definitions:
                return None if is_current or whole.failed_at is None else whole
        return None


def owner(instances: Iterable[Instance], processes: Iterable[Any]) -> str | None:
    """The project that all of the processes belong to, as far as they exist; None where there is no such one."""
    names = set(processes)
    owners = {one.project for one in instances if one.process in names}
    return owners.pop() if len(owners) == 1 else None


def _root(kept: Iterable[Revision], revision: Revision) -> int:
    origins = {one.revision: one.origin for one in kept}
    origins[revision.revision] = revision.origin
    number = revision.revision
    while (origin := origins.get(number)) is not None:
        number = origin
    return number


def _refusal(message: str) -> DefinitionError:
    return DefinitionError([Problem(message)])
