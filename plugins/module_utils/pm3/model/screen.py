# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Texts as a terminal shows them: in one line that does nothing to it, and how much room that takes. Imports nothing for plain texts,
since every command needs it."""

from __future__ import annotations


def one_line(text: str) -> str:
    """`text` as one line that does nothing to a terminal, whatever names somebody made up. Bytes that were not UTF-8 are `\\xNN`."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    return f"\\x{ord(letter) - 0xDC00:02x}" if "\udc80" <= letter <= "\udcff" else ascii(letter)[1:-1]


def columns_of(text: str) -> int:
    """How many columns of a terminal a text takes."""
    return len(text) if text.isascii() else sum(map(_columns, text))


def padded(text: str, columns: int) -> str:
    """A text with blanks behind it, so that what follows begins in the same column everywhere."""
    return text + " " * (columns - columns_of(text))


def fitted(text: str, columns: int) -> str:
    """As much of a text as there is room for."""
    if text.isascii():
        return text[: max(0, columns)]
    taken = 0
    for place, letter in enumerate(text):
        taken += _columns(letter)
        if taken > columns:
            return text[:place]
    return text


def _columns(letter: str) -> int:
    import unicodedata  # only for what is not English

    if unicodedata.combining(letter):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1
