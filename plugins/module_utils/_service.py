# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What keeps the agent running on a host: systemd (the host's or the user's), or a keeper of our own where there is none.

Both are told the same few things: which files they need, start, reload (the upgrade in place) and stop. What is to happen is decided
elsewhere; here it is done. Private to this collection.
"""

from __future__ import annotations

import os
import select
import shlex
import subprocess
import time
import typing as t

from ._place import Place, Refused, Unanswered
from .pm3.wire import units
from .pm3.wire.units import File

if t.TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

READY_SECONDS = 60.0  # for an agent to say that it is up: it adopts what runs first
STOP_SECONDS = 600.0  # for one to end: it stops all instances, each in its own time
LINES = 20  # of the agent's own log, in messages

UNIT, CELLS = units.SERVICE, units.CELLS


class Trouble(Exception):
    """The service manager could not do it; the whole sentence for the user."""


class Step(t.NamedTuple):
    """Something to do, and what the result calls it."""

    words: str
    do: t.Callable[[], None]


class Program(t.NamedTuple):
    """The agent's program: which Python runs which file, with what in its environment."""

    python: str
    main: str
    environment: dict[str, str]

    @property
    def words(self) -> list[str]:
        return [self.python, "-I", "-S", self.main]


class Service(t.Protocol):
    """A service manager, as the module needs it."""

    name: str  # as the agent calls it in its hello
    files: list[File]

    def state(self) -> str:
        """Whether the agent runs: up, down (it has ended in order, so nothing of it runs), or lost."""

    def prepared(self) -> list[Step]:
        """What has to be done before anything is written."""

    def missing(self) -> list[Step]:
        """What has to be done, beside files, for the agent to come up by itself."""

    def start(self) -> None: ...

    def reload(self) -> None:
        """Has the running agent replaced by the current one, in place."""

    def stop(self) -> None:
        """Ends the agent and everything it runs; nothing of it comes back."""

    def forget(self) -> None:
        """The files have been removed."""


class Systemd:
    """The host's systemd, or the user's own."""

    name = "systemd"

    def __init__(self, module: AnsibleModule, place: Place, program: Program) -> None:
        self._module = module
        self._place = place
        self._words = units.systemctl(place.scope)
        self._runtime = units.runtime(place.scope)
        self._user = "" if place.scope == "system" else units.user_name()
        self.files = units.files(place.scope, place.data_dir, program.words, program.environment)

    def state(self) -> str:
        active = self._shown("ActiveState")
        if active in ("active", "reloading", "refreshing"):
            return "up"
        return "down" if active == "inactive" else "lost"

    def prepared(self) -> list[Step]:
        if self._user and not units.lingers(self._user):
            return [Step(f"let user {self._user} linger", self._linger)]
        return []

    def missing(self) -> list[Step]:
        installed = os.path.lexists(units.path(self._place.scope))
        if installed and self._shown("UnitFileState") == "enabled":
            return []
        return [Step(f"enabled {UNIT}", lambda: self._run("enable", UNIT))]

    def start(self) -> None:
        self._run("daemon-reload")
        self._run("start", UNIT)

    def reload(self) -> None:
        self._run("daemon-reload")
        self._run("reload", UNIT)

    def stop(self) -> None:
        self._run("disable", "--now", UNIT)
        self._run("stop", CELLS)

    def forget(self) -> None:
        self._run("daemon-reload")

    def _linger(self) -> None:
        status, _dummy, error = self._module.run_command(["loginctl", "enable-linger", self._user])
        if status:
            raise Trouble(
                f"the user's systemd ends with the user's last session, and loginctl enable-linger {self._user} failed:"
                f" {error.strip()}; run it as root once, or say service_manager: none"
            )
        deadline = time.monotonic() + READY_SECONDS
        while not os.path.exists(units.user_manager()):
            if time.monotonic() > deadline:
                raise Trouble(
                    f"user {self._user} lingers now, but the user's systemd has not come up in {READY_SECONDS:g} s"
                )
            time.sleep(0.05)  # nobody tells us

    def _shown(self, name: str) -> str:
        command = [*self._words, "show", UNIT, f"--property={name}", "--value"]
        status, output, error = self._module.run_command(command, environ_update=self._runtime)
        if status:
            raise Trouble(f"{' '.join(command)} failed: {error.strip()}")
        return str(output).strip()

    def _run(self, *words: str) -> None:
        command = [*self._words, *words]
        status, output, error = self._module.run_command(command, environ_update=self._runtime)
        if status == 0:
            return
        journal = ["journalctl", *self._words[1:], "--no-pager", "--output=cat", f"--lines={LINES}", "--unit", UNIT]
        dummy, lines, _dummy = self._module.run_command(journal, environ_update=self._runtime)
        raise Trouble("\n".join([f"{' '.join(command)} failed: {(error or output).strip()}", *_indented(lines)]))


class Keeper:
    """No service manager: a small process of ours is the agent's parent, and begins it again when it dies."""

    name = "keeper"

    def __init__(self, module: AnsibleModule, place: Place, program: Program) -> None:
        self._place = place
        self._program = program
        self.files: list[File] = []
        if place.scope == "system":
            # For commands that find no agent: theirs to begin is only an agent of their own.
            self.files.append(File(os.path.join(place.data_dir, "managed"), f"{begin(place)}\n"))

    def state(self) -> str:
        if _answers(self._place):
            return "up"
        return "lost" if os.path.lexists(os.path.join(self._place.data_dir, "pm3.sock")) else "down"

    def prepared(self) -> list[Step]:
        return []

    def missing(self) -> list[Step]:
        return []

    def start(self) -> None:
        ready, said = os.pipe()
        environment = {
            name: os.environ[name] for name in ("HOME", "USER", "LOGNAME", "LANG", "PATH") if name in os.environ
        }
        environment.update(self._program.environment, PM3_DATA_DIR=self._place.data_dir, PM3_READY_FD=str(said))
        with os.fdopen(ready, "rb") as answers:
            try:
                # It goes into the background at once and outlives this module.
                subprocess.Popen(  # pylint: disable=ansible-bad-function,consider-using-with
                    [*self._program.words, "--keeper"],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    env=environment,
                    pass_fds=(said,),
                    start_new_session=True,
                )
            except OSError as error:
                raise Trouble(f"{self._program.python} cannot be run: {error.strerror}") from None
            finally:
                os.close(said)
            answer = _line(answers.fileno(), READY_SECONDS)
        if answer != "ready":
            why = answer.partition("failed: ")[2] or answer or "it ended without a word"
            raise Trouble("\n".join([f"the agent did not start: {why}", *self._log()]))

    def reload(self) -> None:
        import signal

        pid = self._place.ask({"type": "hello"}, 10)["pid"]
        os.kill(pid, signal.SIGHUP)

    def stop(self) -> None:
        hello = self._place.ask({"type": "hello"}, 10)
        kept = hello.get("manager") == self.name
        with _Watched([hello["pid"], *([_keeper_of(hello["pid"])] if kept else [])]) as family:
            self._place.ask({"type": "kill"}, STOP_SECONDS)
            if not family.gone(time.monotonic() + STOP_SECONDS):
                raise Trouble(f"the agent (process {hello['pid']}) was asked to end and has not in {STOP_SECONDS:g} s")

    def forget(self) -> None:
        pass

    def _log(self) -> list[str]:
        try:
            with open(os.path.join(self._place.data_dir, "agent.log"), encoding="utf-8", errors="replace") as log:
                return _indented(log.read())
        except OSError:
            return []


class _Watched:
    """Processes whose end is waited for."""

    def __init__(self, pids: list[int]) -> None:
        self._fds: list[int] = []
        for pid in pids:
            try:
                self._fds.append(os.pidfd_open(pid))
            except ProcessLookupError:
                pass

    def __enter__(self) -> _Watched:
        return self

    def gone(self, deadline: float) -> bool:
        waiting = select.poll()
        for fd in self._fds:
            waiting.register(fd, select.POLLIN)
        left = len(self._fds)
        while left:
            ended = waiting.poll(max(0.0, deadline - time.monotonic()) * 1000)
            if not ended:
                return False
            for fd, _dummy in ended:
                waiting.unregister(fd)
                left -= 1
        return True

    def __exit__(self, *dummy: t.Any) -> None:
        for fd in self._fds:
            os.close(fd)


def manager_for(wanted: str, place: Place, running: str | None) -> str:
    """The service manager that the option means: systemd or none. What keeps the agent already goes on keeping it."""
    if wanted != "auto":
        return wanted
    if running in ("systemd", "keeper"):
        return "systemd" if running == "systemd" else "none"
    if place.scope == "system":
        return "systemd" if units.booted() else "none"
    if os.path.lexists(units.path("user")):
        return "systemd"
    # Without lingering the user's systemd ends with the user's last session, so with that of Ansible.
    return (
        "systemd"
        if place.usual and units.lingers(units.user_name()) and os.path.exists(units.user_manager())
        else "none"
    )


def begin(place: Place) -> str:
    """The command that begins an agent under a keeper; with `--foreground` behind it, one for who watches what it starts."""
    return f"PM3_DATA_DIR={shlex.quote(place.data_dir)} {shlex.quote(place.command)} --keeper"


def _answers(place: Place) -> bool:
    try:
        place.ask({"type": "hello"}, 10)
    except (Refused, Unanswered):
        return False
    return True


def _keeper_of(pid: int) -> int:
    with open(f"/proc/{pid}/stat", "rb") as stat:
        return int(stat.read().rpartition(b")")[2].split()[1])


def _line(fd: int, seconds: float) -> str:
    """The first line that comes, as much of it as there is at the end of the file or of the time."""
    deadline = time.monotonic() + seconds
    text = b""
    while b"\n" not in text:
        if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return f"it said nothing for {seconds:g} s"
        more = os.read(fd, 65536)
        if not more:
            break
        text += more
    return text.partition(b"\n")[0].decode("utf-8", "replace").strip()


def _indented(text: str) -> list[str]:
    return [f"    | {line}" for line in text.splitlines()[-LINES:]]
