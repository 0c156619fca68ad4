# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of `pm3 log` share: a client on a loop, and a writer of logs that rotates them as the pump does."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Callable

from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.log_file import File
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.log_index import RECORD
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.logs import Tail
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.loop import Loop

from .waiting import DEADLINE


class CountingLoop(Loop):
    turns = 0

    def _call(self, callback: Callable[[], None]) -> None:
        self.turns += 1
        super()._call(callback)


class Reader:
    """A client that takes lines, and stops when it has taken `room` of them."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self.loop = CountingLoop(self._failed)
        self.lines: list[tuple[str, str]] = []  # name of the instance, line
        self.times: list[int | None] = []
        self.room = 10**9
        self._wanted: Callable[[], bool] = lambda: False

    def emit(self, file: File, time: int | None, line: str) -> bool:
        self.lines.append((file.name, line))
        self.times.append(time)
        if self._wanted():
            self.loop.stop()
        return len(self.lines) < self.room

    def texts(self) -> list[str]:
        return [line for _name, line in self.lines]

    def until(self, count: int) -> None:
        """Runs the loop until that many lines have come."""
        self._wanted = lambda: len(self.lines) >= count
        if not self._wanted():
            self.run()

    def settle(self, turns: int = 50) -> None:
        """Runs the loop until what has happened so far is dealt with: a file that is followed on the side has come through."""
        steps = iter(range(turns))
        self._wanted = lambda: False

        def turn() -> None:
            if next(steps, None) is None:
                self.loop.stop()
            else:
                self.loop.after(0, turn)

        turn()
        self.run()

    def quiet(self) -> None:
        """Runs the loop until nothing is left to do. Where nobody writes meanwhile, nothing more will come."""
        self._wanted = lambda: False
        called = -2  # how many calls there had been

        def turn() -> None:
            nonlocal called
            if self.loop.turns == called + 1:  # this call alone
                self.loop.stop()
            else:
                called = self.loop.turns
                self.loop.after(0, turn)

        self.loop.after(0, turn)
        self.run()

    def tail(self, files: list[File], lines: int, since: int | None = None) -> list[tuple[str, str]]:
        self._wanted = lambda: False
        Tail(self.loop, files, lines, self.emit, self.loop.stop, since)
        self.run()
        return self.lines

    def run(self) -> None:
        late: list[str] = []

        def end() -> None:
            late.append("what was waited for did not happen")
            self.loop.stop()

        deadline = self.loop.after(DEADLINE, end)
        self.loop.run()
        deadline.cancel()
        assert not late
        assert not self.errors

    def _failed(self, error: BaseException) -> None:
        self.errors.append(error)
        self.loop.stop()


def index_of(path: str) -> str:
    """The index of a log."""
    folder, name = os.path.split(path)
    return os.path.join(folder, ".index", name)


def log_file(name: str, stream: str, path: Path) -> File:
    return File(name, stream, str(path), index_of(str(path)))


def append(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)


class Writer:
    """Writes one log, its index and its rotated copies, as the pump does."""

    def __init__(self, file: File, keep: int = 10, packed_from: int = 0) -> None:
        self.file = file
        self._path = Path(file.path)
        self._index = Path(file.index)
        self._keep = keep
        self._packed_from = packed_from  # copies of this number and higher are compressed; 0: none
        self._index.parent.mkdir(exist_ok=True)

    def write(self, content: bytes, time: int | None) -> None:
        offset = self._path.stat().st_size if self._path.exists() else 0
        append(self._path, content)
        if time is not None and content:
            append(self._index, RECORD.pack(offset, time))

    def rotate(self) -> None:
        for number in range(self._keep, -1, -1):
            self._move(number)
        self._path.touch()

    def flush(self) -> None:
        for path in (self._path, self._index):
            if path.exists():
                os.truncate(path, 0)

    def _move(self, number: int) -> None:
        log, index = self._numbered(self._path, number), self._numbered(self._index, number)
        next_log, next_index = self._numbered(self._path, number + 1), self._numbered(self._index, number + 1)
        packed = log.with_name(log.name + ".gz")
        if number == self._keep:
            for path in (log, packed, index):
                path.unlink(missing_ok=True)
            return
        if index.exists():
            index.rename(next_index)
        if packed.exists() and number:
            packed.rename(next_log.with_name(next_log.name + ".gz"))
        if log.exists():
            log.rename(next_log)
        if self._packed_from and number + 1 >= self._packed_from and next_log.exists():
            made = next_log.with_name(next_log.name + ".new")
            made.write_bytes(gzip.compress(next_log.read_bytes(), 1))
            found = next_log.stat()
            os.utime(made, ns=(found.st_atime_ns, found.st_mtime_ns))
            made.rename(next_log.with_name(next_log.name + ".gz"))
            next_log.unlink()

    @staticmethod
    def _numbered(path: Path, number: int) -> Path:
        return path.with_name(f"{path.name}.{number}") if number else path
