"""Hosts that pull: one host with a repository on its own disk, which is all that it can reach. The tests stand one on the other.

The repository and the variables are those of docs/fleet.md. The host is none of `NAMES`, on which other files rely.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import CHECKOUT, playbook
from hosts import Fleet

HOST = "app4"
GUIDE = CHECKOUT / "docs" / "fleet.md"
PATIENCE = 120.0
# Without the run that comes a minute after the boot, in the midst of whatever is tested then.
TIMER = "[Timer]\nOnBootSec=\nOnActiveSec=1s\n"
SHOP = """
[web]
command = "sleep 1000000"
env = { RELEASE = "1" }
update = { deadline = "20s" }

[worker]
command = "sleep 1000000"
"""
METRICS = """
[collector]
command = "sleep 1000000"
"""


def example(title: str) -> str:
    """The block of the guide that begins with this comment."""
    (found,) = re.findall(rf"^```yaml\n# {re.escape(title)}\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    return str(found)


HOSTS = example("hosts.yml in that repository").replace("app[1:400].example.com", HOST)
REQUIREMENTS = "collections:\n  - { name: /srv/pull/pm3-fleet.tar.gz, type: file }\n"


class Pulling:
    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.variables: dict[str, Any] = {
            **yaml.safe_load(example("pull.yml")),
            "pm3_hosts": HOST,
            "pm3_gitops_repository": "/srv/pull/fleet",
            "pm3_gitops_interval": "1d",
            "pm3_gitops_splay": "0",
            "pm3_gitops_pip_args": "--no-index --find-links /srv/pull/wheels",
        }

    def sh(self, command: str) -> str:
        done = self.fleet.ssh(HOST, command)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def set_up(self, *options: str, **more: Any) -> subprocess.CompletedProcess[str]:
        return playbook(self.fleet, "pm3.fleet.pull", "-e", json.dumps({**self.variables, **more}), *options)

    def commit(self, signing: str = "", **files: str) -> str:
        """A commit that has these files, signed if there are `signing` settings of git; gives its hash."""
        paths = {"shop": "shop/pm3.toml", "metrics": "metrics/pm3.toml", "hosts": "hosts.yml"}
        written = "".join(f"printf %s {shlex.quote(text)} > {paths[name]} && " for name, text in files.items())
        settings = f"-c user.name=Ada -c user.email=ada@example.com {signing}"
        words = f"git {settings} commit --quiet --allow-empty --message 'It is so' {'-S' if signing else ''}"
        return self.sh(f"cd /srv/pull/fleet && {written} git add -A && {words} && git rev-parse HEAD").strip()

    def run(self) -> dict[str, Any]:
        """One run, now; gives what it has written down."""
        done = self.fleet.ssh(HOST, "systemctl start pm3-gitops.service")
        status = self.status()
        assert (done.returncode == 0) == (status["outcome"] != "failed"), (done.stderr, status)
        return status

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.sh("cat /var/lib/pm3-gitops/status.json"))
        return found

    def instances(self) -> dict[str, Any]:
        return {one["name"]: one for one in json.loads(self.sh("pm3 --json list"))["processes"]}

    def labels(self) -> list[str]:
        return [one["label"] for one in json.loads(self.sh("pm3 --json history shop"))["revisions"]]


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.2)


def pids(instances: dict[str, Any]) -> dict[str, int]:
    return {name: one["pid"] for name, one in instances.items()}


@pytest.fixture(scope="module")
def pulling(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pulling]:
    fleet.up(int(HOST.removeprefix("app")))
    folder = tmp_path_factory.mktemp("pull")
    galaxy = Path(sys.executable).with_name("ansible-galaxy")
    subprocess.run([galaxy, "collection", "build", "--output-path", folder, CHECKOUT], check=True, capture_output=True)
    (built,) = folder.glob("*.tar.gz")
    built.rename(folder / "pm3-fleet.tar.gz")
    shutil.copytree(fleet.wheels(), folder / "wheels")
    packed = subprocess.run(["tar", "-C", folder, "-c", "."], check=True, capture_output=True).stdout
    unpack = fleet.ssh_command(HOST, "mkdir -p /srv/pull /srv/shop/current && tar -C /srv/pull --no-same-owner -x")
    subprocess.run(unpack, input=packed, check=True)
    one = Pulling(fleet)
    one.sh(
        "git init -q -b production /srv/pull/fleet && cd /srv/pull/fleet && mkdir shop metrics && printf %s "
        + shlex.quote(REQUIREMENTS)
        + " > requirements.yml"
    )
    timer = "/etc/systemd/system/pm3-gitops.timer.d"
    one.sh(f"mkdir {timer} && printf %s {shlex.quote(TIMER)} > {timer}/first-alone.conf")
    yield one
    fleet.reset(HOST)


def test_what_a_host_lacks_is_told(pulling: Pulling) -> None:
    """An old Python, one without venv, and check mode, in which nothing comes to the host."""
    script = "#!/bin/sh\ncase $2 in *ensurepip*) exit 1;; *) echo $AGE;; esac\n"
    for age in ("3.10", "3.11"):
        text = script.replace("$AGE", age)
        pulling.sh(f"printf %s {shlex.quote(text)} > /srv/pull/python{age} && chmod +x /srv/pull/python{age}")
    old = pulling.set_up(pm3_gitops_python="/srv/pull/python3.10")
    assert old.returncode == 2, old.stdout
    assert "This host has Python 3.10 as /srv/pull/python3.10, and Ansible needs 3.11 or newer" in old.stdout
    bare = pulling.set_up(pm3_gitops_python="/srv/pull/python3.11", pm3_gitops_packages=[])
    assert bare.returncode == 2, bare.stdout
    assert "venv is missing on this host" in bare.stdout
    foreseen = pulling.set_up("--check")
    assert foreseen.returncode == 0, foreseen.stdout
    for task in ("The virtual environment is there", "Ansible is there"):
        assert re.search(rf"{task}\][ *]+\nchanged:", foreseen.stdout), foreseen.stdout
    units = "/etc/systemd/system/pm3-gitops"
    assert pulling.sh(f"ls -d /var/lib/pm3-gitops {units}.service {units}.timer 2>/dev/null || true") == ""


def test_a_host_converges_by_itself(pulling: Pulling) -> None:
    commit = pulling.commit(hosts=HOSTS, shop=SHOP, metrics=METRICS)
    done = pulling.set_up()
    assert done.returncode == 0, done.stdout
    until(lambda: pulling.fleet.ssh(HOST, "test -e /var/lib/pm3-gitops/status.json").returncode == 0)
    status = pulling.status()
    assert (status["outcome"], status["commit"], status["message"]) == ("changed", commit, None)
    made = {(one["project"], one["name"], one["action"]) for one in status["instances"]}
    assert made == {
        (project, name, "created") for project, name in (("shop", "web"), ("shop", "worker"), ("metrics", "collector"))
    }
    assert pulling.labels() == [commit[:12]]
    assert "changed=0" in pulling.set_up().stdout


def test_what_was_changed_by_hand_is_put_right_without_a_new_commit(pulling: Pulling) -> None:
    pulling.sh("pm3 stop worker")
    status = pulling.run()
    assert [(one["name"], one["action"]) for one in status["instances"]] == [("worker", "started")]
    assert pulling.instances()["worker"]["status"] == "online"
    assert pulling.run()["outcome"] == "ok"


def test_a_broken_commit_changes_nothing(pulling: Pulling) -> None:
    before, good = pulling.instances(), pulling.status()["commit"]
    broken = SHOP.replace("sleep 1000000", "sleep 2000000")
    commit = pulling.commit(shop=broken.replace("env =", "emv ="), metrics=METRICS.replace("sleep 1", "sleep 2"))
    status = pulling.run()
    assert (status["outcome"], status["stage"], status["commit"]) == ("failed", "play", commit)
    assert "unknown field; did you mean env?" in status["message"]
    assert status["good"]["commit"] == good
    for hosts, told in {"web: {hosts: [": "hosts.yml", "web:": f"no play of it is for this host, {HOST}"}.items():
        pulling.commit(hosts=hosts, shop=broken)
        status = pulling.run()
        assert (status["outcome"], status["stage"]) == ("failed", "play")
        assert told in status["message"]
        assert status["good"]["commit"] == good
    assert pids(pulling.instances()) == pids(before)


def test_a_bad_release_goes_back_and_is_not_tried_again(pulling: Pulling) -> None:
    bad = SHOP.replace('"sleep 1000000"\nenv', "\"sh -c 'echo no ledger; exit 3'\"\nenv")
    commit = pulling.commit(hosts=HOSTS, shop=bad, metrics=METRICS)
    status = pulling.run()
    assert status["outcome"] == "failed"
    assert "web exited with code 3" in status["message"]
    assert ("web", "failed") in {(one["name"], one["action"]) for one in status["instances"]}
    assert pulling.instances()["web"]["status"] == "online"
    labels, before = pulling.labels(), pulling.instances()
    assert commit[:12] in labels
    status = pulling.run()
    assert status["outcome"] == "failed"
    assert "not retried: web exited with code 3" in status["message"]
    assert pulling.labels() == labels
    assert pulling.instances()["web"]["pid"] == before["web"]["pid"]
    pulling.commit(shop=SHOP)
    assert pulling.run()["message"] is None


def test_projects_that_left_the_list_go_and_only_they(pulling: Pulling, tmp_path: Path) -> None:
    """Told one project, drift and site leave the others alone; told the full list, drift tells of those that are too many."""
    by_hand = '[byhand]\ncommand = "sleep 1000000"\n'
    pulling.sh(f"mkdir -p /srv/hand && cd /srv/hand && printf %s {shlex.quote(by_hand)} > pm3.toml && pm3 start")
    (tmp_path / "metrics.toml").write_text(METRICS)
    one = {"project": "metrics", "src": str(tmp_path / "metrics.toml")}
    report = {"pm3_hosts": HOST, "drift_json": str(tmp_path / "drift.json")}
    single = {"pm3_project": one["project"], "pm3_src": one["src"], **report}
    for name in ("drift", "site"):
        done = playbook(pulling.fleet, f"pm3.fleet.{name}", "-e", json.dumps(single))
        assert done.returncode == 0, done.stdout
    assert pulling.instances().keys() == {"web", "worker", "collector", "byhand"}
    done = playbook(pulling.fleet, "pm3.fleet.drift", "-e", json.dumps({"pm3_projects": [one], **report}))
    assert done.returncode == 2, done.stdout
    drifted = json.loads((tmp_path / "drift.json").read_text())["drifted"]
    assert {(row["project"], row["name"], row["action"]) for row in drifted} == {
        ("shop", "web", "removed"),
        ("shop", "worker", "removed"),
    }
    pulling.commit(hosts="\n".join(line for line in HOSTS.splitlines() if "project: shop" not in line))
    status = pulling.run()
    assert {(row["project"], row["name"], row["action"]) for row in status["instances"]} == {
        ("shop", "web", "removed"),
        ("shop", "worker", "removed"),
    }, status
    pulling.commit(hosts=re.sub(r"pm3_projects:\n(?: +- .*\n)+", "pm3_projects: []\n", HOSTS))
    assert "pm3_projects is empty" in pulling.run()["message"]
    assert pulling.instances().keys() == {"collector", "byhand"}


def test_a_folder_whose_name_systemd_would_take_apart(pulling: Pulling) -> None:
    folder = "/var/lib/pm3 50% gitops"
    done = pulling.set_up(pm3_gitops_dir=folder)
    assert done.returncode == 0, done.stdout
    until(lambda: pulling.fleet.ssh(HOST, f"test -e '{folder}/status.json'").returncode == 0)
    assert json.loads(pulling.sh(f"cat '{folder}/status.json'"))["stage"] == "play"
    pulling.sh(f"rm -r '{folder}'")
    assert pulling.set_up().returncode == 0
    pulling.run()


def test_an_agent_that_was_started_in_a_run_lives_on(pulling: Pulling) -> None:
    """One that no service manager keeps is in the service's own cgroup."""
    play = """
- name: An agent of its own
  hosts: all
  gather_facts: false
  tasks:
    - name: It runs
      pm3.fleet.agent:
        scope: user
        data_dir: /srv/own
        service_manager: none
"""
    own = f"printf %s {shlex.quote(play)} > own.yml && git add own.yml"
    pulling.sh(f"cd /srv/pull/fleet && {own}")
    pulling.commit()
    try:
        assert pulling.set_up(pm3_gitops_playbook="own.yml").returncode == 0
        assert pulling.run()["message"] is None
        assert "processes" in json.loads(pulling.sh("PM3_DATA_DIR=/srv/own /srv/own/bin/pm3 --json list"))
    finally:
        gone = play.replace("service_manager: none", "state: absent\n        purge: true")
        pulling.sh(f"cd /srv/pull/fleet && printf %s {shlex.quote(gone)} > own.yml && git add own.yml")
        pulling.commit()
        pulling.run()
        assert pulling.set_up().returncode == 0
        pulling.run()


def test_what_nobody_has_signed_who_may_is_not_played(pulling: Pulling) -> None:
    keys = "cd /srv/pull/keys && export GNUPGHOME=/srv/pull/keys"
    pulling.sh("install -d -m 700 /srv/pull/keys")
    pulling.sh(f"{keys} && for name in ada eve; do ssh-keygen -q -t ed25519 -N '' -f $name; done")
    pulling.sh(f"{keys} && gpg --batch --quiet --passphrase '' --quick-gen-key ada@example.com ed25519 sign never")
    pulling.sh(
        "printf '#!/bin/sh\\nGNUPGHOME=/srv/pull/keys exec gpg \"$@\"\\n' > /srv/pull/gpg && chmod +x /srv/pull/gpg"
    )
    gpg = "-c gpg.program=/srv/pull/gpg -c user.signingkey=ada@example.com"
    ada, eve = (f"-c gpg.format=ssh -c user.signingkey=/srv/pull/keys/{name}" for name in ("ada", "eve"))
    signers = "ada@example.com " + pulling.sh("cat /srv/pull/keys/ada.pub")
    exported = pulling.sh(f"{keys} && gpg --armor --export ada@example.com")

    def refused() -> None:
        status = pulling.run()
        assert (status["outcome"], status["stage"]) == ("failed", "verify")
        assert "has no good signature" in status["message"]
        assert pulling.sh("git -C /var/lib/pm3-gitops/repository rev-parse HEAD") == before

    done = pulling.set_up(pm3_gitops_signers=signers, pm3_gitops_gpg_keys=exported)
    assert done.returncode == 0, done.stdout
    before = pulling.sh("git -C /var/lib/pm3-gitops/repository rev-parse HEAD")
    pulling.commit(hosts=HOSTS)
    refused()
    pulling.commit(signing=eve)
    refused()
    commit = pulling.commit(signing=ada)
    status = pulling.run()
    assert (status["outcome"], status["commit"]) == ("changed", commit), status
    commit = pulling.commit(signing=gpg)
    status = pulling.run()
    assert (status["outcome"], status["commit"]) == ("ok", commit), status
    # A key that was taken out of the settings does not count any more.
    before = commit + "\n"
    assert pulling.set_up(pm3_gitops_signers=signers).returncode == 0
    pulling.commit(signing=gpg)
    refused()


def test_it_can_be_taken_away(pulling: Pulling) -> None:
    before = pulling.instances()
    for changed in (True, False):
        done = pulling.set_up(pm3_gitops_state="absent")
        assert done.returncode == 0, done.stdout
        assert ("changed=0" not in done.stdout) is changed
    assert pulling.fleet.ssh(HOST, "test -e /var/lib/pm3-gitops").returncode == 1
    assert "pm3-gitops" not in pulling.sh("systemctl list-units --all --no-legend 'pm3*'")
    assert pids(pulling.instances()) == pids(before)
