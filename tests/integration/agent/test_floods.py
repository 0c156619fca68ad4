"""SIGKILLs of the agent under programs that write as fast as they can: of all their lines none is lost, doubled or cut.

`PM3_FLOOD_KILLS=500` are many more kills than usual, under tens of millions of lines; `PM3_FLOOD_SEED=1` is other moments.
"""

from __future__ import annotations

import os
import random
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.log_options import LogOptions

from .conftest import PACKAGE, Agent, alive
from .pumping import WRITER, copies, everything, numbers
from .test_races import keeper_of, without_an_agent
from .test_rotation import STAMP, plain
from .waiting import until

KILLS = int(os.environ.get("PM3_FLOOD_KILLS", "12"))
SEED = int(os.environ.get("PM3_FLOOD_SEED", "0"))
ENDLESS = str(10**12)
# How each program's output is kept, and the same as fields of a definition.
KINDS: dict[str, tuple[LogOptions, dict[str, Any]]] = {
    "raw": (LogOptions(), {"log_max_size": "1M", "log_compress": True}),
    "stamps": (LogOptions(date_format=STAMP), {"log_max_size": "300K", "log_date_format": STAMP}),
    "json": (LogOptions(format="json"), {"log_max_size": "500K", "log_format": "json"}),
}
COMMON = {"restart": "never", "log_keep": 1_000_000, "kill_timeout": 60_000, "min_uptime": 0}

# The keeper, which starts an agent again at once, however often it dies.
HASTY = f"""
import sys
sys.path.insert(0, {str(PACKAGE.parent)!r})
from pm3.agent import keeper
keeper._FIRST_PAUSE = keeper._LONGEST_PAUSE = 0.001
sys.exit(keeper.main(sys.argv[1]))
"""


@pytest.fixture
def hasty(tmp_path: Path) -> Iterator[Agent]:
    one = Agent(tmp_path)
    os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-I", "-S", "-c", HASTY, str(one.data_dir)])
    until(one.answering_pid, "the agent answers")
    yield one
    one.end()


class Killer:
    """Kills one agent after the other: some as soon as they are there, some when they have answered and done their work for a while."""

    def __init__(self, agent: Agent, seed: int) -> None:
        self._agent = agent
        self._chance = random.Random(seed)

    def kill(self) -> None:
        before = self._agent.pid()
        if self._chance.random() < 0.7:
            until(self._agent.answering_pid, "an agent answers")
            before = self._agent.pid()
            self._wait(before, self._chance.random() * 200)
        os.kill(before, signal.SIGKILL)
        until(lambda: self._is_another(before), "another agent has begun")
        if self._chance.random() < 0.5:
            self._wait(self._agent.pid(), self._chance.random() * 20)

    def _is_another(self, before: int) -> bool:
        found = (self._agent.data_dir / "pm3.pid").read_text()
        return bool(found) and int(found) != before

    @staticmethod
    def _wait(pid: int, milliseconds: float) -> None:
        """When the kill comes is the chance of this test; should it end by itself, there is nothing to wait for."""
        pidfd = os.pidfd_open(pid)
        waiting = select.poll()
        waiting.register(pidfd, select.POLLIN)
        waiting.poll(milliseconds)
        os.close(pidfd)


def program(agent: Agent) -> str:
    path = agent.folder / "writer.py"
    path.write_text(WRITER)
    return f"{sys.executable} -I -S {path}"


def test_many_sigkills_under_floods(hasty: Agent) -> None:
    command = program(hasty)
    definitions = {
        kind: {"command": f"{command} {SEED} {ENDLESS} {hasty.folder}/{kind}", **COMMON, **fields}
        for kind, (__, fields) in KINDS.items()
    }
    assert hasty.apply(definitions)["ok"]
    pids = hasty.pids()
    killer = Killer(hasty, SEED)
    for __ in range(KILLS):
        killer.kill()
    until(hasty.answering_pid, "another agent answers")
    assert hasty.pids() == pids, "the agent's death is nobody else's"
    assert hasty.ask("stop")["type"] == "success"
    for kind, (options, fields) in KINDS.items():
        written = int((hasty.folder / kind).read_text())
        for stream in ("out", "err"):
            log = hasty.data_dir / "logs" / f"{kind}-{stream}.log"
            if fields.get("log_compress"):
                until(lambda log=log: all(path.suffix == ".gz" for path in copies(log)), "all copies are compressed")
            assert len(copies(log)) > 3, f"{kind}, {stream}: there was no rotation"
            found = numbers(b"".join(plain(text, options, kind) for text in everything(log)))
            assert found == list(range(written)), f"{kind}, {stream}: not each line once"
    assert "Traceback" not in (hasty.data_dir / "agent.log").read_text()


# How a program ends, and what is known of it then.
ENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "zero": ("sys.exit(0)", {"cause": "exit", "code": 0}),
    "seven": ("sys.exit(7)", {"cause": "exit", "code": 7}),
    "killed": ("os.kill(os.getpid(), signal.SIGKILL)", {"cause": "signal", "signal": signal.SIGKILL}),
    "fallen": ("os.kill(os.getpid(), signal.SIGSEGV)", {"cause": "signal", "signal": signal.SIGSEGV}),
}
POLICIES = ("never", "on_failure", "always")
WORDS = 400  # lines, which fit into a pipe that nobody empties


def speakers(agent: Agent, **fields: Any) -> dict[str, int]:
    """Processes END-POLICY that say their last words when the file `go` is there, and end; started anew they only stay. Their pids."""
    for end, (code, __) in ENDS.items():
        waits = f"""
import os, signal, sys, time
begun = {str(agent.folder)!r} + "/begun-" + os.environ["PM3_NAME"]
if os.path.exists(begun):
    signal.pause()
open(begun, "w").close()
while not os.path.exists({str(agent.folder / "go")!r}):
    time.sleep(0.01)
"""
        (agent.folder / f"{end}.py").write_text(f"{waits}{WRITER}{code}\n")
    definitions = {
        f"{end}-{policy}": {
            **COMMON,
            "command": f"{sys.executable} -I -S {agent.folder}/{end}.py {SEED} {WORDS}",
            "restart": policy,
            **fields,
        }
        for end in ENDS
        for policy in POLICIES
    }
    assert agent.apply(definitions)["ok"]
    until(lambda: len(list(agent.folder.glob("begun-*"))) == len(definitions), "all have begun")
    return agent.pids()


def say_it(agent: Agent, pids: dict[str, int]) -> None:
    (agent.folder / "go").touch()
    until(lambda: not any(map(alive, pids.values())), "all have ended")


def check_ends(agent: Agent, pids: dict[str, int], is_known: bool) -> None:
    """All is dealt with as restart says, and what is not known as a failure; `never` is never."""

    def again(name: str) -> bool:
        end, __, policy = name.partition("-")
        return policy == "always" or (policy == "on_failure" and not (is_known and end == "zero"))

    wanted = {name: "online" if again(name) else "down" for name in pids}
    until(lambda: {name: one["phase"] for name, one in agent.instances().items()} == wanted, f"they are {wanted}")
    for name, one in agent.instances().items():
        known = ENDS[name.partition("-")[0]][1] if is_known else {"cause": "unknown"}
        assert one["last_exit"].items() >= known.items(), name
        assert one["total_restarts"] == again(name), name
        assert one["pid"] != pids[name], name


@pytest.mark.parametrize("kind", KINDS)
def test_last_words_of_who_ends_while_no_agent_runs(agent: Agent, kind: str) -> None:
    options, fields = KINDS[kind]
    pids = speakers(agent, **fields)
    with without_an_agent(agent):
        say_it(agent, pids)
    check_ends(agent, pids, is_known=True)
    for name in pids:
        for stream in ("out", "err"):
            log = agent.data_dir / "logs" / f"{name}-{stream}.log"
            until(lambda log=log: log.stat().st_size, "it is logged")
            assert numbers(plain(log.read_bytes(), options, name)) == list(range(WORDS))


def test_who_ends_while_the_keeper_is_dead_too_has_ended_unseen(agent: Agent) -> None:
    """Nobody has what tells how. A job that may not run twice is `never`."""
    pids = speakers(agent)
    keeper, before = keeper_of(agent), agent.pid()
    os.kill(keeper, signal.SIGKILL)
    os.kill(before, signal.SIGKILL)
    until(lambda: not alive(keeper) and not alive(before), "both are dead")
    say_it(agent, pids)
    until(
        lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids.values()), "init has reaped them: a zombie tells"
    )
    agent.pm3("list")
    check_ends(agent, pids, is_known=False)
    for name in pids:
        assert agent.log(f"{name}-out") == "", "what nobody has taken from a pipe is lost with the last who has it"
