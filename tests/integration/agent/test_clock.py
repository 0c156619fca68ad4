"""The calendar's clock is set while everything goes on. Nothing but what is told of times goes by it; schedules: test_wallclock.py."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from .pumping import everything
from .test_crash_points import Host, build, host
from .test_soak import SOAK
from .waiting import until

__all__ = ["host"]  # a fixture

YEAR = 365 * 86_400


@pytest.fixture(scope="module")
def command() -> list[str]:
    return build(Path(__file__).with_name("clock_build.py"))


def set_clock(host: Host, seconds: int) -> None:
    new = host.data_dir / "clock.new"
    new.write_text(str(seconds))
    new.rename(host.data_dir / "clock")


@pytest.mark.parametrize("seconds", [YEAR, -YEAR], ids=["ahead", "back"])
def test_a_clock_that_is_set_changes_nothing(host: Host, seconds: int) -> None:
    count = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.01; done"
    fields = {"min_uptime": 50, "restart": "on_failure", "max_restarts": 1000}
    falls = f"test -e {host.folder}/falls || exec sleep 1000; exit 3"
    web = {"command": "sleep 1000", "instances": 2, "env": {"RELEASE": "1"}, **fields}
    others: dict[str, Any] = {
        "counts": {"command": f"sh -c '{count}'", "log_date_format": "%Y", "log_max_age": "30d", **fields},
        "falls": {"command": f"sh -c '{falls}'", **fields},
    }
    assert host.apply({"web": web, **others})["ok"]
    before = host.pids()

    # A pause after a failure, and a release that soaks, go on as long as they would have.
    (host.folder / "falls").touch()
    os.kill(before["falls"], signal.SIGKILL)
    until(lambda: host.instance("falls")["total_restarts"] > 2, "it falls, again and again")

    def on_row(document: dict[str, Any]) -> None:
        if document.get("step") == "soaking":
            set_clock(host, seconds)

    soak = {**SOAK["update_once"], "soak": "300ms"}
    again = {**web, "env": {"RELEASE": "2"}}
    made = host.apply({"web": again}, only=["web"], on_row=on_row, progress=True, update_once=soak)
    assert made["ok"], made
    (host.folder / "falls").unlink()
    until(lambda: host.instance("falls")["status"] == "online", "its pause is over")

    after = host.pids()
    assert after["counts"] == before["counts"]
    counters = {name: one["total_restarts"] for name, one in host.instances().items()}
    assert {name: counters[name] for name in ("web:0", "web:1", "counts")} == {"web:0": 0, "web:1": 0, "counts": 0}
    since = {one["name"]: (one["since"], one["uptime"]) for one in host.ask("snapshot")["instances"]}
    assert all(0 <= uptime < YEAR / 2 for __, uptime in since.values())
    now = time.time() + seconds
    assert all(abs(now - when) < YEAR / 2 for when, __ in since.values()), "what is told goes by the clock as it is"

    host.crash()
    assert host.pids() == after
    assert {name: one["total_restarts"] for name, one in host.instances().items()} == counters
    assert not host.apply({"web": again}, only=["web"])["changed"]

    assert host.ask("stop")["type"] == "success"
    lines = [
        line for text in everything(host.data_dir / "logs" / "counts-out.log") for line in text.decode().splitlines()
    ]
    told = [line.partition(" | ") for line in lines]
    assert [int(number) for __, __, number in told] == list(range(1, len(told) + 1))
    years = [int(year) for year, __, __ in told]
    assert len(set(years)) == 2
    assert years == sorted(years, reverse=seconds < 0)
    assert host.apply({}, state="absent")["ok"]


def test_what_was_due_while_there_was_no_agent_is_due_once(host: Host) -> None:
    leaps = {"min_uptime": 50, "cron_restart": "0 0 29 2 *"}
    web = {"command": "sleep 1000", **leaps}
    job = {"command": f"sh -c 'echo x >>{host.folder}/jobs'", "restart": "never", **leaps}
    assert host.apply({"web": web, "idle": web, "job": job})["ok"]
    host.ask("stop", names=["idle"])
    until(lambda: host.instance("job")["status"] == "stopped", "the job is done")
    before, keeper, agent = host.pids(), host.keeper(), host.pid()
    os.kill(keeper, signal.SIGSTOP)
    os.kill(agent, signal.SIGKILL)
    set_clock(host, 5 * YEAR)
    os.kill(keeper, signal.SIGCONT)
    until(lambda: host.answering_pid() not in (None, agent), "another agent answers")
    until(lambda: host.instance("web")["total_restarts"], "it is restarted")
    until(lambda: (host.folder / "jobs").read_text() == "x\nx\n", "the job is done again")
    until(lambda: host.instance("web")["status"] == "online", "it runs again")
    assert host.instance("web")["last_exit"]["cause"] == "cron"
    assert host.instance("idle")["status"] == "stopped", "what was stopped stays stopped"
    after = host.pids()
    assert after["web"] not in (None, before["web"])
    host.crash()
    assert host.pids() == after
    assert host.instance("web")["total_restarts"] == 1
