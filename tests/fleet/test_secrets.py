"""Secrets reach the program and nothing else."""

from __future__ import annotations

import pytest
from conftest import Play, processes
from hosts import Fleet

pytestmark = pytest.mark.usefixtures("clean")

FIRST, SECOND = "correct-horse-battery", "staple-of-the-second-kind"


def definitions(secret: str, **more: str) -> dict[str, dict[str, object]]:
    said = "sh -c 'echo token=$TOKEN >&2; exec sleep 1000000'"
    return {"web": {"command": more.get("command", said), "secrets": {"TOKEN": secret}}}


@pytest.mark.parametrize("verbosity", ["-v", "-vvv", "-vvvvv"])
def test_in_no_output_no_diff_no_log_and_not_in_ps(fleet: Fleet, play: Play, verbosity: str) -> None:
    task = processes(definitions=definitions(FIRST))
    changed = processes(definitions=definitions(SECOND))
    # What a playbook says of its own task is Ansible's; the result, the diff and the module's arguments are ours.
    runs = [
        play([{**one, "vars": {}}], verbosity, "--diff", *options)
        for one, options in ((task, []), (changed, ["--check"]), (changed, []))
    ]
    for done in runs:
        assert done.status == 0, done.output
        assert FIRST not in done.output
        assert SECOND not in done.output
    assert runs[2].actions() == {"web": "rolled"}
    assert "********" in runs[2].output
    environment = fleet.ssh("app1", "tr '\\0' '\\n' < /proc/$(pgrep -f -o 'sleep 1000000')/environ").stdout
    assert f"TOKEN={SECOND}" in environment.split()
    elsewhere = "ps axww -o args; journalctl --no-pager; pm3 info web; pm3 --json list; pm3 --json info web"
    shown = fleet.ssh("app1", elsewhere).stdout
    assert FIRST not in shown
    assert SECOND not in shown


def test_not_in_the_last_lines_of_a_failure(play: Play) -> None:
    bad = definitions(FIRST, command="sh -c 'echo token=$TOKEN >&2; exit 3'")
    done = play([processes(definitions=bad)], "-vvv")
    assert done.status != 0
    assert "token=********" in done.output
    assert FIRST not in done.output
