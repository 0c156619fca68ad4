#!/usr/bin/env python
"""Runs all stages of `make test` one after another, shows their output as it comes, and ends with a table.

A stage is a make target. It has passed, failed, or not run, and then the table says why: nothing is left out in silence.
Fails when a stage failed, or when one did not run that `--require` names. An interrupt (also SIGTERM) ends the stages that
run, which clean up after themselves, and still gives the table.
"""

from __future__ import annotations

import argparse
import io
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
    """A make target; `probe` answers 3, and prints reasons, where it cannot run; `after` is made in any case afterwards.

    It begins with the stage `beside`, if that is named, and what it says is shown when it is its turn in the table.
    """

    target: str
    probe: tuple[str, ...] = ()
    after: str = ""
    beside: str = ""


STAGES = (
    Stage("check"),
    Stage("sanity"),
    Stage("lint"),
    Stage("docs"),
    Stage("pythons"),
    # Most of its time one CPU is emulated by one thread. The stages from sanity on have no time of their own to keep.
    Stage("machine", (sys.executable, "tests/machine/emulated.py", "check"), after="machine-down", beside="sanity"),
    Stage("integration"),
    Stage("fleet", (sys.executable, "tests/fleet/hosts.py", "check"), after="fleet-down"),
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


def show(output: IO[bytes], to: IO[bytes], notes: list[str]) -> None:
    """Passes output on as it comes, and keeps the lines that belong into the table."""
    for line in output:
        to.write(line)
        to.flush()
        if match := NOTE.match(COLOUR.sub("", line.decode(errors="replace")).rstrip()):
            notes.append(match.group(1))


class Run:
    """A stage that runs, and what it says going to a file; `outcome` once it is over."""

    def __init__(self, stage: Stage, to: IO[bytes]) -> None:
        self.stage = stage
        self.to = to
        self.outcome = Outcome(stage.target, "failed: interrupted")
        self._process: subprocess.Popen[bytes] | None = None
        self._interrupted = False

    def run(self) -> None:
        stage = self.stage
        if stage.probe:
            probe = subprocess.run(
                stage.probe, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
            )
            if probe.returncode == 3:
                reasons = "; ".join(probe.stdout.split("\n")).strip("; ") or "no reason given"
                self.outcome = Outcome(stage.target, f"not run: {reasons}")
                return
        if self._interrupted:
            return
        began = time.monotonic()
        notes: list[str] = []
        passed = False
        try:
            passed = self._make(stage.target, notes)
        finally:
            if stage.after:
                passed = self._make(stage.after, notes) and passed
        if not self._interrupted:
            verdict = "passed" if passed else "failed"
            self.outcome = Outcome(stage.target, verdict, time.monotonic() - began, tuple(notes))

    def interrupt(self) -> None:
        """As Ctrl-C does it: pytest ends its fixtures, and the scripts around it take down what they have put up."""
        self._interrupted = True
        process = self._process
        if process is not None and process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)

    def _make(self, target: str, notes: list[str]) -> bool:
        """Makes a target; gives whether that went well."""
        environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS")}
        self._process = process = subprocess.Popen(
            ["make", "--no-print-directory", target],
            env={**environment, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that an interrupt reaches all of the stage, and through us alone
        )
        assert process.stdout
        # In a thread, because a daemon that a stage leaves behind may hold the pipe open after the stage has ended.
        reader = threading.Thread(target=show, args=(process.stdout, self.to, notes), daemon=True)
        reader.start()
        try:
            return process.wait() == 0
        except KeyboardInterrupt:
            self.interrupt()
            raise
        finally:
            reader.join(timeout=2)


class Beside:
    """A stage that runs beside others: what it says is kept until it is its turn."""

    def __init__(self, stage: Stage) -> None:
        self.said = io.BytesIO()
        self.run = Run(stage, self.said)
        self._thread = threading.Thread(target=self.run.run)
        self._thread.start()

    def end(self) -> Outcome:
        """Waits for its end, and shows what it said."""
        self._thread.join()
        sys.stdout.buffer.write(self.said.getvalue())
        sys.stdout.buffer.flush()
        return self.run.outcome

    def interrupt(self) -> Outcome:
        self.run.interrupt()
        return self.end()


def run_all() -> list[Outcome]:
    """Runs the stages, until one is interrupted."""
    outcomes: list[Outcome] = []
    beside: dict[str, Beside] = {}
    run = None
    try:
        for stage in STAGES:
            beside.update((other.target, Beside(other)) for other in STAGES if other.beside == stage.target)
            print(f"\n===== {stage.target} =====", flush=True)
            if stage.target in beside:
                outcomes.append(beside[stage.target].end())
                del beside[stage.target]
            else:
                run = Run(stage, sys.stdout.buffer)
                run.run()
                outcomes.append(run.outcome)
    except KeyboardInterrupt:
        if run is not None and run.outcome not in outcomes:
            outcomes.append(run.outcome)
        outcomes += [one.interrupt() for one in beside.values()]
    return outcomes


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
    outcomes = run_all()
    ran = {outcome.target for outcome in outcomes}
    outcomes += [Outcome(stage.target, "not run: interrupted") for stage in STAGES if stage.target not in ran]

    print(f"\n===== result =====\n{table(outcomes)}", flush=True)
    bad = [outcome.target for outcome in outcomes if outcome.verdict.startswith("failed")]
    bad += [
        f"{outcome.target} (required)"
        for outcome in outcomes
        if outcome.verdict.startswith("not run") and outcome.target in required
    ]
    if bad or len(ran) < len(STAGES):
        print(f"\nFAILED: {', '.join(bad)}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
