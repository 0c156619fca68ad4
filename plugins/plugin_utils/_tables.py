# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables of definitions on the controller: as Python's own types, and without their secrets. Pure. Private to this collection."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

Tables = dict[str, Any]


def without_secrets(tables: Tables) -> tuple[Tables, str | None]:
    """The tables without their secrets, and these in one encoded text (None if there are none)."""
    secrets = {name: table["secrets"] for name, table in tables.items() if table.get("secrets")}
    clean = {name: {key: value for key, value in table.items() if key != "secrets"} for name, table in tables.items()}
    return clean, base64.b64encode(json.dumps(secrets).encode()).decode() if secrets else None


def plain(value: Any) -> Any:
    """Data from a playbook as Python's own types: Ansible's strings and numbers carry tags and have types of their own."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    return value
