# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of lines that are not written as they come: a time before each of them, or one JSON object per line. Pure, but for the
time zone; times are nanoseconds since the epoch. Whatever the bytes are and however long a line is, this neither fails nor grows.
"""

from __future__ import annotations

import time

PIECE = 64 * 1024  # bytes of a line that are shaped together; a longer one is cut
_BATCH = 16 * 1024  # bytes that become JSON at once, because a short line grows manifold
_STAMP = 256  # characters that a time may take


def rfc3339(moment: int) -> str:
    """With microseconds and the offset of the local time."""
    seconds, rest = divmod(moment, 10**9)
    local = time.localtime(seconds)
    hours, minutes = divmod(abs(local.tm_gmtoff) // 60, 60)
    sign = "-" if local.tm_gmtoff < 0 else "+"
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', local)}.{rest // 1000:06d}{sign}{hours:02d}:{minutes:02d}"


def formatted(date_format: str, moment: int) -> str:
    """The local time. A format that this system refuses gives RFC 3339: output goes on whatever it says."""
    try:
        text = time.strftime(date_format, time.localtime(moment // 10**9))
    except (ValueError, OverflowError, OSError, MemoryError):  # UnicodeError is a ValueError
        return rfc3339(moment)
    return " ".join(text[:_STAMP].splitlines())  # %n must not cut lines


class Stamps:
    """The local time and a bar before every line."""

    def __init__(self, date_format: str) -> None:
        self._format = date_format

    def ready(self, data: bytes, whole: bool, final: bool) -> int:
        """How many of these bytes can be shaped now. `whole`: only lines with their end; `final`: nothing comes after them."""
        if final or not whole:
            return len(data)
        return data.rfind(b"\n") + 1 or (len(data) if len(data) > PIECE else 0)

    def shape(self, data: bytes, at_line_start: bool, final: bool, moment: int) -> bytes:
        """`data` is what `ready` allowed, or whole lines of it."""
        stamp = f"{formatted(self._format, moment)} | ".encode("utf-8", "replace")
        text = data.replace(b"\n", b"\n" + stamp)
        if data.endswith(b"\n"):
            text = text[: -len(stamp)]
        return stamp + text if at_line_start else text


class Json:
    """One object per line, in UTF-8. A line longer than `PIECE` becomes several, all but the last with "partial": true."""

    def __init__(self, name: str, process: str, stream: str, date_format: str | None) -> None:
        from json.encoder import encode_basestring  # not before somebody wants JSON

        self._quoted = encode_basestring
        self._format = date_format
        rest = (("name", name), ("process", process), ("stream", stream))
        self._head = "".join(f', "{key}": {self._quoted(value)}' for key, value in rest) + ', "line": '

    def ready(self, data: bytes, whole: bool, final: bool) -> int:
        """As `Stamps.ready`; a line without its end waits for it in any case."""
        found = data.rfind(b"\n", 0, _BATCH) + 1 or data.find(b"\n") + 1
        if found:
            return found
        if len(data) > PIECE:
            return _before_character(data, PIECE)
        return len(data) if final else 0

    def shape(self, data: bytes, at_line_start: bool, final: bool, moment: int) -> bytes:
        """As `Stamps.shape`."""
        stamp = rfc3339(moment) if self._format is None else formatted(self._format, moment)
        head = '{"time": ' + self._quoted(stamp) + self._head
        lines = data.decode("utf-8", "replace").split("\n")
        if not lines[-1]:
            lines.pop()
            end = "}\n"
        else:
            end = "}\n" if final else ', "partial": true}\n'
        lines = [head + self._quoted(line[:-1] if line.endswith("\r") else line) for line in lines]
        return ("}\n".join(lines) + end).encode("utf-8", "replace")


def _before_character(data: bytes, end: int) -> int:
    """`end`, or where the UTF-8 character begins that it would cut."""
    for begin in range(end, end - 4, -1):
        if data[begin] & 0xC0 != 0x80:
            return begin
    return end
