# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What must not be forgotten: one SQLite file in the data dir. Owns the file and its schema; decides nothing.

A commit survives the agent's death without an fsync (the kernel has it), so it costs microseconds; surviving the machine's death
takes a `checkpoint`, with which an apply ends. Definitions are kept once each, however many instances share them.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, Callable

from ..model import definition as definitions
from ..model.definition import Definition
from ..model.life import After, Cause, Check, End, Life, Phase, Policy, Status
from ..model.slots import slotted
from . import schemas
from .points import reached
from .schemas import StoreError

_INSTANCE = (
    "name, process, number, count, project, definition, path, wanted, life, spawn_id, pid, start_time, boot, slot, seen"
)
_FACTS = "project, revision, label, at, uid, changed, places, origin, failed_at, failure"  # of a revision
_REVISIONS_KEPT = 20  # for each project
_COMMITS = 64  # after which the log of the database (WAL) is due to be emptied into it
_BUSY = 200  # milliseconds that a commit waits for somebody else's, for instance a person with sqlite3
_IDS = 4096  # definitions whose ids are known by heart
_LIFE = {one.name: one.default for one in fields(Life) if one.name != "policy"}
_LIVES = json.JSONEncoder(default=lambda value: value.value if isinstance(value, Enum) else vars(value))


@slotted
@dataclass(frozen=True)
class Record:
    """An instance as it is kept: enough for another agent to go on with it."""

    name: str
    process: str
    number: int
    count: int
    project: str | None
    definition: Definition
    path: str | None  # the PATH that came with the request which started it
    wanted: bool
    life: Life
    spawn_id: str  # "" before the first spawn
    pid: int | None
    start_time: int | None  # clock ticks since boot; with pid and boot, the identity of a process
    boot: str
    slot: int  # which of two copies it is, 0 or 1
    seen: Mapping[str, Any] | None  # what the files of `restart_when_changed` were when it was started


@dataclass(frozen=True)
class Revision:
    """One applied desired state of a project."""

    project: str
    revision: int
    label: str | None
    at: float  # seconds since the epoch
    uid: int | None
    changed: tuple[str, ...]  # the processes that it changed
    definitions: Mapping[str, Definition]
    places: Mapping[
        str, Mapping[str, str]
    ]  # by process: its paths that lead through symbolic links, and where they led
    origin: int | None = None  # the revision that this one brought back
    failed_at: float | None = None  # when it was found that it cannot run
    failure: str | None = None  # and why


@dataclass(frozen=True)
class Hold:
    """Somebody wants a process, or all of a project, to be left alone."""

    kind: str  # "process" or "project"
    name: str
    reason: str
    since: float  # seconds since the epoch
    uid: int | None


class Store:
    def __init__(self, path: str, trial: bool = False) -> None:
        """On trial all is done to a copy in memory, and nothing to the file. Raises `StoreError`."""
        self.path = path
        self.error: str | None = None  # why the last write failed, if it did
        self._ids: dict[int, tuple[Definition, int]] = {}  # by identity: a definition, and its id in the file
        self._by_id: dict[int, Definition] = {}
        self._commits = 0  # since the last checkpoint
        self._db = schemas.opened(path, trial)
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute("PRAGMA wal_autocheckpoint = 0")  # it would wait for the disk on the loop
        self._db.execute("PRAGMA journal_size_limit = 1048576")  # bytes to which its file shrinks after a burst
        self._db.execute("PRAGMA cache_size = -512")
        self._db.execute(f"PRAGMA busy_timeout = {_BUSY}")

    def tidy(self) -> None:
        """Forgets definitions, with their secrets, that no instance has any more. Only before anything else was done."""
        self._write(
            lambda: self._db.execute("DELETE FROM definitions WHERE id NOT IN (SELECT definition FROM instances)")
        )

    def close(self) -> None:
        self._db.close()

    # Facts

    def get(self, key: str) -> str | None:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return str(row[0]) if row else None

    def set(self, key: str, value: str) -> None:
        self._write(lambda: self._set(key, value))

    def _set(self, key: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def _write(self, work: Callable[[], object]) -> None:
        """Does `work` in one transaction. Raises `StoreError` when it cannot be: the disk is full, or somebody else is writing."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            work()
            reached("store.before_commit")
            self._db.execute("COMMIT")
            reached("store.after_commit")
        except BaseException as error:
            self._ids.clear()  # some may be of rows that are now not there
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                self.error = str(error)
                raise StoreError(f"{self.path} cannot be written: {error}") from error
            raise
        self.error = None
        self._commits += 1

    # Instances

    def save(self, changed: Iterable[Record], removed: Iterable[str], facts: Mapping[str, str]) -> None:
        """Records instances and facts as they are now, in one transaction. Raises `StoreError`."""

        def work() -> None:
            self._db.executemany("DELETE FROM instances WHERE name = ?", ((name,) for name in removed))
            self._db.executemany(
                f"INSERT OR REPLACE INTO instances ({_INSTANCE}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                (self._columns(record) for record in changed),
            )
            for key, value in facts.items():
                self._set(key, value)

        self._write(work)

    def instances(self) -> list[Record]:
        rows = self._db.execute(f"SELECT {_INSTANCE} FROM instances ORDER BY name").fetchall()
        found = [self._record(row) for row in rows]
        self._by_id.clear()  # they are the instances' now
        return found

    def _columns(self, record: Record) -> tuple[Any, ...]:
        return (
            record.name,
            record.process,
            record.number,
            record.count,
            record.project,
            self._id(record.definition),
            _kept_path(record.path),
            record.wanted,
            _life_text(record.life),
            record.spawn_id,
            record.pid,
            record.start_time,
            record.boot,
            record.slot,
            json.dumps(record.seen) if record.seen is not None else None,
        )

    def _record(self, row: tuple[Any, ...]) -> Record:
        name, process, number, count, project, body, path, wanted, life, spawn_id, *rest = row
        pid, start_time, boot, slot, seen = rest
        one = self._definition(body)
        return Record(
            name,
            process,
            number,
            count,
            project,
            one,
            path.decode("utf-8", "surrogateescape") if isinstance(path, bytes) else path,
            bool(wanted),
            _life(life, one),
            spawn_id,
            pid,
            start_time,
            boot,
            slot,
            json.loads(seen) if seen is not None else None,
        )

    def _id(self, definition: Definition) -> int:
        known, number = self._ids.get(id(definition), (None, 0))
        if known is not definition:
            if len(self._ids) >= _IDS:
                self._ids.clear()
            row = (definition.name, json.dumps(definition.data(), sort_keys=True))
            self._db.execute("INSERT OR IGNORE INTO definitions (name, body) VALUES (?, ?)", row)
            found = self._db.execute("SELECT id FROM definitions WHERE name = ? AND body = ?", row)
            number = int(found.fetchone()[0])
            self._ids[id(definition)] = (definition, number)
        return number

    def _definition(self, number: int) -> Definition:
        if number not in self._by_id:
            name, body = self._db.execute("SELECT name, body FROM definitions WHERE id = ?", (number,)).fetchone()
            one = self._by_id[number] = _parsed(name, json.loads(body))
            self._ids[id(one)] = (one, number)
        return self._by_id[number]

    # Projects

    def projects(self) -> dict[str, Revision]:
        """The current revision of every project."""
        rows = self._db.execute(
            f"SELECT {_FACTS}, definitions FROM projects JOIN revisions USING (revision) WHERE project = name"
        ).fetchall()
        return {row[0]: _revision(row) for row in rows}

    def revisions(self, project: str) -> list[Revision]:
        """The revisions of a project that are kept, oldest first; without their definitions, which take long to read."""
        rows = self._db.execute(
            f"SELECT {_FACTS}, '{{}}' FROM revisions WHERE project = ? ORDER BY revision", (project,)
        ).fetchall()
        return [_revision(row) for row in rows]

    def revision(self, project: str, number: int) -> Revision | None:
        """One revision, whole; None if it is not kept (any more)."""
        row = self._db.execute(
            f"SELECT {_FACTS}, definitions FROM revisions WHERE project = ? AND revision = ?", (project, number)
        ).fetchone()
        return _revision(row) if row is not None else None

    def add_revision(self, revision: Revision, run: Mapping[str, Any] | None = None) -> None:
        """Makes `revision` the project's current one and `run` what is under way; forgets the oldest ones.

        Raises `StoreError`.
        """
        values = (
            *(revision.project, revision.revision, revision.label, revision.at, revision.uid),
            *(json.dumps(revision.changed), json.dumps(revision.places), revision.origin),
            *(revision.failed_at, revision.failure),
            json.dumps({name: one.data() for name, one in revision.definitions.items()}, sort_keys=True),
        )

        def work() -> None:
            self._db.execute(
                f"INSERT INTO revisions ({_FACTS}, definitions) VALUES (?,?,?,?,?,?,?,?,?,?,?)",
                values,
            )
            self._db.execute("INSERT OR REPLACE INTO projects VALUES (?, ?)", (revision.project, revision.revision))
            self._db.execute(
                "DELETE FROM revisions WHERE project = ? AND revision <= ?",
                (revision.project, revision.revision - _REVISIONS_KEPT),
            )
            self._set_run(revision.project, run)

        self._write(work)
        self._ids.clear()  # most of those that it replaces are nobody's any more

    def set_failure(self, project: str, number: int, at: float | None, failure: str | None) -> None:
        """Notes that a revision could not run, and why; or with None that it could after all. Raises `StoreError`."""
        self._write(
            lambda: self._db.execute(
                "UPDATE revisions SET failed_at = ?, failure = ? WHERE project = ? AND revision = ?",
                (at, failure, project, number),
            )
        )

    # Changes under way, one of each project: what another agent needs to know to go on with one

    def runs(self) -> dict[str, dict[str, Any]]:
        return {project: json.loads(body) for project, body in self._db.execute("SELECT project, body FROM runs")}

    def set_run(self, project: str, body: Mapping[str, Any] | None) -> None:
        """None: it is over. Raises `StoreError`."""
        self._write(lambda: self._set_run(project, body))

    def _set_run(self, project: str, body: Mapping[str, Any] | None) -> None:
        if body is None:
            self._db.execute("DELETE FROM runs WHERE project = ?", (project,))
        else:
            self._db.execute("INSERT OR REPLACE INTO runs VALUES (?, ?)", (project, json.dumps(body)))

    # Holds

    def holds(self) -> list[Hold]:
        return [Hold(*row) for row in self._db.execute("SELECT kind, name, reason, since, uid FROM holds")]

    def hold(self, made: Iterable[Hold]) -> None:
        """Raises `StoreError`."""
        rows = [(one.kind, one.name, one.reason, one.since, one.uid) for one in made]
        self._write(lambda: self._db.executemany("INSERT OR REPLACE INTO holds VALUES (?,?,?,?,?)", rows))

    def release(self, ended: Iterable[Hold]) -> None:
        """Raises `StoreError`."""
        rows = [(one.kind, one.name) for one in ended]
        self._write(lambda: self._db.executemany("DELETE FROM holds WHERE kind = ? AND name = ?", rows))

    def read_all(self) -> None:
        """Reads everything once. Raises whatever an agent that goes on with this store would meet."""
        self.instances()
        self.runs()
        self.holds()
        for project in self.projects():
            for one in self.revisions(project):
                self.revision(project, one.revision)

    @property
    def due(self) -> bool:
        """Whether it is time for a checkpoint, or the file of what is committed would grow without end."""
        return self._commits >= _COMMITS

    def checkpoint(self) -> None:
        """Makes everything committed so far survive a loss of power. Slow (fsync), and safe in another thread: it has a connection
        of its own, and writers do not wait for it. Raises `StoreError`."""
        self._commits = 0
        try:
            with closing(sqlite3.connect(self.path, isolation_level=None)) as db:
                db.execute("PRAGMA wal_checkpoint(PASSIVE)")
        except sqlite3.Error as error:
            raise StoreError(f"{self.path} cannot be written: {error}") from error


def _revision(row: tuple[Any, ...]) -> Revision:
    project, number, label, at, uid, changed, places, origin, failed_at, failure, bodies = row
    found = {name: _parsed(name, body) for name, body in json.loads(bodies).items()}
    facts = (label, at, uid, tuple(json.loads(changed)), found, json.loads(places))
    return Revision(project, number, *facts, origin, failed_at, failure)


def _parsed(name: str, body: Mapping[str, Any]) -> Definition:
    definition, problems = definitions.parse(name, body)
    if definition is None:
        raise StoreError(
            "the store holds a definition that this agent cannot read: " + "; ".join(str(one) for one in problems)
        )
    return definition


def _kept_path(path: str | None) -> str | bytes | None:
    """PATH may hold bytes that are no UTF-8, which no text of SQLite's can."""
    encoded = path.encode("utf-8", "surrogateescape") if path is not None else None
    return path if encoded is None or path == encoded.decode("utf-8", "replace") else encoded


def _life_text(life: Life) -> str:
    """A life as JSON, without what goes without saying; its policy is the definition's and not repeated."""
    kept = {name: value for name, default in _LIFE.items() if (value := getattr(life, name)) != default}
    return _LIVES.encode(kept)


def _life(text: str, definition: Definition) -> Life:
    kept = {name: value for name, value in json.loads(text).items() if name in _LIFE}
    for name, read in _READ.items():
        if name in kept:
            kept[name] = read(kept[name])
    return Life(Policy.of(definition), **kept)


def _end(kept: dict[str, Any] | None) -> End | None:
    if kept is None:
        return None
    return End(**{**kept, "cause": Cause(kept["cause"]), "tail": tuple(kept.get("tail", ()))})


_READ: dict[str, Callable[[Any], Any]] = {
    "phase": Phase,
    "status": Status,
    "after": After,
    "checks": lambda kept: tuple(map(Check, kept)),
    "ending": _end,
    "hook": _end,
    "end": _end,
}
