"""Down and up again: a host's agent, a user's own, one without a service manager, and one in a container."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from conftest import Play, Played, processes
from hosts import Fleet
from lives import DEFINITIONS, ONLINE, Place, all_are_back, in_order, out_of_order


def began(done: Played) -> Played:
    assert done.status == 0, done.output
    return done


@pytest.fixture(params=["system", "user"])
def place(request: pytest.FixtureRequest, fleet: Fleet, clean: None, play: Play) -> Iterator[Place]:
    """An agent under systemd, the host's or the user's own."""
    if request.param == "system":
        one = Place(fleet, "app1", "/var/lib/pm3")
        yield one
        one.runs("pm3 delete kept; rm -rf shop /var/lib/pm3/dump.json")
        return
    one = Place(fleet, "app2", "/home/deploy/.local/share/pm3", "deploy", "~/.local/bin/pm3")
    one.runs("sudo loginctl enable-linger deploy")
    installed = began(play([agent(service_manager="systemd", scope="user")], hosts="app2", vars=AS_DEPLOY))
    assert "systemd" in installed.results["app2"]["service_manager"]
    assert "no service manager" not in installed.output
    yield one
    gone = agent(state="absent", scope="user", stop_instances=True, purge=True)
    began(play([gone], hosts="app2", vars=AS_DEPLOY))
    one.runs("rm -rf shop; sudo loginctl disable-linger deploy")


AS_DEPLOY = {"keep_going": False, "ansible_user": "deploy"}


def agent(**options: Any) -> dict[str, Any]:
    return {"name": "The agent", "pm3.fleet.agent": options}


def test_a_reboot_under_systemd(place: Place, fleet: Fleet, play: Play) -> None:
    """All that was wanted ends in order, with its last words, and is back in order: the host's, and a user's without a session."""
    scope = "user" if place.user == "deploy" else "system"
    options = {"hosts": place.host, **({"vars": AS_DEPLOY} if scope == "user" else {})}
    project = processes(definitions=DEFINITIONS, scope=scope)
    place.runs(f"rm -f {place.data_dir}/logs/*")
    began(play([project], **options))
    place.runs(f"{place.pm3} stop rest")
    place.runs("mkdir -p shop")
    start = (
        f"printf '[%s]\\ncommand = \"sleep 1000000\"\\n' NAME > shop/pm3.toml; cd shop; {place.pm3} start; {place.pm3}"
    )
    place.runs(f"{start.replace('NAME', 'kept')} save")
    place.runs(f"{start.replace('NAME', 'forgotten')} list")

    fleet.reboot(place.host)
    all_are_back(place)
    lives = place.lives()
    for said in lives.values():
        assert [word for word, _when in said] == ["begun", "asked", "gone", "begun"]
    out_of_order(lives)
    in_order(lives, 1)
    listed = place.listed()
    assert listed.keys() == {*ONLINE, "rest", "kept"}
    assert listed["kept"]["status"] == "online"
    # What does not heed SIGTERM has had its second, and the agent the time to see to it.
    assert place.runs(f"cat {place.data_dir}/logs/stubborn-out.log") == "buried\n"
    again = play([project], **options)
    assert {name: action for name, action in again.actions(place.host).items() if action != "none"} == {
        "rest": "started"
    }


@pytest.fixture
def bare(fleet: Fleet, agents: str, play: Play) -> Iterator[str]:
    """A host that has no agent, and has one again afterwards."""
    gone = agent(state="absent", stop_instances=True, purge=True)
    began(play([gone], hosts="app3"))
    yield "app3"
    began(play([gone], hosts="app3"))
    began(play([agent()], hosts="app3"))


def test_a_host_whose_service_manager_is_not_asked(bare: str, fleet: Fleet, play: Play) -> None:
    """The keeper brings a dead agent back; a boot does not, which everybody says who is asked, and with it how it is begun."""
    place = Place(fleet, bare, "/var/lib/pm3")
    installed = began(play([agent(service_manager="none")], hosts=bare))
    begin = "PM3_DATA_DIR=/var/lib/pm3 /usr/local/bin/pm3 --keeper"
    assert installed.results[bare]["service_manager"] == "none"
    assert f"have the host run this at boot: {begin}" in " ".join(installed.output.split())
    silent = began(play([agent(service_manager="none")], hosts=bare))
    assert silent.results[bare]["changed"] is False
    assert "no service manager" not in silent.output
    began(play([processes(definitions=DEFINITIONS)], hosts=bare))
    place.runs("pm3 stop rest")
    told = place.runs("pm3 doctor")
    assert "a keeper of its own keeps the agent, until the next boot; no shutdown waits" in told
    assert "none at /etc/systemd/system/pm3.service, so nothing comes back after a boot" in told

    pids = {name: one.get("pid") for name, one in place.listed().items()}
    old = place.runs("cat /var/lib/pm3/pm3.pid")
    place.runs(f"kill -KILL {old}; until pm3 --json list && [ $(cat /var/lib/pm3/pm3.pid) != {old} ]; do :; done")
    assert {name: one.get("pid") for name, one in place.listed().items()} == pids

    fleet.reboot(bare)
    assert place.runs("pgrep -f '[p]m3/__main__.py' || echo nobody") == "nobody\n"
    refused = place.runs("pm3 list", status=1)
    assert refused == f"error: no pm3 agent is running for /var/lib/pm3; start it with: {begin}\n"
    assert place.runs("ls -d ~/.local/share/pm3 2>/dev/null || echo none") == "none\n", "it was not root's own to start"
    down = play([processes(definitions=DEFINITIONS)], hosts=bare)
    assert down.status != 0
    assert f"start it with: {begin}" in " ".join(down.output.split())
    place.runs(begin)
    all_are_back(place)
    in_order(place.lives(), 1)
    assert began(play([agent(service_manager="none")], hosts=bare)).results[bare]["changed"] is False


# A container, as far as an agent can tell: processes and mounts of its own, its first process not systemd, and the host's boot id.
ENTER = """#!/bin/sh
exec unshare --pid --mount --fork --kill-child --mount-proc sh -c '
    mount -t tmpfs none /run
    for one in var/lib/pm3 usr/local etc/systemd; do mount --bind /srv/box/$one /$one; done
    exec "$@"' sh "$@"
"""
INSIDE = "nsenter --target $(cat /srv/box/pid) --pid --mount"


@dataclass
class Box(Place):
    """The container."""

    inside: str = INSIDE

    def begin(self, command: str) -> None:
        self.fleet.ssh(
            self.host,
            f"setsid /srv/box/enter {command} >/srv/box/said 2>&1 </dev/null & outer=$!;"
            " until pgrep -P $outer >/srv/box/pid && grep -q /run /proc/$(cat /srv/box/pid)/mountinfo; do :; done",
        )

    def end(self, number: str) -> None:
        """`docker stop`, or `docker kill`."""
        waited = "while [ -e /proc/$pid ]; do :; done"
        done = self.fleet.ssh(self.host, f"pid=$(cat /srv/box/pid); kill -{number} $pid; {waited}")
        assert done.returncode == 0, done.stderr


@pytest.fixture
def box(bare: str, fleet: Fleet) -> Iterator[Box]:
    one = Box(fleet, bare, "/var/lib/pm3")
    folders = "/srv/box/var/lib/pm3 /srv/box/usr/local /srv/box/etc/systemd /var/lib/pm3"
    fleet.ssh(bare, f"mkdir -p {folders}; cat > /srv/box/enter <<'END'\n{ENTER}END\nchmod +x /srv/box/enter")
    fleet.ssh(
        bare, f"printf '#!/bin/sh\\nexec {INSIDE} /usr/bin/python3 \"$@\"\\n' > /srv/box/python3; chmod +x /srv/box/*"
    )
    yield one
    one.end("KILL")
    fleet.ssh(bare, "rm -r /srv/box; rmdir /var/lib/pm3")


def test_a_container(box: Box, play: Play) -> None:
    """It has no service manager, and when it is begun anew it is another boot, though the host's boot id is the same as before."""
    vars = {"keep_going": False, "ansible_python_interpreter": "/srv/box/python3"}
    box.begin("sleep infinity")
    installed = began(play([agent()], hosts=box.host, vars=vars))
    assert installed.results[box.host]["service_manager"] == "none"
    assert "no service manager keeps this agent" in " ".join(installed.output.split())
    began(play([processes(definitions=DEFINITIONS)], hosts=box.host, vars=vars))
    box.runs("pm3 stop rest")
    told = box.runs("pm3 doctor")
    assert "no systemd runs this host; a keeper of its own keeps the agent" in told
    assert "nothing comes back after a boot unless the host then runs PM3_DATA_DIR=/var/lib/pm3 " in told
    assert "--keeper" in box.runs("pm3 startup", status=1)

    # A volume that is kept, a first process that is the keeper: as an image has it that was made for this.
    box.end("KILL")
    box.begin("env PM3_DATA_DIR=/var/lib/pm3 pm3 --keeper --foreground")
    all_are_back(box)
    in_order(box.lives(), 1)
    assert "--keeper" in box.runs("cat /proc/1/cmdline")

    box.end("TERM")
    box.begin("env PM3_DATA_DIR=/var/lib/pm3 pm3 --keeper --foreground")
    all_are_back(box)
    lives = box.lives()
    for said in lives.values():
        assert [word for word, _when in said] == ["begun", "begun", "asked", "gone", "begun"]
    out_of_order(lives)
    in_order(lives, 2)
