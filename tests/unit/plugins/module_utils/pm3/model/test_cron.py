# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import math
import subprocess
import sys
from calendar import timegm
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model import cron
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.problems import Unfit
from ansible_collections.pm3.fleet.tests.unit.examples import examples
from hypothesis import given, reject, settings
from hypothesis import strategies as st

pytest.importorskip("cronsim")
zoneinfo = pytest.importorskip("zoneinfo")

PLUGINS = Path(cron.__file__).resolve().parents[2]
MINUTE, HOUR, DAY = 60, 3600, 86400


def moments(text: str, begin: str, zone: str, count: int) -> list[str]:
    """What follows a local time, shown with its offset from UTC."""
    place = zoneinfo.ZoneInfo(zone)
    moment = datetime.fromisoformat(begin).replace(tzinfo=place).timestamp()
    found = []
    for _turn in range(count):
        moment = cron.following(text, moment, zone)
        found.append(datetime.fromtimestamp(moment, place).strftime("%m-%d %H:%M:%S%z"))
    return found


# What is accepted


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        (" 0  3 * * mon ", "0 3 * * MON"),
        ("@daily", "0 0 * * *"),
        ("@Midnight", "0 0 * * *"),
        ("@hourly", "0 * * * *"),
        ("@weekly", "0 0 * * 0"),
        ("@monthly", "0 0 1 * *"),
        ("@yearly", "0 0 1 1 *"),
        ("@annually", "0 0 1 1 *"),
        ("*/3 * * * * *", "*/3 * * * * *"),
        ("0 15 3 * * *", "15 3 * * *"),
        ("0 15 3 * * * *", "15 3 * * *"),
        ("0 15 3 * * * 2030-2032", "0 15 3 * * * 2030-2032"),
        ("0 0 29 2 *", "0 0 29 2 *"),
        ("0 0 0 29 2 * 2028", "0 0 0 29 2 * 2028"),
    ],
)
def test_a_schedule_has_a_canonical_form(text: str, canonical: str) -> None:
    assert cron.check(text) == canonical
    assert cron.check(canonical) == canonical


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("60 * * * *", "0 to 59 as the minute"),
        ("* 24 * * *", "0 to 23 as the hour"),
        ("* * 0 * *", "1 to 31"),
        ("* * * 13 *", "1 to 12 or JAN to DEC"),
        ("* * * * 8", "0 to 7"),
        ("60 * * * * *", "0 to 59 as the second"),
        ("* * * * * * 1969", "from 1970 to 2099"),
        ("* * * * * * 2030-2020", "from 1970 to 2099"),
        ("* * * * * * */0", "from 1970 to 2099"),
        ("*/0 * * * *", "minute"),
        ("", "found 0 fields"),
        ("daily", "found 1 field"),
        ("* * * * * * * *", "found 8 fields"),
        ("@reboot", "starts at every boot as it is"),
        ("@often", "@hourly"),
        ("0 0 30 2 *", "a day that one of the months has"),
        ("0 0 31 2,4,6 *", "a day that one of the months has"),
        ("0 0 0 29 2 * 2029", "never does"),
        ("9" * 5000 + " * * * *", "at most 256 characters, found 5008"),
    ],
)
def test_what_is_no_schedule_is_told(text: str, said: str) -> None:
    with pytest.raises(Unfit, match=said.replace("*", r"\*")):
        cron.check(text)


@given(st.text("0123456789*/,-#LW @MONJAN", max_size=30) | st.text())
def test_any_text_is_a_schedule_or_told(text: str) -> None:
    try:
        canonical = cron.check(text)
    except Unfit:
        return
    assert cron.check(canonical) == canonical
    assert cron.following(canonical, 1e9, "UTC") > 1e9


def test_an_unknown_zone_is_named() -> None:
    for name in ("Mars/Base", "../zoneinfo/UTC", ""):
        with pytest.raises(Unfit, match="expected a time zone"):
            cron.following("@daily", 0.0, name)


def test_without_the_library_it_is_told() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pm3.model import cron\n"
        "try: cron.check('@daily')\nexcept cron.Missing as error: sys.stdout.write(str(error))"
    )
    run = [sys.executable, "-I", "-S", "-c", code, str(PLUGINS)]
    said = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert "need the library cronsim" in said


def test_the_library_is_loaded_when_it_is_needed() -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import pm3.model.cron; sys.stdout.write(' '.join(sys.modules))"
    run = [sys.executable, "-I", "-S", "-c", code, str(PLUGINS)]
    loaded = subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()
    assert {"cronsim", "zoneinfo"}.isdisjoint(loaded)


# What follows


def test_weekdays_begin_with_sunday_and_end_with_it() -> None:
    for text, weekday in {"0 3 * * 0": 6, "0 3 * * 7": 6, "0 3 * * SUN": 6, "0 3 * * 1": 0, "0 3 * * sat": 5}.items():
        found = datetime.fromtimestamp(cron.following(text, 1e9, "UTC"), timezone.utc)
        assert (found.weekday(), found.hour) == (weekday, 3), text


def test_either_of_two_restricted_day_fields_will_do() -> None:
    assert moments("0 0 13 * FRI", "2026-02-10", "UTC", 3) == [
        "02-13 00:00:00+0000",
        "02-20 00:00:00+0000",
        "02-27 00:00:00+0000",
    ]
    assert moments("0 0 1 * MON", "2026-02-26", "UTC", 2) == ["03-01 00:00:00+0000", "03-02 00:00:00+0000"]
    assert moments("0 0 * * MON", "2026-02-26", "UTC", 2) == ["03-02 00:00:00+0000", "03-09 00:00:00+0000"]


def test_seconds_come_first() -> None:
    assert [cron.following("*/3 * * * * *", 1_000_000_000 + part, "UTC") - 1e9 for part in (0, 1.5, 2, 4.9)] == [
        2,
        2,
        5,
        5,
    ]
    assert moments("5,40 30 23 * * *", "2026-12-31T23:30:20", "UTC", 2) == [
        "12-31 23:30:40+0000",
        "01-01 23:30:05+0000",
    ]


def test_years_come_last_and_end() -> None:
    text = "0 0 12 24 12 * 2030,2032-2036/2"
    moment, years = 0.0, []
    while (moment := cron.following(text, moment, "UTC")) < math.inf:
        years.append(datetime.fromtimestamp(moment, timezone.utc).year)
    assert years == [2030, 2032, 2034, 2036]


def test_without_a_zone_it_is_the_hosts_time() -> None:
    code = (
        "import sys, time; sys.path[:0] = sys.argv[1:]; time.tzset(); from pm3.model import cron\n"
        "sys.stdout.write(repr(cron.following('30 2 * * *', 1743200000, None)))"
    )
    import cronsim

    run = [sys.executable, "-c", code, str(PLUGINS), str(Path(cronsim.__file__).parents[1])]
    for zone in ("UTC", "Europe/Berlin", "America/New_York"):
        found = subprocess.run(run, capture_output=True, text=True, check=True, env={"TZ": zone}).stdout
        assert float(found) == cron.following("30 2 * * *", 1743200000, zone)


# Days with an hour too few or too many


def test_what_falls_into_the_missing_hour_comes_once_right_after_it() -> None:
    assert moments("30 2 * * *", "2025-03-29", "Europe/Berlin", 3) == [
        "03-29 02:30:00+0100",
        "03-30 03:00:00+0200",
        "03-31 02:30:00+0200",
    ]
    assert moments("*/20 2 * * *", "2025-03-09", "America/New_York", 2) == [
        "03-09 03:00:00-0400",
        "03-10 02:00:00-0400",
    ]
    assert moments("0 0 * * *", "2018-11-03T12:00", "America/Sao_Paulo", 2) == [
        "11-04 01:00:00-0200",
        "11-05 00:00:00-0200",
    ]
    # A whole day was left out.
    assert moments("0 12 * * *", "2011-12-29T13:00", "Pacific/Apia", 2) == [
        "12-31 00:00:00+1400",
        "12-31 12:00:00+1400",
    ]


def test_what_falls_into_the_hour_that_comes_twice_comes_once() -> None:
    assert moments("30 2 * * *", "2025-10-25T12:00", "Europe/Berlin", 2) == [
        "10-26 02:30:00+0200",
        "10-27 02:30:00+0100",
    ]
    assert moments("*/30 1-2 * * *", "2025-11-02", "America/New_York", 5) == [
        "11-02 01:00:00-0400",
        "11-02 01:30:00-0400",
        "11-02 02:00:00-0500",
        "11-02 02:30:00-0500",
        "11-03 01:00:00-0500",
    ]


@pytest.mark.parametrize("begin", ["2025-03-29T20:10", "2025-10-25T20:10", "2025-06-01T00:10"])
@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Asia/Kolkata", "Africa/Casablanca"])
@pytest.mark.parametrize(
    ("text", "between"), [("0 * * * *", HOUR), ("*/20 * * * *", 20 * MINUTE), ("15 0 * * * *", HOUR)]
)
def test_an_hourly_one_comes_every_hour(begin: str, zone: str, text: str, between: int) -> None:
    moment = cron.following(text, datetime.fromisoformat(begin).replace(tzinfo=timezone.utc).timestamp(), zone)
    for _turn in range(24):
        following = cron.following(text, moment, zone)
        assert following - moment == between
        moment = following


def test_an_hourly_one_keeps_to_the_clock_where_that_is_changed_by_half_an_hour() -> None:
    assert moments("0 * * * *", "2025-04-06T00:10", "Australia/Lord_Howe", 3) == [
        "04-06 01:00:00+1100",
        "04-06 02:00:00+1030",
        "04-06 03:00:00+1030",
    ]


def test_a_day_that_begins_twice_begins_the_first_time() -> None:
    assert moments("0 * 2 11 *", "2025-01-10", "America/Havana", 3) == [
        "11-02 00:00:00-0400",
        "11-02 00:00:00-0500",
        "11-02 01:00:00-0500",
    ]


# Against an oracle that tries every minute

ZONES = [
    *("UTC", "Europe/Berlin", "Europe/London", "America/New_York", "America/Havana", "America/St_Johns"),
    *("Australia/Lord_Howe", "Asia/Beirut", "Africa/Casablanca", "Antarctica/Troll", "Pacific/Chatham"),
]
# One field of cron with the values that it means.
Field = tuple[str, frozenset[int]]


def fields(low: int, high: int) -> st.SearchStrategy[Field]:
    number = st.integers(low, high)
    every = frozenset(range(low, high + 1))
    return st.one_of(
        st.just(("*", every)),
        st.integers(1, 12).map(lambda step: (f"*/{step}", frozenset(range(low, high + 1, step)))),
        number.map(lambda one: (str(one), frozenset([one]))),
        st.tuples(number, number).map(lambda two: (f"{two[0]},{two[1]}", frozenset(two))),
        st.tuples(number, number, st.integers(1, 4)).map(
            lambda range_: (
                (
                    f"{min(range_[:2])}-{max(range_[:2])}/{range_[2]}",
                    frozenset(range(min(range_[:2]), max(range_[:2]) + 1, range_[2])),
                )
                if range_[0] != range_[1]
                else (str(range_[0]), frozenset([range_[0]]))
            )
        ),
    )


def matches(shown: datetime, parts: list[Field]) -> bool:
    minute, hour, day, month, weekday = parts
    of_month = shown.day in day[1]
    of_week = bool({shown.isoweekday(), shown.isoweekday() % 7} & weekday[1])
    right_day = (of_month and of_week) if "*" in (day[0][0], weekday[0][0]) else (of_month or of_week)
    return shown.minute in minute[1] and shown.hour in hour[1] and shown.month in month[1] and right_day


def expected(parts: list[Field], begin: int, minutes: int, zone: str) -> list[int]:
    """All moments of a schedule in the minutes after `begin`, which is a whole minute."""
    place = zoneinfo.ZoneInfo(zone)
    every_hour = len(parts[1][1]) == 24
    found = []
    before = datetime.fromtimestamp(begin, place).replace(tzinfo=None, fold=0)
    for moment in range(begin + MINUTE, begin + minutes * MINUTE, MINUTE):
        now = datetime.fromtimestamp(moment, place)
        shown = now.replace(tzinfo=None, fold=0)
        skipped = []
        if not every_hour:
            skipped = [
                before + timedelta(minutes=more) for more in range(1, int((shown - before).total_seconds()) // MINUTE)
            ]
        if (matches(shown, parts) and (every_hour or not now.fold)) or any(matches(one, parts) for one in skipped):
            found.append(moment)
        before = shown
    return found


def changes(zone: str) -> list[int]:
    """The hours of 2024 to 2026 in which the clock of a zone is changed, and some others."""
    place = zoneinfo.ZoneInfo(zone)
    first = timegm((2024, 1, 1, 0, 0, 0))
    offsets = [datetime.fromtimestamp(first + hour * HOUR, place).utcoffset() for hour in range(3 * 365 * 24)]
    found = [first + hour * HOUR for hour in range(1, len(offsets)) if offsets[hour] != offsets[hour - 1]]
    return [*found, first + 58 * DAY]


CHANGES = {zone: changes(zone) for zone in ZONES}


@st.composite
def schedules(draw: st.DrawFn) -> tuple[list[Field], str, int]:
    ranges = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
    parts = [draw(fields(*limits)) for limits in ranges]
    if draw(st.booleans()):  # most days, so that the hours are what is tried
        parts[2:] = [("*", frozenset(range(1, 32))), ("*", frozenset(range(1, 13))), ("*", frozenset(range(8)))]
    zone = draw(st.sampled_from(ZONES))
    return parts, zone, draw(st.sampled_from(CHANGES[zone])) + draw(st.integers(-12 * 60, 4 * 60)) * MINUTE


@settings(max_examples=examples(150))
@given(schedules())
def test_as_an_oracle_says(schedule: tuple[list[Field], str, int]) -> None:
    parts, zone, begin = schedule
    text, minutes = " ".join(part for part, _values in parts), 36 * 60
    try:
        cron.check(text)
    except Unfit:  # a 30th of February
        reject()
    found: list[float] = []
    moment: float = begin
    while (moment := cron.following(text, moment, zone)) < begin + minutes * MINUTE:
        found.append(moment)
    assert found == expected(parts, begin, minutes, zone), text
