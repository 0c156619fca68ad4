#!/usr/bin/env python
"""The fleet bench: boots real hosts on one machine, for the tests in this folder and for trying things by hand.

A host has systemd as pid 1, sshd, an address and a disk of its own, and can be rebooted; twenty of them are up in seconds. All of it
lives in a network namespace, a few mounts and one cgroup tree named after the bench's folder, so two checkouts do not meet and the
machine's own network is not touched. There is no record of what runs: every command asks the kernel, so a crash leaves nothing
that the next `up` or `down` does not see.

This file is what people (the commands at the end) and tests (`Fleet`) use; the parts are in bench/.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import json
import os
import selectors
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench import base, host, machine, wheels
from bench.cgroup import Group
from bench.host import Host, Readiness
from bench.machine import FleetError

DEFAULT_DIRECTORY = Path(__file__).resolve().parents[2] / ".cache" / "fleet"
BOOT_TOGETHER = 8
# The kernel counts those of all hosts together: systemd, logind, dbus, networkd and what is tested make twelve on each.
INOTIFY_INSTANCES = 64 + 12 * host.MOST_HOSTS
USERS = ("root", "deploy")
CLONE_NEWNET = 0x40000000


class Fleet:
    """The hosts app1..appN whose files are in `directory`. All methods are idempotent and may be called from any process, in
    the fleet's network namespace or outside. What is made once and only read is in `store`: by default it is the same folder."""

    def __init__(self, directory: Path | str = DEFAULT_DIRECTORY, store: Path | None = None) -> None:
        self.directory = Path(directory).absolute()
        self.store = store or self.directory
        self.name = "pm3-" + hashlib.sha256(os.fsencode(self.directory)).hexdigest()[:8]
        self.runtime = (
            Path("/run") / f"{self.name}-fleet"
        )  # Short: what is in it are sockets, and their paths are limited.
        self.key = self.directory / "key"
        self.ssh_config = self.directory / "ssh_config"
        self.inventory = self.directory / "inventory.yml"

    def beside(self, name: str) -> Fleet:
        """Another fleet with hosts of its own, on the same store, which ends with this one: for tests that run at the same time."""
        return Fleet(self.directory / "beside" / name, self.store)

    # What there is

    def host(self, name: str) -> Host:
        number = name.removeprefix("app")
        if not (
            name.startswith("app")
            and number.isdecimal()
            and 1 <= int(number) <= host.MOST_HOSTS
            and number == str(int(number))
        ):
            raise FleetError(f"no host can be named {name!r}: they are app1 to app{host.MOST_HOSTS}")
        return Host(int(number), self.name, self.directory / "hosts" / name, self.runtime)

    def hosts(self) -> list[Host]:
        """Every host that has a disk or, after whatever accident, processes only."""
        disks = {entry.name for entry in self._entries("hosts")}
        groups = {child.name.rpartition("/")[2] for child in Group(self.name).children()}
        names = (disks | groups) - {"build"}
        return sorted((self.host(name) for name in names), key=lambda found: found.number)

    def running(self) -> list[str]:
        return [found.name for found in self.hosts() if host.running(found)]

    def netns_prefix(self) -> list[str]:
        """What goes before a command so that it reaches the hosts. Harmless where it already does."""
        return ["nsenter", f"--net=/run/netns/{self.name}", "--"]

    def enter(self) -> None:
        """From now on this thread, and all that it starts, reaches the hosts and nothing else."""
        libc = ctypes.CDLL(None, use_errno=True)  # os.setns came with Python 3.12
        with Path("/run/netns", self.name).open() as namespace:
            if libc.setns(namespace.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "the network of the hosts cannot be entered")

    def ssh_command(self, name: str, *command: str, user: str = "root", options: Sequence[str] = ()) -> list[str]:
        return [
            *self.netns_prefix(),
            "ssh",
            "-F",
            str(self.ssh_config),
            *options,
            "-l",
            user,
            self.host(name).name,
            *command,
        ]

    def ssh(
        self, name: str, command: str, user: str = "root", timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command on a host and give its output and status."""
        words = self.ssh_command(name, command, user=user)
        return subprocess.run(
            words, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout
        )

    # What can be done

    def up(self, count: int = 3) -> list[str]:
        """Boot those of app1..appCOUNT that do not run, and wait until ssh answers on them; gives the names booted. If it fails or
        is interrupted, the hosts it had to make are gone again, and so is all else if nothing ran before."""
        if not 0 < count <= host.MOST_HOSTS:
            raise FleetError(f"a fleet has 1 to {host.MOST_HOSTS} hosts, not {count}")
        with self._alone():
            wanted = [self.host(f"app{number}") for number in range(1, count + 1)]
            new = [one for one in wanted if not host.running(one)]
            made_here = [one for one in new if not one.made.exists()]
            try:
                if new:
                    machine.install_packages()
                    root = self._make_base()
                    self._lay_network()
                    self._write_key()
                    self._raise_inotify()
                    self._boot(new, root)
                for one in wanted:
                    if not one.answered.exists():  # It was booting when an earlier `up` was killed.
                        self._wait_ssh(one)
                self._write_inventory()
            except BaseException:
                for one in new:
                    host.end(one)
                for one in made_here:
                    host.wipe(one)
                if not self.running():
                    self._end()
                raise
            return [one.name for one in new]

    def down(self, cache: bool = False) -> None:
        """End all hosts and remove everything of them, also of the fleets beside; the base root stays unless `cache` is true."""
        for folder in self._entries("beside/*"):
            self.beside(folder.name).down()
            machine.remove_tree(folder)
        with self._alone():
            self._end()
            if cache:
                for entry in (*self._entries("base-*"), self.directory / "base.log"):
                    machine.remove_tree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)

    def wheels(self) -> Path:
        """The folder with packages of Python with which a host can run Ansible itself. From outside their network only, the first time."""
        root = self._make_base()
        with machine.alone(self.store / "store.lock"):
            return wheels.fetch(self.store, root)

    def reboot(self, name: str) -> None:
        """Reboot a host properly and wait until ssh answers again."""
        with self._alone():
            one = self._running_host(name)
            readiness = Readiness(one)
            try:
                self._end_ssh_masters(one)
                if not host.signal_init(one, signal.SIGRTMIN + 5):
                    raise FleetError(f"{name} has no init to reboot")
                readiness.wait()
                self._wait_ssh(one)
            finally:
                readiness.close()

    def reset(self, *names: str) -> None:
        """Give these hosts (all, if none is named) a fresh disk and boot them. The plug is pulled: nothing of the old disk counts."""
        with self._alone():
            chosen = [self.host(name) for name in names] if names else self.hosts()
            if not Path("/run/netns", self.name).exists():
                raise FleetError("no host runs; 'up' boots them")
            root = self._make_base()
            for one in chosen:
                self._end_ssh_masters(one)
                host.end(one)
                host.wipe(one)
            self._boot(chosen, root)

    # How it is done

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        """One change at a time: two processes that boot or end hosts of this fleet wait for each other."""
        return machine.alone(self.directory / "lock")

    def _entries(self, pattern: str) -> list[Path]:
        if pattern == "hosts":
            return [entry for entry in (self.directory / "hosts").glob("app*") if entry.is_dir()]
        return list(self.directory.glob(pattern))

    def _running_host(self, name: str) -> Host:
        one = self.host(name)
        if not host.running(one):
            raise FleetError(f"{name} does not run; 'up' boots it (running: {', '.join(self.running()) or 'none'})")
        return one

    def _make_base(self) -> Path:
        in_use = any(next(self.store.glob(f"{place}hosts/app*"), None) for place in ("", "beside/*/"))
        with machine.alone(self.store / "store.lock"):
            return base.make(self.store, Group(self.name).child("build"), in_use)

    def _lay_network(self) -> None:
        """The namespace, and the bridge that nspawn hangs the hosts on. Each step is safe to repeat after a crash in between."""
        namespace = Path("/run/netns", self.name)
        if not os.path.ismount(namespace):
            namespace.unlink(missing_ok=True)
            machine.run("ip", "netns", "add", self.name)
        inside = ("ip", "-n", self.name)
        if not machine.succeeds(*inside, "link", "show", "bridge0"):
            machine.run(*inside, "link", "add", "bridge0", "type", "bridge")
        machine.run(*inside, "addr", "replace", f"{host.NETWORK}.1/24", "dev", "bridge0")
        for link in ("lo", "bridge0"):
            machine.run(*inside, "link", "set", link, "up")
        self.runtime.mkdir(mode=0o700, exist_ok=True)

    def _write_key(self) -> None:
        if not self.key.exists():
            machine.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.name, "-f", self.key)

    @staticmethod
    def _raise_inotify() -> None:
        limit = Path("/proc/sys/fs/inotify/max_user_instances")
        if int(limit.read_text()) < INOTIFY_INSTANCES:
            limit.write_text(str(INOTIFY_INSTANCES))

    def _boot(self, hosts: Sequence[Host], root: Path) -> None:
        """Boot hosts, a few at a time, and wait until ssh answers on each."""
        public_key = self.key.with_suffix(".pub").read_text()
        waiting = list(hosts)
        booting: dict[Host, tuple[Readiness, subprocess.Popen[bytes], int]] = {}
        self._write_ssh_config()
        with selectors.DefaultSelector() as selector:

            def forget(one: Host) -> None:
                readiness, __, keeper = booting.pop(one)
                for watched in (readiness, keeper):
                    selector.unregister(watched)
                readiness.close()
                os.close(keeper)

            try:
                while waiting or booting:
                    while waiting and len(booting) < BOOT_TOGETHER:
                        one = waiting.pop(0)
                        host.end(one)  # What a crash left of it.
                        host.prepare(one, root, public_key)
                        readiness = Readiness(one)
                        process = host.start(one, self.name)
                        booting[one] = readiness, process, os.pidfd_open(process.pid)
                        for watched in (readiness, booting[one][2]):
                            selector.register(watched, selectors.EVENT_READ, one)
                    soonest = min(booting.values(), key=lambda found: found[0].deadline)[0]
                    news = selector.select(max(0.0, soonest.deadline - time.monotonic()))
                    if not news:
                        raise soonest.late()
                    for one in {key.data for key, _events in news}:
                        if booting[one][0].heard():
                            self._wait_ssh(one)
                            forget(one)
                        elif booting[one][1].poll() is not None:
                            raise FleetError(f"{one.name} has ended instead of booting; its console: {one.console}")
            finally:
                for one in list(booting):
                    forget(one)

    def _wait_ssh(self, one: Host) -> None:
        # ssh itself is the one who tries again, once a second at most.
        options = (
            "-o",
            "ConnectTimeout=5",
            "-o",
            "ConnectionAttempts=20",
            "-o",
            "ControlMaster=no",
            "-o",
            "ControlPath=none",
        )
        machine.run(*self.ssh_command(one.name, "true", options=options))
        one.answered.touch()

    def _end_ssh_masters(self, one: Host) -> None:
        """A shared ssh connection to a host that goes away would hang its next user."""
        for control in self.runtime.glob(f"{one.address}-*"):
            machine.succeeds("ssh", "-o", f"ControlPath={control}", "-O", "exit", one.address)
            control.unlink(missing_ok=True)

    def _ssh_options(self) -> dict[str, str]:
        return {
            "IdentityFile": str(self.key),
            "IdentitiesOnly": "yes",
            "StrictHostKeyChecking": "no",  # Every fresh host has this address and the base's host key.
            "UserKnownHostsFile": "/dev/null",
            "GlobalKnownHostsFile": "/dev/null",
            "LogLevel": "ERROR",
            "ConnectTimeout": "10",
            "ControlMaster": "auto",
            "ControlPersist": "60s",
            "ControlPath": f"{self.runtime}/%h-%r",
        }

    def _write_ssh_config(self) -> None:
        # OpenSSH has no arithmetic, so each possible host has a block of its own.
        blocks = [
            f"Host app{number}\n  HostName {host.NETWORK}.{number + 1}" for number in range(1, host.MOST_HOSTS + 1)
        ]
        lines = ["# Written by hosts.py up.", *blocks, "Host *", "  User root"]
        lines += [
            f'  {key} "{value}"' if " " in value else f"  {key} {value}" for key, value in self._ssh_options().items()
        ]
        self.ssh_config.write_text("\n".join(lines) + "\n")

    def _write_inventory(self) -> None:
        """Written as JSON, which YAML contains: no path needs thought about quoting. Ansible looks for the Control options itself."""
        options = {key: value for key, value in self._ssh_options().items() if key != "IdentityFile"}
        content = {
            "fleet": {
                "hosts": {one.name: {"ansible_host": one.address} for one in self.hosts()},
                "vars": {
                    "ansible_user": "root",
                    "ansible_ssh_private_key_file": str(self.key),
                    "ansible_python_interpreter": "/usr/bin/python3",
                    "ansible_ssh_args": " ".join(
                        f"-o {shlex.quote(f'{key}={value}')}" for key, value in options.items()
                    ),
                    "ansible_pipelining": True,
                },
            }
        }
        self.inventory.write_text(json.dumps(content, indent=2) + "\n")

    def _end(self) -> None:
        """Everything but the base: hosts, network, key, files."""
        hosts = self.hosts()
        Group(self.name).child("build").kill()  # Left by an `up` that was killed while it made the base.
        for one in hosts:
            self._end_ssh_masters(one)
            host.power_off(one)
        deadline = time.monotonic() + host.POWER_OFF_TIMEOUT
        for one in hosts:
            host.end(one, patience=max(0.001, deadline - time.monotonic()))
            host.wipe(one)
        Group(self.name).remove()
        for partial in self._entries("base-*.partial"):
            machine.remove_tree(partial)
        if Path("/run/netns", self.name).exists():
            machine.run("ip", "netns", "del", self.name)
        machine.remove_tree(self.runtime)
        for file in (self.key, self.key.with_suffix(".pub"), self.ssh_config, self.inventory):
            file.unlink(missing_ok=True)


# The commands


def main(arguments: Sequence[str] | None = None) -> int:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--dir", type=Path, default=DEFAULT_DIRECTORY, help="where the bench keeps its files (%(default)s)"
    )
    parser = argparse.ArgumentParser(prog="hosts.py", description="Real hosts on this machine, for tests.")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, purpose: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=purpose, description=purpose, parents=[common])

    command("check", "say what keeps hosts from running on this machine: nothing and status 0, or reasons and status 3")
    command("up", "boot app1..appN and wait for ssh").add_argument("count", metavar="N", type=int, nargs="?", default=3)
    command("down", "end all hosts").add_argument("--cache", action="store_true", help="remove the base root too")
    command("list", "name the hosts that run")
    command("wheels", "fetch what hosts need to run Ansible themselves, and name the folder")
    command("reboot", "reboot a host and wait until it is back").add_argument("name", metavar="NAME")
    reset = command("reset", "give hosts a fresh disk and boot them")
    reset.add_argument("names", metavar="NAME", nargs="*")
    reset.add_argument("--all", action="store_true")
    command("run", "run a command that can reach the hosts").add_argument(
        "words", metavar="COMMAND", nargs=argparse.REMAINDER
    )
    shell = command("shell", "ssh into a host")
    shell.add_argument("--user", default="root", choices=USERS)
    shell.add_argument("name", metavar="NAME")
    shell.add_argument("words", metavar="COMMAND", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    if options.command == "reset" and bool(options.names) == options.all:
        reset.error("name hosts, or say --all")

    fleet = Fleet(options.dir)
    # An interrupted `up` cleans up behind itself, whoever interrupts it.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        return perform(fleet, options)
    except (FleetError, OSError) as error:
        print(f"hosts.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def perform(fleet: Fleet, options: argparse.Namespace) -> int:
    """One command; gives the exit status."""
    reasons = list(machine.reasons_against(fleet.directory)) if options.command in ("check", "up") else []
    if reasons:
        print("\n".join(reasons))
        return 3
    if options.command == "down" and sys.platform != "linux":
        return 0  # Nothing can be up.
    if options.command == "up":
        began = time.monotonic()
        booted = fleet.up(options.count)
        print(
            f"{', '.join(booted) or 'nothing to do'} ({time.monotonic() - began:.1f} s); inventory: {fleet.inventory}"
        )
    elif options.command == "down":
        fleet.down(cache=options.cache)
    elif options.command == "wheels":
        print(fleet.wheels())
    elif options.command == "list":
        print(*fleet.running(), sep="\n")
    elif options.command == "reboot":
        fleet.reboot(options.name)
    elif options.command == "reset":
        fleet.reset(*options.names)
    elif options.command in ("run", "shell"):
        words = options.words[1:] if options.words[:1] == ["--"] else options.words
        if not fleet.running():
            raise FleetError("no host runs; 'up' boots them")
        line = (
            [*fleet.netns_prefix(), *words]
            if options.command == "run"
            else fleet.ssh_command(options.name, *words, user=options.user)
        )
        # In our place, so that terminal, signals and exit status are the command's.
        os.execvp(line[0], line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
