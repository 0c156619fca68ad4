"""A program that was written for pm3's socket, or calls pm3 on the command line, works unchanged (spec: pm3.md).

The client here is made from section 6 of that page alone, and sends absent fields as null. Tests are named after the section that
they hold the agent to.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sqlite3
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import COMMAND, Agent, alive
from .test_agent import environment_of, free_port
from .waiting import until

Document = dict[str, Any]

# Every key of a config object (section 6.3); pm3's own client sends all of them.
KEYS = (  # noqa: SIM905
    "command cwd env env_file environments restart max_restarts min_uptime stop_exit_codes kill_signal kill_timeout "
    "readiness_check readiness_timeout health_check max_memory watch watch_ignore depends_on group pre_start post_stop "
    "cron_restart log_date_format instances"
).split()
SLEEP = "sleep 1000"


def exchange(agent: Agent, line: bytes) -> list[bytes]:
    """One request on a connection of its own: a line, then our half is closed, and all that comes is read."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(agent.data_dir / "pm3.sock"))
        connection.sendall(line)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while True:
            more = connection.recv(65536)
            if not more:
                break
            answer += more
    assert not answer or answer.endswith(b"\n")
    return answer.splitlines()


def lines(agent: Agent, kind: str, **fields: Any) -> list[Document]:
    return [json.loads(one) for one in exchange(agent, json.dumps({"type": kind, **fields}).encode() + b"\n")]


def ask(agent: Agent, kind: str, **fields: Any) -> Document:
    (answer,) = lines(agent, kind, **fields)
    return dict(answer)


def config(command: str = SLEEP, **fields: Any) -> Document:
    return {**dict.fromkeys(KEYS), "environments": {}, "command": command, **fields}


def start(agent: Agent, names: list[str] | None = None, env: str | None = None, **configs: Document) -> Document:
    return ask(agent, "start", configs=configs, names=names, env=env, wait=False, path=os.environ["PATH"])


def started(agent: Agent, **configs: Document) -> dict[str, Document]:
    answer = start(agent, **configs)
    assert answer["type"] == "success", answer
    return listed(agent)


def listed(agent: Agent) -> dict[str, Document]:
    return {one["name"]: one for one in ask(agent, "list")["processes"]}


def message(agent: Agent, kind: str, **fields: Any) -> str:
    """The message of a success."""
    answer = ask(agent, kind, **fields)
    assert answer["type"] == "success", answer
    return str(answer["message"])


def refusal(agent: Agent, kind: str, **fields: Any) -> str:
    answer = ask(agent, kind, **fields)
    assert answer["type"] == "error", answer
    return str(answer["message"])


def eventually(agent: Agent, name: str, **expected: Any) -> Document:
    """`name` in the list, as soon as it is as expected; None: the key is absent."""

    def found() -> Document | None:
        one = listed(agent).get(name, {})
        return one if all(one.get(key) == value for key, value in expected.items()) else None

    return dict(until(found, f"{name} is {expected}"))


@pytest.fixture
def tmp_agent(tmp_path: Path) -> Iterator[Agent]:
    """An agent that no command has started yet."""
    one = Agent(tmp_path)
    yield one
    one.end()


# 2 Clusters and names


def test_s2_instances_are_numbered_and_told_so(agent: Agent) -> None:
    found = started(agent, web=config(instances=3, env={"PM3_INSTANCE_ID": "mine"}), db=config(instances=1))
    assert sorted(found) == ["db", "web:0", "web:1", "web:2"]
    assert [one.get("group") for one in found.values()] == [None, "web", "web", "web"]
    for number in range(3):
        env = environment_of(found[f"web:{number}"]["pid"])
        assert (env["PM3_INSTANCE_ID"], env["PM3_INSTANCE_COUNT"]) == (str(number), "3")


@pytest.mark.parametrize(
    ("names", "stopped"),
    [(["web:1"], ["web:1"]), (["web"], ["web:0", "web:1"]), (["front"], ["front"]), (["back"], ["db", "job"])],
)
def test_s2_an_instance_beats_a_process_beats_a_group(agent: Agent, names: list[str], stopped: list[str]) -> None:
    started(
        agent,
        web=config(instances=2, group="front"),
        front=config(),
        db=config(group="back"),
        job=config(group="back"),
    )
    assert message(agent, "stop", names=names) == f"stopped: {', '.join(stopped)}"
    assert sorted(name for name, one in listed(agent).items() if one["status"] == "stopped") == stopped


@pytest.mark.parametrize("kind", ["stop", "restart", "reload", "flush"])
def test_s2_one_bad_name_fails_the_whole_request(agent: Agent, kind: str) -> None:
    before = started(agent, web=config())["web"]
    assert "not found: nobody" in refusal(agent, kind, names=["web", "nobody"])
    after = listed(agent)["web"]
    assert (after["pid"], after["status"], after["restarts"]) == (before["pid"], "online", 0)


def test_s2_start_finds_names_in_what_was_sent(agent: Agent) -> None:
    file = {"web": config(instances=2, group="front"), "db": config()}
    assert start(agent, ["front"], **file)["message"] == "started: web:0, web:1"
    assert start(agent, ["nobody"], **file)["message"] == "process or group 'nobody' not found in configs"
    assert sorted(listed(agent)) == ["web:0", "web:1"]


def test_s2_start_may_name_an_instance(agent: Agent) -> None:
    file = {"web": config(instances=3, depends_on=["db"]), "db": config(instances=2), "job": config(depends_on=["web"])}
    assert start(agent, ["web:1"], **file)["message"] == "started: db:0, db:1, web:1"
    ask(agent, "stop", names=["db:0", "web:1"])
    assert start(agent, ["web:3"], **file)["message"] == "process or group 'web:3' not found in configs"
    assert start(agent, ["db:0"], **file)["message"] == "started: db:0"
    assert start(agent, ["web:0", "job"], **file)["message"] == "started: web:0, web:1, web:2, job"


@pytest.mark.parametrize("kind", ["info", "signal", "log"])
def test_s2_reading_commands_say_not_found(agent: Agent, kind: str) -> None:
    assert "not found: nobody" in refusal(agent, kind, name="nobody", signal="HUP")


def test_s2_a_dependency_may_be_one_instance(agent: Agent) -> None:
    started(agent, db=config(instances=2), web=config(depends_on=["db:1"]))
    assert message(agent, "stop", names=["db:0"]) == "stopped: db:0"
    assert message(agent, "stop", names=["db:1"]) == "stopped: db:1, web"


# 3.1 States


def test_s3_1_what_lives_is_online_in_the_next_list(agent: Agent) -> None:
    start(agent, web=config())
    one = listed(agent)["web"]
    assert one["status"] == "online"
    assert alive(one["pid"])


GATED = "sh -c 'read line <gate; exec python3 -m http.server --bind 127.0.0.1 PORT'"


def test_s3_1_who_is_checked_is_starting_and_then_online(agent: Agent) -> None:
    os.mkfifo(agent.folder / "gate")
    port = free_port()
    check = f"tcp://127.0.0.1:{port}"
    web = config(GATED.replace("PORT", str(port)), cwd=str(agent.folder), readiness_check=check, health_check=check)
    assert started(agent, web=web)["web"]["status"] == "starting"
    with open(agent.folder / "gate", "w") as gate:
        gate.write("go\n")
    eventually(agent, "web", status="online")


def test_s3_1_who_is_not_ready_in_time_is_unhealthy(agent: Agent) -> None:
    web = config(readiness_check=f"tcp://127.0.0.1:{free_port()}", readiness_timeout=1)
    started(agent, web=web)
    one = eventually(agent, "web", status="unhealthy")
    assert alive(one["pid"])


@pytest.mark.parametrize(
    ("command", "fields", "status"),
    [
        ("sh -c 'sleep 0.2'", {}, "stopped"),
        ("sh -c 'sleep 0.2; exit 4'", {"stop_exit_codes": [4]}, "errored"),
        ("sh -c 'sleep 0.2; exit 4'", {"restart": "never"}, "errored"),
        ("sh -c 'sleep 0.2; kill -9 $$'", {"max_restarts": 0}, "errored"),
    ],
)
def test_s3_1_how_an_end_is_called(agent: Agent, command: str, fields: Document, status: str) -> None:
    started(agent, job=config(command, **fields))
    eventually(agent, "job", status=status, pid=None, restarts=0)


# 3.2 Spawning


def test_s3_2_stdout_is_a_terminal_where_that_is_the_default_and_stderr_is_none(tmp_agent: Agent) -> None:
    agent = tmp_agent
    agent.pm3("list", PM3_DEFAULT_TTY="1")
    started(agent, web=config("""sh -c 'test -t 1 && echo "1 is"; test -t 2 || echo "2 is not"; exec sleep 1000'"""))
    log = agent.data_dir / "logs" / "web-out.log"
    until(lambda: log.read_bytes() == b"1 is\r\n2 is not\r\n", "it has said so")
    assert [one["line"] for one in lines(agent, "log", name="web")] == ["1 is", "2 is not"]  # section 4: without CR


def test_s3_2_stdin_is_empty(agent: Agent) -> None:
    started(agent, web=config("sh -c 'read line || readlink /proc/self/fd/0; exec sleep 1000'"))
    until(lambda: agent.log("web-out") == "/dev/null\n", "it has said so")


def test_s3_2_a_command_is_no_shell(agent: Agent) -> None:
    started(agent, web=config("""sh -c 'echo "$@"; exec sleep 1000' x '$HOME' * a#b "c d" # no more"""))
    until(lambda: agent.log("web-out") == "$HOME * a#b c d\n", "it has said so")


# 3.3 start


def test_s3_3_a_one_shot_was_started(agent: Agent) -> None:
    assert start(agent, job=config("true"))["message"] == "started: job"
    eventually(agent, "job", status="stopped", pid=None, restarts=0)


def test_s3_3_what_has_ended_is_started_again_but_not_for_its_dependents(agent: Agent) -> None:
    file = {"job": config("sh -c 'echo x >>ran'", cwd=str(agent.folder)), "web": config(depends_on=["job"])}
    assert start(agent, **file)["message"] == "started: job, web"
    assert start(agent, ["web"], **file)["message"] == "everything is already running"
    assert (agent.folder / "ran").read_text() == "x\n"
    assert start(agent, ["job"], **file)["message"] == "started: job"
    assert start(agent, **file)["message"] == "started: job"
    assert (agent.folder / "ran").read_text() == "x\n" * 3


def test_s3_3_a_failed_hook_is_no_immediate_exit(agent: Agent) -> None:
    answer = start(agent, web=config(pre_start="exit 3"))
    assert answer == {"type": "error", "message": "failed to start 'web': hook failed: pre_start exited with code 3"}
    assert listed(agent) == {}


def test_s3_3_levels_are_in_order_and_names_alphabetical_in_them(agent: Agent) -> None:
    file = {"a": config(depends_on=["z"]), "z": config(), "m": config()}
    assert start(agent, **file) == {"type": "success", "message": "started: m, z, a"}
    assert start(agent, **file) == {"type": "success", "message": "everything is already running"}


def test_s3_3_an_immediate_exit_is_an_error_though_it_is_tried_again(agent: Agent) -> None:
    text = refusal(agent, "start", configs={"bad": config("false", max_restarts=2), "ok": config()})
    assert text.startswith("failed to start 'bad': process exited immediately")
    eventually(agent, "bad", status="errored", restarts=2)
    assert listed(agent)["ok"]["status"] == "online"  # nothing is rolled back


def test_s3_3_of_several_failures_each_reason_names_whose_it_is(agent: Agent) -> None:
    nowhere = str(agent.folder / "zzz")
    bad, lost = config("sh -c 'exit 4'", restart="never"), config(cwd=nowhere)
    text = refusal(agent, "start", configs={"z": lost, "a": bad})
    why = f"cwd {nowhere} is not a directory on this host"
    assert text == f"failed to start 'a, z': process exited immediately (a exited with code 4); z: {why}"
    assert refusal(agent, "start", configs={"y": lost, "z": lost}) == f"failed to start 'y, z': y: {why}; z: {why}"
    assert refusal(agent, "start", configs={"z": lost}) == f"failed to start 'z': {why}"


def test_s3_3_wait_is_for_all_of_them(agent: Agent) -> None:
    os.mkfifo(agent.folder / "gate")
    port = free_port()
    check = f"tcp://127.0.0.1:{port}"
    web = config(GATED.replace("PORT", str(port)), cwd=str(agent.folder), readiness_check=check)
    answers: list[Document] = []
    waiting = threading.Thread(target=lambda: answers.append(ask(agent, "start", configs={"web": web}, wait=True)))
    waiting.start()
    eventually(agent, "web", status="starting")
    assert not answers
    with open(agent.folder / "gate", "w") as gate:
        gate.write("go\n")
    waiting.join()
    assert answers == [{"type": "success", "message": "started: web"}]
    assert listed(agent)["web"]["status"] == "online"


def test_s3_3_who_does_not_become_ready_fails_a_start_that_waits(agent: Agent) -> None:
    web = config(readiness_check=f"tcp://127.0.0.1:{free_port()}", readiness_timeout=1)
    text = refusal(agent, "start", configs={"web": web, "late": config(depends_on=["web"])}, wait=True)
    assert text.startswith("failed to start 'web': did not become ready: readiness_check has not passed in time")
    assert "late" not in {name for name, one in listed(agent).items() if "pid" in one}


def test_s3_3_nothing_after_a_failed_dependency_is_started(agent: Agent) -> None:
    bad, late = config("false", max_restarts=0), config(depends_on=["bad"])
    assert "'bad'" in refusal(agent, "start", configs={"bad": bad, "late": late})
    assert "pid" not in listed(agent).get("late", {})


def test_s3_3_the_overlay_is_merged_and_an_unknown_one_is_named(agent: Agent) -> None:
    web = config(env={"A": "base", "B": "base"}, environments={"prod": {"B": "prod", "C": "prod"}})
    assert "unknown environment: 'test'" in start(agent, env="test", web=web)["message"]
    assert start(agent, env="prod", web=web, db=config())["type"] == "success"
    env = environment_of(listed(agent)["web"]["pid"])
    assert {name: env[name] for name in "ABC"} == {"A": "base", "B": "prod", "C": "prod"}
    assert ask(agent, "info", name="web")["info"]["env"] == {"A": "base", "B": "prod", "C": "prod"}


def test_s3_3_the_path_of_the_client_is_used_and_one_in_env_wins(agent: Agent) -> None:
    path = os.environ["PATH"] + ":/from/the/client"
    configs = {"web": config(), "own": config(env={"PATH": "/usr/bin:/bin"})}
    assert ask(agent, "start", configs=configs, path=path)["type"] == "success"
    found = {name: environment_of(one["pid"])["PATH"] for name, one in listed(agent).items()}
    assert found == {"web": path, "own": "/usr/bin:/bin"}


def test_s3_3_an_env_file_that_is_missing_is_named(agent: Agent) -> None:
    text = refusal(agent, "start", configs={"web": config(env_file="nothing.env", cwd=str(agent.folder))})
    assert "env file" in text
    assert f"{agent.folder}/nothing.env" in text


# 3.4 Counters


def test_s3_4_always_and_exit_0_with_a_limit_of_2(agent: Agent) -> None:
    start(agent, job=config("true", restart="always", max_restarts=2))
    eventually(agent, "job", status="stopped", restarts=2, pid=None)


def test_s3_4_on_failure_and_exit_1_with_a_limit_of_3(agent: Agent) -> None:
    start(agent, job=config("false", max_restarts=3))
    eventually(agent, "job", status="errored", restarts=3, pid=None)


def test_s3_4_a_crash_after_a_long_enough_run_shows_1(agent: Agent) -> None:
    pid = started(agent, web=config(min_uptime=0))["web"]["pid"]
    for _turn in range(2):
        os.kill(pid, signal.SIGKILL)
        until(lambda pid=pid: listed(agent)["web"].get("pid") not in (None, pid), "it runs again")
        one = eventually(agent, "web", status="online")
        pid = one["pid"]
    assert one["restarts"] == 1


def test_s3_4_a_manual_restart_counts_and_a_start_begins_anew(agent: Agent) -> None:
    file = {"web": config()}
    started(agent, **file)
    assert message(agent, "restart", names=["web"]) == "restarted: web"
    assert listed(agent)["web"]["restarts"] == 1
    ask(agent, "stop")
    assert start(agent, **file)["message"] == "started: web"
    assert (
        listed(agent)["web"]["restarts"] == 0
    )  # W20: a start has the whole budget, and the counter shows what is used


# 3.5 Hooks


def test_s3_5_a_restart_runs_post_stop_and_then_pre_start(agent: Agent) -> None:
    web = config(cwd=str(agent.folder), pre_start="echo pre >>story", post_stop="echo post >>story")
    started(agent, web=web)
    ask(agent, "restart")
    ask(agent, "stop")
    ask(agent, "stop")  # what is stopped already has nothing to clear away
    assert (agent.folder / "story").read_text().split() == ["pre", "post", "pre", "post"]


# 3.10 Dependencies


def test_s3_10_a_stop_takes_its_dependents_along_and_names_both(agent: Agent) -> None:
    started(agent, db=config(), api=config(depends_on=["db"]), web=config(depends_on=["api"]))
    assert set(message(agent, "stop", names=["db"]).partition(": ")[2].split(", ")) == {"db", "api", "web"}
    assert {one["status"] for one in listed(agent).values()} == {"stopped"}


def test_s3_10_a_restart_takes_its_dependents_along(agent: Agent) -> None:
    before = started(agent, db=config(), web=config(depends_on=["db"]), job=config())
    assert message(agent, "restart", names=["db"]) == "restarted: db, web"
    after = listed(agent)
    assert [name for name in sorted(after) if after[name]["pid"] == before[name]["pid"]] == ["job"]


@pytest.mark.parametrize("kind", ["stop", "restart", "reload"])
@pytest.mark.parametrize("name", ["api", "web"])
def test_s3_10_w1_what_has_dependencies_is_stopped_and_restarted_on_its_own(agent: Agent, kind: str, name: str) -> None:
    started(agent, db=config(), api=config(depends_on=["db"]), web=config(depends_on=["api"]))
    before = listed(agent)["db"]["pid"]
    assert name in message(agent, kind, names=[name])
    assert listed(agent)["db"]["pid"] == before


def test_s3_10_w2_what_has_dependencies_is_started_on_its_own(agent: Agent) -> None:
    file = {"db": config(), "api": config(depends_on=["db"], group="front"), "web": config(depends_on=["api"])}
    assert start(agent, ["front"], **file)["message"] == "started: db, api"
    assert start(agent, ["web"], **file)["message"] == "started: web"
    assert start(agent, ["web"], web=file["web"])["message"] == "everything is already running"


@pytest.mark.parametrize(
    ("depends_on", "said"), [(["nobody"], ["web", "nobody"]), (["db"], ["circular dependency detected", "web", "db"])]
)
def test_s3_10_a_missing_or_circular_dependency_is_named(agent: Agent, depends_on: list[str], said: list[str]) -> None:
    configs = {"web": config(depends_on=depends_on), "db": config(depends_on=["web"])}
    text = refusal(agent, "start", configs=configs)
    assert [word for word in said if word not in text] == []
    assert listed(agent) == {}


# 3.11 A stop


def test_s3_11_when_the_answer_comes_the_process_is_gone(agent: Agent) -> None:
    stubborn = config("sh -c 'trap \"\" TERM; while :; do sleep 1; done'", kill_timeout=200)
    before = started(agent, web=config(), stubborn=stubborn)
    assert message(agent, "stop") == "stopped: stubborn, web"
    for one in before.values():
        with pytest.raises(ProcessLookupError):
            os.kill(one["pid"], 0)
    assert message(agent, "stop") == "stopped: "


def test_s3_11_the_signal_may_be_another(agent: Agent) -> None:
    script = 'sh -c \'trap "echo int; exit" INT; trap "" TERM; echo up; while :; do sleep 0.05; done\''
    for said in ("INT", "SIGINT"):
        started(agent, web=config(script, kill_signal=said, kill_timeout=60000))
        until(lambda: agent.log("web-out").endswith("up\n"), "it is up")
        ask(agent, "stop")
    assert agent.log("web-out") == "up\nint\n" * 2


# 3.12 reload


def test_s3_12_without_a_check_it_is_a_restart(agent: Agent) -> None:
    before = started(agent, web=config(), db=config(), late=config(depends_on=["db"]))
    assert message(agent, "reload", names=["web", "db"], path=os.environ["PATH"]) == "reloaded: db, web"
    after = listed(agent)
    assert [after[name]["restarts"] for name in ("web", "db", "late")] == [1, 1, 0]  # dependents are not included
    assert after["late"]["pid"] == before["late"]["pid"]


def test_s3_12_with_a_check_the_counter_stays(agent: Agent) -> None:
    web = config(cwd=str(agent.folder), health_check="exec://true")
    before = started(agent, web=web)["web"]["pid"]
    eventually(agent, "web", status="online")
    assert message(agent, "reload") == "reloaded: web"
    one = listed(agent)["web"]
    assert (one["restarts"], one["status"]) == (0, "online")
    assert one["pid"] != before
    assert not alive(before)
    assert sorted(listed(agent)) == ["web"]


# 3.13 save and resurrect


def test_s3_13_no_dump(agent: Agent) -> None:
    assert listed(agent) == {}
    assert refusal(agent, "resurrect", path=os.environ["PATH"]) == "no dump file found"


def test_s3_13_a_dump_is_an_array_and_a_fresh_agent_restores_it(agent: Agent) -> None:
    web = config(env={"A": "1"}, instances=2, restart="always")
    started(agent, db=config(), web=web)
    ask(agent, "restart", names=["db"])
    assert message(agent, "save") == "saved 3 process(es) to dump file"
    entries = {one["name"]: one for one in json.loads((agent.data_dir / "dump.json").read_text())}
    assert sorted(entries) == ["db", "web:0", "web:1"]
    for name, one in listed(agent).items():
        assert (entries[name]["pid"], entries[name]["restarts"]) == (one["pid"], one["restarts"])
        assert entries[name]["config"]["command"] == SLEEP
        assert isinstance(entries[name]["config"]["environments"], dict)
    assert entries["web:1"]["config"]["restart"] == "always"
    end(agent)
    agent.pm3("list")
    until(lambda: {one["status"] for one in listed(agent).values()} == {"online"}, "all of it is up")
    assert sorted(listed(agent)) == ["db", "web:0", "web:1"]
    assert message(agent, "resurrect") == "all processes already running"


def end(agent: Agent) -> None:
    pid = agent.pid()
    assert ask(agent, "kill") == {"type": "success", "message": "daemon shutting down"}
    until(lambda: not alive(pid), "the agent ends")


def test_s3_13_what_is_saved_and_gone_is_resurrected(agent: Agent) -> None:
    started(agent, web=config(), db=config())
    ask(agent, "save")
    ask(agent, "delete", names=["web"])
    assert message(agent, "resurrect", path=os.environ["PATH"]) == "resurrected: web"


# 3.14 kill


def test_s3_14_socket_and_pid_file_go_with_everything(agent: Agent) -> None:
    pids = [one["pid"] for one in started(agent, web=config(), db=config()).values()]
    left = [agent.data_dir / "pm3.sock", agent.data_dir / "pm3.pid"]
    assert (agent.data_dir / "pm3.pid").read_bytes() == str(agent.pid()).encode()
    assert ask(agent, "kill") == {"type": "success", "message": "daemon shutting down"}
    until(lambda: not any(map(os.path.lexists, left)), "both are gone")
    assert [pid for pid in pids if alive(pid)] == []
    assert agent.pm3("list").stdout == "no processes running\n"  # section 10: list after kill starts another


# 4 Logs


TALK = "sh -c 'i=0; while [ $i -lt 40 ]; do i=$((i+1)); echo line $i; done; exec sleep 1000'"


def test_s4_the_last_lines_and_no_names_for_one(agent: Agent) -> None:
    started(agent, talk=config(TALK), quiet=config())
    until(lambda: agent.log("talk-out").count("\n") == 40, "it has spoken")
    shown = lines(agent, "log", name="talk", lines=3)
    assert [(one["type"], one["line"]) for one in shown] == [("log_line", f"line {number}") for number in (38, 39, 40)]
    assert not any("name" in one for one in shown)
    assert len(lines(agent, "log", name="talk")) == 15
    assert len(lines(agent, "log", name="talk", lines=100000)) == 40
    assert lines(agent, "log", name="talk", lines=0) == []
    assert lines(agent, "log", name="quiet") == []


def test_s4_a_name_on_every_line_for_several(agent: Agent) -> None:
    started(agent, a=config("sh -c 'echo out; echo err >&2; exec sleep 1000'"), b=config("sh -c 'echo b; sleep 1000'"))
    until(lambda: agent.log("a-out") and agent.log("a-err") and agent.log("b-out"), "they have spoken")
    found = sorted((one["name"], one["line"]) for one in lines(agent, "log", name=None, lines=5))
    assert found == [("a", "err"), ("a", "out"), ("b", "b")]


def test_s4_follow_until_the_client_leaves(agent: Agent) -> None:
    os.mkfifo(agent.folder / "pipe")
    with open(agent.folder / "pipe", "r+b", buffering=0) as pipe:
        started(agent, web=config("sh -c 'while read line; do echo $line; done <pipe'", cwd=str(agent.folder)))
        pipe.write(b"before\n")
        until(lambda: agent.log("web-out") == "before\n", "it comes")
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(agent.data_dir / "pm3.sock"))
            connection.sendall(b'{"type":"log","name":"web","lines":1,"follow":true}\n')
            connection.shutdown(socket.SHUT_WR)
            with connection.makefile() as answers:
                assert json.loads(answers.readline())["line"] == "before"
                pipe.write(b"after\n")
                assert json.loads(answers.readline())["line"] == "after"
        pipe.write(b"and on\n")
        until(lambda: agent.log("web-out").endswith("and on\n"), "it goes on")


def test_s4_flush_leaves_empty_files_and_no_rotated_ones(agent: Agent) -> None:
    started(agent, talk=config(TALK), web=config())
    until(lambda: agent.log("talk-out").count("\n") == 40, "it has spoken")
    for number in (1, 2, 3):
        (agent.data_dir / "logs" / f"talk-err.log.{number}").write_text("older")
    assert message(agent, "flush", names=None) == "flushed logs: talk, web"
    assert agent.log("talk-out") == agent.log("talk-err") == ""
    assert not list((agent.data_dir / "logs").glob("talk-err.log.*"))


def test_s4_a_date_before_every_line(agent: Agent) -> None:
    talk = config("sh -c 'echo out; echo err >&2; exec sleep 1000'", log_date_format="%Y-%m-%d")
    started(agent, web=talk)
    for stream in ("out", "err"):
        until(lambda stream=stream: agent.log(f"web-{stream}"), "it comes")
        assert re.fullmatch(rf"\d{{4}}-\d\d-\d\d \| {stream}\n", agent.log(f"web-{stream}"))


# 5 Command line


FILE = """
[web]
command = "sleep 1000"
depends_on = ["db"]
group = "front"
env_prod = { MODE = "prod" }

[db]
command = "sleep 1000"
"""


def typed(agent: Agent, *words: str, status: int = 0) -> tuple[str, str]:
    """The first line on stdout and all of stderr."""
    done = agent.pm3(*words, check=False)
    assert done.returncode == status, done
    return done.stdout.split("\n")[0], done.stderr


def test_s5_2_messages(agent: Agent) -> None:
    agent.file(FILE)
    for words, said in (
        (["start", "--env", "prod"], "started: db, web"),
        (["start", "--env", "prod"], "everything is already running"),
        (["restart", "web"], "restarted: web"),
        (["reload", "web"], "reloaded: web"),
        (["signal", "web", "CONT"], "sent CONT to 'web'"),
        (["signal", "web", "SIGCONT"], "sent SIGCONT to 'web'"),
        (["flush"], "flushed logs: db, web"),
        (["flush", "web"], "flushed logs: web"),
        (["save"], "saved 2 process(es) to dump file"),
        (["resurrect"], "all processes already running"),
        (["stop", "db"], "stopped: db, web"),
        (["stop"], "stopped: "),
        (["resurrect"], "resurrected: db, web"),
        (["kill"], "daemon shutting down"),
    ):
        assert typed(agent, *words) == (said, ""), words


def test_s5_2_errors_exit_1(agent: Agent) -> None:
    agent.file(FILE)
    for words, said in (
        (["resurrect"], "no dump file found"),
        (["start", "nobody"], "process or group 'nobody' not found in configs"),
        (["start", "--env", "nowhere"], "unknown environment: 'nowhere'"),
        (["stop", "nobody"], "process or group not found: nobody"),
        (["restart", "nobody"], "process or group not found: nobody"),
        (["reload", "nobody"], "process or group not found: nobody"),
        (["info", "nobody"], "not found: nobody"),
        (["log", "nobody"], "not found: nobody"),
        (["flush", "nobody"], "not found: nobody"),
        (["signal", "nobody", "HUP"], "not found: nobody"),
    ):
        found = typed(agent, *words, status=1)[1]
        assert found.startswith("error: "), words
        assert said in found, words
    agent.pm3("start", "db")
    assert "invalid signal: HOP" in typed(agent, "signal", "db", "HOP", status=1)[1]
    agent.pm3("stop", "db")
    assert "process 'db' is not running" in typed(agent, "signal", "db", "HUP", status=1)[1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "pm3.toml: No such file or directory"),
        ("", "the config file is empty"),
        ("# nothing\n", "the config file is empty"),
        ("[web\n", "TOML parse error: "),
        ("web = 1\n", "[web]"),
        ('[web]\ncommand = "x"\nfrob = 1\n', "[web] frob: unknown field"),
        ('[web]\ncwd = "/"\n', "[web] command: missing"),
        ('["a/b"]\ncommand = "x"\n', "invalid process name 'a/b'"),
        ('["a:0"]\ncommand = "x"\n', "invalid process name 'a:0'"),
        ('["a..b"]\ncommand = "x"\n', "invalid process name 'a..b'"),
        ('[web]\ncommand = "x"\nreadiness_timeout = 3\n', "needs a readiness_check"),
        ('[web]\ncommand = "x"\nreadiness_check = "tcp://a:1"\nreadiness_timeout = 0\n', "more than 0"),
        ('[web]\ncommand = "x"\nenv = { PORT = 80 }\n', "[web] env"),
        ('[web]\ncommand = "x"\nrestart = "on-failure"\n', "[web] restart"),
    ],
)
def test_s1_1_a_bad_file_is_told_before_any_agent_is_started(tmp_path: Path, text: str | None, said: str) -> None:
    agent = Agent(tmp_path)
    if text is not None:
        agent.file(text)
    done = agent.pm3("start", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert not agent.data_dir.exists()


def test_s1_1_odd_names_are_names(agent: Agent) -> None:
    agent.file('["a b"]\ncommand = "sleep 1000"\n["größe ☃"]\ncommand = "sleep 1000"\ngroup = "g g"\n')
    assert typed(agent, "start", "a b", "g g")[0] == "started: a b, größe ☃"
    assert typed(agent, "stop", "größe ☃")[0] == "stopped: größe ☃"
    assert (agent.data_dir / "logs" / "größe ☃-out.log").exists()
    assert typed(agent, "info", "a b")[0] == "a b: online"


def test_s5_2_the_table_and_the_view(agent: Agent) -> None:
    assert typed(agent, "list") == ("no processes running", "")
    agent.file(FILE)
    shown = agent.pm3("start").stdout.split("\n", 1)[1]
    assert re.findall(r"[a-z]+", shown.split("\n")[1]) == [
        "name",
        "group",
        "pid",
        "status",
        "cpu",
        "mem",
        "uptime",
        "restarts",
    ]
    for word in ("list", "view"):
        table = agent.pm3(word).stdout
        assert [line.split()[1] for line in table.splitlines() if line.startswith("│")] == ["name", "db", "web"]


def test_s5_2_info_has_its_labels(agent: Agent) -> None:
    agent.file(FILE)
    agent.pm3("start", "--env", "prod")
    text = agent.pm3("info", "web").stdout
    pid = listed(agent)["web"]["pid"]
    logs = agent.data_dir / "logs"
    assert text.startswith("web: online\n")
    for line in (
        "command: sleep 1000",
        f"pid: {pid}",
        "restarts: 0",
        "group: front",
        "MODE=prod",
        f"stdout_log: {logs}/web-out.log",
        f"stderr_log: {logs}/web-err.log",
        "depends_on: db",
    ):
        assert f"  {line}\n" in text


def test_s5_3_json_is_one_document_whatever_happens(agent: Agent) -> None:
    agent.file(FILE)
    for words, status, kind in (
        (["start"], 0, "success"),
        (["list"], 0, "process_list"),
        (["info", "web"], 0, "process_detail"),
        (["restart"], 0, "success"),
        (["reload"], 0, "success"),
        (["flush"], 0, "success"),
        (["signal", "web", "CONT"], 0, "success"),
        (["save"], 0, "success"),
        (["stop"], 0, "success"),
        (["stop", "nobody"], 1, "error"),
        (["start", "nobody"], 1, "error"),
        (["kill"], 0, "success"),
    ):
        for arguments in (["--json", *words], [*words, "--json"]):
            done = agent.pm3(*arguments, check=False)
            assert (done.returncode, done.stderr, done.stdout.count("\n")) == (status, "", 1), words
            assert json.loads(done.stdout)["type"] == kind
            if kind == "success" and words == ["kill"]:
                break


def test_s5_1_an_error_ends_a_shell_line(agent: Agent) -> None:
    """W3: what follows && is not done."""
    agent.file('[bad]\ncommand = "false"\n')
    line = f"{' '.join(COMMAND)} start --wait && echo deployed"
    done = subprocess.run(
        ["sh", "-c", line], cwd=agent.folder, env=agent.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "deployed" not in done.stdout


# 6 The protocol


@pytest.mark.parametrize(
    "line",
    [
        b'{"type":"list"}\n',
        b'{"type":"list"}',
        b' { "type" : "list" } \t \r\n',
        b'{"type":"list"}\nwhatever follows the first line',
        b'{"type":"list","frob":1,"names":null}\n',
    ],
)
def test_s6_1_one_line_is_one_request(agent: Agent, line: bytes) -> None:
    assert [json.loads(one) for one in exchange(agent, line)] == [{"type": "process_list", "processes": []}]


@pytest.mark.parametrize("line", [b"no json\n", b'{"type":"frobnicate"}\n', b'{"type":"start"}\n', b"[]\n", b"\n"])
def test_s6_1_w55_what_cannot_be_used_is_told(agent: Agent, line: bytes) -> None:
    (answer,) = [json.loads(one) for one in exchange(agent, line)]
    assert answer["type"] == "error"
    assert answer["message"]


def test_s6_1_connections_do_not_wait_for_each_other(agent: Agent) -> None:
    """W25: a hook that hangs holds up nobody."""
    with socket.socket(socket.AF_UNIX) as waiting:
        waiting.connect(str(agent.data_dir / "pm3.sock"))
        request = {"type": "start", "configs": {"slow": config(pre_start="sleep 1000")}}
        waiting.sendall(json.dumps(request).encode() + b"\n")
        until(lambda: "slow" in listed(agent), "its hook runs")
        assert start(agent, web=config())["type"] == "success"
        assert message(agent, "stop", names=["slow"]).startswith("stopped: slow")
        assert json.loads(waiting.makefile().readline())["type"] == "error"


def test_s7_what_is_typed_while_a_fresh_agent_comes_up_delays_and_forgets_nothing(agent: Agent) -> None:
    os.mkfifo(agent.folder / "gate")
    port = free_port()
    check = f"tcp://127.0.0.1:{port}"
    db = config(GATED.replace("PORT", str(port)), cwd=str(agent.folder), readiness_check=check)
    opening = threading.Thread(target=lambda: (agent.folder / "gate").write_text("go\n"))
    opening.start()
    started(agent, db=db, web=config(depends_on=["db"]))
    opening.join()
    ask(agent, "save")
    end(agent)
    agent.pm3("list")
    eventually(agent, "db", status="starting")
    assert start(agent, job=config())["message"] == "started: job"
    assert message(agent, "restart", names=["job"]) == "restarted: job"
    (agent.folder / "gate").write_text("go\n")
    eventually(agent, "web", status="online")


def test_s6_2_every_request_with_and_without_its_optional_fields(agent: Agent) -> None:
    least = {"command": SLEEP, "environments": {}}
    assert ask(agent, "start", configs={"web": least})["message"] == "started: web"
    for kind, fields, optional in (
        ("start", {"configs": {"web": least}}, {"names": None, "env": None, "path": None}),
        ("restart", {}, {"names": None}),
        ("reload", {}, {"names": None, "path": None}),
        ("flush", {}, {"names": None}),
        ("save", {}, {}),
        ("resurrect", {}, {"path": None}),
        ("signal", {"name": "web", "signal": "CONT"}, {}),
        ("stop", {}, {"names": None}),
    ):
        for one in (fields, {**fields, **optional}):
            assert ask(agent, kind, **one)["type"] == "success", kind
    assert ask(agent, "list")["type"] == "process_list"
    assert ask(agent, "info", name="web")["type"] == "process_detail"
    assert lines(agent, "log") == lines(agent, "log", name=None) == []


@pytest.mark.parametrize("kind", ["stop", "restart", "reload", "flush"])
def test_s6_2_no_names_are_all_but_an_empty_array_is_nobody(agent: Agent, kind: str) -> None:
    before = started(agent, web=config())["web"]["pid"]
    assert message(agent, kind, names=[]).endswith(": ")
    assert start(agent, [], web=config(), db=config())["message"] == "everything is already running"
    assert {name: one["pid"] for name, one in listed(agent).items()} == {"web": before}
    assert message(agent, kind, names=None).endswith(": web")


def test_s6_3_every_key_of_a_config(agent: Agent) -> None:
    (agent.folder / "vars.env").write_text("FROM=file\n")
    full = {
        "command": SLEEP,
        "cwd": str(agent.folder),
        "env": {"A": "1"},
        "env_file": ["vars.env"],
        "environments": {"prod": {"A": "2"}},
        "restart": "on_failure",
        "max_restarts": 4294967295,
        "min_uptime": 1,
        "stop_exit_codes": [0, 143],
        "kill_signal": "TERM",
        "kill_timeout": 18446744073709551,
        "readiness_check": "exec://true",
        "readiness_timeout": 5,
        "health_check": "exec://true",
        "max_memory": "1.5 gb",
        "watch": ".",
        "watch_ignore": ["*.log", "node_modules"],
        "depends_on": [],
        "group": "g",
        "pre_start": "true",
        "post_stop": "true",
        "cron_restart": "0 3 * * *",
        "log_date_format": "%H:%M",
        "instances": 1,
    }
    assert sorted(full) == sorted(KEYS)
    assert start(agent, web=full) == {"type": "success", "message": "started: web"}
    for change in ({"env_file": "vars.env"}, {"watch": False}, {"watch": True}, {"restart": "never"}, {"instances": 0}):
        assert start(agent, web={**full, **change})["type"] == "success", change
    assert sorted(listed(agent)) == ["web"]


def test_s6_4_the_process_object(agent: Agent) -> None:
    started(agent, web=config(group="g"), job=config("true"), two=config(instances=2))
    found = listed(agent)
    for name, one in found.items():
        assert None not in one.values(), "what is absent is left out"
        assert one["name"] == name
        assert one["status"] in ("starting", "online", "unhealthy", "stopped", "errored")
        whole = ("uptime", "restarts", *(key for key in ("pid", "memory_bytes") if key in one))
        assert [key for key in whole if isinstance(one[key], bool) or not isinstance(one[key], int)] == []
    assert isinstance(found["web"]["cpu_percent"], float)
    assert found["web"]["group"] == "g"
    assert {"pid", "cpu_percent", "memory_bytes", "group"}.isdisjoint(eventually(agent, "job", status="stopped"))


def test_s6_4_the_detail_object(agent: Agent) -> None:
    check = "exec://true"
    web = config(
        cwd=str(agent.folder),
        env={"A": "1"},
        readiness_check=check,
        readiness_timeout=7,
        health_check=check,
        depends_on=["db"],
    )
    started(agent, db=config(), web=web)
    eventually(agent, "web", status="online")
    info = ask(agent, "info", name="web")["info"]
    logs = agent.data_dir / "logs"
    expected = {
        "name": "web",
        "status": "online",
        "command": SLEEP,
        "cwd": str(agent.folder),
        "env": {"A": "1"},
        "stdout_log": f"{logs}/web-out.log",
        "stderr_log": f"{logs}/web-err.log",
        "readiness_check": check,
        "readiness_timeout": 7,
        "health_check": check,
        "depends_on": ["db"],
    }
    assert {key: info[key] for key in expected} == expected
    assert isinstance(info["readiness_timeout"], int)
    assert "readiness_check" not in ask(agent, "info", name="db")["info"]


# 7 Paths and the daemon


def test_s7_the_data_dir(agent: Agent) -> None:
    started(agent, web=config())
    assert stat.S_ISSOCK((agent.data_dir / "pm3.sock").stat().st_mode)
    assert (agent.data_dir / "pm3.pid").read_text() == str(agent.pid())
    assert {"web-out.log", "web-err.log"} <= set(os.listdir(agent.data_dir / "logs"))


def test_s7_w31_there_is_one_daemon(agent: Agent) -> None:
    web = started(agent, web=config())["web"]["pid"]
    with subprocess.Popen(
        [*COMMAND, "list", "--daemon"], env=agent.environment, stderr=subprocess.PIPE, text=True
    ) as second:
        assert second.stderr is not None
        try:
            assert "daemon is already running" in second.stderr.readline()
        finally:
            second.kill()
    assert listed(agent)["web"]["pid"] == web


def test_s7_sigterm_is_an_orderly_end(agent: Agent) -> None:
    pids = [one["pid"] for one in started(agent, web=config(), db=config()).values()]
    pid = agent.pid()
    os.kill(pid, signal.SIGTERM)
    until(lambda: not alive(pid), "the agent ends")
    assert [one for one in pids if alive(one)] == []
    assert not (agent.data_dir / "pm3.sock").exists()


# 9 Defects that may not exist here, where no other test is about them


def test_w4_w5_each_file_has_its_own_folder_and_no_other_environment(agent: Agent) -> None:
    for name in ("one", "two"):
        folder = agent.folder / name
        folder.mkdir()
        (folder / "vars.env").write_text(f"FROM={name}\n")
        (folder / "pm3.toml").write_text(f'[{name}]\ncommand = "sleep 1000"\nenv_file = "vars.env"\n')
        environ = {**agent.environment, "SECRET_OF_THE_SHELL": "x"}
        subprocess.run([*COMMAND, "start"], cwd=folder, env=environ, check=True, capture_output=True)
    for name, one in listed(agent).items():
        assert os.readlink(f"/proc/{one['pid']}/cwd") == str(agent.folder / name)
        env = environment_of(one["pid"])
        assert env["FROM"] == name
        assert "SECRET_OF_THE_SHELL" not in env
    assert os.readlink(f"/proc/{agent.pid()}/cwd") == "/"


@pytest.mark.parametrize(
    "bad", [{"command": "/no/such/program"}, {"pre_start": "exit 1"}, {"env_file": "/no/such/file"}], ids=str
)
def test_w10_what_cannot_be_started_leaves_its_siblings_supervised(agent: Agent, bad: Document) -> None:
    file = {"bad": config(**{"command": SLEEP, **bad}), "web": config()}
    assert start(agent, **file)["type"] == "error"
    pid = listed(agent)["web"]["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: listed(agent)["web"].get("pid") not in (None, pid), "it runs again")


def test_w13_nothing_of_earlier_lives_is_left(agent: Agent) -> None:
    (agent.folder / "file").write_text("0")
    fields = {"cwd": str(agent.folder), "watch": True, "cron_restart": "0 0 1 1 *", "max_memory": "1G", "min_uptime": 0}
    pid = started(agent, web=config(max_restarts=100, **fields))["web"]["pid"]
    before = len(os.listdir(f"/proc/{agent.pid()}/fd"))
    for _turn in range(4):
        os.kill(pid, signal.SIGKILL)
        pid = until(
            lambda old=pid: listed(agent)["web"].get("pid") not in (None, old) and listed(agent)["web"], "it runs"
        )["pid"]
        eventually(agent, "web", status="online")
    total = listed(agent)["web"]["total_restarts"]
    (agent.folder / "file").write_text("1")
    eventually(agent, "web", total_restarts=total + 1, status="online")
    until(lambda: len(os.listdir(f"/proc/{agent.pid()}/fd")) == before, "as many descriptors are open as before")
    assert listed(agent)["web"]["total_restarts"] == total + 1


def test_w16_each_instance_has_its_own_check(agent: Agent) -> None:
    (agent.folder / "ready-1").touch()
    started(agent, web=config(instances=2, cwd=str(agent.folder), readiness_check="exec://test -e ready-@{instance}"))
    eventually(agent, "web:1", status="online")
    assert listed(agent)["web:0"]["status"] == "starting"
    (agent.folder / "ready-0").touch()
    eventually(agent, "web:0", status="online")


MISTAKES = {
    "kill_signal": "TREM",
    "cron_restart": "61 * * * *",
    "max_memory": "much",
    "readiness_check": "ftp://host",
    "health_check": "tcp://host",
    "log_date_format": "\x00",
    "instances": 1.5,
    "depends_on": ["nobody"],
    "command": "sh -c 'no end",
    "watch_ignore": [""],
}


def test_w19_w51_every_mistake_is_found_at_load_and_all_at_once(agent: Agent) -> None:
    """And again by the agent, whatever a client has not checked (W58)."""
    answer = start(agent, web=config(**MISTAKES))
    assert answer["type"] == "error"
    assert {problem["field"] for problem in answer["problems"]} == set(MISTAKES)
    assert listed(agent) == {}
    fields = {key: value for key, value in MISTAKES.items() if key not in ("log_date_format", "depends_on")}
    agent.file("[web]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in fields.items()))
    for command in ("check", "start"):
        told = agent.pm3(command, check=False)
        assert told.returncode == 1
        assert [key for key in fields if f"[web] {key}: " not in told.stdout + told.stderr] == []


def test_w30_a_pid_alone_is_never_believed(agent: Agent) -> None:
    """As after a boot: everybody is dead, and the pids that were noted are strangers'."""
    web = started(agent, web=config())["web"]["pid"]
    keeper = int(Path(f"/proc/{agent.pid()}/stat").read_text().rpartition(")")[2].split()[1])
    for pid in (keeper, agent.pid(), web):
        os.kill(pid, signal.SIGKILL)
        until(lambda pid=pid: not alive(pid), "it is dead")
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        try:
            (agent.data_dir / "pm3.pid").write_text(str(stranger.pid))
            with sqlite3.connect(agent.data_dir / "store.sqlite") as store:
                assert store.execute("UPDATE instances SET pid = ?", [stranger.pid]).rowcount == 1
            store.close()
            agent.pm3("list")
            one = eventually(agent, "web", status="online")
            assert one["pid"] not in (web, stranger.pid)
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_w35_any_byte_may_be_in_the_output(agent: Agent) -> None:
    script = (
        r"""sh -c 'printf "\377\376 out\n\000\n"; printf "\377 err\n" >&2; echo on; echo on >&2; exec sleep 1000'"""
    )
    started(agent, web=config(script))
    logs = agent.data_dir / "logs"
    until(lambda: (logs / "web-out.log").read_bytes() == b"\xff\xfe out\n\0\non\n", "stdout is complete")
    until(lambda: (logs / "web-err.log").read_bytes() == b"\xff err\non\n", "stderr is complete")
    assert len(lines(agent, "log", name="web")) == 5
    assert len(agent.pm3("log", "web").stdout.splitlines()) == 5
