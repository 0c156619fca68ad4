"""One host: its files, its processes, and the steps of its life (make, start, power off, wipe).

A host is an overlay on the base root, and systemd booted in it by systemd-nspawn. Between the bench, whose commands come and go, and
nspawn stands the *keeper*, a loop in sh: nspawn ends with status 133 when the host reboots, and has to be started again by somebody
who is still there. All of a host's processes live in its cgroup:

    HOST/keeper      the loop
    HOST/machine     nspawn, which makes HOST/machine/supervisor for itself and HOST/machine/payload for the host

Only functions here, each safe to call in any state that a crash can leave.
"""

from __future__ import annotations

import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from bench import machine
from bench.cgroup import Group
from bench.machine import FleetError

NETWORK = "10.89.0"  # Nobody but the hosts and we can see it: it exists in the fleet's own network namespace alone.
MOST_HOSTS = 250
BOOT_TIMEOUT = 120.0
POWER_OFF_TIMEOUT = 30.0

# A new boot gets a new cgroup: the old one is full of the host's dead units, and once a unified hierarchy has controllers enabled for
# children nothing can join it any more. The last line ends what nspawn leaves behind when it is killed, and the keeper itself.
KEEPER = r"""
host=$1 hierarchies=$2; shift 2
echo $$ > "${hierarchies%% *}/$host/keeper/cgroup.procs" || exit
while :; do
    for hierarchy in $hierarchies; do
        find "$hierarchy/$host/machine" -depth -type d -exec rmdir {} + 2>/dev/null
        mkdir -p "$hierarchy/$host/machine"
    done
    HOST=$host HIERARCHIES=$hierarchies sh -c '
        for hierarchy in $HIERARCHIES; do echo $$ > "$hierarchy/$HOST/machine/cgroup.procs" || exit; done
        unset HOST HIERARCHIES
        exec "$@"' sh "$@"
    [ $? -eq 133 ] || break
done
echo 1 > "${hierarchies%% *}/$host/cgroup.kill"
"""


@dataclass(frozen=True)
class Host:
    """Where everything of one host is. `number` counts from 1 and gives its name and address."""

    number: int
    fleet: str
    directory: Path
    runtime: Path

    @property
    def name(self) -> str:
        return f"app{self.number}"

    @property
    def address(self) -> str:
        return f"{NETWORK}.{self.number + 1}"

    @property
    def machine(self) -> str:
        """The name for nspawn: unique on the machine, and with `vb-` before it still a legal interface name (15 characters)."""
        return f"{self.name}-{self.fleet[-4:]}"

    @property
    def root(self) -> Path:
        return self.directory / "root"

    @property
    def made(self) -> Path:
        return self.directory / "made"

    @property
    def answered(self) -> Path:
        """There once ssh has answered since the last `start`."""
        return self.directory / "answered"

    @property
    def console(self) -> Path:
        return self.directory / "console.log"

    @property
    def notify(self) -> Path:
        return self.runtime / f"{self.name}.notify"

    @property
    def group(self) -> Group:
        return Group(f"{self.fleet}/{self.name}")


def running(host: Host) -> bool:
    """Whether it runs and would come back after a reboot."""
    keeper, boot = host.group.child("keeper"), host.group.child("machine")
    return keeper.populated() and boot.populated() and os.path.ismount(host.root)


def prepare(host: Host, base: Path, public_key: str) -> None:
    """Mount the overlay; a host that is new, or whose disk belongs to another base, gets what makes it itself."""
    made = host.made.exists() and host.made.read_text() == base.name
    if not made:
        wipe(host)
    for folder in ("upper", "work", "root"):
        (host.directory / folder).mkdir(parents=True, exist_ok=True)
    if not os.path.ismount(host.root):
        layers = f"lowerdir={base},upperdir={host.directory}/upper,workdir={host.directory}/work"
        machine.run("mount", "-t", "overlay", host.fleet, "-o", layers, host.root)
    if made:
        return
    etc = host.root / "etc"
    (etc / "machine-id").write_text(secrets.token_hex(16) + "\n")
    (etc / "hostname").write_text(host.name + "\n")
    neighbours = "".join(f"{NETWORK}.{number + 1} app{number}\n" for number in range(1, MOST_HOSTS + 1))
    (etc / "hosts").write_text(f"127.0.0.1 localhost\n::1 localhost\n{neighbours}")
    # The name must sort before 80-container-host0.network, which asks DHCP.
    (etc / "systemd/network/10-host0.network").write_text(
        f"[Match]\nName=host0\n\n[Network]\nAddress={host.address}/24\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n"
    )
    for home in (host.root / "root", host.root / "home/deploy"):
        keys = home / ".ssh/authorized_keys"
        keys.write_text(public_key)
        keys.chmod(0o600)
        os.chown(keys, home.stat().st_uid, home.stat().st_gid)
    host.made.write_text(base.name)


def start(host: Host, namespace: str) -> subprocess.Popen[bytes]:
    """Start the keeper, and with it the host, in the fleet's network namespace. `wait_ready` tells when it is up."""
    host.answered.unlink(missing_ok=True)
    for part in ("keeper", "machine"):
        host.group.child(part).make()
    nspawn = [
        "systemd-nspawn", "--quiet", f"--directory={host.root}", f"--machine={host.machine}", f"--hostname={host.name}",
        "--register=no", "--keep-unit", "--network-bridge=bridge0", "--console=pipe", "--notify-ready=yes",
        "--link-journal=no", "--resolv-conf=off", "--timezone=off", "--boot",
    ]  # fmt: skip
    hierarchies = " ".join(str(folder)[: -len(host.group.name) - 1] for folder in host.group.folders)
    command = [
        "nsenter",
        f"--net=/run/netns/{namespace}",
        "sh",
        "-c",
        KEEPER,
        "keeper",
        host.group.name,
        hierarchies,
        *nspawn,
    ]
    with host.console.open("ab") as console:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            cwd="/",
            env=machine.CLEAN_ENVIRONMENT | {"NOTIFY_SOCKET": str(host.notify)},
            start_new_session=True,
        )


class Readiness:
    """Hears nspawn say that the host has booted (sd_notify, `READY=1`). Open it before whatever makes the host boot."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.deadline = time.monotonic() + BOOT_TIMEOUT
        host.notify.unlink(missing_ok=True)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(str(host.notify))

    def fileno(self) -> int:
        return self.socket.fileno()

    def heard(self) -> bool:
        """Read what has come; whether the host is ready."""
        ready = False
        try:
            while message := self.socket.recv(65536):
                ready = ready or b"READY=1" in message.splitlines()
        except BlockingIOError:
            return ready
        return ready

    def late(self) -> FleetError:
        return FleetError(
            f"{self.host.name} did not boot within {BOOT_TIMEOUT:.0f} s; its console: {self.host.console}"
        )

    def wait(self) -> None:
        """Wait until it is ready; FleetError if it ends instead or the time is over."""
        events = os.open(self.host.group.child("keeper").folders[0] / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        try:
            poll = select.poll()
            poll.register(self.socket, select.POLLIN)
            poll.register(events, select.POLLPRI)
            while not self.heard():
                if b"populated 0" in os.pread(events, 4096, 0):
                    raise FleetError(f"{self.host.name} has ended instead of booting; its console: {self.host.console}")
                if not poll.poll(max(0.0, self.deadline - time.monotonic()) * 1000):
                    raise self.late()
        finally:
            os.close(events)

    def close(self) -> None:
        self.socket.close()
        self.host.notify.unlink(missing_ok=True)


def signal_init(host: Host, number: int) -> bool:
    """Send a signal to the host's pid 1, the child of nspawn; False if there is none."""
    for pid in host.group.child("machine").pids():
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            pids = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[1:]
            # Two levels: ours and the host's. More would be a container inside the host.
            if len(pids) == 2 and pids[1] == "1":
                os.kill(pid, number)
                return True
        except (OSError, StopIteration):
            continue
    return False


def power_off(host: Host) -> None:
    """Ask systemd in the host to power off (SIGRTMIN+4, systemd(1)); returns at once."""
    signal_init(host, signal.SIGRTMIN + 4)


def end(host: Host, patience: float = 0.0) -> None:
    """Wait `patience` seconds for the host to end, then kill what is left. Afterwards nothing of it is in the kernel: no
    process, cgroup, mount, interface or nspawn state."""
    if patience:
        host.group.wait_empty(patience)
    host.group.kill()
    host.group.remove()
    # nspawn removes these itself unless it was killed; names and format from its source (nspawn.c, lock-util).
    nspawn = Path("/run/systemd/nspawn")
    for kind in ("propagate", "unix-export"):
        machine.remove_tree(nspawn / kind / host.machine)
    if os.path.ismount(host.root):
        root = host.root.stat()
        (nspawn / "locks" / f"inode-{root.st_dev}:{root.st_ino}").unlink(missing_ok=True)
    machine.succeeds("ip", "-n", host.fleet, "link", "del", f"vb-{host.machine}")
    machine.unmount_below(host.directory)
    host.notify.unlink(missing_ok=True)


def wipe(host: Host) -> None:
    """Take the host's disk away. It must have ended."""
    host.made.unlink(missing_ok=True)  # First: what is left of a half removed disk must not count as one.
    machine.remove_tree(host.directory)
    if host.directory.parent.exists() and not any(host.directory.parent.iterdir()):
        shutil.rmtree(host.directory.parent)
