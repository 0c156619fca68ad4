"""A small terminal: what stands on it after a program wrote to it, as far as our programs make use of one."""

from __future__ import annotations

import re

_WRITTEN = re.compile(r"\x1b\[(\d*)([A-Za-z])|(.)", re.DOTALL)


class Screen:
    """`above` are the lines that have scrolled away at the top, `lines` those that are seen. Colours are not."""

    def __init__(self, columns: int, height: int) -> None:
        self.columns, self.height = columns, height
        self.above: list[str] = []
        self.lines = [""] * height
        self.row = self.column = 0
        self.writes: list[str] = []

    def write(self, text: str) -> int:
        self.writes.append(text)
        for number, command, letter in _WRITTEN.findall(text):
            if letter:
                self._letter(letter)
            elif command == "A":
                self.row = max(0, self.row - int(number or 1))
            elif command == "K":
                self._cut(self.row, self.column)
            elif command == "J":
                self._cut(self.row, self.column)
                for row in range(self.row + 1, self.height):
                    self._cut(row, 0)
            elif command != "m":
                raise AssertionError(f"a terminal command that is not expected: {command}")
        return len(text)

    def flush(self) -> None:
        pass

    @property
    def shown(self) -> list[str]:
        """The lines that are seen, to the last that is not empty."""
        lines = [line.rstrip() for line in self.lines]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    @property
    def everything(self) -> list[str]:
        return [line.rstrip() for line in self.above] + self.shown

    def _letter(self, letter: str) -> None:
        if letter == "\r":
            self.column = 0
        elif letter == "\n":
            self._feed()
        else:
            assert letter.isprintable(), repr(letter)
            if self.column == self.columns:
                self._feed()
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + letter + line[self.column + 1 :]
            self.column += 1

    def _feed(self) -> None:
        self.column = 0
        self.row += 1
        if self.row == self.height:
            self.above.append(self.lines.pop(0))
            self.lines.append("")
            self.row -= 1

    def _cut(self, row: int, column: int) -> None:
        self.lines[row] = self.lines[row][:column]
