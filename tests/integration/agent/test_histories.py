"""Random histories of a real agent: what is applied, stopped, restarted, killed and upgraded, several things at once, in any order.

After each step the promises are checked against what /proc shows (DESIGN.md, section 7): I1 at most one main process per instance,
I2 nothing left of what was stopped, I3 a stop stays a stop, I4 every process is tracked or dead, I5 a second apply does nothing, I8
descriptors do not grow. A history is the work of its seed alone. One that breaks a promise is told as a story, with the seed that
brings it back: `PM3_HISTORIES=SEED:` runs that one, `PM3_HISTORIES=100` a hundred others.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.wire.client import ClientError

from .conftest import Agent, alive, stack_of, until
from .test_agent import at_rest

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
}
LASTING = ("sleeps", "sleeps differently", "ignores TERM", "has children", "has stubborn children")
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
            table = {**PROGRAMS[kind], "min_uptime": 20, "instances": self.random.randint(1, 3)}
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
        self.definitions = self.some_definitions()
        short = {
            name: (one["command"], one["instances"], one.get("depends_on")) for name, one in self.definitions.items()
        }
        self.tell(f"apply {short}")
        self.stopped.clear()
        self.ask("apply", project="shop", definitions=self.definitions, base=str(self.agent.folder))

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
        for _change in range(self.random.randint(2, 4)):
            kind = self.random.choice(["apply", "stop", "restart"])
            if kind == "apply":
                self.definitions = self.some_definitions()
                changes.append(
                    ("apply", {"project": "shop", "definitions": self.definitions, "base": str(self.agent.folder)})
                )
            else:
                changes.append((kind, {"names": self.some_names()}))
        end = self.random.choice(["nothing", "nothing", "crash", "upgrade"])
        told = [
            fields.get("names") or {n: (t["command"], t["instances"]) for n, t in fields["definitions"].items()}
            for _k, fields in changes
        ]
        self.tell(f"at once: {[(kind, one) for (kind, _fields), one in zip(changes, told)]}, then {end}")
        self.stopped.clear()
        threads = [threading.Thread(target=self.ask, args=(kind,), kwargs=fields) for kind, fields in changes]
        for thread in threads:
            thread.start()
        if end != "nothing":
            (self.crash if end == "crash" else self.upgrade)()
        for thread in threads:
            thread.join()
        # Which of several applies came last, only the agent knows; another one says it for certain.
        if any(kind == "apply" for kind, _fields in changes):
            self.tell("(and the last of them once more)")
            self.ask("apply", project="shop", definitions=self.definitions, base=str(self.agent.folder))

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
        return {name for name in self.matching(names) if not self.agent.instance(name)["wanted"]}

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
        double = {name: found for name, found in mains.items() if len([one for one in found if alive(one.pid)]) > 1}
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

    def quiet(self) -> dict[str, Any]:
        shown = self.agent.instances()
        busy = [name for name, one in shown.items() if one["phase"] in BUSY]
        return {} if busy else shown or {"nothing": {"pid": None, "wanted": False, "phase": "down"}}

    def check_second_apply(self) -> None:
        if not self.definitions:
            return
        fields = {"project": "shop", "definitions": self.definitions, "base": str(self.agent.folder)}
        self.tell("apply that twice")
        first = self.ask("apply", **fields)
        if not first.get("ok"):
            return
        second = self.ask("apply", **fields)
        done = {row["name"]: row["action"] for row in second["instances"] if row["action"] != "none"}
        moving = {name for name, table in self.definitions.items() if not rests_or_lasts(table)}
        assert not {name for name in done if name.partition(":")[0] not in moving}, f"I5: {done}"


def rests_or_lasts(table: dict[str, Any]) -> bool:
    """Whether what it starts, once it is up, stays as it is. Another may end between two applies."""
    kind = next(kind for kind, program in PROGRAMS.items() if program["command"] == table["command"])
    return kind in LASTING or (kind in WORKING and table.get("restart") != "always")


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
