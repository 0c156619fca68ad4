"""Upgrades in place on a real host: nothing is restarted, no line is lost, and a version that cannot do the work is not kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import CHECKOUT, COUNTED, SHOP_INSTANCES, UNWRITTEN, WRITER, Play, processes, shop
from hosts import Fleet

Pids = Callable[..., dict[str, int]]
HOST = "app1"
INSTALL: list[dict[str, Any]] = [{"pm3.fleet.agent": {}}]
MAIN = "plugins/module_utils/pm3/agent/main.py"


def collection(folder: Path, name: str, old: str, new: str) -> Path:
    """This collection with another agent in it, whose file `name` is not the same."""
    copied = folder / "ansible_collections" / "pm3" / "fleet"
    for part in ("plugins", "roles", "meta"):
        shutil.copytree(CHECKOUT / part, copied / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(CHECKOUT / "galaxy.yml", copied)
    text = (copied / name).read_text()
    assert text.count(old) == 1
    (copied / name).write_text(text.replace(old, new))
    return folder


def test_an_upgrade_keeps_every_process_and_every_line(
    fleet: Fleet, clean: None, play: Play, pids: Pids, tmp_path: Path
) -> None:
    """From this agent to another one and back: same pid, same children, under a program that writes as fast as it can."""
    other = collection(tmp_path, "plugins/module_utils/pm3/__init__.py", 'VERSION = "', 'VERSION = "0.0.')
    fleet.ssh(HOST, UNWRITTEN)
    play([processes(definitions=shop(writer={"command": WRITER, "log_max_size": "200M"}))], hosts=HOST)
    before, agent = pids(HOST), fleet.ssh(HOST, "cat /var/lib/pm3/pm3.pid").stdout
    for collections in (other, None):
        done = play(INSTALL, hosts=HOST, collections=collections)
        assert done.status == 0, done.output
        result = done.results[HOST]
        assert result["changed"] is True
        assert result["before"]["version"] != result["after"]["version"]
        assert result["instances_kept"] == len(SHOP_INSTANCES) + 1
        assert result["gap"] > 0
        assert pids(HOST) == before
        assert fleet.ssh(HOST, "cat /var/lib/pm3/pm3.pid").stdout == agent
    assert play(INSTALL, hosts=HOST).results[HOST]["changed"] is False
    fleet.ssh(HOST, "pm3 stop writer")
    counted = fleet.ssh(HOST, COUNTED).stdout
    assert counted.endswith(" end\n"), counted


def test_a_version_that_cannot_do_the_work_is_not_kept(
    fleet: Fleet, clean: None, play: Play, pids: Pids, tmp_path: Path
) -> None:
    play([processes(definitions=shop())], hosts=HOST)
    before, current = pids(HOST), fleet.ssh(HOST, "readlink /usr/local/lib/pm3/current").stdout
    run = "    def run(self) -> int:\n"
    for name, why, spoilt in (
        ("dead", "it is a bad day", run + "        sys.exit('it is a bad day')\n"),
        ("killed", "has failed, and the one before it is back", run + "        os.kill(os.getpid(), signal.SIGKILL)\n"),
    ):
        done = play(INSTALL, hosts=HOST, collections=collection(tmp_path / name, MAIN, run, spoilt))
        assert done.status == 2, done.output
        assert why in done.output
        assert f"with all {len(before)} instances" in done.output
        assert pids(HOST) == before
        assert fleet.ssh(HOST, "readlink /usr/local/lib/pm3/current").stdout == current
    assert play(INSTALL, hosts=HOST).results[HOST]["changed"] is False, "the host is as it was"


def test_a_version_that_cannot_read_the_store_is_refused(
    fleet: Fleet, clean: None, play: Play, pids: Pids, tmp_path: Path
) -> None:
    play([processes(definitions=shop())], hosts=HOST)
    before = pids(HOST)
    main = fleet.ssh(HOST, "systemctl show pm3 --property=ExecMainStartTimestampMonotonic,NRestarts").stdout
    store = "plugins/module_utils/pm3/agent/store.py"
    spoilt = collection(tmp_path, store, "    if definition is None:\n", "    if True:\n")
    done = play(INSTALL, hosts=HOST, collections=spoilt)
    assert done.status == 2, done.output
    assert "cannot take over: the store holds a definition that this agent cannot read" in done.output
    assert pids(HOST) == before
    assert fleet.ssh(HOST, "systemctl show pm3 --property=ExecMainStartTimestampMonotonic,NRestarts").stdout == main
