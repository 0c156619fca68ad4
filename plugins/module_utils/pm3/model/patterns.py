# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a watched tree leaves out: the patterns of `watch_ignore`, and those that hold without being asked for.

A pattern without "/" is held against each name below the root, never against a part of a name nor against the root's own path (W44).
One with "/" is held against the whole path from the root on; an absolute pattern may name the root, too. `*`, `?` and `[...]` stay
within one name, `**` as a whole name is any number of them, "/" at the end means folders only, and `!NAME` takes a default away.
Case matters. Pure.

And the globs of `restart_when_changed`, in the same notation, but of whole paths: as in a shell, neither `*` nor `**` finds a name that
begins with a dot, and `[[]`, `[*]`, `[?]` are those letters themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from .problems import Unfit, nearest

DEFAULT_IGNORES = (
    *(".git", ".hg", ".svn"),
    *("node_modules", "__pycache__", ".venv", ".tox", ".mypy_cache", ".pytest_cache", "*.pyc"),
    *(
        "*.swp",
        "*.swx",
        "*~",
        ".#*",
        "4913",
    ),  # what editors leave for a moment; vim tries a folder with a file named 4913
    *(".DS_Store", "*.log"),
)


def check(pattern: str) -> str:
    """The pattern itself, when it can be used. Raises `Unfit`."""
    if pattern.startswith("!"):
        name = pattern[1:]
        if name not in DEFAULT_IGNORES:
            meant = nearest(name, DEFAULT_IGNORES)
            raise Unfit(
                f"expected one of the default patterns after the !, found {pattern!r}; "
                + (f"did you mean '!{meant}'?" if meant else f"they are {', '.join(DEFAULT_IGNORES)}")
            )
        return pattern
    _regex(_names(pattern))
    return pattern


ANY = "**"  # any number of folders
_SPECIAL = re.compile(r"@@\{|@\{[^{}]*\}|([*?\[])")
_SAID = re.compile(r"\[([*?\[])\]")


def steps(glob: str) -> list[str | re.Pattern[str]]:
    """The names of an absolute glob, one after the other: a text that means itself, a regex, or `ANY`. Raises `Unfit`."""
    found: list[str | re.Pattern[str]] = []
    for name in glob.split("/"):
        plain = _SAID.sub("", name)
        if name in ("", ".") or (name == ANY and found and found[-1] == ANY):
            continue
        if name == ANY or not re.search(r"[*?\[]", plain):
            found.append(_SAID.sub(r"\1", name))
        else:
            found.append(re.compile(("" if name.startswith(".") else r"(?!\.)") + _name_regex(name), re.DOTALL))
    return found


def literal(text: str) -> str:
    """The glob that means only `text`; placeholders in it stay what they are."""
    return _SPECIAL.sub(lambda found: f"[{found.group(1)}]" if found.group(1) else found.group(0), text)


class Ignores:
    """The defaults and some patterns, as they hold for what is below `root`."""

    def __init__(self, root: str, patterns: Iterable[str]) -> None:
        """`root` is absolute. Raises `Unfit` as `check` does."""
        patterns = tuple(map(check, patterns))
        own = [pattern for pattern in patterns if not pattern.startswith("!")]
        defaults = [pattern for pattern in DEFAULT_IGNORES if "!" + pattern not in patterns]
        base = root.rstrip("/") + "/"
        names: dict[str, None] = {}
        paths: dict[str, None] = {}
        for pattern in (*defaults, *own):
            below = pattern[len(base) - 1 :] if pattern.startswith(base) and len(pattern) > len(base) else pattern
            # A folder's path is asked for with a "/" at its end, which any pattern may match and some must.
            regex = _regex(_names(below)) + ("/" if below.endswith("/") else "/?")
            (paths if "/" in below.rstrip("/") else names)[regex] = None
        self._name = re.compile("|".join(names), re.DOTALL)
        self._path = re.compile("|".join(paths), re.DOTALL) if paths else None

    def match(self, path: str, folder: bool) -> bool:
        """Whether the file or folder at `path`, relative to the root, is left out, all that is above it being none of it."""
        path += "/" * folder
        name = path[path.rfind("/", 0, -1) + 1 :]
        return bool(self._name.fullmatch(name) or (self._path and self._path.fullmatch(path)))


def _names(pattern: str) -> list[str]:
    names = [name for name in pattern.split("/") if name not in ("", ".")]
    if not names or not pattern.strip() or "\0" in pattern:
        raise Unfit(
            f"expected a name or path to ignore, such as '*.tmp', 'cache' or 'static/cache/', found {pattern!r}"
        )
    if ".." in names:
        raise Unfit(f"expected a path below the watched folder, found {pattern!r}")
    return names


def _regex(names: list[str]) -> str:
    last = len(names) - 1
    if not last:
        return _name_regex(names[0])
    regex = ""
    for number, name in enumerate(names):
        if name != "**":
            regex += _name_regex(name) + ("/" if number < last else "")
        elif number == last:
            regex += ".+"
        elif names[number - 1] != "**" or not number:
            regex += "(?:[^/]+/)*"
    return regex


def _name_regex(name: str) -> str:
    regex, at = "", 0
    while at < len(name):
        letter = name[at]
        at += 1
        if letter == "*":
            regex += "" if regex.endswith("[^/]*") else "[^/]*"
        elif letter == "?":
            regex += "[^/]"
        elif letter == "[":
            inverted = name.startswith("!", at)
            end = name.find("]", at + inverted + 1)  # right after the "[" a "]" is one of the letters
            if end < 0:
                raise Unfit(f"expected a ] after the [ (for a [ itself, write [[]), found {name!r}")
            regex += ("[^/" if inverted else "[") + _letters(name[at + inverted : end]) + "]"
            at = end + 1
        else:
            regex += re.escape(letter)
    return regex


def _letters(text: str) -> str:
    """The inside of `[...]`: letters, and ranges such as a-z."""
    regex, at = "", 0
    while at < len(text):
        regex += re.escape(text[at])
        if text[at + 1 : at + 2] == "-" and at + 2 < len(text):
            if text[at] > text[at + 2]:
                raise Unfit(f"expected a range from the lower to the higher letter, found [{text}]")
            regex += "-" + re.escape(text[at + 2])
            at += 2
        at += 1
    return regex
