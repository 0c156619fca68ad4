# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Moments of the calendar, by the kernel's own timers. The machine's clock is never set: for that the time is an argument."""

from __future__ import annotations

import math
import os
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent import wallclock
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.loop import Loop
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.wallclock import Timerfd, WallClock

from .conftest import COMMAND, PACKAGE
from .waiting import DEADLINE

SECOND = 10**9  # nanoseconds
BINDINGS = [name for name in ("_by_python", "_by_ctypes") if name != "_by_python" or hasattr(os, "timerfd_create")]


class Clock:
    """A clock that shows what it is told."""

    def __init__(self, seconds: int) -> None:
        self.shows = seconds * SECOND

    def __call__(self) -> int:
        return self.shows


@pytest.fixture
def loop() -> Iterator[Loop]:
    raised: list[BaseException] = []
    one = Loop(raised.append)
    yield one
    one.close()
    assert not raised


def run(loop: Loop) -> None:
    """Until something stops it."""
    too_late = loop.after(DEADLINE, loop.stop)
    loop.run()
    assert too_late.callback is not None, f"nothing came in {DEADLINE:g} s"
    too_late.cancel()


def settle(loop: Loop) -> None:
    """Runs what is to be done now."""
    loop.soon(loop.stop)
    run(loop)


def opened() -> set[str]:
    """The timers of this process."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if "timerfd" in os.readlink(f"/proc/self/fd/{name}"):
                found.add(name)
        except FileNotFoundError:
            pass
    return found


# The binding


@pytest.mark.parametrize("binding", BINDINGS)
def test_a_timer_is_read_when_the_clock_has_reached_it(binding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wallclock, "_by_python", getattr(wallclock, binding))
    monkeypatch.setattr(wallclock, "_by_ctypes", getattr(wallclock, binding))
    timer = Timerfd()
    try:
        when = time.time_ns() + SECOND // 50
        assert not timer.set(when)
        assert not timer.read()  # does not wait
        assert select.select([timer.fd], [], [], DEADLINE)[0]
        assert time.time_ns() >= when
        assert not timer.read()
        assert not select.select([timer.fd], [], [], 0)[0]
        assert not os.get_inheritable(timer.fd)
        # As the kernel shows it: the real-time clock, an absolute time, and told when it is set (linux/timerfd.h: 1 and 2).
        timer.set(4_000_000_000 * SECOND + 5)
        facts = dict(
            line.split(": ", 1)
            for line in Path(f"/proc/self/fdinfo/{timer.fd}").read_text().splitlines()
            if ": " in line
        )
        assert facts["clockid"] == str(time.CLOCK_REALTIME)
        assert int(facts["settime flags"], 8) == 3
        until = float(facts["it_value"].strip("()").split(",")[0])
        assert abs(until - (4_000_000_000 - time.time())) < DEADLINE
    finally:
        timer.close()


@pytest.mark.parametrize("binding", BINDINGS)
def test_what_the_kernel_refuses_is_raised(binding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wallclock, "_by_python", getattr(wallclock, binding))
    monkeypatch.setattr(wallclock, "_by_ctypes", getattr(wallclock, binding))
    timer = Timerfd()
    timer.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        timer.set(SECOND)


# Alarms, by the kernel's clock


def test_alarms_come_in_their_order_and_not_early(loop: Loop) -> None:
    clock = WallClock(loop)
    now = time.time()
    seen: list[tuple[str, bool]] = []

    def note(name: str, when: float, last: bool = False) -> Callable[[], None]:
        def called() -> None:
            seen.append((name, time.time() >= when - 1e-6))
            if last:
                loop.stop()

        return called

    clock.at(now + 0.06, note("late", now + 0.06, last=True))
    clock.at(now + 0.02, note("early", now + 0.02))
    clock.at(now - 1000, note("past", now - 1000))
    clock.at(now + 0.04, note("never", now)).cancel()
    run(loop)
    assert seen == [("past", True), ("early", True), ("late", True)]
    assert not opened()


def test_an_earlier_one_does_not_wait_for_a_later_one(loop: Loop) -> None:
    clock = WallClock(loop)
    clock.at(5_000_000_000, lambda: None)
    clock.at(time.time() + 0.01, loop.stop)
    run(loop)
    clock.close()


def test_a_callback_may_ask_for_the_next_one(loop: Loop) -> None:
    clock = WallClock(loop)
    seen: list[int] = []

    def again() -> None:
        seen.append(len(seen))
        if len(seen) == 5:
            loop.stop()
        else:
            clock.at(time.time() + 0.005, again)

    clock.at(time.time(), again)
    run(loop)
    assert seen == [0, 1, 2, 3, 4]
    assert not opened()


def test_one_that_raises_costs_no_other_one() -> None:
    raised: list[BaseException] = []
    loop = Loop(raised.append)
    clock = WallClock(loop)

    def fails() -> None:
        raise ValueError("wrong")

    clock.at(0, fails)
    clock.at(1, loop.stop)
    run(loop)
    assert [str(one) for one in raised] == ["wrong"]
    clock.close()
    loop.close()


# Alarms, by a clock that is set


def test_what_the_clock_is_set_past_is_called_and_then_all_is_computed_anew(loop: Loop) -> None:
    shown = Clock(5_000_000_000)
    clock = WallClock(loop, shown)
    seen: list[str] = []
    clock.stepped.append(lambda: seen.append("stepped"))
    clock.at(5_000_000_100, lambda: seen.append("reached"))
    clock.at(5_000_000_200, lambda: seen.append("ahead"))
    shown.shows += 150 * SECOND
    clock.look(stepped=True)
    settle(loop)
    assert seen == ["reached", "stepped"]
    shown.shows += 100 * SECOND
    clock.look(stepped=False)
    settle(loop)
    assert seen == ["reached", "stepped", "ahead"]
    assert not opened()


def test_a_clock_that_is_set_back_calls_nothing_early(loop: Loop) -> None:
    shown = Clock(5_000_000_000)
    clock = WallClock(loop, shown)
    seen: list[str] = []
    waiting = [clock.at(5_000_003_600, lambda: seen.append("as before"))]

    def anew() -> None:
        waiting.pop().cancel()
        waiting.append(clock.at(4_999_999_700, lambda: seen.append("anew")))

    clock.stepped.append(anew)
    shown.shows -= 600 * SECOND
    clock.look(stepped=True)
    settle(loop)
    assert seen == []
    shown.shows += 300 * SECOND
    clock.look(stepped=False)
    settle(loop)
    assert seen == ["anew"]
    assert not opened()


def test_the_kernel_is_asked_again_after_the_clock_was_set(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    armed: list[int] = []
    arm = Timerfd.set
    monkeypatch.setattr(Timerfd, "set", lambda timer, when: armed.append(when) or arm(timer, when))
    clock = WallClock(loop)
    clock.at(5_000_000_000, loop.stop)
    clock.at(6_000_000_000, loop.stop)
    clock.look(stepped=True)
    assert armed == [5_000_000_000 * SECOND] * 2
    clock.close()


# What it costs


def test_without_alarms_there_is_no_timer(loop: Loop) -> None:
    clock = WallClock(loop)
    assert not opened()
    assert clock.at(math.inf, loop.stop).cancel() is None
    assert not opened()
    alarms = [clock.at(5_000_000_000 + number, loop.stop) for number in range(1000)]
    assert len(opened()) == 1
    for alarm in alarms:
        alarm.cancel()
        alarm.cancel()
    assert not opened()
    assert not clock._alarms


def test_cancelled_alarms_are_forgotten(loop: Loop) -> None:
    clock = WallClock(loop)
    clock.at(5_000_000_000, loop.stop)
    for number in range(10_000):
        clock.at(5_000_000_001 + number, loop.stop).cancel()
    assert len(clock._alarms) < 200
    clock.close()
    assert not opened()


def test_ctypes_is_not_loaded_before_there_is_an_alarm() -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import pm3.agent.wallclock; sys.stdout.write(' '.join(sys.modules))"
    run_it = [*COMMAND[:3], "-c", code, str(PACKAGE.parent)]
    assert "ctypes" not in subprocess.run(run_it, capture_output=True, text=True, check=True).stdout.split()
