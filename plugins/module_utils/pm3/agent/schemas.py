# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The store's file as such: its schemas, what leads from one to another, and copies of it. Knows nothing of what is in it.

A newer agent takes over an older one's store. An older agent refuses a newer one's; so the newer one, when it is to become the older
one, leaves it a store of its schema (`lower`).
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress

SCHEMA = 2
# What leads from each schema to the next, beginning with none. What has been released is never edited, only added to.
STEPS = (
    """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE definitions (id INTEGER PRIMARY KEY, name TEXT NOT NULL, body TEXT NOT NULL, UNIQUE (name, body));
CREATE TABLE projects (name TEXT PRIMARY KEY, revision INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE revisions (
    project TEXT NOT NULL, revision INTEGER NOT NULL, label TEXT, at REAL NOT NULL, uid INTEGER, changed TEXT NOT NULL,
    definitions TEXT NOT NULL, PRIMARY KEY (project, revision)
) WITHOUT ROWID;
CREATE TABLE instances (
    name TEXT PRIMARY KEY, process TEXT NOT NULL, number INTEGER NOT NULL, count INTEGER NOT NULL, project TEXT,
    definition INTEGER NOT NULL, path TEXT, wanted INTEGER NOT NULL, life TEXT NOT NULL, spawn_id TEXT NOT NULL,
    pid INTEGER, start_time INTEGER, boot TEXT NOT NULL
) WITHOUT ROWID;
""",
    """
ALTER TABLE instances ADD COLUMN slot INTEGER NOT NULL DEFAULT 0;
ALTER TABLE instances ADD COLUMN seen TEXT;
ALTER TABLE revisions ADD COLUMN places TEXT NOT NULL DEFAULT '{}';
ALTER TABLE revisions ADD COLUMN origin INTEGER;
ALTER TABLE revisions ADD COLUMN failed_at REAL;
ALTER TABLE revisions ADD COLUMN failure TEXT;
CREATE TABLE holds (
    kind TEXT NOT NULL, name TEXT NOT NULL, reason TEXT NOT NULL, since REAL NOT NULL, uid INTEGER, PRIMARY KEY (kind, name)
) WITHOUT ROWID;
CREATE TABLE runs (project TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
""",
)
# What leads back to each schema from the next one, and what that loses. (SQLite drops columns only from 3.35 on.)
_BACK = {
    1: """
ALTER TABLE instances RENAME TO instances_2;
ALTER TABLE revisions RENAME TO revisions_2;
CREATE TABLE revisions (
    project TEXT NOT NULL, revision INTEGER NOT NULL, label TEXT, at REAL NOT NULL, uid INTEGER, changed TEXT NOT NULL,
    definitions TEXT NOT NULL, PRIMARY KEY (project, revision)
) WITHOUT ROWID;
CREATE TABLE instances (
    name TEXT PRIMARY KEY, process TEXT NOT NULL, number INTEGER NOT NULL, count INTEGER NOT NULL, project TEXT,
    definition INTEGER NOT NULL, path TEXT, wanted INTEGER NOT NULL, life TEXT NOT NULL, spawn_id TEXT NOT NULL,
    pid INTEGER, start_time INTEGER, boot TEXT NOT NULL
) WITHOUT ROWID;
INSERT INTO revisions SELECT project, revision, label, at, uid, changed, definitions FROM revisions_2;
INSERT INTO instances SELECT name, process, number, count, project, definition, path, wanted, life, spawn_id, pid, start_time, boot
    FROM instances_2;
DROP TABLE instances_2;
DROP TABLE revisions_2;
DROP TABLE holds;
DROP TABLE runs;
"""
}
LOST = {1: "holds, changes under way, and which revisions failed are forgotten"}


class StoreError(Exception):
    """The store cannot be used; the text says why."""


def opened(path: str, trial: bool = False) -> sqlite3.Connection:
    """The store of this agent's schema, made or brought to it; on trial a copy in memory is. Raises `StoreError`."""
    try:
        db = _in_memory(path) if trial else _in_file(path)
        try:
            _raise_schema(db, path)
        except BaseException:
            db.close()  # or it would stay locked
            raise
    except sqlite3.DatabaseError as error:
        raise StoreError(
            f"{path} cannot be read as the agent's store ({error}); move it away to begin with an empty one"
        ) from error
    return db


def _in_file(path: str) -> sqlite3.Connection:
    mask = os.umask(0o077)
    try:
        db = sqlite3.connect(path, isolation_level=None)
        db.execute("PRAGMA journal_mode = WAL")
    finally:
        os.umask(mask)
    return db


def _in_memory(path: str) -> sqlite3.Connection:
    db = sqlite3.connect(":memory:", isolation_level=None)
    with closing(_read_only(path)) as live:
        live.backup(db)
    return db


def _read_only(path: str) -> sqlite3.Connection:
    # What sqlite.org/uri.html asks for; urllib is half a megabyte with what it imports.
    quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    return sqlite3.connect(f"file:{quoted}?mode=ro", uri=True, isolation_level=None)


def _raise_schema(db: sqlite3.Connection, path: str) -> None:
    version = _schema(db)
    if version > SCHEMA:
        raise StoreError(f"{path} has schema {version}, this agent reads {SCHEMA}; install the agent that wrote it")
    if version < SCHEMA:
        db.executescript(f"BEGIN; {''.join(STEPS[version:])} PRAGMA user_version = {SCHEMA}; COMMIT;")


def _schema(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def schema_of(path: str) -> int:
    """The schema of a file, 0 where there is none. Raises `StoreError`."""
    if not os.path.exists(path):
        return 0
    try:
        with closing(_read_only(path)) as db:
            return _schema(db)
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{path} cannot be read as the agent's store ({error})") from error


def copy(source: str, goal: str) -> None:
    """Makes `goal` the same store as `source`, in one move. Nobody has `goal` open. Raises `StoreError`."""
    new = goal + ".new"
    remove(new)
    try:
        with closing(_in_memory(source)) as held, closing(_in_file(new)) as db:
            held.backup(db)
            db.execute("PRAGMA journal_mode = DELETE")  # who only reads a file with a log would leave that behind
        remove(goal, but=goal)  # what is left of a log of the old file would be read as one of the new
        os.replace(new, goal)
    except (OSError, sqlite3.Error) as error:
        remove(new)
        raise StoreError(f"{source} cannot be copied to {goal}: {error}") from error


def lower(path: str, schema: int) -> None:
    """Makes it a store that an agent of an older schema reads, in one transaction; `LOST` says what that costs. Raises `StoreError`."""
    try:
        with closing(_in_file(path)) as db:
            steps = [_BACK[number] for number in range(_schema(db) - 1, schema - 1, -1)]
            db.executescript(f"BEGIN; {''.join(steps)} PRAGMA user_version = {schema}; COMMIT;")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except (KeyError, sqlite3.Error) as error:
        raise StoreError(f"{path} cannot be brought to schema {schema}: {error!r}") from error


def remove(path: str, but: str = "") -> None:
    """A store with its side files."""
    for one in (path + "-wal", path + "-shm", path):
        if one != but:
            with suppress(FileNotFoundError):
                os.unlink(one)
