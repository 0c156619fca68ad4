"""The agent as its users meet it: real processes, real signals, real crashes."""

from __future__ import annotations

import json
import os
import pwd
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import COMMAND, Agent, alive, stack_of
from .waiting import until

SLEEP = {"command": "sleep 1000", "min_uptime": 150}


def actions(result: dict[str, Any]) -> dict[str, str]:
    return {row["name"]: row["action"] for row in result["instances"]}


def environment_of(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/environ").read_bytes().decode()
    return dict(line.split("=", 1) for line in text.split("\0") if line)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def stored(agent: Agent) -> list[str]:
    """Everything in the store."""
    with sqlite3.connect(f"file:{agent.data_dir / 'store.sqlite'}?mode=ro", uri=True) as store:
        return list(store.iterdump())


# Apply


def test_apply_creates_everything_and_the_second_run_does_nothing(agent: Agent) -> None:
    definitions = {"db": {**SLEEP, "instances": 2}, "web": {**SLEEP, "instances": 3, "depends_on": ["db"]}}
    first = agent.apply(definitions)
    assert first["ok"]
    assert actions(first) == dict.fromkeys(["db:0", "db:1", "web:0", "web:1", "web:2"], "created")
    assert {row["status"] for row in first["instances"]} == {"online"}
    before = agent.pids()
    second = agent.apply(definitions)
    assert not second["changed"]
    assert set(actions(second).values()) == {"none"}
    assert agent.pids() == before
    assert second["revision"] == first["revision"] == 1


def test_a_plan_changes_nothing_and_predicts_the_run(agent: Agent) -> None:
    agent.apply({"db": {**SLEEP, "instances": 2}, "web": {**SLEEP, "instances": 3}, "old": SLEEP})
    agent.ask("stop", names=["db:1"])
    changed = {
        "db": {**SLEEP, "instances": 2},
        "web": {**SLEEP, "instances": 4, "env": {"A": "1"}, "restart": "always"},
        "new": SLEEP,
    }
    before = agent.instances(), stored(agent)
    predicted = agent.ask("plan", project="shop", definitions=changed, base=str(agent.folder))
    assert (agent.instances(), stored(agent)) == before
    done = agent.apply(changed)
    keys = ("name", "action", "changed", "changes", "reason")
    assert [{key: row[key] for key in keys} for row in predicted["instances"]] == [
        {key: row[key] for key in keys} for row in done["instances"]
    ]
    assert predicted["diff"] == done["diff"]
    assert predicted["revision"] == done["revision"] == 2
    assert actions(done) == {
        "db:0": "none",
        "db:1": "started",
        "new": "created",
        "web:0": "rolled",
        "web:1": "rolled",
        "web:2": "rolled",
        "web:3": "created",
        "old": "removed",
    }


def test_one_changed_field_touches_only_its_own_instances(agent: Agent) -> None:
    agent.apply({"a": {**SLEEP, "instances": 2}, "b": SLEEP})
    before = agent.pids()
    done = agent.apply({"a": {**SLEEP, "instances": 2}, "b": {**SLEEP, "env": {"X": "1"}}})
    assert actions(done) == {"a:0": "none", "a:1": "none", "b": "rolled"}
    after = agent.pids()
    assert (after["a:0"], after["a:1"]) == (before["a:0"], before["a:1"])
    assert after["b"] != before["b"]
    assert not alive(before["b"])


def test_a_hot_change_reaches_the_instance_without_touching_it(agent: Agent) -> None:
    agent.apply({"a": {**SLEEP, "restart": "never"}})
    pid = agent.pids()["a"]
    done = agent.apply({"a": {**SLEEP, "restart": "always"}})
    assert actions(done) == {"a": "updated"}
    assert agent.pids()["a"] == pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: agent.pids()["a"] not in (None, pid), "it is restarted, as the new policy says")


@pytest.mark.parametrize(("before", "after"), [(4, 6), (6, 3), (1, 3), (3, 1)])
def test_scaling_keeps_what_it_can(agent: Agent, before: int, after: int) -> None:
    agent.apply({"web": {**SLEEP, "instances": before}})
    old = agent.pids()
    agent.apply({"web": {**SLEEP, "instances": after}})
    new = agent.pids()
    assert len(new) == after
    assert all(new[name] == old[name] for name in new if name in old)
    assert all(alive(pid) for pid in new.values())
    assert not [pid for name, pid in old.items() if name not in new and alive(pid)]
    assert not agent.apply({"web": {**SLEEP, "instances": after}})["changed"]


def test_projects_do_not_prune_each_other(agent: Agent) -> None:
    agent.apply({"a": SLEEP}, project="one")
    agent.apply({"b": SLEEP}, project="two")
    assert actions(agent.apply({"c": SLEEP}, project="two")) == {"c": "created", "b": "removed"}
    assert sorted(agent.instances()) == ["a", "c"]
    refused = agent.apply({"a": SLEEP}, project="two")
    assert refused["type"] == "error"
    assert "belongs to project one" in refused["message"]


def test_states(agent: Agent) -> None:
    definitions = {"a": SLEEP, "b": {**SLEEP, "depends_on": ["a"]}}
    agent.apply(definitions)
    before = agent.pids()
    assert actions(agent.apply(definitions, state="restarted")) == {"a": "restarted", "b": "restarted"}
    assert agent.pids() != before
    assert actions(agent.apply(definitions, state="stopped")) == {"a": "stopped", "b": "stopped"}
    assert set(agent.pids().values()) == {None}
    assert not agent.apply(definitions, state="stopped")["changed"]
    started = agent.apply(definitions)
    assert {(row["action"], row["reason"]) for row in started["instances"]} == {("started", "was stopped")}
    assert actions(agent.apply(definitions, state="absent")) == {"b": "removed", "a": "removed"}
    assert agent.instances() == {}
    assert not agent.apply({}, state="absent")["changed"]


def test_new_definitions_with_state_stopped_are_kept_at_rest(agent: Agent) -> None:
    done = agent.apply({"a": SLEEP}, state="stopped")
    assert actions(done) == {"a": "created"}
    assert agent.instance("a")["status"] == "stopped"
    assert not agent.apply({"a": SLEEP}, state="stopped")["changed"]


def test_nothing_defined_is_an_error_and_prunes_nothing(agent: Agent) -> None:
    agent.apply({"a": SLEEP})
    assert agent.apply({})["type"] == "error"
    assert alive(agent.pids()["a"])


def test_every_mistake_is_told_at_once(agent: Agent) -> None:
    answer = agent.apply(
        {
            "a": {"command": 'x "'},
            "b": {**SLEEP, "kill_signal": "TREM"},
            "c": {**SLEEP, "depends_on": ["nobody"]},
            "d": {"comand": "x"},
        }
    )
    assert {(one["table"], one["field"]) for one in answer["problems"]} >= {
        ("a", "command"),
        ("b", "kill_signal"),
        ("d", "comand"),
        ("d", "command"),
    }
    assert agent.instances() == {}


# Failing


def test_a_program_that_exits_at_once_fails_the_apply_with_its_last_words(agent: Agent) -> None:
    done = agent.apply(
        {"bad": {"command": "sh -c 'echo no database >&2; exit 3'"}, "web": {**SLEEP, "depends_on": ["bad"]}}
    )
    assert not done["ok"]
    bad, web = done["instances"]
    assert (bad["action"], bad["reason"]) == ("failed", "exited with code 3")
    assert bad["log_tail"] == ["no database"]
    assert (web["action"], web["reason"]) == ("skipped", "not reached: bad failed")
    assert "web" not in agent.instances()


def test_a_program_that_dies_within_min_uptime_fails_the_apply(agent: Agent) -> None:
    done = agent.apply({"bad": {"command": "sh -c 'sleep 0.3; exit 4'", "min_uptime": 5000, "restart": "never"}})
    assert not done["ok"]
    assert done["instances"][0]["reason"] == "exited with code 4"


def test_the_same_bad_release_again_costs_no_further_instance(agent: Agent) -> None:
    """Only the first one is lost to it, however often an unattended run tries."""
    good = {**SLEEP, "instances": 3}
    agent.apply({"web": good})
    before = agent.pids()
    for _turn in range(3):
        done = agent.apply({"web": {**good, "command": "sh -c 'exit 3'"}})
        assert [row["action"] for row in done["instances"]] == ["failed", "skipped", "skipped"]
    after = agent.pids()
    assert (after["web:1"], after["web:2"]) == (before["web:1"], before["web:2"])
    # A release that can run begins with what is down, and then replaces the others.
    mended = agent.apply({"web": {**good, "command": "sleep 1001"}})
    assert mended["ok"]
    assert {row["action"] for row in mended["instances"]} == {"rolled"}


def test_a_crash_loop_is_no_success_while_others_settle(agent: Agent) -> None:
    flapping = {"command": "sh -c 'sleep 0.2; exit 1'"}
    done = agent.apply({"a": flapping, "b": {"command": "sleep 1000", "min_uptime": 1500}})
    assert not done["ok"]
    assert done["instances"][0]["reason"] == "exited with code 1"


def test_the_last_lines_are_of_this_start(agent: Agent) -> None:
    agent.apply({"web": {**SLEEP, "command": "sh -c 'echo the old one; exec sleep 1000'"}})
    until(lambda: agent.log("web-out"), "the old one has spoken")
    assert agent.apply({"web": {"command": "no-such-program-here"}})["instances"][0]["log_tail"] == []
    done = agent.apply({"web": {"command": "sh -c 'echo the new one; exit 1'"}})
    assert done["instances"][0]["log_tail"] == ["the new one"]


def test_a_one_shot_that_succeeds_is_up(agent: Agent) -> None:
    definitions = {"migrate": {"command": "true"}, "web": {**SLEEP, "depends_on": ["migrate"]}}
    assert agent.apply(definitions)["ok"]
    assert not agent.apply(definitions)["changed"]


@pytest.mark.parametrize(
    ("definition", "said"),
    [
        ({"command": "no-such-program-here"}, "not found in PATH"),
        ({"command": "/etc/passwd"}, "not executable"),
        ({"command": "true", "cwd": "/no/such/folder"}, "is not a directory"),
        ({"command": "true", "env_file": "/no/such.env"}, "env file /no/such.env"),
    ],
)
def test_what_cannot_be_started_says_why(agent: Agent, definition: dict[str, Any], said: str) -> None:
    done = agent.apply({"bad": definition})
    assert not done["ok"]
    assert said in done["instances"][0]["reason"]


def test_a_missing_interpreter_is_no_exit_code_of_the_program(agent: Agent) -> None:
    script = agent.file("#!/no/such/interpreter\n", "script")
    script.chmod(0o755)
    done = agent.apply({"bad": {"command": str(script), "restart": "never"}})
    assert "interpreter does not exist" in done["instances"][0]["reason"]
    assert agent.instance("bad")["last_exit"]["cause"] == "spawn"
    honest = agent.apply({"bad": {"command": "sh -c 'exit 127'", "restart": "never"}})
    assert honest["instances"][0]["reason"] == "exited with code 127"


def test_backoff_ends_with_the_budget(agent: Agent) -> None:
    agent.apply({"bad": {"command": "false", "max_restarts": 3}})
    until(lambda: agent.instance("bad")["phase"] == "down", "the budget is used up")
    shown = agent.instance("bad")
    assert (shown["status"], shown["restarts"], shown["pid"]) == ("errored", 3, None)


def test_an_exhausted_always_with_code_0_rests_as_stopped(agent: Agent) -> None:
    agent.apply({"tick": {"command": "true", "restart": "always", "max_restarts": 2}})
    until(lambda: agent.instance("tick")["phase"] == "down", "the budget is used up")
    assert (agent.instance("tick")["status"], agent.instance("tick")["restarts"]) == ("stopped", 2)


def test_a_crash_is_followed_by_a_restart(agent: Agent) -> None:
    agent.apply({"web": SLEEP})
    pid = agent.pids()["web"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: agent.pids()["web"] not in (None, pid), "web runs again")
    shown = agent.instance("web")
    assert shown["restarts"] == 1
    assert (shown["last_exit"]["cause"], shown["last_exit"]["signal"]) == ("signal", 9)


# What an instance is given


def test_environment_is_built_and_not_inherited(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    agent.pm3("list", WHO_WOKE_THE_AGENT="me")
    try:
        agent.file("A=file\nB=file\n", "vars.env")
        agent.apply(
            {
                "web": {
                    **SLEEP,
                    "instances": 2,
                    "env_file": "vars.env",
                    "env": {"B": "env", "PORT": "@{8000 + instance}"},
                    "secrets": {"S": "s@{x"},
                }
            }
        )
        found = environment_of(agent.pids()["web:1"])
        assert {key: found.pop(key) for key in ("A", "B", "PORT", "S")} == {
            "A": "file",
            "B": "env",
            "PORT": "8001",
            "S": "s@{x",
        }
        ours = {key: value for key, value in found.items() if key.startswith(("PM3_", "NODE_"))}
        ours.pop("PM3_SPAWN_ID")
        assert ours == {
            "PM3_INSTANCE_ID": "1",
            "PM3_INSTANCE_COUNT": "2",
            "PM3_NAME": "web:1",
            "PM3_PROJECT": "shop",
            "NODE_APP_INSTANCE": "1",
        }
        assert {key for key in found if key not in ours} <= {
            "HOME",
            "USER",
            "LOGNAME",
            "SHELL",
            "LANG",
            "PATH",
            "PM3_SPAWN_ID",
        }
    finally:
        agent.end()


def test_what_whoever_started_the_agent_did_with_signals_is_nobody_elses_affair(tmp_path: Path) -> None:
    """A shell ignores some for what it runs in the background, and others are ignored, or held back, by who starts the agent."""
    agent = Agent(tmp_path)
    held = {signal.SIGUSR1, signal.SIGTERM, signal.SIGCHLD}
    code = f"import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, {set(map(int, held))!r})"
    code += "; os.execvp(sys.argv[1], sys.argv[1:])"
    ignoring = ["sh", "-c", 'trap "" QUIT INT TSTP USR2; exec "$@"', "sh", sys.executable, "-c", code]
    subprocess.run([*ignoring, *COMMAND, "list"], env=agent.environment, check=True, capture_output=True, timeout=60)
    try:
        agent.apply({"web": {**SLEEP, "kill_signal": "SIGQUIT"}})
        status = Path(f"/proc/{agent.pids()['web']}/status").read_text()
        # All but the two that the C library keeps for itself.
        masks = {
            name: int(value, 16) & 0x7FFFFFFF
            for name, value in re.findall(r"^(SigBlk|SigIgn):\s+(\w+)", status, re.MULTILINE)
        }
        assert masks == {"SigBlk": 0, "SigIgn": 0}
        agent.ask("stop", names=["web"])
        assert agent.instance("web")["last_exit"]["signal"] == signal.SIGQUIT
        before = agent.pid()
        os.kill(before, signal.SIGTERM)  # which it does not hold back either
        until(lambda: not alive(before), "it has ended")
    finally:
        agent.end()


def test_an_instance_leads_its_own_session_and_holds_no_descriptor_of_ours(agent: Agent) -> None:
    agent.apply({"web": SLEEP})
    pid = agent.pids()["web"]
    assert os.getsid(pid) == pid
    assert sorted(os.listdir(f"/proc/{pid}/fd")) == ["0", "1", "2"]
    assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"
    assert os.readlink(f"/proc/{pid}/cwd") == str(agent.folder)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can run a program as another user")
def test_an_instance_runs_as_its_user(agent: Agent) -> None:
    nobody = pwd.getpwnam("nobody")
    agent.apply({"web": {"command": "sh -c 'id -u; id -g; echo $USER; exec sleep 1000'", "user": "nobody", "cwd": "/"}})
    until(lambda: agent.log("web-out").count("\n") == 3, "it tells who it is")
    assert agent.log("web-out").split() == [str(nobody.pw_uid), str(nobody.pw_gid), "nobody"]
    # What it runs beside its program may write where that may.
    says = "echo checked >/dev/stderr && echo checked >/dev/stdout"
    checked = {
        **SLEEP,
        "user": "nobody",
        "cwd": "/",
        "readiness_check": f"exec://sh -c '{says}'",
        "readiness_timeout": 5,
    }
    made = agent.apply({"web": {**checked, "stop_command": f"{says} && kill -INT $PM3_PID"}})
    assert made["ok"], made
    agent.ask("stop", names=["web"])
    assert agent.instance("web")["last_exit"]["signal"] == signal.SIGINT
    unknown = agent.apply({"web": {**SLEEP, "user": "no-such-user"}})
    assert unknown["instances"][0]["reason"] == "user no-such-user does not exist on this host; back on revision 2"


def test_the_limit_of_open_files_is_not_the_agents(agent: Agent) -> None:
    agent.apply({"show": {"command": "sh -c 'ulimit -S -n; sleep 1000'"}})
    mine = subprocess.run(["sh", "-c", "ulimit -S -n"], capture_output=True, text=True, check=True).stdout
    until(lambda: agent.log("show-out") == mine, "it tells its limit")


def test_output_goes_to_its_files(agent: Agent) -> None:
    agent.apply({"talk": {"command": "sh -c 'echo out; echo err >&2; printf \"\\377\\n\"; sleep 1000'"}})
    log = agent.data_dir / "logs" / "talk-out.log"
    until(lambda: log.read_bytes() == b"out\n\xff\n", "any byte is in the log")
    assert agent.log("talk-err") == "err\n"


# Checks and dependencies


def test_dependents_wait_until_every_instance_is_ready(agent: Agent) -> None:
    ports = [free_port(), free_port()]
    serve = agent.file(
        "import http.server, os, sys, time\n"
        "gate = sys.argv[1]\n"
        "os.open(gate, os.O_RDONLY)\n"  # a FIFO: waits for the test
        "http.server.HTTPServer(('127.0.0.1', int(os.environ['PORT'])), http.server.BaseHTTPRequestHandler).serve_forever()\n",
        "serve.py",
    )
    gate = agent.folder / "gate"
    os.mkfifo(gate)
    definitions = {
        "db": {
            "command": f"/usr/bin/env python3 {serve} {gate}",
            "env": {"PORT": str(ports[0])},
            "readiness_check": f"tcp://127.0.0.1:{ports[0]}",
        },
        "web": {**SLEEP, "depends_on": ["db"]},
    }
    agent.apply(definitions, wait=False)
    until(lambda: agent.instance("db")["status"] == "starting" and agent.instance("db")["pid"], "db is being checked")
    assert "web" not in agent.instances()
    with gate.open("w"):
        until(lambda: agent.instances().get("web", {}).get("status") == "online", "web follows")
    assert agent.instance("db")["status"] == "online"


def test_a_check_that_does_not_pass_fails_the_apply(agent: Agent) -> None:
    done = agent.apply({"web": {**SLEEP, "readiness_check": f"tcp://127.0.0.1:{free_port()}", "readiness_timeout": 1}})
    assert not done["ok"]
    assert "readiness_check" in done["instances"][0]["reason"]
    assert done["instances"][0]["status"] == "unhealthy"


# Stopping


def test_a_stop_ends_the_whole_process_group(agent: Agent) -> None:
    agent.apply({"web": {"command": "sh -c 'sleep 1001 & sleep 1002 & wait'"}})
    pid = agent.pids()["web"]
    group = until(lambda: [one for one in members(pid) if one != pid][1:] and members(pid), "its children are there")
    assert agent.ask("stop", names=["web"])["message"] == "stopped: web"
    assert not [one for one in group if alive(one)]


def test_a_child_that_ignores_the_signal_is_killed(agent: Agent) -> None:
    agent.apply({"web": {"command": "sh -c 'trap \"\" TERM; while :; do sleep 1; done'", "kill_timeout": 100}})
    pid = agent.pids()["web"]
    agent.ask("stop", names=["web"])
    assert not alive(pid)
    assert agent.instance("web")["status"] == "stopped"


def test_what_a_crash_leaves_behind_is_ended(agent: Agent) -> None:
    agent.apply({"web": {"command": "sh -c 'sleep 1001 & wait'"}})
    pid = agent.pids()["web"]
    child = until(lambda: [one for one in members(pid) if one != pid], "its child is there")[0]
    os.kill(pid, signal.SIGKILL)
    until(lambda: agent.pids()["web"] not in (None, pid), "web runs again")
    assert not alive(child)


def test_stopping_a_dependency_stops_its_dependents(agent: Agent) -> None:
    agent.apply({"db": SLEEP, "api": {**SLEEP, "depends_on": ["db"]}, "web": {**SLEEP, "depends_on": ["api"]}})
    assert agent.ask("stop", names=["api"])["message"] == "stopped: api, web"
    assert agent.instance("db")["status"] == "online"
    assert agent.ask("restart", names=["api"])["message"] == "restarted: api"
    assert agent.instance("web")["status"] == "stopped"


def members(session: int) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if os.getsid(int(entry)) == session:
                    found.append(int(entry))
            except ProcessLookupError:
                continue
    return found


# Surviving


def test_a_crash_of_the_agent_leaves_everything_as_it_is(agent: Agent) -> None:
    count = "i=0; while [ $i -lt 300000 ]; do echo $i; i=$((i+1)); done; sleep 1000"
    agent.apply({"count": {"command": f"sh -c '{count}'"}, "web": {**SLEEP, "instances": 3}})
    assert agent.ask("restart", names=["web:1"])["type"] == "success"
    before, counters = agent.pids(), restarts(agent)
    assert counters["web:1"] == (1, 1)
    for _turn in range(5):
        agent.crash()
        assert agent.pids() == before
        assert restarts(agent) == counters
    log = agent.data_dir / "logs" / "count-out.log"
    until(lambda: log.stat().st_size >= len("".join(f"{i}\n" for i in range(300000))), "all is written")
    assert log.read_text().splitlines() == [str(i) for i in range(300000)]
    assert not agent.apply({"count": {"command": f"sh -c '{count}'"}, "web": {**SLEEP, "instances": 3}})["changed"]


def restarts(agent: Agent) -> dict[str, tuple[int, int]]:
    return {name: (one["restarts"], one["total_restarts"]) for name, one in agent.instances().items()}


def test_what_ended_while_no_agent_ran_is_known(agent: Agent) -> None:
    os.mkfifo(agent.folder / "gate")  # first: without it the job would not wait
    agent.apply(
        {"job": {"command": "sh -c 'read x < gate; echo last words; exit 7'", "restart": "never"}, "web": SLEEP},
        wait=False,
    )
    agent.ask("restart", names=["job"])
    keeper = int(Path(f"/proc/{agent.pid()}/stat").read_text().rpartition(")")[2].split()[1])
    job = agent.pids()["job"]
    os.kill(keeper, signal.SIGSTOP)
    os.kill(agent.pid(), signal.SIGKILL)
    with (agent.folder / "gate").open("w") as gate:
        gate.write("x\n")
    until(lambda: not alive(job), "the job ends while nobody looks")
    os.kill(keeper, signal.SIGCONT)
    until(lambda: agent.answering_pid() is not None, "another agent answers")
    until(lambda: agent.instance("job")["phase"] == "down", "the end is dealt with")
    assert agent.instance("job")["last_exit"]["code"] == 7
    assert agent.log("job-out") == "last words\n"


def descriptors(pid: int) -> list[str]:
    """What a process has open, without the numbers of kernel objects, and without the store's files: a checkpoint opens them
    once more, for a moment, in its own thread."""
    folder = Path(f"/proc/{pid}/fd")
    names = []
    for entry in folder.iterdir():
        try:
            names.append(os.readlink(entry).partition(":[")[0])
        except FileNotFoundError:
            continue
    return sorted(name for name in names if "store.sqlite" not in name)


def at_rest(look: Callable[[], Any]) -> Any:
    """What `look` gives once it has given the same for a while: what is open for a moment only is not counted."""
    seen: list[Any] = []

    def same() -> bool:
        seen.append(look())
        return len(seen) > 30 and all(one == seen[-1] for one in seen[-30:])

    until(same, "nothing changes any more")
    return seen[-1]


def test_an_upgrade_in_place_keeps_pid_and_children(agent: Agent) -> None:
    agent.apply({"web": {**SLEEP, "instances": 3}})
    before, pid = agent.pids(), agent.pid()
    open_files: list[str] = []
    for turn in range(4):
        stack = stack_of(pid)
        os.kill(pid, signal.SIGHUP)
        until(lambda stack=stack: stack_of(pid) != stack, "it became itself anew")
        until(lambda: agent.answering_pid() == pid, "it answers")
        assert agent.pids() == before
        if not turn:
            open_files = at_rest(lambda: descriptors(pid))
            assert open_files.count("socket") == 2  # the listener, and that of the service manager
        until(lambda expected=open_files: descriptors(pid) == expected, "it has the same descriptors as before (I8)")
    os.kill(before["web:0"], signal.SIGKILL)
    until(lambda: agent.pids()["web:0"] not in (None, before["web:0"]), "its children are still its own")
    assert agent.instance("web:0")["last_exit"]["signal"] == 9


def test_an_orderly_end_stops_everything_and_a_project_comes_back(agent: Agent) -> None:
    agent.apply({"web": SLEEP, "rest": SLEEP})
    agent.ask("stop", names=["rest"])
    agent.file('[hand]\ncommand = "sleep 1000"\n')
    agent.pm3("start")
    agent.end()
    agent.pm3("list")
    until(lambda: agent.instance("web")["status"] == "online", "web is back")
    assert agent.instance("rest")["status"] == "stopped"
    assert "hand" not in agent.instances()


def test_a_change_in_the_middle_of_coming_up_takes_over(agent: Agent) -> None:
    never = {"command": "sleep 1001", "readiness_check": f"tcp://127.0.0.1:{free_port()}", "readiness_timeout": 5}
    agent.apply({"db": SLEEP, "web": {**SLEEP, "depends_on": ["db"]}})
    agent.apply({"db": never, "web": {**SLEEP, "depends_on": ["db"]}}, wait=False)
    until(lambda: agent.instance("db")["status"] == "starting", "db is being checked")
    agent.end()
    agent.pm3("list")
    until(lambda: agent.instance("db")["status"] == "starting", "db is being checked again")
    assert agent.instance("web")["status"] == "stopped"
    assert agent.apply({}, state="absent")["ok"]
    assert agent.instances() == {}


# pm3's own commands


def test_start_converges_to_the_file_and_json_is_one_document(agent: Agent) -> None:
    agent.file('[db]\ncommand = "sleep 1000"\n[web]\ncommand = "sleep 1000"\ndepends_on = ["db"]\n')
    assert json.loads(agent.pm3("--json", "start", "web").stdout) == {"type": "success", "message": "started: db, web"}
    assert json.loads(agent.pm3("start", "--json").stdout)["message"] == "everything is already running"
    before = agent.pids()
    agent.file('[db]\ncommand = "sleep 1000"\n[web]\ncommand = "sleep 1001"\ndepends_on = ["db"]\n')
    agent.pm3("start")
    assert agent.pids()["db"] == before["db"]
    assert agent.pids()["web"] != before["web"]


def test_start_reports_an_immediate_exit_and_its_status(agent: Agent) -> None:
    agent.file('[bad]\ncommand = "false"\n')
    done = agent.pm3("start", check=False)
    assert done.returncode == 1
    assert "exited immediately" in done.stderr
    assert agent.pm3("stop", "nobody", check=False).returncode == 1


def test_manual_restart_counts_one(agent: Agent) -> None:
    agent.apply({"web": SLEEP})
    agent.ask("restart", names=["web"])
    assert agent.instance("web")["restarts"] == 1


def test_info_and_log(agent: Agent) -> None:
    agent.apply(
        {"talk": {"command": "sh -c 'for i in 1 2 3; do echo line $i; done; sleep 1000'", "secrets": {"TOKEN": "hush"}}}
    )
    until(lambda: agent.log("talk-out").count("\n") == 3, "it has spoken")
    assert agent.pm3("log", "talk", "--lines", "2").stdout == "line 2\nline 3\n"
    shown = agent.pm3("info", "talk").stdout
    assert shown.startswith("talk: online\n")
    assert "hush" not in shown


def test_a_secret_in_another_text_is_shown_nowhere(agent: Agent) -> None:
    secret = {"env": {"URL": "a-hunter2-b"}, "secrets": {"TOKEN": "hunter2"}, "pre_start": "test hunter2"}
    made = agent.apply({"web": {"command": "sh -c 'exec sleep 1000 # hunter2'", **secret}})
    changed = agent.apply({"web": {"command": "sh -c 'exec sleep 2000 # hunter2'", **secret}})
    assert [one["field"] for one in changed["instances"][0]["changes"]] == ["command"]
    found = agent.ask("snapshot")["definitions"]["shop"]["web"]
    assert (found["env"], found["secrets"]) == ({"URL": "a-********-b"}, {"TOKEN": "********"})
    assert found["command"] == "sh -c 'exec sleep 2000 # ********'"
    info = agent.pm3("info", "web").stdout + agent.pm3("--json", "info", "web").stdout
    assert "exec sleep 2000 # ********" in info
    for shown in (json.dumps([made, changed, found]), info):
        assert "hunter2" not in shown


def test_log_follows_across_a_restart_and_ends_with_its_reader(agent: Agent) -> None:
    agent.apply({"talk": {"command": "sh -c 'echo I am $$; sleep 1000'"}})
    first = agent.pids()["talk"]
    answers = agent.client.stream({"type": "log", "name": "talk", "follow": True})
    assert next(answers)["line"] == f"I am {first}"
    agent.ask("restart", names=["talk"])
    assert next(answers)["line"] == f"I am {agent.pids()['talk']}"
    fds = len(os.listdir(f"/proc/{agent.pid()}/fd"))
    answers.close()
    until(lambda: len(os.listdir(f"/proc/{agent.pid()}/fd")) < fds, "the follower is gone")


def test_log_of_several_and_of_one_stream(agent: Agent) -> None:
    agent.apply({"talk": {"command": "sh -c 'echo out; echo err >&2; sleep 1000'", "instances": 2}, "quiet": SLEEP})
    names = ("talk:0-out", "talk:1-out", "talk:0-err", "talk:1-err")
    until(lambda: all(agent.log(name) for name in names), "they have spoken")

    def shown(**fields: Any) -> list[tuple[str | None, str, str]]:
        answers = agent.client.stream({"type": "log", **fields})
        return sorted((one.get("name"), one["stream"], one["line"]) for one in answers)

    both = [(f"talk:{number}", stream, stream) for number in (0, 1) for stream in ("err", "out")]
    assert shown() == shown(name="talk") == shown(names=["talk:1", "talk:0"]) == both
    assert shown(names=["talk:1"], stream="err") == [(None, "err", "err")]
    assert "not found" in agent.ask("log", names=["talk", "tlak"])["message"]
    assert agent.pm3("log", "talk:0", "--err").stdout == "err\n"


def test_a_follower_of_a_process_sees_instances_that_come_later(agent: Agent) -> None:
    talk = {"command": "sh -c 'echo I am $PM3_INSTANCE_ID; sleep 1000'", "instances": 2}
    agent.apply({"talk": talk})
    answers = agent.client.stream({"type": "log", "name": "talk", "follow": True})
    assert sorted(next(answers)["name"] for _line in range(2)) == ["talk:0", "talk:1"]
    agent.apply({"talk": {**talk, "instances": 3}})
    assert next(answers) == {"type": "log_line", "name": "talk:2", "stream": "out", "line": "I am 2"}
    answers.close()


def test_unknown_requests_are_answered(agent: Agent) -> None:
    assert "unknown" in agent.ask("frobnicate")["message"]
    assert agent.ask("signal", name="web")["type"] == "error"
