"""Rollouts over ten hosts: a good release under traffic, bad ones, hosts that are not there, and a controller that is cut off.

The tests stand one on the other: each begins with what the one before has left on all hosts, and says what that is now.
"""

from __future__ import annotations

import collections
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import FILES, MANY, PLAYBOOK, Play, playbook
from hosts import Fleet

PORT = 8300
PATIENCE = 60.0
ADDRESSES = {host: Fleet().host(host).address for host in MANY}

SHOP = """
[web]
command = "python3 /srv/shop/release.py {{ rollout_label }} {{ way | default('well') }}"
env = { PORT = "PORT_NUMBER", ADDRESS = "0.0.0.0" }
readiness_check = "tcp://127.0.0.1:PORT_NUMBER"
min_uptime = "50ms"
""".replace("PORT_NUMBER", str(PORT))
# The fewer hosts that are enough where it does not matter how many they are.
FEW = ("app1", "app2", "app3", "app7")
FEWER = {"rollout_hosts": ",".join(FEW), "rollout_serial": [1, 2, 1]}


def local(name: str, command: str) -> str:
    """A file with a task that runs on the controller; raw, because that costs least."""
    where = {"delegate_to": "localhost", "connection": "local", "become": False, "changed_when": True}
    return json.dumps([{"name": name, "ansible.builtin.raw": command, **where}])


def ask(host: str) -> str:
    """Which release a host serves."""
    with socket.create_connection((ADDRESSES[host], PORT), 10) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    head, _blank, body = answer.partition(b"\r\n\r\n")
    if not head.endswith(b"Content-Length: %d" % len(body)) or not body:
        raise ValueError(f"half an answer: {answer!r}")
    return body.decode()


class Traffic:
    """Clients behind a proxy over all hosts, which knows nothing but which of them are drained: what it sends to a host is lost if that
    does not answer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.answers: collections.Counter[str] = collections.Counter()
        self.failed: list[str] = []
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._served: collections.Counter[str] = collections.Counter()
        self._turn = 0
        self._clients = [threading.Thread(target=self._client) for _one in range(2)]

    def __enter__(self) -> Traffic:
        (self.folder / "traffic").touch()
        for one in self._clients:
            one.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        for one in self._clients:
            one.join()
        (self.folder / "traffic").unlink()

    def _client(self) -> None:
        while not self._over.is_set():
            host = self._pick()
            try:
                self.answers[ask(host)] += 1
            except (OSError, ValueError) as error:
                self.failed.append(f"{host}: {error}")
            with self._lock:
                self._served[host] -= 1

    def _pick(self) -> str:
        with self._lock:
            drained = set(os.listdir(self.folder / "drained"))
            for host in MANY:
                idle = self.folder / "idle" / host
                if host in drained and not self._served[host]:
                    idle.touch()
                elif host not in drained:
                    idle.unlink(missing_ok=True)
            there = [host for host in MANY if host not in drained]
            self._turn += 1
            host = there[self._turn % len(there)]
            self._served[host] += 1
            return host


class Rollout:
    """What is rolled out, and what became of it."""

    def __init__(self, fleet: Fleet, folder: Path) -> None:
        self.fleet = fleet
        self.folder = folder
        for name in ("drained", "idle"):
            (folder / name).mkdir()
        (folder / "pm3.toml").write_text(SHOP)
        host = "{{ inventory_hostname }}"
        served = f"until test ! -e {folder}/traffic -o -e {folder}/idle/{host}; do sleep 0.05; done"
        tasks = {
            "drain": local("The proxy sends nobody there any more", f"touch {folder}/drained/{host}; {served}"),
            "undrain": local("The proxy sends people there", f"rm -f {folder}/drained/{host}"),
            **{name: local("It is noted", f"echo {host} >> {folder}/{name}") for name in ("once", "before", "gate")},
        }
        for name, text in tasks.items():
            (folder / f"{name}.yml").write_text(text)
        self.common = {
            "rollout_hosts": "fleet",
            "rollout_project": "shop",
            "rollout_src": f"{folder}/pm3.toml",
            "rollout_template": True,
            "rollout_serial": [1, 3, 6],
            "rollout_back_serial": "50%",
            "rollout_drain": f"{folder}/drain.yml",
            "rollout_undrain": f"{folder}/undrain.yml",
            "rollout_report": f"{folder}/report.json",
        }

    def words(self, label: str, inventory: Path | None, **more: Any) -> list[str]:
        others = ["-i", str(inventory)] if inventory is not None else []
        return [*others, "-e", json.dumps({**self.common, "rollout_label": label, **more})]

    def __call__(self, label: str, inventory: Path | None = None, **more: Any) -> subprocess.CompletedProcess[str]:
        return playbook(self.fleet, "pm3.fleet.rollout", *self.words(label, inventory, **more))

    def begin(self, label: str, **more: Any) -> subprocess.Popen[str]:
        """In the background."""
        return subprocess.Popen(
            [PLAYBOOK, "-i", self.fleet.inventory, "pm3.fleet.rollout", *self.words(label, None, **more)],
            env={**os.environ, "ANSIBLE_FORCE_COLOR": "0"},
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "report.json").read_text())
        return found

    def states(self) -> dict[str, str]:
        return {row["host"]: row["state"] for row in self.report()["hosts"]}

    def drained(self) -> set[str]:
        return set(os.listdir(self.folder / "drained"))

    def noted(self, what: str) -> list[str]:
        path = self.folder / what
        return path.read_text().split() if path.exists() else []


def released(label: str, hosts: Iterable[str] = MANY) -> dict[str, str]:
    return dict.fromkeys(hosts, label)


def served(hosts: Iterable[str] = MANY) -> dict[str, str]:
    return {host: ask(host) for host in hosts}


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def rollout(many: Fleet, play: Play, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rollout]:
    done = play(
        [{"ansible.builtin.copy": {"src": f"{FILES}/release.py", "dest": "/srv/shop/", "mode": "0755"}}],
        roles=["pm3.fleet.agent"],
        hosts=",".join(MANY),
    )
    assert done.status == 0, done.output
    yield Rollout(many, tmp_path_factory.mktemp("rollout"))
    gone = play([{"pm3.fleet.processes": {"project": "shop", "state": "absent"}}], hosts=",".join(MANY))
    assert gone.status == 0, gone.output


def test_a_good_release_reaches_everybody_and_nobody_notices(rollout: Rollout) -> None:
    done = rollout("v1")
    assert done.returncode == 0, done.stdout
    files = {f"rollout_{name}": f"{rollout.folder}/{name}.yml" for name in ("before", "gate")}
    files["rollout_once_before"] = f"{rollout.folder}/once.yml"
    with Traffic(rollout.folder) as traffic:
        done = rollout("v2", rollout_soak="100ms", **files)
    assert done.returncode == 0, done.stdout
    assert served() == released("v2")
    assert rollout.states() == released("released")
    assert rollout.report()["ok"] is True
    assert "release v2 of shop: done: 10 released" in done.stdout
    assert rollout.drained() == set()
    assert traffic.failed == []
    assert traffic.answers.keys() == {"v1", "v2"}
    assert len(rollout.noted("once")) == 1
    assert sorted(rollout.noted("before")) == sorted(rollout.noted("gate")) == sorted(MANY)
    assert rollout.noted("gate")[0] == "app1"


def test_a_bad_release_stops_at_the_canary(rollout: Rollout) -> None:
    pids = {host: rollout.fleet.ssh(host, "pgrep -f release.py").stdout for host in MANY}
    with Traffic(rollout.folder) as traffic:
        done = rollout("v3", way="crashes")
    assert done.returncode == 2, done.stdout
    assert served() == released("v2")
    assert rollout.states() == {**released("not reached"), "app1": "went back"}
    assert "app1: web exited with code 1" in done.stdout
    assert "    | cannot find the ledger" in done.stdout
    assert rollout.drained() == set()
    assert traffic.failed == []
    assert traffic.answers.keys() == {"v2"}
    now = {host: rollout.fleet.ssh(host, "pgrep -f release.py").stdout for host in MANY}
    assert {host for host in MANY if now[host] != pids[host]} == {"app1"}, "everything else is untouched"


def test_what_falls_while_it_soaks_stops_it_too(rollout: Rollout) -> None:
    done = rollout("v3", way="dies", rollout_soak="20s")
    assert done.returncode == 2, done.stdout
    assert served() == released("v2")
    assert "came up, and then exited with code 9" in done.stdout


def test_a_first_release_that_is_bad_has_nowhere_to_go_back_to(rollout: Rollout, play: Play, tmp_path: Path) -> None:
    (tmp_path / "pm3.toml").write_text('[api]\ncommand = "false"\n')
    more = {"rollout_project": "first", "rollout_src": f"{tmp_path}/pm3.toml", "rollout_hosts": "app1,app2"}
    done = rollout("v1", rollout_drain="", rollout_undrain="", **more)
    assert done.returncode == 2, done.stdout
    assert rollout.states() == {"app1": "failed", "app2": "not reached"}
    assert "app1: api exited with code 1" in done.stdout, done.stdout
    assert play([{"pm3.fleet.processes": {"project": "first", "state": "absent"}}], hosts="app1").status == 0


BAD_ON_APP7 = "{{ 'crashes' if inventory_hostname == 'app7' else 'well' }}"


def test_bad_on_one_host_of_the_third_batch_goes_back_everywhere(rollout: Rollout) -> None:
    with Traffic(rollout.folder) as traffic:
        done = rollout("v3", way=BAD_ON_APP7)
    assert done.returncode == 2, done.stdout
    assert served() == released("v2")
    assert rollout.states() == released("went back")
    assert [row["host"] for row in rollout.report()["hosts"] if row["message"]] == ["app7"]
    assert rollout.drained() == set()
    assert traffic.failed == []
    assert traffic.answers["v3"] > 0


def test_with_pause_it_stays_as_it_is_and_the_next_run_goes_on(rollout: Rollout) -> None:
    done = rollout("v3", way=BAD_ON_APP7, rollout_on_failure="pause")
    assert done.returncode == 2, done.stdout
    assert rollout.states() == {**released("released"), "app7": "failed"}
    assert rollout.drained() == {"app7"}, "it serves nothing"
    assert "app7: is still drained" in done.stdout
    done = rollout("v3")
    assert done.returncode == 0, done.stdout
    assert served() == released("v3")
    assert rollout.states() == {**released("ok"), "app7": "released"}
    assert rollout.drained() == set()


def test_some_may_fail(rollout: Rollout) -> None:
    done = rollout("v4", way=BAD_ON_APP7, rollout_max_fail_percentage=25, **FEWER)
    assert done.returncode == 2, done.stdout
    assert served(FEW) == {**released("v4", FEW), "app7": "v3"}
    assert rollout.states() == {**released("released", FEW), "app7": "went back"}
    assert rollout.report()["stopped"] is False
    assert rollout("v4", **FEWER).returncode == 0
    assert served(FEW) == released("v4", FEW)


@pytest.fixture
def gone(tmp_path: Path) -> Callable[[str], Path]:
    """An inventory in which a host cannot be reached."""

    def inventory(host: str) -> Path:
        path = tmp_path / "gone.yml"
        path.write_text(json.dumps({"all": {"hosts": {host: {"ansible_host": "127.0.0.1", "ansible_port": 1}}}}))
        return path

    return inventory


def test_an_unreachable_canary(rollout: Rollout, gone: Callable[[str], Path]) -> None:
    done = rollout("v5", gone("app1"), **FEWER)
    assert done.returncode == 2, done.stdout
    assert served(FEW) == released("v4", FEW)
    assert rollout.states() == {**released("not reached", FEW), "app1": "unreachable"}
    assert rollout.drained() == set()


def test_an_unreachable_host_in_a_late_batch(rollout: Rollout, gone: Callable[[str], Path]) -> None:
    done = rollout("v5", gone("app7"), **FEWER)
    assert done.returncode == 2, done.stdout
    assert served(FEW) == released("v4", FEW)
    assert rollout.states() == {**released("went back", FEW), "app7": "unreachable"}
    assert rollout.drained() == set()


def test_a_host_that_reboots_in_the_midst_is_waited_for(rollout: Rollout) -> None:
    with rollout.begin("v5", rollout_soak="3s", **FEWER) as running:
        until(lambda: "v5" in rollout.fleet.ssh("app2", "pgrep -af release.py").stdout)
        rollout.fleet.reboot("app2")
        output, _nothing = running.communicate(timeout=200)
    assert running.returncode == 0, output
    assert served(FEW) == released("v5", FEW)
    assert rollout.drained() == set()


def interrupted(rollout: Rollout, label: str) -> None:
    """The controller is lost when the second batch has begun."""
    with rollout.begin(label, rollout_soak="2s", **FEWER) as running:
        until(lambda: label in rollout.fleet.ssh("app3", "pgrep -af release.py").stdout)
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=60)
    assert running.returncode != 0
    assert rollout.drained() == set(FEW[1:3])


def test_a_controller_that_was_cut_off_goes_on(rollout: Rollout) -> None:
    interrupted(rollout, "v6")
    done = rollout("v6", **FEWER)
    assert done.returncode == 0, done.stdout
    assert served(FEW) == released("v6", FEW)
    assert rollout.drained() == set()


def test_or_goes_back_and_twice_is_once(rollout: Rollout) -> None:
    interrupted(rollout, "v7")
    for states in ({**released("ok", FEW), **dict.fromkeys(FEW[:3], "went back")}, released("ok", FEW)):
        done = playbook(rollout.fleet, "pm3.fleet.rollback", *rollout.words("v7", None, **FEWER))
        assert done.returncode == 0, done.stdout
        assert served(FEW) == released("v6", FEW)
        assert rollout.states() == states
    assert rollout.drained() == set()
    # Without a label it is what is current; that is asked once.
    done = playbook(rollout.fleet, "pm3.fleet.rollback", "-e", f"rollout_hosts={','.join(FEW)} rollout_project=shop")
    assert done.returncode == 0, done.stdout
    assert served(FEW) == released("v5", FEW)


def test_mistakes_change_nothing_not_even_once(rollout: Rollout, tmp_path: Path) -> None:
    (tmp_path / "faulty.yml").write_text("- name: A module that nobody has\n  no_such_module:\n")
    (tmp_path / "faulty.toml").write_text("[web]\ncommand = 7\n")
    once = {"rollout_once_before": f"{rollout.folder}/once.yml"}
    before = rollout.noted("once")
    for more, said in (
        ({"rollout_on_failure": "explode"}, "value of rollout_on_failure must be one of: revert, pause"),
        ({"rollout_wave": 3}, "rollout_wave. Supported parameters include"),
        ({"rollout_src": f"{rollout.folder}/nothing.toml"}, "nothing.toml"),
        ({"rollout_src": f"{tmp_path}/faulty.toml"}, "1 mistake in the definitions"),
        ({"rollout_soak": "long"}, "update_once: soak: expected a time"),
        ({"rollout_label": ""}, "rollout_label is empty"),
        ({"rollout_project": " "}, "rollout_project or rollout_label is empty"),
        ({"rollout_serial": "ten"}, "no sizes of batches"),
        ({"rollout_serial": 0}, "no sizes of batches"),
        ({"rollout_serial": [1, "0%"]}, "no sizes of batches"),
        ({"rollout_back_serial": "1.5%"}, "no sizes of batches"),
        ({"rollout_gate": f"{tmp_path}/nothing.yml"}, "nothing.yml"),
        ({"rollout_undrain": f"{tmp_path}/faulty.yml"}, "no_such_module"),
        ({"rollout_hosts": "wbe"}, "wbe matches no host"),
    ):
        done = rollout("v8", **{**FEWER, **once, **more})
        assert done.returncode != 0, done.stdout
        assert said.replace(" ", "") in "".join(done.stdout.split()), done.stdout
    assert rollout.noted("once") == before
    assert rollout.drained() == set()
    assert served(FEW) == released("v5", FEW)


def test_nor_do_mistakes_of_a_rollback(rollout: Rollout, tmp_path: Path) -> None:
    for more, said in (
        ({"rollout_wave": 3}, "rollout_wave. Supported parameters include"),
        ({"rollout_label": ""}, "rollout_label is empty"),
        ({"rollout_serial": 0}, "no sizes of batches"),
        ({"rollout_gate": f"{tmp_path}/nothing.yml"}, "nothing.yml"),
        ({"rollout_gate": "{{ mine }}"}, "'mine' is undefined"),
        ({"rollout_hosts": "wbe"}, "wbe matches no host"),
    ):
        done = playbook(rollout.fleet, "pm3.fleet.rollback", *rollout.words("v5", None, **{**FEWER, **more}))
        assert done.returncode != 0, done.stdout
        assert said.replace(" ", "") in "".join(done.stdout.split()), done.stdout
    assert served(FEW) == released("v5", FEW)


def test_a_limit_may_leave_some_but_not_nobody(rollout: Rollout) -> None:
    words = rollout.words("v5", None, **FEWER)
    done = playbook(rollout.fleet, "pm3.fleet.rollout", *words, "--limit", "app2,app3")
    assert done.returncode == 0, done.stdout
    assert rollout.states() == {"app2": "ok", "app3": "ok"}
    done = playbook(rollout.fleet, "pm3.fleet.rollout", *words, "--limit", "app9")
    assert done.returncode != 0, done.stdout
    assert "matches no host that --limit leaves" in done.stdout


def test_what_is_to_happen_once_finds_a_host_that_is_there(rollout: Rollout, gone: Callable[[str], Path]) -> None:
    """Its tasks run on the host, unlike those of the other files."""
    where = "/tmp/pm3-once"
    text = [{"name": "It is noted", "ansible.builtin.raw": f"echo yes >> {where}", "changed_when": True}]
    (rollout.folder / "migrate.yml").write_text(json.dumps(text))
    more = {"rollout_once_before": f"{rollout.folder}/migrate.yml", "rollout_max_fail_percentage": 25}
    hosts = {"rollout_hosts": ",".join(FEW), "rollout_serial": [4]}
    done = rollout("v5", gone("app1"), **hosts, **more)
    assert done.returncode == 2, done.stdout
    assert rollout.states() == {**released("ok", FEW), "app1": "unreachable"}
    noted = {host: rollout.fleet.ssh(host, f"cat {where}; rm -f {where}").stdout for host in FEW}
    assert sorted(noted.values()) == ["", "", "", "yes\n"]
    assert noted["app1"] == ""


def with_variables(path: Path, **hosts: dict[str, Any]) -> Path:
    """An inventory that gives hosts variables."""
    path.write_text(json.dumps({"all": {"hosts": hosts}}))
    return path


def test_a_variable_that_one_host_lacks_is_found_before_anything_begins(rollout: Rollout, tmp_path: Path) -> None:
    for value in ({"rollout_patience": "{{ mine }}"}, {"rollout_gate": "{{ mine }}"}, {"rollout_chdir": "{{ mine }}"}):
        inventory = with_variables(tmp_path / "mine.yml", **{host: {"mine": "5"} for host in FEW if host != "app3"})
        done = rollout("v8", inventory, **FEWER, **value)
        assert done.returncode == 2, done.stdout
        assert "'mine' is undefined" in done.stdout
    inventory = with_variables(
        tmp_path / "mine.yml", **{host: {"mine": "long" if host == "app3" else "5"} for host in FEW}
    )
    done = rollout("v8", inventory, rollout_patience="{{ mine }}", **FEWER)
    assert done.returncode == 2, done.stdout
    assert "unable to convert to int" in done.stdout
    assert served(FEW) == released("v5", FEW)
    assert rollout.drained() == set()


def test_plays_of_ones_own_count_a_host_that_drops_out(rollout: Rollout, tmp_path: Path) -> None:
    """The three plays of the role's README, with batches of two; the argument check of the role fails on one host of the second."""
    common = {
        "pm3_rollout_project": "shop",
        "pm3_rollout_label": "v8",
        "rollout_label": "v8",
        "pm3_rollout_src": f"{rollout.folder}/pm3.toml",
        "pm3_rollout_template": True,
        "pm3_rollout_patience": "{{ 'long' if inventory_hostname == 'app3' else 5 }}",
        "pm3_rollout_report": f"{rollout.folder}/report.json",
    }

    def part(entry: str, **more: Any) -> dict[str, Any]:
        return {"ansible.builtin.include_role": {"name": "pm3.fleet.rollout", "tasks_from": entry}, **more}

    play = {"hosts": ",".join(FEW), "gather_facts": False, "order": "sorted", "become": True, "vars": common}
    away = {"ignore_unreachable": True}
    stopped = "map(attribute='pm3_rollout_stopped', default=false) | select | length > 0"
    end = {"ansible.builtin.meta": "end_play", "when": "pm3_rollout_stopped"}
    plays = [
        {**play, **away, "serial": 2, "tasks": [part("main"), end]},
        {
            **play,
            **away,
            "serial": "25%",
            "tasks": [part("revert", when=f"ansible_play_hosts | map('extract', hostvars) | {stopped}")],
        },
        {**play, "tasks": [part("report")]},
    ]
    (tmp_path / "own.yml").write_text(json.dumps(plays))
    done = playbook(rollout.fleet, f"{tmp_path}/own.yml")
    assert done.returncode == 2, done.stdout
    assert rollout.states() == {"app1": "went back", "app2": "went back", "app3": "failed", "app7": "went back"}
    assert rollout.report()["ok"] is False
    assert served(FEW) == released("v5", FEW)


def test_the_second_rollout_of_a_run_is_not_the_first(rollout: Rollout, play: Play, tmp_path: Path) -> None:
    (tmp_path / "first.toml").write_text('[first]\ncommand = "false"\n')
    first = {"rollout_project": "first", "rollout_src": f"{tmp_path}/first.toml", "rollout_label": "v1"}
    second = {"rollout_project": "shop", "rollout_src": f"{rollout.folder}/pm3.toml", "rollout_label": "v8"}
    both = [{"ansible.builtin.import_playbook": "pm3.fleet.rollout", "vars": one} for one in (first, second)]
    (tmp_path / "both.yml").write_text(json.dumps(both))
    common = {key: value for key, value in {**rollout.common, **FEWER}.items() if key not in second}
    done = playbook(rollout.fleet, f"{tmp_path}/both.yml", "-e", json.dumps(common))
    assert done.returncode == 2, done.stdout
    # The host on which the first one failed takes no part in the rest of the run.
    assert served(FEW) == {**released("v8", FEW), "app1": "v5"}
    assert rollout.states() == {**released("released", FEW), "app1": "failed"}
    assert rollout.report()["stopped"] is False
    assert rollout.report()["ok"] is False
    assert play([{"pm3.fleet.processes": {"project": "first", "state": "absent"}}], hosts=",".join(FEW)).status == 0
    done = playbook(rollout.fleet, "pm3.fleet.rollback", *rollout.words("v8", None, **FEWER))
    assert done.returncode == 0, done.stdout
    assert served(FEW) == released("v5", FEW)
