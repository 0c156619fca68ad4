"""The live view, on a screen: what a person sees after each message, and what is left when it is over."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.cli import live as module
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.cli.live import Live
from hypothesis import given
from hypothesis import strategies as st

from .screen import Screen


class Seen:
    """A live view and the screen that it is on. A second goes by before each message."""

    def __init__(self, columns: int = 80, height: int = 24, before: str = "") -> None:
        self.now = 100.0
        self.screen = Screen(columns, height)
        self.screen.write(before)
        self.live = Live(self.screen, lambda: (columns, height), lambda: self.now)  # type: ignore[arg-type]

    def step(self, name: str, step: str, reason: str = "", after: float = 1) -> list[str]:
        self.now += after
        self.live.message({"type": "step", "name": name, "step": step, "reason": reason})
        return self.screen.shown

    def row(self, name: str, action: str, after: float = 1, **more: Any) -> list[str]:
        self.now += after
        row = {"name": name, "action": action, "changed": action not in ("none", "skipped"), "status": "online"}
        self.live.message({"type": "row", **row, **more})
        return self.screen.shown


def test_a_line_for_each_instance_that_is_worked_on() -> None:
    seen = Seen(before="$ pm3 apply\n")
    assert seen.step("web:0", "stopping", 'cwd: "/41" -> "/42"') == [
        "$ pm3 apply",
        'web:0       stopping   0s         cwd: "/41" -> "/42"',
    ]
    seen.step("web:0", "starting")
    assert seen.step("db", "checking", "tcp://localhost:5432") == [
        "$ pm3 apply",
        "web:0       starting   2s",
        "db          checking   0s         tcp://localhost:5432",
    ]
    seen.row("db", "failed", reason="exited with code 1", status="errored")
    assert seen.row("web:0", "rolled", seconds=3.25) == [
        "$ pm3 apply",
        "web:0       rolled     online     3.2s",
        "db          failed     errored    exited with code 1",
    ]
    seen.live.close()
    assert seen.screen.shown == ["$ pm3 apply"]
    assert (seen.screen.row, seen.screen.column) == (1, 0)


def test_what_goes_back_is_under_way_again() -> None:
    seen = Seen()
    seen.step("web:0", "starting")
    seen.row("web:0", "rolled", after=90)
    assert seen.screen.shown == ["web:0       rolled     online     1m 30s"]
    assert seen.step("web:0", "reverting", "web:1 failed") == ["web:0       reverting  0s         web:1 failed"]
    assert seen.row("web:0", "reverted", after=2) == ["web:0       reverted   online     2.0s"]


def test_what_is_as_it_should_be_has_no_line() -> None:
    seen = Seen()
    assert seen.row("web:0", "none") == []
    assert seen.row("web:1", "skipped") == []
    assert seen.row("web:2", "created") == ["web:2       created    online"]
    seen.step("web:3", "checking")
    assert seen.row("web:3", "none")[1] == "web:3       none       online     1.0s"


def test_where_there_is_no_room_the_oldest_that_are_done_scroll_away() -> None:
    seen = Seen(height=6, before="$ pm3 apply\n")
    for number in range(3):
        seen.step(f"web:{number}", "starting")
    seen.row("web:1", "created", seconds=1)
    seen.step("web:3", "starting")
    assert len(seen.screen.shown) == 5
    seen.step("web:4", "starting")
    assert [line.split()[0] for line in seen.screen.everything] == ["$", "web:1", "web:0", "web:2", "web:3", "web:4"]
    seen.step("web:5", "starting")  # all of them are under way, and there are more than there is room for
    assert [line[:12].rstrip() for line in seen.screen.shown] == ["web:1", "web:0", "web:2", "web:3", "… and 2 more"]
    for number in (0, 2, 3, 4, 5):
        seen.row(f"web:{number}", "created", seconds=1)
    seen.live.close()
    assert seen.screen.everything == [
        "$ pm3 apply",
        "web:1       created    online     1.0s",
        "web:0       created    online     1.0s",
    ]


def test_lines_are_cut_at_the_width() -> None:
    seen = Seen(columns=40)
    shown = seen.step("web:0", "starting", "x" * 100)
    assert shown == ["web:0       starting   0s         " + "x" * 5]
    shown = seen.step("a-name-that-is-longer-than-half-of-it", "starting")
    assert all(len(line) < 40 for line in shown)
    assert len(shown) == 2


def test_a_text_cannot_move_the_cursor() -> None:
    assert Seen().step("web", "starting", "a\nb\x1b[2J\r") == ["web         starting   0s         a\\nb\\x1b[2J\\r"]


def test_many_messages_at_once_are_few_drawings() -> None:
    seen = Seen(height=2000, columns=60)
    for number in range(1000):
        seen.step(f"web:{number}", "starting", after=0.0001)
    assert seen.live.stale
    assert len(seen.screen.writes) < 5
    seen.live.draw()
    assert not seen.live.stale
    assert len(seen.screen.shown) == 1000


def test_a_drawing_goes_over_what_was_there_without_clearing_it_first() -> None:
    seen = Seen()
    seen.step("web:0", "starting")
    seen.step("web:1", "starting")
    written = seen.screen.writes[-1]
    assert written.startswith("\r\x1b[1Aweb:0 ")
    assert written.count("\x1b[J") == 1
    assert written.endswith("\n\x1b[J")  # below the last line only
    assert len(seen.screen.writes) == 3


NAMES = st.sampled_from(["web", "web:0", "web:1", "db", "日本", "x" * 30])
MESSAGES = st.lists(
    st.tuples(st.just("step"), NAMES, st.sampled_from(["starting", "reverting"]))
    | st.tuples(st.just("row"), NAMES, st.sampled_from(["none", "created", "failed", "reverted"])),
    max_size=30,
)


@given(MESSAGES, st.integers(1, 60), st.integers(2, 10))
def test_it_stays_in_its_place_whatever_comes(messages: list[tuple[str, str, str]], columns: int, height: int) -> None:
    """Nothing above is touched, nothing is doubled, and in the end only what was done and had to leave is there."""
    seen = Seen(columns, height)
    seen.screen.write("$\n")
    done: list[str] = []
    for kind, name, word in messages:
        getattr(seen, kind)(name, word)
        if kind == "row":
            done.append(name)
        assert seen.screen.everything[0] == "$"
        assert len(seen.live._lines) >= seen.live._drawn
        assert seen.live._drawn <= max(1, height - 2)
        assert seen.screen.column == 0
    seen.live.close()
    left = seen.screen.everything[1:]
    assert len(left) <= len(done)
    assert seen.screen.row == (len(left) + 1 if len(seen.screen.above) == 0 else seen.screen.row)


def test_the_seconds_run_while_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the clock's tick is over with the request."""
    monkeypatch.setattr(module, "_TICK", 0.01)
    screen = Screen(80, 24)
    before = signal.getsignal(signal.SIGALRM)
    live = Live(screen, lambda: (80, 24), time.monotonic)  # type: ignore[arg-type]

    def interrupted() -> None:
        with module.shown(live) as message:
            message({"type": "step", "name": "web", "step": "starting"})
            deadline = time.monotonic() + 20
            while len(screen.writes) < 3 and time.monotonic() < deadline:
                signal.sigtimedwait([], 0.01)
            assert len(screen.writes) >= 3
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert screen.shown == []
