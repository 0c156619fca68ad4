"""What the fleet tests share: three real hosts, the agent on them, and plays run as a person runs them.

Run by tests/tools/fleet.sh. Results come from pytest-ansible's `ansible_adhoc` where one module
call is enough, and from `ansible-playbook` where check mode, roles, become or what is printed matter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from hosts import Fleet  # the bench is a program of its own, not a package

NAMES = ("app1", "app2", "app3")
MANY = tuple(f"app{number}" for number in range(1, 11))  # what tests of the fleet as a whole run on
FILES = Path(__file__).parent / "files"
CHECKOUT = Path(__file__).resolve().parents[2]
CALLBACK = "pm3.fleet.instances"
PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")

Result = dict[str, Any]


def shop(**changes: Any) -> dict[str, Any]:
    """The definitions that most tests start from: db before web before worker. `changes` replace whole definitions; None removes."""
    definitions = {
        "db": {
            "command": "python3 /srv/shop/db.py",
            "instances": 2,
            "min_uptime": 50,
            "env": {"PORT": "@{7000 + instance}"},
            "readiness_check": "tcp://127.0.0.1:@{7000 + instance}",
        },
        "web": {
            "command": "python3 /srv/shop/web.py",
            "instances": 4,
            "depends_on": ["db"],
            "min_uptime": 50,
            "env": {"PORT": "@{8000 + instance}", "DB_PORTS": "7000 7001"},
            "readiness_check": "http://127.0.0.1:@{8000 + instance}/",
        },
        "worker": {"command": "sleep 1000000", "depends_on": ["web"], "min_uptime": 50},
        **changes,
    }
    return {name: definition for name, definition in definitions.items() if definition is not None}


# Numbered lines without a pause, until it is asked to end; the last one says so. For a process `writer`, whose log does not begin with
# what another test has left.
UNWRITTEN = "rm -f /var/lib/pm3/logs/writer-*"
WRITER = "sh -c 'trap over=1 TERM; n=0; while [ -z \"$over\" ]; do n=$((n+1)); echo $n; done; echo end'"
COUNTED = 'awk \'$0 != NR && $0 != "end" {print "line " NR " is " $0; exit 1} END {print NR, $0}\' /var/lib/pm3/logs/writer-out.log'

SHOP_INSTANCES = ["db:0", "db:1", "web:0", "web:1", "web:2", "web:3", "worker"]


@dataclass
class Played:
    """A finished ansible-playbook: its status, everything it printed, and the registered result of each host."""

    status: int
    output: str
    results: dict[str, Result] = field(default_factory=dict)

    def actions(self, host: str = "app1") -> dict[str, str]:
        return {row["name"]: row["action"] for row in self.results[host]["instances"]}


Play = Callable[..., Played]


@pytest.fixture(scope="session")
def fleet() -> Fleet:
    """This process is in the network of these hosts from now on. Each worker of pytest has hosts of its own."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    one = Fleet().beside(worker) if worker else Fleet()
    one.up(len(NAMES))
    one.enter()
    return one


def playbook(
    fleet: Fleet,
    name: str,
    *options: str,
    collections: Path | None = None,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.CompletedProcess[str]:
    """`ansible-playbook NAME` as a person types it, with the callback on; what it prints is all in `stdout`."""
    others = {"ANSIBLE_COLLECTIONS_PATH": str(collections)} if collections else {}
    return subprocess.run(
        [PLAYBOOK, "-i", fleet.inventory, name, *options],
        env={
            **os.environ,
            "ANSIBLE_CALLBACKS_ENABLED": CALLBACK,
            "ANSIBLE_FORCE_COLOR": "0",
            **others,
            **environment,
        },
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="session")
def play(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Play:
    """Runs one play over all hosts: `play([task, …], "--check", roles=[…])`. The last task's result is brought back."""

    def run(
        tasks: list[dict[str, Any]],
        *options: str,
        hosts: str = ",".join(NAMES),
        collections: Path | None = None,
        **keywords: Any,
    ) -> Played:
        folder = tmp_path_factory.mktemp("play")
        last = [{**one, "register": "result", "ignore_errors": "{{ keep_going }}"} for one in tasks[-1:]]
        text = [
            {
                "hosts": hosts,
                "gather_facts": False,
                "vars": {"keep_going": False},
                "tasks": [*tasks[:-1], *last],
                **keywords,
            }
        ]
        (folder / "play.yml").write_text(yaml.safe_dump(text, sort_keys=False))
        brings_back = {
            "ANSIBLE_CALLBACKS_ENABLED": f"{CALLBACK},bring_back",
            "ANSIBLE_CALLBACK_PLUGINS": str(Path(__file__).parent / "callback"),
            "PM3_RESULTS": str(folder),
        }
        done = playbook(fleet, str(folder / "play.yml"), *options, collections=collections, environment=brings_back)
        results = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
        return Played(done.returncode, done.stdout, results)

    return run


@pytest.fixture(scope="session")
def many(fleet: Fleet) -> Fleet:
    """The same fleet, with all of `MANY` up. The agent is on none of those beyond `NAMES` yet."""
    fleet.up(len(MANY))
    return fleet


@pytest.fixture(scope="session")
def agents(fleet: Fleet, play: Play) -> str:
    """The agent runs on all hosts, and the files of the shop are there. Gives the agent's identity."""
    done = play(
        [
            {"ansible.builtin.copy": {"src": f"{FILES}/", "dest": "/srv/shop/", "mode": "0755"}},
        ],
        roles=["pm3.fleet.agent"],
    )
    assert done.status == 0, done.output
    return fleet.ssh("app1", "readlink /usr/local/lib/pm3/current").stdout.strip()


def processes(**options: Any) -> dict[str, Any]:
    """The task that most tests consist of."""
    return {"name": "The shop runs as described", "pm3.fleet.processes": {"project": "shop", **options}}


@pytest.fixture
def clean(agents: str, fleet: Fleet) -> Iterator[None]:
    """Whatever a test applied is gone after it, on each host on which the agent still is; and that is the one that was installed."""
    yield
    gone = " && ".join(f"pm3 apply --project {name} --state absent" for name in ("shop", "other"))
    ours = f"readlink /usr/local/lib/pm3/current | tee /dev/stderr | grep -Fxq {agents}"
    for host in NAMES:
        done = fleet.ssh(host, f"test ! -e /usr/local/bin/pm3 || {{ {gone} && pm3 delete --all && {ours}; }}")
        assert done.returncode == 0, done


@pytest.fixture
def modules(fleet: Fleet, ansible_adhoc: Any) -> Any:
    """pytest-ansible's view of the hosts: `modules.all.ping()`, `getattr(modules.app1, "pm3.fleet.process_info")()`."""
    return ansible_adhoc(inventory=str(fleet.inventory), host_pattern="fleet")


@pytest.fixture
def pids(fleet: Fleet) -> Callable[[str], dict[str, int]]:
    """The pids of a host's instances, as its own command line tells them."""

    def ask(host: str = "app1") -> dict[str, int]:
        listed = json.loads(fleet.ssh(host, "pm3 --json list").stdout)
        return {one["name"]: one.get("pid") for one in listed["processes"]}

    return ask
