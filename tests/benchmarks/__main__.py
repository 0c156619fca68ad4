"""Our figures beside the bars of the design, as one table: `make bench`. Needs nothing but this checkout and Linux.

A figure beyond its bar says MISS and fails nothing: a machine that does other things besides is slow, not wrong.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "plugins" / "module_utils"))

from pm3.wire.client import Client  # noqa: E402

PYTHON = os.environ.get("PM3_BENCH_PYTHON", sys.executable)
COMMAND = [PYTHON, "-I", "-S", str(ROOT / "plugins" / "module_utils" / "pm3" / "__main__.py")]
MANY = min(1000, resource.getrlimit(resource.RLIMIT_NOFILE)[1] // 6)
IDLE_SECONDS = 10
LOG_BYTES = 512 << 20
CRASHES = 21

Row = tuple[str, float, str, "float | None"]  # what, figure, unit, the bar that it must not be above (None: told only)


class Agent:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self.client = Client(str(self.data_dir), timeout=300)
        self.pm3("list")

    def pm3(self, *words: str) -> None:
        environment = {**os.environ, "PM3_DATA_DIR": str(self.data_dir)}
        subprocess.run([*COMMAND, *words], cwd=self.folder, env=environment, capture_output=True, check=True)

    def ask(self, kind: str, **fields: Any) -> dict[str, Any]:
        answer = self.client.request({"type": kind, **fields})
        if answer["type"] == "error":
            raise SystemExit(f"{kind}: {answer['message']}")
        return answer

    def apply(self, definitions: dict[str, Any], **fields: Any) -> dict[str, Any]:
        return self.ask("apply", project="bench", base=str(self.folder), definitions=definitions, **fields)

    @property
    def pid(self) -> int:
        return int((self.data_dir / "pm3.pid").read_text())

    def status(self, field: str) -> int:
        """A number of /proc/PID/status, summed over the threads where each has its own."""
        found = [path.read_text() for path in Path(f"/proc/{self.pid}/task").glob("*/status")]
        numbers = [int(re.findall(rf"^{field}:\s+(\d+)", text, re.MULTILINE)[0]) for text in found]
        return max(numbers) if field == "VmRSS" else sum(numbers)

    def fact(self, name: str) -> str:
        return str(next(one["text"] for one in self.ask("doctor")["facts"] if one["name"] == name))


@contextmanager
def an_agent() -> Iterator[Agent]:
    with tempfile.TemporaryDirectory() as folder:
        agent = Agent(Path(folder))
        try:
            yield agent
        finally:
            pid = agent.pid
            agent.pm3("kill")
            until(lambda: not Path(f"/proc/{pid}").exists())


def until(condition: Callable[[], Any]) -> Any:
    while not (value := condition()):
        time.sleep(0.001)
    return value


def timed(work: Callable[[], Any]) -> float:
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


def sleeps(count: int) -> dict[str, Any]:
    return {f"w{number}": {"command": "sleep 100000", "min_uptime": 1} for number in range(count)}


def bare_forks(count: int) -> float:
    processes: list[subprocess.Popen[bytes]] = []
    seconds = timed(lambda: processes.extend(subprocess.Popen(["sleep", "100000"]) for _process in range(count)))
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()
    return seconds


def scale() -> Iterator[Row]:
    with an_agent() as agent:
        yield "memory, empty agent", agent.status("VmRSS") / 1024, "MB", 16
        agent.apply(sleeps(100))
        yield "memory, 100 instances", agent.status("VmRSS") / 1024, "MB", 17
    with an_agent() as agent:
        forks = bare_forks(MANY)
        started = timed(lambda: agent.apply(sleeps(MANY)))
        yield f"bare loop of {MANY} forks", forks, "s", None
        yield f"start {MANY}, all online", started, "s", 2 * forks
        yield f"memory, {MANY} instances, just started", agent.status("VmRSS") / 1024, "MB", 22
        yield f"apply without a change, {MANY}", timed(lambda: agent.apply(sleeps(MANY))) * 1000, "ms", None
        yield f"list, {MANY}", timed(lambda: agent.ask("list")) * 1000, "ms", None
        yield "pm3 list, the same typed", timed(lambda: agent.pm3("list")) * 1000, "ms", None
        before = agent.status("voluntary_ctxt_switches")
        time.sleep(IDLE_SECONDS)
        wakes = agent.status("voluntary_ctxt_switches") - before
        yield f"idle, {MANY}: wake-ups per second", wakes / IDLE_SECONDS, "", 0
        yield "restart of all", timed(lambda: agent.ask("restart")), "s", None
        yield from lag(agent, "longest turn of the loop so far")
        crashed = timed(lambda: crash(agent))
        yield (
            f"SIGKILL of the agent to an answer, {MANY} adopted (0.1 s of it the keeper's pause)",
            crashed * 1000,
            "ms",
            None,
        )
        yield f"memory, {MANY} instances, adopted", agent.status("VmRSS") / 1024, "MB", 22
        yield "stop of all", timed(lambda: agent.ask("stop")), "s", None
        yield from lag(agent, "longest turn of the loop after that")


def lag(agent: Agent, name: str) -> Iterator[Row]:
    text = agent.fact("loop")
    (figure,) = re.findall(r"the longest turn took ([0-9.]+) ms", text)
    where = re.findall(r"\(in (.*?)\)", text)
    yield f"{name} ({', '.join(where)})", float(figure), "ms", 50


def crash(agent: Agent) -> None:
    old = agent.pid
    os.kill(old, signal.SIGKILL)

    def answers() -> bool:
        try:
            return agent.client.request({"type": "hello"})["pid"] != old
        except Exception:
            return False

    until(answers)


def crashes() -> Iterator[Row]:
    """From SIGKILL to another process; each instance dies once, because the backoff grows."""
    with an_agent() as agent:
        agent.apply({"web": {"command": "sleep 100000", "min_uptime": 1, "instances": CRASHES}})
        found = []
        for number in range(CRASHES):
            name = f"web:{number}"
            old = agent.ask("info", name=name)["info"]["pid"]
            begun = time.monotonic()
            os.kill(old, signal.SIGKILL)
            until(lambda name=name, old=old: agent.ask("info", name=name)["info"].get("pid") not in (None, old))
            found.append(time.monotonic() - begun)
        yield (
            "crash to running again, median, with the first backoff of 100 ms",
            statistics.median(found) * 1000,
            "ms",
            110,
        )


def logs() -> Iterator[Row]:
    with an_agent() as agent:
        writer = f"sh -c 'dd if=/dev/zero bs=65536 count={LOG_BYTES >> 16} 2>/dev/null; exec sleep 100000'"
        path = agent.data_dir / "logs" / "writer-out.log"
        begun = time.monotonic()
        agent.apply({"writer": {"command": writer, "min_uptime": 1}}, wait=False)
        until(lambda: path.exists() and path.stat().st_size >= LOG_BYTES)
        yield "raw log, 64 KiB writes", LOG_BYTES / (time.monotonic() - begun) / (1 << 20), "MiB/s", None


def main() -> None:
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(1))  # and leave no agent behind
    parts = {"scale": scale, "crashes": crashes, "logs": logs}
    parser = argparse.ArgumentParser(description="Our figures beside the bars of the design.")
    parser.add_argument("parts", nargs="*", choices=[*parts, []], metavar="PART", help=f"{', '.join(parts)}; else all")
    print(f"{'':<84} {'figure':>10}       {'bar':>8}")
    for part in [parts[name] for name in parser.parse_args().parts or parts]:
        for name, figure, unit, limit in part():
            verdict = "" if limit is None else f"{limit:>8.2f}  {'ok' if figure <= limit else 'MISS'}"
            print(f"{name:<84} {figure:>10.2f} {unit:<5} {verdict}".rstrip(), flush=True)


main()
