# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options that make up a definition, computed from the field table. Private to this collection."""

from __future__ import annotations

import json
from typing import Any

from ansible_collections.pm3.fleet.plugins.module_utils import _process
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model import kinds
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.definition import Effect, Field

_COSTS = {
    Effect.RESTART: "A change replaces the instances, one after the other.",
    Effect.HOT: "A change is applied to instances while they run.",
    Effect.NONE: "A change costs the instances that run nothing.",
    Effect.INSTANCES: "A change adds or removes instances, and leaves the others alone.",
}
_UNITS = {kinds.MILLISECONDS: " milliseconds", kinds.SECONDS: " seconds"}


def _documented(row: Field) -> dict[str, Any]:
    option = {key: value for key, value in _process.option(row).items() if key != "no_log"}
    about = [row.help]
    if option["type"] == "raw":
        about.append(f"{row.kind.words[0].upper()}{row.kind.words[1:]}.")
    if row.default not in (None, (), {}) and not row.required:
        default = str(row.default).lower() if isinstance(row.default, bool) else row.default
        about.append(f"The default is V({default}){_UNITS.get(row.kind, '')}.")
    about.append(_COSTS[row.effect])
    return {**option, "description": about}


class ModuleDocFragment:
    # JSON is YAML, and needs no library. With its type it is no text for ansible-test's yamllint, which reads the source.
    DOCUMENTATION: str = json.dumps({"options": {row.name: _documented(row) for row in _process.DEFINITION}})
