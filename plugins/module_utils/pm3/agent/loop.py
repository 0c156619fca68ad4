# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The event loop: descriptors, timers and what is to be done next. Owns the thread that it runs in, and nothing else.

Idle means idle: without news from a descriptor and without a timer that is due, `run` sleeps in the kernel. A callback that raises
is told to `on_error` and ends neither the loop nor its own registration: one bad client or instance must not take the rest down.

Nothing here may be slow, so the loop measures itself: `Loop.lag` knows the longest turn, the time between two looks at the descriptors.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import select
import threading
import time
from collections import deque
from functools import partial
from typing import Callable

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
Callback = Callable[[], None]
_TURN = 0.02  # seconds after which calls still queued wait for the next turn, so that descriptors get theirs
_LONGEST = (
    86_400.0  # seconds to sleep at once: epoll_wait refuses what is beyond 24 days, and a definition may ask for more
)
_NEWS = 256  # descriptors served in one turn; the kernel gives the others first in the next


class Timer:
    """A callback that is to be called once, at `when` (monotonic seconds), unless cancelled."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callback | None) -> None:
        self.when = when
        self.callback = callback

    def cancel(self) -> None:
        self.callback = None

    def __lt__(self, other: Timer) -> bool:
        return self.when < other.when


class Lag:
    """How long the loop was away from its descriptors: turns, in seconds. Kept in passing: no timer, and no list that grows."""

    SLOW = 0.05  # a turn beyond it delayed somebody noticeably
    _SPAN = 10.0  # seconds of a part of the last minute

    def __init__(self) -> None:
        self.longest = 0.0
        self.culprit = ""  # the name of the callback that took most of the longest turn
        self.slow = 0  # turns beyond SLOW
        self._parts = [0.0] * 7  # the longest turn in each part of the last minute, and in the one that has just begun
        self._part = 0  # the number of the newest part since the clock's beginning

    def note(self, seconds: float, now: float, slowest: Callback | None) -> None:
        """A turn has ended `now`; `slowest` is the callback that took most of it."""
        self._forget(now)
        place = self._part % 7
        if seconds > self._parts[place]:
            self._parts[place] = seconds
        if seconds > self.longest:
            self.longest = seconds
            self.culprit = _name(slowest)
        if seconds > self.SLOW:
            self.slow += 1

    def last_minute(self, now: float) -> float:
        """The longest turn in the last 60 to 70 seconds."""
        self._forget(now)
        return max(self._parts)

    def _forget(self, now: float) -> None:
        part = int(now / self._SPAN)
        if part != self._part:
            for old in range(max(self._part, part - 7) + 1, part + 1):
                self._parts[old % 7] = 0.0
            self._part = part


class Loop:
    def __init__(self, on_error: Callable[[BaseException], None]) -> None:
        self.lag = Lag()
        self._on_error = on_error
        self._epoll = select.epoll()
        self._watched: dict[int, Callback] = {}
        self._timers: list[Timer] = []
        self._cancelled_limit = 64  # heap size at which cancelled timers are swept out
        self._soon: deque[Callback] = deque()
        self._from_threads: deque[Callback] = deque()
        self._thread = threading.get_ident()
        self._running = False
        self._slowest = 0.0  # seconds, of a callback in this turn
        self._slowest_callback: Callback | None = None
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.watch(self._wake_read, READ, self._woken)

    # Descriptors

    def watch(self, fd: int, events: int, callback: Callback) -> None:
        """Calls `callback` whenever `fd` is ready for `events` (READ, WRITE, or both); replaces an earlier watch of it."""
        if fd in self._watched:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._watched[fd] = callback

    def unwatch(self, fd: int) -> None:
        """Ends the watch of `fd`, if there is one. Call it before closing the descriptor."""
        if self._watched.pop(fd, None) is not None:
            with contextlib.suppress(OSError):  # closed already
                self._epoll.unregister(fd)

    # Time

    def time(self) -> float:
        return time.monotonic()

    def after(self, seconds: float, callback: Callback) -> Timer:
        timer = Timer(self.time() + seconds, callback)
        heapq.heappush(self._timers, timer)
        if len(self._timers) > self._cancelled_limit:
            self._timers = [one for one in self._timers if one.callback is not None]
            heapq.heapify(self._timers)
            self._cancelled_limit = 64 + 2 * len(self._timers)
        return timer

    def soon(self, callback: Callback) -> None:
        """Calls `callback` in this turn or the next, after what is queued already. Only from the loop's own thread."""
        self._soon.append(callback)

    def from_thread(self, callback: Callback) -> None:
        """As `soon`, from any thread."""
        self._from_threads.append(callback)
        try:
            os.write(self._wake_write, b"\0")
        except BlockingIOError:
            pass  # it will wake up as it is

    # Running

    def run(self) -> None:
        """Runs until `stop`."""
        self._running = True
        while self._running:
            news = self._epoll.poll(self._patience(), _NEWS)
            begun = self.time()
            told = [(fd, self._watched.get(fd)) for fd, _events in news]
            for fd, callback in told:
                # An earlier callback of this turn may have ended the watch, and the number may be another's by now.
                if callback is not None and self._watched.get(fd) is callback:
                    self._call(callback)
            self._call_timers()
            while self._soon and self._running:
                self._call(self._soon.popleft())
                if self.time() - begun > _TURN:
                    break
            self._turn_over(begun)

    def _call_timers(self) -> None:
        now = self.time()
        while self._timers and self._timers[0].when <= now:
            timer = heapq.heappop(self._timers)
            callback, timer.callback = timer.callback, None
            if callback is not None:
                self._call(callback)

    def stop(self) -> None:
        self._running = False

    def close(self) -> None:
        self._epoll.close()
        for fd in (self._wake_read, self._wake_write):
            os.close(fd)

    def _patience(self) -> float | None:
        while self._timers and self._timers[0].callback is None:
            heapq.heappop(self._timers)
        if self._soon:
            return 0.0
        if not self._timers:
            return None
        return min(_LONGEST, max(0.0, self._timers[0].when - self.time()))

    def _woken(self) -> None:
        try:
            while len(os.read(self._wake_read, 4096)) == 4096:
                pass
        except BlockingIOError:
            pass
        while self._from_threads:
            self._soon.append(self._from_threads.popleft())

    def _call(self, callback: Callback) -> None:
        begun = self.time()
        try:
            callback()
        except Exception as error:  # one bad client or instance must not take the rest down
            self._on_error(error)
        seconds = self.time() - begun
        if seconds > self._slowest:
            self._slowest, self._slowest_callback = seconds, callback

    def _turn_over(self, begun: float) -> None:
        now = self.time()
        self.lag.note(now - begun, now, self._slowest_callback)
        self._slowest, self._slowest_callback = 0.0, None


def _name(callback: Callback | None) -> str:
    """How the source calls a callback."""
    while isinstance(callback, partial):
        callback = callback.func
    return str(getattr(callback, "__qualname__", type(callback).__name__))
