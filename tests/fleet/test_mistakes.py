"""Wrong input and forgotten things: one clear error, and nothing half done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SHOP_INSTANCES, Play, processes, shop
from hosts import Fleet

pytestmark = pytest.mark.usefixtures("clean")

WRONG = """
[web]
command = "python3 'web.py"
kill_signal = "TREM"

[worker]
comand = "sleep 1"
depends_on = ["wbe"]

[db]
command = "sleep 1"
readiness_check = "htp://127.0.0.1"
instances = -5000
"""


def test_every_mistake_is_told_before_any_host_is_touched(tmp_path: Path, play: Play) -> None:
    source = tmp_path / "pm3.toml"
    source.write_text(WRONG)
    # Nobody answers on these hosts: whatever is said was found on the controller.
    done = play([processes(src=str(source))], "-e", "ansible_host=127.0.0.9 ansible_port=1")
    assert done.status != 0
    assert "UNREACHABLE" not in done.output
    for place in ("[web] command", "[web] kill_signal", "[worker] comand", "[db] readiness_check", "[db] instances"):
        assert f"{source}: {place}: " in done.output, done.output
    assert "did you mean command?" in done.output
    assert "did you mean SIGTERM?" in done.output


def test_a_template_that_renders_to_nothing_prunes_nothing(
    tmp_path: Path, play: Play, pids: Callable[[str], dict[str, int]]
) -> None:
    play([processes(definitions=shop())])
    before = pids("app1")
    source = tmp_path / "pm3.toml.j2"
    source.write_text("{% for name in [] %}\n[{{ name }}]\ncommand = 'x'\n{% endfor %}\n")
    done = play([processes(src=str(source), template=True)])
    assert done.status != 0
    assert "defines no process" in done.output
    assert pids("app1") == before
    assert sorted(before) == sorted(SHOP_INSTANCES)


def test_become_forgotten(play: Play) -> None:
    done = play([processes(definitions=shop())], "-e", "ansible_user=deploy")
    assert done.status != 0
    assert "become" in done.output
    assert "no pm3 agent is running" not in done.output
    helped = play([processes(definitions=shop())], "-e", "ansible_user=deploy", "--become")
    assert helped.status == 0, helped.output


def test_an_agent_that_is_down_is_not_one_that_is_missing(fleet: Fleet, play: Play) -> None:
    fleet.ssh("app1", "systemctl stop pm3")
    try:
        done = play([processes(definitions=shop())], hosts="app1")
        assert done.status != 0
        assert "systemctl start pm3" in done.output
    finally:
        fleet.ssh("app1", "systemctl start pm3")


def test_relative_paths_need_chdir(play: Play) -> None:
    done = play([processes(definitions={"a": {"command": "sleep 1", "env_file": "vars.env"}})])
    assert done.status != 0
    assert "chdir" in done.output
