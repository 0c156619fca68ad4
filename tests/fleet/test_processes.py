"""Changing a project on real hosts: only what differs is touched, and check mode tells the truth."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import NAMES, SHOP_INSTANCES, Play, processes, shop
from hosts import Fleet

pytestmark = pytest.mark.usefixtures("clean")

Pids = Callable[[str], dict[str, int]]
SAME = ("name", "action", "changed", "changes", "reason")


def state_of(fleet: Fleet, host: str) -> list[str]:
    """Everything that a run in check mode must leave alone: processes, the store's content, files."""
    dump = (
        "import sqlite3, json; db = sqlite3.connect('file:/var/lib/pm3/store.sqlite?mode=ro', uri=True);"
        "print(json.dumps(list(db.iterdump())))"
    )
    files = "find /var/lib/pm3 /usr/local/lib/pm3 /etc/systemd/system -not -name 'store.sqlite*' -printf '%p %T@ %s\\n' | sort"
    listed = json.loads(fleet.ssh(host, "pm3 --json list").stdout)["processes"]
    shown = [{key: one.get(key) for key in ("name", "pid", "status", "restarts")} for one in listed]
    return [json.dumps(shown), fleet.ssh(host, f'python3 -c "{dump}"').stdout, fleet.ssh(host, files).stdout]


def test_check_mode_changes_nothing_and_predicts_the_rows(fleet: Fleet, play: Play) -> None:
    assert play([processes(definitions=shop())]).status == 0
    fleet.ssh("app1", "pm3 stop worker")
    changed = shop(
        web={**shop()["web"], "env": {"PORT": "@{8000 + instance}", "DB_PORTS": "7000 7001", "GREETING": "Grüße"}},
        worker={**shop()["worker"], "restart": "always"},
        extra={"command": "sleep 1000000", "instances": 2},
        db={**shop()["db"], "instances": 3},
    )
    before = {host: state_of(fleet, host) for host in NAMES}
    predicted = play([processes(definitions=changed)], "--check", "--diff")
    assert predicted.status == 0, predicted.output
    assert {host: state_of(fleet, host) for host in NAMES} == before
    assert '+env.GREETING = "Grüße"' in predicted.output

    done = play([processes(definitions=changed)], "--diff")
    assert done.status == 0, done.output
    for host in NAMES:
        rows = [
            [{key: row[key] for key in SAME} for row in run.results[host]["instances"]] for run in (predicted, done)
        ]
        assert rows[0] == rows[1]
        assert predicted.results[host]["diff"] == done.results[host]["diff"]
    assert done.actions()["worker"] == "started"
    assert done.actions("app2")["worker"] == "updated"
    assert done.actions()["web:2"] == "rolled"


def test_one_field_of_one_process(play: Play, pids: Pids) -> None:
    play([processes(definitions=shop())])
    before = pids("app1")
    done = play([processes(definitions=shop(worker={**shop()["worker"], "env": {"LEVEL": "debug"}}))])
    assert done.actions() == {**dict.fromkeys(SHOP_INSTANCES, "none"), "worker": "rolled"}
    after = pids("app1")
    assert [name for name in before if before[name] != after[name]] == ["worker"]
    assert 'env.LEVEL: none -> "debug"' in done.output


def test_scaling_and_pruning(play: Play, pids: Pids) -> None:
    def web(instances: int) -> dict[str, Any]:
        return shop(web={**shop()["web"], "instances": instances})

    play([processes(definitions=web(4))])
    at_four = pids("app1")
    six = play([processes(definitions=web(6))])
    assert {name: action for name, action in six.actions().items() if action != "none"} == {
        "web:4": "created",
        "web:5": "created",
    }
    at_six = pids("app1")
    assert {name: at_six[name] for name in at_four} == at_four

    three = play([processes(definitions=web(3))])
    assert {name for name, action in three.actions().items() if action == "removed"} == {"web:3", "web:4", "web:5"}
    at_three = pids("app1")
    assert at_three == {name: pid for name, pid in at_four.items() if name != "web:3"}

    pruned = play([processes(definitions=shop(worker=None, web={**shop()["web"], "instances": 3}))])
    assert pruned.actions()["worker"] == "removed"
    assert "worker" not in pids("app1")
    assert (
        play([processes(definitions=shop(worker=None, web={**shop()["web"], "instances": 3}))]).output.count(
            "changed=0"
        )
        == 3
    )


def test_stopped_and_absent(fleet: Fleet, play: Play, pids: Pids) -> None:
    play([processes(definitions=shop())])
    stopped = play([processes(definitions=shop(), state="stopped")])
    assert stopped.actions() == dict.fromkeys(SHOP_INSTANCES, "stopped")
    assert set(pids("app2").values()) == {None}
    assert play([processes(definitions=shop(), state="stopped")]).output.count("changed=0") == 3
    assert "http" not in fleet.ssh("app1", "pgrep -af web.py || true").stdout

    gone = play([processes(state="absent")])
    assert gone.actions() == dict.fromkeys(SHOP_INSTANCES, "removed")
    assert pids("app3") == {}
    assert play([processes(state="absent")]).output.count("changed=0") == 3


def test_two_projects_on_one_host(play: Play, pids: Pids) -> None:
    play([processes(definitions=shop())])
    other = play([processes(project="other", definitions={"mail": {"command": "sleep 1000000"}})])
    assert other.actions() == {"mail": "created"}
    assert sorted(pids("app1")) == sorted([*SHOP_INSTANCES, "mail"])
    assert play([processes(definitions=shop())]).output.count("changed=0") == 3
    taken = play([processes(project="other", definitions={"worker": {"command": "sleep 1"}})])
    assert taken.status != 0
    assert "belongs to project shop" in taken.output


def test_a_program_that_exits_at_once(play: Play) -> None:
    bad = {"command": "sh -c 'echo cannot find the ledger >&2; exit 3'", "depends_on": ["db"]}
    done = play([processes(definitions=shop(worker=None, bad=bad))])
    assert done.status != 0
    assert "bad" in done.output
    assert "exited with code 3" in done.output
    assert "cannot find the ledger" in done.output


def test_adhoc_and_process_info(modules: Any, pids: Pids) -> None:
    """The same through pytest-ansible: one module call on all hosts at once."""
    run = getattr(modules.all, "pm3.fleet.processes")
    first = run(project="shop", definitions=shop())
    for host in NAMES:
        assert first[host]["changed"] is True
        assert first[host]["summary"] == {"ok": 0, "changed": 7, "failed": 0, "skipped": 0}
    second = run(project="shop", definitions=shop())
    assert not any(second[host]["changed"] for host in NAMES)
    info = getattr(modules.all, "pm3.fleet.process_info")(project="shop", wait_for="online")
    for host in NAMES:
        assert {one["name"]: one["pid"] for one in info[host]["instances"]} == pids(host)
        assert {one["status"] for one in info[host]["instances"]} == {"online"}


def test_sources_templates_and_files_on_the_host(tmp_path: Path, play: Play, fleet: Fleet) -> None:
    source = tmp_path / "pm3.toml.j2"
    source.write_text(
        '[worker]\ncommand = "sleep 1000000"\ninstances = {{ copies }}\nenv = { HOST = "{{ inventory_hostname }}" }\n'
    )
    task = processes(src=str(source), template=True)
    done = play([task], "-e", "copies=2")
    assert done.actions("app2") == {"worker:0": "created", "worker:1": "created"}
    text = fleet.ssh("app2", "tr '\\0' '\\n' < /proc/$(pgrep -f -o 'sleep 1000000')/environ").stdout
    assert "HOST=app2" in text.split()
    fleet.ssh("app1", "mkdir -p /srv/there && printf '[worker]\\ncommand = \"sleep 1000000\"\\n' > /srv/there/pm3.toml")
    there = play([processes(remote_src="/srv/there/pm3.toml")], hosts="app1")
    assert there.status == 0, there.output
    assert there.actions()["worker"] == "rolled"
    assert fleet.ssh("app1", "readlink /proc/$(pgrep -f -o 'sleep 1000000')/cwd").stdout.strip() == "/srv/there"


def test_a_program_runs_as_its_user(fleet: Fleet, play: Play) -> None:
    done = play([processes(definitions={"mail": {"command": "sleep 1000000", "user": "pm3-run"}})], hosts="app1")
    assert done.status == 0, done.output
    assert fleet.ssh("app1", "ps -o user= -p $(pgrep -f -o 'sleep 1000000')").stdout.strip() == "pm3-run"
