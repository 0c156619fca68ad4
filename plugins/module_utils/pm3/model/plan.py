# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan: what leads from the instances that there are to those that definitions ask for.

`plan(project, desired, actual)` is a pure function, and `plan_in_parts` the same in small steps. The agent walks its result, check mode
prints it, and a host without an agent is planned for against nothing, so that a prediction and a run cannot differ: they are the same
list of changes.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from . import graph
from . import update as updates
from .definition import FIELDS, Definition, Effect, Field, uses_count
from .parts import whole
from .problems import DefinitionError, Problem
from .slots import slotted

MASK = "********"
_PLAIN = json.JSONEncoder(ensure_ascii=False)


class State(str, enum.Enum):
    """What a request wants of the processes that it names."""

    PRESENT = "present"  # run as defined
    STOPPED = "stopped"
    RESTARTED = "restarted"
    RELOADED = "reloaded"
    ABSENT = "absent"


class Action(str, enum.Enum):
    """What happens to one instance; everything but NONE is a change."""

    NONE = "none"
    CREATED = "created"
    STARTED = "started"
    UPDATED = "updated"  # live, the process goes on
    RESTARTED = "restarted"  # because it was asked for
    RELOADED = "reloaded"  # because it was asked for: without a gap where that can be had
    ROLLED = "rolled"  # replaced, because its definition changed, or a file that it was started with
    STOPPED = "stopped"
    REMOVED = "removed"
    FAILED = "failed"  # only in results: the change did not succeed
    REVERTED = "reverted"  # only in results: changed, and changed back because another one had failed
    SKIPPED = "skipped"  # only in results: another one had failed before its turn came


@dataclass(frozen=True)
class FieldChange:
    """One field, or one key of a table field (`env.PORT`), that differs. None is absence; secrets are masked already."""

    field: str
    before: Any
    after: Any
    effect: Effect


@slotted
@dataclass(frozen=True)
class Actual:
    """An instance as the agent sees it. On the host, `definition` is the one that it was last started with or updated to."""

    name: str
    process: str
    number: int
    project: str | None  # None: started by hand, owned by nobody
    definition: Definition
    count: int
    up: bool  # runs, or has ended as it should have; false also while it waits to be restarted after a failure
    wanted: bool  # not stopped on purpose
    status: str
    stale: str = ""  # what it was started with has changed since: which file, and how


@slotted
@dataclass(frozen=True)
class Change:
    """One row of the plan: an instance and what is to happen to it."""

    name: str
    process: str
    number: int
    count: int
    action: Action
    definition: Definition  # what it shall run as; of one that is removed, what it ran as
    reason: str = ""
    changes: tuple[FieldChange, ...] = ()
    before: Definition | None = None  # what it runs as now, where it exists
    rests: bool = False  # it is not to be started, only to be there
    held: bool = False  # somebody wants it to be left alone, whatever is asked for; `definition` is what it runs as
    was: str = ""  # the instance of another name that it replaces: `web` becomes `web:0` when there are several


@dataclass(frozen=True)
class Plan:
    """All rows, unchanged instances included, in the order in which they are reported: by dependency, name and number.

    What is removed comes last, dependents first.
    """

    rows: tuple[Change, ...]
    definitions: Mapping[str, Definition]  # of the whole project, once the plan is carried out
    state: State = State.PRESENT

    @property
    def changed(self) -> bool:
        return any(row.action is not Action.NONE for row in self.rows)


def plan_in_parts(
    project: str | None,
    desired: Mapping[str, Definition],
    actual: Sequence[Actual],
    *,
    cpus: int,
    current: Mapping[str, Definition] | None = None,
    state: State = State.PRESENT,
    prune: bool = True,
    only: Collection[str] | None = None,
    demanded: Collection[str] = (),
    again: Collection[str] = (),
    gone: Collection[str] = (),
    held: Mapping[str, str] | None = None,
    take_over: bool = False,
) -> Generator[None, None, Plan]:
    """What has to happen so that `desired` is how `project` is; a process at a time.

    `actual` is every instance of the host; `current` the project's definitions as last applied (what `prune` compares with);
    `cpus` resolves `instances = "max"`. With `only`, processes that it does not name are left alone, and nothing is pruned; nor is
    anything without a project. `demanded` are processes that a person has named: they start without `autostart`, too.
    `again` are those whose one-shots are started once more if they have done their work. `gone` are processes that are to go although
    nothing is pruned. `held` are processes that somebody wants to be left alone, and how a row says so: nothing of them changes, and the
    project keeps the definition that it had for them. With `take_over` a name that belongs to another project becomes this one's.
    Raises `DefinitionError` when a name belongs to another project, or `only` names what is not defined.
    """
    current, held = current or {}, held or {}
    if not take_over:
        _check_owners(project, desired, actual)
    if only is not None:
        unknown = sorted(set(only) - set(desired))
        if unknown:
            raise DefinitionError(Problem("named in only, but not defined", table=name) for name in unknown)
    prune = prune and only is None and project is not None  # what nobody owns is not ours to prune
    of_process: dict[str, list[Actual]] = {}
    for instance in actual:
        if instance.project == project or instance.process in desired:
            of_process.setdefault(instance.process, []).append(instance)
    chosen = {name: definition for name, definition in desired.items() if only is None or name in only}
    after = {**current, **chosen}
    if prune:
        after = dict(chosen)
    if state is State.ABSENT:
        absent = set(of_process) if prune else {*chosen, *gone}
        after = {} if prune else {name: current[name] for name in sorted(current) if name not in chosen}
        kept = [row for name in sorted(absent & set(held)) for row in _held(of_process.get(name, []), held[name])]
        leaving = _removed(of_process, absent - set(held), "absent")
        return Plan((*kept, *_last(leaving, of_process)), _with_held(after, current, held), state)
    rows: list[Change] = []
    for level in graph.levels(graph.of(chosen)):
        for name in level:
            found = of_process.get(name, [])
            if name in held:
                rows.extend(_held(found, held[name]) or [_absent(chosen[name], held[name])])
                continue
            starts = chosen[name].autostart or name in demanded or state in (State.RESTARTED, State.RELOADED)
            rows.extend(
                _process_rows(project, chosen[name], current.get(name), found, state, cpus, starts, name in again)
            )
            yield
    pruned = {name for name in of_process if name not in desired and (prune or name in gone)}
    rows += [row for name in sorted(pruned & set(held)) for row in _held(of_process[name], held[name])]
    leaving = [row for row in rows if row.action is Action.REMOVED]
    leaving += _removed(of_process, pruned - set(held), "not defined any more")
    rows = [row for row in rows if row.action is not Action.REMOVED]
    return Plan((*rows, *_last(leaving, of_process)), _with_held(after, current, held), state)


def plan(*asked: Any, cpus: int, **options: Any) -> Plan:
    """As `plan_in_parts`, in one go."""
    return whole(plan_in_parts(*asked, cpus=cpus, **options))


def instance_names(definition: Definition, cpus: int) -> list[tuple[str, int]]:
    """The instances that `definition` asks for on a host with so many CPUs, `(name, number)`: `web` alone, or `web:0`, `web:1`, …

    With `instance_ids` those and none else, so one of them is called `web:7` also where it is alone.
    """
    process, numbers = definition.name, definition.instance_ids
    if numbers is None:
        count = _count_of(definition, cpus)
        if count == 1:
            return [(process, 0)]
        numbers = tuple(range(count))
    return [(f"{process}:{number}", number) for number in numbers]


def _count_of(definition: Definition, cpus: int) -> int:
    """What `instances` stands for: at least one."""
    wanted = definition.instances
    if not isinstance(wanted, int):
        return max(1, cpus)
    return wanted if wanted > 0 else max(1, cpus + wanted)


def differences(before: Definition, after: Definition) -> tuple[FieldChange, ...]:
    """The fields of an instance that differ (the number of instances is none of its own fields), in the table's order."""
    found: list[FieldChange] = []
    if before == after:
        return ()
    secret = Secrets(before, after)
    for row in FIELDS.values():
        old, new = getattr(before, row.name), getattr(after, row.name)
        if old == new or row.effect is Effect.INSTANCES:
            continue
        if isinstance(old, Mapping):
            for key in sorted({*old, *new}):
                one, other = old.get(key), new.get(key)
                if one != other:
                    one, other = secret.masked(row, key, one), secret.masked(row, key, other)
                    found.append(FieldChange(f"{row.name}.{key}", one, other, row.effect))
        else:
            found.append(FieldChange(row.name, secret.covered(old), secret.covered(new), row.effect))
    return tuple(found)


class Secrets:
    """What two definitions keep secret: also the value of a variable that was in `env` and is in `secrets` now."""

    def __init__(self, *definitions: Definition) -> None:
        tables = [getattr(one, row.name) for one in definitions for row in FIELDS.values() if row.masked]
        self._names = {name for table in tables for name in table}
        self._values = {value for table in tables for value in table.values() if value}

    def masked(self, row: Field, key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: self.masked(row, name, one) for name, one in value.items()}
        if value is not None and (row.masked or key in self._names):
            return MASK
        return self.covered(value)

    def covered(self, value: Any) -> Any:
        """A value as plain data; no text in it says a secret, not even as part of another text."""
        if isinstance(value, str):
            return masked(value, self._values)
        if isinstance(value, (list, tuple)):
            return [self.covered(one) for one in value]
        if isinstance(value, Mapping):
            return {key: self.covered(one) for key, one in value.items()}
        return value


def masked(text: str, secrets: Iterable[str]) -> str:
    """`text` with the exact value of every secret covered. An empty secret has nothing to cover."""
    for secret in sorted(secrets, key=len, reverse=True):
        if secret:
            text = text.replace(secret, MASK)
    return text


def _process_rows(
    project: str | None,
    definition: Definition,
    current: Definition | None,
    existing: list[Actual],
    state: State,
    cpus: int,
    starts: bool,
    again: bool,
) -> list[Change]:
    wanted = instance_names(definition, cpus)
    count = len(wanted)
    known = {name for name, _number in instance_names(current, cpus)} if current else set()
    found = {instance.name: instance for instance in existing}
    if definition.instance_ids is None:
        before = max(len(existing), len(known)) if existing else 0
        scaled = f"instances: {before} -> {count}" if existing and before != count else ""
        new_reason, surplus_reason = "new", scaled or f"not one of {count}"
    else:
        scaled = ""
        new_reason = "added to instance_ids" if existing or current else "new"
        surplus_reason = "not in instance_ids"
    rows = []
    for name, number in wanted:
        instance = found.pop(name, None)
        predecessor = _predecessor(name, number, found, state) if instance is None else None
        if instance is not None:
            rows.append(_kept(project, instance, definition, count, state, scaled, starts, again))
        elif predecessor is not None:
            found.pop(predecessor.name)
            rows.append(_renamed(predecessor, name, definition, count, scaled or f"was {predecessor.name}"))
        else:
            reason = scaled or ("was missing" if name in known else new_reason) + (
                "" if starts else ", and autostart is false"
            )
            rows.append(
                Change(name, definition.name, number, count, Action.CREATED, definition, reason, rests=not starts)
            )
    for name in sorted(found, key=lambda left: found[left].number):
        rows.append(_leaving(found[name], surplus_reason))
    return rows


def _predecessor(name: str, number: int, found: Mapping[str, Actual], state: State) -> Actual | None:
    """The instance that does the work of the first one of its process under another name: `web` of `web:0`, or the reverse."""
    process = graph.base(name)
    one = found.get(process if name != process else f"{process}:0") if number == 0 else None
    return one if one is not None and one.wanted and one.up and state is not State.STOPPED else None


def _renamed(was: Actual, name: str, definition: Definition, count: int, reason: str) -> Change:
    changes = differences(was.definition, definition)
    made = Change(name, definition.name, 0, count, Action.ROLLED, definition, reason, changes, was.definition)
    return replace(made, was=was.name)


def _kept(
    project: str | None,
    instance: Actual,
    definition: Definition,
    count: int,
    state: State,
    scaled: str,
    starts: bool,
    again: bool,
) -> Change:
    """The row of an instance that exists and is to stay."""
    changes = differences(instance.definition, definition)
    action, reason = Action.NONE, ""
    replaced = any(change.effect is Effect.RESTART for change in changes)
    recounted = instance.count != count and (
        uses_count(definition) or uses_count(instance.definition) or updates.of(definition.update).on_scale == "roll"
    )
    moved = project is not None and instance.project not in (None, project)
    stale = instance.stale if state is State.PRESENT else ""
    if state is State.STOPPED:
        if instance.wanted:
            action, reason = Action.STOPPED, "asked for"
        elif changes or moved:
            action = Action.UPDATED
    elif not instance.wanted and not starts:
        action = Action.UPDATED if changes or moved else Action.NONE
    elif not instance.wanted:
        action, reason = Action.STARTED, "was stopped"
    elif replaced or recounted or stale:
        recount = (scaled or f"instances: {instance.count} -> {count}") if recounted and not replaced else ""
        action, reason = Action.ROLLED, "; ".join(why for why in (recount, stale) if why)
    elif state is State.RESTARTED:
        action, reason = Action.RESTARTED, "asked for"
    elif not instance.up or (again and starts and instance.status == "stopped"):
        action, reason = Action.STARTED, f"was {instance.status}"
    elif state is State.RELOADED:
        action, reason = Action.RELOADED, "asked for"
    elif changes or moved:
        action = Action.UPDATED
    # An instance that goes on keeps the count it was started with: PM3_INSTANCE_COUNT in its environment cannot change.
    told = instance.count if action in (Action.NONE, Action.UPDATED, Action.STOPPED) else count
    if told != count and instance.wanted and action is not Action.STOPPED:
        reason = f"keeps PM3_INSTANCE_COUNT={told} until its next start"
    if moved:
        reason = "; ".join([reason] * bool(reason) + [f"belonged to project {instance.project}"])
    return Change(
        instance.name, instance.process, instance.number, told, action, definition, reason, changes, instance.definition
    )


def _held(existing: list[Actual], why: str) -> list[Change]:
    return [
        Change(
            *(one.name, one.process, one.number, one.count, Action.NONE, one.definition, why),
            before=one.definition,
            held=True,
        )
        for one in sorted(existing, key=lambda one: one.number)
    ]


def _absent(definition: Definition, why: str) -> Change:
    """The row of a process that is held before it ever was."""
    return Change(definition.name, definition.name, 0, 1, Action.NONE, definition, why, held=True)


def _with_held(
    after: Mapping[str, Definition], current: Mapping[str, Definition], held: Collection[str]
) -> dict[str, Definition]:
    """The definitions of a project, in order, of which those that are held stay as they are."""
    kept = {name: current[name] for name in held if name in current}
    return dict(sorted({**{name: one for name, one in after.items() if name not in held}, **kept}.items()))


def _removed(of_process: Mapping[str, list[Actual]], gone: Collection[str], reason: str) -> list[Change]:
    return [
        _leaving(one, reason)
        for name in sorted(gone)
        for one in sorted(of_process.get(name, []), key=lambda one: one.number)
    ]


def _leaving(one: Actual, reason: str) -> Change:
    was = one.definition
    return Change(one.name, one.process, one.number, one.count, Action.REMOVED, was, reason, before=was)


def _last(removals: Sequence[Change], of_process: Mapping[str, list[Actual]]) -> list[Change]:
    """Removals in order: dependents first, by the definitions that everything runs as now."""
    dependencies = {
        name: [graph.base(other) for instance in instances for other in instance.definition.depends_on]
        for name, instances in of_process.items()
    }
    place = {name: level for level, names in enumerate(graph.levels(dependencies)) for name in names}
    return sorted(removals, key=lambda row: (-place[row.process], row.process, row.number))


def _check_owners(project: str | None, desired: Mapping[str, Definition], actual: Sequence[Actual]) -> None:
    owners = {
        one.process: one.project for one in actual if one.process in desired and one.project not in (None, project)
    }
    if owners:
        raise DefinitionError(
            Problem(
                f"belongs to project {owners[name]}; rename it, remove it there first, or have it taken over (take_over)",
                table=name,
            )
            for name in sorted(owners)
        )


def said(value: Any) -> str:
    """A value of a definition the way a person would write it."""
    if value is None or value == []:
        return "none"
    if isinstance(value, list):
        return "[" + ", ".join(said(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {said(item)}" for key, item in value.items()) + "}"
    # As in TOML, on one line whatever is in it.
    return _PLAIN.encode(value)
