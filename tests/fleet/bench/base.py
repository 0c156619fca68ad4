"""The root file system that all hosts share, read only: made once by debootstrap, kept under a hash of its recipe.

A host's own files (name, address, key) are not here but in its overlay, see host.py.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from pathlib import Path
from typing import IO

from bench import machine
from bench.cgroup import Group
from bench.machine import FleetError

PACKAGES = (
    "systemd", "systemd-sysv", "libpam-systemd", "dbus", "dbus-user-session", "openssh-server", "sudo",
    "python3", "python3-psutil", "python3-venv", "git", "gpg", "gpg-agent", "iproute2", "procps", "util-linux", "curl",
)  # fmt: skip

# Runs in the new root. No name server: a host reaches its neighbours only, and a look-up must fail at once, not after seconds.
SETUP = r"""
set -eu
echo LANG=C.UTF-8 > /etc/default/locale
: > /etc/machine-id
: > /etc/resolv.conf
rm -f /var/lib/dbus/machine-id
useradd --create-home --shell /bin/bash deploy
echo 'deploy ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/deploy
chmod 0440 /etc/sudoers.d/deploy
for user in /root /home/deploy; do
    install -d -m 0700 "$user/.ssh"
done
chown deploy:deploy /home/deploy/.ssh
systemctl enable systemd-networkd.service
# "Booted" shall mean that the address answers.
systemctl add-wants multi-user.target network-online.target
# Nothing here may start by itself in the middle of a test, and there is no console to log in on.
systemctl mask console-getty.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer
rm -rf /var/cache/apt/archives/*.deb /var/lib/apt/lists/*
"""


def mirror() -> tuple[str, str]:
    """Where apt of this machine gets the main component of this machine's release: (address, suite)."""
    found = [pair for pair in machine.mirrors() if pair[0].startswith(("http:", "https:", "file:"))]
    if not found:
        raise FleetError(
            "apt has no http, https or file source with the component 'main' of this release: see apt-get indextargets"
        )
    return found[0]


def recipe(suite: str) -> str:
    """The key of the cache: a base made from another recipe is another base. The mirror's address is no part of it."""
    return hashlib.sha256(json.dumps([suite, platform.machine(), PACKAGES, SETUP]).encode()).hexdigest()[:12]


def make(directory: Path, group: Group, in_use: bool) -> Path:
    """Give the base root below `directory`; make it, with all processes in `group`, if this recipe has none yet.

    Bases of older recipes go, unless hosts may stand on them (`in_use`).
    """
    address, suite = mirror()
    root = directory / f"base-{recipe(suite)}"
    if root.is_dir():
        return root
    group.kill()  # A debootstrap whose bench was killed goes on.
    for old in directory.glob("base-*.partial" if in_use else "base-*"):
        if old.is_dir():
            machine.remove_tree(old)
    partial = root.with_suffix(".partial")
    log = directory / "base.log"
    arguments = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", suite, str(partial), address]
    proxy = machine.run("apt-config", "dump", "--format", "%v", "Acquire::http::Proxy").strip()
    environment = machine.CLEAN_ENVIRONMENT | ({"http_proxy": proxy} if proxy else {})
    try:
        with log.open("w", encoding="utf-8") as output:
            for command in (arguments, ["chroot", str(partial), "sh", "-c", SETUP]):
                run_in(group, command, environment, output, log)
        partial.rename(root)
    finally:
        group.kill()
        machine.remove_tree(partial)
    return root


def run_in(group: Group, command: list[str], environment: dict[str, str], output: IO[str], log: Path) -> None:
    """Run a command as a member of `group`, so that all its descendants can be ended together. `output` is the file `log`."""
    done = subprocess.run(
        group.joining(command),
        check=False, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment,
        start_new_session=True,  # Ctrl-C is for us; we end the group.
    ).returncode  # fmt: skip
    if done:
        raise FleetError(f"{command[0]} ended with {done}; what it said is in {log}")
