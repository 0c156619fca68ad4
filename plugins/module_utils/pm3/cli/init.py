# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`pm3 init`: questions, and a pm3.toml of the answers (spec: pm3.md, section 5.4).

Asks a person at a terminal, who may try again, or reads one answer per line from what is no terminal. What it writes is first read by
our own loader, and replaces a file in one move. No agent has to do with it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Callable

from ..formats import pm3_toml
from ..model import definition
from ..model.definition import FIELDS
from ..model.problems import DefinitionError, Unfit, nearest
from .answers import Run, here
from .autostart import Agent
from .console import BOLD, GREY, Console

FILE = "pm3.toml"
_ORDER = ("command", "cwd", "env", "restart", "readiness_check", "health_check", "group", "depends_on")
_BARE = re.compile(r"[A-Za-z0-9_-]+")

Check = Callable[[str], Any]  # the value that an answer means; raises Unfit


class Aborted(Exception):
    """No file is to be written; the text says why."""


class _Terminal:
    """A person, who sees the default in brackets, hears what is wrong with an answer, and gives another."""

    patient = True

    def __init__(self, console: Console) -> None:
        self._console = console
        try:
            importlib.import_module("readline")  # input() edits lines with it
        except ImportError:
            pass

    def ask(self, prompt: str, hint: str) -> str:
        if hint:
            self.say(hint)
        self._console.flush()
        try:
            return input(f"{prompt}: ").strip()
        except UnicodeDecodeError:
            raise Unfit("expected UTF-8") from None

    def title(self, text: str) -> None:
        self._console.line(self._console.paint(text, BOLD))

    def say(self, text: str) -> None:
        self._console.line(self._console.paint(f"  {text}", GREY))


class _Lines:
    """Something that is no terminal: prompts go to stderr, answers come one per line."""

    patient = False

    def __init__(self, console: Console) -> None:
        self._console = console

    def ask(self, prompt: str, hint: str) -> str:
        self._console.note(f"{prompt}:")
        line = sys.stdin.buffer.readline()
        if not line:
            raise EOFError
        try:
            return line.decode("utf-8").strip()
        except UnicodeDecodeError:
            raise Unfit("expected UTF-8") from None

    def title(self, text: str) -> None:
        pass

    def say(self, text: str) -> None:
        self._console.note(text)


Asker = Any  # one of the two


def _init(_options: argparse.Namespace, _agent: Agent, console: Console) -> int:
    path = os.path.join(here(), FILE)
    asker: Asker = _Terminal(console) if sys.stdin.isatty() and sys.stdout.isatty() else _Lines(console)
    try:
        if pm3_toml.TOML is None:
            raise Aborted(
                "this Python reads no TOML, so that what is written could not be checked; install the library tomli"
            )
        _may_write(path, asker)
        text = written(_tables(asker))
        pm3_toml.load(text, FILE, os.path.dirname(path))
        _replace(path, text)
    except EOFError:
        return _ended("the input ended before the last question", console)
    except KeyboardInterrupt:
        return _ended("interrupted", console)
    except Aborted as error:
        console.error(str(error))
        return 1
    except DefinitionError as error:
        console.error("these answers make no pm3.toml; nothing was written:")
        for problem in error.problems:
            console.error(str(problem))
        return 1
    except OSError as error:
        console.error(f"{path}: {error.strerror or error}; nothing was written")
        return 1
    console.success(f"Created {path}")
    return 0


def _ended(why: str, console: Console) -> int:
    console.note("")
    console.error(f"init aborted: {why}; nothing was written")
    return 1


def written(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """The text of a pm3.toml with these tables: fields in pm3's order, keys quoted where TOML asks for it."""
    blocks = []
    for name, table in tables.items():
        lines = [f"[{_key(name)}]"]
        lines += [f"{field} = {_value(table[field])}" for field in _ORDER if field in table]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


# --- the questions -----------------------------------------------------------------------------------------------------


def _may_write(path: str, asker: Asker) -> None:
    if os.path.isdir(path):
        raise Aborted(f"{path} is a folder; nothing was written")
    if os.path.lexists(path) and not _yes(asker, f"{path} exists. Overwrite it? (y/N)"):
        raise Aborted(f"init aborted: {path} stays as it is")


def _tables(asker: Asker) -> dict[str, dict[str, Any]]:
    """All that is answered, as the tables of a pm3.toml."""
    asker.title("What shall pm3 keep running? An empty answer takes the default.")
    tables: dict[str, dict[str, Any]] = {}
    while True:
        name = _answer(asker, "Name", lambda text: _name(text, tables), needed=True, hint="such as web")
        tables[name] = _table(asker, list(tables))
        if not _yes(asker, "Add another process? (y/N)"):
            return tables


def _table(asker: Asker, others: Sequence[str]) -> dict[str, Any]:
    def field(name: str) -> Check:
        return lambda text: _canonical(name, text)

    given = {
        "command": _answer(
            asker, "Command", field("command"), needed=True, hint="a program and its arguments, no shell"
        ),
        "cwd": _answer(asker, "Working directory [this folder]", field("cwd")),
        "env": _answer(asker, "Environment (K=V, K=V) [none]", _environment),
        "restart": _answer(asker, "Restart: on_failure, always or never [on_failure]", field("restart"), again=True),
        "health_check": _answer(asker, "Health check URL [none]", field("health_check")),
        "group": _answer(asker, "Group [none]", field("group")),
    }
    if others:
        known = ", ".join(others)
        given["depends_on"] = _answer(
            asker, f"Depends on, separated by commas ({known}) [none]", lambda text: _dependencies(text, others)
        )
    return {name: value for name, value in given.items() if value is not None}


def _answer(asker: Asker, prompt: str, check: Check, needed: bool = False, again: bool = False, hint: str = "") -> Any:
    """The value that is answered, or None for an empty answer. Raises `Aborted` where a wrong one cannot be mended.

    Lines that are no terminal's were written down before they were asked for: after a wrong one, the next would answer another
    question. Only what pm3 asks again is asked again there.
    """
    while True:
        try:
            text = asker.ask(prompt, hint if asker.patient else "")
            if text:
                return check(text)
            if not needed:
                return None
            asker.say("an answer is needed")
        except Unfit as error:
            if not (asker.patient or again):
                raise Aborted(f"{prompt.partition(' (')[0].partition(' [')[0]}: {error}; nothing was written") from None
            asker.say(str(error))


def _yes(asker: Asker, question: str) -> bool:
    return bool(_answer(asker, question, lambda text: text.lower() in ("y", "yes"), again=True))


# --- what an answer means ----------------------------------------------------------------------------------------------


def _name(text: str, taken: Iterable[str]) -> str:
    unfit = definition.name_unfit(text)
    if unfit:
        raise Unfit(unfit)
    if text in taken:
        raise Unfit(f"{text} is there already")
    return text


def _canonical(field: str, value: Any) -> Any:
    """The answer itself, when the field takes it; the file keeps what a person wrote."""
    FIELDS[field].kind.check(value)
    return value


def _environment(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.strip().partition("=")
        if not equals or not key.strip():
            raise Unfit(f"expected K=V, K=V, found {part.strip()!r}; a value with a comma can be written into the file")
        found[key.strip()] = value.strip()
    _canonical("env", found)
    return found


def _dependencies(text: str, others: Sequence[str]) -> list[str]:
    names = [part.strip() for part in text.split(",") if part.strip()]
    for name in names:
        if name not in others:
            meant = nearest(name, others)
            raise Unfit(f"there is no {name} yet" + (f"; did you mean {meant}?" if meant else ""))
    return names


# --- the file ----------------------------------------------------------------------------------------------------------


def _key(text: str) -> str:
    return text if _BARE.fullmatch(text) else _text(text)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {_text(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_text, value)) + "]"
    return _text(value)


def _text(text: str) -> str:
    """A basic string of TOML."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda found: f"\\u{ord(found.group()):04x}", escaped) + '"'


def _replace(path: str, text: str) -> None:
    """Writes the file in one move; where it is a link, the file that this names."""
    path = os.path.realpath(path)
    try:
        mode = os.stat(path).st_mode & 0o777
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        mode = 0o666 & ~mask
    fd, new = tempfile.mkstemp(prefix=".pm3.toml.", dir=os.path.dirname(path))
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(new, mode)
        os.replace(new, path)
    except BaseException:
        os.unlink(new)
        raise


RUN: dict[str, Run] = {"init": _init}
