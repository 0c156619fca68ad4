# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an instance is told by its environment: built from nothing, never inherited from whoever woke the agent (W5).

From the lowest to the highest: a clean base for the user, the `env_file`s, `env`, `secrets`, and what is ours to say.
"""

from __future__ import annotations

from ..formats import env_file
from ..model import placeholders
from ..model.definition import Definition
from ..model.placeholders import Scope
from .accounts import Account

STANDARD_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SPAWN_ID = "PM3_SPAWN_ID"
NOTIFY_SOCKET = "NOTIFY_SOCKET"  # sd_notify(3)


def build(definition: Definition, scope: Scope, account: Account, path: str | None) -> dict[str, str]:
    """All variables of an instance. `path` is the PATH that came with the request to start it, if one did.

    Raises `DefinitionError` for an env file that cannot be read.
    """
    env = {**account.environment, "PATH": path or STANDARD_PATH}
    for file in definition.env_file:
        env.update(env_file.read(placeholders.expand(file, scope)))
    env.update((key, placeholders.expand(value, scope)) for key, value in definition.env.items())
    env.update(definition.secrets)
    number = str(scope.instance)
    ours = {
        "PM3_INSTANCE_ID": number,
        "PM3_INSTANCE_COUNT": str(scope.count),
        "PM3_NAME": scope.name,
        "PM3_PROJECT": scope.project,
        "NODE_APP_INSTANCE": number,
    }
    return {**env, **ours}


def listening(process: str, count: int) -> dict[str, str]:
    """What tells a program of the sockets that it gets (sd_listen_fds(3)); LISTEN_PID is added where its pid is known."""
    return {"LISTEN_FDS": str(count), "LISTEN_FDNAMES": ":".join([process] * count)} if count else {}
