from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3 import VERSION
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.cli import main as cli
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.wire import messages, units

HELLO = {"type": "hello", "version": VERSION, "pid": 7, "manager": "keeper", "instances": {"total": 3, "running": 2}}
FACTS = [
    {"name": "cgroup", "ok": True, "text": "cells at /x"},
    {"name": "psutil", "ok": False, "text": "not there", "severity": "warning"},
]

Doctor = Callable[..., tuple[int, dict[str, dict[str, Any]]]]


@pytest.fixture
def doctor(capfd: pytest.CaptureFixture[str]) -> Doctor:
    """The exit status, and the facts by name."""

    def run() -> tuple[int, dict[str, dict[str, Any]]]:
        status = cli.main(["doctor", "--json"])
        said = capfd.readouterr()
        assert said.err == ""
        assert said.out.count("\n") == 1
        document = json.loads(said.out)
        assert document["ok"] == (status == 0)
        return status, {fact["name"]: fact for fact in document["facts"]}

    return run


@pytest.fixture(autouse=True)
def home(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Nothing of the user's real home counts."""
    folder = tmp_path / "home"
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("PM3_DATA_DIR", str(tmp_path / "data"))
    return folder


def test_all_is_well(doctor: Doctor, fake_agent: Any) -> None:
    fake_agent.answers.update(hello=[HELLO], doctor=[{"type": "doctor", "facts": FACTS}])
    status, facts = doctor()
    assert status == 0
    assert list(facts) == ["data dir", "agent", "version", "python", "manager", "service", "cgroup", "psutil"]
    assert facts["data dir"]["text"] == f"{fake_agent.data_dir} (PM3_DATA_DIR says so)"
    assert facts["agent"]["text"] == f"answers at {fake_agent.data_dir}/pm3.sock (pid 7, 2 instances running)"
    assert "a keeper of its own keeps the agent" in facts["manager"]["text"]
    assert facts["service"]["severity"] == "warning"
    assert facts["psutil"] == FACTS[1]


def test_one_line_per_fact(fake_agent: Any, capfd: pytest.CaptureFixture[str]) -> None:
    worst = {"name": "store", "ok": False, "text": "two\nlines", "severity": "error"}
    fake_agent.answers.update(hello=[HELLO], doctor=[{"type": "doctor", "facts": [*FACTS, worst]}])
    assert cli.main(["doctor"]) == 1
    lines = capfd.readouterr().out.splitlines()
    assert lines[-3:] == ["✓ cgroup    cells at /x", "! psutil    not there", "✗ store     two\\nlines"]


def test_no_agent_and_none_is_started(doctor: Doctor, tmp_path: pathlib.Path) -> None:
    status, facts = doctor()
    assert status == 0
    assert facts["agent"] == {"name": "agent", "ok": True, "text": "none runs; commands that need one start it"}
    assert not (tmp_path / "data").exists()


def test_an_agent_that_should_run(doctor: Doctor, tmp_path: pathlib.Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "managed").write_text("systemctl --user start pm3\n")
    status, facts = doctor()
    assert (status, facts["agent"]["severity"]) == (1, "error")
    assert "systemctl --user start pm3" in facts["agent"]["text"]


def test_an_older_agent(doctor: Doctor, fake_agent: Any) -> None:
    unknown = "request type 'doctor' is unknown to this agent (pm3 0.0.9)"
    fake_agent.answers.update(hello=[{**HELLO, "version": "0.0.9"}], doctor=[messages.error(unknown)])
    status, facts = doctor()
    assert status == 0
    assert facts["version"]["severity"] == "warning"
    assert "the agent that runs is 0.0.9; kill -HUP 7 upgrades it" in facts["version"]["text"]
    assert unknown in facts["facts"]["text"]


@pytest.mark.parametrize("answer", [b"hey\n", b"", messages.error("no")])
def test_somebody_else_at_the_socket(doctor: Doctor, fake_agent: Any, answer: Any) -> None:
    fake_agent.answers["hello"] = [answer]
    status, facts = doctor()
    assert (status, facts["agent"]["severity"]) == (1, "error")
    assert "version" not in facts


def installed(data_dir: str, enabled: bool = True) -> None:
    for file in units.files("user", data_dir, ["python3"], units.environment("user", data_dir))[:2]:
        os.makedirs(os.path.dirname(file.path), exist_ok=True)
        pathlib.Path(file.path).write_text(file.text)
    if enabled:
        wants = pathlib.Path(units.folder("user")) / "default.target.wants"
        wants.mkdir()
        (wants / units.SERVICE).symlink_to(units.path("user"))


def test_the_boot_service(doctor: Doctor, fake_agent: Any, home: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_agent.answers.update(hello=[HELLO], doctor=[{"type": "doctor", "facts": []}])
    lingering = {"it": True}
    monkeypatch.setattr(units, "lingers", lambda user: lingering["it"])
    installed(fake_agent.data_dir, enabled=False)
    status, facts = doctor()
    assert (status, facts["service"]["severity"]) == (1, "error")
    assert "is not enabled" in facts["service"]["text"]
    installed(fake_agent.data_dir)
    status, facts = doctor()
    assert (status, facts["service"]["text"]) == (0, str(home / ".config/systemd/user/pm3.service"))
    assert facts["lingering"]["ok"]
    lingering["it"] = False
    status, facts = doctor()
    assert (status, facts["lingering"]["severity"]) == (1, "error")
    assert "loginctl enable-linger" in facts["lingering"]["text"]


def test_a_service_of_another_agent(doctor: Doctor, fake_agent: Any) -> None:
    fake_agent.answers.update(hello=[HELLO], doctor=[{"type": "doctor", "facts": []}])
    installed("/srv/other")
    status, facts = doctor()
    assert (status, facts["service"]["severity"]) == (0, "warning")
    assert "another agent, at /srv/other" in facts["service"]["text"]
