# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be said of the module `agent` without starting one. What starts, upgrades and removes is in tests/integration."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils import _agent, _service, _unpacked
from ansible_collections.pm3.fleet.plugins.module_utils._place import Place
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent import keeper
from ansible_collections.pm3.fleet.plugins.modules import agent as agent_module

PACKAGE = {"identity": "a" * 16, "version": "0.1.0", "libraries": {}}


def options(data_dir: Path, **more: Any) -> dict[str, Any]:
    return {"scope": "user", "data_dir": str(data_dir), "service_manager": "none", "package": PACKAGE, **more}


def test_asks_for_the_program_where_it_is_not(tmp_path: Path, run: Any) -> None:
    result = run(agent_module.main, **options(tmp_path / "data"))
    assert not result["changed"]
    assert result["upload"]["python"].startswith("3.")
    assert not (tmp_path / "data").exists()


def test_check_mode_tells_all_steps_and_writes_nothing(tmp_path: Path, run: Any, warned: list[str]) -> None:
    result = run(agent_module.main, check=True, diff=True, **options(tmp_path / "data"))
    assert result["changed"]
    assert result["actions"] == [
        f"made {tmp_path}/data",
        "installed version 0.1.0 (aaaaaaaaaaaaaaaa)",
        "made aaaaaaaaaaaaaaaa the current version",
        f"wrote {tmp_path}/data/bin/pm3",
        "started the agent",
    ]
    assert [one["after_header"] for one in result["diff"]] == [f"{tmp_path}/data/bin/pm3"]
    assert list(tmp_path.iterdir()) == []
    assert len(warned) == 1
    assert f"have the host run this at boot: PM3_DATA_DIR={tmp_path}/data {tmp_path}/data/bin/pm3 --keeper" in warned[0]


def test_a_python_that_cannot_is_named(tmp_path: Path, run: Any) -> None:
    result = run(agent_module.main, **options(tmp_path, python="/bin/false"))
    assert result["failed"]
    assert "/bin/false cannot run the agent" in result["msg"]


def test_absent_where_nothing_is(tmp_path: Path, run: Any) -> None:
    result = run(agent_module.main, **options(tmp_path / "data", state="absent", purge=True))
    assert (result["changed"], result["actions"]) == (False, [])


def test_purge_takes_nothing_where_no_agent_ever_was(tmp_path: Path, run: Any) -> None:
    for name in ("logs/access.log", "run/app.pid", "lock", "agent.log"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("gold")
    before = sorted(tmp_path.rglob("*"))
    result = run(agent_module.main, **options(tmp_path / "data", state="absent", purge=True))
    assert (result["changed"], result["actions"]) == (False, [])
    assert sorted(tmp_path.rglob("*")) == before


def test_purge_takes_what_is_the_agents_and_only_once(tmp_path: Path, run: Any, warned: list[str]) -> None:
    data = tmp_path / "data"
    ours = ("web-out.log", "web-err.log.1", "web:0-out.log.2.gz", "web-out.log.3.gz.tmp", ".index/web-out.log")
    own = ("store.sqlite", "lock", *(f"logs/{name}" for name in ours), "run/12.out", "run/12.err", "run/upgrade.log")
    foreign = ("logs/access.log", "logs/web-out.log.old", "run/app.pid", "precious")
    for name in (*own, *foreign):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text("gold")
    result = run(agent_module.main, **options(data, state="absent", purge=True))
    assert result["actions"] == [f"removed {data}"]
    assert sorted(str(path.relative_to(data)) for path in data.rglob("*") if path.is_file()) == sorted(foreign)
    assert "somebody else's files are in it: logs, precious, run" in warned[0]
    for check in (True, False):
        result = run(agent_module.main, check=check, **options(data, state="absent", purge=True))
        assert (result["changed"], result["actions"]) == (False, [])


def test_absent_refuses_while_instances_run(agent: Any, run: Any) -> None:
    agent.answers["hello"] = {**agent.answers["hello"], "instances": {"total": 3, "running": 2}}
    for check in (False, True):
        result = run(agent_module.main, check=check, **options(agent.data_dir, state="absent"))
        assert result["failed"]
        assert result["msg"].startswith("2 instances of the agent still run;")


def test_another_service_manager_is_refused(agent: Any, run: Any) -> None:
    agent.answers["hello"] = {**agent.answers["hello"], "manager": "systemd"}
    result = run(agent_module.main, **options(agent.data_dir))
    assert result["failed"]
    assert "runs under systemd" in result["msg"]


def test_a_host_without_a_service_manager_is_warned_of_until_somebody_says_that_it_is_meant(
    agent: Any, run: Any, warned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_unpacked, "is_there", lambda *_any: True)
    agent.answers["hello"] = {**agent.answers["hello"], "manager": "keeper", "features": {"trial": True}}
    for manager, warnings in (("auto", 1), ("none", 0)):
        warned.clear()
        result = run(agent_module.main, check=True, **options(agent.data_dir, service_manager=manager))
        assert result["service_manager"] == "none"
        assert [text.partition(":")[0] for text in warned] == ["no service manager keeps this agent"] * warnings


def test_where_nobody_starts_it_commands_say_how(tmp_path: Path) -> None:
    """The host's agent is nobody's to start by the way: an own one would be a second one."""
    program = _service.Program("/usr/bin/python3", "/usr/local/lib/pm3/current/pm3/__main__.py", {})
    system = _service.Keeper(None, Place("system"), program)  # type: ignore[arg-type]
    assert [(file.path, file.text) for file in system.files] == [
        ("/var/lib/pm3/managed", "PM3_DATA_DIR=/var/lib/pm3 /usr/local/bin/pm3 --keeper\n")
    ]
    assert _service.Keeper(None, Place("user", str(tmp_path)), program).files == []  # type: ignore[arg-type]


def test_places() -> None:
    system = Place("system")
    assert (system.data_dir, system.command, system.library) == (
        "/var/lib/pm3",
        "/usr/local/bin/pm3",
        "/usr/local/lib/pm3",
    )
    own = Place("user", "/srv/pm3/")
    assert (own.data_dir, own.command, own.library) == ("/srv/pm3", "/srv/pm3/bin/pm3", "/srv/pm3/lib/pm3")


def test_place_of_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    usual = Place("user")
    assert (usual.data_dir, usual.command) == ("/home/me/.local/share/pm3", "/home/me/.local/bin/pm3")
    assert Place("user", "/home/me/.local/share/pm3").command == "/home/me/.local/bin/pm3"
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert Place("user").data_dir == "/data/pm3"


def test_the_launcher_survives_any_path(tmp_path: Path) -> None:
    folder = tmp_path / 'a "strange" $HOME `folder` \\'
    place = Place("user", str(folder))
    program = folder / "lib" / "pm3" / "current" / "pm3" / "__main__.py"
    program.parent.mkdir(parents=True)
    program.write_text("import os, sys; print(os.environ['PM3_DATA_DIR'], *sys.argv[1:])")
    _agent._write(_agent._launcher(place, os.path.realpath("/usr/bin/env")))
    text = Path(place.command).read_text()
    Path(place.command).write_text(text.replace('env" -I -S', 'env" cat'))
    environment = {"PATH": os.environ["PATH"]}
    shown = subprocess.run([place.command], capture_output=True, text=True, check=True, env=environment).stdout
    assert shown == program.read_text()


def test_units_of_a_system(tmp_path: Path) -> None:
    program = _service.Program("/opt/my python/bin/python3", "/usr/local/lib/pm3/current/pm3/__main__.py", {"A": "1%"})
    files = {os.path.basename(file.path): file.text for file in _service.Systemd(None, Place("system"), program).files}  # type: ignore[arg-type]
    unit = files["pm3.service"]
    before, dummy, service = unit.partition("[Service]")
    assert "StartLimitIntervalSec=0" in before  # in [Service] systemd ignores it
    assert 'ExecStart="/opt/my python/bin/python3" -I -S /usr/local/lib/pm3/current/pm3/__main__.py' in service
    assert "Environment=A=1%%\n" in service
    for line in (
        "Type=notify",
        "KillMode=process",
        "FileDescriptorStoreMax=16384",
        "Restart=on-failure",
        f"RestartPreventExitStatus={keeper.TAKEN}",
        "ExecReload=/bin/kill -HUP $MAINPID",
    ):
        assert line in service.splitlines()
    assert {"Delegate=yes", "KillMode=process", "OOMScoreAdjust=-900"} <= set(files["pm3-cells.service"].splitlines())
    assert files["managed"] == "systemctl start pm3.service\n"


def test_programs_are_tidied_away(tmp_path: Path) -> None:
    place = Place("user", str(tmp_path))
    for age, name in enumerate(("now", "before", "older", "oldest")):
        folder = Path(place.library) / name
        folder.mkdir(parents=True)
        os.utime(folder, (1000 - age, 1000 - age))
    _unpacked.use(place, "now")
    _unpacked.tidy(place, "now", "before")
    assert sorted(path.name for path in Path(place.library).iterdir()) == ["before", "current", "now"]
    _unpacked.tidy(place, "now", "now")
    assert sorted(path.name for path in Path(place.library).iterdir()) == ["before", "current", "now"]


def test_libraries_that_lack(tmp_path: Path) -> None:
    place = Place("user", str(tmp_path))
    folder = Path(_unpacked.folder(place, "x"))
    folder.mkdir(parents=True)
    wanted = {"tomli": {"minimum": "2.0", "below": "3.11", "version": "2.5.0", "python": "3.8"}}
    unknown = {"tomli": {"minimum": "2.0", "below": "3.11", "version": None, "python": ""}}
    assert _unpacked.lacks_library(place, "x", wanted, (3, 9))
    assert not _unpacked.lacks_library(place, "x", wanted, (3, 11))
    assert not _unpacked.lacks_library(place, "x", unknown, (3, 9))
    (folder / _unpacked.NOTE).write_text('{"tomli": "2.0.1"}')
    assert not _unpacked.lacks_library(place, "x", wanted, (3, 9))
    (folder / _unpacked.NOTE).write_text('{"tomli": "1.9"}')
    assert _unpacked.lacks_library(place, "x", wanted, (3, 9))


def test_libraries_that_every_host_needs(tmp_path: Path) -> None:
    place = Place("user", str(tmp_path))
    folder = Path(_unpacked.folder(place, "x"))
    folder.mkdir(parents=True)
    wanted = {"cronsim": {"minimum": "2.6", "below": None, "version": "2.7", "python": "3.10"}}
    for python in ((3, 10), (3, 14)):
        assert _unpacked.lacks_library(place, "x", wanted, python)
    # The controller has none that this one could use: no reason to upload again and again.
    assert not _unpacked.lacks_library(place, "x", wanted, (3, 9))
    (folder / _unpacked.NOTE).write_text('{"cronsim": "2.6"}')
    assert not _unpacked.lacks_library(place, "x", wanted, (3, 14))
