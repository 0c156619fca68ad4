"""An agent that dies at a named point: whatever it was doing there, the next one finds its way, and nobody's process or line is lost.

Each case tells one point (crash_build.py) in a scenario that certainly gets there, and then wants of the next agent all that was
promised: each instance runs once or not at all, as one of the outcomes says; nothing runs beside; the run is over; an apply goes
through, and a second one has nothing to do; each program's lines are there once and whole; and when all is gone nothing is left of it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.wire import paths
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.wire.client import ClientError

from . import crash_build
from .conftest import COMMAND, PACKAGE, Agent, alive, unpacked
from .pumping import everything
from .waiting import until

# Numbered lines, in bursts; the last one says how many there were. As a signal it is told to end between two of them.
WRITER = """n=0; trap 'over=1' TERM
while [ -z "$over" ]; do n=$((n+1)); echo "$$ $n"; [ $((n%200)) != 0 ] || sleep 0.02; done
echo "$$ end $n"
"""
LINE = re.compile(rb"(?:.* \| )?(\d+) (end )?(\d+)")
Outcome = dict[str, str]  # by instance: "stopped", or the version that runs


def build(points: Path) -> list[str]:
    """The command of an agent with another file in the place of points.py."""
    folder = unpacked()
    (folder / "pm3").unlink()
    shutil.copytree(PACKAGE, folder / "pm3", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(points, folder / "pm3" / "agent" / "points.py")
    return [*COMMAND[:-1], str(folder / "pm3" / "__main__.py")]


class Host(Agent):
    """An agent of that build, and what can be seen of it from outside."""

    def __init__(self, folder: Path, command: list[str], data_dir: Path | None = None) -> None:
        super().__init__(folder, data_dir)
        self.command = command
        self.run_folder = Path(paths.run(str(self.data_dir)))
        (folder / "run.sh").write_text(WRITER)
        (folder / "stubborn.sh").write_text(WRITER.replace("over=1", ""))

    def up(self) -> None:
        environment = {**self.environment, "PM3_READY_FD": ""}
        subprocess.run([*self.command, "--keeper"], env=environment, check=True, timeout=60)
        until(self.answering_pid, "the agent answers")

    def keeper(self) -> int:
        return int((self.data_dir / "keeper.lock").read_text())

    def tell(self, points: str) -> None:
        """Where it is to die, from now on."""
        (self.data_dir / crash_build.TOLD).write_text(points)

    def crashed(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return (self.data_dir / crash_build.DONE).read_text().split()
        return []

    def try_to(self, ask: Callable[[], Any]) -> None:
        """The agent dies while it does this, or right after."""
        with contextlib.suppress(ClientError):
            ask()

    def definition(self, version: str, **fields: Any) -> dict[str, Any]:
        env = {"CRASH_ROOM": str(self.folder), "VERSION": version}
        common = {"min_uptime": 30, "log_max_size": 0, "kill_timeout": 5000}
        return {"command": "sh run.sh", "cwd": str(self.folder), "env": env, **common, **fields}

    def processes(self) -> dict[int, str]:
        """What runs of this test's programs: the version of each, by the session that it began."""
        wanted, found = f"CRASH_ROOM={self.folder}".encode(), {}
        for entry in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                variables = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
                if wanted in variables and alive(int(entry)):
                    version = next(one for one in variables if one.startswith(b"VERSION="))
                    found[os.getsid(int(entry))] = version.decode().partition("=")[2]
        return found

    def quiet(self) -> Outcome | None:
        """What each instance is, when nothing is under way and nothing runs twice or beside."""
        try:
            instances = self.instances()
        except ClientError:
            return None
        running, busy = self.processes(), self.rows("SELECT project FROM runs")
        pids = {name: one["pid"] for name, one in instances.items() if one["pid"]}
        if busy or sorted(pids.values()) != sorted(running):
            return None
        if any(one["status"] not in ("online", "stopped") for one in instances.values()):
            return None
        return {name: running[pids[name]] if name in pids else "stopped" for name in instances}

    def state(self) -> str:
        """For whoever reads why a test failed."""
        instances = {name: (one["status"], one["pid"], one.get("reason", "")) for name, one in self.instances().items()}
        runs = self.rows("SELECT * FROM runs")
        return f"instances {instances}, processes {self.processes()}, runs {runs}, log:\n{self.told()}"

    def told(self) -> str:
        """What its agents have said of themselves."""
        return (self.data_dir / "agent.log").read_text()

    def rows(self, query: str) -> list[Any]:
        with contextlib.closing(sqlite3.connect(self.data_dir / "store.sqlite")) as store:
            return store.execute(query).fetchall()

    def belongings(self) -> dict[str, Counter[str]]:
        """What is held: descriptors, and names in the run folder."""
        return {
            "agent": descriptors(self.pid()),
            "keeper": descriptors(self.keeper()),
            "run folder": Counter(os.listdir(self.run_folder)),
        }

    def left(self, at_rest: dict[str, Counter[str]]) -> list[Any]:
        """What is held now and was not then."""
        now = self.belongings()
        return [(kind, now[kind] - then) for kind, then in at_rest.items() if now[kind] - then]

    def gives_back(self, at_rest: dict[str, Counter[str]]) -> None:
        """Waits until nothing is left. A checkpoint has a connection of its own for as long as the disk takes to write, and a disk that
        somebody else floods takes longer than anything else here."""
        for __ in range(6):
            with contextlib.suppress(AssertionError):
                until(lambda: not self.left(at_rest), "nothing is left of it")
                return
            if not waits_for_disk(self.pid()):
                break
        assert not self.left(at_rest)

    def down(self) -> None:
        keeper = self.keeper()
        os.kill(keeper, signal.SIGTERM)
        until(lambda: not alive(keeper), "the keeper ends")
        assert not self.processes()


def descriptors(pid: int) -> Counter[str]:
    found: Counter[str] = Counter()
    for entry in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found[re.sub(r"\d+", "N", os.readlink(f"/proc/{pid}/fd/{entry}"))] += 1
    for name in filter(lambda one: one.endswith("store.sqlite"), found):
        found[name] = 1  # SQLite keeps one more for the next connection while another one has a lock
    return found


def waits_for_disk(pid: int) -> bool:
    """Whether a thread of a process is in uninterruptible sleep."""
    stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return any(stat.rpartition(")")[2].split()[0] == "D" for stat in stats)


@pytest.fixture(scope="module")
def command() -> list[str]:
    return build(Path(crash_build.__file__))


@pytest.fixture
def host(tmp_path: Path, command: list[str]) -> Iterator[Host]:
    one = Host(tmp_path, command)
    one.up()
    yield one
    one.down()


# Scenarios. Each makes something ready, tells the points, and does what leads there. It gives the definitions that the project is to
# have in the end, and the outcomes that keep what was promised.

Scenario = Callable[[Host, str], "tuple[dict[str, Any], list[Outcome]]"]


def started(host: Host, point: str, **fields: Any) -> tuple[dict[str, Any], list[Outcome]]:
    """The first apply of a process, beside one that was stopped."""
    job = host.definition("1")
    assert host.apply({"job": job})["ok"]
    assert host.ask("stop", names=["job"])["type"] == "success"
    both = {"job": job, "web": host.definition("1", instances=2, **fields)}
    host.tell(point)
    # What somebody has stopped is not what this change is about.
    host.try_to(lambda: host.apply(both, only=["web"]))
    fresh = point in ("run.before_kept", "store.before_commit")
    new = {"job": "stopped", "web:0": "1", "web:1": "1"}
    return both, [{"job": "stopped"}] if fresh else [new]


def hooked(host: Host, point: str) -> tuple[dict[str, Any], list[Outcome]]:
    return started(host, point, pre_start="sleep 0.02", post_stop="sleep 0.02")


def rolled(host: Host, point: str, **fields: Any) -> tuple[dict[str, Any], list[Outcome]]:
    """Two instances of two processes, one after the other."""

    def version(number: str) -> dict[str, Any]:
        front = {"front": host.definition(number, depends_on=["web"], **fields)}
        return {"web": host.definition(number, instances=2, **fields), **front}

    assert host.apply(version("1"))["ok"]
    host.tell(point)
    host.try_to(lambda: host.apply(version("2")))
    before = point in ("run.before_kept", "store.before_commit")
    kept = "1" if before else "2"
    return version("2"), [{"front": kept, "web:0": kept, "web:1": kept}]


def swapped(host: Host, point: str) -> tuple[dict[str, Any], list[Outcome]]:
    return rolled(host, point, update={"order": "start_first"})


def soaked(host: Host, point: str) -> tuple[dict[str, Any], list[Outcome]]:
    return rolled(host, point, update={"soak": 0.1})


def rolled_with_hooks(host: Host, point: str) -> tuple[dict[str, Any], list[Outcome]]:
    return rolled(host, point, pre_start="sleep 0.02", post_stop="sleep 0.02")


def gone_back(host: Host, point: str, **fields: Any) -> tuple[dict[str, Any], list[Outcome]]:
    """web:0 comes up, web:1 does not: however long it takes to end, it was never ready."""
    good = {"web": host.definition("1", instances=2, **fields), "old": host.definition("1")}
    bad = {"web": host.definition("2", instances=2, readiness_check="exec://sh ready.sh", **fields)}
    is_good = '[ "$VERSION$PM3_INSTANCE_ID" != 21 ] || exit 3\n'
    (host.folder / "ready.sh").write_text(is_good)
    (host.folder / "run.sh").write_text(is_good + WRITER)
    assert host.apply(good)["ok"]
    host.tell(point)
    host.try_to(lambda: host.apply(bad))
    return good, [{"old": "1", "web:0": "1", "web:1": "1"}]


def swapped_back(host: Host, point: str) -> tuple[dict[str, Any], list[Outcome]]:
    return gone_back(host, point, update={"order": "start_first"})


def removed(host: Host, point: str) -> tuple[dict[str, Any], list[Outcome]]:
    assert host.apply({"web": host.definition("1", instances=3), "old": host.definition("1")})["ok"]
    host.tell(point)
    left = {"web": host.definition("1", instances=2)}
    host.try_to(lambda: host.apply(left))
    return left, [{"web:0": "1", "web:1": "1"}]


def stopped(host: Host, point: str, **fields: Any) -> tuple[dict[str, Any], list[Outcome]]:
    both = {"web": host.definition("1", instances=2, **fields)}
    assert host.apply(both)["ok"]
    host.tell(point)
    host.try_to(lambda: host.ask("stop", names=["web:0"]))
    stays = {"web:0": "stopped", "web:1": "1"}
    # Before anything of it is stored, and so before it is answered, it may be as if nobody had asked.
    forgotten = point in ("stop.unwanted", "store.before_commit")
    return both, [stays, {"web:0": "1", "web:1": "1"}] if forgotten else [stays]


def killed(host: Host, point: str) -> tuple[dict[str, Any], list[Outcome]]:
    return stopped(host, point, command="sh stubborn.sh", kill_timeout=50)


def stopped_with_shape(host: Host, point: str) -> tuple[dict[str, Any], list[Outcome]]:
    return stopped(host, point, log_date_format="%H:%M:%S")


def fallen(host: Host, point: str) -> tuple[dict[str, Any], list[Outcome]]:
    """A process that ends by itself, and is to be started again."""
    both = {"web": host.definition("1", instances=2)}
    assert host.apply(both)["ok"]
    pid = host.pids()["web:0"]
    host.tell(point)
    os.kill(pid, signal.SIGKILL)
    until(host.crashed, "it has died at the point")
    return both, [{"web:0": "1", "web:1": "1"}]


def restarted(host: Host, point: str) -> tuple[dict[str, Any], list[Outcome]]:
    both = {"web": host.definition("1", instances=2), "front": host.definition("1", depends_on=["web"])}
    assert host.apply(both)["ok"]
    host.tell(point)
    host.try_to(lambda: host.ask("restart", names=["web"]))
    return both, [{"front": "1", "web:0": "1", "web:1": "1"}]


def demanded_again(host: Host, point: str) -> tuple[dict[str, Any], list[Outcome]]:
    """The same as before, of which one was stopped: no revision is made."""
    both = {"web": host.definition("1", instances=2)}
    assert host.apply(both)["ok"]
    assert host.ask("stop", names=["web:0"])["type"] == "success"
    host.tell(point)
    host.try_to(lambda: host.apply(both))
    return both, [{"web:0": "1", "web:1": "1"}]


def deleted(host: Host, point: str) -> tuple[dict[str, Any], list[Outcome]]:
    both = {"web": host.definition("1", instances=2)}
    assert host.apply(both)["ok"]
    host.tell(point)
    host.try_to(lambda: host.ask("delete", names=["web:0"]))
    return both, [{"web:0": "stopped", "web:1": "1"}, {"web:1": "1"}]


def held(host: Host, point: str) -> tuple[dict[str, Any], list[Outcome]]:
    """Whether it is held is what the store says, and apply knows."""
    one = {"web": host.definition("1")}
    assert host.apply(one)["ok"]
    if point == "hold.released":
        assert host.ask("hold", names=["web"], reason="a leak")["type"] == "success"
    host.tell(point)
    if point == "hold.released":
        host.try_to(lambda: host.ask("release", names=["web"]))
    else:
        host.try_to(lambda: host.ask("hold", names=["web"], reason="a leak"))
    until(host.answering_pid, "another agent answers")
    assert len(host.rows("SELECT name FROM holds")) == (point == "hold.kept")
    again = host.apply({"web": host.definition("2")})
    assert again["instances"][0]["action"] == ("none" if point == "hold.kept" else "rolled"), again
    assert host.ask("release", names=["web"])["type"] == "success"
    version = "1" if point == "hold.kept" else "2"
    return {"web": host.definition("2")}, [{"web": version}]


def logged(host: Host, point: str, **fields: Any) -> tuple[dict[str, Any], list[Outcome]]:
    """Writes until the point is reached, and goes on writing."""
    one = {"web": host.definition("1", **{"log_max_size": 20_000, "log_keep": 1000, **fields})}
    assert host.apply(one)["ok"]
    pid = host.pids()["web"]
    host.tell(point)
    until(lambda: host.crashed() == point.split(","), "it has died at the point")
    until(host.answering_pid, "another agent answers")
    assert host.pids() == {"web": pid}
    log = host.data_dir / "logs" / "web-out.log"
    told = log.with_name(".index") / log.name
    before = told.stat().st_mtime_ns if told.exists() else 0
    until(lambda: told.exists() and told.stat().st_mtime_ns != before, "its lines are logged")
    return one, [{"web": "1"}]


def compressed(host: Host, point: str) -> tuple[dict[str, Any], list[Outcome]]:
    return logged(host, point, log_compress=True)


def few_kept(host: Host, point: str) -> tuple[dict[str, Any], list[Outcome]]:
    return logged(host, point, log_keep=2)


def stamped(host: Host, point: str) -> tuple[dict[str, Any], list[Outcome]]:
    return logged(host, point, log_date_format="%H:%M:%S")


def emptied(host: Host, point: str) -> tuple[dict[str, Any], list[Outcome]]:
    one = {"web": host.definition("1")}
    assert host.apply(one)["ok"]
    host.tell(point)
    host.try_to(lambda: host.ask("flush", names=["web"]))
    return one, [{"web": "1"}]


def found_running(host: Host, point: str) -> tuple[dict[str, Any], list[Outcome]]:
    """The agent is killed, and the next one dies on its way."""
    both = {"web": host.definition("1", instances=2)}
    assert host.apply(both)["ok"]
    assert host.ask("stop", names=["web:1"])["type"] == "success"
    pid = host.pids()["web:0"]
    host.tell(point)
    host.crash()
    assert host.pids()["web:0"] == pid
    return both, [{"web:0": "1", "web:1": "stopped"}]


def upgraded(host: Host, point: str) -> tuple[dict[str, Any], list[Outcome]]:
    both = {"web": host.definition("1", instances=2)}
    assert host.apply(both)["ok"]
    assert host.ask("stop", names=["web:1"])["type"] == "success"
    pid = host.pids()["web:0"]
    host.tell(point)
    os.kill(host.pid(), signal.SIGHUP)
    until(host.crashed, "it has died at the point")
    until(host.answering_pid, "another agent answers")
    assert host.pids()["web:0"] == pid
    return both, [{"web:0": "1", "web:1": "stopped"}]


def ended(host: Host, point: str) -> tuple[dict[str, Any], list[Outcome]]:
    """Dies in its orderly end; the keeper has another one end in its place, and the one after that starts what is to run."""
    both = {"web": host.definition("1", instances=2)}
    assert host.apply(both)["ok"]
    assert host.ask("stop", names=["web:1"])["type"] == "success"
    host.tell(point)
    host.down()
    host.up()
    return both, [{"web:0": "1", "web:1": "stopped"}]


_SPAWN = [name for name in crash_build.POINTS if name.startswith("spawn.")]
_END = [name for name in crash_build.POINTS if name.startswith("end.")]
_ROLL = ["run.before_kept", "run.kept", "run.walked", "run.judged", "run.over", "roll.stopped", "roll.replaced"]
_BACK = [name for name in crash_build.POINTS if name.startswith("back.")]

# A number after a point: not the first time, because that is in another part of the scenario.
SCENARIOS: dict[Scenario, list[str]] = {
    started: [*_SPAWN, "spawn.forked:2", "store.before_commit", "store.after_commit:3"],
    hooked: ["spawn.forked", "spawn.attended:3", "end.gone"],
    rolled: [
        *_ROLL,
        "roll.replaced:2",
        "apply.level",
        "apply.placed",
        "stop.signalled",
        "end.reaped",
        "end.gone",
        "store.after_commit:2",
        "store.after_commit:6",
    ],
    soaked: ["apply.soaks", "run.walked"],
    rolled_with_hooks: ["spawn.forked", "spawn.forked:2", "end.gone:2"],
    swapped: [
        "swap.up",
        "swap.replaced",
        "swap.ended",
        "swap.replaced:2",
        "stop.signalled",
        "end.gone",
        "spawn.piped",
        "spawn.attended",
    ],
    gone_back: [*_BACK, "roll.stopped:3", "roll.replaced:3"],
    swapped_back: ["back.kept", "swap.up:2"],
    removed: ["apply.rested", "apply.removed", "run.walked"],
    stopped: ["stop.unwanted", "stop.signalled", "end.reaped", "end.delivered", "end.gone", "store.after_commit"],
    killed: ["stop.killed"],
    stopped_with_shape: ["spool.finished", "spool.removed"],
    fallen: _END,
    restarted: ["restart.stopped", "stop.signalled", "end.gone:3"],
    demanded_again: ["run.noted"],
    deleted: ["delete.removed", "end.gone"],
    held: ["hold.made", "hold.kept", "hold.released"],
    logged: [
        "rotation.begun:3",
        "rotation.index_shifted:3",
        "rotation.shifted:3",
        "rotation.index_shelved:2",
        "rotation.shelved:2",
        "rotation.opened:2",
        "index.noted",
    ],
    compressed: ["packing.written", "packing.made", "packing.placed", "rotation.shifted:2"],
    few_kept: ["rotation.removed"],
    stamped: [
        "spool.begun",
        "spool.appended",
        "spool.committed",
        "spool.moved",
        "spool.to_be_cut",
        "spool.cut",
        "rotation.shelved",
    ],
    emptied: ["flush.emptied"],
    found_running: ["agent.begun", "agent.restored", "adoption.adopted"],
    upgraded: [
        *("upgrade.closed", "upgrade.noted", "upgrade.before_exec"),
        *("agent.begun", "agent.open", "agent.ready"),
    ],
    ended: ["agent.rests", "agent.ended", "stop.signalled"],
}
# One crash, and then another one where the next agent clears away what the first has left.
TWICE: dict[Scenario, list[str]] = {
    started: ["spawn.forked,adoption.strangers_ended", "spawn.pidfd_kept,agent.restored"],
    rolled: ["roll.stopped,agent.restored", "end.gone,spawn.attended"],
    swapped: ["swap.replaced,agent.restored", "swap.up,swap.replaced"],
    gone_back: ["back.kept,run.judged", "back.judged,back.kept"],
    stamped: ["spool.appended,spool.begun", "spool.appended,spool.appended"],
}
SHORTENED = (few_kept, emptied)  # the first lines of a log are not there any more, as somebody wished
CASES = [(scenario, point) for table in (SCENARIOS, TWICE) for scenario, points in table.items() for point in points]


def test_every_point_has_a_case() -> None:
    told = {one.partition(":")[0] for __, points in CASES for one in points.split(",")}
    assert told == set(crash_build.POINTS)


@pytest.mark.parametrize(
    ("scenario", "point"), [pytest.param(*case, id=f"{case[0].__name__}-{case[1]}") for case in CASES]
)
def test_a_crash_at(host: Host, scenario: Scenario, point: str) -> None:
    check_crash(host, scenario, point)


def check_crash(host: Host, scenario: Scenario, point: str) -> None:
    """Also on real hosts: tests/fleet/test_crash_points.py."""
    at_rest = host.belongings()
    definitions, outcomes = scenario(host, point)
    until(lambda: host.crashed() == point.split(","), f"it has died there; so far: {host.crashed()}")
    with contextlib.suppress(AssertionError):
        until(lambda: host.quiet() in outcomes, "it becomes what it was to be")
    assert host.quiet() in outcomes, host.state()
    as_wished = {name: one["env"]["VERSION"] for name, one in definitions.items()}
    is_there = all(as_wished[name.partition(":")[0]] == now for name, now in (host.quiet() or {}).items())
    lives = host.pids()
    made = host.apply(definitions)
    assert made["ok"], made
    if is_there and scenario is not deleted and point not in ("run.before_kept", "store.before_commit"):
        assert not made["changed"], made
    if not made["changed"]:
        assert host.pids() == lives
    assert not host.apply(definitions)["changed"]
    lives = host.pids()
    assert host.apply({}, state="absent")["ok"]
    check_lines(host, set(lives.values()) if scenario is not killed else set(), whole=scenario not in SHORTENED)
    until(lambda: not host.processes(), "nothing runs any more")
    assert not host.rows("SELECT name FROM instances")
    host.gives_back(at_rest)
    assert "Traceback" not in host.told()


def check_lines(host: Host, ended: set[int], whole: bool) -> None:
    """Of each program the lines from the first to the last one that it wrote; `ended` are those that have said which that was."""
    for log in (host.data_dir / "logs").glob("*-out.log"):
        found: dict[int, list[int]] = {}
        last: dict[int, int] = {}
        strange: list[bytes] = []
        for line in b"".join(everything(log)).splitlines():
            parts = LINE.fullmatch(line)
            if parts is None:
                strange.append(line)
            elif parts[2]:
                last[int(parts[1])] = int(parts[3])
            else:
                found.setdefault(int(parts[1]), []).append(int(parts[3]))
        assert ended & set(found) <= set(last), f"{log.name}: somebody's end is missing"
        for pid, numbers in found.items():
            first = 1 if whole else numbers[0]
            there = list(range(first, first + len(numbers)))
            assert numbers == there, f"{log.name}: lines of {pid} are missing or doubled"
            assert last.get(pid, numbers[-1]) == numbers[-1], f"{log.name}: the last lines of {pid} are missing"
        assert not strange, log.name


SPAWNED = ("spawn.watched", "spawn.pidfd_kept", "spawn.attended")


@pytest.mark.parametrize(
    ("order", "point"),
    [*(("stop_first", point) for point in SPAWNED), *(("start_first", point) for point in (*SPAWNED, "swap.up"))],
)
def test_what_a_process_wrote_that_nobody_knew_is_in_the_log(host: Host, order: str, point: str) -> None:
    """Of a spawn that no record tells of, the process is ended; its output is the instance's all the same."""
    (host.folder / "run.sh").write_text('echo "$$ says it"; echo $$ >> told; exec sleep 1000')

    def version(number: str) -> dict[str, Any]:
        return {"web": host.definition(number, update={"order": order})}

    assert host.apply(version("1"))["ok"]
    host.tell(point)
    host.try_to(lambda: host.apply(version("2")))
    until(host.crashed, f"it has died at {point}")
    until(lambda: host.quiet() == {"web": "2"}, "it becomes what it was to be")
    told = (host.folder / "told").read_text().split()
    until(lambda: logged_by(host) == [f"{pid} says it" for pid in told], "what was written is logged")
    assert len(told) > 1


def logged_by(host: Host) -> list[str]:
    return (host.data_dir / "logs" / "web-out.log").read_text().splitlines()
