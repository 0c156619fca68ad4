# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an instance is told by its environment: built from nothing, never inherited from whoever woke the agent (W5).

From the lowest to the highest: a clean base for the user, the `env_file`s, `env`, `secrets`, and what is ours to say.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from functools import lru_cache

from ..formats import env_file
from ..model import placeholders
from ..model.definition import Definition
from ..model.placeholders import Scope

STANDARD_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SPAWN_ID = "PM3_SPAWN_ID"


class EnvFileError(Exception):
    """A file of variables that cannot be read; the text says which and why."""


def build(definition: Definition, scope: Scope, path: str | None) -> dict[str, str]:
    """All variables of an instance. `path` is the PATH that came with the request to start it, if one did."""
    env = {**_base(os.getuid()), "PATH": path or STANDARD_PATH}
    for file in definition.env_file:
        env.update(_from_file(file))
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


def _from_file(path: str) -> Mapping[str, str]:
    try:
        with open(path, encoding="utf-8") as file:
            return env_file.parse(file.read())
    except OSError as error:
        raise EnvFileError(f"env file {path}: {os.strerror(error.errno or 0).lower()}") from error
    except UnicodeDecodeError as error:
        raise EnvFileError(f"env file {path}: not UTF-8 (byte {error.start})") from error


@lru_cache(maxsize=64)
def _base(uid: int) -> Mapping[str, str]:
    lang = {"LANG": os.environ.get("LANG", "C.UTF-8")}
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return {"HOME": "/", "SHELL": "/bin/sh", **lang}
    return {
        "HOME": user.pw_dir,
        "USER": user.pw_name,
        "LOGNAME": user.pw_name,
        "SHELL": user.pw_shell or "/bin/sh",
        **lang,
    }
