"""The push form of docs/fleet.md: its repository as it is shown there, and the commands of its CI jobs, on one host."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import CHECKOUT, PLAYBOOK
from hosts import Fleet

HOST = "app1"
GUIDE = CHECKOUT / "docs" / "fleet.md"
Job = Callable[..., subprocess.CompletedProcess[str]]


def block(language: str, beginning: str) -> str:
    """The block of the guide that begins like this."""
    found = re.findall(rf"^```{language}\n({re.escape(beginning)}.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(found) == 1, beginning
    return str(found[0])


@pytest.fixture
def repository(fleet: Fleet, clean: None, tmp_path: Path) -> Path:
    """What the guide says is in the repository. The hosts' addresses are beside it."""
    (tmp_path / "shop").mkdir()
    files = {"ansible.cfg": "ini", **dict.fromkeys(("site.yml", "shop.yml", "drift.yml", "shop/unpack.yml"), "yaml")}
    for name, language in files.items():
        (tmp_path / name).write_text(block(language, f"# {name}").replace("https://releases.example.com", "/srv/built"))
    definitions = block("toml", '[web]\ncommand = "./web"')
    (tmp_path / "shop" / "pm3.toml").write_text(definitions)
    variables = tmp_path / "group_vars" / "web"
    variables.mkdir(parents=True)
    (variables / "vars.yml").write_text("shop_release: 41\n")
    (variables / "vault.yml").write_text("shop_db_password: nobody-knows\n")
    (tmp_path / "password").write_text("open sesame\n")
    vault = [
        PLAYBOOK.with_name("ansible-vault"),
        "encrypt",
        "--vault-password-file",
        "password",
        variables / "vault.yml",
    ]
    subprocess.run(vault, cwd=tmp_path, check=True, capture_output=True)
    inventory = json.loads(fleet.inventory.read_text())["fleet"]
    hosts = {"web": {"hosts": {HOST: inventory["hosts"][HOST]}, "vars": inventory["vars"]}}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(hosts))
    return tmp_path


def build(fleet: Fleet, label: str, command: str) -> None:
    """A release as the guide's server would have it: a folder of its own with the program `web`."""
    where = f"/srv/built/{label}"
    packed = f"tar -C /srv/built -czf /srv/built/shop-{label}.tar.gz {label}"
    script = f"printf '#!/bin/sh\\n%s\\n' '{command}' > {where}/web && chmod +x {where}/web"
    assert fleet.ssh(HOST, f"mkdir -p {where} && {script} && {packed}").returncode == 0


@pytest.fixture
def job(repository: Path) -> Job:
    """Runs a job of the guide as CI does. Collections are there already."""
    jobs = yaml.safe_load(block("yaml", "# .gitlab-ci.yml"))

    def run(name: str, label: str = "c0ffee") -> subprocess.CompletedProcess[str]:
        install, line = jobs[name]["script"] if name in jobs else ("", name)
        assert install in ("", "ansible-galaxy collection install -r requirements.yml")
        return subprocess.run(
            ["sh", "-c", line],
            cwd=repository,
            env={
                **{key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_CALL")},
                "PATH": f"{PLAYBOOK.parent}:{os.environ['PATH']}",
                "ANSIBLE_VAULT_PASSWORD_FILE": "password",
                "CI_COMMIT_SHORT_SHA": label,
            },
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )

    return run


def test_from_a_pull_request_to_the_fleet(fleet: Fleet, repository: Path, job: Job) -> None:
    def listed() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(fleet.ssh(HOST, "pm3 --json list").stdout)["processes"]
        return found

    build(fleet, "c0ffee", "exec sleep 1000000")
    build(fleet, "decaf", "echo no beans >&2; exit 1")
    planned = job("plan")
    assert planned.returncode == 0, planned.stdout
    assert "web         created" in planned.stdout
    assert "nobody-knows" not in planned.stdout
    assert listed() == []
    drifted = job("drift")
    assert drifted.returncode == 2, drifted.stdout

    merged = job("rollout")
    assert merged.returncode == 0, merged.stdout
    assert json.loads((repository / "report.json").read_text())["ok"] is True
    (web,) = listed()
    environment = fleet.ssh(HOST, f"tr '\\0' '\\n' < /proc/{web['pid']}/environ").stdout
    assert "DB_PASSWORD=nobody-knows" in environment.splitlines()
    label = json.loads(fleet.ssh(HOST, "pm3 --json history shop").stdout)["revisions"][-1]["label"]
    assert label == "c0ffee"

    same = job("drift")
    assert same.returncode == 0, same.stdout
    assert json.loads((repository / "drift.json").read_text())["drifted"] == []
    site = job("ansible-playbook site.yml")
    assert site.returncode == 0, site.stdout
    assert [one["pid"] for one in listed()] == [web["pid"]]

    bad = job("rollout", "decaf")
    assert bad.returncode == 2, bad.stdout
    assert "web exited with code 1" in bad.stdout
    assert "no beans" in bad.stdout
    (web,) = listed()
    assert fleet.ssh(HOST, f"readlink /proc/{web['pid']}/cwd").stdout == "/srv/shop/releases/c0ffee\n"
    drifted = job("drift")
    assert drifted.returncode == 2, drifted.stdout
    assert [one["name"] for one in json.loads((repository / "drift.json").read_text())["drifted"]] == ["web"]
    assert fleet.ssh(HOST, "rm -r /srv/built /srv/shop/releases /srv/shop/current").returncode == 0
