# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A change as it happens, on a terminal: a line for each instance that is worked on, drawn again when the agent tells of it.

Owns the lowest lines of the terminal from the first message to `close`, after which they are as empty as before. Draws with plain cursor
movements, each time in one write that goes over what was there instead of clearing it first. Lines that there is no room for any more
scroll away: the oldest of those that are done. Needs a terminal that understands ANSI; whether there is one, `Console` knows.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Callable, TextIO

from ..model.screen import columns_of, fitted, padded
from .console import GREEN, RED, painted
from .table import duration, printable

_QUIET = 0.05  # seconds between two drawings: a thousand messages at once are not a thousand drawings
_TICK = 1.0  # seconds after which the running seconds are drawn anew
_NAME, _WORD = 10, 9  # the least widths of the columns, as in a report


class Line:
    """What is known of one instance."""

    def __init__(self, name: str, now: float) -> None:
        self.name = printable(name)
        self.since = now  # when its work began
        self.done = False
        self.word = ""  # what is being done, or what was
        self.status = ""
        self.more = ""
        self.colour: str | None = None

    def text(self, width: int, now: float) -> str:
        middle = self.status if self.done else duration(now - self.since)
        return f"{padded(self.name, width)}  {self.word:<{_WORD}}  {middle:<{_WORD}}  {self.more}".rstrip()


class Live:
    """`size` gives the columns and lines of the terminal, `clock` seconds."""

    def __init__(self, stream: TextIO, size: Callable[[], tuple[int, int]], clock: Callable[[], float]) -> None:
        self.stale = False  # there is something to draw that was not drawn, because it came too soon
        self._stream = stream
        self._size = size
        self._clock = clock
        self._lines: dict[str, Line] = {}  # in the order in which their work began
        self._drawn = 0  # lines on the terminal that are ours, above the cursor
        self._drawn_at: float | None = None
        self._busy = False  # in the midst of something, where the clock's tick has to wait

    def message(self, document: Mapping[str, Any]) -> None:
        """A `step` or a `row` of the agent."""
        self._busy = True
        name = str(document.get("name"))
        if document.get("type") == "step":
            self._step(name, document)
        elif name in self._lines or document.get("changed") or document.get("action") == "failed":
            self._row(name, document)  # but what is as it should be is not worth a line
        self._busy = False
        self.stale = self._drawn_at is not None and self._clock() - self._drawn_at < _QUIET
        if not self.stale:
            self.draw()

    def draw(self) -> None:
        """Draws everything as it is now; nothing where that interrupts us."""
        if not self._busy and self._lines:
            self._busy = True
            self._draw()
            self._busy = False

    def close(self) -> None:
        """Leaves the terminal to whoever is next."""
        if self._drawn:
            self._stream.write(self._back() + "\x1b[J")
            self._stream.flush()
        self._lines.clear()
        self._drawn = 0

    def _step(self, name: str, step: Mapping[str, Any]) -> None:
        line = self._lines.get(name)
        if line is None:
            line = self._lines[name] = Line(name, self._clock())
        elif line.done:  # it goes on: it is being reverted
            line.since, line.done = self._clock(), False
        line.word, line.more = printable(step.get("step") or ""), printable(step.get("reason") or "")
        line.colour = None

    def _row(self, name: str, row: Mapping[str, Any]) -> None:
        seconds, line = row.get("seconds"), self._lines.get(name)
        if line is None:
            line = self._lines[name] = Line(name, self._clock())
        elif seconds is None and not line.done:
            seconds = self._clock() - line.since
        line.done = True
        line.word, line.status = printable(row.get("action") or ""), printable(row.get("status") or "")
        failed = row.get("action") == "failed"
        line.colour = RED if failed else GREEN
        line.more = printable(row.get("reason") or "") if failed else _seconds(seconds)

    def _draw(self) -> None:
        columns, height = self._size()
        now = self._clock()
        room = max(1, height - 2)
        gone = self._leaving(room)
        shown = list(self._lines.values())
        width = max([_NAME, *(columns_of(line.name) for line in (*gone, *shown))])
        width = min(width, max(_NAME, columns // 2))
        hidden = len(shown) - room + 1 if len(shown) > room else 0
        texts = [_drawn(line, width, columns, now) for line in (*gone, *shown[: len(shown) - hidden])]
        if hidden:
            texts.append(fitted(f"… and {hidden} more", columns - 1))
        whole = self._back() + "".join(text + "\x1b[K\n" for text in texts) + "\x1b[J"
        try:
            self._stream.write(whole)
            self._stream.flush()
        finally:  # Ctrl-C interrupts after a call, so that this is what is there
            self._drawn = len(texts) - len(gone)
        self._drawn_at, self.stale = now, False

    def _leaving(self, room: int) -> list[Line]:
        """Takes out the oldest of those that are done, as many as there is no room for."""
        surplus = len(self._lines) - room
        done = [name for name, line in self._lines.items() if line.done][: max(0, surplus)]
        return [self._lines.pop(name) for name in done]

    def _back(self) -> str:
        return "\r" + (f"\x1b[{self._drawn}A" if self._drawn else "")


@contextmanager
def shown(live: Live) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Gives what takes the agent's messages while a request goes on; the terminal is as before when that is over, however it ends."""

    def tick(_number: int, _frame: Any) -> None:
        live.draw()

    def message(document: Mapping[str, Any]) -> None:
        live.message(document)
        signal.setitimer(signal.ITIMER_REAL, _QUIET if live.stale else _TICK, _TICK)

    before = signal.signal(signal.SIGALRM, tick)
    try:
        yield message
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        live.close()


def _drawn(line: Line, width: int, columns: int, now: float) -> str:
    text = fitted(line.text(width, now), columns - 1)
    return painted(text, [line.colour]) if line.colour is not None and text else text


def _seconds(seconds: Any) -> str:
    if not isinstance(seconds, (int, float)):
        return ""
    return f"{seconds:.1f}s" if seconds < 60 else duration(seconds)
