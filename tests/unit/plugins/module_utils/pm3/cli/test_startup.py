"""What startup refuses, which needs no systemd. What it does with one: tests/fleet/test_startup.py."""

from __future__ import annotations

import os
import pathlib

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.cli import main as cli
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.wire import units

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def home(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("PM3_DATA_DIR", str(folder / "data"))
    return folder


def everything(folder: pathlib.Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def unit(text: str) -> None:
    path = pathlib.Path(units.path("user"))
    path.parent.mkdir(parents=True)
    path.write_text(text)


def test_without_systemd(home: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capfd: Captured) -> None:
    monkeypatch.setattr(units, "booted", lambda: False)
    assert cli.main(["startup", "--json"]) == 1
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: no systemd runs this host")
    assert everything(home) == []


def test_without_its_tools(home: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capfd: Captured) -> None:
    monkeypatch.setattr(units, "booted", lambda: True)
    monkeypatch.setenv("PATH", str(home))
    assert cli.main(["startup"]) == 1
    assert "systemctl is not in PATH" in capfd.readouterr().err
    assert everything(home) == []


@pytest.mark.parametrize(
    ("program", "said"),
    [("exit 1", "does not reach systemd"), ("echo no bus >&2; exit 1", "does not reach systemd: no bus")],
)
def test_a_systemd_that_cannot_be_reached(
    home: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capfd: Captured, program: str, said: str
) -> None:
    tools = home / "bin"
    tools.mkdir()
    for name in ("systemctl", "loginctl"):
        (tools / name).write_text(f"#!/bin/sh\n{program}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    monkeypatch.setattr(units, "booted", lambda: True)
    monkeypatch.setattr(units, "lingers", lambda user: True)
    monkeypatch.setattr(units, "user_manager", lambda: "/")
    assert cli.main(["startup"]) == 1
    assert said in capfd.readouterr().err
    assert everything(home) == ["bin", "bin/loginctl", "bin/systemctl"]
    monkeypatch.setattr(units, "lingers", lambda user: False)
    assert cli.main(["startup"]) == 1
    assert "as root (sudo loginctl enable-linger" in capfd.readouterr().err
    assert everything(home) == ["bin", "bin/loginctl", "bin/systemctl"]


@pytest.mark.parametrize("command", ["startup", "unstartup"])
@pytest.mark.parametrize(
    ("text", "whose"),
    [
        ("[Service]\nEnvironment=PM3_DATA_DIR=/srv/other\n", "the agent in /srv/other"),
        ("[Service]\nExecStart=/usr/bin/other\n", "something else than pm3"),
    ],
)
def test_somebody_elses_unit(home: pathlib.Path, capfd: Captured, command: str, text: str, whose: str) -> None:
    unit(text)
    before = everything(home)
    assert cli.main([command]) == 1
    assert f"{units.path('user')} is " in (said := capfd.readouterr().err)
    assert whose in said
    assert everything(home) == before


def test_unstartup_where_nothing_is(home: pathlib.Path, capfd: Captured) -> None:
    assert cli.main(["unstartup"]) == 0
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err == f"No service file found at {home}/.config/systemd/user/pm3.service\n"


@pytest.mark.parametrize("data_dir", ["/srv/pm3", "/srv/my pm3", '/srv/100% "$HOME" \\ x', "/srv/a'b"])
def test_what_a_unit_says_is_read_back(data_dir: str) -> None:
    program = ["/opt/my python/$HOME/python3", "-I", f"{data_dir}/main.py"]
    files = units.files("user", data_dir, program, units.environment("user", data_dir))
    assert [os.path.basename(file.path) for file in files] == ["pm3-cells.service", "pm3.service", "managed"]
    assert units.environment_of(files[1].text) == {"PM3_DATA_DIR": data_dir, "PM3_OPEN_FILES": "1024"}
    assert 'ExecStart="/opt/my python/$$HOME/python3" -I ' in files[1].text
    assert files[2] == units.File(f"{data_dir}/managed", "systemctl --user start pm3.service\n")
