"""The guide to changes works as it is written: its commands, in their order, in an empty folder, and what it says of each."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from .conftest import COMMAND, Agent

GUIDE = Path(__file__).parents[3] / "docs" / "changes.md"
BASE = "8100"  # the first port in the guide
PORTS = 8
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

WEB = [f"web:{number}" for number in range(4)]
WORKERS = ["worker:0", "worker:1"]


def free_ports() -> int:
    """The first of PORTS that nobody has: below those that the kernel gives away, and others who look meanwhile begin elsewhere."""
    first, slots = 30100, 320
    for turn in range(slots):
        base = first + (os.getpid() + turn) % slots * PORTS
        try:
            with ExitStack() as held:
                for port in range(base, base + PORTS):
                    held.enter_context(socket.create_server(("127.0.0.1", port)))
        except OSError:
            continue
        return base
    raise AssertionError("no free ports")


class Reader:
    """Somebody who types what the guide has, line by line."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.base = free_ports()
        text = GUIDE.read_text("utf-8").replace(BASE, str(self.base))
        blocks = [(found[1], found[2]) for found in BLOCK.finditer(text)]
        (pm3_toml,) = [block for language, block in blocks if language == "toml"]
        (agent.folder / "pm3.toml").write_text(pm3_toml)
        self.lines = [line for language, block in blocks if language == "sh" for line in block.splitlines()]
        command = agent.folder / "bin" / "pm3"
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\nexec {shlex.join(COMMAND)} "$@"\n')
        command.chmod(0o755)
        self.path = f"{command.parent}:{agent.environment['PATH']}"
        self.before: dict[str, int] = {}

    def types(self, line: str) -> subprocess.CompletedProcess[str]:
        """The comment says whether it fails."""
        self.before = self.agent.pids()
        environment = {**self.agent.environment, "PATH": self.path}
        done = subprocess.run(
            ["sh", "-c", line],
            cwd=self.agent.folder,
            env=environment,
            text=True,
            capture_output=True,
            timeout=60,
            check=False,
        )
        fails = "fails" in line.partition("#")[2]
        assert (done.returncode != 0) == fails, f"{line}\n{done.stdout}{done.stderr}"
        return done

    def replaced(self) -> list[str]:
        """What has another process than before the last line."""
        return sorted(name for name, pid in self.agent.pids().items() if self.before.get(name) != pid)

    def serves(self) -> int:
        """How many instances of `web` answer."""
        answered = 0
        for port in range(self.base, self.base + PORTS):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20) as answer:
                    answered += answer.status == 200
            except OSError:
                continue
        return answered


@pytest.fixture
def reader(agent: Agent) -> Reader:
    return Reader(agent)


Done = subprocess.CompletedProcess[str]


def rows(done: Done) -> dict[str, tuple[str, str]]:
    """What is said of each instance: its action and why."""
    found = re.findall(r"^(\w+:\d) +(\w+) +\w+ *(.*)$", done.stdout, re.MULTILINE)
    return {name: (action, reason) for name, action, reason in found}


def actions(done: Done) -> dict[str, str]:
    return {name: action for name, (action, _reason) in rows(done).items()}


def created(reader: Reader, done: Done) -> None:
    assert actions(done) == dict.fromkeys([*WEB, *WORKERS], "created")
    assert reader.serves() == len(WEB)


def nothing(reader: Reader, done: Done) -> None:
    assert actions(done) == dict.fromkeys([*WEB, *WORKERS], "ok")
    assert reader.replaced() == []


def quiet(reader: Reader, done: Done) -> None:
    assert (done.stdout, done.stderr) == ("", "")


def reverted(reader: Reader, done: Done) -> None:
    assert done.stderr == "error: web:0 exited with code 1; went back to revision 1\n"
    assert actions(done) == {"web:0": "failed", **dict.fromkeys(WEB[1:], "skipped"), **dict.fromkeys(WORKERS, "ok")}
    assert "No module named http.sever" in done.stdout
    assert reader.replaced() == []
    assert reader.serves() == len(WEB)


def rolled(reader: Reader, done: Done) -> None:
    assert actions(done) == {**dict.fromkeys(WEB, "ok"), **dict.fromkeys(WORKERS, "rolled")}
    assert reader.replaced() == WORKERS


def history(reader: Reader, done: Done) -> None:
    labels = re.findall(r"^│ (\d) .*? ┆ (v\d) ", done.stdout, re.MULTILINE)
    assert labels == [("1", "v1"), ("2", "v2"), ("3", "v1"), ("4", "v3")]
    assert "failed: web:0 exited with code 1" in done.stdout


def held(reader: Reader, done: Done) -> None:
    action, reason = rows(done)["worker:0"]
    assert action == "ok"
    assert re.fullmatch(r"held by \w+ since [-\d: ]+: looking into the leak", reason)
    assert reader.agent.instance("worker:0")["status"] == "stopped"


def says(words: str) -> Callable[[Reader, Done], None]:
    def check(reader: Reader, done: Done) -> None:
        assert words in done.stdout

    return check


def drifted(reader: Reader, done: Done) -> None:
    assert rows(done) == {
        **dict.fromkeys(WEB, ("ok", "")),
        "worker:0": ("started", "was stopped"),
        "worker:1": ("created", "was missing"),
    }


def foreseen(reader: Reader, done: Done) -> None:
    drifted(reader, done)
    assert reader.replaced() == []


def put_right(reader: Reader, done: Done) -> None:
    drifted(reader, done)
    assert reader.replaced() == WORKERS
    assert {one["status"] for one in reader.agent.instances().values()} == {"online"}


# The lines of the guide, without their comments, and what is to be true when each is done.
LINES = [
    ("pm3 apply pm3.toml --project shop --label v1", created),
    ("pm3 plan pm3.toml --project shop", nothing),
    ("sed -i s/http.server/http.sever/ pm3.toml", quiet),
    ("pm3 apply pm3.toml --project shop --label v2", reverted),
    ("sed -i s/http.sever/http.server/ pm3.toml", quiet),
    ('sed -i "s/sleep 1000/sleep 2000/" pm3.toml', quiet),
    ("pm3 apply pm3.toml --project shop --label v3", rolled),
    ("pm3 history shop", history),
    ("pm3 rollback shop", rolled),
    ("pm3 rollback shop --from v3", nothing),
    ("pm3 rollback shop --to v3", rolled),
    ('pm3 hold worker --reason "looking into the leak"', says("held: worker (project shop)")),
    ("pm3 stop worker:0", says("stopped: worker:0")),
    ("pm3 apply pm3.toml --project shop", held),
    ("pm3 release worker", says("released: worker (project shop)")),
    ("pm3 delete worker:1", says("deleted: worker:1")),
    ("pm3 plan pm3.toml --project shop", foreseen),
    ("pm3 apply pm3.toml --project shop", put_right),
]


def test_the_guide_works_as_it_is_written(reader: Reader) -> None:
    assert [line.partition("#")[0].rstrip() for line in reader.lines] == [command for command, _check in LINES]
    for line, (_command, check) in zip(reader.lines, LINES):
        check(reader, reader.types(line))
