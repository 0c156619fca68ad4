"""Nothing that an instance ever started outlives its stop, without cgroups: whatever it did to its session, parent and environment.

The same programs in cells: tests/fleet/test_survival.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import select
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent import spawn
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.descendants import Descendants
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.loop import Loop

from .conftest import Agent, alive
from .waiting import until

SLEEP = "exec sleep 1000"

# Scripts in which NAP is what must not be left.
SCRIPTS = {
    "double fork": f"(NAP & ) & {SLEEP}",
    "session of its own": f"setsid -f NAP; {SLEEP}",
    "session of its own, twice": f"setsid -f setsid -f NAP; {SLEEP}",
    "nohup": f"nohup NAP >/dev/null 2>&1 & {SLEEP}",
    "jobs with groups of their own": f"set -m; NAP & NAP & {SLEEP}",
    "ignores SIGTERM": f"(trap '' TERM; NAP; NAP) & {SLEEP}",
    "no environment, but the output": f"env -i setsid -f NAP; {SLEEP}",
    "no environment and no output, but the parent": f"env -i setsid sh -c 'NAP >/dev/null 2>&1; :' >/dev/null 2>&1 & {SLEEP}",
    "no output, but the environment": f"setsid -f NAP >/dev/null 2>&1 </dev/null; {SLEEP}",
}
SERVER = """
import os, sys, time
for number in range(8):
    if os.fork() == 0:
        os.setsid()
        os.execvp(sys.argv[1], sys.argv[1:])
time.sleep(1000)
"""


class Zoo:
    """An instance of each script under one agent, and what it has left behind that still runs."""

    def __init__(self, agent: Agent, scripts: dict[str, str]) -> None:
        self.agent = agent
        number = random.randrange(10**7)
        self.naps = {name: f"sleep 7{number:07}{place:02}" for place, name in enumerate(scripts)}
        self.names = {name: f"p{place}" for place, name in enumerate(scripts)}
        definitions = {}
        for name, script in scripts.items():
            file = agent.folder / f"{self.names[name]}.sh"
            file.write_text(script.replace("NAP", self.naps[name]))
            definitions[self.names[name]] = {"command": f"sh {file}", "cwd": str(agent.folder), "kill_timeout": 200}
        made = agent.apply(definitions, project="zoo")
        assert made["ok"], made
        until(lambda: len(self.left()) == len(scripts), "all have begun what they leave behind")

    def left(self) -> dict[str, list[int]]:
        """By the name of the script: the pids of its naps. Nothing but their command lines tells them."""
        wanted = {nap.replace(" ", "\0").encode() + b"\0": name for name, nap in self.naps.items()}
        found: dict[str, list[int]] = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                name = wanted.get(Path(f"/proc/{pid}/cmdline").read_bytes())
                if name is not None and alive(int(pid)):
                    found.setdefault(name, []).append(int(pid))
        return found

    def stop(self) -> dict[str, list[int]]:
        assert self.agent.ask("stop", names=list(self.names.values()))["type"] == "success"
        return self.left()


def test_a_stop_leaves_nothing(agent: Agent) -> None:
    zoo = Zoo(agent, SCRIPTS)
    assert zoo.stop() == {}


def test_a_stop_by_the_next_agent_leaves_nothing(agent: Agent) -> None:
    zoo = Zoo(agent, SCRIPTS)
    agent.crash()
    assert zoo.stop() == {}


def test_what_the_main_process_leaves_at_its_end_is_ended_before_a_new_start(agent: Agent) -> None:
    zoo = Zoo(agent, SCRIPTS)
    before, left = agent.pids(), zoo.left()  # a look at all that there is, since it shows their memory
    for pid in before.values():
        os.kill(pid, 9)
    until(lambda: all(pid not in (None, before[name]) for name, pid in agent.pids().items()), "all are started again")
    ended = {pid for pids in left.values() for pid in pids}
    assert not ended & {pid for pids in zoo.left().values() for pid in pids}
    assert zoo.stop() == {}


@pytest.mark.parametrize("crashes", [False, True])
def test_what_checks_and_stop_commands_begin(agent: Agent, crashes: bool) -> None:
    zoo = Zoo(agent, {"one": "setsid -f NAP; exec sleep 1000"})
    (nap,) = zoo.naps.values()
    begins = f"{nap} >/dev/null 2>&1 &"
    checked = {
        "command": "sleep 1000",
        "liveness_check": f"exec://sh -c '{begins} exit 0'",
        "liveness_interval": 1,
        "stop_command": f"{begins} kill $PM3_PID",
    }
    assert agent.apply({"checked": checked})["ok"]
    until(lambda: len(zoo.left()["one"]) > 1, "a check has left something behind")
    if crashes:
        agent.crash()
    assert agent.ask("stop", names=["checked"])["type"] == "success"
    assert len(zoo.left()["one"]) == 1
    assert zoo.stop() == {}


def test_a_preforking_server(agent: Agent) -> None:
    (agent.folder / "server.py").write_text(SERVER)
    zoo = Zoo(agent, {"server": f"exec {sys.executable} server.py NAP"})
    until(lambda: len(zoo.left()["server"]) == 8, "its children are there")
    assert zoo.stop() == {}


def test_who_was_seen_once_is_known_without_any_trace(agent: Agent) -> None:
    """Its parent ends after somebody has looked; nothing else ever said whose it is."""
    zoo = Zoo(agent, {"one": f"env -i setsid sh -c 'NAP & wait' >/dev/null 2>&1 & {SLEEP}"})
    agent.instances()  # shows the memory of all processes
    (pid,) = zoo.left()["one"]
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(parent, 9)
    until(lambda: not alive(parent), "its parent ends")
    assert zoo.left()
    assert zoo.stop() == {}


def test_who_was_begun_is_known_and_whoever_keeps_its_descriptors_is_not_taken_for_it(tmp_path: Path) -> None:
    """Neither an environment nor an output shows anything of the one; the agent itself has what shows that of others."""
    loop = Loop(pytest.fail)
    os.mkfifo(tmp_path / "7.out")
    with (
        open(tmp_path / "7.out", "r+b", buffering=0),
        subprocess.Popen(
            ["/bin/sh", "-c", "sleep 1000 & echo $!; wait"], env={}, start_new_session=True, stdout=subprocess.PIPE
        ) as begun,
    ):
        assert begun.stdout is not None
        child = int(begun.stdout.readline())
        before, after = (Descendants(loop, str(tmp_path)) for _one in range(2))
        unknown = before.look().spawned
        pidfd = os.pidfd_open(begun.pid)
        after.begun("7", spawn.Process(begun.pid, spawn.start_time(begun.pid) or 0, pidfd))
        found = after.look().spawned
        os.close(pidfd)
        os.killpg(begun.pid, signal.SIGKILL)
    assert unknown == {}
    loop.close()
    assert {name: set(pids) for name, pids in found.items()} == {"7": {begun.pid, child}}


def test_the_processes_of_another_agent_are_not_touched(agent: Agent, tmp_path: Path) -> None:
    """Spawns of two agents have the same numbers."""
    (tmp_path / "second").mkdir()
    second = Agent(tmp_path / "second")
    second.pm3("list")
    try:
        ours, theirs = Zoo(agent, SCRIPTS), Zoo(second, SCRIPTS)
        assert ours.stop() == {}
        assert theirs.left().keys() == SCRIPTS.keys()
    finally:
        second.end()


# What the kernel does not end


class Unanswered:
    """A file system that never answers: who asks it for a file sleeps uninterruptibly, until it is gone. See fuse(4)."""

    INIT = 26

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        libc = ctypes.CDLL(None, use_errno=True)
        options = f"fd={self._fd},rootmode=40000,user_id=0,group_id=0".encode()
        if libc.mount(b"unanswered", os.fsencode(folder), b"fuse.unanswered", 0, options):
            os.close(self._fd)
            raise OSError(ctypes.get_errno(), "mount")
        self._libc = libc
        self._over, self._end = os.pipe()
        self.asked = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while self._over not in select.select([self._fd, self._over], [], [])[0]:
            request = os.read(self._fd, 1 << 17)
            _length, kind, unique, _node, _uid, _gid, pid, _padding = struct.unpack_from("IIQQIIII", request)
            if kind == self.INIT:
                answer = struct.pack("IIIIHHIIHHI28x", 7, 31, 4096, 0, 12, 9, 4096, 1, 1, 0, 0)
                os.write(self._fd, struct.pack("IiQ", 16 + len(answer), 0, unique) + answer)
            elif pid != os.getpid():
                self.asked.set()

    def end(self) -> None:
        """Who waits for it gets an error at last."""
        if self._thread.is_alive():
            os.write(self._end, b"x")
            self._thread.join()
            for fd in (self._fd, self._over, self._end):
                os.close(fd)
            self._libc.umount2(os.fsencode(self.folder), 2)


@pytest.fixture
def unanswered(tmp_path: Path) -> Iterator[Unanswered]:
    folder = tmp_path / "unanswered"
    folder.mkdir()
    try:
        one = Unanswered(folder)
    except OSError as error:
        pytest.skip(f"no file system of ours can be mounted here: {error}")
    yield one
    one.end()


def test_one_in_uninterruptible_sleep_is_not_called_stopped(agent: Agent, unanswered: Unanswered) -> None:
    definition = {"command": f"cat {unanswered.folder}/file", "kill_timeout": 100}
    agent.ask("apply", project="shop", definitions={"web": definition}, base=str(agent.folder))
    until(unanswered.asked.is_set, "it asks for the file")
    answer = agent.ask("stop", names=["web"])
    assert answer["type"] == "error"
    assert "does not react to SIGKILL" in answer["message"]
    shown = agent.instance("web")
    assert shown["pid"]
    assert (shown["status"], shown["phase"]) == ("online", "killing")
    unanswered.end()
    until(lambda: agent.instance("web")["status"] == "stopped", "it ends when the kernel lets it")
