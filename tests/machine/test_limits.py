"""Limits that the kernel keeps: set, changed, reached; and what the agent does beside them, on a host with nothing but cgroup v2."""

from __future__ import annotations

import shutil
from pathlib import Path

from conftest import Machine

CHECKOUT = Path(__file__).resolve().parents[2]
FILES = ("memory.max", "memory.swap.max", "memory.oom.group", "cpu.max", "pids.max")
FORKS = """
import os, signal
for number in range(1, 10):
    try:
        if not os.fork():
            signal.pause()
    except OSError:
        print('no more than', number, flush=True)
        break
signal.pause()
"""
CALM = """
[calm]
command = "sleep 1000000"
"""
# Once told to, it takes a megabyte more at each step, as fast as it gets them, in a child: the instance is more than its main process.
HUNGRY = """
[hungry]
command = '''python3 -c "
import os
open('/run/eat').read()
if os.fork():
    os.wait()
    os.read(os.pipe()[0], 1)
print('eats', flush=True)
taken = []
while True:
    taken.append(b'x' * 2**20)
"'''
memory_max = "48M"
restart = "never"
"""
MEAL = "rm -f /run/eat && mkfifo /run/eat"


def test_limits_are_set_and_change_while_it_runs(machine: Machine) -> None:
    def text(limits: str) -> str:
        return f'{CALM}\n[limited]\ncommand = "sleep 1000000"\n{limits}'

    assert machine.apply(text('memory_max = "64M"\ncpu_max = "50%"\npids_max = 8'))["ok"]
    assert machine.cell("limited", *FILES) == {
        "memory.max": str(64 << 20),
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "cpu.max": "50000 100000",
        "pids.max": "8",
    }
    before = machine.pids()
    assert machine.cell("calm", "memory.max") == {"memory.max": "max"}
    made = machine.apply(text('memory_max = "96M"\ncpu_max = "150%"'))
    assert {row["name"]: row["action"] for row in made["instances"]} == {"calm": "none", "limited": "updated"}
    assert machine.cell("limited", *FILES) == {
        "memory.max": str(96 << 20),
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "cpu.max": "150000 100000",
        "pids.max": "max",
    }
    assert machine.apply(text(""))["ok"]
    found = machine.cell("limited", *FILES)
    assert found["memory.max"] == found["memory.swap.max"] == found["pids.max"] == "max"
    assert found["cpu.max"].startswith("max ")
    assert machine.pids() == before


def test_who_takes_too_much_memory_is_ended_alone_and_whole(machine: Machine) -> None:
    machine.apply(CALM)
    before = machine.pids()
    machine.ssh(MEAL)
    assert machine.apply(CALM + HUNGRY)["ok"]
    machine.ssh("echo >/run/eat")
    machine.until(lambda: machine.listed()["hungry"]["status"] in ("errored", "stopped"), "it is ended")
    found = machine.info("hungry")["info"]
    assert found["last_exit"]["cause"] == "oom", found
    assert "eats" in machine.ssh("cat /var/lib/pm3/logs/hungry-out.log")
    assert machine.pids()["calm"] == before["calm"]
    assert machine.ssh("pgrep -c -f '[t]aken.append' || true").strip() == "0"
    assert machine.ssh("systemctl is-active pm3").strip() == "active"


def test_who_is_ended_while_no_agent_looks_is_known_to_have_had_too_little(machine: Machine) -> None:
    """This kernel tells nobody but the parent how a process ended, and when the agent is back the parent is systemd."""
    machine.ssh(MEAL)
    assert machine.apply(CALM + HUNGRY)["ok"]
    pid = machine.pids()["hungry"]
    agent = machine.ssh("cat /var/lib/pm3/pm3.pid").strip()
    machine.ssh(
        f"kill -STOP {agent} && echo >/run/eat && while grep -q . /proc/{pid}/maps; do :; done; kill -KILL {agent};"
        f" until pm3 --json list >/dev/null 2>&1 && ! grep -qx {agent} /var/lib/pm3/pm3.pid; do :; done"
    )
    end = machine.info("hungry")["info"]["last_exit"]
    assert (end["cause"], end["signal"]) == ("oom", 9), end


HOLDS = """
[holds]
command = '''python3 -c "
import signal
taken = b'x' * (40 << 20)
print('holds', flush=True)
signal.pause()
"'''
instances = 2
"""


def test_one_that_holds_more_than_is_allowed_from_now_on_costs_one_instance_and_goes_back(machine: Machine) -> None:
    machine.apply(CALM)
    machine.ssh("rm -f /var/lib/pm3/logs/holds*")
    assert machine.apply(CALM + HOLDS + 'memory_max = "96M"')["ok"]
    machine.until(lambda: machine.ssh("cat /var/lib/pm3/logs/holds*-out.log").count("holds") == 2, "they hold it")
    before = machine.pids()
    made = machine.apply(CALM + HOLDS + 'memory_max = "24M"', fails=True)
    rows = {row["name"]: row for row in made["instances"]}
    assert made["reverted"]
    assert rows["holds:0"]["reason"].startswith(
        "holds more than the new memory_max allows: was ended by the kernel: out of memory; back on revision"
    )
    assert rows["holds:0"]["seconds"] > 0
    assert (rows["holds:1"]["action"], rows["holds:1"]["reason"]) == ("skipped", "not reached: holds:0 failed")
    after = machine.pids()
    assert after.keys() == before.keys()
    assert [name for name in before if after[name] != before[name]] == ["holds:0"]
    for name in ("holds:0", "holds:1"):
        assert machine.cell(name, "memory.max") == {"memory.max": str(96 << 20)}


def test_who_forks_too_much_gets_no_more(machine: Machine) -> None:
    bomb = f"\n[bomb]\ncommand = '''python3 -c \"{FORKS}\"'''\npids_max = 5"
    machine.apply(CALM + bomb)
    machine.until(lambda: "no more" in machine.ssh("cat /var/lib/pm3/logs/bomb-out.log"), "it is told that it cannot")
    assert machine.ssh("cat /var/lib/pm3/logs/bomb-out.log").split("\n")[0] == "no more than 5"
    assert machine.ssh("sleep 0 & wait && echo well").strip() == "well"


def test_who_takes_too_much_cpu_waits(machine: Machine) -> None:
    machine.apply(CALM + '\n[busy]\ncommand = "sh -c \'while :; do :; done\'"\ncpu_max = "10%"')

    def throttled() -> bool:
        said = machine.cell("busy", "cpu.stat")["cpu.stat"]
        return int(said.partition("nr_throttled ")[2].split()[0]) > 3

    machine.until(throttled, "it was made to wait")


LIMITED = CALM + '\n[limited]\ncommand = "sleep 1000000"\nmemory_max = "64M"\ncpu_max = "50%"\npids_max = 8'


def test_the_agent_can_be_killed_while_limits_are_set(machine: Machine) -> None:
    """systemd before 254 cannot start a unit again in whose cgroup a controller is enabled for children."""
    machine.apply(LIMITED)
    before, file = machine.pids(), machine.cell("limited", *FILES)
    agent = machine.ssh("cat /var/lib/pm3/pm3.pid").strip()
    for _turn in range(2):
        machine.ssh(
            f"kill -KILL {agent}; until pm3 --json list >/dev/null 2>&1 && ! grep -qx {agent} /var/lib/pm3/pm3.pid; do :; done"
        )
        agent = machine.ssh("cat /var/lib/pm3/pm3.pid").strip()
    assert machine.pids() == before
    assert machine.cell("limited", *FILES) == file
    assert not machine.apply(LIMITED)["changed"]


def test_an_upgrade_keeps_them(machine: Machine, tmp_path: Path) -> None:
    machine.apply(LIMITED)
    before, file = machine.pids(), machine.cell("limited", *FILES)
    other = tmp_path / "ansible_collections" / "pm3" / "fleet"
    for part in ("plugins", "roles", "meta"):
        shutil.copytree(CHECKOUT / part, other / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(CHECKOUT / "galaxy.yml", other)
    version = other / "plugins/module_utils/pm3/__init__.py"
    version.write_text(version.read_text().replace('VERSION = "', 'VERSION = "0.0.'))
    machine.install(tmp_path, tmp_path)
    assert "0.0." in machine.ssh("pm3 --version")
    assert machine.pids() == before
    assert machine.cell("limited", *FILES) == file


def test_a_reboot_brings_them_back(machine: Machine) -> None:
    machine.apply(LIMITED)
    file = machine.cell("limited", *FILES)
    machine.reboot()
    machine.until(lambda: {one["status"] for one in machine.listed().values()} == {"online"}, "all runs again")
    assert machine.cell("limited", *FILES) == file
    assert not machine.apply(LIMITED)["changed"]
