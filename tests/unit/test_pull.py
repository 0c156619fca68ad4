# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host of role `gitops` does in one run, with a repository of its own and Ansible as it is here."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PULL = Path(__file__).parents[2] / "roles" / "gitops" / "files" / "pull.py"
PLAY = """
- name: What this run is told
  hosts: all
  gather_facts: false
  tasks:
    - name: It is written down
      ansible.builtin.copy:
        content: "{{ [token, lookup('ansible.builtin.pipe', command)] | to_json }}"
        dest: "{{ playbook_dir }}/../told.json"
        mode: "0600"
      vars:
        command: tr '\\0' ' ' < /proc/$PPID/cmdline; echo; stat -c %a {{ playbook_dir }}/../variables.json || true
"""


class Host:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = folder / "source"
        (folder / "venv").mkdir()
        (folder / "venv" / "bin").symlink_to(Path(sys.executable).parent)
        (folder / "pull.py").write_bytes(PULL.read_bytes())
        self.git("init", "--quiet", "--initial-branch=main", str(self.source))
        (self.source / "local.yml").write_text(PLAY)
        self.commit()
        settings = {
            "repository": str(self.source),
            "version": "main",
            "playbook": "local.yml",
            "inventory": "",
            "hostname": "app1",
            "requirements": "",
            "variables": {"token": "{{ 'HUNTER' ~ 2 }}"},
            "environment": {
                "ANSIBLE_COLLECTIONS_PATH": os.environ.get("ANSIBLE_COLLECTIONS_PATH", ""),
                "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
            },
            "signers": "",
            "gpg_keys": "",
        }
        (folder / "settings.json").write_text(json.dumps(settings))

    def git(self, *words: str) -> str:
        return subprocess.run(["git", *words], check=True, capture_output=True, text=True).stdout.strip()

    def commit(self) -> str:
        person = ("-c", "user.name=Ada", "-c", "user.email=ada@example.com")
        self.git("-C", str(self.source), "add", "-A")
        self.git("-C", str(self.source), *person, "commit", "--quiet", "--allow-empty", "-m", "It is so")
        return self.git("-C", str(self.source), "rev-parse", "HEAD")

    def run(self) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, str(self.folder / "pull.py")]
        return subprocess.run(words, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "status.json").read_text())
        return found


@pytest.fixture
def host(tmp_path: Path) -> Host:
    if not Path(sys.executable).with_name("ansible-playbook").exists():
        pytest.skip("this Python has no ansible-playbook beside it, which a host of the role has")
    return Host(tmp_path)


def test_variables_are_on_no_command_line(host: Host) -> None:
    done = host.run()
    assert done.returncode == 0, done.stdout + done.stderr
    token, told = json.loads((host.folder / "told.json").read_text())
    command, mode = told.splitlines()
    assert token == "HUNTER2"
    assert "ansible-playbook" in command
    assert "HUNTER" not in command
    assert mode == "600"
    assert not (host.folder / "variables.json").exists()


def test_what_a_killed_run_has_left_stops_none(host: Host) -> None:
    assert host.run().returncode == 0
    there = host.folder / "repository" / ".git"
    for name in ("index.lock", "shallow.lock", "refs/heads/main.lock"):
        (there / name).touch()
    commit = host.commit()
    done = host.run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert host.status()["commit"] == commit


@pytest.mark.parametrize("lost", ["HEAD", "objects"])
def test_a_repository_that_a_loss_of_power_has_broken_is_made_anew(host: Host, lost: str) -> None:
    assert host.run().returncode == 0
    there = host.folder / "repository" / ".git" / lost
    for path in [there] if there.is_file() else [path for path in there.rglob("*") if path.is_file()]:
        path.chmod(0o600)
        path.write_bytes(b"")
    commit = host.commit()
    done = host.run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert host.status()["commit"] == commit


def test_one_that_is_whole_is_kept_when_the_source_is_away(host: Host) -> None:
    assert host.run().returncode == 0
    before = (host.folder / "repository" / ".git").stat().st_ino
    host.source.rename(host.folder / "away")
    assert host.run().returncode == 1
    assert (host.status()["outcome"], host.status()["stage"]) == ("failed", "fetch")
    assert (host.folder / "repository" / ".git").stat().st_ino == before


def test_no_status_of_an_earlier_run_stays_where_none_can_be_written(host: Host) -> None:
    assert host.run().returncode == 0
    host.source.rename(host.folder / "away")
    (host.folder / "status.json.new").symlink_to("/dev/full")
    done = host.run()
    assert done.returncode == 1
    assert done.stdout.startswith("failed: ")
    assert "the status cannot be written: [Errno 28]" in done.stdout
    assert not (host.folder / "status.json").exists()
    host.run()
    assert host.status()["outcome"] == "failed"


def test_a_run_that_is_stopped_takes_its_play_with_it(host: Host) -> None:
    """The service's KillMode leaves to it what it has started."""
    told = host.folder / "told"
    os.mkfifo(told)
    heard = os.open(told, os.O_RDONLY | os.O_NONBLOCK)
    waits = (
        PLAY.partition("    - name")[0]
        + f"    - name: It waits\n      ansible.builtin.raw: echo $PPID > {told}; sleep 1000\n"
    )
    (host.source / "local.yml").write_text(waits)
    host.commit()
    words = [sys.executable, str(host.folder / "pull.py")]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as running:
        try:
            assert select.select([heard], [], [], 60)[0], "the play has begun"
            playing = os.pidfd_open(int(os.read(heard, 100)))
        finally:
            running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 1
    assert select.select([playing], [], [], 60)[0], "what plays it has ended"
    os.close(playing)
    os.close(heard)
    assert not (host.folder / "variables.json").exists()
