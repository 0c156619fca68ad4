#!/usr/bin/env python
"""The emulated machine: a whole computer with a kernel of its own, in qemu, for what a host in a container cannot show (limits by
cgroups, want of memory, an older kernel). Several times slower than a host of the fleet, so there is one, and few tests use it.

`emulated.py up` boots it and says how to reach it, `down` ends it. All of it is one process in one cgroup named after this checkout;
the disk is thrown away with it. There is no record of what runs: the kernel is asked.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "fleet"))
from bench import base, image, machine
from bench.cgroup import Group
from bench.machine import FleetError

DIRECTORY = Path(__file__).resolve().parents[2] / ".cache" / "fleet"
PACKAGES = {"qemu-system-x86_64": "qemu-system-x86", "mkfs.ext4": "e2fsprogs", "ssh": "openssh-client"}
BOOT_TIMEOUT = 900.0  # seconds: beside other work on few CPUs it takes many minutes, and only a hang takes that long
NAME = "emulated"


class Emulated:
    """The machine of this checkout. All methods may be called from any process."""

    def __init__(self, directory: Path = DIRECTORY) -> None:
        self.directory = directory
        self.folder = directory / NAME
        self.ssh_config = self.folder / "ssh_config"
        self.inventory = self.folder / "inventory.yml"
        self.console = self.folder / "console.log"
        self.group = Group("pm3-" + hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:8])
        self.control = Path("/run") / f"{self.group.name}.ssh"  # Short: the paths of sockets are limited.

    def up(self) -> None:
        """Boots it, if it does not run, and waits until ssh answers. If that fails nothing is left of it."""
        if self.group.populated():
            return
        self.down()
        try:
            machine.install_packages({**machine.PACKAGES, **PACKAGES})
            self.folder.mkdir(parents=True, exist_ok=True)
            with machine.alone(self.directory / "store.lock"):  # the fleet's: both stand on the same base
                root = base.make(self.directory, self.group.child("build"), in_use=True)
                made = image.make(self.directory, root, self.group.child("build"))
            port = _free_port()
            self._write(made, port)
            with self.console.open("wb") as console:
                process = subprocess.Popen(
                    self.group.child("machine").joining(_qemu(made, port)),
                    stdin=subprocess.DEVNULL,
                    stdout=console,
                    stderr=console,
                    start_new_session=True,
                )
            self._wait(lambda: process.poll() is None)
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        self._end_master()
        self.group.kill()
        self.group.remove()
        machine.remove_tree(self.folder)

    def ssh(self, command: str, timeout: float = 300) -> str:
        """Runs a shell command as root and gives what it prints; anything but success is an AssertionError with what it said."""
        done = self._ssh(command, timeout)
        assert done.returncode == 0, f"{command}: {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout

    def reboot(self) -> None:
        before = self.ssh("cat /proc/sys/kernel/random/boot_id")
        self._ssh("systemctl reboot", 60)
        self._end_master()
        self._wait(self.group.child("machine").populated, but=before)

    def _end_master(self) -> None:
        """One connection serves all commands, because making one takes seconds here."""
        if self.control.exists():
            machine.succeeds("ssh", "-F", self.ssh_config, "-O", "exit", NAME)
            self.control.unlink(missing_ok=True)

    def _ssh(self, command: str, timeout: float) -> subprocess.CompletedProcess[str]:
        words = ["ssh", "-F", str(self.ssh_config), NAME, command]
        return subprocess.run(
            words, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout
        )

    def _wait(self, runs: Callable[[], bool], but: str = "") -> None:
        """Until ssh answers, in another boot than `but`, and systemd has started everything; an error when it no longer `runs`."""
        deadline = time.monotonic() + BOOT_TIMEOUT
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                done = self._ssh("cat /proc/sys/kernel/random/boot_id && systemctl is-system-running --wait", 60)
                if done.stdout and not done.stdout.startswith(but or "\0") and done.returncode in (0, 1):
                    return
            if not runs():
                raise FleetError(
                    f"the emulated machine has ended instead of booting:\n{self.console.read_text()[-2000:]}"
                )
            if time.monotonic() > deadline:
                raise FleetError(
                    f"the emulated machine does not answer in {BOOT_TIMEOUT:.0f} s:\n{self.console.read_text()[-2000:]}"
                )
            time.sleep(0.5)  # qemu takes connections long before anybody in it does

    def _write(self, made: Path, port: int) -> None:
        options = {
            "HostName": "127.0.0.1",
            "Port": str(port),
            "User": "root",
            "IdentityFile": str(made / "key"),
            "IdentitiesOnly": "yes",
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
            "GlobalKnownHostsFile": "/dev/null",
            "LogLevel": "ERROR",
            "ConnectTimeout": "10",
            "ControlMaster": "auto",
            "ControlPersist": "yes",
            "ControlPath": str(self.control),
        }
        lines = [f"Host {NAME}", *(f'  {key} "{value}"' for key, value in options.items())]
        self.ssh_config.write_text("\n".join(lines) + "\n")
        variables = {
            "ansible_ssh_args": f"-F '{self.ssh_config}'",
            "ansible_control_path": str(self.control),
            "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_pipelining": True,
        }
        self.inventory.write_text(json.dumps({"all": {"hosts": {NAME: variables}}}, indent=2) + "\n")


def reasons_against(directory: Path = DIRECTORY) -> Iterator[str]:
    """Why it cannot run here; nothing if it can."""
    if os.uname().machine != "x86_64":
        yield f"only x86_64 is emulated, and this is {os.uname().machine}"
    yield from machine.reasons_against(directory, {**machine.PACKAGES, **PACKAGES})


def _qemu(made: Path, port: int) -> list[str]:
    # Never KVM: it works in some places and not in others, and a test has to be the same in all of them.
    return [
        "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "1024", "-smp", "2", "-nographic", "-no-user-config",
        "-kernel", f"{made}/kernel", "-initrd", f"{made}/initrd", "-append", "root=LABEL=root rw console=ttyS0 quiet",
        "-drive", f"file={made}/disk,if=virtio,format=raw,snapshot=on",
        "-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22", "-device", "virtio-net-pci,netdev=net,romfile=",
        "-device", "virtio-rng-pci",
    ]  # fmt: skip


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="emulated.py", description="One emulated machine, for tests.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser(
        "check", help="say what keeps it from running here: nothing and status 0, or reasons and status 3"
    )
    commands.add_parser("up", help="boot it and wait for ssh")
    commands.add_parser("down", help="end it")
    shell = commands.add_parser("shell", help="ssh into it")
    shell.add_argument("words", metavar="COMMAND", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    one = Emulated()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        if options.command in ("check", "up"):
            reasons = list(reasons_against())
            if reasons:
                print("\n".join(reasons))
                return 3
        if options.command == "up":
            began = time.monotonic()
            one.up()
            print(f"up ({time.monotonic() - began:.1f} s); inventory: {one.inventory}")
        elif options.command == "down":
            one.down()
        elif options.command == "shell":
            os.execvp("ssh", ["ssh", "-F", str(one.ssh_config), NAME, *options.words])
    except (FleetError, OSError) as error:
        print(f"emulated.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
