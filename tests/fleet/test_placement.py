"""Placement over three hosts, with the play of docs/placement.md: every number runs once, and few move when a host leaves or comes."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from ansible_collections.pm3.fleet.plugins.plugin_utils import _placement
from conftest import CHECKOUT, NAMES, playbook
from hosts import Fleet

pytestmark = pytest.mark.usefixtures("clean")

SHARDS = 7
# Notes when it begins and ends: all hosts have the clock of this machine.
WORKER = """
note() { echo "$1 $PM3_INSTANCE_ID $(date +%s%N)" >> /srv/shop/numbers; }
trap 'note ended; exit' TERM
note began
while :; do sleep 1000 & wait; done
"""
DEFINITIONS = """
[worker]
command = "sh /srv/shop/numbers.sh --of {{ shards }}"
instance_ids = {{ numbers }}
min_uptime = "50ms"

[other]
command = "sleep 1000000"
"""
Pids = Callable[[str], "dict[str, int]"]
Converge = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def converge(fleet: Fleet, tmp_path: Path) -> Converge:
    """Runs the play as it is printed, with these hosts in the group `workers`."""
    shown = (CHECKOUT / "docs" / "placement.md").read_text("utf-8")
    (text,) = re.findall(r"^```yaml\n(# workers\.yml\n.*?)^```$", shown, re.DOTALL | re.MULTILINE)
    (tmp_path / "workers.yml").write_text(text)
    (tmp_path / "pm3.toml").write_text(DEFINITIONS)
    for host in NAMES:
        fleet.ssh(host, f"rm -f /srv/shop/numbers; cat > /srv/shop/numbers.sh << 'END'\n{WORKER}END\n")

    def run(workers: tuple[str, ...], *options: str, lost: str = "") -> subprocess.CompletedProcess[str]:
        nowhere = {"ansible_host": "127.0.0.1", "ansible_port": 1}
        known = {name: nowhere if name == lost else None for name in NAMES}
        groups = {"app": {"hosts": known}, "workers": {"hosts": dict.fromkeys(workers)}}
        (tmp_path / "groups.yml").write_text(yaml.safe_dump({"all": {"children": groups}}))
        done = playbook(
            fleet, str(tmp_path / "workers.yml"), "-i", f"{tmp_path}/groups.yml", "-e", f"shards={SHARDS}", *options
        )
        assert (done.returncode == 0) == (not lost), done.stdout
        return done

    return run


def placed(workers: tuple[str, ...]) -> dict[str, str]:
    """By instance, the host that it belongs on."""
    return {f"worker:{number}": host for host in workers for number in _placement.place(SHARDS, list(workers), host)}


def running(pids: Pids) -> dict[tuple[str, str], int]:
    return {
        (name, host): pid for host in NAMES for name, pid in pids(host).items() if name.startswith("worker") and pid
    }


def is_placed(pids: Pids, workers: tuple[str, ...]) -> dict[str, int]:
    """Every number runs on its host and on no other; gives the pids."""
    found = running(pids)
    assert sorted(found) == sorted(placed(workers).items())
    assert len(found) == SHARDS
    return {name: pid for (name, _host), pid in found.items()}


def staying(one: tuple[str, ...], other: tuple[str, ...]) -> set[str]:
    return {name for name, host in placed(one).items() if placed(other)[name] == host}


def test_every_number_runs_once_wherever_the_hosts_go(fleet: Fleet, converge: Converge, pids: Pids) -> None:
    two = ("app1", "app3")
    converge(NAMES)
    first = is_placed(pids, NAMES)
    others = {host: pids(host)["other"] for host in NAMES}

    # A host alone has the numbers that it had, whatever the play leaves out.
    alone = converge(NAMES, "--limit", "app2")
    assert "changed=0" in alone.stdout.replace(" ", "")
    assert is_placed(pids, NAMES) == first

    # It leaves: its numbers move, what the filter leaves where it is goes on, and nothing else is touched.
    predicted = converge(two, "--check")
    assert is_placed(pids, NAMES) == first
    for name, host in placed(two).items():
        if name not in staying(NAMES, two):
            assert re.search(rf"^  {name} +created", predicted.stdout, re.MULTILINE), (name, host, predicted.stdout)
    # As long as it cannot be told to end them, nobody else starts them.
    assert "UNREACHABLE" in converge(two, lost="app2").stdout
    assert is_placed(pids, NAMES) == first
    converge(two)
    second = is_placed(pids, two)
    kept = staying(NAMES, two)
    assert 0 < len(kept) < SHARDS
    assert {name: second[name] for name in kept} == {name: first[name] for name in kept}
    assert {host: pids(host)["other"] for host in NAMES} == others

    # It is back, and has what it had.
    converge(tuple(reversed(NAMES)))
    third = is_placed(pids, NAMES)
    kept = staying(two, NAMES)
    assert {name: third[name] for name in kept} == {name: second[name] for name in kept}
    never_twice(fleet)


def never_twice(fleet: Fleet) -> None:
    """The play ends what is to move before it starts it elsewhere."""
    notes: dict[str, list[tuple[int, str]]] = {}
    for host in NAMES:
        for line in fleet.ssh(host, "cat /srv/shop/numbers").stdout.splitlines():
            what, number, at = line.split()
            notes.setdefault(number, []).append((int(at), what))
    assert len(notes) == SHARDS
    assert any(len(found) > 1 for found in notes.values())
    for number, found in notes.items():
        story = [what for _at, what in sorted(found)]
        expected = itertools.islice(itertools.cycle(["began", "ended"]), len(story))
        assert story == list(expected), f"{number}: {json.dumps(sorted(found))}"
