"""Programs that say themselves that they are ready. Real programs, real datagrams, and an agent that is not always there."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Agent, alive
from .test_agent import SLEEP, at_rest, descriptors, environment_of
from .test_listen import dying, upgrade
from .test_races import keeper_of
from .waiting import until

# Says what it is told to, line by line, in files `say-1`, `say-2`, … of its folder; `\n` in a line separates fields.
PROGRAM = """
import os, socket, sys, time
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
address = os.environ["NOTIFY_SOCKET"]
notify.connect("\\0" + address[1:] if address[0] == "@" else address)
for text in sys.argv[1:]:
    notify.send(text.replace("|", "\\n").encode())
number = 1
print("up", os.getpid(), flush=True)
while True:
    try:
        with open(f"say-{number}") as file:
            text = file.read()
    except FileNotFoundError:
        time.sleep(0.01)
        continue
    notify.send(text.encode())
    open(f"said-{number}", "w").close()
    number += 1
"""
DEFINITION = {"readiness_check": "notify://", "readiness_timeout": 20, "min_uptime": 0}
SILENT = "the program has not sent READY=1 to NOTIFY_SOCKET"


def program(agent: Agent, *said: str, **fields: Any) -> dict[str, Any]:
    """A program that says this at once."""
    (agent.folder / "program.py").write_text(PROGRAM)
    words = " ".join(f"'{text}'" for text in said)
    return {"command": f"python3 -S program.py {words}", **DEFINITION, **fields}


def say(agent: Agent, number: int, text: str) -> None:
    """Has all programs say this, as their message of this number."""
    path = agent.folder / f"say-{number}"
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").rename(path)


def begun(agent: Agent, **fields: Any) -> int:
    """Starts one that says nothing for now; gives its pid."""
    agent.apply({"web": program(agent, **fields)}, wait=False)
    until(lambda: _log(agent).startswith("up"), "it runs")
    pid = agent.instance("web")["pid"]
    assert pid
    return int(pid)


def _log(agent: Agent, name: str = "web") -> str:
    try:
        return agent.log(f"{name}-out")
    except FileNotFoundError:
        return ""


def online(agent: Agent) -> Callable[[], bool]:
    return lambda: agent.instance("web")["status"] == "online"


def said(agent: Agent, number: int) -> Callable[[], bool]:
    """Also true while no agent takes what it writes."""
    return (agent.folder / f"said-{number}").exists


def test_it_is_online_when_it_says_so(agent: Agent) -> None:
    pid = begun(agent)
    assert agent.instance("web")["status"] == "starting"
    say(agent, 1, "STATUS=loading\nREADY=1\nMAINPID=1")
    until(online(agent), "it is online")
    assert agent.pids()["web"] == pid


def test_only_ready_makes_it_ready(agent: Agent) -> None:
    begun(agent)
    for number, text in enumerate(
        ["READY=0", "READY=11", "", "STATUS=READY=1", "NOT READY=1", "READY=1" + "x" * 5000], 1
    ):
        say(agent, number, text)
    until(said(agent, 6), "it has said all of it")
    agent.ask("hello")
    assert agent.instance("web")["status"] == "starting"
    say(agent, 7, "READY=1")
    until(online(agent), "it is online")


def test_an_apply_waits_for_it_and_dependents_start_after_it(agent: Agent) -> None:
    agent.apply({"web": program(agent), "job": {**SLEEP, "depends_on": ["web"]}}, wait=False)
    until(lambda: _log(agent).startswith("up"), "it runs")
    assert agent.instances().get("job", {}).get("pid") is None
    say(agent, 1, "READY=1")
    until(lambda: agent.instances().get("job", {}).get("pid"), "its dependent runs")


def test_who_never_says_it_is_unhealthy_and_told_why(agent: Agent) -> None:
    done = agent.apply(
        {
            "web": program(
                agent,
                "STATUS=loading the index",
                "STATUS=hunter2 is wrong",
                readiness_timeout=1,
                secrets={"PASSWORD": "hunter2"},
            )
        }
    )
    assert not done["ok"]
    (row,) = done["instances"]
    assert row["status"] == "unhealthy"
    assert row["reason"].startswith(
        f"did not become ready: readiness_check has not passed in time ({SILENT}; its status: "
    )
    assert row["reason"].endswith(" is wrong)")
    assert "hunter2" not in row["reason"]
    say(agent, 1, "READY=1")
    until(online(agent), "what was only slow is online after all")


def test_silence_is_told_as_well_and_nobody_polls(agent: Agent) -> None:
    done = agent.apply({"web": {**DEFINITION, "command": "sleep 1000", "readiness_timeout": 0.2}})
    assert done["instances"][0]["reason"] == f"did not become ready: readiness_check has not passed in time ({SILENT})"


def test_others_have_no_socket(agent: Agent) -> None:
    begun(agent, pre_start="env >hook", liveness_check="exec://sh -c 'env >check'", liveness_interval=0.1)
    agent.apply({"job": {**SLEEP, "readiness_check": "exec://true"}}, project="other")
    say(agent, 1, "READY=1")
    until(lambda: (agent.folder / "check").exists() and (agent.folder / "check").read_text(), "it is checked")
    assert environment_of(agent.pids()["web"])["NOTIFY_SOCKET"].startswith("@")
    assert "NOTIFY_SOCKET" not in environment_of(agent.pids()["job"])
    assert "NOTIFY_SOCKET" not in (agent.folder / "hook").read_text()
    assert "NOTIFY_SOCKET" not in (agent.folder / "check").read_text()


def test_each_instance_speaks_for_itself(agent: Agent) -> None:
    (agent.folder / "both.sh").write_text(
        "[ $PM3_INSTANCE_ID = 1 ] || exec python3 -S program.py READY=1\nexec sleep 1000\n"
    )
    done = agent.apply({"web": {**program(agent), "command": "sh both.sh", "instances": 2, "readiness_timeout": 2}})
    assert {row["name"]: row["status"] for row in done["instances"]} == {"web:0": "online", "web:1": "unhealthy"}


@pytest.mark.skipif(shutil.which("systemd-notify") is None, reason="needs systemd-notify")
def test_systemd_notify_is_understood(agent: Agent) -> None:
    """A child that ends at once; in newer versions it waits until its message was heard."""
    command = "sh -c 'systemd-notify --ready --status=fine; echo $?; exec sleep 1000'"
    assert agent.apply({"web": {**DEFINITION, "command": command}})["ok"]
    until(lambda: _log(agent) == "0\n", "it has been heard")


# An agent that is not there


def test_what_is_said_while_the_agent_stands_still_is_heard(agent: Agent) -> None:
    begun(agent)
    with agent.paused():
        say(agent, 1, "READY=1")
        until(said(agent, 1), "it has said so")
    until(online(agent), "it is online")


def test_what_is_said_to_a_dead_agent_is_heard_by_the_next(agent: Agent) -> None:
    pid = begun(agent)
    with dying(agent):
        say(agent, 1, "STATUS=up\nREADY=1")
        until(said(agent, 1), "it has said so")
    until(online(agent), "it is online")
    assert agent.pids()["web"] == pid


@pytest.mark.parametrize("how", ["crash", "upgrade"])
def test_it_may_be_another_agent_that_hears_it(agent: Agent, how: str) -> None:
    pid = begun(agent)
    for _turn in range(2):
        if how == "crash":
            agent.crash()
        else:
            upgrade(agent)
    assert agent.instance("web")["status"] == "starting"
    say(agent, 1, "READY=1")
    until(online(agent), "it is online")
    agent.crash() if how == "crash" else upgrade(agent)
    assert agent.instance("web")["status"] == "online"
    assert agent.pids()["web"] == pid


@pytest.mark.parametrize("turn", range(5))
def test_a_crash_at_the_moment_of_the_word_loses_nothing(agent: Agent, turn: int) -> None:
    """It was heard and written down, or it is heard by the next."""
    agent.apply({"web": program(agent, instances=8)}, wait=False)
    until(lambda: len(set(agent.pids().values()) - {None}) == 8, "they run")
    until(lambda: all(_log(agent, f"web:{number}") for number in range(8)), "they are connected")
    pids = set(agent.pids().values())
    before = agent.pid()
    say(agent, 1, "READY=1")
    if turn:
        until(said(agent, 1), "one of them has said so")
    os.kill(before, signal.SIGKILL)
    until(lambda: agent.answering_pid() not in (None, before), "another agent answers")
    until(lambda: {one["status"] for one in agent.instances().values()} == {"online"}, "all are online")
    assert set(agent.pids().values()) == pids


# Later


def test_who_talks_all_day_is_never_held_up(agent: Agent) -> None:
    """A queue that nobody read would stop it after some ten messages."""
    assert agent.apply({"web": program(agent, "READY=1", *["WATCHDOG=1"] * 300, "READY=1")})["ok"]
    until(lambda: _log(agent).startswith("up"), "all of it was taken")
    agent.crash()
    say(agent, 1, "READY=1")
    until(said(agent, 1), "it was taken by the next")
    assert agent.instance("web")["status"] == "online"


def test_a_restart_has_to_say_it_again(agent: Agent) -> None:
    first = begun(agent)
    say(agent, 1, "READY=1")
    until(online(agent), "it is online")
    (agent.folder / "say-1").unlink()
    os.kill(first, signal.SIGKILL)
    until(lambda: agent.instance("web")["pid"] not in (None, first), "it runs again")
    assert agent.instance("web")["status"] == "starting"
    say(agent, 1, "READY=1")
    until(online(agent), "it is online again")


def test_reload_swaps_when_the_copy_says_so(agent: Agent) -> None:
    before = agent.apply({"web": program(agent, "READY=1")})["instances"][0]["pid"]
    assert agent.ask("reload", names=["web"])["message"] == "reloaded: web"
    assert agent.pids()["web"] != before
    assert not alive(before)
    assert agent.instance("web")["restarts"] == 0


def test_a_copy_that_never_says_so_leaves_the_old_one_alone(agent: Agent) -> None:
    script = "test -e mute && exec sleep 1000; exec python3 -S program.py READY=1\n"
    (agent.folder / "once.sh").write_text(script)
    definition = {**program(agent), "command": "sh once.sh"}
    before = agent.apply({"web": definition})["instances"][0]["pid"]
    agent.apply({"web": {**definition, "readiness_timeout": 0.5}})
    assert agent.pids()["web"] == before
    (agent.folder / "mute").touch()
    answer = agent.ask("reload", names=["web"])
    assert answer["type"] == "error"
    assert SILENT in answer["message"]
    assert agent.pids()["web"] == before
    assert agent.instance("web")["status"] == "online"


def test_who_has_no_socket_is_told_to_be_restarted(agent: Agent) -> None:
    """The check of a program that runs already was another one."""
    command = "sh -c 'echo up; exec sleep 1000'"
    before = {**DEFINITION, "command": command, "readiness_check": "exec://false", "cwd": str(agent.folder)}
    agent.ask("start", configs={"web": before}, wait=False)
    until(lambda: _log(agent) == "up\n", "it runs")
    done = agent.apply({"web": {**DEFINITION, "command": command, "readiness_timeout": 0.3}})
    assert done["instances"][0]["status"] == "unhealthy"
    assert "was started before its readiness_check was notify://" in done["instances"][0]["reason"]


def test_descriptors_do_not_grow(agent: Agent) -> None:
    keeper = keeper_of(agent)

    def opened() -> tuple[int, int]:
        return len(descriptors(agent.pid())), len(os.listdir(f"/proc/{keeper}/fd"))

    seen = []
    for _turn in range(4):
        assert agent.apply({"web": program(agent, "READY=1", instances=2)})["ok"]
        agent.ask("restart", names=["web"])
        agent.ask("reload", names=["web"])
        until(lambda: {one["status"] for one in agent.instances().values()} == {"online"}, "all are online")
        seen.append(at_rest(opened))
        agent.apply({}, state="absent")
        seen.append(at_rest(opened))
    assert seen[4:6] == seen[6:8]
    assert seen[1] == seen[3]


# Who is heard


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
def test_a_program_of_another_user_is_heard_and_a_stranger_is_not(agent: Agent, tmp_path: Path) -> None:
    shutil.copy(_script(tmp_path), "/tmp/" + tmp_path.name + ".py")
    script = Path("/tmp") / (tmp_path.name + ".py")
    script.chmod(0o644)
    try:
        definition = {**DEFINITION, "command": f"python3 -S {script}", "user": "nobody", "cwd": "/"}
        agent.apply({"web": definition}, wait=False)
        until(lambda: agent.instance("web")["pid"] and "up" in _log(agent), "it runs")
        pid = agent.pids()["web"]
        address = environment_of(pid)["NOTIFY_SOCKET"]
        send(address, 12345)
        agent.ask("hello")
        assert agent.instance("web")["status"] == "starting"
        os.kill(pid, signal.SIGUSR1)
        until(online(agent), "it is online")
    finally:
        script.unlink()


def _script(folder: Path) -> Path:
    path = folder / "speaker"
    path.write_text(
        "import os, signal, socket\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n"
        "print('up', flush=True)\n"
        "signal.sigwait([signal.SIGUSR1])\n"
        "with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:\n"
        "    notify.sendto(b'READY=1', '\\0' + os.environ['NOTIFY_SOCKET'][1:])\n"
        "signal.pause()\n"
    )
    return path


def send(address: str, uid: int) -> None:
    """Says READY=1 as somebody else."""
    code = f"""
import os, socket
os.setuid({uid})
socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1", {chr(0) + address[1:]!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_program_that_gave_up_its_user_is_still_heard(agent: Agent) -> None:
    code = (
        "import os, socket, time\n"
        "address = os.environ['NOTIFY_SOCKET']\n"
        "os.setuid(12345)\n"
        "socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'READY=1', '\\0' + address[1:])\n"
        "time.sleep(1000)\n"
    )
    (agent.folder / "drops.py").write_text(code)
    assert agent.apply({"web": {**DEFINITION, "command": "python3 -S drops.py"}})["ok"]
