from __future__ import annotations

import contextlib
import json
import os
import pathlib
import pty
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3 import VERSION
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.cli import main as cli
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.wire import messages

PACKAGE = pathlib.Path(messages.__file__).parents[1]
COMMAND = [sys.executable, "-B", "-I", "-S", str(PACKAGE / "__main__.py")]
WITH_LIBRARIES = [sys.executable, "-B", "-I", str(PACKAGE / "__main__.py")]  # TOML comes from one before Python 3.11

LISTED = {
    "type": "process_list",
    "processes": [
        {"name": "web:10", "status": "online", "pid": 12, "uptime": 5, "restarts": 0},
        {"name": "web:2", "status": "online", "pid": 11, "uptime": 5, "restarts": 0},
    ],
}
SHOP = '[web]\ncommand = "./web"\nenv_file = ".env"\nenv_prod = { MODE = "prod" }\n\n[db]\ncommand = "postgres"\ncwd = "/srv/db"\n'


class Said:
    def __init__(self, status: int, out: str, err: str) -> None:
        self.status = status
        self.out = out
        self.err = err

    @property
    def document(self) -> Any:
        """The one JSON document on stdout."""
        assert self.out.count("\n") == 1
        return json.loads(self.out)


@pytest.fixture
def pm3(capfd: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    def run(*words: str) -> Said:
        status = cli.main(list(words))
        captured = capfd.readouterr()
        return Said(status, captured.out, captured.err)

    return run


@pytest.fixture
def shop(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The folder of a project, and the current one."""
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "pm3.toml").write_text(SHOP)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return folder


def result(kind: str, **more: Any) -> dict[str, Any]:
    row = {"name": "web", "process": "web", "action": "created", "changed": True, "status": "online", "log_tail": []}
    return {
        "type": "result",
        "ok": True,
        "message": None,
        "changed": True,
        "project": "shop",
        "revision": 3,
        "instances": [row],
        "summary": {"ok": 0, "changed": 1, "failed": 0},
        "report": ["web         created    online     new"],
        "warnings": [],
        **more,
    }


# What is typed


def test_no_command_is_the_help(pm3: Callable[..., Said]) -> None:
    said = pm3()
    assert said.status == 0
    assert said.out == pm3("help").out == pm3("--help").out == pm3("-h").out
    for name in cli.COMMANDS:
        assert f"\n  {name} " in said.out


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_has_help(pm3: Callable[..., Said], name: str) -> None:
    said = pm3("help", name)
    assert said.status == 0
    assert said.out.startswith(f"usage: pm3 {name}")
    assert pm3(name, "--help").out == said.out


@pytest.mark.parametrize("words", [("--version",), ("-V",), ("--json", "--version")])
def test_the_version(pm3: Callable[..., Said], words: tuple[str, ...]) -> None:
    assert pm3(*words).out == f"pm3 {VERSION}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("lst",), "error: unknown command 'lst'; did you mean list? (pm3 help lists them)\n"),
        (("help", "aply"), "error: unknown command 'aply'; did you mean apply? (pm3 help lists them)\n"),
        (("--frobnicate",), "error: unknown command '--frobnicate' (pm3 help lists them)\n"),
        (("list", "web"), "pm3 list: error: unrecognized arguments: web\n"),
        (("info",), "pm3 info: error: the following arguments are required: NAME\n"),
        (("log", "--lines", "x"), "invalid int value: 'x'\n"),
        (("log", "--lines", "-3"), "error: --lines: expected a whole number, 0 or more\n"),
        (("apply", "--state", "gone"), "choose from"),
        (("signal", "web"), "pm3 signal: error: the following arguments are required: SIG\n"),
        (("save", "web"), "pm3 save: error: unrecognized arguments: web\n"),
        (("delete",), "error: delete forgets processes, so it wants them named; --all means all of them\n"),
        (("rm", "--json"), "error: delete forgets processes"),
        (("delete", "web", "--all"), "not both\n"),
        (("startup", "now"), "pm3 startup: error: unrecognized arguments: now\n"),
        (("apply", "--proj", "x"), "pm3 apply: error: unrecognized arguments"),
        (("hold", "web"), "pm3 hold: error: the following arguments are required: --reason"),
        (("hold", "--reason", "x"), "error: name the processes or projects to hold\n"),
        (("release",), "error: name the processes or projects to release\n"),
        (("rollback",), "pm3 rollback: error: the following arguments are required: PROJECT"),
        (("rollback", "shop", "--to", ""), "error: --to: expected a revision or a label; without it the way leads to"),
        (("rollback", "shop", "--to", "3", "--from", "x"), "error: --to says where to go, --from whence; not both\n"),
    ],
)
def test_bad_arguments(pm3: Callable[..., Said], fake_agent: Any, words: tuple[str, ...], said: str) -> None:
    run = pm3(*words)
    assert run.status == 2
    assert said in run.err
    assert run.out == ""
    assert fake_agent.requests == []


@pytest.mark.parametrize("words", [("--json", "list"), ("list", "--json")])
def test_json_may_stand_anywhere(pm3: Callable[..., Said], fake_agent: Any, words: tuple[str, ...]) -> None:
    fake_agent.answers["list"] = [LISTED]
    assert [one["name"] for one in pm3(*words).document["processes"]] == ["web:2", "web:10"]


# list, info, log


@pytest.mark.parametrize("name", ["list", "ls", "view", "status"])
def test_list(pm3: Callable[..., Said], fake_agent: Any, name: str) -> None:
    fake_agent.answers["list"] = [LISTED]
    said = pm3(name)
    assert said.status == 0
    assert [line.split()[1] for line in said.out.splitlines() if line.startswith("│")] == ["name", "web:2", "web:10"]
    fake_agent.answers["list"] = [{"type": "process_list", "processes": []}]
    assert pm3(name).out == "no processes running\n"


def test_info_of_several(pm3: Callable[..., Said], fake_agent: Any) -> None:
    def answer(request: dict[str, Any]) -> list[Any]:
        name = request["name"]
        if name == "wbe":
            return [messages.error("process not found: wbe")]
        infos = [
            {"name": one, "status": "online", "command": "x", "restarts": 0}
            for one in {"web": ["web:0", "web:1"]}.get(name, [name])
        ]
        return [{"type": "process_detail", "info": infos[0], **({"infos": infos} if len(infos) > 1 else {})}]

    fake_agent.answers["info"] = answer
    said = pm3("info", "db", "web", "web:1", "db")
    assert said.status == 0
    assert [line for line in said.out.splitlines() if line.endswith("online")] == [
        "db: online",
        "web:0: online",
        "web:1: online",
    ]
    assert pm3("info", "db", "--json").document == {
        "type": "process_detail",
        "info": {"name": "db", "status": "online", "command": "x", "restarts": 0},
    }
    assert [one["name"] for one in pm3("info", "db", "web", "--json").document["infos"]] == ["db", "web:0", "web:1"]
    said = pm3("info", "wbe", "db")
    assert said.status == 1
    assert said.out.startswith("db: online\n")
    assert said.err == "error: process not found: wbe\n"
    said = pm3("info", "wbe", "db", "--json")
    assert said.status == 1
    assert said.document == {"type": "error", "message": "process not found: wbe"}


def test_log(pm3: Callable[..., Said], fake_agent: Any) -> None:
    fake_agent.answers["log"] = [
        {"type": "log_line", "name": "web:0", "line": "a"},
        {"type": "log_line", "line": "caf\udce9"},
    ]
    said = subprocess.run([*COMMAND, "log", "web"], capture_output=True, check=True)
    assert said.stdout == b"[web:0] a\ncaf\xe9\n"
    assert fake_agent.requests == [{"type": "log", "name": "web", "lines": 15, "follow": False}]
    lines = pm3("log", "--lines", "3", "--json").out.splitlines()
    assert [json.loads(line)["line"] for line in lines] == ["a", "caf\udce9"]
    assert fake_agent.requests[1] == {"type": "log", "lines": 3, "follow": False}


def test_log_of_nothing_and_of_nobody(pm3: Callable[..., Said], fake_agent: Any) -> None:
    assert pm3("log").out == ""
    fake_agent.answers["log"] = [messages.error("process not found: x")]
    said = pm3("log", "x")
    assert (said.status, said.out, said.err) == (1, "", "error: process not found: x\n")


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (("--out",), {"stream": "out"}),
        (("--err", "web"), {"stream": "err", "name": "web"}),
        (("--out", "--err"), {}),
        (("-t",), {"timestamps": True}),
        (("web", "db", "-f"), {"names": ["web", "db"], "follow": True}),
        (("web", "-n", "2", "db", "web"), {"names": ["web", "db"], "lines": 2}),
        (("web", "web"), {"name": "web"}),
        (("--since", "1970-01-01T00:01:40Z"), {"since": 100.0, "lines": 10_000}),
        (("--since", "1970-01-01T01:01:40+01:00", "--lines", "0"), {"since": 100.0, "lines": 0}),
    ],
)
def test_what_log_asks_for(
    pm3: Callable[..., Said], fake_agent: Any, words: tuple[str, ...], asked: dict[str, Any]
) -> None:
    pm3("log", *words)
    assert fake_agent.requests == [{"type": "log", "lines": 15, "follow": False, **asked}]


def test_log_since_a_while_ago(pm3: Callable[..., Said], fake_agent: Any) -> None:
    before = time.time()
    assert pm3("log", "--since", "10m").status == 0
    assert before - 600 <= fake_agent.requests[0]["since"] <= time.time() - 600


@pytest.mark.parametrize("moment", ["yesterday", "", "10 parsecs", "2026-13-01"])
def test_log_since_nobody_knows_when(pm3: Callable[..., Said], fake_agent: Any, moment: str) -> None:
    said = pm3("log", "--since", moment)
    assert (said.status, said.out) == (2, "")
    assert said.err == (
        f"error: --since: expected a duration such as 10m or 2h, or a time such as 2026-01-31T12:00, found {moment!r}\n"
    )
    assert fake_agent.requests == []


LOGGED = [
    {"type": "log_line", "name": "web:0", "stream": "out", "line": "fine", "time": "2026-01-31T12:00:00.000+01:00"},
    {"type": "log_line", "name": "db", "stream": "err", "line": "oh no"},
    {"type": "log_line", "stream": "err", "line": ""},
]


def test_log_says_when_and_whose(pm3: Callable[..., Said], fake_agent: Any) -> None:
    fake_agent.answers["log"] = LOGGED
    assert pm3("log", "-t").out == "2026-01-31T12:00:00.000+01:00 [web:0] fine\n[db] oh no\n\n"
    assert [json.loads(line) for line in pm3("log", "-t", "--json").out.splitlines()] == LOGGED


def on_terminal(*words: str, **environ: str) -> bytes:
    """What a command shows on a terminal."""
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    master, slave = pty.openpty()
    subprocess.run([*COMMAND, *words], stdout=slave, stderr=slave, env={**kept, **environ}, check=True)
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the end
        while more := os.read(master, 4096):
            shown += more
    os.close(master)
    return shown


def test_on_a_terminal_the_lines_of_stderr_are_red(fake_agent: Any) -> None:
    fake_agent.answers["log"] = LOGGED
    plain = b"2026-01-31T12:00:00.000+01:00 [web:0] fine\r\n[db] oh no\r\n\r\n"
    assert on_terminal("log") == plain.replace(b"oh no", b"\x1b[31moh no\x1b[0m")
    assert on_terminal("log", NO_COLOR="1") == plain
    assert on_terminal("log", TERM="dumb") == plain
    assert b"\x1b" not in on_terminal("log", "--json")


def test_following_ends_with_the_agent(pm3: Callable[..., Said], fake_agent: Any) -> None:
    fake_agent.answers["log"] = [{"type": "log_line", "line": "a"}]
    said = pm3("log", "-f", "web")
    assert fake_agent.requests == [{"type": "log", "name": "web", "lines": 15, "follow": True}]
    assert said.out == "a\n"
    assert said.status == 1
    assert "the pm3 agent closed the connection" in said.err


# start, stop, restart, kill


def test_start_sends_the_file_of_the_current_folder(
    pm3: Callable[..., Said], fake_agent: Any, shop: pathlib.Path
) -> None:
    fake_agent.answers.update(start=[messages.success("started: db, web")], list=[LISTED])
    said = pm3("start", "web", "--env", "prod", "db", "-w")
    assert said.status == 0
    assert said.out.startswith("started: db, web\n┌")
    assert fake_agent.requests == [
        {
            "type": "start",
            "configs": {
                "db": {"command": "postgres", "cwd": "/srv/db", "environments": {}},
                "web": {
                    "command": "./web",
                    "cwd": str(shop),  # of the file, not of the agent (W4)
                    "env_file": [str(shop / ".env")],
                    "environments": {"prod": {"MODE": "prod"}},
                },
            },
            "names": ["web", "db"],
            "env": "prod",
            "wait": True,
            "path": "/usr/bin:/bin",
        },
        {"type": "list"},
    ]
    assert pm3("start", "--json").document == messages.success("started: db, web")
    assert [request["type"] for request in fake_agent.requests] == ["start", "list", "start"]
    assert "names" not in fake_agent.requests[-1]


def test_start_without_a_file(
    pm3: Callable[..., Said], fake_agent: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = pm3("start")
    assert said.status == 1
    assert said.err.startswith("error: pm3.toml: No such file or directory\n")
    assert "restart" in said.err
    assert pm3("start", "--json").document["problems"][0]["file"] == "pm3.toml"
    assert fake_agent.requests == []


@pytest.mark.parametrize(
    ("name", "more"),
    [("stop", {}), ("restart", {}), ("reload", {"path": "/usr/bin:/bin"})],
    ids=str,
)
def test_stop_restart_and_reload(
    pm3: Callable[..., Said], fake_agent: Any, shop: pathlib.Path, name: str, more: dict[str, str]
) -> None:
    fake_agent.answers.update({name: [messages.success(f"{name}: web")], "list": [LISTED]})
    said = pm3(name, "web", "db")
    assert said.status == 0
    assert said.out.startswith(f"{name}: web\n┌")
    pm3(name)
    assert fake_agent.requests[0] == {"type": name, "names": ["web", "db"], **more}
    assert fake_agent.requests[2] == {"type": name, **more}
    assert pm3(name, "--json").document == messages.success(f"{name}: web")
    assert len(fake_agent.requests) == 5


@pytest.mark.parametrize("name", ["delete", "rm", "remove"])
def test_delete(pm3: Callable[..., Said], fake_agent: Any, name: str) -> None:
    fake_agent.answers.update(delete=[messages.success("deleted: web")], list=[LISTED])
    said = pm3(name, "web", "db")
    assert (said.status, said.out.partition("┌")[0]) == (0, "deleted: web\n")
    assert fake_agent.requests == [{"type": "delete", "names": ["web", "db"]}, {"type": "list"}]


def test_delete_of_all_names_each_process_once(pm3: Callable[..., Said], fake_agent: Any) -> None:
    listed = [{"name": "db"}, {"name": "web:0", "process": "web"}, {"name": "web:1", "process": "web"}]
    processes = [{"status": "online", "restarts": 0, **one} for one in listed]
    fake_agent.answers.update(
        delete=[messages.success("deleted: db, web:0, web:1")],
        list=[{"type": "process_list", "processes": processes}],
    )
    assert pm3("delete", "--all", "--json").document["message"] == "deleted: db, web:0, web:1"
    assert fake_agent.requests == [{"type": "list"}, {"type": "delete", "names": ["db", "web"]}]
    fake_agent.answers["list"] = [{"type": "process_list", "processes": []}]
    assert pm3("delete", "--all", "--json").document == messages.success("deleted: ")
    assert [one["type"] for one in fake_agent.requests] == ["list", "delete", "list"]  # no names would mean all


@pytest.mark.parametrize(
    ("words", "request_", "message"),
    [
        (("flush", "web", "db"), {"type": "flush", "names": ["web", "db"]}, "flushed logs: db, web"),
        (("flush",), {"type": "flush"}, "flushed logs: db, web"),
        (("signal", "web", "HUP"), {"type": "signal", "name": "web", "signal": "HUP"}, "sent HUP to 'web'"),
        (("signal", "web", "SIGHUP"), {"type": "signal", "name": "web", "signal": "SIGHUP"}, "sent SIGHUP to 'web'"),
        (("signal", "web", "usr1"), {"type": "signal", "name": "web", "signal": "usr1"}, "sent usr1 to 'web'"),
        (("save",), {"type": "save"}, "saved 2 process(es) to dump file"),
        (("resurrect",), {"type": "resurrect", "path": "/usr/bin:/bin"}, "resurrected: db, web"),
    ],
)
def test_one_request_one_message(
    pm3: Callable[..., Said],
    fake_agent: Any,
    shop: pathlib.Path,
    words: tuple[str, ...],
    request_: dict[str, Any],
    message: str,
) -> None:
    fake_agent.answers[words[0]] = [messages.success(message)]
    said = pm3(*words)
    assert (said.status, said.out, said.err) == (0, f"{message}\n", "")
    assert pm3(*words, "--json").document == messages.success(message)
    assert fake_agent.requests == [request_, request_]
    fake_agent.answers[words[0]] = [messages.error("it cannot be")]
    said = pm3(*words)
    assert (said.status, said.out, said.err) == (1, "", "error: it cannot be\n")
    assert pm3(*words, "--json").document == messages.error("it cannot be")


def test_an_error_reply_exits_1_and_shows_the_table(pm3: Callable[..., Said], fake_agent: Any) -> None:
    fake_agent.answers.update(stop=[messages.error("process or group not found: x")], list=[LISTED])
    said = pm3("stop", "x")
    assert said.status == 1
    assert said.err == "error: process or group not found: x\n"
    assert said.out.startswith("┌")
    said = pm3("stop", "x", "--json")
    assert said.status == 1
    assert said.document == messages.error("process or group not found: x")


def test_kill(pm3: Callable[..., Said], fake_agent: Any) -> None:
    fake_agent.answers["kill"] = [messages.success("daemon shutting down")]
    assert pm3("kill").out == "daemon shutting down\n"
    fake_agent.close()
    said = pm3("kill")
    assert (said.status, said.out) == (0, "daemon shutting down\n")
    assert pm3("kill", "--json").document == messages.success("daemon shutting down")


# apply, plan, check


def test_apply_sends_the_project(pm3: Callable[..., Said], fake_agent: Any, shop: pathlib.Path) -> None:
    fake_agent.answers["apply"] = [result("apply", warnings=["slow disk"])]
    said = pm3("apply")
    assert said.status == 0
    assert said.out == "web         created    online     new\nproject shop (revision 3): 0 ok, 1 changed, 0 failed\n"
    assert said.err == "warning: slow disk\n"
    assert fake_agent.requests == [
        {
            "type": "apply",
            "project": "shop",
            "definitions": {
                "web": {"command": "./web", "env_file": ".env", "env_prod": {"MODE": "prod"}},
                "db": {"command": "postgres", "cwd": "/srv/db"},
            },
            "overlay": None,
            "base": str(shop),
            "state": "present",
            "prune": True,
            "only": None,
            "label": None,
            "take_over": False,
            "retry_failed": True,
            "path": "/usr/bin:/bin",
            "file": "pm3.toml",
        }
    ]


def test_plan_takes_the_same_options(
    pm3: Callable[..., Said], fake_agent: Any, shop: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    fake_agent.answers["plan"] = [result("plan", project="p")]
    words = [
        "--project",
        "p",
        "--env",
        "prod",
        "--no-prune",
        "--only",
        "web",
        "--only",
        "db",
        "--state",
        "restarted",
        "--label",
        "v1",
    ]
    said = pm3("plan", *words, str(shop / "pm3.toml"))
    assert said.out.splitlines()[-1] == "project p: 0 ok, 1 to change"
    (request,) = fake_agent.requests
    assert {
        key: request[key] for key in ("type", "project", "overlay", "base", "state", "prune", "only", "label", "file")
    } == {
        "type": "plan",
        "project": "p",
        "overlay": "prod",
        "base": str(shop),
        "state": "restarted",
        "prune": False,
        "only": ["web", "db"],
        "label": "v1",
        "file": str(shop / "pm3.toml"),
    }
    assert pm3("plan", str(shop / "pm3.toml"), "--json").document == result("plan", project="p")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("apply", "--project", ""), "error: --project is empty; name the project, or leave --project out for"),
        (("plan", "--project", "", "--state", "absent"), "error: --project is empty; "),
        (("apply", "--label", ""), "error: --label is empty; "),
        (("history", ""), "error: the name of the project is empty; "),
    ],
)
def test_an_empty_name_is_not_the_name_of_the_folder(
    pm3: Callable[..., Said], fake_agent: Any, shop: pathlib.Path, words: tuple[str, ...], said: str
) -> None:
    found = pm3(*words)
    assert (found.status, found.out, fake_agent.requests) == (1, "", [])
    assert found.err.startswith(said)


def test_a_failed_apply_exits_1(pm3: Callable[..., Said], fake_agent: Any, shop: pathlib.Path) -> None:
    row = {"name": "web", "action": "failed", "changed": True, "status": "errored", "log_tail": ["boom"]}
    failed = result(
        "apply",
        ok=False,
        message="web exited with code 1",
        instances=[row],
        summary={"ok": 0, "changed": 0, "failed": 1},
        report=["web         failed     errored    exited with code 1", "    | boom"],
    )
    fake_agent.answers["apply"] = [failed]
    said = pm3("apply")
    assert said.status == 1
    assert said.out.splitlines()[1] == "    | boom"
    assert said.out.splitlines()[2] == "project shop (revision 3): 0 ok, 0 changed, 1 failed"
    assert said.err == "error: web exited with code 1\n"
    said = pm3("apply", "--json")
    assert said.status == 1
    assert said.document == failed


def test_problems_of_the_agent_are_shown_each(pm3: Callable[..., Said], fake_agent: Any, shop: pathlib.Path) -> None:
    problem = {"file": "pm3.toml", "table": "web", "field": "cwd", "message": "no such folder"}
    fake_agent.answers["apply"] = [{"type": "error", "message": "bad", "problems": [problem]}]
    said = pm3("apply")
    assert said.status == 1
    assert said.err == "error: pm3.toml: [web] cwd: no such folder\n"


def test_apply_may_take_over_and_may_refuse_to_try_again(
    pm3: Callable[..., Said], fake_agent: Any, shop: pathlib.Path
) -> None:
    fake_agent.answers["apply"] = [result("apply")]
    pm3("apply", "--take-over", "--no-retry-failed", "--state", "reloaded")
    (request,) = fake_agent.requests
    assert (request["take_over"], request["retry_failed"], request["state"]) == (True, False, "reloaded")


# Holds and revisions


@pytest.mark.parametrize(
    ("words", "request_"),
    [
        (("hold", "web", "db", "--reason", "a look"), {"type": "hold", "names": ["web", "db"], "reason": "a look"}),
        (("hold", "--project", "shop", "--reason", "x"), {"type": "hold", "project": "shop", "reason": "x"}),
        (("release", "web"), {"type": "release", "names": ["web"]}),
        (("release", "--project", "shop"), {"type": "release", "project": "shop"}),
    ],
)
def test_hold_and_release(
    pm3: Callable[..., Said], fake_agent: Any, words: tuple[str, ...], request_: dict[str, Any]
) -> None:
    fake_agent.answers[words[0]] = [messages.success("held: web (project shop)")]
    assert pm3(*words).out == "held: web (project shop)\n"
    assert fake_agent.requests == [request_]
    fake_agent.answers[words[0]] = [messages.error("process, group or project not found: wbe")]
    said = pm3(*words)
    assert (said.status, said.err) == (1, "error: process, group or project not found: wbe\n")


HISTORY = {
    "type": "history",
    "project": "shop",
    "current": 4,
    "revisions": [
        {"revision": 1, "label": "r1", "at": 0, "uid": 0, "user": "root", "changed": ["db", "web"]},
        {"revision": 2, "at": 60, "uid": 4711, "user": None, "changed": [f"p{number}" for number in range(9)]},
        {
            **{"revision": 3, "label": "r3", "at": 120, "uid": None, "user": None, "changed": []},
            **{"failed_at": 130.5, "failure": "web:0 exited with code 1\n" + "x" * 100},
        },
        {"revision": 4, "label": "r1", "at": 180, "uid": 0, "user": "root", "changed": ["web"], "origin": 1},
    ],
}


def test_history(pm3: Callable[..., Said], fake_agent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    fake_agent.answers["history"] = [HISTORY]
    said = pm3("history", "shop")
    assert said.status == 0
    rows = [[cell.strip() for cell in line[1:-1].split("┆")] for line in said.out.splitlines() if line[0] == "│"]
    assert rows == [
        ["revision", "when", "who", "label", "changed", "what became of it"],
        ["1", "1970-01-01 00:00:00", "root", "r1", "db, web", "-"],
        ["2", "1970-01-01 00:01:00", "uid 4711", "-", "p0, p1, p2, p3, p4 and 4 more", "-"],
        ["3", "1970-01-01 00:02:00", "-", "r3", "-", f"failed: web:0 exited with code 1 {'x' * 54}…"],
        ["4", "1970-01-01 00:03:00", "root", "r1", "web", "current, brought back 1"],
    ]
    assert pm3("history", "shop", "--json").document == HISTORY
    fake_agent.answers["history"] = [{**HISTORY, "current": None, "revisions": []}]
    assert pm3("history", "shop").out == "project shop has no revisions\n"
    fake_agent.answers["history"] = [messages.error("project not found: shp")]
    said = pm3("history", "shp")
    assert (said.status, said.err) == (1, "error: project not found: shp\n")
    monkeypatch.undo()
    time.tzset()


def test_history_of_the_current_folder(pm3: Callable[..., Said], fake_agent: Any, shop: pathlib.Path) -> None:
    fake_agent.answers["history"] = [HISTORY]
    assert pm3("history").status == 0
    assert fake_agent.requests == [{"type": "history", "project": "shop"}]


@pytest.mark.parametrize(
    ("words", "kind", "way"),
    [
        ((), "apply", {"rollback_to": ""}),
        (("--dry-run",), "plan", {"rollback_to": ""}),
        (("--to", "3"), "apply", {"rollback_to": "3"}),
        (("--to", "r1", "--dry-run"), "plan", {"rollback_to": "r1"}),
        (("--from", "r2"), "apply", {"rollback_from": "r2"}),
    ],
)
def test_rollback(
    pm3: Callable[..., Said],
    fake_agent: Any,
    shop: pathlib.Path,
    words: tuple[str, ...],
    kind: str,
    way: dict[str, str],
) -> None:
    fake_agent.answers[kind] = [result(kind)]
    said = pm3("rollback", "shop", *words)
    assert said.status == 0
    assert said.out.startswith("web         created    online     new\nproject shop")
    assert fake_agent.requests == [{"type": kind, "project": "shop", **way, "path": "/usr/bin:/bin"}]
    fake_agent.answers[kind] = [messages.error("project shop has no earlier revision that was good")]
    assert pm3("rollback", "shop", *words).status == 1


def test_mistakes_are_shown_before_the_agent_is_asked(
    pm3: Callable[..., Said], fake_agent: Any, shop: pathlib.Path
) -> None:
    (shop / "pm3.toml").write_text('[web]\ncomand = "x"\n')
    expected = [
        "pm3.toml: [web] comand: unknown field; did you mean command?",
        "pm3.toml: [web] command: missing; every process needs one",
    ]
    for name in ("apply", "plan", "start"):
        said = pm3(name)
        assert said.status == 1
        assert said.err.splitlines() == [f"error: {line}" for line in expected]
    said = pm3("check")
    assert said.status == 1
    assert said.out.splitlines() == expected
    assert len(pm3("check", "--json").document["problems"]) == 2
    assert fake_agent.requests == []


def test_a_sound_file(pm3: Callable[..., Said], shop: pathlib.Path) -> None:
    said = pm3("check", "pm3.toml")
    assert (said.status, said.out, said.err) == (0, "", "")
    assert pm3("check", "--json").document == messages.success()
    assert pm3("check", "--env", "test").out == "pm3.toml: unknown environment: 'test'; known: prod\n"
    assert pm3("check", "missing.toml").out == "missing.toml: No such file or directory\n"


def test_standard_input(fake_agent: Any, shop: pathlib.Path) -> None:
    fake_agent.answers["apply"] = [result("apply")]
    subprocess.run([*WITH_LIBRARIES, "apply", "-"], input=SHOP.encode(), stdout=subprocess.DEVNULL, check=True)
    assert fake_agent.requests[0]["base"] == str(shop)
    assert fake_agent.requests[0]["project"] == "shop"
    said = subprocess.run([*WITH_LIBRARIES, "check", "-"], input=b"\xff", capture_output=True, check=False)
    assert said.returncode == 1
    assert said.stdout == b"standard input: TOML parse error: line 1: expected UTF-8, found a byte that is not\n"


def test_the_root_folder_names_no_project(
    pm3: Callable[..., Said], fake_agent: Any, shop: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = subprocess.run(
        [*WITH_LIBRARIES, "apply", "-"], input=SHOP.encode(), capture_output=True, cwd="/", check=False
    )
    assert run.returncode == 1
    assert b"give one with --project" in run.stderr


# No agent


def test_a_managed_agent_is_not_started(
    pm3: Callable[..., Said], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PM3_DATA_DIR", str(tmp_path))
    (tmp_path / "managed").write_text("systemctl start pm3\n")
    said = pm3("list")
    assert said.status == 1
    assert said.err == f"error: no pm3 agent is running for {tmp_path}; start it with: systemctl start pm3\n"
    assert pm3("list", "--json").document["type"] == "error"
    assert sorted(os.listdir(tmp_path)) == ["managed"]
    assert pm3("kill").status == 0


def test_a_connection_that_is_closed(pm3: Callable[..., Said], fake_agent: Any) -> None:
    said = pm3("list")
    assert said.status == 1
    assert "closed the connection before it answered" in said.err


# As a process


def test_as_a_module_and_by_path(fake_agent: Any) -> None:
    fake_agent.answers["list"] = [LISTED]
    environ = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    for command in (COMMAND, [sys.executable, "-m", "pm3"], [sys.executable, str(PACKAGE / "__main__.py")]):
        said = subprocess.run([*command, "list"], capture_output=True, text=True, env=environ, cwd="/", check=True)
        assert "web:10" in said.stdout


def test_a_closed_pipe_is_no_trouble(fake_agent: Any) -> None:
    fake_agent.answers["log"] = [{"type": "log_line", "line": "x" * 1000}] * 1000
    process = subprocess.Popen([*COMMAND, "log"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141


def test_a_terminal_sees_colours_and_progress(fake_agent: Any, shop: pathlib.Path) -> None:
    row = {"type": "row", "name": "web", "action": "created", "changed": True, "status": "online"}
    fake_agent.answers["apply"] = [row, result("apply")]
    environ = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    master, slave = pty.openpty()
    subprocess.run([*WITH_LIBRARIES, "apply"], stdout=slave, stderr=slave, env=environ, check=True)
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the end
        while more := os.read(master, 4096):
            shown += more
    os.close(master)
    assert fake_agent.requests[0]["progress"] is True
    assert b"\r\x1b[32mweb         created    online\x1b[0m\x1b[K\r\n\x1b[J\r\x1b[1A\x1b[J" in shown
    assert b"\x1b[33mweb         created    online     new\x1b[0m" in shown


def test_list_imports_only_what_it_needs() -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import pm3.cli.main, pm3.cli.commands; sys.stdout.write(' '.join(sys.modules))"
    run = [sys.executable, "-B", "-I", "-S", "-c", code, str(PACKAGE.parent)]
    loaded = subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()
    heavy = {
        "dataclasses",
        "inspect",
        "subprocess",
        "tomllib",
        "tomli",
        "ctypes",
        "asyncio",
        "pm3.model.definition",
        "pm3.agent.main",
    }
    assert heavy.isdisjoint(loaded)
