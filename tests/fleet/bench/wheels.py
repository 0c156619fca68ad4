"""Packages of Python for hosts that are to run Ansible themselves: fetched by this machine's pip, since a host reaches nobody."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

from bench import machine

PACKAGES = ("ansible-core",)
_PLATFORMS = (
    "manylinux2014",
    "manylinux_2_17",
    "manylinux_2_28",
    "manylinux_2_34",
)  # each would do; pip compares names


def fetch(directory: Path, root: Path) -> Path:
    """Give the folder below `directory` that has them for the Python of the hosts' root; they are fetched if it is not there."""
    version = machine.run("chroot", root, "python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip()
    made = directory / f"wheels-{version}"
    if not made.is_dir():
        partial = made.with_suffix(".partial")
        machine.remove_tree(partial)
        platforms = [f"--platform={one}_{platform.machine()}" for one in _PLATFORMS]
        words = ["pip", "download", "--quiet", "--disable-pip-version-check", "--only-binary=:all:", *platforms]
        machine.run(sys.executable, "-m", *words, "--python-version", version, "--dest", partial, *PACKAGES)
        partial.rename(made)
    return made
