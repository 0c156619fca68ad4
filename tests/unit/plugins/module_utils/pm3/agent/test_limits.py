# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which limits a host can keep, as its cgroup's files say, and what is written then. That the kernel keeps them: tests/machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent import limits
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.definition import Definition

ALL = Definition("web", command="run", memory_max=1 << 20, cpu_max="50%", pids_max=8)
FILES = ("memory.max", "memory.oom.group", "cpu.max", "pids.max")


def root(tmp_path: Path, given: str, enabled: str = "") -> Path:
    (tmp_path / "cell").mkdir()
    (tmp_path / "cgroup.controllers").write_text(given)
    (tmp_path / "cgroup.subtree_control").write_text(enabled)
    for file in FILES:
        if file.partition(".")[0] in given.split():
            (tmp_path / "cell" / file).write_text("")
    return tmp_path


def written(tmp_path: Path) -> dict[str, str]:
    """What was written to each file since the last look; the kernel takes each write for itself, a plain file does not."""
    found = {path.name: path.read_text() for path in (tmp_path / "cell").iterdir()}
    for name in found:
        (tmp_path / "cell" / name).write_text("")
    return found


def test_without_cells_none_can_be_kept() -> None:
    found = limits.problems(None, "no such luck", "", {"web": ALL, "calm": Definition("calm", command="run")})
    assert [(one.table, one.field) for one in found] == [("web", field) for field in limits.CONTROLLERS]
    assert all("there is no cgroup for it: no such luck" in one.message for one in found)


@pytest.mark.parametrize(
    ("given", "beyond"),
    [
        ("cpu io memory pids", []),
        ("memory pids", ["cpu_max"]),
        ("cpuset", ["memory_max", "cpu_max", "pids_max"]),
        ("", ["memory_max", "cpu_max", "pids_max"]),
    ],
)
def test_what_has_no_controller_cannot_be_kept(tmp_path: Path, given: str, beyond: list[str]) -> None:
    path = str(root(tmp_path, given))
    assert [one.field for one in limits.problems(path, "", path, {"web": ALL})] == beyond


def test_what_is_limited_is_written(tmp_path: Path) -> None:
    path = str(root(tmp_path, "cpu memory pids"))
    limits.put(path, f"{path}/cell", ALL)
    assert written(tmp_path) == dict(zip(FILES, (str(1 << 20), "1", "50000 100000", "8")))


def test_only_what_is_missing_is_enabled_and_only_when_it_is_needed(tmp_path: Path) -> None:
    path = str(root(tmp_path, "cpu memory pids", "memory"))
    enabled = tmp_path / "cgroup.subtree_control"
    limits.put(path, f"{path}/cell", Definition("web", command="run", memory_max=1))
    assert enabled.read_text() == "memory"
    limits.put(path, f"{path}/cell", ALL)
    assert enabled.read_text().split() == ["+cpu", "+pids"]


def test_what_is_not_limited_any_more_has_no_limit(tmp_path: Path) -> None:
    path = str(root(tmp_path, "cpu memory pids", "cpu memory pids"))
    limits.put(path, f"{path}/cell", ALL)
    written(tmp_path)
    limits.put(path, f"{path}/cell", Definition("web", command="run", pids_max=9))
    texts = written(tmp_path)
    assert {file: text.split()[0] for file, text in texts.items()} == dict(zip(FILES, ("max", "0", "max", "9")))


def test_what_should_be_there_and_is_not_is_an_error(tmp_path: Path) -> None:
    path = str(root(tmp_path, "memory"))
    (tmp_path / "cell" / "memory.max").unlink()
    with pytest.raises(limits.LimitError, match=r"memory_max: .*/memory\.max: No such file"):
        limits.put(path, f"{path}/cell", Definition("web", command="run", memory_max=1))


def test_why_there_is_no_controller(tmp_path: Path) -> None:
    path = str(root(tmp_path, "memory"))
    host = tmp_path / "host"
    host.mkdir()
    (host / "cgroup.controllers").write_text("cpu memory")
    assert "Delegate=cpu in a drop-in of user@.service" in limits.no_controller(path, "cpu", str(host))
    assert limits.no_controller(path, "pids", str(host)).startswith("its cgroup v2 has no controller pids")
