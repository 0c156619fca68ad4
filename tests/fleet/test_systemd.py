"""What systemd does with the agent, and an administrator through systemd: a loop that hangs, stop, start, restart, reload.

What a reboot does is in test_boot.py.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator

import pytest
from conftest import COUNTED, UNWRITTEN, WRITER, Play, processes, shop
from hosts import Fleet
from lives import DEFINITIONS, Place, all_are_back, in_order, out_of_order

Pids = Callable[..., dict[str, int]]
HOST = "app1"


@pytest.fixture(autouse=True)
def clean(agents: str, play: Play) -> Iterator[None]:
    """The one host of these tests is as before."""
    yield
    done = play([processes(state="absent")], hosts=HOST)
    assert done.status == 0, done.output


def main_pid(fleet: Fleet) -> str:
    return fleet.ssh(HOST, "systemctl show pm3 --property=MainPID --value").stdout.strip()


def wait_for_another(fleet: Fleet, old: str) -> None:
    answers = f"pm3 --json list >/dev/null 2>&1 && [ $(cat /var/lib/pm3/pm3.pid) != {old} ]"
    assert fleet.ssh(HOST, f"until {answers}; do :; done").returncode == 0


@contextlib.contextmanager
def dropin(fleet: Fleet, setting: str) -> Iterator[None]:
    """A setting of the unit that an administrator has changed, for a while."""
    folder = "/etc/systemd/system/pm3.service.d"
    fleet.ssh(
        HOST, f"mkdir -p {folder} && printf '[Service]\\n{setting}\\n' > {folder}/test.conf && systemctl daemon-reload"
    )
    try:
        yield
    finally:
        fleet.ssh(HOST, f"rm -r {folder} && systemctl daemon-reload")


def shown(fleet: Fleet, *names: str) -> dict[str, str]:
    """Properties of the agent's unit."""
    done = fleet.ssh(HOST, "systemctl show pm3 " + " ".join(f"--property={name}" for name in names))
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


def counters(fleet: Fleet) -> dict[str, int]:
    return {
        one["name"]: one["total_restarts"] for one in json.loads(fleet.ssh(HOST, "pm3 --json list").stdout)["processes"]
    }


def test_a_loop_that_hangs_is_killed_and_nothing_is_lost(fleet: Fleet, play: Play, pids: Pids) -> None:
    fleet.ssh(HOST, UNWRITTEN)
    play([processes(definitions=shop(writer={"command": WRITER, "log_max_size": "500M"}))], hosts=HOST)
    with dropin(fleet, "WatchdogSec=1"):
        first = main_pid(fleet)
        fleet.ssh(HOST, f"kill -KILL {first}")  # the watchdog of one that runs is as it was when it began
        wait_for_another(fleet, first)
        before, counted = pids(HOST), counters(fleet)
        for _turn in range(2):
            old = main_pid(fleet)
            fleet.ssh(HOST, f"kill -STOP {old}")
            wait_for_another(fleet, old)
            assert pids(HOST) == before
        # An upgrade of systemd has it begin itself anew: it still keeps what the agent cannot lose.
        old = main_pid(fleet)
        fleet.ssh(HOST, f"systemctl daemon-reexec; kill -KILL {old}")
        wait_for_another(fleet, old)
        assert pids(HOST) == before
        assert counters(fleet) == counted
        assert "watchdog" in fleet.ssh(HOST, "journalctl -u pm3 -b --no-pager").stdout.lower()
        fleet.ssh(HOST, "pm3 stop writer")
        said = fleet.ssh(HOST, COUNTED).stdout
        assert said.endswith(" end\n"), said


def test_restart_begins_everything_anew_but_what_was_stopped(fleet: Fleet, play: Play, pids: Pids) -> None:
    play([processes(definitions=shop(rest={"command": "sleep 1000000"}))], hosts=HOST)
    fleet.ssh(HOST, "pm3 stop rest")
    before, old = pids(HOST), main_pid(fleet)
    assert fleet.ssh(HOST, "systemctl restart pm3").returncode == 0
    assert main_pid(fleet) != old
    fleet.ssh(HOST, "until ! pm3 list | grep -qE 'starting|waiting'; do :; done")
    now = pids(HOST)
    assert now.keys() == before.keys()
    assert {name for name, pid in now.items() if pid == before[name]} == {"rest"}, "it is not there, and was not"
    # web ends at once where a database does not answer yet: they came in their order.
    assert set(counters(fleet).values()) == {0}

    # The unit of the cgroups is nobody's to touch, but somebody will: nothing ends, and what begins has a cgroup.
    fleet.ssh(HOST, "systemctl stop pm3-cells")
    assert pids(HOST) == now
    fleet.ssh(HOST, "pm3 restart worker && systemctl restart pm3-cells && pm3 restart worker")
    after = pids(HOST)
    assert {name for name in now if now[name] != after[name]} == {"worker"}
    fleet.ssh(HOST, "pm3 stop && systemctl stop pm3-cells && pm3 restart db")  # nothing was left of their cgroup
    cgroups = "cat /proc/$(pgrep -n -f '[s]rv/shop/db.py')/cgroup"
    assert "/pm3-cells.service/" in fleet.ssh(HOST, cgroups).stdout
    fleet.ssh(HOST, "systemctl start pm3-cells")


def test_reload_touches_nothing(fleet: Fleet, play: Play, pids: Pids) -> None:
    """Nor does one to a version that cannot do the work. systemctl does not hear what came of it; the doctor and the journal tell."""
    play([processes(definitions=shop())], hosts=HOST)
    before, old = pids(HOST), main_pid(fleet)
    assert fleet.ssh(HOST, "systemctl reload pm3 && until pm3 doctor | grep 'is done'; do :; done").returncode == 0
    assert main_pid(fleet) == old
    assert pids(HOST) == before

    folder = "/usr/local/lib/pm3"
    current = fleet.ssh(HOST, f"readlink {folder}/current").stdout.strip()
    spoil = "echo 'raise SystemExit(\"it is a bad day\")' > spoilt/pm3/__main__.py"
    fleet.ssh(HOST, f"cd {folder} && cp -a {current} spoilt && {spoil} && ln -sfn spoilt current")
    try:
        healthy = f"/usr/bin/python3 -I -S {folder}/{current}/pm3/__main__.py"
        said = fleet.ssh(HOST, f"systemctl reload pm3 && until {healthy} doctor | grep 'was refused'; do :; done")
        assert "it is a bad day" in said.stdout
        assert "it is a bad day" in fleet.ssh(HOST, "journalctl -u pm3 -b --no-pager").stdout
    finally:
        fleet.ssh(HOST, f"cd {folder} && ln -sfn {current} current && rm -r spoilt")
    assert main_pid(fleet) == old
    assert pids(HOST) == before


def test_stop_and_start(fleet: Fleet, play: Play) -> None:
    """All of it ends in order and takes its time, whatever the unit says of that; what was wanted begins in order."""
    place = Place(fleet, HOST, "/var/lib/pm3")
    place.runs("rm -f /var/lib/pm3/logs/*")
    stubborn = {**DEFINITIONS["stubborn"], "kill_timeout": "3s"}
    play([processes(definitions={**DEFINITIONS, "stubborn": stubborn})], hosts=HOST)
    place.runs("pm3 stop rest")
    with dropin(fleet, "TimeoutStopSec=1"):
        place.runs("systemctl stop pm3")
    assert shown(fleet, "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    assert place.runs("cat /var/lib/pm3/logs/stubborn-out.log") == "buried\n"
    assert place.runs("pm3 list", status=1) == (
        "error: no pm3 agent is running for /var/lib/pm3; start it with: systemctl start pm3.service\n"
    )
    lives = place.lives()
    assert {tuple(word for word, _when in said) for said in lives.values()} == {("begun", "asked", "gone")}
    out_of_order(lives)
    place.runs("systemctl start pm3")
    all_are_back(place)
    in_order(place.lives(), 1)


def test_an_agent_that_was_told_to_end_stays_down(fleet: Fleet, play: Play) -> None:
    """`pm3 kill`, and SIGTERM from whomever: as systemctl stop, but nobody waits for it."""
    place = Place(fleet, HOST, "/var/lib/pm3")
    play([processes(definitions=shop())], hosts=HOST)
    for kill in ("pm3 kill", "systemctl kill pm3"):
        restarts = shown(fleet, "NRestarts")
        ended = "[ $(systemctl show pm3 --property=ActiveState --value) = inactive ]"
        place.runs(f"{kill}; until {ended}; do :; done")
        assert shown(fleet, "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
        assert shown(fleet, "NRestarts") == restarts
        assert place.runs("pgrep -f '[s]rv/shop/web.py' || echo none") == "none\n"
        place.runs("systemctl start pm3")
        place.settle()
        assert set(counters(fleet).values()) == {0}


def test_the_second_agent_of_a_host_is_refused_and_does_not_come_again(fleet: Fleet, play: Play) -> None:
    place = Place(fleet, HOST, "/var/lib/pm3")
    play([processes(definitions=shop())], hosts=HOST)
    stop = "PM3_DATA_DIR=/var/lib/pm3 pm3 kill"
    for word in ("--keeper --foreground", "--daemon"):
        said = place.runs(f"PM3_DATA_DIR=/var/lib/pm3 pm3 {word} || echo refused")
        assert f"the daemon is already running for /var/lib/pm3 (pid {main_pid(fleet)})" in said
        assert said.startswith("refused\n")

    # The other way round: systemd is asked for one while a keeper has one.
    place.runs("systemctl stop pm3; PM3_DATA_DIR=/var/lib/pm3 pm3 --keeper")
    first = place.runs("cat /var/lib/pm3/pm3.pid")
    try:
        assert "failed" in place.runs("systemctl start pm3", status=1)
        assert shown(fleet, "ActiveState", "ExecMainStatus") == {"ActiveState": "failed", "ExecMainStatus": "69"}
        told = fleet.ssh(HOST, "journalctl -u pm3 -b --no-pager --output=cat").stdout
        assert (
            f"the daemon is already running for /var/lib/pm3 (pid {first}); this ends it, with all that it runs: {stop}"
            in told
        )
        assert place.runs("cat /var/lib/pm3/pm3.pid") == first
    finally:
        place.runs(f"{stop}; while [ -e /proc/{first} ]; do :; done; systemctl reset-failed pm3; systemctl start pm3")
    place.settle()
    assert set(counters(fleet).values()) == {0}
