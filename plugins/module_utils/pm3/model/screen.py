# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Texts as a terminal shows them: in one line that does nothing to it. Imports nothing, for every command needs it."""

from __future__ import annotations


def one_line(text: str) -> str:
    """`text` as one line that does nothing to a terminal, whatever names somebody made up. Bytes that were not UTF-8 are `\\xNN`."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    return f"\\x{ord(letter) - 0xDC00:02x}" if "\udc80" <= letter <= "\udcff" else ascii(letter)[1:-1]
