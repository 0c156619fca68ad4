"""The disk of the emulated machine: the hosts' base root, with a kernel of the same release, as one file; made once, kept under a hash of
its recipe. What boots from it has the whole of cgroup v2 to itself, which no host in a container of this machine may have.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from bench import base, machine
from bench.cgroup import Group

PACKAGES = ("linux-image-cloud-amd64", "initramfs-tools")
SIZE = "3G"  # sparse
FILES = {
    "etc/hostname": "emulated\n",
    "etc/hosts": "127.0.0.1 localhost emulated\n",
    "etc/systemd/network/10-emulated.network": "[Match]\nName=e*\n\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=no\n",
}
# Runs in the root. What apt of this machine has fetched is there already.
SETUP = r"""
set -eu
export INITRD=No
dpkg --force-confold -i /var/cache/apt/archives/*.deb
INITRD=Yes update-initramfs -c -k all
rm -f /var/cache/apt/archives/*.deb
systemctl mask systemd-networkd-wait-online.service serial-getty@ttyS0.service getty@tty1.service
"""


def recipe(root: Path) -> str:
    return hashlib.sha256(json.dumps([root.name, PACKAGES, SIZE, FILES, SETUP]).encode()).hexdigest()[:12]


def make(directory: Path, root: Path, group: Group) -> Path:
    """Give the folder with `disk`, `kernel`, `initrd` and `key` below `directory`; made from the base `root` if there is none yet."""
    made = directory / f"image-{recipe(root)}"
    if made.is_dir():
        return made
    group.kill()
    for old in directory.glob("image-*"):
        machine.remove_tree(old)
    partial, log = made.with_suffix(".partial"), directory / "image.log"
    tree = partial / "root"
    partial.mkdir(parents=True)
    try:
        machine.run("cp", "--archive", "--one-file-system", "--reflink=auto", root, tree)
        _fetch(tree)
        with log.open("w", encoding="utf-8") as output:
            base.run_in(group, ["chroot", str(tree), "sh", "-c", SETUP], machine.CLEAN_ENVIRONMENT, output, log)
        for name, text in FILES.items():
            (tree / name).write_text(text)
        machine.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "emulated", "-f", partial / "key")
        keys = tree / "root/.ssh/authorized_keys"
        shutil.copyfile(partial / "key.pub", keys)
        keys.chmod(0o600)
        for name in ("vmlinuz", "initrd"):
            (found,) = (tree / "boot").glob(f"{name}*")
            found.rename(partial / {"vmlinuz": "kernel"}.get(name, name))
        machine.run("mkfs.ext4", "-q", "-L", "root", "-d", tree, partial / "disk", SIZE)
        machine.remove_tree(tree)
        partial.rename(made)
    finally:
        group.kill()
        machine.remove_tree(partial)
    return made


def _fetch(tree: Path) -> None:
    """Has this machine's apt, which knows its mirrors, fetch what the root lacks of the packages."""
    fetch = (
        "apt-get", "install", "--download-only", "--yes", "--no-install-recommends",
        "-o", f"Dir::State::status={tree}/var/lib/dpkg/status", "-o", f"Dir::Cache::archives={tree}/var/cache/apt/archives",
        *PACKAGES,
    )  # fmt: skip
    if not machine.succeeds(*fetch):
        machine.run("apt-get", "update")
        machine.run(*fetch)
