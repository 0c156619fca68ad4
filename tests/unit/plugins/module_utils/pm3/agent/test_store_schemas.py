# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stores of other agents: an older one's is taken over with all that is in it, a newer one's is refused."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent import schemas
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.projects import Projects
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.schemas import SCHEMA, STEPS, StoreError
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.store import Hold, Store
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.life import Phase


def old_store(path: Path) -> None:
    """As the agent of schema 1 left it: one instance of a project, and two revisions of that."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(f"BEGIN; {STEPS[0]} PRAGMA user_version = 1; COMMIT;")
        db.execute("INSERT INTO meta VALUES ('next_spawn', '42')")
        db.execute("""INSERT INTO definitions VALUES (1, 'web', '{"command": "serve", "cwd": "/srv/2"}')""")
        db.execute("INSERT INTO projects VALUES ('shop', 2)")
        for number in (1, 2):
            body = f'{{"web": {{"command": "serve", "cwd": "/srv/{number}"}}}}'
            facts = ("shop", number, f"v{number}", 100.0 + number, 1000, '["web"]', body)
            db.execute("INSERT INTO revisions VALUES (?,?,?,?,?,?,?)", facts)
        life = '{"phase": "online", "settled": true, "restarts": 3}'
        values = ("web:1", "web", 1, 2, "shop", 1, "/bin", 1, life, "17", 4321, 99, "boot")
        db.execute("INSERT INTO instances VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)", values)


def test_a_store_of_the_first_schema_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    old_store(path)
    for _time in range(2):  # and opened again
        store = Store(str(path))
        (one,) = store.instances()
        assert (one.name, one.process, one.number, one.count, one.project) == ("web:1", "web", 1, 2, "shop")
        assert (one.definition.cwd, one.path, one.wanted, one.spawn_id) == ("/srv/2", "/bin", True, "17")
        assert (one.pid, one.start_time, one.boot) == (4321, 99, "boot")
        assert (one.life.phase, one.life.settled, one.life.restarts) == (Phase.ONLINE, True, 3)
        assert (one.slot, one.seen) == (0, None)
        assert store.get("next_spawn") == "42"
        assert store.runs() == {}
        assert store.holds() == []
        projects = Projects(store)
        current = projects.current("shop")
        assert current is not None
        assert (current.revision, current.label, current.uid, current.changed) == (2, "v2", 1000, ("web",))
        assert (current.places, current.origin, current.failed_at, current.failure) == ({}, None, None, None)
        before = projects.good_before("shop", 2)
        assert before is not None
        assert before.definitions["web"].cwd == "/srv/1", "what it had applied can be gone back to"
        store.save([one], [], {})
        store.close()
    store = Store(str(path))
    store.hold([Hold("process", "web", "to see", 1.0, None)])
    store.set_run("shop", {"stage": "back"})
    projects = Projects(store)
    projects.keep(projects.made("shop", {}, (), {"web": {"/a": "/b"}}, None, None, 1))
    assert store.holds() == [Hold("process", "web", "to see", 1.0, None)]
    assert store.runs() == {}
    store.close()


def test_a_migration_is_done_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    old_store(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE runs (something TEXT)")  # the last statement of the step will fail
        db.commit()
    with pytest.raises(StoreError, match="cannot be read as the agent's store"):
        Store(str(path))
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
        assert "slot" not in [row[1] for row in db.execute("PRAGMA table_info(instances)")]
        db.execute("DROP TABLE runs")
        db.commit()
    store = Store(str(path))
    assert [one.name for one in store.instances()] == ["web:1"]
    store.close()


def shape(path: Path) -> set[tuple[str, ...]]:
    """Every table with its columns, their types and what they are without a value."""
    with closing(sqlite3.connect(path)) as db:
        tables = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {(name, *map(str, row)) for name in tables for row in db.execute(f"PRAGMA table_info({name})")}


def test_a_store_can_be_left_to_an_agent_of_the_first_schema(tmp_path: Path) -> None:
    first, path = tmp_path / "first.sqlite", tmp_path / "store.sqlite"
    old_store(first)
    old_store(path)
    store = Store(str(path))
    found = store.instances()
    store.hold([Hold("process", "web", "to see", 1.0, None)])
    store.close()
    schemas.lower(str(path), 1)
    assert schemas.schema_of(str(path)) == 1
    assert shape(path) == shape(first)
    with closing(sqlite3.connect(path)) as after, closing(sqlite3.connect(first)) as before:
        for table in ("meta", "definitions", "projects", "revisions", "instances"):
            query = f"SELECT * FROM {table}"
            assert after.execute(query).fetchall() == before.execute(query).fetchall(), table
    store = Store(str(path))  # and taken over again
    assert store.instances() == found
    assert store.holds() == []
    store.close()


def test_a_way_back_that_fails_leaves_the_store_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    Store(str(path)).close()
    with pytest.raises(StoreError, match="cannot be brought to schema 0"):
        schemas.lower(str(path), 0)
    with closing(sqlite3.connect(path)) as db:
        db.execute("DROP TABLE runs")  # the last statement of the way back will fail
    before = shape(path)
    with pytest.raises(StoreError, match="cannot be brought to schema 1"):
        schemas.lower(str(path), 1)
    assert shape(path) == before


def test_on_trial_the_file_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    old_store(path)
    with closing(Store(str(path), trial=True)) as store:
        store.read_all()
        assert [one.name for one in store.instances()] == ["web:1"]
        store.hold([Hold("process", "web", "to see", 1.0, None)])
    assert schemas.schema_of(str(path)) == 1


def test_a_copy_takes_the_place_of_a_store_with_its_log(tmp_path: Path) -> None:
    path, copied = tmp_path / "store.sqlite", tmp_path / "copy.sqlite"
    store = Store(str(path))
    store.set("a", "1")
    schemas.copy(str(path), str(copied))
    store.set("a", "2")
    os.link(f"{path}-wal", tmp_path / "wal")  # as if it had died without having it emptied
    store.close()
    os.rename(tmp_path / "wal", f"{path}-wal")
    schemas.copy(str(copied), str(path))
    store = Store(str(path))
    assert store.get("a") == "1"
    store.close()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["copy.sqlite", "store.sqlite"]


def test_a_store_of_a_newer_agent_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    Store(str(path)).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA + 1}")
        db.execute("CREATE TABLE tomorrow (x)")
        db.commit()
    with pytest.raises(StoreError) as caught:
        Store(str(path))
    expected = f"{path} has schema {SCHEMA + 1}, this agent reads {SCHEMA}; install the agent that wrote it"
    assert str(caught.value) == expected
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA + 1,)
        assert db.execute("SELECT count(*) FROM tomorrow").fetchone() == (0,)


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    path.write_bytes(b"no database at all, but long enough to be looked at" * 100)
    with pytest.raises(StoreError, match="move it away to begin with an empty one"):
        Store(str(path))
