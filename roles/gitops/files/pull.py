# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run: the repository is fetched, its signature checked, its collections installed, its playbook played; what became of it is written
down in status.json. A commit that does not come that far is not played, and the host stays as it is.

Not ansible-pull: that checks out a commit before it looks at its signature, and cannot install what the commit needs before it plays it.
"""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

FOLDER = os.path.dirname(os.path.abspath(__file__))
BIN = os.path.join(FOLDER, "venv", "bin")
REPOSITORY = os.path.join(FOLDER, "repository")
COLLECTIONS = os.path.join(FOLDER, "collections")
OUTCOME = os.path.join(FOLDER, "outcome.json")
VARIABLES = os.path.join(FOLDER, "variables.json")
STATUS = os.path.join(FOLDER, "status.json")


class Failure(Exception):
    """It ends here; the text says why."""


def run(words: list[str], environment: dict[str, str], **options: Any) -> str:
    """What a command prints. Raises `Failure` with what it said."""
    done = subprocess.run(words, env=environment, text=True, capture_output=True, check=False, **options)
    if done.returncode:
        raise Failure(done.stderr.strip() or done.stdout.strip() or f"{words[0]} ended with {done.returncode}")
    return done.stdout.strip()


def git(environment: dict[str, str], *words: str) -> str:
    # The repository may be a folder of somebody else's, and nobody is there to be asked for a password. Without a ceiling a broken
    # repository would be taken for a folder in another one around it.
    alone = {"GIT_TERMINAL_PROMPT": "0", "GIT_CEILING_DIRECTORIES": FOLDER}
    return run(["git", "-c", "safe.directory=*", "-C", REPOSITORY, *words], {**environment, **alone})


def check_out(settings: dict[str, Any], environment: dict[str, str], document: dict[str, Any]) -> str:
    """Gives the commit that the wanted version is now, checked out. What is there already is only a cache, which a loss of power may have
    broken: it is made anew then."""
    unlock()
    try:
        return checked_out(settings, environment, document)
    except Failure:
        if is_whole(environment):
            raise
    shutil.rmtree(REPOSITORY)
    return checked_out(settings, environment, document)


def checked_out(settings: dict[str, Any], environment: dict[str, str], document: dict[str, Any]) -> str:
    document.update(commit=None, stage="fetch")
    commit = fetch(settings, environment)
    document.update(commit=commit, stage="verify")
    if settings["signers"] or settings["gpg_keys"]:
        verify(settings, environment, commit)
    git(environment, "checkout", "--quiet", "--force", "--detach", commit)
    git(environment, "clean", "-ffdxq")
    return commit


def unlock() -> None:
    """Locks of git that a run has left which was killed: they would stop every run from then on. There is no other run now."""
    for folder, _folders, names in os.walk(os.path.join(REPOSITORY, ".git")):
        for name in names:
            if name.endswith(".lock"):
                os.unlink(os.path.join(folder, name))


def is_whole(environment: dict[str, str]) -> bool:
    try:
        git(environment, "rev-parse", "--git-dir")
        git(environment, "fsck", "--no-progress", "--no-dangling")
    except Failure:
        return False
    return True


def fetch(settings: dict[str, Any], environment: dict[str, str]) -> str:
    """Gives the commit that the wanted version is now; nothing is checked out yet."""
    if not os.path.isdir(os.path.join(REPOSITORY, ".git")):
        shutil.rmtree(REPOSITORY, ignore_errors=True)
        run(["git", "init", "--quiet", REPOSITORY], environment)
    git(environment, "fetch", "--quiet", "--depth=1", "--force", str(settings["repository"]), str(settings["version"]))
    return git(environment, "rev-parse", "FETCH_HEAD^{commit}")


def verify(settings: dict[str, Any], environment: dict[str, str], commit: str) -> None:
    """Raises `Failure` unless one of those who may sign has signed the commit.

    Who that is is made anew each time, and is known here alone: neither keys of the host nor those that once were in the settings count.
    """
    with tempfile.TemporaryDirectory(prefix="pm3-gitops-") as folder:
        signers, keyring = os.path.join(folder, "signers"), os.path.join(folder, "gnupg")
        os.mkdir(keyring, 0o700)
        with open(signers, "w", encoding="utf-8") as file:
            file.write(settings["signers"] + "\n")
        knowing = {**environment, "GNUPGHOME": keyring}
        if settings["gpg_keys"]:
            run(["gpg", "--batch", "--quiet", "--import"], knowing, input=settings["gpg_keys"])
        try:
            git(knowing, "-c", f"gpg.ssh.allowedSignersFile={signers}", "verify-commit", commit)
        except Failure as failure:
            raise Failure(f"commit {commit[:12]} has no good signature of anybody who may sign: {failure}") from None


def install(settings: dict[str, Any], environment: dict[str, str]) -> None:
    """The collections that the commit asks for, in place of those that an earlier one has asked for."""
    path = os.path.join(REPOSITORY, str(settings["requirements"]))
    if not settings["requirements"] or not os.path.exists(path):
        return
    with open(path, "rb") as file:
        wanted = hashlib.sha256(file.read()).hexdigest()
    stamp, new = os.path.join(COLLECTIONS, wanted), COLLECTIONS + ".new"
    if os.path.exists(stamp):
        return
    shutil.rmtree(new, ignore_errors=True)
    words = [os.path.join(BIN, "ansible-galaxy"), "collection", "install", "--force", "-r", path, "-p", new]
    run(words, environment, cwd=REPOSITORY)
    with open(os.path.join(new, wanted), "w", encoding="ascii"):
        pass
    shutil.rmtree(COLLECTIONS, ignore_errors=True)
    os.rename(new, COLLECTIONS)


def play(settings: dict[str, Any], environment: dict[str, str], commit: str) -> None:
    """Plays the playbook for this host. What it prints is for the journal. Raises `Failure` with the error that it ended with."""
    name = str(settings["hostname"])
    words = [os.path.join(BIN, "ansible-playbook"), "--connection", "local", "--limit", name]
    words += ["--inventory", str(settings["inventory"]) or f"{name},"]
    words += ["--extra-vars", f"@{VARIABLES}", str(settings["playbook"])]
    # Errors go through a file, because a pipe would stay open as long as anything that the play has started.
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        try:
            keep(VARIABLES, {"pm3_commit": commit[:12], **settings["variables"]})
            with subprocess.Popen(words, env=environment, cwd=REPOSITORY, stderr=errors) as playing:
                try:
                    code = playing.wait()
                except SystemExit:
                    playing.terminate()
                    raise
        finally:
            remove(VARIABLES)
        errors.seek(0)
        told = errors.read()
    sys.stderr.write(told)
    if code:
        last = max(told.rfind("[ERROR]"), told.rfind("ERROR!"))
        raise Failure(told[last:].strip() if last >= 0 else f"ansible-playbook ended with {code}")


def outcome() -> dict[str, Any]:
    """What the callback has written down; nothing if it never came that far, or the collection is not there."""
    try:
        with open(OUTCOME, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return {}


def status() -> dict[str, Any]:
    try:
        with open(STATUS, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return {}


def keep(path: str, document: dict[str, Any]) -> None:
    """Writes a file that only its owner can read: command lines, which everybody can, are no place for secrets."""
    remove(path)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(document, file)


def remove(path: str) -> None:
    if os.path.lexists(path):
        os.unlink(path)


def write(document: dict[str, Any]) -> None:
    """Raises `OSError`, and leaves no status then: that of an earlier run would be taken for this one's."""
    new = STATUS + ".new"
    try:
        with open(new, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=2)
            file.write("\n")
        os.replace(new, STATUS)
    except OSError:
        remove(STATUS)
        remove(new)
        raise


def environment_of(settings: dict[str, Any]) -> dict[str, str]:
    # BIN is not in PATH: Ansible would find its own Python there and take it for the host's, and the agent would run with it from then on.
    playing = {
        "ANSIBLE_HOME": os.path.join(FOLDER, "ansible"),
        "ANSIBLE_COLLECTIONS_PATH": COLLECTIONS,
        "ANSIBLE_CALLBACKS_ENABLED": "pm3.fleet.instances,pm3.fleet.outcome",
        "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "1",  # it would be taken for one without hosts, and nothing would be done
        "ANSIBLE_NOCOLOR": "1",
        "PM3_OUTCOME_FILE": OUTCOME,
    }
    given = {str(key): str(value) for key, value in settings["environment"].items()}
    return {**os.environ, **playing, **given}


def main() -> int:
    # What a play has started is left alone when the service is stopped (KillMode=process); what plays it is not, it goes with this here.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(1))
    with open(os.path.join(FOLDER, "lock"), "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with open(os.path.join(FOLDER, "settings.json"), encoding="utf-8") as file:
            document = converge(json.load(file))
        commit = f": commit {document['commit'][:12]}" if document["commit"] else ""
        why = f": {document['message']}" if document["message"] else ""
        sys.stdout.write(f"{document['outcome']}{commit}{why}\n")
        sys.stdout.flush()
        try:
            write(document)
        except OSError as error:
            sys.stdout.write(f"failed: the status cannot be written: {error}\n")
            return 1
    return 1 if document["outcome"] == "failed" else 0


def converge(settings: dict[str, Any]) -> dict[str, Any]:
    """Gives what became of it."""
    began, before = time.time(), status()
    at = datetime.datetime.fromtimestamp(began, datetime.timezone.utc).isoformat(timespec="seconds")
    document: dict[str, Any] = {"at": at, "commit": None, "stage": "fetch", "message": None}
    environment = environment_of(settings)
    try:
        remove(OUTCOME)
        commit = check_out(settings, environment, document)
        document.update(stage="collections")
        install(settings, environment)
        document.update(stage="play")
        play(settings, environment, commit)
    except (Failure, OSError) as error:
        document.update(message=str(error))
    found = outcome()
    if document["message"] is None and found.get("hosts") == []:
        document.update(message=f"no play of it is for this host, {settings['hostname']}")
    failures, failed = found.get("failures", []), document["message"] is not None
    if failed and failures:  # the last one ended it; from those before the play may have rescued itself
        document.update(message=failures[-1]["message"])
    return {
        **document,
        "outcome": "failed" if failed else "changed" if found.get("changed") else "ok",
        "seconds": round(time.time() - began, 1),
        "failures": failures,
        "instances": found.get("instances", []),
        "good": before.get("good") if failed else {"commit": document["commit"], "at": at},
    }


if __name__ == "__main__":
    sys.exit(main())
