"""`pm3 startup` with a real systemd: a user's own agent is handed over, comes back after a reboot, and is handed back."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from conftest import CHECKOUT, Play, processes, shop
from hosts import Fleet

HOST, USER = "app2", "deploy"
DATA_DIR = "/home/deploy/my agent 100%"  # so that it also shows what is quoted where
UNIT = "/home/deploy/.config/systemd/user/pm3.service"

# web ignores SIGTERM and leaves something behind: a stop must also find that where the instance has no cgroup of ours, or the agent has
# none any more; and a check that runs beside it changes nothing about that.
SHOP = r"""
[web]
command = "sh -c 'setsid sleep 1000001 >/dev/null 2>&1 & trap : TERM; while :; do echo tick; sleep 0.1; done'"
instances = 2
kill_timeout = 500
liveness_check = "exec://true"
liveness_interval = 1

[rest]
command = "sleep 1000002"
"""


@dataclass
class Person:
    """Somebody with a shell on a host, who has the command in a folder of their own."""

    fleet: Fleet

    def types(self, command: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        line = f"cd ~/shop; export PM3_DATA_DIR='{DATA_DIR}'; pm3() {{ /usr/bin/python3 -I -S ~/pm3/__main__.py \"$@\"; }}; {command}"
        done = self.fleet.ssh(HOST, line, user=USER)
        assert done.returncode == status, done.stdout + done.stderr
        return done

    def pids(self) -> dict[str, int | None]:
        listed = json.loads(self.types("pm3 --json list").stdout)
        return {one["name"]: one.get("pid") for one in listed["processes"]}

    def facts(self, status: int = 0) -> dict[str, str]:
        document = json.loads(self.types("pm3 doctor --json", status).stdout)
        return {fact["name"]: fact["text"] for fact in document["facts"]}


@pytest.fixture
def person(fleet: Fleet) -> Iterator[Person]:
    packed = subprocess.run(
        ["tar", "c", "--exclude=__pycache__", "-C", str(CHECKOUT / "plugins" / "module_utils"), "pm3"],
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    subprocess.run(fleet.ssh_command(HOST, "mkdir -p shop; tar x", user=USER), input=packed, check=True)
    one = Person(fleet)
    one.types(f"cat > pm3.toml <<'END'\n{SHOP}END")
    yield one
    one.types("pm3 unstartup; pm3 kill; cd; rm -rf shop pm3 'my agent 100%'; sudo loginctl disable-linger deploy")


def test_an_agent_is_handed_over_and_back_and_survives_a_reboot(person: Person, fleet: Fleet) -> None:
    person.types("pm3 apply")
    before = person.pids()

    # Without lingering it would be half a service, and root alone may grant that here.
    refused = person.types("pm3 startup", status=1)
    assert "sudo loginctl enable-linger deploy" in refused.stderr
    assert person.types(f"ls {UNIT} 2>&1 || true").stdout.startswith("ls: cannot access")
    person.types("sudo loginctl enable-linger deploy")

    done = person.types("pm3 startup")
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "The agent that runs is handed over to systemd; its processes run on.",
        f"Service installed: {UNIT}",
    ]
    assert person.pids() == before
    facts = person.facts()
    assert facts["manager"].endswith("systemd keeps the agent")
    assert facts["service"] == UNIT
    assert person.types("systemctl --user is-active pm3 pm3-cells").stdout.split() == ["active", "active"]

    # What it was given it keeps as if it had begun it: output, end, and a new beginning in a cgroup of its own.
    agent = person.types('cat "$PM3_DATA_DIR/pm3.pid"').stdout
    person.types('tail -n 0 -f "$PM3_DATA_DIR/logs/web:1-out.log" | grep -m 1 tick')
    person.types("pm3 stop web:0; pm3 stop rest")
    assert person.types(f"pgrep -s {before['web:0']} || true").stdout == ""
    assert len(person.types("pgrep -fx 'sleep 1000001'").stdout.split()) == 1
    person.types("pm3 start web")
    changed = person.pids()
    assert changed["web:1"] == before["web:1"]
    assert "pm3-cells.service" in person.types(f"cat /proc/{changed['web:0']}/cgroup").stdout

    assert person.types("pm3 startup").stderr == f"Service installed: {UNIT}\n"
    assert person.types('cat "$PM3_DATA_DIR/pm3.pid"').stdout == agent
    assert person.pids() == changed

    # Another Python in the unit, as after an upgrade of the host: an upgrade in place would go on with the one before.
    person.types(f"sed -i s,bin/python3,bin/old-python3, {UNIT}")
    assert person.types("pm3 startup").stderr.splitlines() == [
        "The agent is begun anew, as its new unit says; its processes run on.",
        f"Service installed: {UNIT}",
    ]
    assert person.types('cat "$PM3_DATA_DIR/pm3.pid"').stdout != agent
    assert person.pids() == changed

    fleet.reboot(HOST)
    back = person.pids()
    assert sorted(name for name, pid in back.items() if pid) == ["web:0", "web:1"]
    assert back["rest"] is None

    done = person.types("pm3 unstartup")
    assert done.stderr.splitlines()[:2] == [
        "The agent and its 3 instances go on without the service until the next boot; pm3 kill ends them.",
        f"Service removed: {UNIT}",
    ]
    assert person.pids() == back
    assert "a keeper of its own" in person.facts()["manager"]
    assert person.types("pm3 unstartup").stderr == f"No service file found at {UNIT}\n"
    person.types("pm3 stop")
    assert person.types("pgrep -f 'sleep 100000[12]' || true").stdout == ""


def test_a_start_that_fails_leaves_nothing_behind(person: Person) -> None:
    person.types("sudo loginctl enable-linger deploy")
    person.types('mkdir -p "$PM3_DATA_DIR"; head -c 100000 /dev/zero | tr \'\\0\' x > "$PM3_DATA_DIR/store.sqlite"')
    refused = person.types("pm3 startup", status=1)
    assert refused.stderr.startswith("error: systemctl --user start pm3.service failed: ")
    assert "cannot be read as the agent's store" in refused.stderr
    assert person.types(f'ls -A $(dirname {UNIT}); ls -A "$PM3_DATA_DIR" | grep -c managed || true').stdout == "0\n"
    assert "0 loaded units" in person.types("systemctl --user list-units --all 'pm3*'").stdout
    person.types('rm "$PM3_DATA_DIR/store.sqlite"')


@pytest.mark.usefixtures("clean")
def test_the_hosts_agent_stays_as_the_role_made_it(fleet: Fleet, play: Play) -> None:
    play([processes(definitions=shop())])
    about = "cat /var/lib/pm3/pm3.pid; pm3 --json list | tr ',' '\\n' | grep '\"pid\"'"
    before = fleet.ssh(HOST, about).stdout
    assert fleet.ssh(HOST, "pm3 startup").stderr == "Service installed: /etc/systemd/system/pm3.service\n"
    assert fleet.ssh(HOST, about).stdout == before
    assert play([{"pm3.fleet.agent": {}}]).output.count("changed=0") == 3

    assert fleet.ssh(HOST, "pm3 unstartup && pm3 startup").returncode == 0
    assert fleet.ssh(HOST, about).stdout.splitlines()[1:] == before.splitlines()[1:]
    assert play([{"pm3.fleet.agent": {}}]).output.count("changed=0") == 3
    assert play([processes(definitions=shop())]).output.count("changed=0") == 3
