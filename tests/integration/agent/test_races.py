"""What must hold when two things happen at once: crashes between two instructions, changes that meet, a disk that is full."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from .conftest import Agent, alive, stack_of
from .waiting import until

SLEEP = {"command": "sleep 1000", "min_uptime": 50}
STUBBORN = {"command": "sh -c 'trap \"\" TERM; while :; do sleep 1; done'", "min_uptime": 50}


def processes_of(agent: Agent, name: str) -> list[int]:
    """The live processes that this agent started as `name`, with all that they started themselves."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and alive(int(entry)):
            try:
                variables = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if f"PM3_NAME={name}".encode() in variables and f"PM3_TEST={agent.folder}".encode() in variables:
                found.append(int(entry))
    return found


def mine(agent: Agent, table: dict[str, Any]) -> dict[str, Any]:
    """A definition whose processes `processes_of` can tell from those of any other agent."""
    return {**table, "env": {**table.get("env", {}), "PM3_TEST": str(agent.folder)}}


def keeper_of(agent: Agent) -> int:
    return int(Path(f"/proc/{agent.pid()}/stat").read_text().rpartition(")")[2].split()[1])


def in_background(ask: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """Begins a request; what is given waits for its answer."""
    answers: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: answers.append(ask()))
    thread.start()

    def answer() -> dict[str, Any]:
        thread.join()
        return answers[0]

    return answer


@contextmanager
def without_an_agent(agent: Agent) -> Iterator[None]:
    """The agent is killed; its keeper starts another one afterwards."""
    keeper, before = keeper_of(agent), agent.pid()
    os.kill(keeper, signal.SIGSTOP)
    os.kill(before, signal.SIGKILL)
    until(lambda: not alive(before), "the agent is dead")
    try:
        yield
    finally:
        os.kill(keeper, signal.SIGCONT)
    until(lambda: agent.answering_pid() not in (None, before), "another agent answers")


@pytest.fixture
def gate(agent: Agent) -> Path:
    path = agent.folder / "gate"
    os.mkfifo(path)
    return path


# Crashes


def crash_in_the_middle_of_spawning(agent: Agent, name: str, count: int) -> None:
    """The keeper stands still and its queue fills, so the agent stands still after some spawn, and is killed there."""
    keeper, before = keeper_of(agent), agent.pid()
    os.kill(keeper, signal.SIGSTOP)
    try:
        agent.apply({name: mine(agent, {**SLEEP, "instances": count})}, wait=False)
        until(lambda: "unix_dgram" in wchan(before) or "sock_alloc" in wchan(before), "the agent stands still")
        until(lambda: any(processes_of(agent, f"{name}:{one}") for one in range(count)), "something was spawned")
        os.kill(before, signal.SIGKILL)
        until(lambda: not alive(before), "the agent is dead")
    finally:
        os.kill(keeper, signal.SIGCONT)
    until(lambda: agent.answering_pid() not in (None, before), "another agent answers")


def wchan(pid: int) -> str:
    return Path(f"/proc/{pid}/stack").read_text()


def queue_length() -> int:
    return int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())


@pytest.mark.skipif(os.getuid() != 0, reason="only root may see where a process stands still")
def test_a_crash_between_a_spawn_and_its_record_leaves_no_second_process(agent: Agent) -> None:
    count = queue_length()
    crash_in_the_middle_of_spawning(agent, "web", count)
    names = [f"web:{one}" for one in range(count)]
    until(lambda: {one["status"] for one in agent.instances().values()} == {"online"}, "all are there")
    assert {name: processes_of(agent, name) for name in names} == {name: [agent.pids()[name]] for name in names}
    kept = descriptors_kept(agent)
    agent.apply({}, state="absent")
    until(lambda: not [name for name in descriptors_kept(agent) if "fifo" in name], f"nothing is kept of them: {kept}")
    assert os.listdir(agent.data_dir / "run") == []


def descriptors_kept(agent: Agent) -> list[str]:
    """What the keeper holds of instances: pipes, and pidfds."""
    folder = Path(f"/proc/{keeper_of(agent)}/fd")
    links = [os.readlink(entry) for entry in folder.iterdir()]
    return ["fifo " + link for link in links if "/run/" in link] + [one for one in links if "pidfd" in one]


@pytest.mark.skipif(os.getuid() != 0, reason="only root may see where a process stands still")
def test_strangers_are_looked_for_among_our_own_processes_only(tmp_path: Path) -> None:
    agents = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        agents.append(Agent(tmp_path / name))
        agents[-1].pm3("list")
    bystander, agent = agents
    try:
        count = queue_length()
        bystander.apply({"other": mine(bystander, {**SLEEP, "instances": count})})
        before = bystander.pids()
        crash_in_the_middle_of_spawning(agent, "web", count)
        assert [pid for pid in before.values() if not alive(pid)] == []
        assert bystander.pids() == before
    finally:
        for one in agents:
            one.end()


def test_what_an_adopted_instance_leaves_behind_is_ended(agent: Agent) -> None:
    """Its orphans become the keeper's children, so no SIGCHLD tells the agent of their end."""
    agent.apply(
        {"web": mine(agent, {"command": "sh -c '(trap \"\" TERM; sleep 1001; :) & wait'", "kill_timeout": 100})}
    )
    until(lambda: len(processes_of(agent, "web")) == 3, "its children are there")
    agent.crash()
    pid = agent.pids()["web"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: agent.pids()["web"] not in (None, pid), "it is restarted")
    until(lambda: len(processes_of(agent, "web")) == 3, "its children are there again, and the old ones gone")
    agent.crash()
    assert agent.ask("stop", names=["web"]) == {"type": "success", "message": "stopped: web"}
    assert processes_of(agent, "web") == []


def test_what_a_stop_leaves_behind_is_ended_although_a_crash_came_between(agent: Agent) -> None:
    """Its main process ends while no agent runs, so no agent has ever set a timer for what it leaves behind."""
    table = {
        "command": 'sh -c \'(trap "" TERM; sleep 1001; :) & trap "sleep 1; exit" TERM; wait\'',
        "kill_timeout": 3000,
    }
    agent.apply({"web": mine(agent, table)})
    pid = agent.pids()["web"]
    until(lambda: len(processes_of(agent, "web")) == 3, "its children are there")
    threading.Thread(target=lambda: agent_answers(agent, "stop"), daemon=True).start()
    until(lambda: agent.instance("web")["phase"] == "stopping", "it is being stopped")
    with without_an_agent(agent):
        until(lambda: not alive(pid), "it ends by itself")
    until(lambda: agent.instance("web")["phase"] == "down", "it rests")
    assert processes_of(agent, "web") == []


def test_children_in_groups_of_their_own_are_ended_too(agent: Agent) -> None:
    agent.apply({"web": mine(agent, {"command": "bash -c 'set -m; sleep 1001 & sleep 1002 & wait'"})})
    until(lambda: len(processes_of(agent, "web")) == 3, "its children are there")
    agent.ask("stop", names=["web"])
    assert processes_of(agent, "web") == []


def test_leftovers_of_what_ended_unseen_are_ended_without_kept_descriptors(agent: Agent) -> None:
    agent.apply({"web": mine(agent, {"command": "sh -c 'sleep 1001 & wait'"})})
    until(lambda: len(processes_of(agent, "web")) == 2, "its child is there")
    left = processes_of(agent, "web")
    keeper, pid = keeper_of(agent), agent.pid()
    for one in (keeper, pid, agent.pids()["web"]):
        os.kill(one, signal.SIGKILL)
    until(lambda: not alive(pid) and not alive(keeper), "nobody is left who holds descriptors")
    agent.pm3("list")
    until(lambda: agent.instance("web")["status"] == "online", "it is restarted")
    assert [one for one in left if alive(one)] == []
    until(lambda: len(processes_of(agent, "web")) == 2, "there is one of it")


def test_a_restart_that_a_crash_cut_off_is_finished(agent: Agent) -> None:
    agent.apply({"web": mine(agent, {**STUBBORN, "kill_timeout": 3000})})
    before = agent.pids()["web"]
    threading.Thread(target=lambda: agent_answers(agent, "restart"), daemon=True).start()
    until(lambda: agent.instance("web")["phase"] == "stopping", "it is being stopped")
    agent.crash()
    until(lambda: agent.pids()["web"] not in (None, before), "it runs again")


def agent_answers(agent: Agent, kind: str) -> None:
    try:
        agent.ask(kind, names=["web"])
    except Exception:
        pass  # the agent was killed meanwhile


def test_a_start_after_a_boot_that_a_crash_cut_off_is_finished(agent: Agent, gate: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve = f"python3 -c 'open(\"{gate}\"); import http.server as h; h.test(h.SimpleHTTPRequestHandler, port={port})'"
    db = {"command": f"/usr/bin/env {serve}", "readiness_check": f"tcp://127.0.0.1:{port}"}
    definitions = {"db": mine(agent, db), "web": {**SLEEP, "depends_on": ["db"]}}
    agent.apply(definitions, wait=False)
    with gate.open("w"):
        until(lambda: agent.instances().get("web", {}).get("status") == "online", "everything is up")
    agent.end()
    agent.pm3("list")
    until(lambda: agent.instance("db")["pid"], "db is coming up again")
    agent.crash()
    with gate.open("w"):
        until(lambda: agent.instance("web")["status"] == "online", "and then web")


# Changes that meet


def test_a_backoff_that_ends_during_a_roll_makes_no_second_process(agent: Agent) -> None:
    mark = agent.folder / "mark"
    fail_once = f"sh -c 'test $PM3_INSTANCE_ID = 1 -o -e {mark} || {{ touch {mark}; exit 1; }}; exec sleep 1000'"
    agent.apply({"web": mine(agent, {"command": "sleep 999", "instances": 2, "min_uptime": 1500})})
    mark.touch()
    agent.apply({"web": mine(agent, {"command": fail_once, "instances": 2, "min_uptime": 1500})})
    mark.unlink()
    os.kill(agent.pids()["web:0"], signal.SIGKILL)
    until(mark.exists, "it has failed once more, and will not the next time")
    until(lambda: agent.instance("web:0")["phase"] == "backoff", "it waits")
    done = agent.apply({"web": mine(agent, {"command": "sleep 1002", "instances": 2, "min_uptime": 1500})})
    assert done["ok"]
    assert {name: processes_of(agent, name) for name in ("web:0", "web:1")} == {
        name: [pid] for name, pid in agent.pids().items()
    }


def test_a_stop_in_the_middle_of_a_roll_stays_a_stop(agent: Agent) -> None:
    agent.apply({"web": mine(agent, {**STUBBORN, "kill_timeout": 1000})})
    rolled = in_background(lambda: agent.apply({"web": mine(agent, SLEEP)}))
    until(lambda: agent.instance("web")["phase"] == "stopping", "it is being replaced")
    assert agent.ask("stop", names=["web"]) == {"type": "success", "message": "stopped: web"}
    assert processes_of(agent, "web") == []
    done = rolled()
    assert not done["ok"]
    assert done["instances"][0]["reason"].startswith("was stopped meanwhile (pm3 ")
    assert agent.instance("web")["phase"] == "down"


def test_a_stop_of_what_an_apply_has_not_reached_stays_a_stop(agent: Agent, gate: Path) -> None:
    agent.apply({"db": SLEEP, "web": {**SLEEP, "depends_on": ["db"]}})
    agent.ask("stop", names=["web"])
    old = agent.pids()["db"]
    # A one-shot that waits for us keeps the first level of the apply busy.
    job = {"command": f"sh -c 'read line < {gate}'", "restart": "never", "min_uptime": 60000}
    applied = in_background(lambda: agent.apply({"db": job, "web": {**SLEEP, "depends_on": ["db"]}}))
    until(lambda: agent.instance("db").get("pid") not in (None, old), "db is being replaced")
    assert agent.ask("stop", names=["web"])["type"] == "success"
    with gate.open("w") as writer:
        writer.write("go\n")
    done = applied()
    assert {row["name"]: row["reason"] for row in done["instances"]}["web"].startswith("was stopped meanwhile (pm3 ")
    assert agent.instance("web")["status"] == "stopped"


LATER = {
    "restart": {"names": ["db"]},
    "reload": {"names": ["db"]},
    "apply": {"project": "shop", "definitions": {"web": SLEEP, "db": SLEEP, "new": SLEEP}},
}


@pytest.mark.parametrize("kind", LATER)
def test_what_waits_for_its_turn_undoes_no_stop_that_comes_after_it(agent: Agent, gate: Path, kind: str) -> None:
    """I3: the stop is the later word."""
    agent.apply({"web": SLEEP, "db": SLEEP})
    old = agent.pids()["web"]
    # A one-shot that waits for us keeps the apply busy.
    job = {"command": f"sh -c 'read line < {gate}'", "restart": "never", "min_uptime": 60000}
    applied = in_background(lambda: agent.apply({"web": job, "db": SLEEP}))
    until(lambda: agent.pids()["web"] not in (None, old), "web is being replaced")
    with socket.socket(socket.AF_UNIX) as waiting:
        waiting.connect(str(agent.data_dir / "pm3.sock"))
        waiting.sendall(json.dumps({"type": kind, **LATER[kind]}).encode() + b"\n")
        for _turn in range(2):  # it is accepted when the first is answered, and read when the second one is
            agent.ask("hello")
        assert agent.ask("stop", names=["db"])["type"] == "success"
        with gate.open("w") as writer:
            writer.write("go\n")
        applied()
        said = json.loads(waiting.makefile().readline())
    assert "was stopped meanwhile (pm3 stop by " in said["message"], said
    assert agent.instance("db")["status"] == "stopped"


def test_an_orderly_end_in_the_middle_of_a_restart_leaves_nothing(agent: Agent) -> None:
    stubborn = mine(agent, {**STUBBORN, "kill_timeout": 2000})
    agent.apply(
        {"db": mine(agent, {**STUBBORN, "kill_timeout": 500}), "web": mine(agent, {**stubborn, "depends_on": ["db"]})}
    )
    pid = agent.pid()
    threading.Thread(target=lambda: agent_answers(agent, "restart"), daemon=True).start()
    until(lambda: agent.instance("web")["phase"] == "stopping", "it is being stopped")
    agent.ask("kill")
    until(lambda: not alive(pid), "the agent ends")
    assert processes_of(agent, "web") + processes_of(agent, "db") == []


def test_a_start_by_hand_waits_for_the_apply_of_the_same_name(agent: Agent, gate: Path) -> None:
    job = {"command": f"sh -c 'read line < {gate}'", "restart": "never", "min_uptime": 60000}
    definitions = {"db": job, "web": {**SLEEP, "depends_on": ["db"]}}
    applied = in_background(lambda: agent.apply(definitions))
    until(lambda: agent.instances().get("db", {}).get("pid"), "the apply is under way")
    started = in_background(lambda: agent.ask("start", configs={"web": SLEEP}))
    with gate.open("w") as writer:
        writer.write("go\n")
    assert applied()["ok"]
    started()
    assert agent.instance("web")["project"] == "shop"


# Upgrades


def test_an_upgrade_keeps_the_limit_of_open_files(agent: Agent) -> None:
    show = {"command": "sh -c 'ulimit -S -n; exec sleep 1000'"}
    mine_is = subprocess.run(["sh", "-c", "ulimit -S -n"], capture_output=True, text=True, check=True).stdout
    pid = agent.pid()
    before = stack_of(pid)
    os.kill(pid, signal.SIGHUP)
    until(lambda: stack_of(pid) != before, "it became itself anew")
    until(lambda: agent.answering_pid() == pid, "it answers")
    agent.apply({"show": show})
    until(lambda: agent.log("show-out") == mine_is, f"it tells the limit {mine_is}")


def test_a_stop_asked_for_during_an_upgrade_is_obeyed(agent: Agent) -> None:
    agent.apply({"web": mine(agent, SLEEP)})
    pid, keeper = agent.pid(), keeper_of(agent)
    before = stack_of(pid)
    os.kill(pid, signal.SIGHUP)
    until(lambda: stack_of(pid) != before, "it becomes itself anew")
    os.kill(pid, signal.SIGTERM)
    until(lambda: not alive(keeper), "both end")
    assert processes_of(agent, "web") == []
    assert "was killed by signal" not in (agent.data_dir / "agent.log").read_text()


# The store


def test_the_store_is_for_our_eyes_only(agent: Agent) -> None:
    agent.apply({"web": {**SLEEP, "secrets": {"TOKEN": "hush"}}})
    agent.crash()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in agent.data_dir.glob("store.sqlite*")}
    assert set(modes.values()) == {0o600}


def test_a_store_that_cannot_be_written_does_not_stop_supervising(agent: Agent) -> None:
    agent.apply({"web": mine(agent, SLEEP), "other": mine(agent, {**SLEEP, "min_uptime": 0})})
    lock = sqlite3_lock(agent)
    pid = agent.pids()["web"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: agent.pids()["web"] not in (None, pid), "it is restarted although nothing can be stored")
    assert "project" in agent.instance("other")
    lock.close()
    now = agent.pids()
    until(lambda: stored_pids(agent) == now, "what happened is stored once that is possible")
    agent.crash()
    assert agent.pids() == now
    assert [processes_of(agent, name) for name in now] == [[one] for one in now.values()]


def sqlite3_lock(agent: Agent) -> Any:
    """Somebody else's transaction, which keeps everybody from writing."""
    import sqlite3

    db = sqlite3.connect(agent.data_dir / "store.sqlite", isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    return db


def stored_pids(agent: Agent) -> dict[str, int]:
    import sqlite3

    db = sqlite3.connect(f"file:{agent.data_dir / 'store.sqlite'}?mode=ro", uri=True)
    try:
        return dict(db.execute("SELECT name, pid FROM instances"))
    finally:
        db.close()


def test_the_store_does_not_grow_with_what_happens(agent: Agent) -> None:
    agent.apply({"web": SLEEP})
    for _turn in range(120):
        agent.ask("restart", names=["web"])
    assert (agent.data_dir / "store.sqlite-wal").stat().st_size < 2 << 20


def rolling(agent: Agent) -> Callable[[], dict[str, Any]]:
    """A roll of web:0 and web:1 that waits for the file `go` at web:0; gives what waits for its answer."""
    gate = agent.folder / "go"
    table = {"command": "sleep 1000", "instances": 2, "min_uptime": 0, "readiness_check": f"exec://test -e {gate}"}
    gate.touch()
    assert agent.apply({"web": table})["ok"]
    before = agent.pids()["web:0"]
    gate.unlink()
    answer = in_background(lambda: agent.apply({"web": {**table, "env": {"A": "1"}}}))
    until(lambda: agent.pids()["web:0"] not in (None, before), "the roll has begun")
    return answer


def test_what_is_deleted_during_a_roll_is_gone_when_the_roll_has_seen_it(agent: Agent) -> None:
    answer = rolling(agent)
    deleted = in_background(lambda: agent.ask("delete", names=["web:1"]))
    until(lambda: agent.instances().get("web:1", {}).get("status", "stopped") == "stopped", "it is stopped at once")
    (agent.folder / "go").touch()
    result = answer()
    assert result["type"] == "result", result
    assert [row["action"] for row in result["instances"]] == ["rolled", "failed"]
    assert result["instances"][1]["reason"].startswith("was stopped meanwhile (pm3 delete by ")
    assert deleted()["message"] == "deleted: web:1"
    assert set(agent.instances()) == {"web:0"}


def test_who_got_the_pid_of_one_that_was_stopping_is_left_alone(agent: Agent) -> None:
    """The instance, its agent and the keeper all died; no pid is believed without its start time (W30)."""
    assert agent.apply({"web": STUBBORN | {"kill_timeout": 60_000}})["ok"]
    pid, keeper, one = agent.pid(), keeper_of(agent), agent.pids()["web"]
    stopping = agent.begin("stop", "web")
    until(lambda: agent.instance("web")["phase"] == "stopping", "it is told to stop")
    for number in (keeper, pid):
        os.kill(number, signal.SIGKILL)
        until(lambda number=number: not alive(number), "it is gone")
    os.killpg(one, signal.SIGKILL)
    assert "closed the connection" in stopping.communicate()[0]
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as stranger:
        try:
            with contextlib.closing(sqlite3.connect(agent.data_dir / "store.sqlite")) as store:
                store.execute("UPDATE instances SET pid = ?", (stranger.pid,))
                store.commit()
            agent.pm3("list")
            until(lambda: agent.instance("web")["phase"] == "down", "the instance is known to have ended")
            assert stranger.poll() is None
        finally:
            stranger.kill()
