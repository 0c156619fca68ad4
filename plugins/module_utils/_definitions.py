# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Definitions where no agent can help: reading a pm3.toml on the host, and planning for a host that has no agent yet.

Only imported where one of these happens. Private to this collection.
"""

from __future__ import annotations

import os
import sys
import typing as t

from ._place import Document, Place
from ._processes import Unusable, nothing


def from_host(path: str, chdir: str | None, overlay: str | None, prune: bool, place: Place) -> Document:
    """The fields of a request that come from a pm3.toml on this host. Raises `Unusable`.

    Unless what it does not define is pruned, only the agent knows what else there is that it may depend on."""
    sys.path.append(place.current)  # libraries have travelled there with the agent
    from .pm3.formats import pm3_toml
    from .pm3.model.problems import DefinitionError

    base = chdir or os.path.dirname(os.path.abspath(path))
    try:
        text = pm3_toml.read(path)
        pm3_toml.load(text, path, base, overlay, () if prune else None)
        return {"definitions": pm3_toml.parse(text, path), "base": base, "file": path}
    except DefinitionError as error:
        raise Unusable(as_documents(error)) from None


def planned_from_nothing(request: Document) -> Document:
    """What `apply` would answer on a host where nothing runs: everything is created."""
    from .pm3.model import difference, loading, plan, rows
    from .pm3.model.definition import FIELDS
    from .pm3.model.problems import DefinitionError

    update = {"update": request["update"]} if request["update"] and "update" in FIELDS else {}
    # Without an agent nobody knows what else there is that they may depend on, but all of it is here if the rest is pruned.
    elsewhere: tuple[str, ...] | None = () if request["prune"] else None
    tables = {
        name: {**update, **table, "secrets": {**table.get("secrets", {}), **request["secrets"].get(name, {})}}
        for name, table in request["definitions"].items()
    }
    try:
        desired = loading.load(tables, request["base"], request["overlay"], elsewhere)
        made = plan.plan(
            request["project"],
            desired,
            (),
            cpus=len(os.sched_getaffinity(0)),
            state=plan.State(request["state"]),
            prune=request["prune"],
            only=request["only"],
        )
    except DefinitionError as error:
        raise Unusable(as_documents(error)) from None
    status = "stopped" if request["state"] == "stopped" else "online"
    instances = [rows.row(change, status) for change in made.rows]
    return {
        **nothing(request["project"]),
        "ok": True,
        "changed": made.changed,
        "instances": instances,
        "summary": rows.summary(instances),
        "report": rows.report(instances),
        "diff": difference.of(request["project"], made),
    }


def as_documents(error: t.Any) -> list[Document]:
    """A `DefinitionError`'s problems as in the protocol."""
    return [
        {"file": one.file, "table": one.table, "field": one.field, "message": one.message} for one in error.problems
    ]
