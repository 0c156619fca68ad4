# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From an instance's definition to what is executed for it: its program, its hooks, and the commands that check or stop it.

All of them have the same user, environment, folder and limits, so that what works in one works in the other (W24). Looks things up
on this host (accounts, env files, programs); starts nothing.
"""

from __future__ import annotations

import os

from ..model import checks, words
from ..model.life import Check, End, Work
from ..model.problems import DefinitionError, Unfit
from . import accounts, environment
from .instance import Instance
from .limits import LimitError
from .sockets import ListenError
from .spawn import Launch, SpawnError

_SHELL = ("/bin/sh", "-c")
_FOLDERS = ("/usr/bin", "/bin")
OBSTACLES = (
    SpawnError,
    accounts.AccountError,
    LimitError,
    ListenError,
    DefinitionError,
    Unfit,
    OSError,
)  # that prevent a start


def program(instance: Instance) -> Launch:
    return _launch(instance, [instance.filled(word) for word in words.split(instance.definition.command)], {})


def hook(instance: Instance, work: Work) -> Launch:
    text = getattr(instance.definition, work.value) or "true"
    return _launch(instance, [*_SHELL, instance.filled(text)], _ended(instance.life.end))


def stop_command(instance: Instance) -> Launch:
    return _launch(instance, [*_SHELL, instance.filled(instance.definition.stop_command or "true")], _running(instance))


def check(instance: Instance, kind: Check) -> Launch | None:
    """The command of an `exec://` check; None for a check of another sort."""
    argv = checks.command(getattr(instance.definition, kind.value) or "")
    if argv is None:
        return None
    return _launch(instance, [instance.filled(word) for word in argv], _running(instance))


def account(instance: Instance) -> accounts.Account:
    return accounts.find(instance.definition.user)


def reason(error: Exception) -> str:
    """An obstacle in a sentence."""
    return error.problems[0].message if isinstance(error, DefinitionError) else str(error)


def _launch(instance: Instance, argv: list[str], more: dict[str, str]) -> Launch:
    """Raises what can prevent a start: `AccountError`, `DefinitionError`, `SpawnError`, `Unfit`, `OSError`."""
    definition, who = instance.definition, account(instance)
    env = {**environment.build(definition, instance.scope, who, instance.path), **more}
    cwd = instance.filled(definition.cwd) if definition.cwd is not None else "/"
    umask = int(definition.umask, 8) if definition.umask is not None else -1
    return Launch(argv, env, cwd, who.switch(), umask, _limits(instance), _nice(instance))


def _limits(instance: Instance) -> str:
    limits = instance.definition.limits
    if not limits:
        return ""
    return " ".join([_tool("prlimit"), *(f"--{name}={value}" for name, value in limits.items())])


def _nice(instance: Instance) -> str:
    nice = instance.definition.nice
    return f"{_tool('renice')} -n {nice}" if nice is not None else ""


def _tool(name: str) -> str:
    for folder in _FOLDERS:
        if os.path.exists(os.path.join(folder, name)):
            return os.path.join(folder, name)
    raise SpawnError(f"{name} (of util-linux or bsdutils) is needed for this definition, and is not installed")


def _running(instance: Instance) -> dict[str, str]:
    return {"PM3_PID": str(instance.running.pid)} if instance.running is not None else {}


def _ended(end: End | None) -> dict[str, str]:
    """How the program ended, for post_stop. As a shell says it: 128 and the signal's number where it was one."""
    if end is None:
        return {}
    code = end.code if end.code is not None else 128 + end.signal if end.signal is not None else None
    return {"PM3_EXIT_CAUSE": end.cause.value, **({"PM3_EXIT_CODE": str(code)} if code is not None else {})}
