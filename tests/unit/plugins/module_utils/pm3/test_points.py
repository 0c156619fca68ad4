"""Every point at which a test may have the agent die is named once, is told what it means, and is a literal that one can look for."""

from __future__ import annotations

import ast
import importlib.util
import pathlib
from collections import Counter

ROOT = pathlib.Path(__file__).parents[5]
PACKAGE = ROOT / "plugins" / "module_utils" / "pm3"
BUILD = ROOT / "tests" / "integration" / "agent" / "crash_build.py"


def calls(tree: ast.AST) -> list[str | None]:
    """The names of the points in a file; None for one that is no literal."""
    found: list[str | None] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "reached":
            (name,) = node.args
            found.append(name.value if isinstance(name, ast.Constant) and isinstance(name.value, str) else None)
    return found


def test_points_and_their_table_are_the_same() -> None:
    found = [name for file in sorted(PACKAGE.rglob("*.py")) for name in calls(ast.parse(file.read_text("utf-8")))]
    assert None not in found, "a point whose name is no literal"
    assert not [name for name, times in Counter(found).items() if times > 1], "a name that two points have"
    spec = importlib.util.spec_from_file_location("crash_build", BUILD)
    assert spec is not None
    assert spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    assert set(found) == set(build.POINTS)


def test_what_is_shipped_cannot_end_itself() -> None:
    tree = ast.parse((PACKAGE / "agent" / "points.py").read_text("utf-8"))
    (function,) = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert len(function.body) == 1, "nothing but its docstring"
    assert not [node for node in tree.body if isinstance(node, ast.Import)]
