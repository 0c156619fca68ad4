"""What the bench needs of the machine below it: commands, packages, mounts, and the question whether hosts can run here.

Nothing in this file knows about hosts, and nothing but `install_packages` changes the machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from bench import cgroup

PACKAGES = {
    "systemd-nspawn": "systemd-container",
    "debootstrap": "debootstrap",
    "ip": "iproute2",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
}
CLEAN_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "HOME": "/root",
    "DEBIAN_FRONTEND": "noninteractive",
}


class FleetError(Exception):
    """Something a person must know; its text is the whole sentence for them."""


def run(*command: str | Path, environment: dict[str, str] | None = None) -> str:
    """Run a command to its end and give its standard output; anything but success is a FleetError with what it said."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=CLEAN_ENVIRONMENT | (environment or {}),
        )
    except FileNotFoundError:
        raise FleetError(f"the command {words[0]!r} is missing on this machine") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise FleetError(f"{' '.join(words)} ended with {done.returncode}: {said}")
    return done.stdout


def succeeds(*command: str | Path) -> bool:
    try:
        run(*command)
    except FleetError:
        return False
    return True


def reasons_against(directory: Path, packages: Mapping[str, str] = MappingProxyType(PACKAGES)) -> Iterator[str]:
    """Why hosts cannot run here with their files in `directory`; nothing if they can. Tries things, leaves nothing."""
    if sys.platform != "linux":
        yield f"not Linux: {platform.system()} has no namespaces and no systemd-nspawn"
        return
    if os.geteuid() != 0:
        yield "not root: mounts, network namespaces and systemd-nspawn need it"
        return
    missing = sorted({package for command, package in packages.items() if not shutil.which(command)})
    if not shutil.which("apt-get"):
        yield "no apt-get: the hosts' root is made by debootstrap from the mirror that apt is configured for"
    elif missing and not all(succeeds("apt-cache", "show", package) for package in missing) and not mirrors():
        yield f"no apt source for the missing packages {', '.join(missing)}"
    if not succeeds("unshare", "--net", "true"):
        yield "no network namespaces: 'unshare --net' is refused"
    if not succeeds("unshare", "--pid", "--fork", "--mount", "--uts", "--ipc", "--cgroup", "true"):
        yield "no containers: 'unshare --pid --mount --uts --ipc --cgroup' is refused"
    if reason := cgroup.reason_against():
        yield reason
    below = next((parent for parent in (directory, *directory.parents) if parent.is_dir()), Path("/"))
    with tempfile.TemporaryDirectory(dir=below, prefix="fleet-check-") as trial:
        script = 'cd "$0" && mkdir lower upper work root && mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work root'
        # In a mount namespace of its own, so that the trial mount is gone with the command.
        if not succeeds("unshare", "--mount", "sh", "-c", script, trial):
            yield f"no overlayfs on {below}: mounting one there is refused (an overlay cannot lie on another overlay)"


def mirrors() -> list[tuple[str, str]]:
    """The (address, suite) pairs this machine's own apt uses for its own release; apt itself reads both source formats."""
    with open("/etc/os-release", encoding="utf-8") as lines:
        release = dict(line.rstrip("\n").split("=", 1) for line in lines if "=" in line)
    codename = release.get("VERSION_CODENAME", "").strip('"')
    rows = run(
        "apt-get", "indextargets", "--format", "$(REPO_URI)|$(RELEASE)|$(CODENAME)|$(COMPONENT)", "Created-By: Packages"
    )
    found = []
    for row in rows.splitlines():
        address, suite, named, component = row.split("|")
        if component == "main" and codename in (suite, named):
            found.append((address, codename))
    return found


def install_packages(packages: Mapping[str, str] = MappingProxyType(PACKAGES)) -> None:
    """Install what is missing with apt, by the command that tells; its lists are fetched only if it cannot do without."""
    missing = sorted({package for command, package in packages.items() if not shutil.which(command)})
    if not missing:
        return
    install = ("apt-get", "install", "--yes", "--no-install-recommends", *missing)
    if not succeeds(*install):
        run("apt-get", "update")
        run(*install)


@contextlib.contextmanager
def alone(lock: Path) -> Iterator[None]:
    """One process at a time between two that name the same file; its folder is made."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def mounts_below(directory: Path) -> list[Path]:
    """What is mounted at or below `directory`, the deepest first, as the kernel shows it now."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8") as lines:
        for line in lines:
            # Blanks and the like come as octal escapes, see proc_pid_mountinfo(5).
            place = Path(line.split()[4].encode().decode("unicode_escape").encode("latin-1").decode())
            if place == directory or directory in place.parents:
                found.append(place)
    return found[::-1]


def unmount_below(directory: Path) -> None:
    for place in mounts_below(directory):
        # Somebody may have a shell in there: a lazy unmount takes the tree away from everybody else at least.
        if not succeeds("umount", place):
            run("umount", "--lazy", place)


def remove_tree(directory: Path) -> None:
    """Remove a folder and everything in it, never through a mount."""
    unmount_below(directory)
    if mounts_below(directory):
        raise FleetError(f"{directory} still has something mounted below it and is not removed")
    if directory.exists():
        shutil.rmtree(directory)
