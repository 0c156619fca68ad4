"""Commands that start an agent: real processes, in a data dir of the test's own."""

from __future__ import annotations

import json
import os
import pathlib
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

PACKAGE = pathlib.Path(__file__).parents[3] / "plugins" / "module_utils" / "pm3"
COMMAND = [sys.executable, "-I", str(PACKAGE / "__main__.py")]  # with libraries: before Python 3.11 TOML comes from one


class Place:
    def __init__(self, data_dir: pathlib.Path) -> None:
        self.data_dir = data_dir
        self.environ = {**os.environ, "PM3_DATA_DIR": str(data_dir)}

    def start(self, *words: str, **more: Any) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": self.environ, **more}
        return subprocess.Popen([*COMMAND, "--json", *words], text=True, **pipes)

    def run(self, *words: str, **more: Any) -> Any:
        """The one document that the command says."""
        out, err = self.start(*words, **more).communicate()
        assert err == ""
        return json.loads(out)

    @property
    def keeper(self) -> int:
        return int((self.data_dir / "keeper.lock").read_text())

    @property
    def agent(self) -> int:
        return int((self.data_dir / "pm3.pid").read_text())


@pytest.fixture
def place(tmp_path: pathlib.Path) -> Iterator[Place]:
    place = Place(tmp_path / "data")
    yield place
    keeper = place.keeper if (place.data_dir / "keeper.lock").exists() else 0
    if keeper:
        try:
            ended = os.pidfd_open(keeper)
        except ProcessLookupError:
            return
        place.run("kill")
        signal.pidfd_send_signal(ended, signal.SIGTERM)
        wait(ended)


def wait(pidfd: int) -> None:
    """Until the process of `pidfd`, nobody's child here, has ended."""
    try:
        assert select.select([pidfd], [], [], 30)[0], "it goes on"
    finally:
        os.close(pidfd)


def test_the_first_command_starts_an_agent(place: Place) -> None:
    assert place.run("list") == {"type": "process_list", "processes": []}
    agent, keeper = place.agent, place.keeper
    assert place.run("list")["processes"] == []
    assert (place.agent, place.keeper) == (agent, keeper)
    assert os.getsid(keeper) != os.getsid(0)
    assert os.readlink(f"/proc/{agent}/cwd") == "/"
    assert os.stat(place.data_dir).st_mode & 0o777 == 0o700


def test_the_agent_holds_nothing_of_the_shells(place: Place) -> None:
    read, write = os.pipe()
    try:
        assert place.run("list", pass_fds=(write,))["processes"] == []
        os.close(write)
        assert os.read(read, 1) == b""  # nobody holds the other end
    finally:
        os.close(read)


def test_of_many_commands_at_once_one_starts_it(place: Place) -> None:
    commands = [place.start("list") for _number in range(12)]
    said = [command.communicate() for command in commands]
    assert [err for _out, err in said] == [""] * 12
    assert {out for out, _err in said} == {'{"type":"process_list","processes":[]}\n'}
    diagnostics = (place.data_dir / "agent.log").read_text()
    assert "already running" not in diagnostics


def test_list_after_kill_waits_for_the_end_and_starts_a_new_one(place: Place, tmp_path: pathlib.Path) -> None:
    (tmp_path / "pm3.toml").write_text(
        """[stubborn]\ncommand = "sh -c 'trap : TERM; while :; do sleep 0.05; done'"\nkill_timeout = 300\n"""
    )
    assert place.run("start", cwd=tmp_path)["type"] == "success"
    before = place.agent, place.keeper
    assert place.run("kill")["message"] == "daemon shutting down"
    assert place.run("list") == {"type": "process_list", "processes": []}
    assert place.agent != before[0]
    assert place.keeper != before[1]


def test_a_command_waits_for_an_agent_that_crashed(place: Place) -> None:
    place.run("list")
    keeper = place.keeper
    for _crash in range(3):
        crashed = place.agent
        os.kill(crashed, signal.SIGKILL)
        assert place.run("list")["processes"] == []
        assert place.agent != crashed
    assert place.keeper == keeper


def test_an_agent_that_cannot_run_says_why(place: Place) -> None:
    place.data_dir.mkdir()
    (place.data_dir / "store.sqlite").write_text("this is no database, and it is long enough to be seen as none" * 100)
    said = place.run("list")
    assert said["type"] == "error"
    assert said["message"].startswith(
        "the pm3 agent could not be started: the agent ended with status 1 before it was ready"
    )
    assert "database" in said["message"]


def test_a_data_dir_that_cannot_be_is_named(place: Place) -> None:
    place.data_dir.write_text("a file")
    said = place.run("list")
    assert said["type"] == "error"
    assert str(place.data_dir) in said["message"]


def test_kill_starts_none(place: Place) -> None:
    assert place.run("kill") == {"type": "success", "message": "daemon shutting down"}
    assert not place.data_dir.exists()
