# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Cron schedules: what a text means, and when it comes true next. No clock: the moment to start from is an argument.

Five fields are standard cron: weekdays 0-7 with Sunday 0 and 7, names, and where both day fields are restricted either of them will
do. Six have seconds before them, seven a year behind (spec: pm3.md, sections 3.8 and 9.12). The library cronsim knows the five;
seconds, years and the changes of local time are done here around it, so that they are the same with every version of it.

Local time has days with an hour too few or too many. A schedule that names hours keeps to the face of the clock: what falls into
the missing hour comes once, right after it, and in an hour that is there twice only the first one counts. A schedule for every hour
keeps to real time: an hourly one comes every hour, on those days too.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from typing import Any

from .problems import Unfit

SHORTHANDS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
FIRST_YEAR, LAST_YEAR = 1970, 2099

# The fields by the names that cronsim gives them, and what they take.
_TAKES = {
    "minute": "0 to 59",
    "hour": "0 to 23",
    "day-of-month": "1 to 31 (a day that one of the months has)",
    "month": "1 to 12 or JAN to DEC",
    "day-of-week": "0 to 7 (Sunday is 0 and 7) or SUN to SAT",
}
_YEARS = re.compile(r"(?:\*|([0-9]{4})(?:-([0-9]{4}))?)(?:/([0-9]{1,4}))?")
_SHIFT = timedelta(hours=3)  # no clock is set back by more, for the summer's end or otherwise
_HOUR = 3600
_LONGEST = 256  # characters
_MISSING = (
    "schedules need the library cronsim for this Python, and it is not installed; install cronsim 2.6 on the controller and run"
    " module agent or its role again"
)


class Missing(Unfit):
    """No schedule can be read here: the library is not there. The text itself may well be right."""


@dataclass(frozen=True)
class _Schedule:
    """What a text says, with years and seconds apart from what cron knows."""

    minutes: str  # the five fields of cron
    seconds: tuple[int, ...]
    years: frozenset[int] | None  # None: all
    every_hour: bool


def check(text: str) -> str:
    """The canonical form of a schedule: two texts for the same have mostly the same one. Raises `Unfit`."""
    fields = _fields(text)
    schedule = _schedule(" ".join(fields))
    if next(_walls(schedule, datetime(min(schedule.years or {2000}), 1, 1)), None) is None:
        raise Unfit(f"expected a schedule with a day that comes, found {text!r}, which never does")
    return " ".join(fields)


def following(text: str, after: float, zone: str | None = None) -> float:
    """The first moment of the schedule after `after`, both in seconds since the epoch; infinity where none follows.

    `zone` is an IANA name, None the host's own local time. Raises `Unfit` for a wrong text or an unknown zone.
    """
    schedule = _schedule(" ".join(_fields(text)))
    place = _zone(zone)
    wall = datetime.fromtimestamp(math.floor(after), place).replace(tzinfo=None)
    if not schedule.every_hour:
        # Moments grow with what the clock shows, so the first is it.
        for shown in _walls(schedule, wall.replace(fold=0)):
            moment = _once(shown, place)
            if moment > after:
                return moment
        return math.inf
    offset = math.floor(after) - _as_utc(wall)
    for shown in _walls(schedule, wall.replace(fold=0)):
        moment = _as_utc(shown) + offset
        if moment > after + _HOUR or moment - _as_utc(_shown(moment, place)) != offset:
            break  # the clock may have been changed in between
        if moment > after:
            return moment
    return _real(schedule, after, place)


def _real(schedule: _Schedule, after: float, place: tzinfo | None) -> float:
    """As `following`, of a schedule for every hour. What the clock shows twice are two moments, what it skips is none."""
    best, until = math.inf, datetime.max
    for shown in _walls(schedule, _shown(math.floor(after), place) - _SHIFT):
        if shown > until:
            break
        for moment in _moments(shown, place):
            if after < moment < best:
                best, until = moment, shown + _SHIFT
    return best


# What a text means


def _fields(text: str) -> list[str]:
    """The five to seven fields of a text, in capitals; seconds and years that say nothing are left out."""
    if len(text) > _LONGEST:
        raise Unfit(f"expected a schedule of at most {_LONGEST} characters, found {len(text)}")
    word = text.strip().lower()
    if word == "@reboot":
        raise Unfit("expected a time, found @reboot; what is applied starts at every boot as it is")
    if word.startswith("@") and word not in SHORTHANDS:
        raise Unfit(f"expected one of {', '.join(SHORTHANDS)}, or five fields of cron, found {text!r}")
    fields = SHORTHANDS.get(word, text).upper().split()
    if not 5 <= len(fields) <= 7:
        raise Unfit(
            "expected minute, hour, day of month, month and day of week, with seconds before them if need be and then"
            f" a year behind them, found {len(fields)} field{'' if len(fields) == 1 else 's'}"
        )
    if len(fields) == 7 and fields[6] == "*":
        del fields[6]
    if len(fields) == 6 and re.fullmatch("0+", fields[0]):
        del fields[0]
    return fields


@functools.lru_cache(maxsize=256)
def _schedule(text: str) -> _Schedule:
    fields = text.split()
    years = _years(fields.pop()) if len(fields) == 7 else None
    seconds = "0"
    if len(fields) == 6:
        seconds = fields.pop(0)
    minutes = " ".join(fields)
    parsed = _cronsim(minutes, datetime(2000, 1, 1), text)
    try:
        every = sorted(_cronsim(f"{seconds} * * * *", datetime(2000, 1, 1), text).minutes)
    except Unfit:
        raise Unfit(f"expected 0 to 59 as the second, found {text!r}") from None
    return _Schedule(minutes, tuple(every), years, len(parsed.hours) == 24)


def _years(text: str) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        match = _YEARS.fullmatch(part)
        first, last, step = match.groups() if match else ("0", None, None)
        begin = int(first or FIRST_YEAR)
        end = int(last or (LAST_YEAR if step or not first else begin))
        if not FIRST_YEAR <= begin <= end <= LAST_YEAR or step == "0":
            raise Unfit(f"expected *, a year or a range of years from {FIRST_YEAR} to {LAST_YEAR}, found {part!r}")
        found.update(range(begin, end + 1, int(step or 1)))
    return frozenset(found)


def _cronsim(minutes: str, before: datetime, text: str) -> Any:
    """cronsim's iterator over the minutes of a schedule, from the one after `before` on."""
    try:
        from cronsim import CronSim, CronSimError
    except (ImportError, TypeError):  # its versions from 2.7 on do not load with Python 3.9
        raise Missing(_MISSING) from None
    try:
        return CronSim(minutes, before)
    except (CronSimError, ValueError) as error:
        name = str(error).rpartition("Bad ")[2]
        takes = f"{_TAKES[name]} as the {name}" if name in _TAKES else "numbers, names, ranges, lists and steps of cron"
        raise Unfit(f"expected {takes}, found {text!r}") from None


# When it comes true


def _walls(schedule: _Schedule, start: datetime) -> Iterator[datetime]:
    """What a clock shows whenever the schedule comes true, from the minute of `start` on, in order."""
    while True:
        year = None
        for minute in _cronsim(schedule.minutes, start.replace(second=0) - timedelta(minutes=1), schedule.minutes):
            if schedule.years is not None and minute.year not in schedule.years:
                year = min((one for one in schedule.years if one > minute.year), default=None)
                break
            for second in schedule.seconds:
                yield minute.replace(second=second)
        if year is None:
            return
        start = datetime(year, 1, 1)


def _shown(moment: float, place: tzinfo | None) -> datetime:
    return datetime.fromtimestamp(moment, place).replace(tzinfo=None, fold=0)


def _moments(shown: datetime, place: tzinfo | None) -> list[float]:
    """The moments at which the clock shows this: one, or two where it was set back, or none where it was set forward."""
    both = {shown.replace(tzinfo=place, fold=fold).timestamp() for fold in (0, 1)}
    return [moment for moment in sorted(both) if _shown(moment, place) == shown]


def _once(shown: datetime, place: tzinfo | None) -> float:
    """The first moment at which the clock shows this, or has been set forward past it."""
    found = _moments(shown, place)
    if found:
        return found[0]
    # For what is skipped the one fold gives a moment before the change, the other one after it.
    after, before = (int(shown.replace(tzinfo=place, fold=fold).timestamp()) for fold in (0, 1))
    while after - before > 1:
        middle = (before + after) // 2
        if _shown(middle, place) > shown:
            after = middle
        else:
            before = middle
    return float(after)


def _as_utc(shown: datetime) -> float:
    """Seconds from the epoch to what the clock shows, if it were UTC's."""
    return (shown.replace(tzinfo=None, fold=0) - datetime(1970, 1, 1)).total_seconds()


@functools.lru_cache(maxsize=16)
def _zone(name: str | None) -> tzinfo | None:
    if name is None:
        return None
    import zoneinfo  # for those alone who name one

    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise Unfit(
            f"expected a time zone that this host knows, like Europe/Berlin, found {name!r}; the names are those of the"
            " folder /usr/share/zoneinfo (package tzdata)"
        ) from None
