# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose line is open in a log that several streams fill. Owns one small file per such log, in the run folder.

A SIGKILL in the midst of a `splice` loses nothing, but it can leave a part of a line in the log and the rest in its pipe. Whoever comes
next has to let that stream go first, so its name is written down whenever another one gets its turn.
"""

from __future__ import annotations

import binascii
import os


class Turns:
    __slots__ = ("_fd", "_folder", "_log", "owner")

    def __init__(self, folder: str, log: bytes) -> None:
        self._log = log
        self._folder = folder
        self._fd = -1
        self.owner: bytes | None = (
            None  # what begins the names of that stream's files, as an earlier agent wrote it down
        )
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            owner, found, __ = os.read(self._fd, 16384).split(b"\0", 2)
            if found == log:
                self.owner = owner
        except (OSError, ValueError):
            pass

    @property
    def _path(self) -> str:
        return os.path.join(self._folder, f"{binascii.crc32(self._log):08x}.turn")

    @property
    def kept(self) -> bool:
        """Whether somebody's name is written down, so that it has to be kept true."""
        return self._fd >= 0

    def given(self, base: str) -> None:
        """This stream writes now, and others might."""
        self.owner = None
        try:
            if self._fd < 0:
                self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            os.pwrite(self._fd, b"\0".join([os.fsencode(base), self._log, b""]), 0)
        except OSError:
            pass  # then a crash right now may cut a line

    def close(self, over: bool) -> None:
        """`over`: nobody fills the log any more."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            if over:
                try:
                    os.unlink(self._path)
                except OSError:
                    pass
