"""Holds the five rooms of the agent to their direction: an import only ever goes down, and the model is pure.

Reads the source, imports nothing. The rules: a room imports itself and the rooms below it; between own modules imports are
relative; nothing comes from Ansible; the model touches no file, process, clock, randomness or log.
"""

from __future__ import annotations

import ast
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import pytest

PACKAGE = pathlib.Path(__file__).parents[5] / "plugins" / "module_utils" / "pm3"

# From the top of the house to the bottom.
ROOMS = ("cli", "agent", "wire", "formats", "model")

FOREIGN = {"ansible", "ansible_collections", "pm3"}

# All that the model may import from Python's library: nothing that reads a file, a process, a clock or chance.
PURE = {
    *(
        "__future__",
        "abc",
        "ast",
        "base64",
        "bisect",
        "collections",
        "copy",
        "dataclasses",
        "datetime",  # to compute with; not to ask for the time
        "difflib",
        "enum",
        "fnmatch",
        "functools",
    ),
    *("graphlib", "hashlib", "heapq", "ipaddress", "itertools", "json", "math", "operator", "posixpath", "re", "shlex"),
    *("string", "textwrap", "types", "typing", "unicodedata"),
    # Schedules are dates, and local time is the zones that a host knows. The moment to start from is an argument all the same.
    *("cronsim", "datetime", "zoneinfo"),
}
CLOCKS = {"now", "today", "utcnow"}  # what is not pure in datetime
IMPURE_CALLS = {"open", "print", "input", "exec", "eval", "__import__"}


class Import(NamedTuple):
    """One imported module: its dotted path, inside the package when it is our own."""

    line: int
    target: tuple[str, ...]
    own: bool


def imports(tree: ast.AST, module: tuple[str, ...]) -> Iterator[Import]:
    """All imports in a file, those inside functions and under TYPE_CHECKING included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, tuple(alias.name.split(".")), own=False)
        elif isinstance(node, ast.ImportFrom):
            path = tuple(node.module.split(".")) if node.module else ()
            if not node.level:
                yield Import(node.lineno, path, own=False)
                continue
            if node.level > len(module):
                yield Import(node.lineno, ("..", *path), own=False)  # out of the package
                continue
            base = module[: len(module) - node.level] + path
            # "from .. import model" names the room only in its last word.
            for alias in node.names:
                yield Import(node.lineno, base or (alias.name,), own=True)


def faults(source: str, path: str) -> list[str]:
    """What a file does against the rules, as "path:line: what". `path` is relative to the package."""
    parts = tuple(path[: -len(".py")].split("/"))
    room = parts[0] if len(parts) > 1 else ""  # pm3/__main__.py stands above all rooms
    level = ROOMS.index(room) if room else -1
    tree = ast.parse(source, path)
    found = []
    for line, target, own in imports(tree, parts):
        head = target[0]
        if own:
            if head in ROOMS and ROOMS.index(head) < level:
                found.append(f"{path}:{line}: {room} imports {head}, which stands above it")
        elif head in FOREIGN or head == "..":
            found.append(f"{path}:{line}: imports {'.'.join(target)}; own modules are relative, Ansible is none")
        elif room == "model" and head not in PURE:
            found.append(f"{path}:{line}: the model is pure and may not import {head}")
    if room == "model":
        found += [
            f"{path}:{node.lineno}: the model is pure and calls {node.func.id}()"
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS
        ]
        found += [
            f"{path}:{node.lineno}: the model has no clock and asks for {node.attr}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and node.attr in CLOCKS
        ]
    return found


def test_every_import_goes_down() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    seen = {file.relative_to(PACKAGE).parts[0] for file in files if file.parent != PACKAGE}
    assert seen == set(ROOMS)
    found = [fault for file in files for fault in faults(file.read_text("utf-8"), file.relative_to(PACKAGE).as_posix())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("model/plan.py", "from ..formats import toml"),
        ("model/plan.py", "from .. import agent"),
        ("model/plan.py", "def f():\n    from ..wire.client import Client"),
        ("model/plan.py", "import os.path"),
        ("model/plan.py", "from time import monotonic"),
        ("model/plan.py", "import somebody_elses"),
        ("model/plan.py", "text = open('f').read()"),
        ("model/cron.py", "from datetime import datetime\nbegin = datetime.now()"),
        ("model/deep/er.py", "from ...wire import client"),
        ("wire/client.py", "from ..agent import server"),
        ("wire/client.py", "from ansible.module_utils.common.text.converters import to_text"),
        ("wire/client.py", "from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model import plan"),
        ("wire/client.py", "from pm3.model import plan"),
        ("agent/server.py", "from ..cli import tables"),
        ("__main__.py", "from ..other import thing"),
    ],
)
def test_a_wrong_import_is_seen(path: str, source: str) -> None:
    assert faults(source, path)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("model/plan.py", "import dataclasses\nfrom . import words\nfrom .definition import FIELDS"),
        ("formats/toml.py", "import os\nfrom ..model.definition import FIELDS"),
        ("agent/server.py", "from .. import model\nfrom ..wire import framing\nimport subprocess"),
        ("cli/main.py", "from ..agent import server"),
        ("__main__.py", "from .cli import main"),
    ],
)
def test_a_right_import_is_not(path: str, source: str) -> None:
    assert not faults(source, path)
