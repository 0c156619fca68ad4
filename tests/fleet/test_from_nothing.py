"""One playbook, hosts with nothing on them: the main job, from end to end."""

from __future__ import annotations

import json
from pathlib import Path

from conftest import FILES, NAMES, SHOP_INSTANCES, Play, playbook, processes, shop
from hosts import Fleet


def test_role_and_project_from_nothing_and_the_same_again(fleet: Fleet, play: Play) -> None:
    fleet.reset()
    everything = [
        {"ansible.builtin.copy": {"src": f"{FILES}/", "dest": "/srv/shop/", "mode": "0755"}},
        processes(definitions=shop()),
    ]
    first = play(everything, roles=["pm3.fleet.agent"])
    assert first.status == 0, first.output
    for host in NAMES:
        rows = first.results[host]["instances"]
        assert [row["name"] for row in rows] == SHOP_INSTANCES
        assert {row["action"] for row in rows} == {"created"}
        assert {row["status"] for row in rows} == {"online"}
        # web ends at once where a database does not answer: it has waited for both.
        assert {row["restarts"] for row in rows} == {0}
        assert "  web:3       created    online     new" in first.output
    listed = {host: fleet.ssh(host, "pm3 --json list").stdout for host in NAMES}
    pids = {host: {one["name"]: one["pid"] for one in json.loads(text)["processes"]} for host, text in listed.items()}

    second = play(everything, roles=["pm3.fleet.agent"])
    assert second.status == 0, second.output
    assert second.output.count("changed=0") == len(NAMES)
    for host in NAMES:
        assert {row["action"] for row in second.results[host]["instances"]} == {"none"}
        assert {row["name"]: row["pid"] for row in second.results[host]["instances"]} == pids[host]


def test_the_role_is_what_it_says(agents: str, fleet: Fleet) -> None:
    assert fleet.ssh("app1", "systemctl is-active pm3 pm3-cells; systemctl is-enabled pm3").stdout.split() == [
        "active",
        "active",
        "enabled",
    ]
    assert fleet.ssh("app1", "stat -c '%a %U %G' /var/lib/pm3/pm3.sock").stdout.strip() == "660 root pm3"
    assert fleet.ssh("app1", "stat -c %a /var/lib/pm3/store.sqlite").stdout.strip() == "600"
    # Programs may run as this user, and through the socket of a root agent they would be root.
    assert fleet.ssh("app1", "id -nG pm3-run").stdout.split() == ["pm3-run"]
    hello = fleet.ssh("app1", "pm3 --version").stdout
    assert hello.startswith("pm3 ")


def test_check_mode_on_a_host_without_an_agent(fleet: Fleet, play: Play) -> None:
    fleet.reset("app3")
    predicted = play([processes(definitions=shop())], "--check", "--diff", hosts="app3")
    assert predicted.status == 0, predicted.output
    assert predicted.actions("app3") == dict.fromkeys(SHOP_INSTANCES, "created")
    assert "+[web]" in predicted.output

    refused = play([processes(definitions=shop())], hosts="app3")
    assert refused.status != 0
    assert "pm3.fleet.agent" in refused.output

    nothing = play([processes(state="absent")], hosts="app3")
    assert nothing.status == 0, nothing.output
    assert nothing.results["app3"]["changed"] is False

    installed = play(
        [{"ansible.builtin.copy": {"src": f"{FILES}/", "dest": "/srv/shop/", "mode": "0755"}}],
        hosts="app3",
        roles=["pm3.fleet.agent"],
    )
    assert installed.status == 0, installed.output


def test_the_site_playbook(fleet: Fleet, clean: None, tmp_path: Path) -> None:
    source = tmp_path / "pm3.toml"
    source.write_text('[mail]\ncommand = "sleep 1000000"\ninstances = 2\n')
    names = ",".join(NAMES)
    options = ["-e", "pm3_project=other", "-e", f"pm3_src={source}", "-e", f"pm3_hosts={names}"]
    first = playbook(fleet, "pm3.fleet.site", *options)
    assert first.returncode == 0, first.stdout
    assert first.stdout.count("  mail:1      created    online     new") == len(NAMES)
    second = playbook(fleet, "pm3.fleet.site", *options)
    assert second.stdout.count("changed=0") == len(NAMES)
