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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from . import checks, kinds, patterns, placeholders
from . import update as updates
from .kinds import Kind
from .problems import DefinitionError, Problem, Unfit, nearest
from .slots import slotted


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


@slotted
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
    restart_when_changed: tuple[str, ...] = _row(
        kinds.GLOBS,
        Effect.NONE,
        "Files, folders, links and globs, relative to cwd: an apply that finds one changed since the start replaces the instance."
        " env_file always counts.",
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
    listen: tuple[str, ...] = _row(
        kinds.LISTEN,
        Effect.RESTART,
        "Sockets that the agent opens and every instance gets, from descriptor 3 on, as systemd's socket units do (LISTEN_FDS).",
        (),
    )
    instances: int | str = _row(
        kinds.INSTANCES,
        Effect.INSTANCES,
        'Copies to run, numbered from 0; "max" is one per CPU, -1 all CPUs but one.',
        1,
    )
    instance_ids: tuple[int, ...] | None = _row(
        kinds.IDS,
        Effect.INSTANCES,
        "Instead of instances: the numbers of the instances to run here, such as [7, 12] for web:7 and web:12; [] runs none.",
    )
    depends_on: tuple[str, ...] = _row(
        kinds.NAMES, Effect.NONE, "Processes (or single instances) that must be up before this one starts.", ()
    )
    update: Mapping[str, Any] = _row(
        updates.KIND, Effect.NONE, "How changes reach its instances: one after the other, with a way back.", {}
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
    autostart: bool = _row(
        kinds.BOOLEAN, Effect.NONE, "Whether an instance that is new starts at once, or waits to be started.", True
    )
    kill_signal: str = _row(
        kinds.SIGNAL, Effect.HOT, "Signal that asks the instance's process group to stop.", "SIGTERM"
    )
    kill_timeout: float = _row(kinds.MILLISECONDS, Effect.HOT, "How long a stop may take before SIGKILL.", 5000)
    stop_command: str | None = _row(
        kinds.HOOK, Effect.HOT, "Shell command that stops the instance, instead of kill_signal; it gets PM3_PID."
    )
    reload_signal: str | None = _row(
        kinds.SIGNAL, Effect.HOT, "Signal by which the program reads its own files anew; pm3 reload then sends it."
    )
    pre_start: str | None = _row(
        kinds.HOOK, Effect.RESTART, "Shell command that runs before every start; if it fails, the start does."
    )
    post_stop: str | None = _row(
        kinds.HOOK, Effect.HOT, "Shell command that runs after every end, whatever the reason was."
    )
    hook_timeout: float = _row(kinds.SECONDS, Effect.HOT, "How long pre_start or post_stop may take.", 300)
    readiness_check: str | None = _row(
        kinds.READINESS, Effect.HOT, "Must pass before the instance counts as online and dependents start."
    )
    readiness_timeout: float = _row(kinds.SECONDS, Effect.HOT, "How long readiness_check may take to pass.", 30)
    health_check: str | None = _row(
        kinds.CHECK, Effect.HOT, "Checked after readiness, before the instance counts as online."
    )
    liveness_check: str | None = _row(
        kinds.CHECK, Effect.HOT, "Checked again and again while the instance is online; one that hangs is restarted."
    )
    liveness_interval: float = _row(kinds.SECONDS, Effect.HOT, "Time between two liveness checks.", 10)
    liveness_timeout: float = _row(kinds.SECONDS, Effect.HOT, "How long one liveness check may take.", 2)
    liveness_failures: int = _row(
        kinds.POSITIVE, Effect.HOT, "Liveness checks that fail in a row before the instance is restarted.", 3
    )
    liveness_successes: int = _row(
        kinds.POSITIVE, Effect.HOT, "Liveness checks that pass in a row before earlier failures are forgotten.", 1
    )
    max_memory: int | None = _row(
        kinds.SIZE, Effect.HOT, "Memory of all its processes together above which the instance is restarted."
    )
    memory_max: int | None = _row(
        kinds.SIZE,
        Effect.HOT,
        "Memory that all its processes together cannot exceed: the kernel kills them all. Needs cgroup v2.",
    )
    cpu_max: str | None = _row(
        kinds.CPU, Effect.HOT, "CPU that all its processes get together, such as 0.5 or 50%. Needs cgroup v2."
    )
    pids_max: int | None = _row(
        kinds.POSITIVE, Effect.HOT, "Processes and threads that it can have at a time. Needs cgroup v2."
    )
    watch: bool | str = _row(
        kinds.WATCH, Effect.HOT, "Restart when files change: true for those in cwd, or a path relative to it.", False
    )
    watch_ignore: tuple[str, ...] = _row(
        kinds.PATTERNS, Effect.HOT, "Names and globs (*.tmp, cache/**) that watch leaves out.", ()
    )
    cron_restart: str | None = _row(
        kinds.CRON,
        Effect.HOT,
        "When to restart, or start again what has ended: cron's five fields, or six with seconds first; local time, or that of TZ in env.",
    )
    umask: str | None = _row(
        kinds.UMASK, Effect.RESTART, "Permissions that files made by the program do not get, in octal."
    )
    nice: int | None = _row(kinds.NICE, Effect.RESTART, "Scheduling priority, from -20 (first) to 19 (last).")
    limits: Mapping[str, str] = _row(
        kinds.LIMITS, Effect.RESTART, 'Resource limits, such as { nofile = 65536, core = "unlimited" }.', {}
    )
    tty: bool = _row(
        kinds.BOOLEAN, Effect.RESTART, "Whether stdout is a terminal, for programs that buffer without one.", False
    )
    stdout_file: str | None = _row(
        kinds.PATH, Effect.RESTART, "File for stdout, relative to cwd; default in the agent's logs folder."
    )
    stderr_file: str | None = _row(
        kinds.PATH, Effect.RESTART, "File for stderr, relative to cwd; default in the agent's logs folder."
    )
    log_format: str = _row(
        kinds.one_of("raw", "json"), Effect.HOT, "Output as it comes, or one JSON record per line.", "raw"
    )
    log_date_format: str | None = _row(
        kinds.DATE_FORMAT, Effect.HOT, "Time before every line of output, in the notation of strftime."
    )
    log_max_size: int = _row(kinds.SIZE, Effect.HOT, "Size at which a log is rotated; 0 means never.", 10 * 1024 * 1024)
    log_max_age: float = _row(kinds.SECONDS, Effect.HOT, "Age at which a log is rotated; 0 means never.", 0)
    log_keep: int = _row(kinds.COUNT, Effect.HOT, "Rotated logs that are kept of each stream.", 3)
    log_total_size: int = _row(
        kinds.SIZE, Effect.HOT, "Bytes that the rotated logs of one stream may hold together; 0 means any number.", 0
    )
    log_compress: bool = _row(kinds.BOOLEAN, Effect.HOT, "Whether rotated logs are compressed.", False)

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

_NEEDS = {  # fields that mean nothing without another
    "readiness_timeout": "readiness_check",
    "liveness_interval": "liveness_check",
    "liveness_timeout": "liveness_check",
    "liveness_failures": "liveness_check",
    "liveness_successes": "liveness_check",
}
_NEVER_ZERO = ("readiness_timeout", "liveness_interval", "liveness_timeout", "hook_timeout", "max_memory", "memory_max")
_OVERLAY = "env_"
_MANY_CPUS = 10  # a bare number from it on was probably thought of as percent
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
            for message in error.messages:
                problem(message, str(key))
            continue
        if str(key) in FIELDS:
            values[row.name] = canonical
        else:
            overlays[str(key)[len(_OVERLAY) :]] = canonical
    for row in FIELDS.values():
        if row.required and table.get(row.name) is None:
            problem("missing; every process needs one", row.name)
    for needy, needed in _NEEDS.items():
        if table.get(needy) is not None and table.get(needed) is None:
            problem(f"needs a {needed}", needy)
    for field in _NEVER_ZERO:
        if values.get(field) == 0:
            problem("expected more than 0", field)
    for field, message in [*_numbers_unfit(values), *_files_unfit(values), *_update_unfit(values)]:
        problem(message, field)
    if problems:
        return None, problems
    if overlays:
        values["environments"] = dict(sorted({**values.get("environments", {}), **overlays}.items()))
    return Definition(name, **values), []


def _numbers_unfit(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Two answers to the question which instances there are."""
    both = "instances" in values and "instance_ids" in values
    return [("instance_ids", "takes the place of instances; give one of the two")] if both else []


def _files_unfit(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What cannot be with stdout_file and stderr_file: a log has one stream that fills it."""
    named = {field: values[field] for field in ("stdout_file", "stderr_file") if field in values}
    found = []
    if len(named) == 2 and len(set(named.values())) == 1:
        found.append(("stderr_file", "expected another file than stdout_file: each stream has its own"))
    if values.get("instances", 1) != 1 or "instance_ids" in values:
        found += [
            (field, "names one file for several instances; put @{instance} or @{name} in it")
            for field, file in named.items()
            if not {"instance", "name"} & placeholders.used(file)
        ]
    return found


def _update_unfit(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Checks that cannot tell the new copy of an instance from the old one, where both run for a while."""
    if updates.of(values.get("update", {})).order != updates.START_FIRST:
        return []
    found = []
    for field in ("readiness_check", "health_check"):
        check = values.get(field)
        if check is None or "slot" in placeholders.used(check) or checks.tells_copies(check):
            continue
        found.append(
            (
                field,
                "with update.order start_first the old copy would answer it as well as the new one: give each its own port, such as"
                " @{3000 + 2 * instance + slot}, ask with exec:// (PM3_PID tells which copy), or have the program say so (notify://)",
            )
        )
    return found


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
            if row.kind is kinds.CPU and isinstance(value, (int, float)) and value >= _MANY_CPUS:
                found.append(
                    f'[{name}] {row.name}: {value} means {value} CPUs; write "{value}%", or "{100 * value:.0f}%" for so many'
                )
        if isinstance(table, Mapping):
            found += [f"[{name}] {field}: {message}" for field, message in _always_pass(table)]
    return found


def _always_pass(table: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Checks that knock where the agent itself listens."""
    listen = table.get("listen")
    listed = listen if isinstance(listen, (list, tuple)) else [listen]
    ports = {one.rpartition(":")[2] for one in listed if isinstance(one, str)}
    return [
        (field, "always passes, because the agent itself listens on that port; use notify:// or exec://")
        for field in ("readiness_check", "health_check", "liveness_check")
        if str(table.get(field)).startswith("tcp://") and str(table[field]).rpartition(":")[2] in ports
    ]


def located(definition: Definition, base: str | None) -> tuple[Definition, list[Problem]]:
    """The definition with absolute paths. `base` is the folder that `cwd` is relative to; None where there is no such place."""
    problems: list[Problem] = []

    def absolute(path: str, root: str | None, field: str) -> str:
        if not path.startswith("/") and root is None:
            message = "a relative path needs a base: give an absolute one, or chdir"
            problems.append(Problem(message, table=definition.name, field=field))
            return path
        joined = posixpath.join(root or "/", path)
        return joined if "@{" in joined else posixpath.normpath(joined)  # what is in the braces is no path

    cwd = absolute(definition.cwd, base, "cwd") if definition.cwd is not None else base
    found: dict[str, Any] = {"env_file": tuple(absolute(path, cwd, "env_file") for path in definition.env_file)}
    base_glob = patterns.literal(cwd) if cwd is not None else None  # whatever letters a folder's own name has
    globs = definition.restart_when_changed
    found["restart_when_changed"] = tuple(absolute(path, base_glob, "restart_when_changed") for path in globs)
    for field in ("stdout_file", "stderr_file", "watch"):
        path = getattr(definition, field)
        if isinstance(path, str):
            found[field] = absolute(path, cwd, field)
    if definition.watch is True and cwd is None:
        problems.append(Problem("needs a cwd that it can watch, or chdir", table=definition.name, field="watch"))
    return dataclasses.replace(definition, cwd=cwd, **found), problems


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
        if not definition.environments:
            result[name] = definition
            continue
        env = (
            {**definition.env, **definition.environments.get(overlay or "", {})}
            if overlay is not None
            else definition.env
        )
        result[name] = dataclasses.replace(definition, env=env, environments={})
    return result


def uses_count(definition: Definition) -> bool:
    """Whether its instances are told the number of instances by a placeholder, so that scaling changes each of them."""
    return any(
        "count" in placeholders.used(text)
        for row in FIELDS.values()
        if row.kind.placed
        for text in _texts(getattr(definition, row.name))
    )


def incomputable(definition: Definition) -> list[Problem]:
    """Placeholders that one of its instances could not be started with, or no one could."""
    found = []
    for row in FIELDS.values():
        if not row.kind.placed and row.kind is not kinds.OVERLAYS:
            continue
        for field, key, text in _named_texts(row.name, getattr(definition, row.name)):
            if "@{" not in text or not placeholders.can_fail(text):
                continue
            try:
                for scope in scopes(definition):
                    placeholders.expand(text, scope)
            except Unfit as unfit:
                found.append(Problem(key + str(unfit), table=definition.name, field=field))
    return found


def scopes(definition: Definition) -> Iterator[placeholders.Scope]:
    """Whom its placeholders can speak of. Where only a host knows how many there are, the first one of very many."""
    process, numbers, count = definition.name, definition.instance_ids, definition.instances
    if numbers is not None:
        several, count = True, len(numbers)
    elif isinstance(count, int) and count > 0:
        several, numbers = count > 1, tuple(range(count))
    else:
        several, numbers, count = True, (0,), kinds.MOST_INSTANCES
    for number in numbers:
        for slot in (0, 1):
            name = f"{process}:{number}" if several else process
            yield placeholders.Scope(number, count, process, name, "", slot)


def _named_texts(field: str, value: Any) -> Iterator[tuple[str, str, str]]:
    """The texts of a field with their place in it: as a problem's field, and as the beginning of its message."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if isinstance(inner, Mapping):
                yield from _named_texts(_OVERLAY + key, inner)
            else:
                yield field, f"{key}: ", inner
    else:
        for text in _texts(value):
            yield field, "", text


def _texts(value: Any) -> list[str]:
    """The texts in a field's value."""
    if isinstance(value, str):
        return [value]
    return list(value.values()) if isinstance(value, Mapping) else list(value) if isinstance(value, tuple) else []
