# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a command says, and where: one JSON line per document for programs, or lines and colours for people.

Owns the two output streams. Colours go to terminals only and respect NO_COLOR; order and wording are the callers'.
"""

from __future__ import annotations

import codecs
import json
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Callable, TextIO

from ..model.screen import one_line
from ..wire.messages import Document

RED, GREEN, YELLOW, GREY, BOLD = "31", "32", "33", "90", "1"


class Console:
    def __init__(self, out: TextIO, err: TextIO, environ: Mapping[str, str], as_json: bool = False) -> None:
        self._out = out
        self._err = err
        self.as_json = as_json
        wanted = not environ.get("NO_COLOR") and environ.get("TERM") != "dumb" and not as_json
        self._colours = wanted and out.isatty()
        self._error_colours = wanted and err.isatty()
        self.shows_progress = self._colours and self._error_colours

    @property
    def descriptor(self) -> int:
        """Of stdout."""
        return self._out.fileno()

    def line(self, text: str = "") -> None:
        self._out.write(text + "\n")

    def flush(self) -> None:
        self._out.flush()

    def document(self, document: Document) -> None:
        self.line(json.dumps(document, separators=(",", ":")))

    def paint(self, text: str, *codes: str) -> str:
        """`text` in colour, for `line`."""
        return painted(text, codes) if self._colours and text else text

    def success(self, text: str) -> None:
        self.line(self.paint(_shown(text), GREEN))

    def note(self, text: str) -> None:
        """Beside the answer: where stdout belongs to something else."""
        self._out.flush()
        self._err.write(_shown(text) + "\n")
        self._err.flush()

    def warning(self, text: str) -> None:
        self._beside("warning:", text, YELLOW)

    def error(self, text: str) -> None:
        self._beside("error:", text, RED)

    def failure(self, message: str, problems: Iterable[Mapping[str, Any]] = ()) -> int:
        """An error reply, the agent's or our own, and the exit status that goes with it."""
        listed = list(problems)
        if self.as_json:
            self.document({"type": "error", "message": message, **({"problems": listed} if listed else {})})
            return 1
        for text in [place(problem) for problem in listed] or [message]:
            self.error(text)
        return 1

    def live(self) -> AbstractContextManager[Callable[[Mapping[str, Any]], None]]:
        """What takes the messages that come while a request goes on, and shows them; for a terminal that `shows_progress`."""
        from . import live

        self._out.flush()
        return live.shown(live.Live(self._err, lambda: _size(self._err), time.monotonic))

    def _beside(self, label: str, text: str, colour: str) -> None:
        self._out.flush()  # in the order in which things were said, where both streams are one terminal
        label = painted(label, (colour, BOLD)) if self._error_colours else label
        self._err.write(f"{label} {_shown(text)}\n")
        self._err.flush()


def place(problem: Mapping[str, Any]) -> str:
    """A problem of an error reply as one line; as the model's `Problem` says it."""
    from ..model.problems import Problem

    texts = {name: problem.get(name) for name in ("file", "table", "field")}
    return str(Problem(str(problem.get("message") or ""), **texts))


def _shown(text: str) -> str:
    """Lines that do nothing to a terminal, whatever a name or a program's last words have in them."""
    return "\n".join(map(one_line, text.split("\n")))


def any_text(stream: TextIO) -> None:
    """Lets `stream` take every text: bytes that were not UTF-8 leave as they came, what has no character becomes `?`."""
    codecs.register_error("pm3", _as_it_came)
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(encoding="utf-8", errors="pm3")


def _as_it_came(error: UnicodeError) -> tuple[bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = map(ord, error.object[error.start : error.end])
    return bytes(letter - 0xDC00 if 0xDC80 <= letter <= 0xDCFF else 0x3F for letter in letters), error.end


def painted(text: str, codes: Iterable[str]) -> str:
    return f"\x1b[{';'.join(codes)}m{text}\x1b[0m"


def _size(stream: TextIO) -> tuple[int, int]:
    """The columns and lines of a terminal; of one that does not know (0), those that terminals once had."""
    try:
        size = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        return 80, 24
    return size.columns or 80, size.lines or 24
