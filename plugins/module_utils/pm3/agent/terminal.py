# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A pseudo-terminal for a program that wants one as its stdout. Owns the bridge from its master to the FIFO of that stream.

The pump's thread moves bytes from the master into the FIFO with `splice`, and from there they go the way of all output. Nobody here
makes a terminal the controlling one of a session: it is opened with O_NOCTTY, and the program gets an open descriptor.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct

from .pipes import open_write, splice

_SET_WINDOW = 0x5414  # TIOCSWINSZ, but for a few rare machines
_ROWS, _COLUMNS = 24, 80
_BUFFERED = 128 * 1024  # bytes: a terminal buffers no more than 64 KiB and a line
_ATOMIC = select.PIPE_BUF  # bytes that a pipe that is writable takes at once


def make(owner: tuple[int, int] | None) -> tuple[int, int, str]:
    """Master and slave, and the slave's name."""
    master, slave = os.openpty()
    try:
        os.set_blocking(master, False)
        try:
            fcntl.ioctl(slave, _SET_WINDOW, struct.pack("HHHH", _ROWS, _COLUMNS, 0, 0))
        except OSError:
            pass
        if owner is not None:
            os.fchown(slave, owner[0], -1)
        return master, slave, os.ttyname(slave)
    except OSError:
        os.close(master)
        os.close(slave)
        raise


class Bridge:
    """From a master to the FIFO that is read as `pipe`. Used by the pump's thread alone."""

    __slots__ = ("_reads", "_target", "fd", "limit")

    def __init__(self, master: int, pipe: int) -> None:
        self.fd = master
        self.limit = _BUFFERED  # bytes that the drain may still move
        self._target = open_write(pipe)  # from now on until the end, the FIFO has no end of file
        self._reads = False  # whether this kernel cannot splice from a terminal (Linux 5.10)

    def turn(self, count: int) -> int | None:
        """Moves at most `count` bytes. None: nothing to be moved for now, or the FIFO is full. 0: the terminal is nobody's any more."""
        if self._target < 0:
            return 0
        try:
            if not self._reads:
                return splice(self.fd, self._target, count)
            return self._copy(count)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno == errno.EINVAL and not self._reads:
                self._reads = True
                return self.turn(count)
            if error.errno == errno.EIO:
                return 0
            raise

    def close(self) -> None:
        """The FIFO gets its end of file. The master stays open."""
        if self._target >= 0:
            os.close(self._target)
            self._target = -1

    def _copy(self, count: int) -> int:
        """Reads no more than the FIFO takes at once."""
        writable = select.poll()
        writable.register(self._target, select.POLLOUT)
        if not writable.poll(0):
            raise BlockingIOError
        return os.write(self._target, os.read(self.fd, min(count, _ATOMIC)))
