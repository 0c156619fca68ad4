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
import subprocess
import time
import typing as t

from ._place import Place, Refused, Unanswered

if t.TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

READY_SECONDS = 60.0  # for an agent to say that it is up: it adopts what runs first
STOP_SECONDS = 600.0  # for one to end: it stops all instances, each in its own time
LINES = 20  # of the agent's own log, in messages

UNIT, CELLS = "pm3.service", "pm3-cells.service"
_MADE = "# Written by the Ansible module pm3.fleet.agent, and written again when it differs."

_UNIT = """\
{made}
[Unit]
Description=pm3, keeps processes as their definitions say
Wants={cells}
After={cells}{after}
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
{environment}
ExecStart={command} --daemon
ExecReload=/bin/kill -HUP $MAINPID
WatchdogSec=30
Restart=always
RestartSec=100ms
KillMode=process
OOMPolicy=continue
FileDescriptorStoreMax=16384
LimitNOFILE=1024:1048576
TasksMax=infinity

[Install]
WantedBy={target}
"""

# The instances' cgroups live in a unit that nobody restarts: systemd before 254 cannot restart one whose cgroup has controllers enabled
# for its children.
_CELLS = """\
{made}
[Unit]
Description=pm3, the cgroups of its instances

[Service]
Type=exec
ExecStart=/bin/sleep infinity
Delegate=yes
KillMode=process
OOMPolicy=continue
{score}TasksMax=infinity
"""

_NEEDRESTART = """\
{made}
# A restart of the agent stops everything that it keeps; after an upgrade of a library none is needed.
$nrconf{{override_rc}}{{qr(^pm3(-cells)?\\.service$)}} = 0;
"""


class Trouble(Exception):
    """The service manager could not do it; the whole sentence for the user."""


class File(t.NamedTuple):
    """A file as it has to be."""

    path: str
    text: str
    mode: int = 0o644


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
        self._words = ["systemctl"] if place.scope == "system" else ["systemctl", "--user"]
        self._runtime = {} if place.scope == "system" else {"XDG_RUNTIME_DIR": f"/run/user/{os.getuid()}"}
        self._folder = "/etc/systemd/system" if place.scope == "system" else user_units()
        self._user = "" if place.scope == "system" else _user_name()
        self.files = self._files(program)

    def _files(self, program: Program) -> list[File]:
        system = self._place.scope == "system"
        unit = _UNIT.format(
            made=_MADE,
            cells=CELLS,
            after=" network.target" if system else "",
            environment="\n".join(
                f"Environment={_quoted(f'{key}={value}')}" for key, value in program.environment.items()
            ),
            command=" ".join(_quoted(word) for word in program.words),
            target="multi-user.target" if system else "default.target",
        )
        cells = _CELLS.format(made=_MADE, score="OOMScoreAdjust=-900\n" if system else "")
        start = " ".join([*self._words, "start", UNIT])
        files = [
            File(os.path.join(self._folder, CELLS), cells),
            File(os.path.join(self._folder, UNIT), unit),
            File(os.path.join(self._place.data_dir, "managed"), f"{start}\n"),  # for commands that find no agent
        ]
        if system and os.path.isdir("/etc/needrestart"):
            files.append(File("/etc/needrestart/conf.d/pm3.conf", _NEEDRESTART.format(made=_MADE)))
        return files

    def state(self) -> str:
        active = self._shown("ActiveState")
        if active in ("active", "reloading", "refreshing"):
            return "up"
        return "down" if active == "inactive" else "lost"

    def prepared(self) -> list[Step]:
        if self._user and not lingers(self._user):
            return [Step(f"let user {self._user} linger", self._linger)]
        return []

    def missing(self) -> list[Step]:
        installed = os.path.lexists(os.path.join(self._folder, UNIT))
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
        while not os.path.exists(_user_systemd()):
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
        return "systemd" if os.path.isdir("/run/systemd/system") else "none"
    if os.path.lexists(os.path.join(user_units(), UNIT)):
        return "systemd"
    # Without lingering the user's systemd ends with the user's last session, so with that of Ansible.
    return "systemd" if place.usual and lingers(_user_name()) and os.path.exists(_user_systemd()) else "none"


def lingers(user: str) -> bool:
    return os.path.exists(f"/var/lib/systemd/linger/{user}")


def _user_systemd() -> str:
    return f"/run/user/{os.getuid()}/systemd/private"


def user_units() -> str:
    shared = os.environ.get("XDG_CONFIG_HOME", "")
    return os.path.join(shared if shared.startswith("/") else os.path.expanduser("~/.config"), "systemd", "user")


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


def _user_name() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def _quoted(word: str) -> str:
    """A word of a unit file. systemd.syntax(7): % begins a specifier, and $ a variable."""
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{word}"' if any(letter.isspace() or letter in "\"'\\" for letter in word) else word
