#!/usr/bin/env python
"""Runs all stages of `make test` one after another, shows their output as it comes, and ends with a table.

A stage is a make target. It has passed, failed, or not run, and then the table says why: nothing is left out in silence.
Fails when a stage failed, or when one did not run that `--require` names. An interrupt (also SIGTERM) ends the stage that
runs, which cleans up after itself, and still gives the table.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from types import FrameType
from typing import IO


@dataclass(frozen=True)
class Stage:
    """A make target; `probe` answers 3, and prints reasons, where it cannot run; `after` is made in any case afterwards."""

    target: str
    probe: tuple[str, ...] = ()
    after: str = ""


STAGES = (
    Stage("check"),
    Stage("sanity"),
    Stage("lint"),
    Stage("docs"),
    Stage("pythons"),
    Stage("integration"),
    Stage("fleet", probe=(sys.executable, "tests/fleet/hosts.py", "check"), after="fleet-down"),
    Stage("machine", probe=(sys.executable, "tests/machine/emulated.py", "check"), after="machine-down"),
    Stage("quickstart", after="quickstart-down"),
)

PATIENCE = 60.0  # seconds that an interrupted stage has to clean up


@dataclass(frozen=True)
class Outcome:
    """What became of a stage."""

    target: str
    verdict: str  # "passed", "failed" or "not run: REASON"
    seconds: float = 0
    notes: tuple[str, ...] = ()  # closing lines of pytest, and what a tool says it did not test


# "= 12 passed, 1 skipped in 0.5s =" without its colours and frame; "not tested: …" of tests/tools/run_ansible_test.py.
NOTE = re.compile(r"^=* ?((?:\d+ \w+(?:, )?)+ in [\d.]+s.*?|no tests ran in .*?|not tested: .*?) ?=*$")
COLOUR = re.compile(r"\x1b\[[\d;]*m")


def show(output: IO[bytes], notes: list[str]) -> None:
    """Passes output on as it comes, and keeps the lines that belong into the table."""
    for line in output:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
        if match := NOTE.match(COLOUR.sub("", line.decode(errors="replace")).rstrip()):
            notes.append(match.group(1))


def make(target: str, notes: list[str]) -> bool:
    """Makes a target; gives whether that went well."""
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS")}
    process = subprocess.Popen(
        ["make", "--no-print-directory", target],
        env={**environment, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # so that an interrupt reaches all of the stage, and through us alone
    )
    assert process.stdout
    # In a thread, because a daemon that a stage leaves behind may hold the pipe open after the stage has ended.
    reader = threading.Thread(target=show, args=(process.stdout, notes), daemon=True)
    reader.start()
    try:
        return process.wait() == 0
    except KeyboardInterrupt:
        # As Ctrl-C does it: pytest ends its fixtures, and the scripts around it take down what they have put up.
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        raise
    finally:
        reader.join(timeout=2)


def run(stage: Stage) -> Outcome:
    print(f"\n===== {stage.target} =====", flush=True)
    if stage.probe:
        probe = subprocess.run(stage.probe, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        if probe.returncode == 3:
            return Outcome(
                stage.target, "not run: " + ("; ".join(probe.stdout.split("\n")).strip("; ") or "no reason given")
            )
    began = time.monotonic()
    notes: list[str] = []
    passed = False
    try:
        passed = make(stage.target, notes)
    finally:
        if stage.after:
            passed = make(stage.after, notes) and passed
    return Outcome(stage.target, "passed" if passed else "failed", time.monotonic() - began, tuple(notes))


def table(outcomes: list[Outcome]) -> str:
    lines = []
    for outcome in outcomes:
        seconds = f"{outcome.seconds:6.0f} s" if outcome.seconds else " " * 8
        lines.append(f"{outcome.target:<12}{seconds}  {outcome.verdict}")
        lines += [f"{'':22}{note}" for note in outcome.notes]
    return "\n".join(lines)


def interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: the stage is cleaning up
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(description="Run all stages of `make test`.")
    parser.add_argument("--require", action="append", default=[], metavar="STAGE", help="fail if this one cannot run")
    required = set(parser.parse_args().require)
    if unknown := required - {stage.target for stage in STAGES}:
        parser.error(f"no such stage: {', '.join(sorted(unknown))}")

    signal.signal(signal.SIGTERM, interrupt)
    outcomes: list[Outcome] = []
    for stage in STAGES:
        try:
            outcomes.append(run(stage))
        except KeyboardInterrupt:
            outcomes.append(Outcome(stage.target, "failed: interrupted"))
            break
    ran = len(outcomes)
    outcomes += [Outcome(stage.target, "not run: interrupted") for stage in STAGES[ran:]]

    print(f"\n===== result =====\n{table(outcomes)}", flush=True)
    bad = [outcome.target for outcome in outcomes if outcome.verdict.startswith("failed")]
    bad += [
        f"{outcome.target} (required)"
        for outcome in outcomes
        if outcome.verdict.startswith("not run") and outcome.target in required
    ]
    if bad or ran < len(STAGES):
        print(f"\nFAILED: {', '.join(bad)}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
