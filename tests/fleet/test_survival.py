"""What the agent survives, and what its instances do: crash, upgrade, reboot, an administrator's systemctl."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from conftest import SHOP_INSTANCES, UNWRITTEN, WRITER, Play, processes, shop
from hosts import Fleet

pytestmark = pytest.mark.usefixtures("clean")

Pids = Callable[[str], dict[str, int]]


# How many times the writer's lines go from 1 to its last words.
RUNS = (
    'awk \'$0 == "end" {runs++; n = 0; next} $0 != ++n {print "line " NR " is " $0; exit 1} END {print runs " runs"}\''
    " /var/lib/pm3/logs/writer-out.log"
)


def test_reboot_brings_everything_back_in_order(fleet: Fleet, play: Play, modules: object) -> None:
    others = {"rest": {"command": "sleep 1000000"}, "writer": {"command": WRITER, "log_max_size": "1G"}}
    fleet.ssh("app1", UNWRITTEN)
    play([processes(definitions=shop(**others))])
    fleet.ssh("app1", "pm3 stop rest; pm3 restart writer")
    fleet.reboot("app1")
    info = getattr(modules.app1, "pm3.fleet.process_info")(names=["db", "web", "worker"], wait_for="online", timeout=60)  # type: ignore[attr-defined]
    found = {one["name"]: one for one in info["app1"]["instances"]}
    assert sorted(found) == sorted(SHOP_INSTANCES)
    assert {one["status"] for one in found.values()} == {"online"}
    # web ends at once where a database does not answer yet, so these counters say in which order they came.
    assert {one["total_restarts"] for one in found.values()} == {0}
    listed = {one["name"]: one for one in json.loads(fleet.ssh("app1", "pm3 --json list").stdout)["processes"]}
    assert listed["rest"]["status"] == "stopped"
    assert (listed["writer"]["restarts"], listed["writer"]["total_restarts"]) == (0, 1)
    again = play([processes(definitions=shop(**others))], hosts="app1")
    assert {name: action for name, action in again.actions().items() if action != "none"} == {"rest": "started"}
    fleet.ssh("app1", "pm3 stop writer")
    assert fleet.ssh("app1", RUNS).stdout == "3 runs\n", (
        "of each of its three runs every line is there, to the last words"
    )


def test_sigkill_of_the_agent_touches_no_process(fleet: Fleet, play: Play, pids: Pids) -> None:
    play([processes(definitions=shop())])
    before = pids("app1")
    for _turn in range(5):
        old = fleet.ssh("app1", "systemctl show pm3 --property=MainPID --value").stdout.strip()
        fleet.ssh(
            "app1",
            f"kill -KILL {old}; while ! pm3 --json list >/dev/null 2>&1 || [ $(cat /var/lib/pm3/pm3.pid) = {old} ]; do :; done",
        )
        assert pids("app1") == before
    assert play([processes(definitions=shop())], hosts="app1").output.count("changed=0") == 1


def test_sigkill_with_more_descriptors_than_the_usual_limit(fleet: Fleet, play: Play, pids: Pids) -> None:
    """systemd keeps 1200 of them for the agent, and a program that begins under a limit of 1024 could not even be loaded."""
    many = {"many": {"command": "sleep 1000000", "instances": 400, "min_uptime": 1}}
    assert play([processes(definitions=many)], hosts="app1").status == 0
    before = pids("app1")
    another = "pm3 --json list && [ $(cat /var/lib/pm3/pm3.pid) != $old ]"
    killed = f"old=$(cat /var/lib/pm3/pm3.pid); kill -KILL $old; until {another}; do :; done"
    assert fleet.ssh("app1", f"{{ {killed}; }} >/dev/null 2>&1").returncode == 0
    assert pids("app1") == before
    limit = fleet.ssh("app1", f"grep 'Max open files' /proc/{before['many:0']}/limits").stdout
    assert limit.split()[3] == "1024"


def test_systemctl_stop_ends_everything_and_start_brings_it_back(fleet: Fleet, play: Play, pids: Pids) -> None:
    play([processes(definitions=shop())])
    before = pids("app1")
    fleet.ssh("app1", "systemctl stop pm3")
    left = fleet.ssh(
        "app1", "cat /sys/fs/cgroup/unified/system.slice/pm3-cells.service/*/cgroup.procs 2>/dev/null | wc -l"
    ).stdout
    assert left.strip() == "1", "only the anchor of the cells is left"
    fleet.ssh("app1", "systemctl start pm3")
    assert sorted(pids("app1")) == sorted(before)


def test_no_orphans(fleet: Fleet, play: Play) -> None:
    """Whatever they do to be somebody else's, they are in the instance's cell. Without cells: tests/integration/agent/test_orphans.py."""
    nap, stay = "sleep 1000001", "exec sleep 1000000"
    scripts = {
        "forks": f"setsid -f setsid -f {nap}; {stay}",
        "nohup": f"nohup {nap} >/dev/null 2>&1 & {stay}",
        "jobs": f"set -m; {nap} & {nap} & {stay}",
        "stubborn": f'(trap "" TERM; {nap}; {nap}) & {stay}',
        "hidden": f"env -i setsid -f {nap} >/dev/null 2>&1 </dev/null; {stay}",
    }
    left = "pgrep -fc '^sleep 1000001' || true"
    definitions = {name: {"command": f"sh -c '{script}'"} for name, script in scripts.items()}
    done = play([processes(definitions=definitions)], hosts="app1")
    assert done.status == 0, done.output
    assert int(fleet.ssh("app1", left).stdout) == len(scripts) + 1
    fleet.ssh("app1", "pm3 stop")
    assert int(fleet.ssh("app1", left).stdout) == 0


def test_removing_the_agent(fleet: Fleet, play: Play) -> None:
    play([processes(definitions=shop())])
    refused = play([{"pm3.fleet.agent": {"state": "absent"}}], hosts="app2")
    assert refused.status != 0
    assert "stop_instances" in refused.output
    gone = play([{"pm3.fleet.agent": {"state": "absent", "stop_instances": True, "purge": True}}], hosts="app2")
    assert gone.status == 0, gone.output
    left = "find / -xdev -path /proc -prune -o -path /sys -prune -o -name '*pm3*' -print 2>/dev/null | grep -v -e /tmp -e ansible"
    assert fleet.ssh("app2", f"{left} || true").stdout.strip() == ""
    assert fleet.ssh("app2", "pgrep -af 'shop|pm3' | grep -v pgrep || true").stdout.strip() == ""
    assert play([{"pm3.fleet.agent": {"state": "absent"}}], hosts="app2").output.count("changed=0") == 1
    assert play([{"pm3.fleet.agent": {}}], hosts="app2").status == 0
