"""Upgrades in place of an installed agent: a version that can do the work takes over, any other one leaves everything as it was.

A version is a copy of the package under a name of 16 hexadecimal digits, as the module `agent` unpacks it; the ones that cannot do the
work are copies in which one file is not as it should be.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.wire.client import ClientError

from . import crash_build
from .conftest import PACKAGE, Agent, unpacked
from .test_agent import stack_of
from .test_crash_points import LINE, WRITER
from .waiting import until

OLD, NEW = "0" * 16, "1" * 16
MAIN, STORE, SCHEMAS = "agent/main.py", "agent/store.py", "agent/schemas.py"


class Installed(Agent):
    """An agent under its keeper, from a folder of versions."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.library = folder / "lib"
        self.library.mkdir()
        self.log = self.data_dir / "logs" / "web-out.log"
        (folder / "run.sh").write_text(WRITER)

    def begin_with_something(self) -> None:
        """An instance that writes numbered lines, one that was stopped, and one that holds still and was restarted once."""
        writer = {"command": f"sh {self.folder}/run.sh"}
        self.apply({"web": writer, "idle": {"command": "sleep 1000"}, "rest": {"command": "sleep 1001"}})
        self.ask("stop", names=["rest"])
        self.ask("restart", names=["idle"])

    def install(self, identity: str) -> Path:
        """A version, with the libraries that are packed with it; gives the folder of its package."""
        package = self.library / identity / "pm3"
        shutil.copytree(unpacked(), package.parent, symlinks=True)
        package.unlink()
        shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
        return package

    def link(self, name: str, identity: str) -> None:
        (self.library / name).symlink_to(identity)

    def linked(self, name: str) -> str | None:
        path = self.library / name
        return os.readlink(path) if path.is_symlink() else None

    def up(self, **environment: str) -> None:
        command = [sys.executable, "-I", "-S", str(self.library / "current" / "pm3" / "__main__.py"), "--keeper"]
        subprocess.run(command, env={**self.environment, **environment}, check=True, timeout=60)
        until(self.answering_pid, "it answers")

    def try_out(self, identity: str = NEW) -> dict[str, Any]:
        """Asks for the version; gives what the agent says of that when it is over."""
        count = self.told()["count"] or 0
        self.link("next", identity)
        os.kill(self.pid(), signal.SIGHUP)
        return until(lambda: (told := self.told()) and (told["count"] or 0) > count and told, "the upgrade is over")

    def told(self) -> dict[str, Any]:
        return dict(self.hello().get("upgrade", {}))

    def hello(self) -> dict[str, Any]:
        try:
            return self.ask("hello")
        except (ClientError, OSError):
            return {}  # between two agents


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Installed]:
    """Version OLD runs, with something to do."""
    one = Installed(tmp_path)
    one.install(OLD)
    one.link("current", OLD)
    one.up(PM3_UPGRADE_SECONDS="8")
    one.begin_with_something()
    yield one
    one.end()


def edit(package: Path, name: str, old: str, new: str) -> None:
    path = package / name
    text = path.read_text()
    assert text.count(old) == 1, f"{name} is not what this test takes it for"
    path.write_text(text.replace(old, new))


def lines_are_whole(agent: Installed) -> None:
    """Each line of the writer's is there, once and in order (I7)."""
    agent.ask("stop", names=["web"])
    found = [LINE.fullmatch(line) for line in agent.log.read_bytes().splitlines()]
    assert all(found)
    numbers = [int(one.group(3)) for one in found if one and not one.group(2)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert found[-1] is not None
    assert found[-1].group(2), "its last words are there"


def is_as_before(agent: Installed, before: dict[str, Any]) -> None:
    assert agent.pids() == before
    assert agent.instance("rest")["status"] == "stopped"
    assert agent.instance("idle")["total_restarts"] == 1
    assert agent.hello()["identity"] == OLD
    assert agent.linked("current") == OLD
    assert agent.linked("next") is None
    assert not list(agent.data_dir.glob("store.sqlite.before*"))
    lines_are_whole(agent)


def test_a_version_that_can_do_the_work_takes_over(installed: Installed) -> None:
    installed.install(NEW)
    before, pid = installed.pids(), installed.pid()
    told = installed.try_out()
    assert (told["result"], told["to"], told["why"]) == ("done", NEW, None)
    assert told["gap"] > 0
    assert (installed.hello()["identity"], installed.pid(), installed.pids()) == (NEW, pid, before)
    assert (installed.linked("current"), installed.linked("next")) == (NEW, None)
    assert "is done, in which it answered nobody for " in installed.pm3("doctor", check=False).stdout
    assert installed.instance("idle")["total_restarts"] == 1
    installed.crash()
    assert installed.hello()["identity"] == NEW, "it is the one that is started"
    assert installed.pids() == before
    # And back, which is an upgrade like any other.
    assert installed.try_out(OLD)["result"] == "done"
    is_as_before(installed, before)


def broken_at_import(package: Path) -> None:
    edit(package, MAIN, "class Agent:\n", "raise ImportError('no such thing')\n\n\nclass Agent:\n")


def ends_at_once(package: Path) -> None:
    edit(
        package, MAIN, "    def run(self) -> int:\n", "    def run(self) -> int:\n        sys.exit('it is a bad day')\n"
    )


def hangs(package: Path) -> None:
    edit(package, MAIN, "    def run(self) -> int:\n", "    def run(self) -> int:\n        signal.pause()\n")


def hangs_when_it_answers(package: Path) -> None:
    edit(package, MAIN, '        self._manager.tell("READY=1")\n', "        signal.pause()\n")


def dies_in_the_midst(package: Path) -> None:
    old = '        reached("agent.restored")\n'
    edit(package, MAIN, old, f"{old}        diagnose('it was me')\n        os.kill(os.getpid(), signal.SIGKILL)\n")


def changes_the_store_and_dies(package: Path) -> None:
    next_schema(package)
    dies_in_the_midst(package)


def next_schema(package: Path) -> None:
    """A version of the future: its store has one more schema, and a way back from it."""
    edit(package, SCHEMAS, "SCHEMA = 2\n", "SCHEMA = 3\n")
    edit(package, SCHEMAS, "_BACK = {\n", '_BACK = {\n    2: "DROP TABLE wishes;",\n')
    edit(package, SCHEMAS, "LOST = {", 'LOST = {2: "wishes are forgotten", ')
    path = package / SCHEMAS
    path.write_text(re.sub(r'""",\n\)\n', '""",\n"CREATE TABLE wishes (name TEXT);",\n)\n', path.read_text(), count=1))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (broken_at_import, r"(?s)it ended before it was ready.*ImportError: no such thing"),
        (ends_at_once, r"(?s)it ended before it was ready.*it is a bad day"),
        (hangs, r"it was not ready in 8 s"),
        (hangs_when_it_answers, r"it was not ready in 8 s"),
        (dies_in_the_midst, r"(?s)it ended before it was ready.*it was me"),
        (changes_the_store_and_dies, r"(?s)it ended before it was ready.*it was me"),
    ],
)
def test_a_version_that_does_not_come_up_is_replaced_by_the_one_before(
    installed: Installed, spoil: Callable[[Path], None], why: str
) -> None:
    spoil(installed.install(NEW))
    before = installed.pids()
    told = installed.try_out()
    assert (told["result"], told["to"]) == ("failed", NEW)
    assert re.match(why, told["why"]), told["why"]
    is_as_before(installed, before)


def cannot_be_run(package: Path) -> None:
    (package / "__main__.py").write_text("raise SyntaxError('not for this Python')\n")


def cannot_read_a_definition(package: Path) -> None:
    edit(package, STORE, "    if definition is None:\n", "    if True:\n")


def cannot_read_the_schema(package: Path) -> None:
    """An older version, for which the store can be brought to nothing that it reads."""
    edit(package, SCHEMAS, "SCHEMA = 2\n", "SCHEMA = -7\n")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (cannot_be_run, r"(?s)it does not tell whether it can go on with what runs.*not for this Python"),
        (cannot_read_a_definition, r"the store holds a definition that this agent cannot read"),
        (cannot_read_the_schema, r".* has schema 2, this agent reads -7"),
    ],
)
def test_a_version_that_cannot_go_on_with_what_is_there_is_refused(
    installed: Installed, spoil: Callable[[Path], None], why: str
) -> None:
    spoil(installed.install(NEW))
    before, stack = installed.pids(), stack_of(installed.pid())
    told = installed.try_out()
    assert (told["result"], told["to"], told["gap"]) == ("refused", NEW, None)
    assert re.match(why, told["why"]), told["why"]
    assert stack_of(installed.pid()) == stack, "it is the same program, not one that came back"
    assert "was refused" in installed.pm3("doctor", check=False).stdout
    is_as_before(installed, before)


def test_to_a_newer_state_format_and_back(installed: Installed) -> None:
    next_schema(installed.install(NEW))
    before = installed.pids()
    assert installed.ask("hold", names=["idle"], reason="to see")["type"] == "success"
    assert installed.try_out()["result"] == "done"
    assert installed.pids() == before
    assert installed.try_out(OLD)["result"] == "done"
    assert "wishes are forgotten" in (installed.data_dir / "agent.log").read_text()
    assert installed.instance("idle")["held"].endswith("to see"), "what both know is kept"
    is_as_before(installed, before)


def test_the_way_back_may_be_interrupted(tmp_path: Path) -> None:
    one = Installed(tmp_path)
    package = one.install(OLD)
    shutil.copyfile(crash_build.__file__, package / "agent" / "points.py")
    broken_at_import(one.install(NEW))
    one.link("current", OLD)
    one.up()
    try:
        one.begin_with_something()
        before = one.pids()
        points = ["agent.begun", "agent.restored", "agent.ready"]
        (one.data_dir / crash_build.TOLD).write_text(",".join(points))
        told = one.try_out()
        assert (one.data_dir / crash_build.DONE).read_text().split() == points
        assert (told["result"], told["to"]) == ("failed", NEW)
        is_as_before(one, before)
    finally:
        one.end()


def test_a_child_that_ends_during_the_exec_is_not_lost(installed: Installed) -> None:
    """It ends while nobody is there to see it, and its exit code is known all the same."""
    gate = installed.folder / "gate"
    os.mkfifo(gate)
    package = installed.install(NEW)
    # The new version lets it go, waits until it is a zombie, and only then looks around.
    wait = (
        f"        open({str(gate)!r}, 'w').close()\n        import time\n"
        f"        while ') Z' not in open(f'/proc/{{open({str(installed.folder / 'pid')!r}).read().strip()}}/stat').read():\n"
        "            time.sleep(0.01)\n"
    )
    edit(package, MAIN, "        self._started = time.monotonic()\n", f"{wait}        self._started = 0.0\n")
    command = f"sh -c 'echo $$ > {installed.folder}/pid; read line < {gate}; exit 7'"
    installed.apply({"job": {"command": command, "restart": "never"}}, project="jobs")
    until(lambda: (installed.folder / "pid").exists() and installed.instance("job")["status"] == "online", "it waits")
    assert installed.try_out()["result"] == "done"
    until(lambda: installed.instance("job")["status"] == "errored", "its end is known")
    assert installed.instance("job")["last_exit"]["code"] == 7
