# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent as a command sees it: reached through the client, and started first where none runs and none is managed.

Owns the spawning of a keeper in user scope (spec: pm3.md, section 7), which puts itself and the agent into the background, and
nothing of their later life. The keeper holds no descriptor of ours but a pipe, through which it tells when the agent answers.
"""

from __future__ import annotations

import fcntl
import os
import select
import sys
import time
from typing import Any, Callable, NoReturn, TypeVar

from ..wire import locks, paths
from ..wire.client import Answers, Client, ClientError
from ..wire.messages import Document

_PATIENCE = 60  # seconds until an agent that says nothing is given up; it may have a thousand instances to take back
_READY_FD = 3

Answer = TypeVar("Answer")


class Agent:
    def __init__(self, data_dir: str) -> None:
        self.data_dir = data_dir
        self._client = Client(data_dir)

    def request(self, document: Document, on_row: Callable[[Document], Any] | None = None) -> Document:
        return self._started(lambda: self._client.request(document, on_row))

    def stream(self, document: Document) -> Answers:
        return self._started(lambda: self._client.stream(document))

    def request_if_running(self, document: Document) -> Document | None:
        """As `request`; None where no agent runs."""
        try:
            return self._client.request(document)
        except ClientError as error:
            if error.reason != "absent":
                raise
            return None

    def _started(self, ask: Callable[[], Answer]) -> Answer:
        try:
            return ask()
        except ClientError as error:
            # Absent means that nothing was sent, so asking again asks once.
            if error.reason != "absent" or paths.managed(self.data_dir) is not None:
                raise
        start(self.data_dir)
        return ask()


def start(data_dir: str) -> None:
    """Starts an agent for `data_dir` and returns when it answers. Of commands that do so at once, one does (W31)."""
    try:
        os.makedirs(data_dir, mode=0o700, exist_ok=True)
        lock = os.open(os.path.join(data_dir, "start.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        cure = "; name another folder in PM3_DATA_DIR" if isinstance(error, PermissionError) else ""
        raise ClientError("failed", f"cannot keep an agent in {data_dir}: {error.strerror or error}{cure}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _answers(data_dir) and not _outlasts_keeper(data_dir):
            _start_keeper(data_dir)
    finally:
        os.close(lock)


def _answers(data_dir: str) -> bool:
    try:
        Client(data_dir).request({"type": "hello"})
    except ClientError as error:
        if error.reason != "absent":
            raise
        return False
    return True


def _outlasts_keeper(data_dir: str) -> bool:
    """Waits while there is a keeper whose agent does not answer: both are ending (W33), or it starts its agent anew.

    False when no keeper is left, True when the agent answers.
    """
    if keeper_of(data_dir) is None:
        return False
    from ..agent.inotify import CREATE, MODIFY, Inotify

    deadline = time.monotonic() + _PATIENCE
    news = Inotify()
    try:
        news.watch(os.fsencode(data_dir), CREATE | MODIFY)  # an agent writes its pid file when it answers
        while True:
            keeper = keeper_of(data_dir)
            if keeper is None:
                return False
            if _answers(data_dir):
                return True
            _wait_for_end(keeper, news.fd, deadline)
            news.read()
    finally:
        news.close()


def _wait_for_end(pid: int, news: int, deadline: float) -> None:
    """Returns when the process ends, or when there is something to read from `news`."""
    try:
        ended = os.pidfd_open(pid)
    except ProcessLookupError:
        return  # it has ended by now
    except OSError as error:
        raise ClientError(
            "failed", f"the pm3 agent is just ending or being started ({error.strerror}): try again"
        ) from None
    try:
        if not select.select([ended, news], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise ClientError(
                "timeout", f"the pm3 agent does not answer, and its keeper (pid {pid}) goes on: try again later"
            )
    finally:
        os.close(ended)


def keeper_of(data_dir: str) -> int | None:
    """The pid of the keeper that holds `data_dir`, or None."""
    try:
        lock = os.open(os.path.join(data_dir, "keeper.lock"), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return locks.holder(lock) or os.getpid()  # it will write it: news, and our own end is none
    finally:
        os.close(lock)


def program() -> list[str]:
    """This program, as its daemons are begun."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return [sys.executable, "-I", "-S", os.path.join(package, "__main__.py")]


def at_boot(data_dir: str) -> str:
    """What a host without systemd has to run at boot. With `--foreground` behind it, it stays the child of who runs it."""
    import shlex  # a millisecond, for words that are seldom said

    words = " ".join(shlex.quote(word) for word in program())
    return f"PM3_DATA_DIR={shlex.quote(data_dir)} {words} --keeper"


def _start_keeper(data_dir: str) -> None:
    command = [*program(), "--keeper"]
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        _become(command, {**os.environ, "PM3_DATA_DIR": data_dir, "PM3_READY_FD": str(_READY_FD)}, write)
    os.close(write)
    try:
        told = _told(read, data_dir)
    finally:
        os.close(read)
    os.waitpid(child, 0)  # the half of the keeper that stayed in the foreground
    if told != "ready":
        reason = (
            told[len("failed: ") :] if told.startswith("failed: ") else told or f"it ended; see {data_dir}/agent.log"
        )
        raise ClientError("failed", f"the pm3 agent could not be started: {reason}")


def _become(command: list[str], environ: dict[str, str], ready: int) -> NoReturn:
    try:
        os.chdir("/")  # the agent pins no folder of the user's
        os.dup2(ready, _READY_FD)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        for entry in os.listdir("/proc/self/fd"):  # what the shell left open (a lock, a pipe) is not the agent's
            if int(entry) > _READY_FD:
                _close_at_exec(int(entry))
        os.set_inheritable(_READY_FD, True)
        os.execve(command[0], command, environ)
    except BaseException as error:  # nothing may go on in this copy of the command
        os.write(_READY_FD, f"failed: cannot run {command[0]}: {error}".encode("utf-8", "backslashreplace"))
    finally:
        os._exit(127)


def _close_at_exec(fd: int) -> None:
    try:
        os.set_inheritable(fd, False)
    except OSError:
        pass  # the descriptor of the listing itself, closed by now


def _told(ready: int, data_dir: str) -> str:
    """What the keeper has to say, to the end of the file."""
    told = b""
    while True:
        if not select.select([ready], [], [], _PATIENCE)[0]:
            raise ClientError(
                "timeout", f"the pm3 agent was started but is not ready after {_PATIENCE} s; see {data_dir}/agent.log"
            )
        more = os.read(ready, 4096)
        if not more:
            return told.decode("utf-8", "replace").strip()
        told += more
