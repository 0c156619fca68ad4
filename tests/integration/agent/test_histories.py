"""Random histories of a real agent: what is applied, taken back, stopped, held, killed and upgraded, several at once, in any order.

After each step the promises are checked against what /proc shows (DESIGN.md, section 7): I1 at most one main process per instance,
and one beside it only while it is replaced, I2 nothing left of what was stopped, I3 a stop stays a stop, I4 every process is tracked
or dead, I5 a second apply does nothing, I8 descriptors do not grow, and nothing is kept as under way when nothing is; and promise 2:
what was taken back runs as it did before. A history is the work of its seed alone. One that breaks a promise is told as a story, with
the seed that brings it back: `PM3_HISTORIES=SEED:` runs that one, `PM3_HISTORIES=100` a hundred others.
"""

from __future__ import annotations

import os
import random
import shlex
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.wire.client import ClientError

from .conftest import Agent, alive, stack_of
from .test_agent import at_rest
from .waiting import until

STEPS = 14
BUSY = ("spawning", "aborting", "starting", "stopping", "killing", "sweeping", "backoff")

PROGRAMS = {
    "sleeps": {"command": "sleep 1000"},
    "sleeps differently": {"command": "sleep 1001"},
    "ignores TERM": {"command": "sh -c 'trap \"\" TERM; while :; do sleep 1; done'", "kill_timeout": 150},
    "has children": {"command": "sh -c 'sleep 1002 & sleep 1003 & wait'"},
    "has stubborn children": {"command": "sh -c '(trap \"\" TERM; sleep 1004; :) & wait'", "kill_timeout": 150},
    "leaves children behind": {"command": "sh -c 'sleep 1005 & exit 1'", "max_restarts": 2},
    "does its work": {"command": "true"},
    "does its work slowly": {"command": "sleep 0.2"},
    "fails at once": {"command": "false", "max_restarts": 2},
    "fails after a while": {"command": "sh -c 'sleep 0.1; exit 3'", "max_restarts": 2},
    "does not exist": {"command": "no-such-program", "max_restarts": 1},
    "starts first": {"command": "sleep 1006", "update": {"order": "start_first"}},
    "starts first with a check": {
        "command": "sh -c 'touch up-$PM3_NAME; exec sleep 1007'",
        "readiness_check": "exec://sh -c 'test -e up-$PM3_NAME'",
        "update": {"order": "start_first", "max_surge": 2},
    },
    "two at a time": {"command": "sleep 1008", "update": {"max_unavailable": 2}},
    "reads a file": {"command": "sleep 1009", "restart_when_changed": ["settings"]},
    "waits": {"command": "sleep 1010", "update": {"on_failure": "pause"}},
    "is never ready": {
        "command": "sleep 1011",
        "readiness_check": "exec://false",
        "readiness_timeout": 0.2,
        "update": {"order": "start_first", "deadline": 1},
    },
    "falls too early": {"command": "sh -c 'sleep 0.15; exit 4'", "max_restarts": 2, "min_uptime": 400},
    "is left half done": {
        "command": "sh -c 'test $PM3_INSTANCE_ID = 0 && exec sleep 1012'",
        "max_restarts": 1,
        "update": {"on_failure": "pause"},
    },
    "falls as the second": {"command": "sh -c 'test $PM3_INSTANCE_ID != 1 && exec sleep 1013'", "max_restarts": 1},
}
LASTING = (
    *("sleeps", "sleeps differently", "ignores TERM", "has children", "has stubborn children"),
    *("starts first", "starts first with a check", "two at a time", "reads a file", "waits"),
)
WORKING = ("does its work", "does its work slowly")
NAMES = ("db", "api", "web")


class Process:
    """What /proc shows of a process that the agent of one data dir started."""

    def __init__(self, pid: int, variables: dict[str, str]) -> None:
        self.pid = pid
        self.name = variables["PM3_NAME"]
        self.spawn_id = variables["PM3_SPAWN_ID"]
        self.session = os.getsid(pid)

    def __repr__(self) -> str:
        return f"{self.name} pid {self.pid} session {self.session} spawn {self.spawn_id.partition('@')[0]}"


class History:
    """One history: its steps are chosen by `random`, told in `story`, and checked."""

    def __init__(self, agent: Agent, seed: int) -> None:
        self.agent = agent
        self.random = random.Random(seed)
        self.story: list[str] = []
        self.definitions: dict[str, Any] = {}  # as last applied
        self.is_known = False  # what runs must be what the current revision says, if that has come up
        self.held: set[str] = set()  # processes
        self.was_held = False
        self.surging: set[str] = set()  # processes that may have had two copies of an instance
        self.stopped: set[str] = set()  # instances at whose stop nothing was undone since

    def tell(self, text: str) -> None:
        self.story.append(text)

    # What happens

    def run(self, steps: int) -> None:
        for _step in range(steps):
            chosen: Callable[[], None] = self.random.choice(
                [
                    self.apply,
                    self.apply,
                    self.stop,
                    self.restart,
                    self.start,
                    self.kill_one,
                    self.crash,
                    self.upgrade,
                    self.meet,
                    self.roll,
                    self.roll,
                    self.roll_back,
                    self.change_files,
                    self.reload,
                    self.hold,
                ]
            )
            chosen()
            self.check_always()
            if self.random.random() < 0.3:
                self.check_quiet()
        self.check_quiet()
        self.check_second_apply()

    def some_definitions(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in self.random.sample(NAMES, self.random.randint(1, len(NAMES))):
            kind = self.random.choice(list(PROGRAMS) if self.random.random() < 0.4 else LASTING)
            table = {"min_uptime": 20, **PROGRAMS[kind], "instances": self.random.randint(1, 3)}
            if kind.startswith("starts first") or kind == "is never ready":
                self.surging.add(name)
            if self.random.random() < 0.3:
                table["env"] = {"COLOUR": self.random.choice(["red", "blue"])}
            if self.random.random() < 0.2:
                table["restart"] = self.random.choice(["always", "never"])
            found[name] = table
        for place, name in enumerate(NAMES):
            others = [one for one in NAMES[:place] if one in found]
            if name in found and others and self.random.random() < 0.5:
                found[name]["depends_on"] = [self.random.choice(others)]
        return found

    def apply(self) -> None:
        self.define()
        self.tell(f"apply {briefly(self.definitions)}")
        self.apply_and_look()

    def define(self) -> None:
        self.definitions = self.some_definitions()
        self.stopped.clear()
        self.is_known = True

    def request(self, **fields: Any) -> dict[str, Any]:
        return {"project": "shop", "definitions": self.definitions, "base": str(self.agent.folder), **fields}

    def apply_and_look(self, **fields: Any) -> dict[str, Any]:
        """Promise 2: it is as it was asked for, or as it was before, or somebody is told why neither."""
        until(lambda: not self.agent.under_way(), "what another agent had begun is over")
        before = self.told()
        made = self.ask("apply", **(fields or self.request()))
        if made["type"] != "result":
            return made
        now = self.told()
        if made["reverted"]:
            assert now["failure"] is None, f"it went back, to {now}"
            if before.get("failure", "nothing") is None:
                assert now["definitions"] == before["definitions"], f"promise 2: {before} became {now}"
            # Files do not go back: what was not replaced runs with those of before, and the next apply says so.
            self.check_repeated(now["definitions"], reading_files=False)
        elif made["ok"] and now and not self.held:  # of what is held nothing is found out
            assert now["failure"] is None, f"it has come up, and {now}"
        self.check_what_runs()
        return made

    def told(self) -> dict[str, Any]:
        """What the agent says of the project: its current revision, and its definitions."""
        found = self.agent.ask("history", project="shop")
        if found["type"] == "error":
            return {}
        definitions = self.agent.ask("snapshot")["definitions"].get("shop", {})
        return {**found["revisions"][-1], "definitions": definitions}

    def roll(self) -> None:
        """Something that happens while an apply is under way; what is stopped then stays so."""
        until(lambda: not self.agent.under_way(), "what another agent had begun is over")
        self.define()
        self.tell(f"begin to apply {briefly(self.definitions)}")
        self.ask("apply", **self.request(wait=False))
        for _time in range(self.random.randint(1, 3)):
            self.random.choice([self.stop, self.crash, self.upgrade, self.kill_one, lambda: None])()
            self.check_always()
        if self.random.random() < 0.5:
            self.check_quiet()

    def roll_back(self) -> None:
        self.tell("roll back")
        self.stopped.clear()
        self.is_known = not self.held
        fields = {"rollback_to": ""} if self.random.random() < 0.7 else {"rollback_to": str(self.random.randint(1, 5))}
        self.apply_and_look(project="shop", **fields)
        self.definitions = self.told().get("definitions", {})

    def change_files(self) -> None:
        (self.agent.folder / "settings").write_text(str(self.random.random()))
        if not self.definitions:
            return
        self.tell("files change, and apply once more")
        self.stopped.clear()
        up = {name for name, one in self.agent.instances().items() if one["status"] == "online" and one["wanted"]}
        made = self.apply_and_look()
        reading = {name for name, table in self.definitions.items() if "restart_when_changed" in table} - self.held
        for row in made["instances"] if made.get("ok") else ():
            if row["name"] in up and row["process"] in reading:
                assert row["action"] != "none", f"it runs with settings of before: {row}"

    def reload(self) -> None:
        names = self.some_names()
        self.tell(f"reload {names}")
        named = self.matching(names)
        self.stopped -= named
        self.surging |= {name.partition(":")[0] for name in named}
        self.ask("reload", names=names)

    def hold(self) -> None:
        if self.held:
            self.tell(f"release {self.held}")
            self.ask("release", names=sorted(self.held))
            self.held.clear()
        else:
            names = {name.partition(":")[0] for name in self.some_names()}
            self.tell(f"hold {names}")
            if self.ask("hold", names=sorted(names), reason="to see")["type"] == "success":
                self.held, self.was_held, self.is_known = names, True, False

    def stop(self) -> None:
        names = self.some_names()
        self.tell(f"stop {names}")
        answer = self.ask("stop", names=names)
        if answer["type"] == "success":
            self.stopped.update(self.at_rest_after(names))
            left = [one for one in self.processes() if one.name in self.matching(names)]
            assert not left, f"I2: stopped, but there is still {left}"

    def restart(self) -> None:
        names = self.some_names()
        self.tell(f"restart {names}")
        self.stopped -= self.matching(names)
        self.ask("restart", names=names)

    def start(self) -> None:
        if self.definitions:
            names = [self.random.choice(list(self.definitions))]
            self.tell(f"start {names}")
            self.stopped.clear()  # it starts what they depend on, too
            self.is_known = False  # what does not come up is told, and not taken back
            self.ask("start", configs=self.definitions, names=names, wait=self.random.random() < 0.5)

    def kill_one(self) -> None:
        running = sorted((name, pid) for name, pid in self.agent.pids().items() if pid)
        if running:
            name, pid = self.random.choice(running)
            self.tell(f"SIGKILL to {name}, pid {pid}")
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def crash(self) -> None:
        self.tell("SIGKILL to the agent")
        self.agent.crash()

    def upgrade(self) -> None:
        self.tell("SIGHUP to the agent")
        pid = self.agent.pid()
        before = stack_of(pid)
        os.kill(pid, signal.SIGHUP)
        until(lambda: stack_of(pid) != before, "the agent becomes itself anew")
        until(lambda: self.agent.answering_pid() == pid, "it answers")

    def meet(self) -> None:
        """Several at once: changes of several clients, and perhaps a crash in their midst."""
        changes: list[tuple[str, dict[str, Any]]] = []
        told: list[Any] = []
        for _change in range(self.random.randint(2, 4)):
            kind = self.random.choice(["apply", "apply", "stop", "restart", "reload", "roll back"])
            if kind == "apply":
                self.define()
                changes.append(("apply", self.request()))
            elif kind == "roll back":
                changes.append(("apply", {"project": "shop", "rollback_to": ""}))
            else:
                names = self.some_names()
                self.surging |= {one.partition(":")[0] for one in names} if kind == "reload" else set()
                changes.append((kind, {"names": names}))
            told.append((kind, changes[-1][1].get("names") or briefly(changes[-1][1].get("definitions", {}))))
        end = self.random.choice(["nothing", "nothing", "crash", "upgrade"])
        self.tell(f"at once: {told}, then {end}")
        self.stopped.clear()
        self.is_known = False
        threads = [threading.Thread(target=self.ask, args=(kind,), kwargs=fields) for kind, fields in changes]
        for thread in threads:
            thread.start()
        if end != "nothing":
            (self.crash if end == "crash" else self.upgrade)()
        for thread in threads:
            thread.join()
        # Which of several applies came last, only the agent knows; another one says it for certain.
        if any(kind == "apply" for kind, _fields in changes) and self.definitions:
            self.tell("(and the last of them once more)")
            self.is_known = True
            self.apply_and_look()

    def ask(self, kind: str, **fields: Any) -> dict[str, Any]:
        try:
            answer = self.agent.ask(kind, **fields)
        except (ClientError, OSError) as error:  # the agent was killed or upgraded meanwhile
            answer = {"type": "lost", "message": str(error)}
        message = str(answer.get("message"))
        self.tell(f"    -> {kind}: {answer['type']} {message}")
        assert "the agent failed" not in message
        assert "SIGKILL" not in message, "an instance is said to resist SIGKILL"
        return answer

    def some_names(self) -> list[str]:
        known = sorted({*self.agent.instances(), *(one["process"] for one in self.agent.instances().values())})
        return self.random.sample(known, 1) if known else ["nobody"]

    # What is checked

    def matching(self, names: list[str]) -> set[str]:
        return {name for name, one in self.agent.instances().items() if name in names or one["process"] in names}

    def at_rest_after(self, names: list[str]) -> set[str]:
        shown = self.agent.instances()  # some may have been removed meanwhile
        return {name for name in self.matching(names) if not shown.get(name, {}).get("wanted", True)}

    def processes(self) -> list[Process]:
        """All live processes that this agent, or one before it, started."""
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit() and alive(int(entry)):
                try:
                    text = Path(f"/proc/{entry}/environ").read_bytes().decode("utf-8", "replace")
                    variables = dict(line.partition("=")[::2] for line in text.split("\0"))
                    if variables.get("PM3_SPAWN_ID", "").endswith(f"@{os.path.realpath(self.agent.data_dir)}/run"):
                        found.append(Process(int(entry), variables))
                except OSError:
                    continue
        return found

    def check_always(self) -> None:
        mains: dict[str, list[Process]] = {}
        for one in self.processes():
            if one.pid == one.session and alive(one.pid):
                mains.setdefault(one.name, []).append(one)
        double = {
            name: found
            for name, found in mains.items()
            if len([one for one in found if alive(one.pid)]) > (2 if name.partition(":")[0] in self.surging else 1)
        }
        assert not double, f"I1: more than one main process: {double}"
        awake = {name for name in self.stopped if self.agent.instances().get(name, {}).get("pid")}
        assert not awake, f"I3: started again without being asked: {awake}"

    def check_quiet(self) -> None:
        """Once nothing happens any more: what there is, is what the agent says."""
        shown = until(self.quiet, "everything comes to rest or runs")

        def strangers() -> list[Process]:
            pids = {one["pid"] for one in shown.values()}
            return [one for one in self.processes() if one.session not in pids]

        left = strangers()
        assert not left, f"I4: nobody knows of {left}"
        forgotten = [
            name
            for name, one in shown.items()
            if one["wanted"]
            and one["phase"] == "down"
            and (one["last_exit"] is None or one["last_exit"]["cause"] == "user")
        ]
        assert not forgotten, f"I4: wanted, and never started: {forgotten}"
        awake = {name for name in self.stopped if shown.get(name, {}).get("pid")}
        assert not awake, f"I3: started again without being asked: {awake}"
        if self.is_known and self.told().get("failure", "nothing") is None:
            self.check_what_runs()

    def check_what_runs(self) -> None:
        """Promise 2: what lasts runs as the current revision says, if that has come up."""
        now = self.told()
        if not self.is_known or now.get("failure", "nothing") is not None:
            return
        programs = {name: shlex.split(table["command"]) for name, table in now["definitions"].items() if lasts(table)}
        for name, one in self.agent.instances().items():
            if one["process"] in programs and one["process"] not in self.held and one["pid"]:
                found = command_of(one["pid"])
                expected = programs[one["process"]]
                # A shell may have become what it ran in the end.
                assert found in ([], expected) or found == shlex.split(expected[-1])[-2:], (
                    f"promise 2: {name} runs {found}, revision {now['revision']} says {expected}"
                )

    def quiet(self) -> dict[str, Any]:
        if self.agent.under_way():
            return {}
        shown = self.agent.instances()
        busy = [name for name, one in shown.items() if one["phase"] in BUSY]
        return {} if busy else shown or {"nothing": {"pid": None, "wanted": False, "phase": "down"}}

    def check_second_apply(self) -> None:
        if self.held:
            self.hold()
        if not self.definitions:
            return
        self.is_known = True
        self.tell("apply that twice")
        if self.apply_and_look().get("ok"):
            self.check_repeated(self.definitions)

    def check_repeated(self, definitions: dict[str, Any], reading_files: bool = True) -> None:
        """I5: what is there already is applied without any action."""
        again = self.ask("apply", **self.request(definitions=definitions))
        if again["type"] == "error" and self.was_held:
            return  # what is held may depend on what the others do not define any more
        done = {row["name"]: (row["action"], row["reason"]) for row in again["instances"] if row["action"] != "none"}
        moving = {
            name
            for name, table in definitions.items()
            if not rests_or_lasts(table) or ("restart_when_changed" in table and not reading_files)
        }
        assert not {name for name in done if name.partition(":")[0] not in moving}, f"I5: {done}"


def kind_of(table: dict[str, Any]) -> str:
    return next(kind for kind, program in PROGRAMS.items() if program["command"] == table["command"])


def lasts(table: dict[str, Any]) -> bool:
    return kind_of(table) in LASTING


def rests_or_lasts(table: dict[str, Any]) -> bool:
    """Whether what it starts, once it is up, stays as it is. Another may end between two applies."""
    return lasts(table) or (kind_of(table) in WORKING and table.get("restart") != "always")


def briefly(definitions: dict[str, Any]) -> dict[str, Any]:
    return {
        name: (kind_of(one), one.get("instances", 1), one.get("depends_on"), one.get("env"), one.get("restart"))
        for name, one in definitions.items()
    }


def command_of(pid: int) -> list[str]:
    """What a process runs, once it no longer runs the shell that spawns it; empty when it has ended."""
    found: list[str] = []

    def is_spawned() -> bool:
        try:
            program, *words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1] or [""]
        except OSError:
            program, words = "", []
        found[:] = [os.path.basename(program), *words] if program else []
        return found[:2] != ["sh", "-c"] or found[3:4] != ["pm3"]

    until(is_spawned, f"process {pid} runs its program")
    return found


def descriptors(pid: int) -> dict[str, int]:
    """How many it has of each kind. (SQLite closes a checkpoint's file a little later.)"""
    found: dict[str, int] = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            kind = os.readlink(entry).partition(":[")[0]
        except FileNotFoundError:
            continue
        if ".sqlite" not in kind:
            found[kind] = found.get(kind, 0) + 1
    return found


def seeds() -> list[int]:
    """Of `PM3_HISTORIES`: `100` are the first hundred, `7:` is the one, `100:200` are those from 100 on and before 200."""
    first, colon, end = os.environ.get("PM3_HISTORIES", "8").partition(":")
    if not colon:
        return list(range(int(first)))
    return list(range(int(first), int(end or int(first) + 1)))


@pytest.mark.parametrize("seed", seeds())
def test_a_history_keeps_the_promises(agent: Agent, seed: int) -> None:
    keeper = int(Path(f"/proc/{agent.pid()}/stat").read_text().rpartition(")")[2].split()[1])
    before = at_rest(lambda: descriptors(agent.pid()))
    kept = descriptors(keeper)
    history = History(agent, seed)
    try:
        history.run(STEPS)
        history.tell("everything is removed")
        agent.apply({}, state="absent")
        assert not history.processes(), f"I2: removed, but there is still {history.processes()}"
        until(lambda: not agent.under_way(), "I8: nothing is kept as under way")
        until(lambda: descriptors(agent.pid()) == before, f"I8: the same descriptors as in the beginning, {before}")
        until(lambda: descriptors(keeper) == kept, f"I8: the keeper has the same, too, {kept}")
        assert os.listdir(agent.data_dir / "run") == []
        trouble = (agent.data_dir / "agent.log").read_text()
        assert "Traceback" not in trouble, trouble
    except BaseException as error:
        told = "\n".join(f"  {line}" for line in history.story)
        now = f"now: {agent.instances()}\nprocesses: {history.processes()}\n{descriptors(agent.pid())}"
        log = (agent.data_dir / "agent.log").read_text()
        raise AssertionError(f"history {seed} (PM3_HISTORIES={seed}:)\n{told}\n{now}\n{log}\n{error}") from error
