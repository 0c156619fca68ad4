"""The soak: a hundred instances crash, write, rotate and roll while the agent is killed and upgraded; then all promises are checked.

Runs on a host that has the agent, as root, with nothing else under it: `soak.py SECONDS [SEED]`. Prints what it does, ends with a JSON
document of figures, and with status 1 if a promise (I1 to I8 of the design) was broken.
"""

from __future__ import annotations

import collections
import fcntl
import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RUN = Path("/run/pm3-soak")
LOCKS, COUNTS, DOUBLED = RUN / "locks", RUN / "counts", RUN / "doubled"
LOGS = Path("/var/lib/pm3/logs")
LIBRARY = Path("/usr/local/lib/pm3")
SOUND, WILD = "sound", "wild"  # projects: what is changed and has to come up, and what ends by itself all the time
MOST = 40  # instances of `steady`
KEPT = 100_000  # rotated logs: none may be thrown away, or a missing line would prove nothing
# Bytes by which the agent's memory may differ between two rests; what malloc keeps varies by about a tenth of that.
GROWTH = 2 << 20
# What is the same from rest to rest; and what may only have been more at the first, while the agent wrote to a slow disk.
SAME = ("instances", "stored", "fifos", "cells")
NO_MORE = ("threads", "descriptors")
PATIENCE = 60.0  # seconds for anything to happen at all

# Each main process holds a lock of its name, and so does whatever it starts: nobody else may get it while one of them lives.
LOCKED = f"exec 9>>{LOCKS}/$PM3_NAME; flock -n 9 || echo $PM3_NAME $$ >>{DOUBLED}; "


class Broken(Exception):
    """A promise was not kept."""


def definitions(release: int, steady: int, is_calm: bool, is_bad: bool) -> dict[str, dict[str, dict[str, Any]]]:
    """A hundred instances by project (`steady` is MOST of them, or fewer). `is_calm`: those that end do not, and nobody writes."""

    def shell(script: str, **fields: Any) -> dict[str, Any]:
        return {"command": f"sh -c '{LOCKED}{script}'", **fields}

    def writer(**fields: Any) -> dict[str, Any]:
        return {
            "command": f"{sys.executable} {HERE}/soak_writer.py {COUNTS} {0 if is_calm else 40}",
            "instances": 10,
            "restart": "always",
            "log_max_size": "200K",
            "log_keep": KEPT,
            **wild,
            **fields,
        }

    wild = {"max_restarts": KEPT, "min_uptime": 20, "update": {"max_unavailable": "50%", "on_failure": "pause"}}
    sound = {"env": {"RELEASE": str(release)}, "min_uptime": 200, "update": {"max_unavailable": "25%"}}
    # The check keeps what ends from being up before it has ended, on however slow a host.
    bad = {**sound, "readiness_check": "exec://false"} if is_bad else sound
    forks = 'setsid -f sleep 1000001; (trap "" TERM; sleep 1000002; sleep 1000003) & '
    end = "exec sleep 1000000"
    crash = end if is_calm else "sleep @{1 + instance % 5}.@{instance % 10}; kill -@{1 + 8 * (instance % 2)} $$"
    return {
        SOUND: {
            "steady": shell("exit 7" if is_bad else end, instances=steady, **bad),
            "forks": shell(forks + end, instances=10, kill_timeout=300, **sound),
        },
        WILD: {
            "raw": writer(),
            "dated": writer(log_date_format="%H:%M:%S"),
            "json": writer(log_format="json", log_compress=True),
            "crash": shell(crash, instances=20, **wild),
        },
    }


def pm3(*words: str, may_fail: bool = False) -> dict[str, Any]:
    """The answer to a command; asked again while no agent answers, as a person would."""
    deadline = time.monotonic() + PATIENCE
    while True:
        done = subprocess.run(["pm3", "--json", *words], capture_output=True, text=True, check=False)
        try:
            answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        except (IndexError, ValueError):
            raise Broken(f"pm3 {' '.join(words)} said {done.stdout!r} {done.stderr!r}") from None
        if done.returncode == 0:
            return answer
        told = str(answer.get("message", answer))
        if not ("no pm3 agent is running" in told or "closed the connection" in told or "is ending" in told):
            if may_fail:
                return answer
            raise Broken(f"pm3 {' '.join(words)} failed: {told}")
        if time.monotonic() > deadline:
            raise Broken(f"no agent answers: {told}")
        time.sleep(0.05)


def unit(name: str) -> str:
    shown = subprocess.run(
        ["systemctl", "show", "pm3", f"--property={name}", "--value"], capture_output=True, text=True, check=True
    )
    return shown.stdout.strip()


def cells() -> Path:
    found = [path for path in Path("/sys/fs/cgroup").glob("**/pm3-cells.service") if (path / "cgroup.kill").exists()]
    found += [
        path for path in Path("/sys/fs/cgroup/unified").glob("**/pm3-cells.service") if (path / "cgroup.procs").exists()
    ]
    if not found:
        raise Broken("there are no cells on this host")
    return found[0]


def populated(cell: Path) -> list[int]:
    try:
        return [int(line) for line in (cell / "cgroup.procs").read_text().split()]
    except OSError:  # removed meanwhile
        return []


def is_free(name: str) -> bool:
    with (LOCKS / name).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


class Soak:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.release = 1
        self.steady = MOST
        self.stopped: set[str] = set()
        self.done: collections.Counter[str] = collections.Counter()
        self.versions = ("", "")  # of the agent: the host's own, and another one for upgrades

    # The events

    def run(self, seconds: float) -> dict[str, Any]:
        self.prepare()
        self.calm()
        rests = [self.at_rest()]
        agents = (self.kill_agent, self.kill_agent, self.upgrade, self.kill_in_a_roll, self.kill_in_a_roll)
        others = (
            *(self.roll, self.roll_bad, self.scale, self.stop, self.stop, self.start),
            *(self.restart, self.reload, self.kill_instances, self.follow),
        )
        # What grows over restarts shows only in an agent that lives on: so the last third is without the agent's own deaths.
        for share, events in ((2 / 3, agents + others), (1 / 3, others)):
            self.apply(WILD)
            deadline = time.monotonic() + seconds * share
            while time.monotonic() < deadline:
                event = self.random.choice(events)
                began = time.monotonic()
                event()
                self.done[event.__name__] += 1
                print(f"{event.__name__} {time.monotonic() - began:.1f} s", flush=True)
                self.check_always()
            self.calm()
            rests.append(self.at_rest())
        figures = {
            "events": dict(self.done),
            "restarts": sum(one["total_restarts"] for one in pm3("list")["processes"]),
            "rests": rests,
            **self.check_at_the_end(rests),
        }
        self.leave()
        return figures

    def prepare(self) -> None:
        shutil.rmtree(RUN, ignore_errors=True)
        for folder in (LOCKS, COUNTS):
            folder.mkdir(parents=True)
        DOUBLED.touch()
        own = os.readlink(LIBRARY / "current")
        self.versions = own, own[::-1]  # the same code under another identity
        shutil.copytree(LIBRARY / own, LIBRARY / own[::-1], dirs_exist_ok=True)

    def apply(self, project: str = SOUND, is_calm: bool = False, is_bad: bool = False) -> dict[str, Any]:
        path = RUN / f"{project}.toml"
        tables = []
        for name, fields in definitions(self.release, self.steady, is_calm, is_bad)[project].items():
            tables.append(f"[{name}]")
            tables += [f"{field} = {inline(value)}" for field, value in fields.items()]
        path.write_text("\n".join(tables) + "\n")
        may_fail = is_bad or (project == WILD and not is_calm)
        answer = pm3("apply", str(path), "--project", project, may_fail=may_fail)
        self.stopped = {name for name in self.stopped if self.project_of(name) != project}
        return answer

    def project_of(self, name: str) -> str:
        return SOUND if name.partition(":")[0] in ("steady", "forks") else WILD

    def calm(self) -> None:
        """All hundred run, and nothing happens any more."""
        self.steady = MOST
        for project in (SOUND, WILD):
            self.apply(project, is_calm=True)
        deadline = time.monotonic() + PATIENCE
        while any(one["status"] != "online" for one in pm3("list")["processes"]):
            if time.monotonic() > deadline:
                raise Broken(f"not all is online after an apply: {pm3('list')}")
            time.sleep(0.1)

    def roll(self) -> None:
        self.release += 1
        self.apply()

    def roll_bad(self) -> None:
        answer = self.apply(is_bad=True)
        if answer.get("ok") or not answer.get("reverted"):
            raise Broken(f"a bad release was not reverted: {answer}")

    def scale(self) -> None:
        self.steady = self.random.randint(30, MOST)
        self.apply()

    def some(self, count: int) -> list[str]:
        names = [one["name"] for one in pm3("list")["processes"]]
        return self.random.sample(names, min(count, len(names)))

    def stop(self) -> None:
        names = self.some(4)
        pm3("stop", *names)
        self.stopped.update(names)
        for name in names:
            if not is_free(name):
                raise Broken(f"I2: {name} was said to be stopped, and something of it lives")

    def start(self) -> None:
        if self.stopped:
            name = self.random.choice(sorted(self.stopped))
            self.stopped.discard(name)
            self.replace("restart", [name])  # it starts what is stopped, too, and needs no file

    def restart(self) -> None:
        self.replace("restart", self.some(4))

    def reload(self) -> None:
        self.replace("reload", self.some(4))

    def replace(self, command: str, names: list[str]) -> None:
        names = [name for name in names if name not in self.stopped]
        if names:
            pm3(command, *names, may_fail=any(self.project_of(name) == WILD for name in names))

    def kill_instances(self) -> None:
        pids = [one["pid"] for one in pm3("list")["processes"] if one.get("pid")]
        for pid in self.random.sample(pids, min(5, len(pids))):
            try:
                os.kill(pid, self.random.choice((signal.SIGKILL, signal.SIGSEGV)))
            except ProcessLookupError:
                pass

    def follow(self) -> None:
        """A reader of logs that goes away in the middle of a line, or stops reading before it does."""
        with subprocess.Popen(["pm3", "log", "-f", "raw", "dated"], stdout=subprocess.PIPE) as reader:
            assert reader.stdout is not None
            reader.stdout.read(self.random.choice((1, 100_000)))
            reader.kill()

    # The agent's own deaths

    def kill_agent(self) -> None:
        for _turn in range(self.random.randint(1, 3)):
            pid = int(unit("MainPID"))
            if pid:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            time.sleep(self.random.choice((0, 0.05, 0.3)))
        pm3("list")

    def kill_in_a_roll(self) -> None:
        self.release += 1
        killer = threading.Timer(self.random.uniform(0, 2), self.kill_agent)
        killer.start()
        try:
            self.apply()
        finally:
            killer.join()
        self.apply()  # an answer may have been of the agent before

    def upgrade(self) -> None:
        own, other = self.versions
        version = own if os.readlink(LIBRARY / "current") == other else other
        offered = LIBRARY / "next"
        offered.unlink(missing_ok=True)
        offered.symlink_to(version)
        subprocess.run(["systemctl", "reload", "pm3"], check=True)
        deadline = time.monotonic() + PATIENCE
        while os.readlink(LIBRARY / "current") != version:
            if time.monotonic() > deadline:
                raise Broken(f"an upgrade to {version} did not come")
            time.sleep(0.02)

    # The promises

    def check_always(self) -> None:
        doubled = DOUBLED.read_text()
        if doubled:
            raise Broken(f"I1: there were two at a time of {doubled}")
        listed = {one["name"]: one["status"] for one in pm3("list")["processes"]}
        undone = {name: listed[name] for name in self.stopped if name in listed and listed[name] != "stopped"}
        if undone:
            raise Broken(f"I3: a stop was undone: {undone}")
        if len(listed) != 60 + self.steady:
            raise Broken(f"I4: {len(listed)} instances are known, not {60 + self.steady}")

    def at_rest(self) -> dict[str, int]:
        """Figures of the agent when all runs and nothing happens: the least of what is seen for a second, because the agent may still
        compress a log, or write to a slow disk. The first rest of an agent is taken after it has worked a while."""
        found = self.figures()
        for _turn in range(10):
            time.sleep(0.1)
            seen = self.figures()
            found = {name: min(value, seen[name]) for name, value in found.items()}
        return found

    def figures(self) -> dict[str, int]:
        pid = int(unit("MainPID"))
        status = Path(f"/proc/{pid}/status").read_text()
        memory = re.search(r"RssAnon:\s*(\d+) kB", status)
        assert memory is not None
        return {
            "pid": pid,
            "instances": len(pm3("list")["processes"]),
            "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
            "threads": len(os.listdir(f"/proc/{pid}/task")),
            "memory": int(memory.group(1)) << 10,
            "stored": int(unit("NFileDescriptorStore")),
            "fifos": sum(path.is_fifo() for path in Path("/run/pm3").rglob("*")),
            "cells": sum(path.is_dir() for path in cells().iterdir()),
        }

    def check_at_the_end(self, rests: list[dict[str, int]]) -> dict[str, Any]:
        self.check_always()
        self.check_tracked()
        for project in (SOUND, WILD):
            second = self.apply(project, is_calm=True)
            acted = [row for row in second["instances"] if row["action"] != "none"]
            if second["changed"] or acted:
                raise Broken(f"I5: a second apply acts: {acted}")
        self.check_growth(rests)
        pm3("stop")
        lines = self.check_lines()
        for project in (SOUND, WILD):
            pm3("apply", str(RUN / f"{project}.toml"), "--project", project, "--state", "absent")
        left = [name for name in os.listdir(LOCKS) if not is_free(name)]
        inside = {path.name: populated(path) for path in cells().iterdir() if path.is_dir() and path.name != "anchor"}
        if left or any(inside.values()):
            raise Broken(f"I2: left after all is absent: {left} {inside}")
        return {"lines": lines}

    def leave(self) -> None:
        """The host has its own version of the agent again, and no other."""
        _own, other = self.versions
        if os.readlink(LIBRARY / "current") == other:
            self.upgrade()
        shutil.rmtree(LIBRARY / other)

    def check_tracked(self) -> None:
        """I4: every process in a cell is there beside one that the agent knows, and each of those is in a cell."""
        known = {one["pid"] for one in pm3("list")["processes"]}
        for cell in cells().iterdir():
            pids = populated(cell) if cell.is_dir() and cell.name != "anchor" else []
            if pids and known.isdisjoint(pids):
                raise Broken(f"I4: nobody knows of {pids} in {cell.name}")
            known.difference_update(pids)
        if known:
            raise Broken(f"I4: outside of any cell: {known}")

    def check_growth(self, rests: list[dict[str, int]]) -> None:
        """I8."""
        _first, before, after = rests
        if after["pid"] != before["pid"]:
            raise Broken("the agent ended where nobody killed it")
        deadline = time.monotonic() + PATIENCE
        while others := [
            *(name for name in SAME if after[name] != before[name]),
            *(name for name in NO_MORE if after[name] > before[name]),
        ]:
            if time.monotonic() > deadline:
                raise Broken("I8: " + "; ".join(f"{name} were {before[name]} and are {after[name]}" for name in others))
            after = self.at_rest()
        if after["memory"] - before["memory"] > GROWTH:
            raise Broken(f"I8: the agent's memory was {before['memory']} and is {after['memory']}")

    def check_lines(self) -> int:
        """I7: of every spawn that wrote, its lines are in the logs from the first to the last, once each, in order."""
        total = 0
        for process in ("raw", "dated", "json"):
            for instance in range(10):
                name = f"{process}:{instance}"
                found: dict[str, int] = {}
                for line in logged(name):
                    text = json.loads(line)["line"] if process == "json" else line.rpartition("| ")[2]
                    spawn, _blank, number = text.rstrip("\n").partition(" ")
                    if int(number) != found.get(spawn, 0):
                        raise Broken(f"I7: {name} has line {number} of spawn {spawn} after {found.get(spawn, 0) - 1}")
                    found[spawn] = int(number) + 1
                for path in COUNTS.glob(f"{name} *"):
                    spawn, written = path.name.partition(" ")[2], struct.unpack("q", path.read_bytes())[0]
                    if not written <= found.get(spawn, 0) <= written + 1:
                        raise Broken(
                            f"I7: {name} has {found.get(spawn, 0)} lines of spawn {spawn}, which wrote {written}"
                        )
                total += sum(found.values())
        return total


def logged(name: str) -> Iterator[str]:
    """The lines of an instance's stdout, from rotated logs too, oldest first."""
    import gzip

    def age(path: Path) -> int:
        number = path.name.removesuffix(".gz").rpartition(".log")[2]
        return -int(number[1:] or 0)

    for path in sorted(LOGS.glob(f"{name}-out.log*"), key=age):
        opened: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt") as file:
            yield from file


def inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {inline(one)}" for key, one in value.items()) + " }"
    return json.dumps(value)  # texts and numbers are the same in TOML


def main() -> int:
    seconds, seed = float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 30)
    print(f"seed {seed}", flush=True)
    soak = Soak(seed)
    try:
        figures = soak.run(seconds)
    except Broken as broken:
        print(f"BROKEN after {dict(soak.done)}: {broken}", flush=True)
        return 1
    print(json.dumps(figures), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
