"""pm3's own changes: reload, signal, flush, delete, save and resurrect. Real processes, real ports."""

from __future__ import annotations

import json
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from .conftest import Agent, alive
from .test_agent import SLEEP, free_port
from .test_races import in_background, mine, processes_of
from .waiting import until

SERVER = """
import http.server, os, socket, sys
class Server(http.server.ThreadingHTTPServer):
    allow_reuse_port = SHARED
    def server_bind(self):
        if SHARED:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(str(os.getpid()).encode())
    def log_message(self, *_): pass
if os.path.exists("broken"):
    sys.exit("it is broken")
Server(("127.0.0.1", @NUMBER@), Handler).serve_forever()
"""


def server(agent: Agent, shared: bool) -> dict[str, Any]:
    """A definition of a web server; `shared`: two of it can listen on its port at a time."""
    port = free_port()
    (agent.folder / "app.py").write_text(SERVER.replace("SHARED", str(shared)).replace("@NUMBER@", str(port)))
    url = f"http://127.0.0.1:{port}/"
    return {"command": "python3 app.py", "readiness_check": url, "min_uptime": 0, "readiness_timeout": 20}


def up(agent: Agent, **definitions: Any) -> dict[str, int]:
    done = agent.apply(definitions)
    assert done["ok"], done["report"]
    return agent.pids()


# Start


def test_start_leaves_one_alone_that_is_slow_to_pass_its_checks(agent: Agent) -> None:
    agent.file("""
        [web]
        command = "sleep 1000"
        readiness_check = "exec://test -e ready"
        readiness_timeout = 1
        """)
    agent.pm3("start")
    until(lambda: agent.instance("web")["status"] == "unhealthy", "it has not passed in time")
    before = agent.pids()
    assert "everything is already running" in agent.pm3("start").stdout
    assert agent.pids() == before
    (agent.folder / "ready").touch()
    until(lambda: agent.instance("web")["status"] == "online", "it passes after all")
    assert agent.pids() == before


# Reload


def test_reload_with_a_check_swaps_without_a_gap(agent: Agent) -> None:
    before = up(agent, web={**server(agent, shared=True), "post_stop": "touch stopped"})["web"]
    answer = agent.ask("reload", names=["web"])
    assert answer["message"] == "reloaded: web"
    one = agent.instance("web")
    assert one["pid"] != before
    assert (one["status"], one["restarts"]) == ("online", 0)
    assert not alive(before)
    assert not (agent.folder / "stopped").exists()  # W12: it goes on as another process


def test_w11_after_a_reload_it_is_supervised_as_before(agent: Agent) -> None:
    up(agent, web={**server(agent, shared=True)})
    agent.ask("reload")
    pid = agent.pids()["web"]
    os.kill(pid, 9)

    def is_restarted() -> bool:
        found = agent.instance("web")
        return found["status"] == "online" and found["pid"] != pid

    until(is_restarted, "it is restarted")
    agent.crash()
    found = agent.instance("web")
    assert found["status"] == "online", found


def test_w12_a_copy_that_cannot_listen_does_not_take_the_place_of_one_that_does(agent: Agent) -> None:
    definition = {**server(agent, shared=False), "readiness_timeout": 2}
    before = up(agent, web=definition)["web"]
    answer = agent.ask("reload", names=["web"])
    assert answer["type"] == "error"
    assert answer["message"].startswith("reload failed: web (web exited with code 1: OSError:")
    assert "in use" in answer["message"]
    assert agent.pids()["web"] == before


def test_w12_an_answer_of_the_old_copy_is_not_one_of_the_new(agent: Agent) -> None:
    """The new one lives, but does not listen: the old one answers on the port of both."""
    definition = server(agent, shared=False)
    before = up(agent, web=definition)["web"]
    up(agent, web={**definition, "readiness_timeout": 1})
    (agent.folder / "app.py").write_text("import time; time.sleep(1000)")
    answer = agent.ask("reload", names=["web"])
    assert answer["type"] == "error"
    assert "is answered by another process" in answer["message"]
    assert agent.pids()["web"] == before


def test_a_broken_copy_leaves_the_old_one_alone(agent: Agent) -> None:
    definition = server(agent, shared=True)
    before = up(agent, web=definition, job=SLEEP)
    (agent.folder / "broken").touch()
    answer = agent.ask("reload")
    assert answer["message"] == "reloaded: job (failed: web)"
    after = agent.pids()
    assert after["web"] == before["web"]
    assert after["job"] != before["job"]
    assert agent.instance("job")["restarts"] == 1


def test_a_program_that_reads_its_files_anew_gets_its_signal(agent: Agent) -> None:
    (agent.folder / "app.py").write_text(
        "import signal\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [1])\n"
        "print('up', flush=True)\n"
        "while signal.sigwait([1]): print('read anew', flush=True)"
    )
    before = up(agent, web={"command": "python3 app.py", "reload_signal": "HUP"})
    until(lambda: agent.log("web-out") == "up\n", "it is up")
    assert agent.ask("reload", names=["web"])["message"] == "reloaded: web"
    until(lambda: agent.log("web-out") == "up\nread anew\n", "it has the signal")
    assert agent.pids() == before


def test_a_stop_during_a_reload_is_a_stop(agent: Agent) -> None:
    up(agent, web=server(agent, shared=True))
    (agent.folder / "app.py").write_text("open('began', 'w').close()\nimport time; time.sleep(1000)")
    with socket.socket(socket.AF_UNIX) as waiting:
        waiting.connect(str(agent.data_dir / "pm3.sock"))
        waiting.sendall(b'{"type":"reload","names":["web"]}\n')
        until((agent.folder / "began").exists, "the copy runs")
        assert agent.ask("stop", names=["web"])["type"] == "success"
        answer = json.loads(waiting.makefile().readline())
    assert answer["type"] == "error"
    assert "was stopped meanwhile" in answer["message"]
    assert agent.instance("web")["status"] == "stopped"
    listed = [one for one in Path("/proc").iterdir() if one.name.isdigit() and _runs_in(one, agent.folder)]
    assert not listed


@pytest.mark.parametrize("way", ["reload", "apply"])
def test_a_reload_starts_nothing_that_was_stopped_before_its_turn(agent: Agent, way: str) -> None:
    ready = agent.folder / "ready"
    ready.touch()
    check = {"readiness_check": f"exec://test -e {ready}", "readiness_timeout": 60}
    web = mine(agent, {**SLEEP, **check, "instances": 2})
    before = up(agent, web=web)
    ready.unlink()
    if way == "reload":
        answer = in_background(lambda: agent.ask("reload", names=["web"]))
    else:
        answer = in_background(lambda: agent.apply({"web": web}, state="reloaded"))
    until(lambda: len(processes_of(agent, "web:0")) > 1, "web:0 is being reloaded")
    assert agent.ask("stop", names=["web:1"])["type"] == "success"
    ready.touch()
    assert "was stopped meanwhile (pm3 stop by " in str(answer())
    assert agent.instance("web:1")["status"] == "stopped"
    assert agent.pids()["web:0"] != before["web:0"]


def _runs_in(process: Path, folder: Path) -> bool:
    try:
        return Path(os.readlink(process / "cwd")) == folder and b"app.py" in (process / "cmdline").read_bytes()
    except OSError:
        return False


def test_an_agent_that_dies_during_a_reload_keeps_the_old_copy_alone(agent: Agent) -> None:
    before = up(agent, web=server(agent, shared=True))["web"]
    (agent.folder / "app.py").write_text(
        "open('began', 'w').write(str(__import__('os').getpid()))\nimport time; time.sleep(1000)"
    )
    with socket.socket(socket.AF_UNIX) as waiting:
        waiting.connect(str(agent.data_dir / "pm3.sock"))
        waiting.sendall(b'{"type":"reload","names":["web"]}\n')
        copy = until(
            lambda: (agent.folder / "began").exists() and (agent.folder / "began").read_text(), "the copy runs"
        )
        agent.crash()
    until(lambda: not alive(int(copy)), "the copy is ended")
    assert agent.pids()["web"] == before


# Signal


def test_a_signal_goes_to_the_program_alone(agent: Agent) -> None:
    (agent.folder / "app.py").write_text(
        "import os, signal, time\n"
        "if os.fork() == 0: time.sleep(1000)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [10])\n"
        "print('up', flush=True)\n"
        "while signal.sigwait([10]): print('got', flush=True)"
    )
    up(agent, web={"command": "python3 app.py", "instances": 2, "group": "front"})
    until(lambda: agent.log("web:0-out") == agent.log("web:1-out") == "up\n", "they are up")
    for times, (name, said) in enumerate((("web:0", "USR1"), ("web", "SIGUSR1"), ("front", "usr1")), 1):
        assert agent.ask("signal", name=name, signal=said)["message"] == f"sent {said} to '{name}'"
        expected = "up\n" + "got\n" * times
        until(lambda expected=expected: agent.log("web:0-out") == expected, "it got it")
    assert agent.instance("web:0")["restarts"] == 0


@pytest.mark.parametrize(
    ("name", "said", "answer"),
    [
        ("nobody", "HUP", "not found: nobody"),
        ("web", "HOP", "invalid signal: HOP"),
        ("web", "HUP", "process 'web' is not running"),
    ],
)
def test_signals_that_cannot_be_sent(agent: Agent, name: str, said: str, answer: str) -> None:
    up(agent, web=SLEEP)
    agent.ask("stop")
    found = agent.ask("signal", name=name, signal=said)
    assert found["type"] == "error"
    assert answer in found["message"]


def test_a_signal_that_reached_only_some_says_which(agent: Agent) -> None:
    up(agent, **{name: {**SLEEP, "group": "front"} for name in ("a", "b", "c")})
    agent.ask("stop", names=["b"])
    found = agent.ask("signal", name="front", signal="CONT")
    assert found == {"type": "error", "message": "process 'b' is not running; sent CONT to 'a, c'"}


# Flush


def test_flush_empties_and_the_program_goes_on(agent: Agent) -> None:
    os.mkfifo(agent.folder / "pipe")
    with open(agent.folder / "pipe", "r+b", buffering=0) as pipe:
        up(agent, web={"command": "sh -c 'while read line; do echo $line; done <pipe'"}, job=SLEEP)
        pipe.write(b"before\n")
        until(lambda: agent.log("web-out") == "before\n", "it comes")
        (agent.data_dir / "logs" / "web-out.log.1").write_text("older")
        assert agent.ask("flush", names=["web"])["message"] == "flushed logs: web"
        assert agent.log("web-out") == agent.log("web-err") == ""
        assert not (agent.data_dir / "logs" / "web-out.log.1").exists()
        pipe.write(b"after\n")
        until(lambda: agent.log("web-out") == "after\n", "it comes")
    assert agent.ask("flush")["message"] == "flushed logs: job, web"


# Delete


def test_delete_stops_and_forgets(agent: Agent) -> None:
    pids = up(agent, db=SLEEP, web={**SLEEP, "depends_on": ["db"]}, job=SLEEP)
    assert agent.ask("delete", names=["db"])["message"] == "deleted: db"
    assert not alive(pids["db"])
    assert not alive(pids["web"])
    after = agent.instances()
    assert set(after) == {"web", "job"}
    assert after["web"]["status"] == "stopped"
    assert agent.ask("delete")["type"] == "error"
    assert agent.ask("delete", names=["nobody"])["type"] == "error"


# Save and resurrect


def start(agent: Agent, **configs: Any) -> None:
    answer = agent.ask(
        "start", configs={name: {**one, "environments": {}} for name, one in configs.items()}, path=os.environ["PATH"]
    )
    assert answer["type"] == "success", answer


def ended(agent: Agent) -> None:
    pid = agent.pid()
    agent.ask("kill")
    until(lambda: not alive(pid), "the agent ends")


def dump(agent: Agent) -> Path:
    return agent.data_dir / "dump.json"


def test_a_fresh_agent_without_a_dump_is_empty(agent: Agent) -> None:
    start(agent, web=SLEEP)
    ended(agent)
    agent.pm3("list")
    assert agent.instances() == {}
    assert agent.ask("resurrect")["message"] == "no dump file found"


def test_what_was_saved_is_back_with_a_fresh_agent(agent: Agent) -> None:
    start(agent, db=SLEEP, web={**SLEEP, "instances": 2, "depends_on": ["db"], "env": {"A": "1"}}, job=SLEEP)
    agent.ask("stop", names=["job"])
    assert agent.ask("save")["message"] == "saved 4 process(es) to dump file"
    entries = json.loads(dump(agent).read_text())
    assert [entry["name"] for entry in entries] == ["db", "job", "web:0", "web:1"]
    assert all({"name", "config", "pid", "restarts"} <= set(entry) for entry in entries)
    assert stat.S_IMODE(dump(agent).stat().st_mode) == 0o600  # W58
    before = agent.instances()
    ended(agent)
    agent.pm3("list")
    until(
        lambda: {one["status"] for name, one in agent.instances().items() if name != "job"} == {"online"}, "all is up"
    )
    after = agent.instances()
    assert set(after) == set(before)
    assert after["job"]["status"] == "stopped"  # W48
    assert after["web:1"]["count"] == 2
    assert agent.ask("resurrect")["message"] == "all processes already running"


def test_resurrect_starts_what_rests_although_it_ran(agent: Agent) -> None:
    start(agent, web=SLEEP, job=SLEEP)
    agent.ask("save")
    agent.ask("stop", names=["web"])
    agent.ask("delete", names=["job"])
    assert agent.ask("resurrect")["message"] == "resurrected: job, web"
    assert {one["status"] for one in agent.instances().values()} == {"online"}


def test_a_dump_brings_nothing_back_that_an_apply_has_removed(agent: Agent) -> None:
    up(agent, web={**SLEEP, "instances": 3}, solo=SLEEP, db=SLEEP)
    assert agent.apply({"api": SLEEP}, project="gone")["ok"]
    start(agent, mine=SLEEP)
    agent.ask("save")
    entries = {one["name"]: one for one in json.loads(dump(agent).read_text())}
    assert (entries["db"]["project"], entries["mine"]["project"]) == ("shop", None)
    del entries["solo"]["project"]  # as an older agent would have written it
    dump(agent).write_text(json.dumps(list(entries.values())))
    up(agent, web={**SLEEP, "instances": 2}, solo={**SLEEP, "instances": 2})
    assert agent.apply({}, project="gone", state="absent")["ok"]
    ended(agent)
    agent.pm3("list")
    assert set(agent.instances()) == {"mine", "solo:0", "solo:1", "web:0", "web:1"}


def test_resurrect_leaves_to_a_project_what_is_the_projects(agent: Agent) -> None:
    up(agent, web={**SLEEP, "instances": 2}, db=SLEEP)
    start(agent, mine=SLEEP)
    agent.ask("save")
    up(agent, web=SLEEP)
    agent.ask("delete", names=["mine"])
    assert agent.ask("resurrect")["message"] == "resurrected: mine; left to apply: db, web:0, web:1"
    assert agent.instance("mine")["project"] is None
    assert set(agent.instances()) == {"mine", "web"}
    assert agent.ask("resurrect")["message"] == "all processes already running; left to apply: db, web:0, web:1"


def test_what_was_saved_of_a_project_that_no_store_knows_is_resurrected_as_ad_hoc(agent: Agent) -> None:
    start(agent, web=SLEEP)
    agent.ask("save")
    (entry,) = json.loads(dump(agent).read_text())
    dump(agent).write_text(json.dumps([{**entry, "project": "elsewhere"}]))
    ended(agent)
    agent.pm3("list")
    assert agent.instances() == {}
    assert agent.ask("resurrect")["message"] == "resurrected: web"
    assert agent.instance("web")["project"] is None


def test_w47_one_bad_entry_does_not_cost_the_others(agent: Agent) -> None:
    start(agent, web=SLEEP)
    agent.ask("save")
    entries = json.loads(dump(agent).read_text())
    odd = {**entries[0], "name": "odd", "process": "odd", "config": {**entries[0]["config"], "kill_signal": "SIGFOO"}}
    dump(agent).write_text(json.dumps([{"name": "x"}, 7, {"name": "../x", "config": {"command": "x"}}, odd, *entries]))
    agent.ask("delete", names=["web"])
    answer = agent.ask("resurrect")
    assert answer["type"] == "error"
    assert answer["message"].endswith("; resurrected: web")
    for said in (
        "an entry that has no name or no config",
        "passed over '../x': ",
        "passed over 'odd': [odd] kill_signal: ",
    ):
        assert said in answer["message"]
    assert agent.instance("web")["status"] == "online"
    assert agent.pm3("resurrect", check=False).returncode == 1
    assert "passed over" in (agent.data_dir / "agent.log").read_text()
    dump(agent).write_text("[{")
    answer = agent.ask("resurrect")
    assert answer["type"] == "error"
    assert "nothing is restored from it" in answer["message"]


def test_a_dump_of_pm3_itself_is_understood(agent: Agent) -> None:
    env = {"PATH": "/usr/bin:/bin", "PM3_INSTANCE_ID": "1", "PM3_INSTANCE_COUNT": "2"}
    config = {"command": "sleep 1000", "env": env, "environments": {}, "instances": 1, "group": "mailer", "cwd": None}
    dump(agent).write_text(json.dumps([{"name": "mailer:1", "config": config, "pid": 1, "restarts": 3}]))
    assert agent.ask("resurrect")["message"] == "resurrected: mailer:1"
    one = agent.instance("mailer:1")
    assert (one["process"], one["number"], one["count"]) == ("mailer", 1, 2)
    assert one["pid"] != 1


def test_w50_an_explicit_path_stays(agent: Agent) -> None:
    start(agent, web={**SLEEP, "env": {"PATH": "/usr/bin:/bin"}})
    agent.ask("save")
    agent.ask("delete", names=["web"])
    agent.ask("resurrect", path="/nowhere")
    pid = agent.pids()["web"]
    environ = dict(line.split("=", 1) for line in Path(f"/proc/{pid}/environ").read_text().split("\0") if line)
    assert environ["PATH"] == "/usr/bin:/bin"
