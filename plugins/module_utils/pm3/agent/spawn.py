# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bringing processes into the world, and learning how they left it. Owns fork, exec and wait.

Every instance starts in a session of its own, through a small `sh` that does what must happen between fork and exec (enter the
cell and the folder, take the limit of open files back to what the agent was given, set the definition's own limits) and then becomes
the program. So `posix_spawn` is enough, whose cost does not grow with the agent's memory, and `subprocess` with the megabyte that it
brings is not needed. What goes wrong in the `sh` is left in a file, so that it can never be mistaken for the program's own exit code,
nor be lost with the agent.

Nothing is closed for a child: every descriptor of ours is close-on-exec (`close_on_exec` sees to those that we were born with).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import signal
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from ..model.life import Cause, End
from ..model.slots import slotted
from .keeper import OPEN_FILES
from .points import reached

# dash runs the EXIT trap when exec fails; bash goes on to the next line if told to, and then runs it too. PWD and the like are the
# shell's own additions to an environment that is meant to be exactly what the definition says.
_TRAMPOLINE = """
cell=$1 report=$2 cwd=$3 umask=$4 files=$5 limits=$6 nice=$7 sockets=$8; shift 8
trap 'echo >"$report"' EXIT
[ -z "$BASH_VERSION" ] || shopt -s execfail
[ -z "$cell" ] || echo 0 >"$cell" || exit 125
cd -P -- "$cwd" 2>/dev/null || exit 122
[ -z "$umask" ] || umask "$umask"
unset PWD OLDPWD SHLVL _
ulimit -S -n "$files"
[ -z "$limits" ] || $limits --pid $$ || exit 124
[ -z "$nice" ] || $nice -p $$ >/dev/null || exit 123
[ "$sockets" = 0 ] || export LISTEN_PID=$$
exec "$@"
"""
_REASONS = {
    122: "its cwd cannot be entered",
    123: "its nice value could not be set",
    124: "its limits could not be set",
    125: "its cgroup could not be entered",
    126: "the program cannot be executed",
    127: "the program or its interpreter does not exist",
}
_SHELL = "/bin/sh"
_FIRST = 3  # descriptor of those that are handed to a program (sd_listen_fds(3))
# Python ignores some that a program expects to end it, and whoever first woke the agent may have ignored others, or held them back.
_RESTORED = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
PIDFD_GET_INFO, PIDFD_INFO_EXIT = 0xC040FF0B, 1 << 3  # linux/pidfd.h
_OPEN_FILES = int(os.environ.pop(OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[0]))  # before raise_limit


_OPEN_FILES_EACH = 5  # descriptors of a running instance: its pidfd, two pipes, two logs
_OPEN_FILES_OWN = 64  # the agent's own, with some clients
NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)


class SpawnError(Exception):
    """The process could not be started; the text says why."""


@slotted
@dataclass(frozen=True)
class Process:
    """A process that cannot be confused with another: pids are used again, start times (in clock ticks since boot) are not."""

    pid: int
    start_time: int
    pidfd: int  # -1: it has ended, and nobody kept one; what it left behind is known by its number all the same


@dataclass(frozen=True)
class Launch:
    """What is to run, and as what."""

    argv: Sequence[str]
    env: dict[str, str]
    cwd: str
    switch: Sequence[str] = ()  # the words that make it another user's
    umask: int = -1  # -1: the agent's own
    limits: str = ""  # the command that sets the limits of the process whose --pid follows
    nice: str = ""  # ... and the one that sets its priority, by -p


def spawn(launch: Launch, output: tuple[int, int], procs: str, report: str, sockets: Sequence[int] = ()) -> Process:
    """Starts a program. `output` are its stdout and stderr, `procs` the file by which it enters its cell ("" for none), `report` the
    file that the trampoline leaves when it fails, `sockets` what it gets as its descriptors from 3 on. Raises `SpawnError`."""
    name = launch.argv[0]
    program = _program(name, launch.env.get("PATH", os.defpath), launch.cwd)
    umask = f"{launch.umask:o}" if launch.umask >= 0 else ""
    before = [procs, report, launch.cwd, umask, str(_OPEN_FILES), launch.limits, launch.nice, str(len(sockets))]
    aside: list[int] = []
    try:
        # First out of the way of where they go, or one would be overwritten before it is moved.
        aside += (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST + len(sockets)) for fd in sockets)
        pid = os.posix_spawn(  # pylint: disable=ansible-bad-function
            _SHELL,
            [_SHELL, "-c", _TRAMPOLINE, "pm3", *before, *launch.switch, program, *launch.argv[1:]],
            launch.env,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, output[0], 1),
                (os.POSIX_SPAWN_DUP2, output[1], 2),
                *((os.POSIX_SPAWN_DUP2, fd, place) for place, fd in enumerate(aside, _FIRST)),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=_RESTORED,
        )
    except (OSError, ValueError) as error:
        raise SpawnError(f"cannot start {name}: {_reason(error)}") from error
    finally:
        for fd in aside:
            os.close(fd)
    reached("spawn.forked")
    try:
        return Process(pid, start_time(pid) or 0, os.pidfd_open(pid))
    except OSError as error:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        raise SpawnError(f"cannot watch {name}: {_reason(error)}") from error


def reap(process: Process) -> End | None:
    """How our child ended, once its pidfd is readable. None when the kernel gives its status to another: it is not our child."""
    try:
        info = os.waitid(os.P_PIDFD, process.pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return None
    if info is None:
        return None
    return ended(
        info.si_status if info.si_code == os.CLD_EXITED else None,
        None if info.si_code == os.CLD_EXITED else info.si_status,
    )


def end_of_stranger(pidfd: int) -> End | None:
    """How a process that is not our child ended, from a pidfd that was open before it was reaped (PIDFD_GET_INFO, Linux 6.15)."""
    try:
        info = fcntl.ioctl(pidfd, PIDFD_GET_INFO, struct.pack("Q56x", PIDFD_INFO_EXIT))
    except OSError:
        return None
    mask, status = struct.unpack("Q52xi", info)
    return from_wait_status(status) if mask & PIDFD_INFO_EXIT else None


def end_of_zombie(process: Process) -> End | None:
    """How a process ended that its own parent has not reaped yet (proc(5), the last field of stat)."""
    fields = stat(process.pid)
    if fields is None or fields[0] != b"Z" or int(fields[19]) != process.start_time:
        return None
    return from_wait_status(int(fields[-1]))


def from_wait_status(status: int) -> End:
    """wait(2)'s status word."""
    return ended(None, os.WTERMSIG(status)) if os.WIFSIGNALED(status) else ended(os.WEXITSTATUS(status), None)


def ended(code: int | None, by_signal: int | None) -> End:
    return End(Cause.EXIT if by_signal is None else Cause.SIGNAL, code, by_signal)


def failed_to_execute(report: str, end: End) -> End | None:
    """The true end of a process of which only the trampoline ever ran; None when the program itself did. Removes the report."""
    if end.code not in (2, *_REASONS):
        return None
    try:
        os.unlink(report)
    except FileNotFoundError:
        return None
    return End(Cause.SPAWN, message=_REASONS.get(end.code or 0, _REASONS[125]))


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when there is none (proc(5), field 22 of stat)."""
    fields = stat(pid)
    return int(fields[19]) if fields is not None else None


def is_running(pid: int) -> bool:
    """Whether there is such a process; a zombie does not run."""
    fields = stat(pid)
    return fields is not None and fields[0] not in b"ZX"


def variables() -> dict[str, str]:
    """What an upgrade in place adds to its environment, so that our children's limit stays what it is."""
    return {OPEN_FILES: str(_OPEN_FILES)}


def close_on_exec() -> None:
    """No program gets a descriptor that whoever started the agent had left open."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            with contextlib.suppress(OSError):  # the one by which the folder was read
                os.set_inheritable(int(name), False)


def stat(pid: int) -> list[bytes] | None:
    """The fields of /proc/PID/stat from the third, the state, on."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except OSError as error:
        if error.errno in NO_DESCRIPTOR:
            raise  # that is no answer, least of all that there is none
        return None


def raise_limit() -> None:
    """Lets the agent itself open as many files as it may: three for each instance. Its children keep what it was given."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def check_room(running: int) -> None:
    """Whether there are descriptors for one more process beside those that run, and for what the agent needs itself to end them again.

    Raises `SpawnError`.
    """
    limit, needed = resource.getrlimit(resource.RLIMIT_NOFILE)[0], open_files(running + 1)
    if needed > limit != resource.RLIM_INFINITY:
        raise SpawnError(
            f"too many open files: the agent may have {limit}, and with one more process it needs {needed};"
            " raise LimitNOFILE of its service, or ulimit -Hn"
        )


def open_files(running: int) -> int:
    """The descriptors that the agent needs when so many processes run."""
    return _OPEN_FILES_OWN + _OPEN_FILES_EACH * running


def _program(name: str, path: str, cwd: str) -> str:
    """Where the program is, looked up as its own environment says. Raises `SpawnError`."""
    if not os.path.isdir(cwd):
        raise SpawnError(f"cwd {cwd} is not a directory on this host")
    places = [cwd] if "/" in name else [os.path.join(cwd, folder) for folder in path.split(":")]
    found = [os.path.join(place, name) for place in places if os.path.isfile(os.path.join(place, name))]
    for program in found:
        if os.access(program, os.X_OK):
            return program
    if found:
        raise SpawnError(f"cannot start {name}: {found[0]} is not executable")
    raise SpawnError(f"cannot start {name}: not found" + ("" if "/" in name else f" in PATH {path}"))


def _reason(error: BaseException) -> str:
    return (os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)).lower()
