# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Short commands that run beside an instance's program: an `exec://` check, a `stop_command`.

Owns the command's process until it is reaped, and the pipe through which it speaks; of what it says, the last line is part of the
answer when it fails. It runs in the instance's cell, so nothing that it starts outlives the instance.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from typing import Callable

from . import spawn
from .loop import READ, Loop
from .spawn import Launch, Process

_SAID = 4096  # bytes of output that are kept: the last ones
_PATIENCE = 200  # milliseconds in which the kernel ends a process that got SIGKILL, when it can


class Errand:
    """`done(None)` when the command has exited with 0, else `done(why not)`; once, from the loop, unless cancelled before.

    `reaped` is called when its process is no more, in any case. `owner` is the user and group that it runs as, None for our own. Raises
    what prevents the start.
    """

    def __init__(
        self,
        loop: Loop,
        launch: Launch,
        procs: str,
        report: str,
        owner: tuple[int, int] | None,
        seconds: float,
        done: Callable[[str | None], None],
        reaped: Callable[[Errand], None],
    ) -> None:
        self._loop = loop
        self._report = report
        self._done: Callable[[str | None], None] | None = done
        self._reaped = reaped
        self._said = b""
        read, write = os.pipe2(os.O_CLOEXEC)
        try:
            if owner is not None:
                os.fchown(write, *owner)  # or /dev/stderr could not be opened by who runs it
            self.process: Process = spawn.spawn(launch, (write, write), procs, report)
        except BaseException:
            os.close(read)
            raise
        finally:
            os.close(write)
        os.set_blocking(read, False)
        self._output = read
        self._ended = False
        self._limit = loop.after(seconds, lambda: self._late(seconds))
        loop.watch(read, READ, self._hear)
        loop.watch(self.process.pidfd, READ, self.ended)

    def cancel(self) -> None:
        """Ends the command without a word."""
        self._done = None
        self._limit.cancel()
        self._kill()

    def abandon(self) -> None:
        """As `cancel`, for an agent that is about to become another: waits for the end."""
        self.cancel()
        if not self._ended:
            poll = select.poll()
            poll.register(self.process.pidfd, select.POLLIN)
            poll.poll(_PATIENCE)
            self.ended()

    def ended(self) -> None:
        """Its process has ended."""
        if self._ended:
            return
        self._ended = True
        end = spawn.reap(self.process)
        self._hear()
        self._limit.cancel()
        self._loop.unwatch(self.process.pidfd)
        os.close(self.process.pidfd)
        self._shut_up()
        end = spawn.failed_to_execute(self._report, end) or end if end is not None else None
        self._answer(None if end is not None and end.code == 0 else self._why(str(end or "ended unseen")))
        self._reaped(self)

    def _why(self, how: str) -> str:
        lines = self._said.decode("utf-8", "replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"{how}: {last}" if last else how

    def _late(self, seconds: float) -> None:
        self._kill()
        self._answer(self._why(f"took longer than {seconds:g} s"))

    def _answer(self, answer: str | None) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(answer)

    def _kill(self) -> None:
        if not self._ended:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def _hear(self) -> None:
        try:
            heard = os.read(self._output, 65536) if self._output >= 0 else b""
        except BlockingIOError:
            return
        self._said = (self._said + heard)[-_SAID:]
        if not heard:
            self._shut_up()

    def _shut_up(self) -> None:
        if self._output >= 0:
            self._loop.unwatch(self._output)
            os.close(self._output)
            self._output = -1
