# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kinds of value that a field can take.

A kind checks one value and gives its canonical form, so that two spellings of the same thing are equal for the plan: `"10s"` and
`10000` are one duration, `"a"` and `["a"]` one list of files. A value that does not fit raises `Unfit` with what was expected.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable

from . import checks, listening, patterns, placeholders, words
from .problems import Unfit, every, nearest

SIGNALS = frozenset(
    [
        "ABRT",
        "ALRM",
        "BUS",
        "CHLD",
        "CONT",
        "FPE",
        "HUP",
        "ILL",
        "INT",
        "IO",
        "KILL",
        "PIPE",
        "PROF",
        "PWR",
        "QUIT",
        "SEGV",
        "STKFLT",
        "STOP",
        "SYS",
        "TERM",
        "TRAP",
        "TSTP",
        "TTIN",
        "TTOU",
        "URG",
        "USR1",
        "USR2",
        "VTALRM",
        "WINCH",
        "XCPU",
        "XFSZ",
    ]
)
U32, U64 = 2**32 - 1, 2**64 - 1
MOST_INSTANCES = 100_000  # of one process
_HIGHEST_ID = 999_999_999  # nine digits: what a dependency on a single instance can name, and a file name has room for

_UNUSABLE = re.compile("[\0\ud800-\udfff]")  # in arguments and environments, and in UTF-8
LIMIT_NAMES = (  # prlimit(1)
    *("as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio"),
    *("rttime", "sigpending", "stack"),
)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_PERCENT = re.compile(r"(\d{1,7}(?:\.\d{1,3})?)\s*%")
_MOST_PERCENT = 1_000_000
_LONGEST_SIZE, _LONGEST_DATE = 30, 100  # characters
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


@dataclass(frozen=True)
class Kind:
    """What a field takes: `check(value) -> canonical value`, and how the docs call it."""

    words: str  # "a text", "milliseconds": completes "expected …"
    check: Callable[[Any], Any]
    choices: tuple[str, ...] = ()
    placed: bool = False  # its texts may contain placeholders
    written: Callable[[Any], Any] = lambda value: value  # a canonical value as a person would write it


def _of(value: Any) -> str:
    """A value's type in the words of TOML; never the value itself, which may be a secret."""
    names = {bool: "a boolean", int: "an integer", float: "a float", str: "a string", list: "an array", dict: "a table"}
    return names.get(type(value), "a " + type(value).__name__)


def _expected(what: str, value: Any) -> Unfit:
    return Unfit(f"expected {what}, found {_of(value)}")


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise _expected("a string", value)
    if _UNUSABLE.search(value):
        raise Unfit("expected a text without NUL characters and half surrogate pairs")
    return str(value)


def _placed_text(value: Any) -> str:
    placeholders.used(text(value))
    return text(value)


def _filled_text(value: Any) -> str:
    if not text(value).strip():
        raise Unfit("expected a text, found an empty one")
    return text(value)


def _command(value: Any) -> str:
    words.split(_placed_text(value))
    return text(value)


def _environment(value: Any, check: Callable[[Any], str] = _placed_text) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise _expected("a table of strings", value)
    for key in value:  # before any is named: in a table that is none of variables a name may be a secret
        if not isinstance(key, str) or not key or "=" in key or _UNUSABLE.search(key):
            raise Unfit("expected variable names that are texts, not empty, and without = in them")

    def variable(key: str) -> tuple[str, str]:
        if not isinstance(value[key], str):
            raise Unfit(f"{key}: expected a string, found {_of(value[key])}; put the value in quotes")
        try:
            return str(key), check(value[key])
        except Unfit as unfit:
            raise unfit.within(key) from None

    return dict(every(sorted(value), variable))


def _secrets(value: Any) -> dict[str, str]:
    """As `env`, but literal: a password may contain `@{`, and no message may quote it."""
    return _environment(value, text)


def _overlays(value: Any) -> dict[str, dict[str, str]]:
    if not isinstance(value, Mapping):
        raise _expected("a table of tables", value)
    return dict(every(sorted(value, key=str), lambda name: (text(name), _environment(value[name]))))


def _items(listed: Sequence[Any], check: Callable[[Any], Any]) -> tuple[Any, ...]:
    """What `check` makes of each, and which ones are wrong where there are several."""

    def numbered(item: tuple[int, Any]) -> Any:
        try:
            return check(item[1])
        except Unfit as unfit:
            raise unfit.within(f"item {item[0]}") from None

    return tuple(every(enumerate(listed, 1), numbered)) if len(listed) > 1 else tuple(map(check, listed))


def _texts(value: Any, check: Callable[[Any], str] = text) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)):
        raise _expected("an array of strings", value)
    return _items(value, check)


def _names(value: Any) -> tuple[str, ...]:
    return tuple(sorted(set(_texts(value))))


def _path(value: Any) -> str:
    placeholders.used(_filled_text(value))
    return text(value)


def _files(value: Any) -> tuple[str, ...]:
    listed = (value,) if isinstance(value, str) else value
    if not isinstance(listed, (list, tuple)):
        raise _expected("a string or an array of strings", value)
    return _items(listed, _path)


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _expected("true or false", value)
    return value


def _watch(value: Any) -> Any:
    if isinstance(value, (bool, str)):
        return _path(value) if isinstance(value, str) else value
    raise _expected("true, false or a path", value)


def _patterns(value: Any) -> tuple[str, ...]:
    return _texts(value, lambda item: patterns.check(text(item)))


def _globs(value: Any) -> tuple[str, ...]:
    listed = _files(value)
    for item in listed:  # of any instance, of which there always is the first
        patterns.steps(placeholders.expand(item, placeholders.Scope(0, 1, "process", "name", "project")))
    return listed


def _cron(value: Any) -> str:
    from . import cron  # not before somebody writes one

    return cron.check(text(value))


def _hook(value: Any) -> str:
    placeholders.used(_filled_text(value))
    return text(value)


def size(value: Any) -> int:
    """Bytes, from their number or from a text such as `"512M"`: powers of 1024."""
    if isinstance(value, str):
        found = _SIZE.fullmatch(value.strip())
        if found is None:
            raise Unfit('expected a size such as "512K", "300M" or "1.5G"')
        value = int(float(found.group(1)) * _UNITS[found.group(2).upper()]) if len(value) < _LONGEST_SIZE else U64 + 1
    return _integer(value, 0, U64)


def _size_written(value: Any) -> Any:
    for unit in "TGMK":
        if value and value % _UNITS[unit] == 0:
            return f"{value // _UNITS[unit]}{unit}"
    return value


def _cpu(value: Any) -> str:
    """Percent of one CPU, from a text that says so or from a number of CPUs."""
    found = _PERCENT.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is not None:
        percent = float(found.group(1))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        percent = 100 * float(min(value, _MOST_PERCENT))  # a whole number can be too large for a float
    else:
        percent = 0
    if not 1 <= percent <= _MOST_PERCENT:
        raise Unfit('expected a number of CPUs such as 0.5, or percent of one CPU such as "50%": 1% at least')
    return f"{percent:.3f}".rstrip("0").rstrip(".") + "%"


def _date_format(value: Any) -> str:
    from datetime import datetime  # only who needs it pays for it

    written = datetime(2000, 1, 1).strftime(_filled_text(value))
    if not written or len(written) > _LONGEST_DATE or not written.isprintable():
        raise Unfit("expected a time in the notation of strftime that makes one short line, such as %Y-%m-%d %H:%M:%S")
    return text(value)


def _umask(value: Any) -> str:
    if isinstance(value, int):
        raise Unfit('expected octal digits in quotes, such as "022"')
    if not re.fullmatch("0*[0-7]{1,3}", text(value)):
        raise Unfit(f'expected octal digits such as "022", found {value!r}')
    return format(int(value, 8), "03o")


def _limits(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise _expected("a table of limits", value)

    def limit(name: Any) -> tuple[str, str]:
        if name not in LIMIT_NAMES:
            meant = nearest(str(name), LIMIT_NAMES)
            raise Unfit(f"{name}: unknown limit" + (f"; did you mean {meant}?" if meant else ""))
        return str(name), _limit(str(name), value[name])

    return dict(every(sorted(value, key=str), limit))


def _limit(name: str, value: Any) -> str:
    said = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    parts = said.split(":") if isinstance(said, str) else []
    parts = ["unlimited" if part in ("unlimited", "infinity") else part for part in parts]
    numbers = [int(part) if part.isdecimal() and len(part) < 20 else U64 for part in parts]
    if not 1 <= len(parts) <= 2 or not all(
        one != "" and (one == "unlimited" or number < U64) for one, number in zip(parts, numbers)
    ):
        raise Unfit(f'{name}: expected a number, "unlimited" or "soft:hard"')
    if len(parts) == 1:
        parts *= 2
        numbers *= 2
    if numbers[0] > numbers[1]:
        raise Unfit(f"{name}: the soft limit may not be above the hard one")
    return ":".join(parts)


def _integer(value: Any, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _expected("a whole number", value)
    if not least <= value <= most:
        raise Unfit(f"expected a whole number from {least} to {most}, found {value}")
    return int(value)


def _exit_codes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)):
        raise _expected("an array of whole numbers", value)
    return tuple(sorted(set(_items(value, lambda item: _integer(item, -(2**31), 2**31 - 1)))))


def _instances(value: Any) -> Any:
    """`"max"`, a count, or a negative number: all CPUs but so many. 0 and 1 are the same, one instance with the plain name."""
    if value == "max":
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise _expected('a whole number or "max"', value)
    if not -1024 <= value <= MOST_INSTANCES:
        raise Unfit(f"expected a whole number from -1024 to {MOST_INSTANCES}, found {value}")
    return 1 if value == 0 else int(value)


def _ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)):
        raise _expected("an array of whole numbers", value)
    if len(value) > MOST_INSTANCES:
        raise Unfit(f"expected at most {MOST_INSTANCES} numbers, found {len(value)}")
    numbers = sorted(_integer(item, 0, _HIGHEST_ID) for item in value)
    for one, following in zip(numbers, numbers[1:]):
        if one == following:
            raise Unfit(f"expected each number once, found {one} twice")
    return tuple(numbers)


def _signal(value: Any) -> str:
    name = text(value).upper()
    name = name[3:] if name.startswith("SIG") else name
    if name not in SIGNALS:
        meant = nearest(name, SIGNALS)
        raise Unfit(
            f"expected a signal such as SIGTERM, found {value!r}" + (f"; did you mean SIG{meant}?" if meant else "")
        )
    return "SIG" + name


def duration(value: Any, unit_ms: int) -> Any:
    """A time in the field's own unit (`unit_ms` milliseconds), from a number in that unit or from a text such as `"10s"`.

    A fraction of the unit is a float: `"500ms"` is 0.5 seconds, and 0.5 is accepted as well, being what goes over the wire.
    """
    number = value
    if isinstance(value, str):
        found = _DURATION.fullmatch(value.strip())
        if found is None:
            raise Unfit('expected a time such as "250ms", "10s" or "5m"')
        number = float(found.group(1)) * _UNITS_MS[found.group(2)] / unit_ms
    if isinstance(number, float):
        if not 0 <= number <= U64:  # true of NaN as well
            raise Unfit("expected a time that is not negative and not beyond all measure")
        return int(number) if number.is_integer() else number
    return _integer(number, 0, U64)


_ACCOUNT = re.compile(r"[^\s:/,]+(?::[^\s:/,]+)?")  # as useradd(8) allows, and as directories elsewhere do


def _user(value: Any) -> str:
    if not _ACCOUNT.fullmatch(text(value)):
        raise Unfit('expected "name" or "name:group"')
    return text(value)


_SAMPLE = placeholders.Scope(0, 1, "process", "name", "project")


def _readiness_check(value: Any) -> str:
    checks.parse(placeholders.expand(_placed_text(value), _SAMPLE))
    return text(value)


def _check(value: Any) -> str:
    if checks.is_notify(text(value)):
        raise Unfit(f"{checks.NOTIFY} is for readiness_check alone: it tells of one moment, and cannot be asked again")
    return _readiness_check(value)


def _addresses(value: Any) -> tuple[str, ...]:
    found: dict[listening.Address, str] = {}
    for item in _files(value):
        address = listening.parse(placeholders.expand(item, _SAMPLE))
        if address in found:
            raise Unfit(f"expected each address once, found {address} twice")
        found[address] = item if "@{" in item else str(address)
    return tuple(found.values())


def _choice(*allowed: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if text(value) not in allowed:
            raise Unfit(f"expected one of {', '.join(allowed)}, found {value!r}")
        return text(value)

    return check


def one_of(*allowed: str) -> Kind:
    return Kind("one of " + ", ".join(allowed), _choice(*allowed), choices=allowed)


TEXT = Kind("a text", _filled_text)
COMMAND = Kind("a program and its arguments (no shell)", _command, placed=True)
HOOK = Kind("a shell command", _hook, placed=True)
PATH = Kind("a path", _path, placed=True)
FILES = Kind("a path or a list of paths", _files, placed=True)
GLOBS = Kind("a path or glob, or a list of them", _globs, placed=True)
NAMES = Kind("a list of process names", _names)
ENVIRONMENT = Kind("a table of texts", _environment, placed=True)
SECRETS = Kind("a table of texts", _secrets)
OVERLAYS = Kind("a table of tables of texts", _overlays)
INSTANCES = Kind('a whole number, "max", or a negative number (all CPUs but so many)', _instances)
IDS = Kind("a list of whole numbers from 0, each once", _ids)
BOOLEAN = Kind("true or false", _boolean)
COUNT = Kind("a whole number", lambda value: _integer(value, 0, U32))
POSITIVE = Kind("a whole number from 1", lambda value: _integer(value, 1, U32))
NICE = Kind("a whole number from -20 to 19", lambda value: _integer(value, -20, 19))
EXIT_CODES = Kind("a list of exit codes", _exit_codes)
SIGNAL = Kind("the name of a signal", _signal)
MILLISECONDS = Kind('milliseconds, or a time such as "10s"', lambda value: duration(value, 1))
SECONDS = Kind('seconds, or a time such as "2m"', lambda value: duration(value, 1000))
SIZE = Kind('bytes, or a size such as "300M"', size, written=_size_written)
CPU = Kind('a number of CPUs such as 1.5, or percent of one CPU such as "150%"', _cpu)
USER = Kind('a user, "name" or "name:group"', _user)
CHECK = Kind("http://…, https://…, tcp://host:port or exec://command", _check, placed=True)
READINESS = Kind("http://…, https://…, tcp://host:port, exec://command or notify://", _readiness_check, placed=True)
LISTEN = Kind("tcp://address:port or unix:///path, or a list of them", _addresses, placed=True)
WATCH = Kind("true, false or a path", _watch, placed=True)
PATTERNS = Kind("a list of names and globs", _patterns)
CRON = Kind("a time in cron's notation", _cron)
DATE_FORMAT = Kind("a time in strftime's notation", _date_format)
UMASK = Kind("octal digits", _umask)
LIMITS = Kind("a table of limits", _limits)
