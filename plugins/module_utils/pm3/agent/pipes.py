# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the kernel can do with pipes: move what is in them, and look at it without taking it. Owns nothing but a scratch pipe.

`splice` moves bytes inside the kernel, so that a SIGKILL takes effect before or after, not in its midst. `peek` may be called from
one thread only.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import sys
from functools import lru_cache
from typing import Any

LARGE = 256 * 1024  # bytes of an enlarged pipe: more was no faster
_SET_PIPE_SIZE, _GET_PIPE_SIZE = 1031, 1032  # F_SETPIPE_SZ, F_GETPIPE_SZ: named in Python 3.10
_NONBLOCK = 2  # SPLICE_F_NONBLOCK


@lru_cache(maxsize=1)
def _libc() -> Any:
    import ctypes  # not before somebody needs it: 600 KB

    libc = ctypes.CDLL(None, use_errno=True)
    libc.splice.restype = libc.tee.restype = ctypes.c_ssize_t
    libc.splice.argtypes = (
        *(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p),
        *(ctypes.c_size_t, ctypes.c_uint),
    )
    libc.tee.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_uint)
    return libc


def _called(name: str, *arguments: Any) -> int:
    import ctypes

    while True:
        result: int = getattr(_libc(), name)(*arguments)
        if result >= 0:
            return result
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))


if sys.version_info >= (3, 10):

    def splice(source: int, target: int, count: int) -> int:
        """Moves at most `count` bytes. 0: end of file. BlockingIOError: nothing is there, and somebody can still write it."""
        return os.splice(source, target, count, flags=_NONBLOCK)

else:

    def splice(source: int, target: int, count: int) -> int:
        """Moves at most `count` bytes. 0: end of file. BlockingIOError: nothing is there, and somebody can still write it."""
        return _called("splice", source, None, target, None, count, _NONBLOCK)


def peek(pipe: int) -> bytes:
    """The foremost bytes of a pipe, at most `LARGE`, which stay in it. b"": end of file. BlockingIOError: it is empty."""
    scratch_read, scratch_write = scratch()
    left = _called("tee", pipe, scratch_write, LARGE, _NONBLOCK)
    found = []
    while left:
        found.append(os.read(scratch_read, left))
        left -= len(found[-1])
    return b"".join(found)


def is_full(pipe: int) -> bool:
    """Whether a writer has to wait. Tells it exactly, whatever the pipe's size and however its bytes lie in its pages."""
    end = open_write(pipe)
    try:
        writable = select.poll()
        writable.register(end, select.POLLOUT)
        return not any(events & select.POLLOUT for __, events in writable.poll(0))
    finally:
        os.close(end)


def open_write(pipe: int) -> int:
    """A write end of a FIFO that we read, also when its name is gone."""
    return os.open(f"/proc/self/fd/{pipe}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def capacity(pipe: int) -> int:
    return fcntl.fcntl(pipe, _GET_PIPE_SIZE)


def enlarge(pipe: int) -> None:
    try:
        fcntl.fcntl(pipe, _SET_PIPE_SIZE, LARGE)
    except OSError:
        pass  # beyond what this user may hold in pipes: it works as it is, only slower


@lru_cache(maxsize=1)
def null() -> int:
    return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


@lru_cache(maxsize=1)
def scratch() -> tuple[int, int]:
    pair = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    enlarge(pair[0])
    return pair
