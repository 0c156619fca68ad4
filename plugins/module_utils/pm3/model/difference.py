# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The readable difference that a plan makes: one text before and one after for each process, for Ansible's diff mode.

Secrets are masked; one that changes is said to. What differs although the definition is the same (an instance that was stopped by
hand) stands in lines of its own at the top.
"""

from __future__ import annotations

from collections.abc import Mapping

from .definition import FIELDS, Definition, Effect
from .plan import MASK, Action, Change, Plan, Secrets, said

_DRIFTED = (Action.STARTED, Action.STOPPED, Action.RESTARTED)


def of(project: str, plan: Plan) -> list[dict[str, str]]:
    """Ansible's list of `{before, after, before_header, after_header}`, only of processes that change."""
    by_process: dict[str, list[Change]] = {}
    for change in plan.rows:
        by_process.setdefault(change.process, []).append(change)
    found = []
    for process, changes in by_process.items():
        if any(change.action is not Action.NONE for change in changes):
            header = f"{project}/{process}"
            before, after = _texts(changes, plan.definitions.get(process))
            found.append({"before": before, "after": after, "before_header": header, "after_header": header})
    return found


def _texts(changes: list[Change], defined: Definition | None) -> list[str]:
    """Before and after. `defined` is the process's definition afterwards, which may ask for no instance at all."""
    existed = [change for change in changes if change.action is not Action.CREATED]
    stays = [change for change in changes if change.action is not Action.REMOVED]
    drifted = [change for change in changes if change.action in _DRIFTED or _is_stale(change)]
    before = [f"# {change.name}: {change.reason or 'running'}" for change in drifted]
    after = [
        f"# {change.name}: {'stopped' if change.action is Action.STOPPED else change.action.value}"
        for change in drifted
    ]
    old: Definition | None = next((change.before for change in existed), None)
    new = stays[0].definition if stays else defined
    secrets_before = old.secrets if old is not None else {}
    secret = Secrets(*(one for one in (old, new) if one is not None))
    before += _lines(old, existed, {}, secret)
    after += _lines(new, stays, secrets_before, secret)
    return ["".join(line + "\n" for line in lines) for lines in (before, after)]


def _is_stale(change: Change) -> bool:
    """It is replaced although its definition is the same."""
    return change.action is Action.ROLLED and not change.changes


def _lines(
    definition: Definition | None, instances: list[Change], secrets_before: Mapping[str, str], secret: Secrets
) -> list[str]:
    """A definition as it would be written in a pm3.toml, one line for each value."""
    if definition is None:
        return []
    lines = [f"[{definition.name}]"]
    for name, value in definition.data().items():
        row = FIELDS[name]
        if isinstance(value, Mapping):
            for key, text in value.items():
                changed = row.masked and secrets_before.get(key, text) != text
                shown = f"{MASK} (changed)" if changed else secret.masked(row, key, text)
                lines.append(f"{name}.{key} = {said(shown)}")
        elif row.effect is not Effect.INSTANCES:
            lines.append(f"{name} = {said(secret.covered(value))}")
    if definition.instance_ids is None:
        lines.append(f"instances = {len(instances)}")
    else:
        lines.append(f"instance_ids = {sorted(change.number for change in instances)}")
    return lines
