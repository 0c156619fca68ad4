# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`pm3 startup` and `pm3 unstartup`: the agent in the hands of systemd, and out of them again (W49).

Either way the agent changes hands as in a crash: it is killed, and the next one adopts what runs. So no process ends. Whatever fails
on the way is undone; what is not ours (another agent's unit, lingering) is left alone.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Callable, NamedTuple

from ..wire import paths, units
from ..wire.client import Client, ClientError
from ..wire.messages import Document
from . import autostart
from .answers import Run
from .autostart import Agent
from .console import Console

_PATIENCE = 60.0  # seconds, for what takes a moment: a user's systemd to come up, a killed process to be gone
_HELLO = 10.0
_LINES = 20  # of the journal, in messages

Undo = Callable[[], object]


class _Trouble(Exception):
    """It cannot be done; the whole sentence for the user."""


class _Place(NamedTuple):
    data_dir: str
    scope: str

    @property
    def unit(self) -> str:
        return units.path(self.scope)

    @property
    def managed(self) -> str:
        return os.path.join(self.data_dir, "managed")

    @property
    def release(self) -> str:
        """A drop-in, there for a moment, with which systemd does not start an agent again that we kill."""
        return os.path.join(self.unit + ".d", "release.conf")


def _startup(_options: argparse.Namespace, agent: Agent, console: Console) -> int:
    return _tried(lambda: _install(_wanted(agent.data_dir), console), console)


def _unstartup(_options: argparse.Namespace, agent: Agent, console: Console) -> int:
    return _tried(lambda: _remove(_wanted(agent.data_dir), console), console)


RUN: dict[str, Run] = {"startup": _startup, "unstartup": _unstartup}


def _tried(do: Callable[[], None], console: Console) -> int:
    try:
        do()
    except (_Trouble, ClientError) as error:
        console.error(str(error))
        return 1
    except OSError as error:
        console.error(": ".join(str(part) for part in (error.filename, error.strerror or error) if part))
        return 1
    return 0


def _wanted(data_dir: str) -> _Place:
    """The agent that is meant: root's is the host's, unless root has one of its own."""
    own = paths.user_data_dir(os.environ)
    if os.geteuid() == 0 and not os.environ.get("PM3_DATA_DIR") and not os.path.isdir(own):
        data_dir = paths.SYSTEM
    if os.geteuid() != 0 and paths.scope(data_dir) == "system":
        raise _Trouble(
            f"the agent that you use is the host's, in {data_dir}, whose service is root's affair: say it with sudo; or, for an"
            f" agent of your own, with PM3_DATA_DIR={own}"
        )
    place = _Place(data_dir, paths.scope(data_dir))
    if os.path.exists(data_dir) and os.stat(data_dir).st_uid != os.geteuid():
        raise _Trouble(f"{data_dir} belongs to another user, whose agent this is: say it as that user")
    return place


# --- startup -----------------------------------------------------------------------------------------------------------


def _install(place: _Place, console: Console) -> None:
    manager = _kept_by(place)
    files = units.files(place.scope, place.data_dir, autostart.program(), _environment(place))
    with _undoing() as undo:
        systemd = _reached(place, undo)
        os.makedirs(place.data_dir, 0o700 if place.scope == "user" else 0o755, exist_ok=True)
        if manager == "systemd":
            undo.append(
                lambda: systemd.run("start", units.SERVICE)
            )  # as it was: after the files, and what systemd knows of them
        undo.append(lambda: systemd.run("daemon-reload"))
        changed = [_write(file, undo) for file in files if _read(file.path) != file.text]
        systemd.run("daemon-reload")
        if not systemd.enabled():
            undo.append(lambda: systemd.run("disable", units.SERVICE))
            systemd.run("enable", units.SERVICE)
        if manager != "systemd" or place.unit in changed:
            _hand_over(place, systemd, manager, undo, console)
    console.note(f"Service installed: {place.unit}")


def _kept_by(place: _Place) -> str | None:
    """Who keeps the agent now; None where none runs. Refuses what startup cannot take over."""
    there = _read(place.unit)
    other = _other(place, there) if there is not None else None
    if other is not None:
        raise _Trouble(f"{place.unit} is there already, for {other}: remove that first")
    hello = _hello(place)
    if hello is None:
        if autostart.keeper_of(place.data_dir) is not None:
            raise _Trouble("the agent is just starting or ending: try again in a moment")
        return None
    if hello.get("manager") not in ("systemd", "keeper"):
        raise _Trouble(
            f"the agent (pid {hello.get('pid')}) runs, and neither systemd nor a keeper keeps it: end it first (pm3 kill stops its"
            " processes, too)"
        )
    return str(hello["manager"])


def _other(place: _Place, unit: str) -> str | None:
    """Whom a unit is for that is not this agent's, and how that one is meant."""
    data_dir = units.environment_of(unit).get("PM3_DATA_DIR")
    if data_dir == place.data_dir:
        return None
    return f"the agent in {data_dir} (PM3_DATA_DIR names it)" if data_dir else "something else than pm3"


def _hand_over(place: _Place, systemd: _Systemd, manager: str | None, undo: list[Undo], console: Console) -> None:
    """Begins the agent as the unit says, in the place of the one that runs."""
    if manager == "systemd":
        console.note("The agent is begun anew, as its new unit says; its processes run on.")
        _release(place, systemd)
    elif manager == "keeper":
        console.note("The agent that runs is handed over to systemd; its processes run on.")
        undo.append(lambda: autostart.start(place.data_dir))
        _kill_with_keeper(place)
    else:
        undo.append(lambda: systemd.run("stop", units.CELLS))
    undo.append(lambda: _release(place, systemd))
    systemd.run("start", units.SERVICE)
    hello = _hello(place)
    if hello is None or hello.get("manager") != "systemd":
        raise _Trouble(f"{units.SERVICE} was started, but it is not its agent that answers in {place.data_dir}")


def _kill_with_keeper(place: _Place) -> None:
    """As a crash of both: every process runs on, and the next agent adopts it."""
    keeper = autostart.keeper_of(place.data_dir)
    if keeper is not None:
        _kill(keeper)  # first, for it would begin the agent again
    hello = _hello(place)
    if hello is not None:
        _kill(int(hello["pid"]))


def _environment(place: _Place) -> dict[str, str]:
    """Who may use the host's agent stays as whoever installed it has said."""
    before = units.environment_of(_read(place.unit) or "")
    group = before.get("PM3_ADMIN_GROUP") or os.environ.get("PM3_ADMIN_GROUP") or paths.GROUP
    return units.environment(place.scope, place.data_dir, group)


# --- unstartup ---------------------------------------------------------------------------------------------------------


def _remove(place: _Place, console: Console) -> None:
    text = _read(place.unit)
    if text is None:
        console.note(f"No service file found at {place.unit}")
        return
    other = _other(place, text)
    if other is not None:
        raise _Trouble(f"{place.unit} is for {other}: it stays")
    systemd = _reached(place)
    hello = _hello(place)
    kept = (hello.get("instances") or {}).get("total", 0) if hello and hello.get("manager") == "systemd" else 0
    # Nothing of this is undone when something fails: the same command does the rest of it.
    systemd.run("disable", units.SERVICE)
    if kept:
        _release(place, systemd)
    else:
        systemd.run("stop", units.SERVICE, units.CELLS)
    for file in units.files(place.scope, place.data_dir, [], {}):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(file.path)
    systemd.run("daemon-reload")
    if kept:
        os.environ.update(units.environment_of(text))
        autostart.start(place.data_dir)
        count = f"{kept} instance{'s' if kept > 1 else ''}"
        console.note(f"The agent and its {count} go on without the service until the next boot; pm3 kill ends them.")
    console.note(f"Service removed: {place.unit}")
    if place.scope == "user" and units.lingers(units.user_name()):
        user = units.user_name()
        console.note(
            f"User {user} still lingers, which other services may need; loginctl disable-linger {user} ends it."
        )


def _release(place: _Place, systemd: _Systemd) -> None:
    """Takes the agent out of systemd's hands, as a crash after which it is not started again."""
    _write(units.File(place.release, "[Service]\nRestart=no\n"), [])
    try:
        systemd.run("daemon-reload")
        pid = systemd.shown("MainPID")
        if pid not in ("", "0"):
            _kill(int(pid))
        systemd.run("stop", units.SERVICE)
        systemd.tried("reset-failed", units.SERVICE)
    finally:
        os.unlink(place.release)
        with contextlib.suppress(OSError):
            os.rmdir(os.path.dirname(place.release))


# --- systemd -----------------------------------------------------------------------------------------------------------


class _Systemd:
    """The host's systemd or the user's own, by way of its tools."""

    def __init__(self, scope: str) -> None:
        self._words = units.systemctl(scope)
        self._environ = {**os.environ, **units.runtime(scope)}

    def run(self, *words: str) -> None:
        status, text = self.tried(*words)
        if status == 0:
            return
        unit = "--user-unit" if "--user" in self._words else "--unit"
        command = ["journalctl", "--quiet", "--no-pager", "--output=cat", f"--lines={_LINES}", unit, units.SERVICE]
        journal = _ran(command, self._environ)
        lines = [f"    | {line}" for line in journal[1].splitlines()] if words[0] in ("start", "reload") else []
        raise _Trouble("\n".join([f"{' '.join([*self._words, *words])} failed: {text.strip()}", *lines]))

    def tried(self, *words: str) -> tuple[int, str]:
        return _ran([*self._words, *words], self._environ)

    def shown(self, name: str) -> str:
        return self.tried("show", units.SERVICE, f"--property={name}", "--value")[1].strip()

    def enabled(self) -> bool:
        return self.shown("UnitFileState") == "enabled"


def _reached(place: _Place, undo: list[Undo] | None = None) -> _Systemd:
    """A systemd that answers; with `undo`, the user's own is made to go on without a session."""
    if not units.booted():
        raise _Trouble(
            "no systemd runs this host, and pm3 startup knows no other service manager; have yours run this at boot, as this user:"
            f" {autostart.at_boot(place.data_dir)}"
        )
    for tool in ("systemctl", *(("loginctl",) if place.scope == "user" else ())):
        if shutil.which(tool) is None:
            raise _Trouble(f"systemd runs this host, but its command {tool} is not in PATH")
    if place.scope == "user" and undo is not None:
        _let_linger(undo)
    systemd = _Systemd(place.scope)
    status, text = systemd.tried("show", "--property=Version", "--value")
    if status:
        raise _Trouble(f"{' '.join(units.systemctl(place.scope))} does not reach systemd: {text.strip()}")
    return systemd


def _let_linger(undo: list[Undo]) -> None:
    user = units.user_name()
    if not units.lingers(user):
        status, text = _ran(["loginctl", "enable-linger", user], dict(os.environ))
        if status:
            raise _Trouble(
                "without lingering your systemd ends with your last session and does not start at boot, and loginctl enable-linger"
                f" {user} failed: {text.strip()}; run it once as root (sudo loginctl enable-linger {user}), then this again"
            )
        undo.append(lambda: _ran(["loginctl", "disable-linger", user], dict(os.environ)))
    deadline = time.monotonic() + _PATIENCE
    while not os.path.exists(units.user_manager()):
        if time.monotonic() > deadline:
            raise _Trouble(
                f"{user} lingers, but the systemd of {user} is not there after {_PATIENCE:g} s;"
                f" systemctl status user@{os.getuid()}.service says why"
            )
        time.sleep(0.05)  # nobody tells us


def _ran(command: list[str], environ: dict[str, str]) -> tuple[int, str]:
    """The status of a command, and what it said."""
    try:
        done = subprocess.run(  # pylint: disable=ansible-bad-function
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        return 127, f"{command[0]}: {error.strerror}"
    return done.returncode, done.stdout


# --- files and processes -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _undoing() -> Iterator[list[Undo]]:
    """A list for what undoes each step; an error has all of it done, the newest first."""
    undo: list[Undo] = []
    try:
        yield undo
    except BaseException:
        for step in reversed(undo):
            with contextlib.suppress(_Trouble, ClientError, OSError):  # the first error is what the user must hear
                step()
        raise


def _hello(place: _Place) -> Document | None:
    """What the running agent says of itself; None where none runs."""
    try:
        return Client(place.data_dir, _HELLO).request({"type": "hello"})
    except ClientError as error:
        if error.reason in ("absent", "closed"):
            return None
        raise


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _write(file: units.File, undo: list[Undo]) -> str:
    """Replaces the file in one move."""
    before = _read(file.path)
    os.makedirs(os.path.dirname(file.path), 0o755, exist_ok=True)
    new = file.path + ".tmp"
    with open(new, "w", encoding="utf-8") as target:
        target.write(file.text)
    os.chmod(new, file.mode)
    os.replace(new, file.path)
    undo.append(lambda: os.unlink(file.path) if before is None else _write(file._replace(text=before), []))
    return file.path


def _kill(pid: int) -> None:
    """SIGKILL; returns when the process is gone."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(process, signal.SIGKILL)
        if not select.select([process], [], [], _PATIENCE)[0]:
            raise _Trouble(f"process {pid} does not end after SIGKILL")
    except ProcessLookupError:
        pass
    finally:
        os.close(process)
