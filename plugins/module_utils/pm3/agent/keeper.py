# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The keeper: does systemd's part where there is no service manager. Parent of the agent, subreaper, holder of descriptors; nothing else.

It speaks systemd's protocol, so that the agent has one code path: NOTIFY_SOCKET (an abstract address, believed only when the kernel
says that the agent's own pid sent it) with READY, FDSTORE, FDNAME and FDSTOREREMOVE; on a start LISTEN_PID, LISTEN_FDS and
LISTEN_FDNAMES with the descriptors from 3 on. An agent that ends with status 0, or with `TAKEN`, ends the keeper; one that ends
otherwise is started again. SIGTERM and SIGINT ask the agent for the orderly shutdown, SIGHUP for its upgrade in place.

Processes of an agent that died become the keeper's children, and stay that when the next agent has adopted them. How they end is
written, *before* they are reaped, into a memfd that every agent gets as the descriptor named `ENDS_NAME`: 1024 records of 64 bytes,
the newest over the oldest, each a line `pid starttime status` (starttime as in /proc/PID/stat, status as from wait), padded with
spaces. So an agent whose pidfd says "ended" finds either the zombie in /proc or, after that, the record (`ends`).

Whoever starts a keeper may give it the writing end of a pipe, PM3_READY_FD=N. It gets `ready` and a newline when the agent is, or
`failed: ` and why, to the end of the file. The keeper itself goes into the background at once. Without such a
pipe the command that a person or a boot script has typed waits for that, and its exit status tells. With `--foreground` the
keeper stays where it is, and only a failure is told, on standard error.

It must stay small, for it does nothing all day: hence no `typing`, and the C halves of `signal` and `socket`, whose public halves
bring `enum` and `selectors`, 0.9 MB, for prettier constants.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]
import _socket as socket
import fcntl
import os
import resource
import select
import sys
import time

TAKEN = 69  # an agent's exit status, EX_UNAVAILABLE: another one serves its data dir, so that to start it again is of no use
ENDS_NAME = "keeper-ends"  # with a hyphen, so that no spawn id is ever the same
FOREGROUND = "--foreground"  # for who starts and watches it: the first process of a container, or an init system
READY_VARIABLE = "PM3_READY_FD"
OPEN_FILES = "PM3_OPEN_FILES"  # the soft limit that an agent's programs get, where its own was raised before it began
_READY = "ready\n"
_RECORD, _RECORDS = 64, 1024
_FIRST_PAUSE, _LONGEST_PAUSE, _STABLE = 0.1, 5.0, 10.0  # seconds
_STOP_TRIES = 3  # agents that may crash in an orderly shutdown before it is given up
_NAMES_LIMIT = 120_000  # bytes of LISTEN_FDNAMES: with more than 128 KiB in one string no agent could be started again
_LOG_LIMIT = 1 << 20
_DESCRIPTORS = 253  # that one message can carry
_CREDENTIALS = 12  # bytes of struct ucred
_SPACE = socket.CMSG_SPACE(4 * _DESCRIPTORS) + socket.CMSG_SPACE(_CREDENTIALS)
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER


def main(data_dir: str, command: list[str] | None = None, detach: bool = True) -> int:
    """Keeps an agent for `data_dir` until it ends by itself. Returns the exit status; at once in the foreground half if it detaches."""
    data_dir = os.path.abspath(data_dir)
    command = command or [sys.executable, "-I", "-S", os.path.join(_package(), "__main__.py"), "--daemon"]
    number = os.environ.pop(READY_VARIABLE, "")
    ready = _Ready(int(number) if number.isdecimal() else -1)
    try:
        os.makedirs(data_dir, 0o700, exist_ok=True)
        lock = _locked(os.path.join(data_dir, "keeper.lock"))
    except OSError as error:
        ready.tell(f"failed: {error}\n")
        sys.stderr.write(f"pm3: {error}\n")
        return 1
    if detach and FOREGROUND in sys.argv:
        if not number:
            ready = _Ready(os.dup(2), only_failure=True)
    elif detach:
        heard, said = (-1, -1) if number else os.pipe()
        if os.fork():
            return _heard(heard, said)  # the lock lives on in the child
        if not number:
            os.close(heard)
            ready = _Ready(said)
        os.setsid()
    os.chdir("/")
    nothing = os.open("/dev/null", os.O_RDWR)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.pwrite(lock, b"%d\n" % os.getpid(), 0)
    _become_subreaper()
    keeper = Keeper(data_dir, command, ready)
    status = keeper.run()
    # Before anybody hears that it failed: who then tries again must not find a keeper that is about to end.
    os.close(lock)
    ready.tell(keeper.failure)
    return status


def _heard(answers: int, said: int) -> int:
    """The exit status of the half in the foreground. Where nobody else listens it waits for what there is to say, and passes that on."""
    if answers < 0:
        return 0
    os.close(said)
    with os.fdopen(answers, "rb") as pipe:
        text = pipe.read().decode(errors="replace")
    if text == _READY:
        return 0
    sys.stderr.write(f"pm3: {text or 'the keeper ended without a word'}")
    return 1


def _become_subreaper() -> None:
    import ctypes  # only here: a keeper that is refused needs none

    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


def ends(fd: int) -> dict[tuple[int, int], int]:
    """What the keeper has written down: {(pid, starttime): status}, from the descriptor named `ENDS_NAME`."""
    lines = os.pread(fd, _RECORD * _RECORDS, 0).split(b"\n")
    facts = [tuple(map(int, line.split())) for line in lines if line]
    return {(pid, start): status for pid, start, status in facts}


class Keeper:
    def __init__(self, data_dir: str, command: list[str], ready: _Ready) -> None:
        self._log_path = os.path.join(data_dir, "agent.log")
        self._command = command
        self._starter = ready
        self._store: dict[str, list[int]] = {}
        self._ends = os.memfd_create("pm3-ends", os.MFD_CLOEXEC)
        self._ended = 0  # records written
        self._agent = 0  # its pid; 0 while there is none
        self._ready = False  # the present agent
        self._was_ready = False  # any agent so far
        self._started = 0.0
        self._restart_at = 0.0
        self._pause = _FIRST_PAUSE / 2
        self._stops = 0  # times that somebody asked us to stop
        self._stop_crashes = 0
        self._result: int | None = None
        self.failure = ""  # why no agent ever was ready, once that is so
        self._limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (self._limit[1], self._limit[1]))
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._notify.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._notify.bind("")  # the kernel chooses a free abstract address
        self._signals: list[int] = []
        self._wake, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # whatever whoever started us was doing
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda number, _frame: self._signals.append(number))

    def run(self) -> int:
        news = select.poll()
        news.register(self._notify.fileno(), select.POLLIN)
        news.register(self._wake, select.POLLIN)
        self._start()
        while self._result is None:
            patience = None if self._agent else max(0.0, self._restart_at - time.monotonic()) * 1000 + 1
            news.poll(patience)
            try:
                os.read(self._wake, 4096)
            except BlockingIOError:
                pass
            signals, self._signals = self._signals, []
            self._receive()  # after the signals were taken: who was told that the agent is ready may send one at once
            self._obey(signals)
            self._reap()
            if self._result is None and not self._agent and time.monotonic() >= self._restart_at:
                self._start()
        return self._result

    # The agent

    def _start(self) -> None:
        self._log_start = _log_to(self._log_path)
        self._ready = False
        self._started = time.monotonic()
        try:
            self._agent = os.fork()
        except OSError as error:  # no room for another process just now
            self._later(f"no agent can be started: {error.strerror}")
            return
        if self._agent == 0:
            try:
                self._become_agent()
            except BaseException as error:
                _say(f"cannot start {self._command[0]}: {error}")
            finally:
                os._exit(127)

    def _become_agent(self) -> None:
        os.setsid()  # what is typed at a keeper in the foreground is for the keeper
        held = [(ENDS_NAME, self._ends)] + [(name, fd) for name, fds in self._store.items() for fd in fds]
        environment = {
            **os.environ,
            "PM3_DATA_DIR": os.path.dirname(self._log_path),
            # Our own soft limit stays: with the usual one of 1024 a program that has a thousand descriptors already cannot even be loaded.
            OPEN_FILES: str(self._limit[0]),
            "NOTIFY_SOCKET": "@" + self._notify.getsockname()[1:].decode(),
            "LISTEN_PID": str(os.getpid()),
            "LISTEN_FDS": str(len(held)),
            "LISTEN_FDNAMES": ":".join(name for name, _fd in held),
        }
        # First out of the way, then into place, or one would be overwritten before it is moved. Our own are overwritten.
        aside = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3 + len(held)) for _name, fd in held]
        for place, fd in enumerate(aside, 3):
            os.dup2(fd, place)
        _become_subreaper()  # for the agent, which it stays by exec: so that needs no ctypes, 0.6 MB
        os.execve(self._command[0], self._command, environment)

    def _agent_ended(self, pid: int, status: int) -> None:
        code = os.waitstatus_to_exitcode(status)
        how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        self._agent = 0
        if not self._was_ready:
            self.failure = f"failed: the agent {how} before it was ready\n{_tail(self._log_path, self._log_start)}"
            self._result = 0 if self._stops and code == 0 else 1
            return
        if code in (0, TAKEN):  # it has ended in order, or somebody else keeps an agent here now
            self._result = code
            return
        if self._stops:
            self._stop_crashes += 1
            if self._stop_crashes == _STOP_TRIES:
                self._result = 1
        if self._result is None:
            self._later(f"the agent (pid {pid}) {how}")
        else:
            _say(f"the agent {how}")

    def _later(self, why: str) -> None:
        lasted = time.monotonic() - self._started
        self._pause = _FIRST_PAUSE if lasted >= _STABLE else min(2 * self._pause, _LONGEST_PAUSE)
        self._restart_at = time.monotonic() + self._pause
        _say(f"{why}; it is started again in {self._pause:g} s")

    # What it says

    def _receive(self) -> None:
        """Takes all messages that wait."""
        flags = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
        while True:
            try:
                text, extra, found, _address = self._notify.recvmsg(8192, _SPACE, flags)
            except OSError:
                return
            sender, fds = 0, []
            for _level, kind, data in extra:
                words = [int.from_bytes(data[at : at + 4], sys.byteorder) for at in range(0, len(data) - 3, 4)]
                if kind == socket.SCM_RIGHTS:
                    fds += words
                elif kind == socket.SCM_CREDENTIALS:
                    sender = words[0]
            if sender and sender == self._agent:
                if found & socket.MSG_CTRUNC:
                    _say("out of descriptors: some that the agent wanted to store are lost")
                self._told(dict(line.partition("=")[::2] for line in text.decode(errors="replace").split("\n")), fds)
            else:
                _close(fds)

    def _told(self, fields: dict[str, str], fds: list[int]) -> None:
        name = fields.get("FDNAME", "stored")
        if fields.get("FDSTORE") == "1" and fds and self._has_room(name, len(fds)):
            self._store.setdefault(name, []).extend(fds)
        else:
            _close(fds)  # also the answer to BARRIER=1
        if fields.get("FDSTOREREMOVE") == "1":
            _close(self._store.pop(name, []))
        if fields.get("READY") == "1":
            self._ready = self._was_ready = True
            self._starter.tell(_READY)
            if self._stops:
                os.kill(self._agent, signal.SIGTERM)

    def _has_room(self, name: str, count: int) -> bool:
        used = sum((len(one) + 1) * len(fds) for one, fds in self._store.items())
        good = name.isascii() and name.isprintable() and ":" not in name and name not in ("", ENDS_NAME)
        if not good or used + (len(name) + 1) * count > _NAMES_LIMIT:
            _say(
                f"refused to store descriptors as {name[:40]!r}: "
                + ("too many names" if good else "no name for descriptors")
            )
            return False
        return True

    # What others say

    def _obey(self, signals: list[int]) -> None:
        for number in signals:
            if number in (signal.SIGTERM, signal.SIGINT):
                self._stops += 1
                self._restart_at = 0.0  # only an agent can stop what runs
                # Before it is ready it may not know the signal and just die; so then only who insists gets that.
                if self._agent and (self._ready or self._stops > 1):
                    os.kill(self._agent, signal.SIGTERM)
            elif number == signal.SIGHUP and self._agent and self._ready:
                os.kill(self._agent, signal.SIGHUP)

    # Who ends

    def _reap(self) -> None:
        while True:
            try:
                news = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if news is None:
                return
            pid, status = news.si_pid, news.si_status
            if news.si_code == os.CLD_EXITED:
                status <<= 8
            elif news.si_code == os.CLD_DUMPED:
                status |= 0x80
            if pid == self._agent:
                self._receive()  # its last words, while its pid is still its own
            else:
                self._write_down(pid, status)
            os.waitpid(pid, 0)
            if pid == self._agent:
                self._agent_ended(pid, status)

    def _write_down(self, pid: int, status: int) -> None:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            start = int(stat.read().rpartition(b")")[2].split()[19])
        record = (b"%d %d %d" % (pid, start, status)).ljust(_RECORD - 1) + b"\n"
        os.pwrite(self._ends, record, self._ended % _RECORDS * _RECORD)
        self._ended += 1


class _Ready:
    """The pipe to whoever started the keeper, if there is one. It is told one thing, once."""

    def __init__(self, fd: int, only_failure: bool = False) -> None:
        self._fd = fd
        self._only_failure = only_failure
        try:
            os.set_inheritable(self._fd, False)
        except OSError:
            self._fd = -1

    def tell(self, text: str) -> None:
        if self._fd >= 0:
            try:
                if not self._only_failure or text != _READY:
                    os.write(self._fd, text.encode(errors="surrogateescape"))
            except OSError:
                pass  # nobody waits any more
            os.close(self._fd)
            self._fd = -1


def _package() -> str:
    """Not its real path: through the link `current` the next start is a start of the version that is then installed."""
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _locked(path: str) -> int:
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        from ..wire import locks, paths  # only a keeper that is refused needs them

        pid = locks.holder(lock) or "not yet known"
        os.close(lock)
        stop = paths.stop(os.path.dirname(path))
        raise OSError(
            f"another keeper (pid {pid}) holds {path}; this ends it and its agent, with all that runs: {stop}"
        ) from None
    os.ftruncate(lock, 0)  # the pid of an earlier one
    return lock


def _log_to(path: str) -> int:
    """Makes `path` our standard output and error, and thereby the next agent's. Gives the place where that one's words will begin."""
    try:
        if os.path.exists(path) and os.stat(path).st_size > _LOG_LIMIT:
            os.replace(path, path + ".1")
        log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        log = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)  # no reason not to keep an agent
    size = os.fstat(log).st_size
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    return size


def _tail(path: str, start: int) -> str:
    """The last lines in `path` that were written from `start` on."""
    try:
        with open(path, "rb") as log:
            log.seek(max(start, os.fstat(log.fileno()).st_size - 2000))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-15:])
    except OSError:
        return ""


def _say(text: str) -> None:
    try:
        os.write(2, f"pm3 keeper: {text}\n".encode(errors="replace"))
    except OSError:
        pass  # a full disk


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
