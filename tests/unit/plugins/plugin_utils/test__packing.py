# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.pm3.fleet.plugins.plugin_utils import _packing

FILES = {"pm3/a.py": b"1", "pm3/b.py": b"2"}


def test_identity_is_of_names_and_bytes_alone() -> None:
    found = _packing.identity(FILES)
    assert len(found) == 16
    assert found == _packing.identity(dict(reversed(FILES.items())))
    assert found != _packing.identity({**FILES, "pm3/b.py": b"3"})
    assert found != _packing.identity({"pm3/a.py": b"1", "pm3/c.py": b"2"})
    assert _packing.identity({"a": b"bc"}) != _packing.identity({"ab": b"c"})


def test_agent_files_are_sources_only(tmp_path: Path) -> None:
    (tmp_path / "pm3" / "room" / "__pycache__").mkdir(parents=True)
    (tmp_path / "pm3" / "room" / "one.py").write_bytes(b"1")
    (tmp_path / "pm3" / "room" / "__pycache__" / "one.cpython-39.pyc").write_bytes(b"x")
    assert _packing.agent_files(tmp_path / "pm3") == {"pm3/room/one.py": b"1"}


def test_the_real_agent_runs_from_its_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(_packing.archive(_packing.agent_files(), ()))) as packed:
        packed.extractall(tmp_path)
    command = [sys.executable, "-I", "-S", str(tmp_path / "pm3" / "__main__.py"), "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.startswith("pm3 ")


def test_an_archive_is_the_same_twice() -> None:
    assert _packing.archive(FILES, ()) == _packing.archive(FILES, ())


def test_libraries_travel_where_they_are_needed() -> None:
    assert [library.name for library in _packing.libraries_for((3, 9))] == ["cronsim", "tomli"]
    assert [library.name for library in _packing.libraries_for((3, 11))] == ["cronsim"]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], _packing.Library]:
    """Installs a library on this controller, as pip would."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(version: str, python: str) -> _packing.Library:
        note = tmp_path / f"pm3_example-{version}.dist-info"
        note.mkdir()
        (note / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: pm3_example\nVersion: {version}\n"
            + (python and f"Requires-Python: {python}\n")
        )
        return _packing.Library("pm3_example", "2.6", None, "nothing comes true")

    return install


def test_a_library_that_is_not_there_is_told_once_and_costs_its_feature() -> None:
    absent = _packing.Library("pm3_example", "2.6", None, "nothing comes true")
    assert _packing.lack(absent, (3, 13)) == (
        "pm3_example 2.6 or newer is not installed on the controller: nothing comes true"
    )
    old = dataclasses.replace(absent, below=(3, 11))
    assert _packing.lack(old, (3, 9)) == (
        "pm3_example 2.6 or newer, which the host's Python 3.9 needs, is not installed on the controller: nothing comes true"
    )


def test_a_library_that_is_too_old_is_none(installed: Callable[[str, str], _packing.Library]) -> None:
    assert "is not installed on the controller" in str(_packing.lack(installed("2.5.9", ""), (3, 13)))


def test_a_library_that_is_too_new_for_a_host_is_told(installed: Callable[[str, str], _packing.Library]) -> None:
    library = installed("2.8", ">=3.11,!=3.12.0")
    assert _packing.oldest_python(library) == "3.11"
    assert _packing.lack(library, (3, 11, 2)) is None
    assert "needs Python 3.11 or newer, and the host has 3.9, so nothing comes true" in str(
        _packing.lack(library, (3, 9))
    )


def test_a_library_that_does_not_say_what_it_needs_is_packed(installed: Callable[[str, str], _packing.Library]) -> None:
    assert _packing.lack(installed("2.6", ""), (3, 9)) is None


def test_schedules_are_read_from_the_archive_alone(tmp_path: Path) -> None:
    pytest.importorskip("cronsim")
    with zipfile.ZipFile(io.BytesIO(_packing.archive(_packing.agent_files(), _packing.LIBRARIES[:1]))) as packed:
        packed.extractall(tmp_path)
    words = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from pm3.model import cron; print(cron.check('@daily'))"
    )
    shown = subprocess.run([sys.executable, "-I", "-S", "-c", words], capture_output=True, text=True, check=True)
    assert shown.stdout == "0 0 * * *\n"


def test_a_library_works_where_it_is_unpacked(tmp_path: Path) -> None:
    pytest.importorskip("tomli")
    with zipfile.ZipFile(io.BytesIO(_packing.archive(FILES, _packing.LIBRARIES))) as packed:
        packed.extractall(tmp_path)
    assert json.loads((tmp_path / "libraries.json").read_text())["tomli"] >= "2"
    words = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import tomli; print(tomli.loads('a = 1'))"
    shown = subprocess.run([sys.executable, "-I", "-S", "-c", words], capture_output=True, text=True, check=True)
    assert shown.stdout == "{'a': 1}\n"
