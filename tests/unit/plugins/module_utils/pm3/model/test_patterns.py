# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The patterns of `watch_ignore`: names and paths, never parts of them (W44)."""

from __future__ import annotations

import fnmatch

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.patterns import (
    DEFAULT_IGNORES,
    Ignores,
    check,
    literal,
    steps,
)
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.problems import Unfit
from hypothesis import given
from hypothesis import strategies as st

ROOT = "/home/catalog"


def ignored(path: str, *patterns: str, root: str = ROOT) -> bool:
    """Whether the path or a folder above it is left out; with "/" at its end it is a folder itself."""
    ignores = Ignores(root, patterns)
    names = path.rstrip("/").split("/")
    above = ("/".join(names[:end]) for end in range(1, len(names)))
    return any(ignores.match(one, True) for one in above) or ignores.match(path.rstrip("/"), path.endswith("/"))


@pytest.mark.parametrize(
    ("pattern", "paths", "others"),
    [
        ("log", ["log", "log/", "log/a", "a/log", "a/log/b"], ["catalog", "log.txt", "a/logs", "blog/x", "LOG"]),
        ("*.tmp", ["a.tmp", "b/c.tmp", "x.tmp/y", ".tmp"], ["tmp", "a.tmp2", "a.tmp.py"]),
        ("[ab]*", ["a", "bcd", "x/b"], ["cab", "[ab]"]),
        ("[!ab]", ["c", "x/d"], ["a", "b", "cc"]),
        ("[a-c]?", ["b1", "x/cc"], ["d1", "b", "-1"]),
        ("[]-]", ["]", "-"], ["a"]),
        ("[[]a]", ["[a]"], ["a"]),
        ("[a^-]", ["^", "-", "a"], ["b"]),
        ("a**b", ["ab", "axxb"], ["a/b"]),
        ("cache/", ["cache/", "cache/x", "a/cache/b"], ["cache", "a/cache"]),
        ("/tmp", ["tmp", "tmp/", "tmp/a"], ["a/tmp", "tmpx"]),
        ("/tmp/", ["tmp/", "tmp/a"], ["tmp", "a/tmp/"]),
        ("./tmp", ["tmp", "tmp/a"], ["a/tmp"]),
        ("static/cache", ["static/cache", "static/cache/", "static/cache/x"], ["a/static/cache", "static/cached"]),
        ("static/cache/**", ["static/cache/x", "static/cache/x/y"], ["static/cache/", "static/cache"]),
        ("static/*/x", ["static/a/x"], ["static/x", "static/a/b/x"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x/y/b/c"], ["b", "a/xb", "x/a/b"]),
        ("a/**/**/b/", ["a/b/", "a/x/y/b/"], ["a/b"]),
        ("**/x.py", ["x.py", "a/x.py", "a/b/x.py"], ["a/xx.py"]),
        ("/home/catalog/var", ["var", "var/a"], ["a/var", "home"]),
        ("/home/catalog/log", ["log"], ["a/log"]),
        ("/home/catalog", ["home/catalog"], ["a", "home"]),
        ("é*", ["école", "a/é"], ["e"]),
        ("a\nb", ["a\nb"], ["a"]),
        ("*x", ["\n\udcffx"], []),
        ("a.b+(c)", ["a.b+(c)"], ["axb+(c)", "a.bb(c)"]),
    ],
)
def test_ignored(pattern: str, paths: list[str], others: list[str]) -> None:
    assert check(pattern) == pattern
    assert [path for path in paths if not ignored(path, pattern)] == []
    assert [path for path in others if ignored(path, pattern)] == []


def test_the_root_may_be_the_root() -> None:
    assert ignored("var/tmp/x", "/var/tmp", root="/")
    assert not ignored("srv/var/tmp/x", "/var/tmp", root="/")


def test_some_things_are_always_ignored() -> None:
    for path in (".git/index", "a/node_modules/b/c.js", "a/b.pyc", "x~", ".a.py.swp", "4913", "a/web.log", ".#a"):
        assert ignored(path), path
    for path in ("git/a", ".gitignore", "a.py", "changelog", "a.logs", "14913", "node_modules.md"):
        assert not ignored(path), path


def test_a_default_can_be_taken_away() -> None:
    assert not ignored("a/web.log", "!*.log")
    assert ignored("a/.git/x", "!*.log")
    assert ignored("web.log", "!*.log", "web.*")
    assert not ignored("a.py", *("!" + default for default in DEFAULT_IGNORES))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", "expected a name or path to ignore"),
        (" ", "expected a name or path to ignore"),
        ("/", "expected a name or path to ignore"),
        ("./", "expected a name or path to ignore"),
        ("a\0b", "expected a name or path to ignore"),
        ("../x", "below the watched folder"),
        ("a/../b", "below the watched folder"),
        ("[ab", "expected a ]"),
        ("[]", "expected a ]"),
        ("a[b/c]", "expected a ]"),
        ("[z-a]", "from the lower to the higher"),
        ("!*.lgo", r"did you mean '!\*.log'"),
        ("!", "they are .git, .hg"),
    ],
)
def test_unfit(pattern: str, expected: str) -> None:
    with pytest.raises(Unfit, match=expected):
        check(pattern)
    with pytest.raises(Unfit, match=expected):
        Ignores(ROOT, [pattern])


LETTERS = st.text("ab*?[]!-^\\.&|~", min_size=1, max_size=8)


@given(pattern=LETTERS, name=st.text("ab[]!-^\\.&|~", min_size=1, max_size=5))
def test_a_name_matches_as_fnmatch_says(pattern: str, name: str) -> None:
    none = ["!" + default for default in DEFAULT_IGNORES]
    try:
        ignores = Ignores(ROOT, [*none, pattern])
    except Unfit:
        return
    if pattern in (".", "..") or name in (".", "..") or pattern.startswith("!"):
        return
    assert ignores.match(name, False) == fnmatch.fnmatchcase(name, pattern)


@given(pattern=st.text("ab*?[]!-/.", max_size=12), path=st.lists(st.text("ab.", min_size=1), min_size=1))
def test_whatever_is_fit_can_be_matched(pattern: str, path: list[str]) -> None:
    try:
        check(pattern)
    except Unfit:
        return
    Ignores("/", [pattern]).match("/".join(path), True)


# Globs of whole paths


def steps_of(glob: str) -> list[str]:
    return [step if isinstance(step, str) else "~" for step in steps(glob)]


def test_the_steps_of_a_glob() -> None:
    assert steps_of("/srv//app/./a.conf") == ["srv", "app", "a.conf"]
    assert steps_of("/srv/**/**/*.conf") == ["srv", "**", "~"]
    assert steps_of("/a**/[[]1]/[*][?]/[ab]") == ["~", "[1]", "*?", "~"]


@pytest.mark.parametrize(
    ("glob", "name", "found"),
    [
        ("/*", ".hidden", False),
        ("/.*", ".hidden", True),
        ("/?b", ".b", False),
        ("/[.]b", ".b", False),
        ("/*.yml", "a.yml", True),
        ("/*.yml", "a\n.yml", True),
        ("/[[]*", "[x", True),
        ("/[!a]*", "ab", False),
    ],
)
def test_a_step_of_a_glob(glob: str, name: str, found: bool) -> None:
    (step,) = steps(glob)
    assert not isinstance(step, str)
    assert bool(step.fullmatch(name)) == found


@given(text=st.text("ab*?[]!-{}@/", min_size=1).filter(lambda text: "@{" not in text))
def test_a_literal_means_only_itself(text: str) -> None:
    assert steps(literal(text)) == [name for name in text.split("/") if name]


def test_a_literal_keeps_its_placeholders() -> None:
    assert literal("/a*/@{instance * 2}/@@{?") == "/a[*]/@{instance * 2}/@@{[?]"
