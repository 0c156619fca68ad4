# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Between a pipe and a log whose lines are changed on their way. Owns two files of a stream: the spool and its state.

Bytes move by `splice` into the spool, are read from there, changed and appended to the log. The state says how far that has come, in
one record that one `pwrite` replaces: before the log is written it names the log and its size ("busy"), and afterwards how much of
the spool is done. So when we are killed in between, the next of us cuts the log back to that size and does the rest again: no line
is lost, doubled or cut. All of it concerns SIGKILL only; the files are in the run folder, which a reboot empties.
"""

from __future__ import annotations

import os
import struct

from .pipes import splice
from .points import reached

# Bytes of the spool that are done; device, inode and size of the log; -1 or the size to cut the spool to; busy; whether the next
# byte begins a line.
_STATE = struct.Struct("<QQQQqBB")
_LARGE = 256 * 1024  # bytes at which what is done is cut off
_SPOOL, _ENDING = ".spool", ".state"


class Interrupted:
    """The logs that were being written when an agent was killed, until they have been cut back."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._found: dict[tuple[int, int], tuple[int, str]] = {}  # device and inode: size, and the state that tells it
        for name in os.listdir(folder):
            if name.endswith(_ENDING):
                path = os.path.join(folder, name)
                state = _read(path)
                if state is not None and state[5]:
                    self._found[state[1], state[2]] = state[3], path

    def settle(self, identity: tuple[int, int], log: int) -> None:
        """Cuts back a log that was just opened, before anybody writes to it."""
        found = self._found.pop(identity, None) if self._found else None
        if found is None:
            return
        size, path = found
        if os.fstat(log).st_size > size:
            os.ftruncate(log, size)
        state = _read(path)
        if state is not None:  # others may fill this log before its own stream is attached, and be killed then
            with open(path, "r+b", buffering=0) as file:
                file.write(_STATE.pack(*state[:5], 0, state[6]))

    def forget(self, base: str) -> None:
        """A stream of ours has its log now: if it is another one, then nobody cuts the old one back any more."""
        if self._found:
            self._found = {key: found for key, found in self._found.items() if found[1] != base + _ENDING}


class Spool:
    """Methods may raise OSError, with the spool's path as its file name."""

    __slots__ = ("_base", "_done", "_fd", "_log", "_size", "_state", "at_line_start", "path")

    def __init__(self, base: str) -> None:
        """`base` begins the names of both files. What an earlier agent left there is gone on with."""
        self._base = base
        self.path = base + _SPOOL
        self._log = (0, 0, 0)
        self._done, self.at_line_start = 0, True
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(self.path, flags, 0o600)
        try:
            self._state = os.open(base + _ENDING, flags, 0o600)
        except OSError:
            os.close(self._fd)
            raise
        self._recover()

    @property
    def waiting(self) -> int:
        """Bytes that are not done yet."""
        return self._size - self._done

    def fill(self, pipe: int, count: int) -> int:
        """Moves at most `count` bytes out of a pipe, as `splice` does."""
        try:
            moved = splice(pipe, self._fd, count)
        except BlockingIOError:
            raise
        except OSError as error:
            error.filename = self.path
            raise
        self._size += moved
        return moved

    def peek(self, count: int) -> bytes:
        return os.pread(self._fd, count, self._done) if self.waiting else b""

    def begin(self, identity: tuple[int, int], size: int) -> None:
        """The log is going to be written, and has `size` bytes now."""
        self._log = (*identity, size)
        self._commit(busy=1)

    def commit(self, count: int, at_line_start: bool) -> None:
        """`count` bytes are done: in the log, or given up."""
        self._done += count
        self.at_line_start = at_line_start
        self._commit()

    def trim(self, idle: bool) -> None:
        """Cuts off what is done, if that is worth it. `idle`: nothing more comes for now."""
        if self._done >= _LARGE or (idle and self._done and not self.waiting):
            rest = self.peek(self.waiting)
            if len(rest) > self._done:
                return
            os.pwrite(self._fd, rest, 0)
            reached("spool.moved")
            self._done = 0
            self._commit(cut=len(rest))
            reached("spool.to_be_cut")
            self._cut(len(rest))

    def close(self) -> None:
        """Leaves the files to whoever comes next."""
        os.close(self._fd)
        os.close(self._state)

    def remove(self) -> None:
        self.close()
        unlink(self._base)

    def _recover(self) -> None:
        size = os.fstat(self._fd).st_size
        found = os.pread(self._state, _STATE.size, 0)
        cut = -1
        if len(found) == _STATE.size:
            done, *__, cut, __, at_line_start = _STATE.unpack(found)
            self._done, self.at_line_start = min(done, size), bool(at_line_start)
        else:
            self._commit()  # now, while an error is easy to bear: later ones write to the same page
        if cut >= 0:
            self._cut(min(cut, size))
        else:
            self._size = os.lseek(self._fd, 0, os.SEEK_END)

    def _cut(self, size: int) -> None:
        os.ftruncate(self._fd, size)
        reached("spool.cut")
        self._size = os.lseek(self._fd, 0, os.SEEK_END)
        self._commit()

    def _commit(self, cut: int = -1, busy: int = 0) -> None:
        os.pwrite(self._state, _STATE.pack(self._done, *self._log, cut, busy, self.at_line_start), 0)


def exists(base: str) -> bool:
    return os.path.exists(base + _SPOOL)


def unlink(base: str) -> None:
    """The spool first: a state without a spool says that nothing is left to do, a spool without a state that nothing was done."""
    for ending in (_SPOOL, _ENDING):
        try:
            os.unlink(base + ending)
        except FileNotFoundError:
            pass


def _read(path: str) -> tuple[int, ...] | None:
    try:
        with open(path, "rb", buffering=0) as file:
            found = file.read(_STATE.size)
    except OSError:
        return None
    return _STATE.unpack(found) if len(found) == _STATE.size else None
