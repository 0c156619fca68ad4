"""One agent for each data dir: who comes second is told who is there, and what a crash has left behind is believed by nobody."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.wire import locks

from .conftest import COMMAND, Agent, alive
from .waiting import until


def keeper_of(agent: Agent) -> int:
    return int((agent.data_dir / "keeper.lock").read_text())


def killed(agent: Agent) -> None:
    """Agent and keeper at once, as a host would lose them that is short of memory."""
    keeper, pid = keeper_of(agent), agent.pid()
    os.kill(keeper, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    until(lambda: not alive(keeper) and not alive(pid), "they are gone")


def agents_of(data_dir: Path) -> list[int]:
    """Agents that serve it, by their environment; a child that has not yet executed its program is none."""
    wanted, found = f"PM3_DATA_DIR={data_dir}".encode(), []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
            if b"--daemon" in words and wanted in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                found.append(int(entry))
    return found


@pytest.fixture
def stranger() -> Iterator[int]:
    """A process that is nobody's business."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process.pid
        assert alive(process.pid), "somebody has ended it"
        process.kill()


def daemon(agent: Agent) -> subprocess.Popen[str]:
    """An agent without a keeper, as an init system would begin it, or somebody who does not know that there is one."""
    return subprocess.Popen([*COMMAND, "--daemon"], env=agent.environment, stderr=subprocess.PIPE, text=True)


def test_who_comes_second_is_told_who_is_there_and_ends(agent: Agent) -> None:
    agent.apply({"web": {"command": "sleep 1000"}})
    before, pid, keeper = agent.pids(), agent.pid(), keeper_of(agent)
    stop = f"PM3_DATA_DIR={agent.data_dir} pm3 kill"
    for word, status, said in (
        (
            "--keeper",
            1,
            f"another keeper (pid {keeper}) holds {agent.data_dir}/keeper.lock; this ends it and its agent, with all that runs: {stop}",
        ),
        (
            "--daemon",
            69,
            f"the daemon is already running for {agent.data_dir} (pid {pid}); this ends it, with all that it runs: {stop}",
        ),
    ):
        refused = subprocess.run(
            [*COMMAND, word], env=agent.environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert refused.stderr == f"pm3: {said}\n"
        assert refused.returncode == status
    assert (agent.pids(), agent.pid(), keeper_of(agent)) == (before, pid, keeper)
    assert subprocess.run(stop.replace(" pm3 ", f" {shlex.join(COMMAND)} "), shell=True, check=False).returncode == 0
    until(lambda: not alive(pid) and not alive(keeper) and not alive(before["web"]), "what it says ends all of it")


def test_a_keeper_that_somebody_types_says_what_became_of_it(agent: Agent) -> None:
    """In the foreground and in the background; here the lock of the keeper is free, and an agent without one is there."""
    killed(agent)
    with daemon(agent) as alone:
        until(lambda: agent.answering_pid() == alone.pid, "it answers")  # a command would begin one where none answers
        for words in (["--keeper"], ["--keeper", "--foreground"]):
            refused = subprocess.run(
                [*COMMAND, *words], env=agent.environment, capture_output=True, text=True, timeout=60, check=False
            )
            assert refused.returncode == 1
            assert "failed: the agent ended with status 69 before it was ready" in refused.stderr
            assert f"the daemon is already running for {agent.data_dir} (pid {alone.pid})" in refused.stderr
        agent.pm3("kill")
        alone.communicate(timeout=60)
    begun = subprocess.run(
        [*COMMAND, "--keeper"], env=agent.environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (begun.returncode, begun.stderr) == (0, "")
    assert agent.client.request({"type": "hello"})["pid"] == agent.pid(), "and now it answers"


def test_who_comes_second_waits_for_one_that_ends(agent: Agent) -> None:
    """One that answers nobody any more may be ending, as this one, and then its place is free."""
    stubborn = "sh -c 'trap \"\" TERM; echo ready; while read -r line; do :; done; exec sleep 1000'"
    agent.apply({"web": {"command": stubborn, "kill_timeout": "60s"}})
    web, pid = agent.pids()["web"], agent.pid()
    until(lambda: "ready" in agent.log("web-out"), "it does not heed SIGTERM")
    os.kill(pid, signal.SIGTERM)
    until(lambda: not (agent.data_dir / "pm3.sock").exists(), "it answers nobody any more")
    second = daemon(agent)
    try:
        assert second.stderr
        lock = agent.data_dir / "lock"
        assert second.stderr.readline() == (
            f"pm3: an agent (pid {pid}) that does not answer holds {lock}; waiting for it to end\n"
        )
        assert alive(pid)
        os.kill(web, signal.SIGKILL)
        until(lambda: agents_of(agent.data_dir) == [second.pid], "it has taken the place")
        until((agent.data_dir / "pm3.sock").exists, "it answers")
        web = until(lambda: agent.pids()["web"], "it goes on with the work")
        assert agent.pid() == second.pid
        agent.pm3("kill")
        os.kill(web, signal.SIGKILL)
        assert second.wait(timeout=60) == 0
    finally:
        second.kill()
        second.communicate()


def test_a_lock_that_a_crash_has_left_is_free(agent: Agent) -> None:
    """SIGKILL of the first and its keeper: the second is there at once, and goes on with what runs."""
    agent.apply({"web": {"command": "sleep 1000"}})
    before = agent.pids()
    killed(agent)
    second = daemon(agent)
    try:
        until(lambda: (agent.data_dir / "pm3.pid").read_text() == str(second.pid), "it has taken the place")
        assert agent.pids() == before
        agent.pm3("kill")
        assert second.wait(timeout=60) == 0
        assert second.stderr
        assert "holds" not in second.stderr.read()
    finally:
        second.kill()
        second.communicate()


@pytest.mark.parametrize("word", ["--daemon", "--keeper"])
def test_of_two_at_the_same_moment_one_wins_and_the_other_says_so(agent: Agent, word: str) -> None:
    """Without the lock of `pm3` commands between them, many times; the files name a pid of before."""
    for _turn in range(6):
        agent.pm3("kill")
        until(lambda: not agents_of(agent.data_dir), "nobody is there")
        command = [*COMMAND, word, *(["--foreground"] if word == "--keeper" else [])]
        both = [
            subprocess.Popen(command, env=agent.environment, stderr=subprocess.PIPE, text=True) for _one in range(2)
        ]
        try:
            until(lambda some=both: any(one.poll() is not None for one in some), "one gives up")
            loser = next(one for one in both if one.poll() is not None)
            winner = next(one for one in both if one is not loser)
            said = loser.communicate()[1]
            assert loser.returncode == (69 if word == "--daemon" else 1)
            if word == "--keeper":
                assert f"another keeper (pid {winner.pid})" in said or "another keeper (pid not yet known)" in said
            else:
                assert f"is already running for {agent.data_dir} (pid {winner.pid})" in said
            until((agent.data_dir / "pm3.sock").exists, "the other answers")
            assert winner.poll() is None
            assert len(agents_of(agent.data_dir)) == 1
        finally:
            agent.pm3("kill")
            for one in both:
                with contextlib.suppress(ProcessLookupError):
                    one.wait(timeout=60)
                if one.stderr and not one.stderr.closed:
                    one.stderr.close()
    agent.pm3("list")


def test_the_pid_of_a_lock_is_believed_of_its_holder_only(agent: Agent, stranger: int) -> None:
    """Between the lock and the pid in it there is a moment in which that is one of long ago."""
    lock = os.open(agent.data_dir / "keeper.lock", os.O_RDWR)
    try:
        keeper = keeper_of(agent)
        assert locks.holder(lock) == keeper
        os.ftruncate(lock, 0)
        os.pwrite(lock, b"%d\n" % stranger, 0)
        assert locks.holder(lock) is None
        second = subprocess.run(
            [*COMMAND, "--keeper"], env=agent.environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert f"another keeper (pid not yet known) holds {agent.data_dir}/keeper.lock" in second.stderr
        os.ftruncate(lock, 0)
        os.pwrite(lock, b"%d\n" % keeper, 0)
    finally:
        os.close(lock)


def test_what_a_crash_leaves_behind_does_not_keep_the_next_one_away(agent: Agent, stranger: int) -> None:
    """Its socket, its pid files and its locks; a stranger has got its pid by now, and lives on."""
    agent.apply({"web": {"command": "sleep 1000"}})
    killed(agent)
    for name in ("pm3.pid", "lock", "keeper.lock", "start.lock"):
        (agent.data_dir / name).write_text(str(stranger))
    assert (agent.data_dir / "pm3.sock").is_socket()
    agent.pm3("list")
    assert agent.pid() not in (stranger, None)
    assert keeper_of(agent) != stranger
    until(lambda: agent.instance("web")["status"] == "online", "what is wanted runs")
    agent.pm3("stop")


def test_a_pid_is_believed_only_with_its_start_time(agent: Agent, stranger: int) -> None:
    agent.apply({"web": {"command": "sleep 1000"}})
    web = agent.pids()["web"]
    killed(agent)
    os.kill(web, signal.SIGKILL)
    with contextlib.closing(sqlite3.connect(agent.data_dir / "store.sqlite", isolation_level=None)) as store:
        # The stranger is the older one, or as old by the clock of the kernel, which ticks a hundred times a second.
        store.execute("UPDATE instances SET pid = ?, start_time = start_time + 1", [stranger])
    agent.pm3("list")
    until(lambda: agent.instance("web")["status"] == "online", "it is started anew")
    assert agent.pids()["web"] not in (web, stranger)
    agent.pm3("stop")


def test_a_pid_of_before_a_reboot_is_not_believed(agent: Agent, stranger: int) -> None:
    agent.apply({"web": {"command": "sleep 1000"}})
    web = agent.pids()["web"]
    killed(agent)
    os.kill(web, signal.SIGKILL)
    begun = int(Path(f"/proc/{stranger}/stat").read_text().rpartition(")")[2].split()[19])
    with contextlib.closing(sqlite3.connect(agent.data_dir / "store.sqlite", isolation_level=None)) as store:
        store.execute("UPDATE instances SET pid = ?, start_time = ?, boot = 'another'", [stranger, begun])
        store.execute("UPDATE meta SET value = 'another' WHERE key = 'boot'")
    agent.pm3("list")
    until(lambda: agent.instance("web")["status"] == "online", "it is started anew")
    assert agent.pids()["web"] not in (web, stranger)
    agent.pm3("stop")


def test_a_socket_of_somebody_else_is_not_an_agent(agent: Agent) -> None:
    """One that takes connections and says nothing of pm3: the command says so, and nothing is taken for an agent."""
    killed(agent)
    (agent.data_dir / "pm3.sock").unlink()
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(agent.data_dir / "pm3.sock"))
    agent.pm3("list")
    assert agents_of(agent.data_dir) == [agent.pid()]


def test_many_at_once_begin_one(tmp_path: Path) -> None:
    for turn in range(5):
        folder = tmp_path / str(turn)
        folder.mkdir()
        agent = Agent(folder)
        try:
            running = [agent.begin("list") for _one in range(6)]
            for one in running:
                output, _nothing = one.communicate(timeout=60)
                assert one.returncode == 0, output
            assert agents_of(agent.data_dir) == [agent.pid()]
        finally:
            agent.end()
