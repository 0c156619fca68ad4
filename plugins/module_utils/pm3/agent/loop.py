# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The event loop: descriptors, timers and what is to be done next. Owns the thread that it runs in, and nothing else.

Idle means idle: without news from a descriptor and without a timer that is due, `run` sleeps in the kernel. A callback that raises
is told to `on_error` and ends neither the loop nor its own registration: one bad client or instance must not take the rest down.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import selectors
import threading
import time
from collections import deque
from typing import Callable

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
Callback = Callable[[], None]
_TURN = 0.02  # seconds after which calls still queued wait for the next turn, so that descriptors get theirs


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


class Loop:
    def __init__(self, on_error: Callable[[BaseException], None]) -> None:
        self._on_error = on_error
        self._selector = selectors.DefaultSelector()
        self._timers: list[Timer] = []
        self._cancelled_limit = 64  # heap size at which cancelled timers are swept out
        self._soon: deque[Callback] = deque()
        self._from_threads: deque[Callback] = deque()
        self._thread = threading.get_ident()
        self._running = False
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.watch(self._wake_read, READ, self._woken)

    # Descriptors

    def watch(self, fd: int, events: int, callback: Callback) -> None:
        """Calls `callback` whenever `fd` is ready for `events` (READ, WRITE, or both); replaces an earlier watch of it."""
        try:
            self._selector.modify(fd, events, callback)
        except KeyError:
            self._selector.register(fd, events, callback)

    def unwatch(self, fd: int) -> None:
        """Ends the watch of `fd`, if there is one. Call it before closing the descriptor."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(fd)

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
            for key, _events in self._selector.select(self._patience()):
                if (
                    self._selector.get_map().get(key.fd) is key
                ):  # an earlier callback of this turn may have ended the watch
                    self._call(key.data)
            now = self.time()
            while self._timers and self._timers[0].when <= now:
                timer = heapq.heappop(self._timers)
                callback, timer.callback = timer.callback, None
                if callback is not None:
                    self._call(callback)
            while self._soon and self._running:
                self._call(self._soon.popleft())
                if self.time() - now > _TURN:
                    break

    def stop(self) -> None:
        self._running = False

    def close(self) -> None:
        self._selector.close()
        for fd in (self._wake_read, self._wake_write):
            os.close(fd)

    def _patience(self) -> float | None:
        while self._timers and self._timers[0].callback is None:
            heapq.heappop(self._timers)
        if self._soon:
            return 0.0
        if not self._timers:
            return None
        return max(0.0, self._timers[0].when - self.time())

    def _woken(self) -> None:
        try:
            while len(os.read(self._wake_read, 4096)) == 4096:
                pass
        except BlockingIOError:
            pass
        while self._from_threads:
            self._soon.append(self._from_threads.popleft())

    def _call(self, callback: Callback) -> None:
        try:
            callback()
        except Exception as error:  # one bad client or instance must not take the rest down
            self._on_error(error)
