# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
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


def test_libraries_travel_to_old_pythons_only() -> None:
    assert [library.name for library in _packing.libraries_for((3, 9))] == ["tomli"]
    assert _packing.libraries_for((3, 11)) == ()


def test_a_library_works_where_it_is_unpacked(tmp_path: Path) -> None:
    pytest.importorskip("tomli")
    with zipfile.ZipFile(io.BytesIO(_packing.archive(FILES, _packing.LIBRARIES))) as packed:
        packed.extractall(tmp_path)
    assert json.loads((tmp_path / "libraries.json").read_text())["tomli"] >= "2"
    words = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import tomli; print(tomli.loads('a = 1'))"
    shown = subprocess.run([sys.executable, "-I", "-S", "-c", words], capture_output=True, text=True, check=True)
    assert shown.stdout == "{'a': 1}\n"
