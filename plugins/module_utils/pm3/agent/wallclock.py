# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Moments of the calendar: calls back when the real-time clock shows a time, also after a suspend or after the clock was set (W45).

Owns one timerfd(2) on CLOCK_REALTIME, armed for the earliest moment and closed while nobody waits for one; so there is no polling, and
without schedules no wake-up. The kernel ends its wait with ECANCELED when the clock was set or the host has slept. Then everything
that the new time has reached is called, once each: a nightly job is not lost because the clock was set past it, or because the host
slept at night. After that `stepped` are called, so that who computed a moment from the old time can compute it anew.
"""

from __future__ import annotations

import errno
import heapq
import math
import os
import struct
import time
from typing import Any, Callable

from .loop import READ, Callback, Loop

_SECOND = 10**9  # nanoseconds
_ABSTIME, _CANCEL_ON_SET = 1, 2  # linux/timerfd.h, whose other flags are those of open
_SWEEP = 64  # waiting alarms, from which on cancelled ones are looked for


class Alarm:
    """A callback that is to be called once, when the clock shows `when` (nanoseconds since the epoch), unless cancelled."""

    __slots__ = ("_clock", "callback", "when")

    def __init__(self, clock: WallClock, when: int, callback: Callback) -> None:
        self._clock = clock
        self.when = when
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        if self.callback is not None:
            self.callback = None
            self._clock.forget()

    def __lt__(self, other: Alarm) -> bool:
        return self.when < other.when


class WallClock:
    """`stepped` are called whenever the clock was set, but only while something is waited for. `now` gives nanoseconds since the epoch."""

    def __init__(self, loop: Loop, now: Callable[[], int] = time.time_ns) -> None:
        self.stepped: list[Callback] = []
        self._loop = loop
        self._now = now
        self._alarms: list[Alarm] = []
        self._sweep_at = _SWEEP
        self._timer: Timerfd | None = None
        self._armed: int | None = None

    def at(self, when: float, callback: Callback) -> Alarm:
        """Calls `callback` once the clock shows `when` (seconds since the epoch) or later; never where `when` is infinite."""
        alarm = Alarm(self, 0, callback)
        if math.isfinite(when):
            alarm.when = max(1, math.ceil(when * _SECOND))
            heapq.heappush(self._alarms, alarm)
            self._arm()
        return alarm

    def forget(self) -> None:
        """An alarm was cancelled. Waits for the earliest of those that are left, if there are any."""
        if len(self._alarms) > self._sweep_at:
            self._alarms = [one for one in self._alarms if one.callback is not None]
            heapq.heapify(self._alarms)
            self._sweep_at = _SWEEP + 2 * len(self._alarms)
        self._arm()

    def close(self) -> None:
        """Calls nobody any more."""
        self._alarms.clear()
        self._arm()

    def look(self, stepped: bool) -> None:
        """Calls what the clock has reached, and where it was set, those who want to know that."""
        self._armed = None  # the wait is over
        now = self._now()
        while self._alarms and self._alarms[0].when <= now:
            alarm = heapq.heappop(self._alarms)
            callback, alarm.callback = alarm.callback, None
            if callback is not None:
                # By the loop, which deals with what one of them raises.
                self._loop.soon(callback)
        if stepped:
            for told in self.stepped:
                self._loop.soon(told)
        self._arm()

    def _news(self) -> None:
        if self._timer is not None:
            self.look(self._timer.read())

    def _arm(self) -> None:
        while self._alarms and self._alarms[0].callback is None:
            heapq.heappop(self._alarms)
        if not self._alarms:
            self._end()
            return
        first = self._alarms[0].when
        if first == self._armed:
            return
        if self._timer is None:
            self._timer = Timerfd()
            self._loop.watch(self._timer.fd, READ, self._news)
        self._armed = first
        if self._timer.set(first):
            self._loop.soon(lambda: self.look(True))

    def _end(self) -> None:
        self._armed = None
        if self._timer is not None:
            self._loop.unwatch(self._timer.fd)
            self._timer.close()
            self._timer = None


class Timerfd:
    """timerfd_create(2) on the real-time clock. A binding without policy; nothing here blocks."""

    def __init__(self) -> None:
        create, self._set = _by_python() if hasattr(os, "timerfd_create") else _by_ctypes()
        self.fd = create()

    def set(self, when: int) -> bool:
        """Becomes readable when the clock shows `when` (nanoseconds since the epoch) or is set. True: it was set just now."""
        return _is_cancelled(lambda: self._set(self.fd, when))

    def read(self) -> bool:
        """Takes the news. True: the clock was set, or the host has slept."""
        try:
            return _is_cancelled(lambda: os.read(self.fd, 8))
        except BlockingIOError:
            return False

    def close(self) -> None:
        os.close(self.fd)


def _is_cancelled(call: Callable[[], Any]) -> bool:
    try:
        call()
    except OSError as error:
        if error.errno != errno.ECANCELED:
            raise
        return True
    return False


_Binding = tuple[Callable[[], int], Callable[[int, int], Any]]


def _by_python() -> _Binding:
    """Python has it from 3.13 on."""
    library: Any = os
    flags = _ABSTIME | _CANCEL_ON_SET
    return (
        lambda: int(library.timerfd_create(time.CLOCK_REALTIME, flags=os.O_NONBLOCK | os.O_CLOEXEC)),
        lambda fd, when: library.timerfd_settime_ns(fd, flags=flags, initial=when),
    )


def _by_ctypes() -> _Binding:
    """The C library's own. ctypes is loaded here, not before: most agents never need it."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    settime = libc.timerfd_settime
    settime.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)

    def checked(result: int) -> int:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result

    def arm(fd: int, when: int) -> int:
        new = struct.pack("llll", 0, 0, *divmod(when, _SECOND))  # struct itimerspec
        return checked(settime(fd, _ABSTIME | _CANCEL_ON_SET, new, None))

    return lambda: checked(libc.timerfd_create(time.CLOCK_REALTIME, os.O_NONBLOCK | os.O_CLOEXEC)), arm
