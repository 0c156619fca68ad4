"""What a person types and what comes of it: exit statuses, output in pipes and terminals, one JSON document per command."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .conftest import COMMAND, Agent, alive
from .waiting import until

SHOP = """
[web]
command = "sleep 1000000"
instances = 2
group = "front"
depends_on = ["db"]

[db]
command = "sleep 1000000"

[broken]
command = "sh -c 'echo oh dear; exit 3'"
max_restarts = 0
"""


@pytest.fixture
def shop(agent: Agent) -> Agent:
    agent.file(SHOP)
    agent.pm3("start", "web")
    return agent


def document(agent: Agent, *words: str, status: int = 0) -> dict[str, Any]:
    """The one document that a command says with --json."""
    done = agent.pm3(*words, "--json", check=False)
    assert done.returncode == status, done.stdout + done.stderr
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["start", "db"], 0, "everything is already running"),
        (["start", "broken"], 1, "exited immediately"),
        (["start", "wbe"], 1, "process or group 'wbe' not found in configs"),
        (["start", "web", "--env", "prod"], 1, "unknown environment: 'prod'"),
        (["stop", "web:1"], 0, "stopped: web:1"),
        (["stop", "front"], 0, "stopped: web:0, web:1"),
        (["stop", "nobody"], 1, "not found: nobody"),
        (["restart", "db"], 0, "restarted: db, web:0, web:1"),
        (["restart", "nobody"], 1, "not found: nobody"),
        (["list"], 0, None),
        (["info", "web:0"], 0, None),
        (["info", "nobody"], 1, "not found: nobody"),
        (["apply", "--project", "p"], 1, None),
        (["plan", "--project", "p"], 0, None),
        (["check"], 0, None),
        (["check", "nothing.toml"], 1, "nothing.toml: No such file or directory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_statuses_and_documents(shop: Agent, words: list[str], status: int, said: str | None) -> None:
    found = document(shop, *words, status=status)
    if said is not None:
        assert said in str(found.get("message"))
    assert (found["type"] == "error") <= (status == 1)


def test_what_is_to_go_needs_a_name_and_no_file(shop: Agent) -> None:
    assert shop.apply({"api": {"command": "sleep 1000000"}}, project="p")["ok"]
    os.remove(shop.folder / "pm3.toml")
    found = document(shop, "apply", "--state", "absent", status=1)
    assert found["message"] == "pm3.toml: No such file or directory"
    found = document(shop, "plan", "--project", "p", "--state", "absent", status=0)
    assert [row["action"] for row in found["instances"]] == ["removed"]
    found = document(shop, "apply", "--project", "p", "--state", "absent", status=0)
    assert [row["action"] for row in found["instances"]] == ["removed"]


def test_a_part_of_a_project_may_depend_on_the_rest(agent: Agent) -> None:
    assert agent.apply({"db": {"command": "sleep 1000000"}}, project="p")["ok"]
    agent.file('[web]\ncommand = "sleep 1000000"\ndepends_on = ["db"]\n')
    found = document(agent, "plan", "--project", "p", "--no-prune")
    assert {row["name"]: row["action"] for row in found["instances"]} == {"web": "created"}
    agent.pm3("apply", "--project", "p", "--no-prune")
    assert set(agent.instances()) == {"db", "web"}
    said = "[web] depends_on: "
    assert document(agent, "apply", "--project", "p", status=1)["message"].startswith(f"pm3.toml: {said}")
    agent.file('[web]\ncommand = "sleep 1000000"\ndepends_on = ["bd"]\n')
    assert document(agent, "apply", "--project", "p", "--no-prune", status=1)["message"].startswith(f"pm3.toml: {said}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["start"], "pm3.toml: [web] depends_on: depends on bd, which is not defined"),
        (["start", "--env", "nope"], "pm3.toml: unknown environment: 'nope'; no process defines one"),
    ],
)
def test_a_mistake_that_only_the_agent_finds_names_the_file(agent: Agent, words: list[str], said: str) -> None:
    agent.file('[web]\ncommand = "sleep 1000000"\n' + ('depends_on = ["bd"]\n' if len(words) == 1 else ""))
    found = document(agent, *words, status=1)
    assert found["message"].startswith(said)
    assert [problem["file"] for problem in found["problems"]] == ["pm3.toml"]
    assert agent.pm3(*words, check=False).stderr.startswith("error: " + said)


def test_what_is_probably_not_meant_is_said_by_all_who_read_the_file(agent: Agent) -> None:
    agent.file('[web]\ncommand = "sleep 1000000"\nkill_timeout = 5\n')
    caution = '[web] kill_timeout: 5 means 5 milliseconds; write "5ms" or "5s"'
    for words in (["check"], ["start"], ["plan", "--project", "p", "--take-over"]):
        assert agent.pm3(*words).stderr == f"warning: {caution}\n"
        assert document(agent, *words)["warnings"] == [caution]


ODD = os.fsdecode(b"w\xff")  # a name that is not UTF-8, as it comes from a command line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stop", ODD], "process or group not found: w\\xff"),
        (["info", ODD], "process or group not found: w\\xff"),
        (["log", ODD], "process or group not found: w\\xff"),
        (["signal", ODD, "HUP"], "process or group not found: w\\xff"),
        (["start", ODD], "process or group 'w\\xff' not found in configs"),
        (["history", ODD], "project w\\xff has no revisions here"),
        (["hold", ODD, "--reason", "x"], "process, group or project not found: w\\xff"),
        (["release", "--project", ODD], "project not found: w\\xff"),
        (["plan", ODD + ".toml"], "w\\xff.toml: No such file or directory"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_name_that_is_no_text_is_one_that_is_not_found(agent: Agent, words: list[str], said: str) -> None:
    agent.file(SHOP)
    done = agent.pm3(*words, check=False)
    assert (done.returncode, done.stderr) == (1, f"error: {said}\n")


def test_a_folder_that_can_name_no_project(agent: Agent) -> None:
    agent.folder = agent.folder / ODD
    agent.folder.mkdir()
    agent.file(SHOP)
    said = "error: the name of the folder, w\\xff, cannot be that of a project; give one with --project\n"
    assert agent.pm3("plan", check=False).stderr == said
    agent.pm3("plan", "--project", "p")


@pytest.mark.parametrize("words", ["history", "init", "start", "plan", "check", "apply --project p --state absent"])
def test_a_folder_that_is_gone(agent: Agent, words: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f"mkdir gone; cd gone; rmdir ../gone; {' '.join(COMMAND)} {words}"],
        cwd=agent.folder,
        env=agent.environment,
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )
    said = "error: the current folder has been removed; change to one that is there (cd)\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)


def test_a_refused_take_over_names_the_flag(shop: Agent) -> None:
    assert shop.apply({"web": {"command": "sleep 1000000"}}, project="other", take_over=True)["ok"]
    done = shop.pm3("plan", "--project", "p", check=False)
    assert done.returncode == 1
    assert "have it taken over (--take-over)\n" in done.stderr
    found = document(shop, "plan", "--project", "p", status=1)
    assert "(--take-over)" in found["message"]
    assert "(--take-over)" in found["problems"][0]["message"]
    shop.pm3("plan", "--project", "p", "--take-over")


def test_text_is_said_where_it_belongs(shop: Agent) -> None:
    done = shop.pm3("stop", "web:0")
    assert done.stderr == ""
    assert done.stdout.startswith("stopped: web:0\n┌")
    done = shop.pm3("start", "broken", check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: failed to start 'broken': process exited immediately")
    assert done.stdout.startswith("┌")
    names = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("│")]
    assert names == ["name", "broken", "db", "web:0", "web:1"]
    assert "\x1b" not in done.stdout + done.stderr


def test_info_of_a_cluster_and_of_a_group(shop: Agent) -> None:
    for name in ("web", "front"):
        found = document(shop, "info", name)
        assert [one["name"] for one in found["infos"]] == ["web:0", "web:1"]
        text = shop.pm3("info", name).stdout
        assert [line for line in text.splitlines() if not line.startswith(" ")] == [
            "web:0: online",
            "",
            "web:1: online",
        ]


def followed_by_head(shop: Agent, lines: int) -> str:
    """What `pm3 log -f talk | head` shows, and then the exit status of the former."""
    command = f"{' '.join(COMMAND)} log -f talk | head -n {lines}"
    done = subprocess.run(
        ["bash", "-c", f"{command}; echo ${{PIPESTATUS[0]}}"],
        env=shop.environment,
        text=True,
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout


def test_a_following_log_in_a_pipe(shop: Agent) -> None:
    shop.file("[talk]\ncommand = \"sh -c 'while echo tick; do sleep 0.01; done'\"\n")
    shop.pm3("start")
    assert followed_by_head(shop, 3) == "tick\ntick\ntick\n141\n"


@pytest.mark.parametrize("lines", [1, 3])
def test_a_following_log_ends_with_its_reader_and_not_with_the_next_line(shop: Agent, lines: int) -> None:
    written = "".join(f"{number}\n" for number in range(lines))
    shop.file(f"[talk]\ncommand = \"sh -c 'seq 0 {lines - 1}; exec sleep 1000000'\"\n")
    shop.pm3("start")
    until(lambda: shop.log("talk-out") == written, "all is there that ever will be")
    assert followed_by_head(shop, lines) == written + "141\n"


@pytest.mark.parametrize(
    ("output", "said"),
    [(">/dev/full", "error: No space left on device\n"), (">&-", "error: standard output is closed; ")],
)
def test_output_that_goes_nowhere(shop: Agent, output: str, said: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f"{' '.join(COMMAND)} list {output}"],
        env=shop.environment,
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1


def on_a_terminal(agent: Agent, *words: str, **environment: str) -> str:
    """What a person sees, to the end of the command."""
    master, process = terminal(agent, *words, **environment)
    shown = read_all(master)
    assert process.wait(60) == 0, shown
    return shown


def terminal(agent: Agent, *words: str, **environment: str) -> tuple[int, subprocess.Popen[bytes]]:
    """A command on a terminal of its own, and the end of that which a person has."""
    master, slave = pty.openpty()
    environ = {name: value for name, value in agent.environment.items() if name not in ("NO_COLOR", "COLUMNS")}
    process = subprocess.Popen(
        [*COMMAND, *words],
        cwd=agent.folder,
        env={**environ, "TERM": "xterm", **environment},
        stdin=slave,
        stdout=slave,
        stderr=slave,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    os.close(slave)
    return master, process


def read_all(master: int) -> str:
    """What is shown on a terminal until nobody has it any more, which is closed then."""
    shown = b""
    while select.select([master], [], [], 60)[0]:
        try:
            more = os.read(master, 65536)
        except OSError:  # EIO
            break
        shown += more
    os.close(master)
    return shown.decode()


def read_to(master: int, pattern: str) -> str:
    """What is shown on a terminal until that is there."""
    shown = b""
    while not re.search(pattern.encode(), shown):
        assert select.select([master], [], [], 60)[0]
        shown += os.read(master, 65536)
    return shown.decode()


def test_colours_are_for_terminals_that_want_them(shop: Agent) -> None:
    assert "\x1b[32monline" in on_a_terminal(shop, "list")
    for unwanted in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        shown = on_a_terminal(shop, "list", **unwanted)
        assert "online" in shown
        assert "\x1b" not in shown
    assert "\x1b" not in on_a_terminal(shop, "list", "--json")
    assert "\x1b" not in shop.pm3("list", TERM="xterm").stdout


@pytest.fixture
def rolling(agent: Agent) -> tuple[Agent, Path]:
    """An apply has web:0 and web:1 to roll, and cannot be done with the latter as long as a file is there."""
    gate = agent.folder / "gate-1"
    text = f"""
[web]
command = "sleep 1000000"
instances = 2
readiness_check = "exec://test ! -e {agent.folder}/gate-@{{instance}}"
readiness_timeout = 60
"""
    agent.file(text)
    agent.pm3("apply", "--project", "p")
    gate.touch()
    agent.file(text + 'env = { RELEASE = "2" }')
    return agent, gate


def test_an_apply_is_seen_as_it_goes_on_and_reported_once(rolling: tuple[Agent, Path]) -> None:
    """A line for an instance while others are under way; in the end the same lines as in a pipe."""
    agent, gate = rolling
    master, process = terminal(agent, "apply", "--project", "p")
    shown = read_to(master, "web:0 +rolled")
    assert "revision" not in shown
    gate.unlink()
    whole = shown + read_all(master)
    assert process.wait(60) == 0, whole
    report = re.sub(r"\x1b\[\d*m", "", whole.replace("\r\n", "\n").rpartition("\x1b[J")[2])
    assert re.sub(" +", " ", report) == (
        'web:0 rolled online env.RELEASE: none -> "2"\nweb:1 rolled online env.RELEASE: none -> "2"\n'
        "project p (revision 2): 0 ok, 2 changed, 0 failed\n"
    )
    for unwanted in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert "\x1b" not in on_a_terminal(agent, "apply", "--project", "p", "--state", "restarted", **unwanted)


def test_who_does_not_wait_is_told_that_the_agent_goes_on(rolling: tuple[Agent, Path]) -> None:
    agent, gate = rolling
    master, process = terminal(agent, "apply", "--project", "p")
    read_to(master, "web:0 +rolled")
    process.send_signal(signal.SIGINT)
    shown = read_all(master)
    assert process.wait(60) == 130
    assert shown.endswith("\x1b[Jthe agent goes on with it; pm3 apply again shows how it ends\r\n")
    gate.unlink()
    agent.pm3("apply", "--project", "p")  # perhaps it joins what is still under way
    assert "0 changed" in agent.pm3("apply", "--project", "p").stdout
    assert agent.instance("web:1")["status"] == "online"


def test_holds_are_told_by_list_info_and_apply(shop: Agent) -> None:
    assert document(shop, "hold", "web", "--reason", "a look")["message"] == "held: web"
    held = shop.instance("web:0")["held"]
    assert held.endswith(": a look")
    assert shop.pm3("list").stdout.splitlines()[-1] == f"web: {held}"
    assert f"  held: {held.partition(' ')[2]}\n" in shop.pm3("info", "web:1").stdout
    assert f"web: {held}" in shop.pm3("restart", "web").stdout
    planned = document(shop, "plan", "--project", "p")
    assert {row["reason"] for row in planned["instances"] if row["process"] == "web"} == {held}
    assert shop.pm3("release", "web").stdout == "released: web\n"
    assert "held" not in shop.pm3("list").stdout
    assert shop.pm3("release", "wbe", check=False).returncode == 1


def test_the_table_does_not_depend_on_the_width(shop: Agent) -> None:
    def columns(text: str) -> list[str]:
        return [" ".join(line.split()[:7]) for line in text.splitlines() if line.startswith("│")]

    assert columns(shop.pm3("list", COLUMNS="20").stdout) == columns(shop.pm3("list", COLUMNS="300").stdout)
    for width in (80, 120):
        usage = shop.pm3("help", "apply", COLUMNS=str(width)).stdout
        assert width - 30 < max(map(len, usage.splitlines())) <= width


def test_kill_ends_everything_and_no_agent_is_as_good(agent: Agent) -> None:
    agent.file(SHOP)
    agent.pm3("start", "web")
    pids = [agent.pid(), *agent.pids().values()]
    assert document(agent, "kill") == {"type": "success", "message": "daemon shutting down"}
    until(lambda: not any(map(alive, pids)), "all of it ends")
    assert document(agent, "kill") == {"type": "success", "message": "daemon shutting down"}
    assert agent.answering_pid() is None


def test_doctor_with_an_agent_and_without(agent: Agent) -> None:
    facts = {fact["name"]: fact for fact in document(agent, "doctor")["facts"]}
    assert f"(pid {agent.pid()}, 0 instances running)" in facts["agent"]["text"]
    assert facts["version"]["ok"]
    pid = agent.pid()
    agent.pm3("kill")
    until(lambda: not alive(pid), "the agent ends")
    assert "none runs" in agent.pm3("doctor").stdout
    assert agent.answering_pid() is None
