# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The keeper with an agent that does what the test tells it: it connects to the test and runs the lines it gets."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent import keeper as keeper_module

from .waiting import DEADLINE

AGENT = """
import array, json, os, signal, socket, sys

def notify(text, fds=()):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        address = os.environ["NOTIFY_SOCKET"]
        sender.connect("\\0" + address[1:])
        sender.sendmsg([text.encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else [])

def memfd(text):
    fd = os.memfd_create("test")
    os.write(fd, text.encode())
    return fd

def content(fd):
    return os.pread(fd, 100, 0).decode()

def child(status):
    "A child that waits for a byte and ends."
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write)
        control.close()
        os.read(read, 1)
        os._exit(status)
    os.close(read)
    return pid, write

names = os.environ["LISTEN_FDNAMES"].split(":")
fds = dict(enumerate(names, 3))
control = socket.socket(socket.AF_UNIX)
control.connect(sys.argv[1])
lines = control.makefile("rw")
while True:
    line = lines.readline()
    if not line:
        os._exit(9)
    try:
        answer = eval(line)
    except SyntaxError:
        exec(line)
        answer = None
    lines.write(json.dumps(answer) + "\\n")
    lines.flush()
"""


class Agent:
    """An agent as it connected. `tell` lets it run a line."""

    def __init__(self, control: socket.socket) -> None:
        control.settimeout(DEADLINE)
        self._control = control
        self._lines = control.makefile("rw")
        self.pid: int = self.tell("os.getpid()")

    def tell(self, line: str) -> Any:
        self.order(line)
        return json.loads(self._lines.readline())

    def order(self, line: str) -> None:
        """For a line after which it cannot answer."""
        self._lines.write(line + "\n")
        self._lines.flush()

    def has_ended(self) -> None:
        self._lines.read()  # to the end, which its death makes

    def close(self) -> None:
        self._lines.close()
        self._control.close()


class Kept:
    """A keeper in the background, with the agents that it starts."""

    def __init__(self, folder: Path, first: str = "", **environment: str) -> None:
        """`first`: code that is run before the keeper."""
        self.data_dir = folder / "data"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / "control"))
        self._listener.listen()
        self._listener.settimeout(DEADLINE)
        (folder / "agent.py").write_text(AGENT)
        self.agents: list[Agent] = []
        self.command = [sys.executable, "-I", "-S", str(folder / "agent.py"), str(folder / "control")]
        self.starter, self.ready = started(self.data_dir, self.command, first, **environment)

    def agent(self) -> Agent:
        """The next one that the keeper starts."""
        self.agents.append(Agent(self._listener.accept()[0]))
        return self.agents[-1]

    def ready_agent(self) -> Agent:
        agent = self.agent()
        agent.tell("notify('READY=1')")
        return agent

    @property
    def pid(self) -> int:
        return int((self.data_dir / "keeper.lock").read_text())

    def log(self) -> str:
        return (self.data_dir / "agent.log").read_text()

    def end(self) -> None:
        self._listener.close()
        os.close(self.ready)
        if locked(self.data_dir):
            watched = os.pidfd_open(self.pid)
            os.kill(self.pid, signal.SIGKILL)
            wait_for_end(watched)
        for agent in self.agents:
            agent.close()  # which ends it, if it lives


def started(
    data_dir: Path, command: list[str], first: str = "", **environment: str
) -> tuple[subprocess.Popen[bytes], int]:
    """A keeper that was started, and the reading end of its readiness pipe."""
    source = Path(keeper_module.__file__).parents[2]
    code = f"import sys; sys.path.insert(0, {str(source)!r}); from pm3.agent import keeper\n{first}\n"
    code += f"sys.exit(keeper.main({str(data_dir)!r}, {command!r}))"
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code],
        env={**os.environ, "PM3_READY_FD": str(write), **environment},
        pass_fds=[write],
        stderr=subprocess.PIPE,
    )
    os.close(write)
    return process, read


def all_of(fd: int) -> str:
    """What the pipe gives until everybody has closed it."""
    text = b""
    while True:
        assert select.select([fd], [], [], DEADLINE)[0]
        chunk = os.read(fd, 4096)
        if not chunk:
            return text.decode()
        text += chunk


def locked(data_dir: Path) -> bool:
    done = subprocess.run(["flock", "-n", str(data_dir / "keeper.lock"), "true"], check=False)
    return done.returncode != 0


def wait_for_end(pidfd: int) -> None:
    assert select.select([pidfd], [], [], DEADLINE)[0]
    os.close(pidfd)


def until(condition: Callable[[], bool]) -> None:
    """For what nothing tells us: asks again and again, up to a deadline."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    it = Kept(tmp_path)
    yield it
    it.end()


def start_time(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


# Starting


def test_it_goes_into_the_background_and_tells_readiness(kept: Kept) -> None:
    agent = kept.ready_agent()
    assert all_of(kept.ready) == "ready\n"
    assert kept.starter.wait(DEADLINE) == 0
    process = Path(f"/proc/{kept.pid}")
    assert os.getsid(kept.pid) == os.getpgid(kept.pid) != os.getsid(0)
    assert os.readlink(process / "cwd") == "/"
    assert os.readlink(process / "fd/0") == "/dev/null"
    assert os.readlink(process / "fd/2") == str(kept.data_dir / "agent.log")
    assert agent.tell("os.environ['PM3_DATA_DIR']") == str(kept.data_dir)
    assert agent.tell("os.environ.get('PM3_READY_FD')") is None
    assert agent.tell("os.environ['LISTEN_PID']") == str(agent.pid)
    assert agent.tell("sorted(map(int, os.listdir('/proc/self/fd')))") == [0, 1, 2, 3, 4, 5]  # ends, control, listdir


def test_it_says_why_the_agent_did_not_come_up(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('the store is from the future')"]
    process, ready = started(tmp_path / "data", command)
    text = all_of(ready)
    with (tmp_path / "data" / "keeper.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # who is told may try again at once
    assert text == "failed: the agent ended with status 1 before it was ready\nthe store is from the future"
    assert process.wait(DEADLINE) == 0
    os.close(ready)


def test_it_says_that_there_is_no_such_program(tmp_path: Path) -> None:
    _process, ready = started(tmp_path / "data", ["/nowhere/python"])
    assert "cannot start /nowhere/python: [Errno 2]" in all_of(ready)
    os.close(ready)


def test_a_second_keeper_says_who_is_there(kept: Kept) -> None:
    kept.ready_agent()
    process, ready = started(kept.data_dir, kept.command)
    message = f"another keeper (pid {kept.pid}) holds {kept.data_dir}/keeper.lock; this ends it and its agent, with all that runs:"
    message += f" PM3_DATA_DIR={kept.data_dir} pm3 kill\n"
    assert process.communicate(timeout=DEADLINE)[1].decode() == f"pm3: {message}"
    assert process.returncode == 1
    assert all_of(ready) == f"failed: {message}"
    os.close(ready)


def test_it_works_without_anybody_who_waits(tmp_path: Path) -> None:
    kept = Kept(tmp_path, PM3_READY_FD="77")
    kept.ready_agent().order("os.kill(os.getpid(), 9)")
    kept.ready_agent()
    kept.end()


def test_a_long_log_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/agent.log").write_bytes(b"x" * ((1 << 20) + 1))
    kept = Kept(tmp_path)
    kept.ready_agent().tell("os.write(2, b'hello\\n')")
    assert kept.log() == "hello\n"
    assert (kept.data_dir / "agent.log.1").stat().st_size == (1 << 20) + 1
    kept.end()


# Descriptors


def test_descriptors_outlive_the_agent(kept: Kept) -> None:
    agent = kept.ready_agent()
    agent.tell("notify('FDSTORE=1\\nFDNAME=a\\nFDPOLL=0', [memfd('a1'), memfd('a2'), memfd('a3')])")
    agent.tell("notify('FDSTORE=1\\nFDNAME=b\\nFDPOLL=0', [memfd('b1')])")
    for _turn in range(3):
        agent.order("os.kill(os.getpid(), 9)")
        agent = kept.ready_agent()
        assert agent.tell("fds") == {"3": "keeper-ends", "4": "a", "5": "a", "6": "a", "7": "b"}
        assert agent.tell("[content(fd) for fd in (4, 5, 6, 7)]") == ["a1", "a2", "a3", "b1"]
        assert agent.tell("os.environ['LISTEN_FDS']") == "5"
    agent.tell("notify('FDSTOREREMOVE=1\\nFDNAME=a')")
    agent.order("os.kill(os.getpid(), 9)")
    agent = kept.ready_agent()
    assert agent.tell("fds") == {"3": "keeper-ends", "4": "b"}
    assert agent.tell("content(4)") == "b1"


def test_the_last_words_of_an_agent_count(kept: Kept) -> None:
    agent = kept.ready_agent()
    agent.order("notify('FDSTORE=1\\nFDNAME=last', [memfd('words')]); os.kill(os.getpid(), 9)")
    assert kept.ready_agent().tell("content(4)") == "words"


def test_thousands_fit_under_a_usual_limit_of_descriptors(tmp_path: Path) -> None:
    """A soft limit of 1024 is what most hosts give; the agent's programs are to have it, but a thousand descriptors do not fit into it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 8192:
        pytest.skip("this machine allows too few descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        kept = Kept(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        agent = kept.ready_agent()
        agent.tell("shared = [memfd('x'), memfd('y'), memfd('z')]")
        agent.tell("[notify('FDSTORE=1\\nFDNAME=%d' % number, shared) for number in range(1000)]")
        agent.order("os.kill(os.getpid(), 9)")
        agent = kept.ready_agent()
        assert agent.tell("len(fds)") == 3001
        assert agent.tell("[content(fd) for fd in (3001, 3002, 3003)]") == ["x", "y", "z"]
        assert agent.tell("os.environ['PM3_OPEN_FILES']") == "1024"
    finally:
        kept.end()


# The kernel refuses it to nobody who is root, so here it is os.fork that does.
SCARCE = """
import os
begin, refusals = os.fork, [0, 1, 1]
def scarce():
    if refusals and refusals.pop(0):
        raise BlockingIOError(11, 'Resource temporarily unavailable')
    return begin()
"""


def test_without_room_for_another_process_it_tries_again(tmp_path: Path) -> None:
    kept = Kept(tmp_path, SCARCE + "keeper.os.fork = scarce")
    try:
        agent = kept.ready_agent()
        agent.tell("notify('FDSTORE=1\\nFDNAME=kept', [memfd('x')])")
        agent.order("os.kill(os.getpid(), 9)")
        agent = kept.ready_agent()
        assert agent.tell("content(4)") == "x"
        assert (
            kept.log().count("no agent can be started: Resource temporarily unavailable; it is started again in") == 2
        )
    finally:
        kept.end()


def test_names_that_would_make_the_agent_unstartable_are_refused(kept: Kept) -> None:
    agent = kept.ready_agent()
    agent.tell("one = memfd('x')")
    agent.tell("[notify('FDSTORE=1\\nFDNAME=' + 'n' * 200 + str(number), [one]) for number in range(1000)]")
    agent.tell("notify('FDSTORE=1\\nFDNAME=a:b', [one])")
    agent.order("os.kill(os.getpid(), 9)")
    agent = kept.ready_agent()
    assert 500 < agent.tell("len(fds)") < 600
    assert "too many names" in kept.log()
    assert "'a:b'" in kept.log()


def test_only_the_agent_itself_is_believed(kept: Kept) -> None:
    agent = kept.agent()
    address = "\0" + agent.tell("os.environ['NOTIFY_SOCKET']")[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        stranger.connect(address)
        stranger.send(b"READY=1")
        socket.send_fds(stranger, [b"FDSTORE=1\nFDNAME=trojan"], [0])
    agent.tell("notify('FDSTORE=1\\nFDNAME=mine', [memfd('x')])")
    agent.tell("read, write = os.pipe(); notify('BARRIER=1', [write]); os.close(write)")
    assert agent.tell("os.read(read, 1).decode()") == ""  # the keeper has read all of it
    assert not select.select([kept.ready], [], [], 0)[0]
    agent.tell("notify('READY=1')")
    agent.order("os.kill(os.getpid(), 9)")
    assert list(kept.ready_agent().tell("fds").values()) == ["keeper-ends", "mine"]


def test_no_descriptor_of_a_message_stays_behind(kept: Kept) -> None:
    agent = kept.ready_agent()

    def descriptors() -> int:
        """Those of the keeper when it has read all that it was told: it closes its copy of the pipe only then."""
        agent.tell("read, write = os.pipe()")
        agent.tell("notify('BARRIER=1', [write]); os.close(write)")
        assert agent.tell("os.read(read, 1).decode()") == ""
        return len(os.listdir(f"/proc/{kept.pid}/fd"))

    before = descriptors()
    agent.tell("[notify('FDSTORE=1\\nFDNAME=x', [read, read]) for turn in range(20)]")
    assert descriptors() == before + 40
    agent.tell("notify('FDSTOREREMOVE=1\\nFDNAME=x')")
    assert descriptors() == before


# Ends


def test_it_ends_with_an_agent_that_ends_well(kept: Kept) -> None:
    agent = kept.ready_agent()
    watched = os.pidfd_open(kept.pid)
    agent.order("os._exit(0)")
    wait_for_end(watched)
    assert not locked(kept.data_dir)


def test_an_agent_that_dies_at_once_is_started_less_and_less_often(kept: Kept) -> None:
    kept.ready_agent().order("os.kill(os.getpid(), 9)")
    kept.agent().order("os._exit(3)")
    kept.ready_agent().order("os._exit(3)")
    kept.agent()
    assert [line.split("pid ")[1].split(") ")[1] for line in kept.log().splitlines()] == [
        "was killed by signal 9; it is started again in 0.1 s",
        "ended with status 3; it is started again in 0.2 s",
        "ended with status 3; it is started again in 0.4 s",
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_an_orderly_stop_of_the_agent(kept: Kept, number: signal.Signals) -> None:
    agent = kept.ready_agent()
    agent.tell("signal.signal(signal.SIGTERM, lambda *_: (os.write(2, b'orderly'), os._exit(0)))")
    watched = os.pidfd_open(kept.pid)
    os.kill(kept.pid, number)
    wait_for_end(watched)
    agent.has_ended()
    assert kept.log() == "orderly"


def test_a_stop_waits_until_an_agent_can_do_it(kept: Kept) -> None:
    """Between two agents only a new one can stop what runs; and before it is ready the signal would just kill it."""
    kept.ready_agent().order("os._exit(3)")
    agent = kept.agent()
    watched = os.pidfd_open(kept.pid)
    os.kill(kept.pid, signal.SIGTERM)
    agent.tell("signal.signal(signal.SIGTERM, lambda *_: os._exit(0))")
    agent.order("notify('READY=1')")
    wait_for_end(watched)
    agent.has_ended()


def test_a_crash_within_a_stop_does_not_end_the_stop(kept: Kept) -> None:
    agent = kept.ready_agent()
    agent.tell("signal.signal(signal.SIGTERM, lambda *_: os._exit(11))")
    watched = os.pidfd_open(kept.pid)
    os.kill(kept.pid, signal.SIGTERM)
    agent.has_ended()
    agent = kept.agent()
    agent.tell("signal.signal(signal.SIGTERM, lambda *_: os._exit(0))")
    agent.order("notify('READY=1')")
    wait_for_end(watched)


def test_a_reload_is_handed_on(kept: Kept) -> None:
    agent = kept.ready_agent()
    agent.tell("read, write = os.pipe()")
    agent.tell("signal.signal(signal.SIGHUP, lambda *_: os.write(write, b'hup'))")
    os.kill(kept.pid, signal.SIGHUP)
    assert agent.tell("os.read(read, 3).decode()") == "hup"


def test_an_upgrade_in_place_stays_the_agent(kept: Kept) -> None:
    agent = kept.ready_agent()
    agent.tell("notify('FDSTORE=1\\nFDNAME=a', [memfd('a')])")
    agent.order("os.execv(sys.executable, [sys.executable, '-I', '-S', *sys.argv])")
    upgraded = kept.ready_agent()
    assert upgraded.pid == agent.pid
    upgraded.tell("notify('FDSTORE=1\\nFDNAME=b', [memfd('b')])")
    upgraded.order("os.kill(os.getpid(), 9)")
    assert list(kept.ready_agent().tell("fds").values()) == ["keeper-ends", "a", "b"]


# Orphans


def ends_of(agent: Agent) -> dict[tuple[int, int], int]:
    fd = os.open(f"/proc/{agent.pid}/fd/3", os.O_RDONLY)
    try:
        return keeper_module.ends(fd)
    finally:
        os.close(fd)


def test_how_orphans_end_is_known_to_the_next_agent(kept: Kept) -> None:
    agent = kept.ready_agent()
    zombie, write = agent.tell("child(7)")
    zombie_key = (zombie, start_time(zombie))
    watched = os.pidfd_open(zombie)
    agent.tell(f"os.write({write}, b'x')")
    wait_for_end(watched)  # ended, and its parent will never reap it
    first, write = agent.tell("child(5)")
    first_key = (first, start_time(first))
    second, _write = agent.tell("child(0)")
    second_key = (second, start_time(second))
    pipe = os.open(f"/proc/{agent.pid}/fd/{write}", os.O_WRONLY)
    agent.order("os.kill(os.getpid(), 9)")
    next_agent = kept.ready_agent()
    known = ends_of(next_agent)
    assert os.waitstatus_to_exitcode(known[zombie_key]) == 7
    assert first_key not in known
    # One that outlives its agent: the news comes to the agent that is there when it ends.
    watched = os.pidfd_open(first)
    os.write(pipe, b"x")
    os.close(pipe)
    wait_for_end(watched)
    until(lambda: not Path(f"/proc/{first}").exists())  # a zombie that the keeper has not reaped yet
    known = ends_of(next_agent)
    assert os.waitstatus_to_exitcode(known[first_key]) == 5
    assert os.waitstatus_to_exitcode(known[second_key]) == 0  # it read the end of the file when its agent died


def test_an_orphan_killed_by_a_signal_is_told_as_such(kept: Kept) -> None:
    agent = kept.ready_agent()
    pid, write = agent.tell("child(0)")
    key = (pid, start_time(pid))
    pipe = os.open(f"/proc/{agent.pid}/fd/{write}", os.O_WRONLY)  # so that it goes on
    agent.order("os.kill(os.getpid(), 9)")
    agent = kept.ready_agent()
    os.kill(pid, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{pid}").exists())
    os.close(pipe)
    assert os.WTERMSIG(ends_of(agent)[key]) == signal.SIGKILL


def test_the_newest_thousand_are_remembered(kept: Kept) -> None:
    agent = kept.ready_agent()
    agent.tell("pids = [os.posix_spawn('/bin/true', ['true'], {}) for number in range(1100)]")
    newest: int = agent.tell("pids[-1]")
    agent.order("os.kill(os.getpid(), 9)")
    agent = kept.ready_agent()
    until(lambda: len(ends_of(agent)) == 1024)
    until(lambda: not Path(f"/proc/{newest}").exists())
    assert newest in [pid for pid, _start in ends_of(agent)]
