"""A real agent for each test: its own data dir, its own processes, nothing left behind."""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib.util
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.wire.client import Client, ClientError

from .pumping import Room
from .waiting import DEADLINE, until

PACKAGE = Path(__file__).resolve().parents[3] / "plugins" / "module_utils" / "pm3"


def unpacked() -> Path:
    """The package as it lies on a host: with the libraries beside it that are packed with it."""
    folder = Path(tempfile.mkdtemp(prefix="pm3-agent-"))
    atexit.register(shutil.rmtree, folder)
    (folder / "pm3").symlink_to(PACKAGE)
    for library in ("cronsim", "tomli"):
        found = importlib.util.find_spec(library)
        if found is not None and found.submodule_search_locations:
            (folder / library).symlink_to(next(iter(found.submodule_search_locations)))
    return folder


COMMAND = [sys.executable, "-I", "-S", str(unpacked() / "pm3" / "__main__.py")]


def descriptors() -> int:
    """How many this process has. What an earlier test has left to be collected, with descriptors of its own, goes first."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Agent:
    """An agent under its keeper, as a person's command line would start it."""

    def __init__(self, folder: Path, data_dir: Path | None = None) -> None:
        self.folder = folder
        self.data_dir = data_dir or folder / "data"
        self.environment = {**os.environ, "PM3_DATA_DIR": str(self.data_dir)}
        self.client = Client(str(self.data_dir), timeout=DEADLINE)

    def pm3(self, *words: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """Types a command in the folder of the test."""
        done = subprocess.run(
            [*COMMAND, *words],
            cwd=self.folder,
            env={**self.environment, **environment},
            text=True,
            capture_output=True,
            timeout=60,
            check=False,
        )
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    def file(self, text: str, name: str = "pm3.toml") -> Path:
        path = self.folder / name
        path.write_text(text, "utf-8")
        return path

    def begin(self, *words: str) -> subprocess.Popen[str]:
        """Types a command and does not wait."""
        return subprocess.Popen(
            [*COMMAND, *words],
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def ask(self, kind: str, on_row: Callable[[dict[str, Any]], Any] | None = None, **fields: Any) -> dict[str, Any]:
        return self.client.request({"type": kind, **fields}, on_row)

    def apply(self, definitions: dict[str, Any], project: str = "shop", **fields: Any) -> dict[str, Any]:
        return self.ask("apply", project=project, definitions=definitions, base=str(self.folder), **fields)

    def instances(self) -> dict[str, dict[str, Any]]:
        """Everything that is shown of each instance, but for what changes by itself."""
        return {one.pop("name"): one | {"uptime": None} for one in self.ask("snapshot")["instances"]}

    def instance(self, name: str) -> dict[str, Any]:
        return self.instances()[name]

    def pids(self) -> dict[str, int]:
        return {name: one["pid"] for name, one in self.instances().items()}

    def under_way(self) -> list[str]:
        """The projects that are being changed, as another agent would find them."""
        with contextlib.closing(sqlite3.connect(f"file:{self.data_dir}/store.sqlite?mode=ro", uri=True)) as store:
            return [row[0] for row in store.execute("SELECT project FROM runs")]

    def pid(self) -> int:
        return int((self.data_dir / "pm3.pid").read_text())

    def log(self, name: str) -> str:
        return (self.data_dir / "logs" / f"{name}.log").read_text("utf-8")

    def crash(self) -> None:
        """SIGKILL; returns when the next agent answers."""
        before = self.pid()
        os.kill(before, signal.SIGKILL)
        until(lambda: self.answering_pid() not in (None, before), "another agent answers")

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """SIGSTOP while the block runs: all that happens in it is news of one moment."""
        pid = self.pid()
        os.kill(pid, signal.SIGSTOP)
        try:
            until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T", "it has stopped")
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def answering_pid(self) -> int | None:
        try:
            return int(self.ask("hello")["pid"])
        except Exception:
            return None

    def end(self) -> None:
        try:
            pids = [pid for pid in self.pids().values() if pid]
        except ClientError as error:
            if error.reason != "absent":
                raise
            return  # the test has ended it already
        agent = self.pid()
        self.pm3("kill")
        until(lambda: not alive(agent), "the agent ends")
        assert not [pid for pid in pids if alive(pid)]


def stack_of(pid: int) -> list[str]:
    """Where its stack lies: execve puts it elsewhere."""
    return [line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if line.endswith("[stack]")]


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    one = Agent(tmp_path)
    one.pm3("list")
    yield one
    one.end()


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    """A loop and its pumps, without an agent."""
    made = Room(tmp_path)
    yield made
    made.pumps.close()
    made.loop.close()
    assert not made.errors
