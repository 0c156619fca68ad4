"""Views of a whole fleet: what is not as it is described, and how everything is; with exit statuses for programs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MANY, Play, playbook
from hosts import Fleet

SHOP = """
[db]
command = "sleep 1000000"

[web]
command = "sleep 1000001"
instances = 3
depends_on = ["db"]

[worker]
command = "sleep 1000002"
"""
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def run(many: Fleet, play: Play, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Plays one of our playbooks over the shop on ten hosts, where it is applied already."""
    source = tmp_path_factory.mktemp("shop") / "pm3.toml"
    source.write_text(SHOP)

    def one(name: str, *options: str) -> subprocess.CompletedProcess[str]:
        shop = ("-e", f"pm3_project=shop pm3_src={source} pm3_hosts={','.join(MANY)}")
        return playbook(many, f"pm3.fleet.{name}", *shop, *options)

    done = one("site")
    assert done.returncode == 0, done.stdout
    yield one
    gone = play([{"pm3.fleet.processes": {"project": "shop", "state": "absent"}}], hosts=",".join(MANY))
    assert gone.status == 0, gone.output


def test_no_drift_then_drift_made_by_hand(many: Fleet, run: Run, tmp_path: Path) -> None:
    report = ("-e", f"drift_json={tmp_path}/drift.json")

    def told() -> dict[str, Any]:
        found: dict[str, Any] = json.loads((tmp_path / "drift.json").read_text())
        return found

    clean = run("drift", *report)
    assert clean.returncode == 0, clean.stdout
    assert "no drift on 10 hosts" in clean.stdout
    assert told()["drifted"] == []

    for host, command in {
        "app2": "pm3 stop web:1",
        "app3": "pm3 delete worker",
        "app5": "pm3 hold worker --reason 'a leak' && pm3 stop worker",
        "app10": "pm3 delete web:2",
    }.items():
        done = many.ssh(host, command)
        assert done.returncode == 0, done.stdout + done.stderr
    found = run("drift", *report)
    assert found.returncode == 2, found.stdout
    drifted = {(one["host"], one["name"]): (one["action"], one["reason"]) for one in told()["drifted"]}
    assert drifted["app2", "web:1"] == ("started", "was stopped")
    assert drifted["app3", "worker"][0] == "created"
    assert drifted["app10", "web:2"][0] == "created"
    assert {host for host, _name in drifted} == {"app2", "app3", "app10"}
    assert [(one["host"], one["name"]) for one in told()["held"]] == [("app5", "worker")]
    assert "app2   web:1" in found.stdout
    assert "held by root" in found.stdout

    assert many.ssh("app5", "pm3 release worker").returncode == 0
    assert run("site").returncode == 0
    assert run("drift", *report).returncode == 0


def test_hosts_that_do_not_answer(many: Fleet, run: Run, tmp_path: Path) -> None:
    """One is not reached, and on one nothing can be found out: both are told, and the others are looked at all the same."""
    (tmp_path / "gone.yml").write_text("all: {hosts: {app4: {ansible_host: 127.0.0.1, ansible_port: 1}}}")
    assert many.ssh("app6", "systemctl stop pm3").returncode == 0
    try:
        options = ("-i", str(tmp_path / "gone.yml"))
        found = run("drift", *options, "-e", f"drift_json={tmp_path}/drift.json")
        assert found.returncode == 4, found.stdout
        told = json.loads((tmp_path / "drift.json").read_text())
        assert [one["host"] for one in told["unreachable"]] == ["app4"]
        assert [one["host"] for one in told["failed"]] == ["app6"]
        assert told["drifted"] == []

        files = f"status_json={tmp_path}/status.json status_html={tmp_path}/status.html"
        shown = run("status", *options, "-e", files)
        assert shown.returncode == 0, shown.stdout
        status = json.loads((tmp_path / "status.json").read_text())
        assert [one["host"] for one in status["unreachable"]] == ["app4"]
        assert [one["host"] for one in status["failed"]] == ["app6"]
        assert status["summary"]["online"] == 8 * 5
        assert "40 instances on 10 hosts: 40 online" in shown.stdout
        page = (tmp_path / "status.html").read_text()
        assert page.count("<td>web:0</td>") == 8
        assert "<b>app4</b> is unreachable" in page
    finally:
        assert many.ssh("app6", "systemctl start pm3").returncode == 0


def test_a_report_is_there_whatever_went_wrong(run: Run, tmp_path: Path) -> None:
    """Definitions that cannot be read, and a variable that one host lacks: told, never taken for no drift."""
    report = ("-e", f"drift_json={tmp_path}/drift.json")
    found = run("drift", *report, "-e", f"pm3_src={tmp_path}/nothing.toml")
    assert found.returncode == 2, found.stdout
    told = json.loads((tmp_path / "drift.json").read_text())
    assert [one["host"] for one in told["failed"]] == list(MANY)
    assert "no drift on 0 of 10 hosts" in found.stdout
    (tmp_path / "pm3.toml").write_text(SHOP)
    hosts = {host: {"source": f"{tmp_path}/pm3.toml"} for host in MANY if host != "app2"}
    (tmp_path / "source.yml").write_text(json.dumps({"all": {"hosts": hosts}}))
    found = run("drift", *report, "-i", str(tmp_path / "source.yml"), "-e", "pm3_src={{source}}")
    assert found.returncode == 2, found.stdout
    told = json.loads((tmp_path / "drift.json").read_text())
    assert [one["host"] for one in told["failed"]] == ["app2"]
    assert "'source' is undefined" in told["failed"][0]["message"]
    assert "no drift on 9 of 10 hosts" in found.stdout


def test_a_pattern_that_matches_no_host_is_a_mistake(run: Run) -> None:
    for name in ("site", "drift", "status"):
        for wrong in (("-e", "pm3_hosts=wbe"), ("--limit", "app2", "-e", "pm3_hosts=app1")):
            done = run(name, *wrong)
            assert done.returncode != 0, done.stdout
            assert "matches no host" in done.stdout
