"""The agent is killed at random moments of a roll and of its way back; the next one ends what was begun (promises 2 and 3).

In each round a good release is replaced by another one, good or bad, and the agent dies once or twice on the way: after so many steps
that it told, or after so many programs that were begun. When all is quiet every instance runs the release that was promised, with
one process each and none beside it, and no line that a program wrote through all of it is lost or doubled. `PM3_ROUNDS=100` plays more
rounds than usual, `PM3_SEED` other ones.
"""

from __future__ import annotations

import contextlib
import os
import random
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.wire.client import ClientError

from .conftest import Agent
from .test_races import processes_of
from .waiting import until

NAMES = ("web:0", "web:1", "web:2")
ROUNDS = int(os.environ.get("PM3_ROUNDS", "12"))
SEED = int(os.environ.get("PM3_SEED", "0"))
WAYS: dict[str, dict[str, Any]] = {
    "stop_first": {},
    "start_first": {"order": "start_first"},
    "two at a time": {"max_unavailable": 2},
}

# It counts in lines, and when it is asked to end it leaves a note of how far it came.
COUNTS = """
import os, signal, sys, time
release, folder = sys.argv[1:]
name, me = os.environ["PM3_NAME"], f"{os.getpid()}-{time.time_ns()}"
asked = []
signal.signal(signal.SIGTERM, lambda *about: asked.append(1))
open(f"{folder}/begun/{release} {name} {me}", "w").close()
open(f"{folder}/ready/{os.getpid()}", "w").close()
number = 0
while not asked:
    number += 1
    os.write(1, f"{me} {number}\\n".encode())
    time.sleep(0.002)
with open(f"{folder}/ended/{me}", "w") as note:
    note.write(f"{name} {number}")
"""
# On a busy machine a Python needs longer to begin than a program without a check has to live.
READY = {"readiness_check": "exec://sh -c 'test -e ready/$PM3_PID'", "readiness_timeout": 20}
BAD: dict[str, tuple[str, dict[str, Any]]] = {  # what is appended to where it begins, and fields
    "is no program": ("sys.exit(1)", READY),
    "fails as the second": ('if name == "web:1": sys.exit(3)', READY),
    "fails as the last": ('if name == "web:2": sys.exit(3)', READY),
    "falls early": ("time.sleep(0.1); sys.exit(4)", {"min_uptime": 5000}),
    "falls early as the last": ('if name == "web:2": time.sleep(0.1); sys.exit(4)', {"min_uptime": 1500}),
    "is never ready": ("", {"readiness_check": "exec://false", "readiness_timeout": 0.4}),
    "is never ready as the second": (
        "",
        {"readiness_check": "exec://sh -c 'test $PM3_INSTANCE_ID != 1'", "readiness_timeout": 0.4},
    ),
}
GOOD: tuple[dict[str, Any], ...] = ({}, {"readiness_check": "exec://true"}, {"min_uptime": 200})


class Rounds:
    def __init__(self, agent: Agent, way: str) -> None:
        self.agent = agent
        self.way = way
        self.random = random.Random(f"{SEED} {way}")
        self.story: list[str] = []
        for folder in ("begun", "ready", "ended"):
            (agent.folder / folder).mkdir()

    def release(self, label: str, extra: str = "", **fields: Any) -> dict[str, Any]:
        program = self.agent.folder / f"{label}.py"
        program.write_text(COUNTS.replace('open(f"{folder}/ready', f'{extra}\nopen(f"{{folder}}/ready'))
        command = [sys.executable, "-I", "-S", str(program), label, str(self.agent.folder)]
        common = {"command": shlex.join(command), "instances": len(NAMES), "min_uptime": 30, "max_restarts": 2}
        return {"web": {**common, "update": WAYS[self.way], "env": {"PM3_TEST": str(self.agent.folder)}, **fields}}

    def history(self) -> list[dict[str, Any]]:
        return list(self.agent.ask("history", project="shop")["revisions"])

    def begun(self, label: str = "") -> list[str]:
        return [name for name in os.listdir(self.agent.folder / "begun") if name.startswith(label)]

    def play(self, number: int) -> None:
        good, bad = f"good{number}", f"new{number}"
        for path in (self.agent.folder / "ready").iterdir():
            path.unlink()
        made = self.agent.apply(self.release(good, **self.random.choice(GOOD)), label=good)
        assert made["ok"], made
        promised = good
        if self.random.random() < 0.65:
            kind = self.random.choice(list(BAD))
            definitions = self.release(bad, BAD[kind][0], **BAD[kind][1])
        else:
            kind, promised = "is good", bad
            definitions = self.release(bad, **self.random.choice(GOOD))
        self.story.append(f"round {number}: from {good} to {bad}, which {kind}")
        self.random.choice([self.kill_after_steps, self.kill_after_programs])(definitions, bad)
        while self.random.random() < 0.5:
            self.kill_again()
        until(lambda: not self.agent.under_way(), "what was begun is ended")
        self.check(promised)

    # Kills

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            os.kill(self.agent.pid(), signal.SIGKILL)

    def is_back(self, before: int) -> None:
        until(lambda: self.agent.answering_pid() not in (None, before), "another agent answers")

    def kill_after_steps(self, definitions: dict[str, Any], label: str) -> None:
        """As soon as it has told of so many steps, of this apply and of its way back."""
        count, before, left = self.random.randint(1, 14), self.agent.pid(), [0]
        self.story.append(f"  killed after {count} steps")

        def hear(_news: dict[str, Any]) -> None:
            left[0] += 1
            if left[0] == count:
                self.kill()

        with contextlib.suppress(ClientError, OSError):
            self.agent.apply(definitions, label=label, progress=True, on_row=hear)
        if left[0] >= count:
            self.is_back(before)
        else:
            self.story.append(f"  (it told of {left[0]} only)")

    def kill_after_programs(self, definitions: dict[str, Any], label: str) -> None:
        """As soon as so many programs have begun."""
        count, before, known = self.random.randint(1, 5), self.agent.pid(), len(self.begun())
        self.story.append(f"  killed after {count} programs")
        self.agent.apply(definitions, label=label, wait=False)
        # What is answered at once may not have begun yet; from here on it is not forgotten.
        until(lambda: label in [one["label"] for one in self.history()], "it has begun")
        until(
            lambda: len(self.begun()) >= known + count or not self.agent.under_way(),
            "so many have begun, or it is over",
        )
        self.kill()
        self.is_back(before)

    def kill_again(self) -> None:
        count, before, known = self.random.randint(0, 3), self.agent.pid(), len(self.begun())
        self.story.append(f"  killed again after {count} programs")
        until(
            lambda: len(self.begun()) >= known + count or not self.agent.under_way(),
            "so many have begun, or it is over",
        )
        self.kill()
        self.is_back(before)

    # What is checked

    def check(self, promised: str) -> None:
        agent = self.agent

        def running() -> dict[str, list[int]]:
            return {name: processes_of(agent, name) for name in NAMES}

        def is_quiet() -> bool:
            return {one["status"] for one in agent.instances().values()} == {"online"}

        until(is_quiet, "all are up")
        until(lambda: all(len(pids) == 1 for pids in running().values()), f"one process each: {running()}")
        assert running() == {name: [pid] for name, pid in agent.pids().items()}
        for name, (pid,) in running().items():
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            assert promised in words, f"{name} runs {words}, and {promised} was promised"
        current = self.history()[-1]
        assert (current["label"], current["failure"]) == (promised, None)
        again = agent.apply(agent.ask("snapshot")["definitions"]["shop"])
        assert not again["changed"], again["report"]

    def check_lines(self) -> None:
        """After all have ended: the lines of each process are all that it wrote, in their order."""
        found: dict[str, list[int]] = {}
        for log in (self.agent.data_dir / "logs").glob("web*out.log"):
            for line in log.read_text().splitlines():
                me, number = line.split()
                found.setdefault(me, []).append(int(number))
        for me, numbers in found.items():
            assert numbers == list(range(1, len(numbers) + 1)), f"{me}: {numbers}"
        notes = {path.name: path.read_text().split() for path in (self.agent.folder / "ended").iterdir()}
        assert notes
        for me, (name, number) in notes.items():
            assert len(found.get(me, ())) == int(number), (
                f"{name} {me} wrote {number} lines, {len(found.get(me, ()))} came"
            )


@pytest.mark.parametrize("way", WAYS)
def test_a_roll_is_ended_wherever_the_agent_dies(agent: Agent, way: str) -> None:
    rounds = Rounds(agent, way)
    try:
        for number in range(-(-ROUNDS // len(WAYS))):
            rounds.play(number)
        agent.apply({}, state="absent")
        rounds.check_lines()
        assert not [name for name in NAMES if processes_of(agent, name)]
        until(lambda: os.listdir(agent.data_dir / "run") == [], "nothing is kept of them")
        trouble = (agent.data_dir / "agent.log").read_text()
        assert "Traceback" not in trouble
    except BaseException as error:
        told = "\n".join(rounds.story)
        log = (agent.data_dir / "agent.log").read_text()
        now = agent.instances()
        raise AssertionError(f"{way} (PM3_SEED={SEED})\n{told}\n{now}\n{log}\n{error}") from error
