"""What a definition can ask for beyond running: hooks, checks, limits, and restarts for reasons of its own. Real processes."""

from __future__ import annotations

import json
import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from .conftest import Agent, alive
from .test_agent import SLEEP, actions, environment_of
from .waiting import until

QUICK = {"min_uptime": 0}


def started(agent: Agent, **definition: Any) -> dict[str, Any]:
    """Starts one process `web` and gives it."""
    done = agent.apply({"web": {**QUICK, **definition}})
    assert done["ok"], done["report"]
    return agent.instance("web")


def again(agent: Agent, pid: int) -> dict[str, Any]:
    """`web`, once it runs as another process."""

    def found() -> dict[str, Any] | None:
        one = agent.instance("web")
        return one if one["status"] == "online" and one["pid"] not in (None, pid) else None

    return dict(until(found, "another process of it is online"))


# Hooks


def test_hooks_run_in_order_and_are_as_the_program_is(agent: Agent) -> None:
    (agent.folder / "app").mkdir()
    definition = {
        "cwd": "app",
        "env": {"NAME": "@{name}"},
        "command": """sh -c 'echo "run $NAME" >>../story; exec sleep 1000'""",
        "pre_start": 'echo "pre $NAME $(basename $PWD) $PM3_INSTANCE_ID" | tee -a ../story',
        "post_stop": 'echo "post $NAME $PM3_EXIT_CAUSE" >>../story; echo bye >&2',
    }
    started(agent, **definition)
    agent.ask("restart", names=["web"])
    agent.ask("stop", names=["web"])
    story = (agent.folder / "story").read_text().splitlines()
    once = ["pre web app 0", "run web", "post web user"]
    assert story == [*once, *once]
    assert agent.log("web-out").splitlines() == ["pre web app 0"] * 2
    assert agent.log("web-err").splitlines() == ["bye"] * 2


def test_a_hook_that_fails_prevents_the_start(agent: Agent) -> None:
    done = agent.apply({"web": {"command": "sleep 1000", "pre_start": "echo no database >&2; exit 3"}})
    (row,) = done["instances"]
    assert (row["action"], row["status"], row["pid"]) == ("failed", "errored", None)
    assert row["reason"] == "hook failed: pre_start exited with code 3"
    assert row["log_tail"] == ["no database"]


def test_what_is_started_by_hand_and_whose_hook_fails_never_came_to_be(agent: Agent) -> None:
    """Pinned: the answer says "hook failed", and the process is not in the list."""
    answer = agent.ask("start", configs={"web": {"command": "sleep 1000", "pre_start": "false", "environments": {}}})
    assert answer["type"] == "error"
    assert "hook failed" in answer["message"]
    assert agent.instances() == {}


def test_w21_a_hook_that_fails_for_a_moment_is_tried_again(agent: Agent) -> None:
    ready = agent.folder / "ready"
    ready.touch()
    pid = started(agent, command="sleep 1000", pre_start=f"test -e {ready}")["pid"]
    ready.unlink()
    os.kill(pid, 9)
    until(lambda: (agent.instance("web")["last_exit"] or {}).get("cause") == "spawn", "the hook fails")
    ready.touch()
    assert again(agent, pid)["status"] == "online"


def test_a_hook_that_hangs_is_ended_in_time_and_holds_nobody_up(agent: Agent) -> None:
    hung = agent.client
    agent.ask(
        "apply",
        project="slow",
        base="/",
        wait=False,
        definitions={"web": {"command": "sleep 1000", "pre_start": "sleep 1000", "hook_timeout": "300ms"}},
    )
    assert hung.request({"type": "list"})["type"] == "process_list"
    until(lambda: agent.instance("web")["status"] == "errored", "it is given up")
    assert agent.instance("web")["last_exit"]["message"] == (
        "hook failed: pre_start took longer than hook_timeout, 0.3 s"
    )


def test_a_stop_ends_a_hook(agent: Agent) -> None:
    agent.ask(
        "apply",
        project="slow",
        base=str(agent.folder),
        wait=False,
        definitions={"web": {"command": "sleep 1000", "pre_start": "echo $$ >hook; exec sleep 1000"}},
    )
    hook = until(lambda: (agent.folder / "hook").exists() and (agent.folder / "hook").read_text(), "the hook runs")
    assert agent.instance("web")["pid"] is None  # the hook's is not the program's
    agent.ask("stop", names=["web"])
    assert not alive(int(hook))
    assert agent.instance("web")["status"] == "stopped"


@pytest.mark.parametrize(("command", "cause"), [("false", "exit"), ("sh -c 'kill -9 $$'", "signal"), ("true", "exit")])
def test_post_stop_runs_after_every_end(agent: Agent, command: str, cause: str) -> None:
    agent.apply(
        {"web": {"command": command, "restart": "never", "post_stop": "echo $PM3_EXIT_CAUSE $PM3_EXIT_CODE >end"}}
    )
    code = {"false": 1, "true": 0}.get(command, 137)
    until((agent.folder / "end").exists, "the hook has run")
    assert until((agent.folder / "end").read_text, "it has written") == f"{cause} {code}\n"


def test_an_agent_that_dies_within_a_hook_goes_on_with_it(agent: Agent) -> None:
    agent.ask(
        "apply",
        project="slow",
        base=str(agent.folder),
        wait=False,
        definitions={
            "web": {"command": "sleep 1000", "pre_start": "echo x >>began; while ! test -e go; do sleep 0.02; done"}
        },
    )
    until((agent.folder / "began").exists, "the hook runs")
    agent.crash()
    (agent.folder / "go").touch()
    until(lambda: agent.instance("web")["status"] == "online", "it comes up")
    assert (agent.folder / "began").read_text() == "x\n"


# Checks


def test_a_command_can_be_a_check(agent: Agent) -> None:
    done = agent.apply(
        {
            "web": {
                **QUICK,
                "command": "sh -c 'sleep 0.1; touch ready; exec sleep 1000'",
                "env": {"MARK": "ready"},
                "readiness_check": """exec://sh -c 'test -e "$MARK" && kill -0 $PM3_PID'""",
            }
        }
    )
    assert actions(done) == {"web": "created"}
    assert agent.instance("web")["status"] == "online"


def test_a_check_that_does_not_pass_says_why(agent: Agent) -> None:
    done = agent.apply(
        {
            "web": {
                **QUICK,
                "command": "sleep 1000",
                "readiness_check": "exec://sh -c 'echo no queue yet >&2; exit 7'",
                "readiness_timeout": "300ms",
            }
        }
    )
    (row,) = done["instances"]
    assert row["reason"] == (
        "did not become ready: readiness_check has not passed in time (exited with code 7: no queue yet)"
    )


def test_who_hangs_is_restarted_by_its_liveness_check(agent: Agent) -> None:
    pid = started(
        agent,
        command="sleep 1000",
        liveness_check="exec://test ! -e hung",
        liveness_interval="50ms",
        liveness_failures=2,
    )["pid"]
    (agent.folder / "hung").touch()
    until(lambda: not alive(pid), "it is ended")
    (agent.folder / "hung").unlink()
    one = again(agent, pid)
    assert one["restarts"] == 1
    assert one["last_exit"]["cause"] == "probe"
    assert one["last_exit"]["message"].startswith("liveness_check failed 2 times in a row: exited with code 1")


def test_a_check_command_ends_with_its_instance(agent: Agent) -> None:
    started(
        agent,
        command="sleep 1000",
        liveness_check="exec://sh -c 'echo $$ >check; exec sleep 1000'",
        liveness_interval="20ms",
        liveness_timeout="1m",
    )
    check = until(lambda: (agent.folder / "check").exists() and (agent.folder / "check").read_text(), "it is checked")
    agent.ask("stop", names=["web"])
    until(lambda: not alive(int(check)), "the check ends")


# Ending


def test_a_stop_command_instead_of_a_signal(agent: Agent) -> None:
    (agent.folder / "app.py").write_text(
        "import signal\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [10, 15])\n"
        "print('up', flush=True)\n"
        "while signal.sigwait([10, 15]) != 10: print('term', flush=True)"
    )
    pid = started(agent, command="python3 app.py", stop_command="echo asked >asked; kill -USR1 $PM3_PID")["pid"]
    until(lambda: agent.log("web-out") == "up\n", "it is ready")
    agent.ask("stop", names=["web"])
    assert (agent.folder / "asked").read_text() == "asked\n"
    assert not alive(pid)
    assert agent.log("web-out") == "up\n"


def test_a_stop_command_that_fails_is_followed_by_the_signal(agent: Agent) -> None:
    pid = started(agent, command="sleep 1000", stop_command="exit 1", kill_timeout="1h")["pid"]
    agent.ask("stop", names=["web"])
    assert not alive(pid)


# Restarts of its own


def test_memory_of_all_its_processes_above_the_limit_restarts_it(agent: Agent) -> None:
    (agent.folder / "app.py").write_text(
        "import os, time\n"
        "if not os.path.exists('once'):\n"
        "    open('once', 'w').close()\n"
        "    if os.fork() == 0: kept = bytearray(90 << 20)\n"
        "time.sleep(1000)"
    )
    pid = started(agent, command="python3 app.py", max_memory="60M", restart="never")["pid"]
    one = again(agent, pid)
    assert one["restarts"] == 1
    assert one["last_exit"]["cause"] == "memory"
    assert "more than max_memory (60M)" in one["last_exit"]["message"]


def test_a_file_that_changes_restarts_it_and_reading_does_not(agent: Agent) -> None:
    source = agent.folder / "src"
    source.mkdir()
    (source / "app.conf").write_text("1")
    pid = started(agent, command="sh -c 'cat src/app.conf; exec sleep 1000'", watch="src", restart="never")["pid"]
    (source / "app.conf").read_text()
    (source / "app.log").write_text("ignored")
    (source / "app.conf").write_text("2")
    one = again(agent, pid)
    assert (one["restarts"], one["last_exit"]["cause"]) == (1, "watch")
    assert one["last_exit"]["message"] == f"{source / 'app.conf'} changed"
    until(lambda: agent.log("web-out") == "1\n2", "it has read the new one")


def test_what_its_pre_start_writes_is_no_change(agent: Agent) -> None:
    (agent.folder / "in").write_text("1")
    definition = {"command": "sleep 1000", "watch": True, "pre_start": "cp in built; echo x >>/dev/null"}
    pid = started(agent, **definition)["pid"]
    (agent.folder / "in").write_text("2")
    pid = again(agent, pid)["pid"]
    (agent.folder / "in").write_text("3")
    assert again(agent, pid)["restarts"] == 2


@pytest.mark.parametrize("linked", [False, True])
def test_what_the_agent_writes_is_no_change(agent: Agent, linked: bool) -> None:
    """Its whole data dir may be in the tree, as a user's is in their home, and be reached by another name."""
    home = agent.folder
    if linked:
        home = agent.folder.with_name(f"{agent.folder.name}-link")
        home.symlink_to(agent.folder)
    pid = started(agent, command="sleep 1000", watch=str(home))["pid"]
    for round_ in (1, 2):
        agent.apply({"job": {"command": f"sh -c 'echo {round_}'", "restart": "never"}}, project="other")
        until(lambda round_=round_: agent.log("job-out").split()[-1:] == [str(round_)], "the job has run")  # type: ignore[misc]
        (agent.data_dir / f"new {round_}").write_text("as the store's journal")
        (agent.folder / "in").write_text("x")
        one = again(agent, pid)
        assert (one["restarts"], one["last_exit"]["message"]) == (round_, f"{home / 'in'} changed")
        pid = one["pid"]


def test_a_watch_of_the_data_dir_says_that_it_is_none(agent: Agent) -> None:
    started(agent, command="sleep 1000", watch=str(agent.data_dir))
    assert "the agent itself writes there" in agent.ask("info", name="web")["info"]["watch_trouble"]


def test_a_cluster_over_one_tree_restarts_once_per_burst(agent: Agent) -> None:
    source = agent.folder / "src"
    source.mkdir()
    assert agent.apply({"web": {**SLEEP, **QUICK, "instances": 8, "watch": "src"}})["ok"]
    for round_ in (1, 2):
        with agent.paused():  # however slow the disk is, for the agent this is one burst
            for number in range(20):
                (source / f"{round_} {number}").write_text("x")

        def restarted(round_: int = round_) -> bool:  # it is counted, and online, before the old process has ended
            one = {"restarts": round_, "status": "online"}
            why = f"{source / f'{round_} 0'} changed"
            return all(
                one.items() <= instance.items() and (instance["last_exit"] or {}).get("message") == why
                for instance in agent.instances().values()
            )

        until(restarted, "all have restarted, for the first of the changes")
    assert len(agent.instances()) == 8


def test_a_change_while_it_stops_is_seen_by_the_new_process_alone(agent: Agent) -> None:
    source = agent.folder / "src"
    source.mkdir()
    (source / "app.conf").write_text("1\n")
    (agent.folder / "app.sh").write_text(
        "trap 'touch stopping; while [ ! -e go ]; do sleep 0.05; done; exit' TERM\n"
        "cat src/app.conf\n"
        "sleep 1000 & wait\n"
    )
    pid = started(agent, command="sh app.sh", watch="src", kill_timeout=15000)["pid"]
    until(lambda: agent.log("web-out").split() == ["1"], "it waits")
    (source / "app.conf").write_text("2\n")
    until((agent.folder / "stopping").exists, "it stops")
    (source / "app.conf").write_text("3\n")
    (source / "while it stops").write_text("x")
    (agent.folder / "go").touch()
    pid = again(agent, pid)["pid"]
    until(lambda: agent.log("web-out").split() == ["1", "3"], "the new process has read it")
    (source / "afterwards").write_text("x")
    one = again(agent, pid)
    assert (one["restarts"], one["last_exit"]["message"]) == (2, f"{source / 'afterwards'} changed")


def test_a_folder_that_is_missing_is_told_and_waited_for(agent: Agent) -> None:
    source = agent.folder / "src"
    pid = started(agent, command="sleep 1000", watch="src")["pid"]
    sentence = f"{source} does not exist; it is watched as soon as it does"
    assert agent.ask("info", name="web")["info"]["watch_trouble"] == sentence
    assert sentence in (agent.data_dir / "agent.log").read_text()
    source.mkdir()
    (source / "app.conf").write_text("1")
    one = again(agent, pid)
    assert (one["restarts"], one["last_exit"]["cause"]) == (1, "watch")
    assert "watch_trouble" not in agent.ask("info", name="web")["info"]


def test_i3_a_stopped_instance_is_not_watched(agent: Agent) -> None:
    triggers = {"watch": True, "cron_restart": "* * * * * *"}
    started(agent, command="sleep 1000", **triggers)
    # Another one has the same, so that it can be seen when the file and the schedule have been heard of.
    agent.apply({"witness": {**QUICK, "command": "sleep 1000", **triggers}}, "other")
    agent.ask("stop", names=["web"])
    before = agent.instance("web")
    causes = set()

    def heard() -> bool:
        (agent.folder / "in").write_text("2")
        causes.add((agent.instance("witness")["last_exit"] or {}).get("cause"))
        return {"watch", "cron"} <= causes

    until(heard, "the witness is restarted for both reasons")
    assert agent.instance("web") == before
    assert before["status"] == "stopped"


def test_cron_restarts_it_and_starts_what_has_ended(agent: Agent) -> None:
    pid = started(agent, command="sleep 1000", cron_restart="* * * * * *", restart="never")["pid"]
    one = again(agent, pid)
    assert one["last_exit"]["cause"] == "cron"
    done = agent.apply({"job": {"command": "sh -c 'echo x >>jobs'", "cron_restart": "* * * * * *", "restart": "never"}})
    assert done["ok"]
    until(lambda: (agent.folder / "jobs").exists() and len((agent.folder / "jobs").read_text()) >= 4, "it ran twice")


# What it runs as


def test_umask_nice_and_limits(agent: Agent) -> None:
    pid = started(
        agent,
        command="sh -c 'touch made; exec sleep 1000'",
        umask="077",
        nice=7,
        limits={"nofile": "512:1024", "core": "unlimited"},
    )["pid"]
    until((agent.folder / "made").exists, "it has made its file")
    assert stat.S_IMODE((agent.folder / "made").stat().st_mode) == 0o600
    assert os.getpriority(os.PRIO_PROCESS, pid) == 7
    limits = {line[:26].strip(): line[26:].split()[:2] for line in Path(f"/proc/{pid}/limits").read_text().splitlines()}
    assert limits["Max open files"] == ["512", "1024"]
    assert limits["Max core file size"] == ["unlimited", "unlimited"]


@pytest.mark.skipif(os.getuid() != 0, reason="root can raise every limit that is not the kernel's")
def test_limits_that_cannot_be_set_are_told_and_are_not_the_programs_fault(agent: Agent) -> None:
    done = agent.apply({"web": {**SLEEP, "limits": {"nofile": 2**40}}})
    (row,) = done["instances"]
    assert (row["action"], row["reason"]) == ("failed", "its limits could not be set")
    assert agent.instance("web")["last_exit"]["cause"] == "spawn"


def test_a_terminal_for_stdout_alone(agent: Agent) -> None:
    code = "import sys,time\nprint(sys.stdout.isatty(), sys.stderr.isatty(), flush=True)\ntime.sleep(1000)"
    (agent.folder / "app.py").write_text(code)
    started(agent, command="python3 app.py", tty=True)
    log = agent.data_dir / "logs" / "web-out.log"
    until(lambda: log.read_bytes() == b"True False\r\n", "it says so")
    agent.crash()
    assert agent.instance("web")["status"] == "online"


def test_each_instance_has_its_own_files(agent: Agent) -> None:
    definition = {
        "command": "sh -c 'echo out; echo err >&2; exec sleep 1000'",
        "instances": 2,
        "stdout_file": "out/@{name}.txt",
        "stderr_file": f"{agent.folder}/err-@{{instance}}",
        "env_file": "@{process}.env",
    }
    (agent.folder / "web.env").write_text("FROM=file")
    done = agent.apply({"web": {**QUICK, **definition}})
    assert done["ok"]
    for number in (0, 1):
        until(lambda number=number: (agent.folder / f"out/web:{number}.txt").read_text() == "out\n", "stdout")
        until(lambda number=number: (agent.folder / f"err-{number}").read_text() == "err\n", "stderr")
    pid = agent.pids()["web:1"]
    assert environment_of(pid)["FROM"] == "file"
    assert agent.ask("info", name="web:1")["info"]["stdout_log"] == f"{agent.folder}/out/web:1.txt"


def test_a_link_in_place_of_a_named_log_is_not_followed(agent: Agent) -> None:
    victim = agent.folder / "victim"
    victim.write_text("precious")
    (agent.folder / "web.out").symlink_to(victim)
    started(agent, command="sh -c 'echo overwritten; exec sleep 1000'", stdout_file="web.out")
    until(lambda: "web.out cannot be written" in (agent.data_dir / "agent.log").read_text(), "it is told")
    assert victim.read_text() == "precious"


def test_logs_as_json(agent: Agent) -> None:
    started(agent, command="sh -c 'echo one; exec sleep 1000'", log_format="json")
    line = until(lambda: agent.log("web-out"), "a line comes")
    record = json.loads(line)
    assert (record["name"], record["stream"], record["line"]) == ("web", "stdout", "one")


def test_how_logs_are_kept_changes_while_it_runs(agent: Agent) -> None:
    definition = {"command": "sh -c 'while read line; do echo $line; done <pipe'"}
    os.mkfifo(agent.folder / "pipe")
    with open(agent.folder / "pipe", "r+b", buffering=0) as pipe:
        pid = started(agent, **definition)["pid"]
        pipe.write(b"plain\n")
        until(lambda: agent.log("web-out") == "plain\n", "it comes")
        done = agent.apply({"web": {**QUICK, **definition, "log_date_format": "at"}})
        assert actions(done) == {"web": "updated"}
        assert agent.instance("web")["pid"] == pid
        pipe.write(b"dated\n")
        until(lambda: agent.log("web-out") == "plain\nat | dated\n", "it comes with the time")


# Autostart


def test_what_does_not_start_by_itself_waits_to_be_started(agent: Agent) -> None:
    definitions = {"web": {**SLEEP, "autostart": False}}
    done = agent.apply(definitions)
    assert (actions(done), done["instances"][0]["status"]) == ({"web": "created"}, "stopped")
    assert not agent.apply(definitions)["changed"]
    answer = agent.ask("restart", names=["web"])
    assert answer["type"] == "success"
    assert agent.instance("web")["status"] == "online"
    assert not agent.apply(definitions)["changed"]
    agent.ask("stop", names=["web"])
    assert not agent.apply(definitions)["changed"]


def test_who_names_it_starts_it(agent: Agent) -> None:
    configs = {"web": {**SLEEP, "autostart": False, "environments": {}}}
    assert agent.ask("start", configs=configs)["message"] == "everything is already running"
    assert agent.instance("web")["status"] == "stopped"
    assert agent.ask("start", configs=configs, names=["web"])["message"] == "started: web"


# Lifetime


def test_facts_of_a_lifetime(agent: Agent) -> None:
    before = time.time()
    agent.apply({"web": {"command": "sh -c 'echo last words >&2; exit 3'", "restart": "never"}})
    one = until(lambda: (agent.instance("web")["last_exit"] or {}).get("log_tail") and agent.instance("web"), "it ends")
    last = one["last_exit"]
    assert (last["cause"], last["code"], last["signal"], last["log_tail"]) == ("exit", 3, None, ["last words"])
    assert before - 1 < last["at"] < time.time() + 1
    assert before - 1 < one["since"] < time.time() + 1
    (shown,) = json.loads(agent.pm3("--json", "list").stdout)["processes"]
    assert shown["last_exit"] == last
    assert agent.ask("info", name="web")["info"]["exit_code"] == 3


def test_facts_of_a_lifetime_are_in_every_row(agent: Agent) -> None:
    """As `list` shows them, whether something was done or not; in a plan as they are now."""
    definitions = {
        "web": {**QUICK, "command": "sleep 1000"},
        "job": {**QUICK, "command": "sh -c 'test ! -e bad'", "restart": "never"},
    }
    assert [row["last_exit"] for row in agent.apply(definitions)["instances"] if row["name"] == "web"] == [None]
    pid = agent.pids()["web"]
    os.kill(pid, 9)
    again(agent, pid)
    (agent.folder / "bad").touch()
    definitions["job"]["command"] += " "
    done = agent.apply(definitions)
    listed = agent.instances()
    planned = agent.ask("plan", project="shop", definitions=definitions, base=str(agent.folder))["instances"]
    for rows in (done["instances"], planned):
        for row in rows:
            for fact in ("restarts", "total_restarts", "last_exit"):
                assert row[fact] == listed[row["name"]][fact], (row, fact)
    (web,) = [row for row in done["instances"] if row["name"] == "web"]
    assert (web["action"], web["total_restarts"], web["last_exit"]["signal"]) == ("none", 1, 9)
    (job,) = [row for row in done["instances"] if row["name"] == "job"]
    assert (job["action"], job["last_exit"]["code"]) == ("failed", 1)


def test_no_row_tells_a_secret_that_a_process_or_a_check_told(agent: Agent) -> None:
    talkative = {
        **QUICK,
        "command": "sh -c 'echo $TOKEN >&2; exit 3'",
        "restart": "never",
        "secrets": {"TOKEN": "correct-horse"},
    }
    checked = {
        **QUICK,
        "command": "sleep 1000",
        "readiness_check": "exec://sh -c 'echo $TOKEN; exit 1'",
        "readiness_timeout": "100ms",
        "secrets": {"TOKEN": "battery-staple"},
    }
    done = agent.apply({"web": talkative})
    (row,) = done["instances"]
    assert row["last_exit"]["log_tail"] == row["log_tail"] == ["********"]
    # What was said with the old secret is not told when there is a new one.
    done = agent.apply({"web": {**talkative, "secrets": {"TOKEN": "new"}}}, state="stopped")
    assert "correct-horse" not in json.dumps([done, agent.instances()])
    done = agent.apply({"web": checked})
    assert "(exited with code 1: ********)" in done["instances"][0]["reason"]
    assert "battery-staple" not in json.dumps(done)
