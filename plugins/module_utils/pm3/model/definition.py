# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The field table: everything that a definition can say, once.

`Definition` is the table: each row gives a field's name, kind, default, effect and help, and the type by which the code reads it.
Loading, the plan, `pm3 info`, the docs and the module options are all made from `FIELDS`, so adding a field is adding a row.
A `Definition` holds canonical values only; `parse` makes one from what a person wrote.
"""

from __future__ import annotations

import dataclasses
import enum
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import kinds, placeholders
from .kinds import Kind
from .problems import DefinitionError, Problem, Unfit, nearest


class Effect(enum.Enum):
    """What changing a field costs an instance that runs."""

    NONE = "none"  # nothing: used at the next start, or by the agent alone
    HOT = "hot"  # applied to the running instance
    RESTART = "restart"  # the instance is replaced
    INSTANCES = "per instance"  # only the instances that it adds or removes


@dataclass(frozen=True)
class Field:
    """One row of the table."""

    name: str
    kind: Kind
    default: Any  # canonical
    effect: Effect
    help: str
    required: bool
    masked: bool  # its values are secrets


def _row(
    kind: Kind, effect: Effect, text: str, default: Any = None, required: bool = False, masked: bool = False
) -> Any:
    about = {"kind": kind, "effect": effect, "help": text, "required": required, "masked": masked}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata=about)  # pylint: disable=invalid-field-call
    return dataclasses.field(default="" if required else default, metadata=about)  # pylint: disable=invalid-field-call


@dataclass(frozen=True)
class Definition:
    """One `[name]` table: what to run and how. Compare with ==; see `FIELDS` for the rows."""

    name: str
    command: str = _row(
        kinds.COMMAND, Effect.RESTART, "Program and arguments; split into words, never given to a shell.", required=True
    )
    cwd: str | None = _row(
        kinds.PATH,
        Effect.RESTART,
        "Working directory, relative to the folder of the file that defines it, which is also the default.",
    )
    env: Mapping[str, str] = _row(kinds.ENVIRONMENT, Effect.RESTART, "Environment variables.", {})
    env_file: tuple[str, ...] = _row(
        kinds.FILES,
        Effect.RESTART,
        "Files of KEY=value lines, read at every start and overridden by env; relative to cwd.",
        (),
    )
    environments: Mapping[str, Mapping[str, str]] = _row(
        kinds.OVERLAYS, Effect.NONE, "Overlays for env, written as tables env_NAME and chosen by --env NAME.", {}
    )
    secrets: Mapping[str, str] = _row(
        kinds.SECRETS, Effect.RESTART, "Environment variables whose values are masked in every output.", {}, masked=True
    )
    user: str | None = _row(
        kinds.USER,
        Effect.RESTART,
        "User, or user:group, to run as; the agent must run as root. Default: the agent's own.",
    )
    instances: int | str = _row(
        kinds.INSTANCES,
        Effect.INSTANCES,
        'Copies to run, numbered from 0; "max" is one per CPU, -1 all CPUs but one.',
        1,
    )
    depends_on: tuple[str, ...] = _row(
        kinds.NAMES, Effect.NONE, "Processes (or single instances) that must be up before this one starts.", ()
    )
    group: str | None = _row(kinds.TEXT, Effect.HOT, "A name under which commands reach several processes.")
    restart: str = _row(
        kinds.one_of("on_failure", "always", "never"),
        Effect.HOT,
        "When an exit is followed by a new start.",
        "on_failure",
    )
    max_restarts: int = _row(
        kinds.COUNT, Effect.HOT, "Failures in a row before the instance is left errored; 0 means never restart.", 15
    )
    min_uptime: float = _row(kinds.MILLISECONDS, Effect.HOT, "How long an instance must live to count as up.", 1000)
    stop_exit_codes: tuple[int, ...] = _row(
        kinds.EXIT_CODES, Effect.HOT, "Exit codes after which it is not restarted.", ()
    )
    kill_signal: str = _row(
        kinds.SIGNAL, Effect.HOT, "Signal that asks the instance's process group to stop.", "SIGTERM"
    )
    kill_timeout: float = _row(kinds.MILLISECONDS, Effect.HOT, "How long a stop may take before SIGKILL.", 5000)
    readiness_check: str | None = _row(
        kinds.URL, Effect.HOT, "Must pass before the instance counts as online and dependents start."
    )
    readiness_timeout: float = _row(kinds.SECONDS, Effect.HOT, "How long readiness_check may take to pass.", 30)
    health_check: str | None = _row(
        kinds.URL, Effect.HOT, "Checked after readiness, before the instance counts as online."
    )

    def data(self) -> dict[str, Any]:
        """What was said, as plain JSON values: fields that differ from their default."""
        result: dict[str, Any] = {}
        for row in FIELDS.values():
            value = getattr(self, row.name)
            if value != row.default or row.required:
                result[row.name] = list(value) if isinstance(value, tuple) else value
        return result


def _fields() -> dict[str, Field]:
    rows = {}
    for row in dataclasses.fields(Definition):
        if row.metadata:
            default = row.default if row.default is not dataclasses.MISSING else {}
            about = row.metadata
            rows[row.name] = Field(
                row.name, about["kind"], default, about["effect"], about["help"], about["required"], about["masked"]
            )
    return rows


FIELDS: dict[str, Field] = _fields()

_OVERLAY = "env_"
_MOST_SECONDS = 100  # a bare number below it, where milliseconds are meant, was probably thought of as seconds
_NAME_BYTES = 200  # leaves room for "-out.log.gz" and an instance number in a file name of 255 bytes


def parse(name: str, table: Any) -> tuple[Definition | None, list[Problem]]:
    """A definition from what a person or a program wrote, or None; with every problem found.

    `table` is a mapping of field to value. Overlays are `env_NAME` tables (pm3.toml) or one `environments` table (pm3's wire);
    a field that is None counts as absent (pm3's client sends those).
    """
    problems: list[Problem] = []

    def problem(message: str, field: str | None = None) -> None:
        problems.append(Problem(message, table=str(name), field=field))

    unfit = name_unfit(name)
    if unfit:
        problem(unfit)
    if not isinstance(table, Mapping):
        problem('expected a table such as [web] with command = "…" in it')
        return None, problems
    values: dict[str, Any] = {}
    overlays: dict[str, Any] = {}
    for key, value in table.items():
        if value is None:
            continue
        row = FIELDS.get(str(key))
        if row is None and str(key).startswith(_OVERLAY):
            row = FIELDS["env"]
        if row is None:
            meant = nearest(str(key), FIELDS)
            problem("unknown field" + (f"; did you mean {meant}?" if meant else ""), str(key))
            continue
        try:
            canonical = row.kind.check(value)
        except Unfit as error:
            problem(str(error), str(key))
            continue
        if str(key) in FIELDS:
            values[row.name] = canonical
        else:
            overlays[str(key)[len(_OVERLAY) :]] = canonical
    for row in FIELDS.values():
        if row.required and table.get(row.name) is None:
            problem("missing; every process needs one", row.name)
    if table.get("readiness_timeout") is not None and table.get("readiness_check") is None:
        problem("needs a readiness_check that it can limit", "readiness_timeout")
    if values.get("readiness_timeout") == 0:
        problem("expected more than 0 seconds", "readiness_timeout")
    if problems:
        return None, problems
    if overlays:
        values["environments"] = dict(sorted({**values.get("environments", {}), **overlays}.items()))
    return Definition(name, **values), []


def name_unfit(name: Any) -> str | None:
    """Why `name` cannot name a process, or None. Names become file names and words of a command line."""
    if not isinstance(name, str):
        return f"invalid process name {name!r}: it is not a text; put it in quotes"
    if not name:
        return "invalid process name: it is empty"
    if len(name.encode("utf-8", "surrogatepass")) > _NAME_BYTES:
        return f"invalid process name: longer than {_NAME_BYTES} bytes"
    if ".." in name or name == "." or re.search(r"[/\\:]", name):
        return f"invalid process name {name!r}: it may not contain / \\ : or .."
    if re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", name) or name.startswith("-") or name != name.strip():
        return f"invalid process name {name!r}: it may not contain control characters, nor begin with a dash, nor begin or end with a blank"
    return None


def load(tables: Mapping[str, Any]) -> dict[str, Definition]:
    """All definitions of one file or request, in order of name. Raises `DefinitionError` with everything that is wrong."""
    problems: list[Problem] = []
    found: dict[str, Definition] = {}
    if not isinstance(tables, Mapping):
        raise DefinitionError([Problem("expected a table of [name] tables")])
    if not tables:
        raise DefinitionError([Problem("nothing is defined; expected at least one [name] table with a command")])
    for name in sorted(tables, key=str):
        definition, wrong = parse(name, tables[name])
        problems.extend(wrong)
        if definition is not None:
            found[name] = definition
    if problems:
        raise DefinitionError(problems)
    return found


def cautions(tables: Mapping[str, Any]) -> list[str]:
    """Sentences about what is allowed and probably not meant, in tables as they were written."""
    found = []
    for name, table in tables.items():
        for row in FIELDS.values():
            value = table.get(row.name) if isinstance(table, Mapping) else None
            if row.kind is kinds.MILLISECONDS and isinstance(value, int) and 0 < value < _MOST_SECONDS:
                found.append(
                    f'[{name}] {row.name}: {value} means {value} milliseconds; write "{value}ms" or "{value}s"'
                )
    return found


def located(definition: Definition, base: str | None) -> tuple[Definition, list[Problem]]:
    """The definition with absolute paths. `base` is the folder that `cwd` is relative to; None where there is no such place."""
    problems: list[Problem] = []

    def absolute(path: str, root: str | None, field: str) -> str:
        if not path.startswith("/") and root is None:
            problems.append(
                Problem(
                    "a relative path needs a base: give an absolute one, or chdir", table=definition.name, field=field
                )
            )
            return path
        return posixpath.normpath(posixpath.join(root or "/", path))

    cwd = absolute(definition.cwd, base, "cwd") if definition.cwd is not None else base
    files = tuple(absolute(path, cwd, "env_file") for path in definition.env_file)
    return dataclasses.replace(definition, cwd=cwd, env_file=files), problems


def overlaid(definitions: Mapping[str, Definition], overlay: str | None) -> dict[str, Definition]:
    """The definitions with the overlay merged into `env` and all overlays dropped.

    Raises `DefinitionError` when none of them defines it (spec: pm3.md, section 1.3).
    """
    if overlay is not None and not any(overlay in definition.environments for definition in definitions.values()):
        known = sorted({name for definition in definitions.values() for name in definition.environments})
        hint = f"; known: {', '.join(known)}" if known else "; no process defines one"
        raise DefinitionError([Problem(f"unknown environment: '{overlay}'{hint}")])
    result = {}
    for name, definition in definitions.items():
        env = (
            {**definition.env, **definition.environments.get(overlay or "", {})}
            if overlay is not None
            else definition.env
        )
        result[name] = dataclasses.replace(definition, env=env, environments={})
    return result


def uses_count(definition: Definition) -> bool:
    """Whether its instances are told the number of instances by a placeholder, so that scaling changes each of them."""
    texts = [definition.command, *definition.env.values()]
    texts += [check for check in (definition.readiness_check, definition.health_check) if check]
    return any("count" in placeholders.used(text) for text in texts)
