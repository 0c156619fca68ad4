# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m pm3`, and the same by path: `python -I -S …/pm3/__main__.py` finds its package, and the libraries packed beside it.

The daemons start here too, hidden from `pm3 help`. They never import the command line: what they import once stays in memory.
"""

from __future__ import annotations

import importlib
import os
import sys
import types
from typing import Any


def _package() -> str:
    """The name of this package, which can be imported from here on."""
    if __package__:
        return __package__
    here = os.path.dirname(os.path.abspath(__file__))
    if sys.path and sys.path[0] == here:  # without -I; its rooms are no top-level packages
        del sys.path[0]
    sys.path.insert(0, os.path.dirname(here))
    return os.path.basename(here)


class _Later(types.ModuleType):
    """A module in the place of one that is imported when something of it is asked for; importlib's own comes with the first import."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def _main() -> int:
    # Of ours only dataclasses imports it, for classes without a docstring; with what it imports itself it is 1.3 MB in every agent.
    sys.modules.setdefault("inspect", _Later("inspect"))
    package = _package()
    for flag, module in (("--keeper", "keeper"), ("--daemon", "main")):
        if flag in sys.argv[1:]:
            data_dir = importlib.import_module(package + ".wire.paths").data_dir(os.environ)
            return int(importlib.import_module(f"{package}.agent.{module}").main(data_dir))
    if sys.argv[1:2] == ["--check-upgrade"]:
        return int(importlib.import_module(package + ".agent.upgrade").check(sys.argv[2]))
    return int(importlib.import_module(package + ".cli.main").main())


if __name__ == "__main__":
    raise SystemExit(_main())
