# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A command line cut into words, the way pm3 cuts it: POSIX quoting and no shell (spec: pm3.md, section 1.5).

`shlex.split(comments=True)` is not that: it cuts `w1#w2` at the hash, keeps the backslash of `"\\$X"`, refuses a trailing
backslash, and takes a carriage return for a blank.
"""

from __future__ import annotations

from .problems import Unfit

_BLANKS = " \t\n"
_ESCAPED_IN_QUOTES = '$`"\\\n'


def split(text: str) -> list[str]:
    """The words of `text`. Raises `Unfit` for an unclosed quote or when there is no word at all."""
    words: list[str] = []
    word: list[str] | None = None  # None between words; an empty list is the empty word ''
    at = 0
    while at < len(text):
        letter = text[at]
        at += 1
        if letter in _BLANKS:
            if word is not None:
                words.append("".join(word))
            word = None
        elif letter == "#" and word is None:
            end = text.find("\n", at)
            at = len(text) if end < 0 else end
        elif letter == "\\" and text[at : at + 1] == "\n":
            at += 1  # an escaped newline joins two lines, and is no word by itself
        else:
            word = [] if word is None else word
            at = _take(text, at, letter, word)
    if word is not None:
        words.append("".join(word))
    if not words:
        raise Unfit("expected a program and its arguments, found nothing to run")
    return words


def _take(text: str, at: int, letter: str, word: list[str]) -> int:
    """Adds to `word` what begins with `letter` (already read) and gives the place after it."""
    if letter == "'":
        end = text.find("'", at)
        if end < 0:
            raise Unfit("expected a closing single quote")
        word.append(text[at:end])
        return end + 1
    if letter == '"':
        return _take_quoted(text, at, word)
    if letter == "\\":
        word.append(text[at : at + 1] or "\\")  # a trailing backslash is itself
        return at + 1
    if letter == "@" and text[at : at + 1] == "{":
        end = text.find("}", at) + 1 or len(text)
        word.append(text[at - 1 : end])  # a placeholder is one word, whatever is in it
        return end
    word.append(letter)
    return at


def _take_quoted(text: str, at: int, word: list[str]) -> int:
    while at < len(text) and text[at] != '"':
        if text[at] == "\\" and at + 1 < len(text) and text[at + 1] in _ESCAPED_IN_QUOTES:
            at += 1
            if text[at] != "\n":
                word.append(text[at])
        else:
            word.append(text[at])
        at += 1
    if at == len(text):
        raise Unfit("expected a closing double quote")
    return at + 1
