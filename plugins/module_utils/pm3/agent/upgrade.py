# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which version the agent becomes at an upgrade in place, and the way back when that one cannot do the work.

Versions lie beside each other, `…/lib/pm3/IDENTITY/`. The link `current` names the one that the service manager starts; the link `next`,
if there is one, the one to become. `next` takes the place of `current` only when the new version has said that it is ready: until then
whatever ends it, SIGKILL and a power cut included, brings the old one back, and that needs nobody to notice. A version that hangs is
ended by an alarm that was set before it was executed. What it says before it is ready goes to a file, from which the old version takes
the reason.

`upgrade.json` in the data dir tells of the newest upgrade, from before the exec until the next one. Not the store: a version that has
failed may have brought that to a schema which the old one cannot read, so a copy of the store waits for the old one as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import time
from typing import Any

from . import schemas
from .schemas import StoreError
from .store import Store

NOTE, COPY = "upgrade.json", "store.sqlite.before"
STDERR = "agent-stderr"  # handed over: where a version that is ready says things again
SECONDS = 20.0  # in which a new version must be ready; PM3_UPGRADE_SECONDS in the agent's environment says otherwise
_CHECK_SECONDS = 30.0  # in which it must have read the store
_LINES = 15  # of what it said, in the reason

Note = dict[str, Any]


def package() -> str:
    """Our folder, by the name under which we were started."""
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def identity(folder: str) -> str | None:
    """The hash that names an installed version, from its package's folder; None of one that runs from source."""
    name = os.path.basename(os.path.dirname(os.path.realpath(folder)))
    return name if re.fullmatch(r"[0-9a-f]{16}", name) else None


class Target:
    """What is to be executed next."""

    def __init__(self) -> None:
        here = package()
        self.library = os.path.dirname(os.path.dirname(here)) if identity(here) else None
        self.on_trial = self.library is not None and os.path.lexists(os.path.join(self.library, "next"))
        self.package = here
        if self.library is not None:
            # By its own name while on trial: the link changes under it.
            link = os.path.join(self.library, "next" if self.on_trial else "current")
            self.package = os.path.join(os.path.realpath(link) if self.on_trial else link, "pm3")
        self.identity = identity(self.package)

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-I", "-S", os.path.join(self.package, "__main__.py")]


class Check:
    """Whether a version can go on with what is there, found by itself in a process of its own. Blocks: for another thread."""

    def __init__(self, target: Target, store_path: str, run: str) -> None:
        self.reads = 0  # the schema that the version reads and writes
        self.wrong = self._ask(target, store_path)
        if 0 < self.reads < schemas.SCHEMA:
            # It would find our store too new. It has to like the one that we leave for it.
            lowered = os.path.join(run, "store.lowered")
            try:
                schemas.copy(store_path, lowered)
                schemas.lower(lowered, self.reads)
                self.wrong = self._ask(target, lowered)
            except StoreError as error:
                self.wrong = str(error)
            finally:
                schemas.remove(lowered)

    def _ask(self, target: Target, store_path: str) -> str | None:
        import subprocess  # a megabyte with what it imports, and the next of us begins without

        try:
            ran = subprocess.run(  # pylint: disable=ansible-bad-function
                [*target.command, "--check-upgrade", store_path],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_CHECK_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"it has not read the store in {_CHECK_SECONDS:g} s"
        except OSError as error:
            return str(error)
        # Its status proves nothing: as a subreaper we may have collected it, and then it looks like 0.
        try:
            answer = json.loads(ran.stdout)
            self.reads = int(answer["reads"])
            return answer["wrong"] if answer["wrong"] is None else str(answer["wrong"])
        except (ValueError, KeyError, TypeError):
            said = _last_lines(ran.stderr.decode("utf-8", "replace"))
            return f"it does not tell whether it can go on with what runs{_said(said)}"


class Upgrades:
    """The upgrades of one data dir, as they are noted there."""

    def __init__(self, data_dir: str, run: str, diagnose: Any) -> None:
        self._path = os.path.join(data_dir, NOTE)
        self._store = os.path.join(data_dir, "store.sqlite")
        self._copy = os.path.join(data_dir, COPY)
        self._log = os.path.join(run, "upgrade.log")
        self._diagnose = diagnose
        self._stderr = -1
        self.note = _read(self._path)

    @property
    def told(self) -> Note:
        """What others are told of the newest one that is over; `count` grows with each."""
        return {key: self.note.get(key) for key in ("count", "to", "result", "why", "gap")}

    def refused(self, target: Target, why: str) -> None:
        """It does not happen, and nothing was touched."""
        _forget_offer(target.library, target.identity)
        self._over("refused", target.identity, why=why)
        self._diagnose(f"not upgraded to {target.identity or 'the installed version'}: {why}")

    # Before the exec

    def begin(self, target: Target, reads: int, began: float) -> None:
        """Notes that it is about to happen; `began` is when we ceased to serve. The store is closed. Raises OSError, StoreError."""
        if reads > schemas.SCHEMA:
            schemas.copy(self._store, self._copy)
        pending = {"from": identity(package()), "to": target.identity, "on_trial": target.on_trial, "began": began}
        self._write({**self.note, "pending": pending})
        if 0 < reads < schemas.SCHEMA:
            self._diagnose(
                f"{target.identity} keeps less in its store (schema {reads}, this one {schemas.SCHEMA}): {schemas.LOST[reads]}"
            )
            schemas.lower(self._store, reads)

    def listen(self) -> int:
        """From here on what is said belongs to the version on trial. Gives a descriptor of where it was said before."""
        self._stderr = os.dup(2)
        with contextlib.suppress(OSError):  # on a full disk it is said where it always is
            log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
            os.dup2(log, 2)
            os.close(log)
        return self._stderr

    @staticmethod
    def set_alarm() -> None:
        """It survives the exec, and what it does by default is to end the process."""
        signal.setitimer(signal.ITIMER_REAL, _seconds())

    def undone(self, why: str) -> None:
        """There was no exec."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.settle(self._stderr, why)

    # After it, in whoever runs then

    def return_store(self) -> None:
        """Before the store is opened: a version that has failed may have made it unreadable for us."""
        if self._failed() and os.path.exists(self._copy) and schemas.schema_of(self._store) > schemas.SCHEMA:
            self._diagnose("the version that failed had changed the store; it is again as it was before the upgrade")
            schemas.copy(self._copy, self._store)

    def settle(self, stderr: int = -1, why: str | None = None) -> None:
        """We are ready: an upgrade that was pending is over, one way or the other. The link, then the note: a crash in between
        leaves the new version the current one, which then finds the note."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        if stderr >= 0:
            os.dup2(stderr, 2)
            os.close(stderr)
        pending = self.note.get("pending")
        if pending is None:
            return
        said = self._take_words()
        here = package()
        library = os.path.dirname(os.path.dirname(here))
        if why is None and not self._failed():
            if pending["on_trial"]:
                _make_current(library, pending["to"])
            for line in said:
                self._diagnose(line)
            gap = time.monotonic() - pending["began"]
            self._over("done", pending["to"], gap=round(gap * 1000, 1) if gap >= 0 else None)
        else:
            late = time.monotonic() - pending["began"] >= _seconds()
            what = f"it was not ready in {_seconds():g} s" if late else "it ended before it was ready"
            reason = why or f"{what}{_said(said)}"
            _forget_offer(library, pending["to"])
            self._over("failed", pending["to"], why=reason)
            self._diagnose(f"the upgrade to {pending['to']} has failed, {pending['from']} goes on: {reason}")
        schemas.remove(self._copy)

    def _failed(self) -> bool:
        """There was an exec, and we are not what should have come of it."""
        pending = self.note.get("pending")
        return pending is not None and pending["to"] != identity(package())

    def _over(self, result: str, to: str | None, why: str | None = None, gap: float | None = None) -> None:
        count = int(self.note.get("count", 0)) + 1
        try:
            self._write({"count": count, "to": to, "result": result, "why": why, "gap": gap, "at": time.time()})
        except OSError as error:
            self._diagnose(f"{self._path}: {error}")  # a full disk; who asks is told all the same

    def _write(self, note: Note) -> None:
        self.note = note
        new = self._path + ".new"
        with open(new, "w", encoding="utf-8") as file:
            json.dump(note, file)
        os.replace(new, self._path)

    def _take_words(self) -> list[str]:
        """What the version on trial said."""
        try:
            with open(self._log, encoding="utf-8", errors="replace") as file:
                lines = _last_lines(file.read())
            os.unlink(self._log)
            return lines
        except OSError:
            return []


def check(path: str) -> int:
    """`--check-upgrade PATH`: says whether this version could go on with that store. Leaves the store alone."""
    wrong = None
    try:
        with contextlib.closing(Store(path, trial=True)) as store:
            store.read_all()
    except StoreError as error:
        wrong = str(error)
    except Exception as error:  # whatever it is, it would be met again as the agent
        wrong = f"{path} cannot be read: {type(error).__name__}: {error}"
    sys.stdout.write(json.dumps({"reads": schemas.SCHEMA, "wrong": wrong}) + "\n")
    return 0 if wrong is None else 1


def _make_current(library: str, wanted: str) -> None:
    link = os.path.join(library, "next")
    with contextlib.suppress(OSError):  # somebody has withdrawn it, and made us the current one
        if os.path.basename(os.readlink(link)) == wanted:
            os.replace(link, os.path.join(library, "current"))


def _forget_offer(library: str | None, refused: str | None) -> None:
    if library is None:
        return
    link = os.path.join(library, "next")
    with contextlib.suppress(OSError):
        if refused is None or os.path.basename(os.readlink(link)) == refused:
            os.unlink(link)


def _read(path: str) -> Note:
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def _seconds() -> float:
    try:
        return max(0.1, float(os.environ.get("PM3_UPGRADE_SECONDS", "")))
    except ValueError:
        return SECONDS


def _last_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()][-_LINES:]


def _said(lines: list[str]) -> str:
    return "".join(f"\n    | {line}" for line in lines)
