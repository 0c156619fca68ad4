"""The emulated machine with the agent on it. Run by tests/tools/machine.sh."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from emulated import Emulated  # a program of its own, not a package

PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")
PATIENCE = 300.0  # seconds: everything takes long here, and only a hang takes that long


class Machine(Emulated):
    """What the tests do with it."""

    def install(self, folder: Path, collections: Path | None = None) -> str:
        """The role `agent`, from this collection or another one; gives what was printed."""
        play = [{"hosts": "all", "gather_facts": False, "roles": ["pm3.fleet.agent"]}]
        (folder / "install.yml").write_text(json.dumps(play))
        elsewhere = {"ANSIBLE_COLLECTIONS_PATH": str(collections)} if collections else {}
        done = subprocess.run(
            [PLAYBOOK, "-i", self.inventory, folder / "install.yml"],
            env={**os.environ, "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_TIMEOUT": "60", **elsewhere},
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def apply(self, text: str, fails: bool = False) -> dict[str, Any]:
        """One project of that text; gives the result."""
        self.ssh(f"mkdir -p /srv/shop && printf %s {shlex.quote(text)} > /srv/shop/pm3.toml")
        found: dict[str, Any] = json.loads(self.ssh(f"{'!' if fails else ''} pm3 --json apply /srv/shop/pm3.toml"))
        return found

    def listed(self) -> dict[str, dict[str, Any]]:
        return {one["name"]: one for one in json.loads(self.ssh("pm3 --json list"))["processes"]}

    def pids(self) -> dict[str, int]:
        return {name: one["pid"] for name, one in self.listed().items() if "pid" in one}

    def info(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ssh(f"pm3 --json info {name}"))
        return found

    def cell(self, name: str, *files: str) -> dict[str, str]:
        """What the files of an instance's cgroup say."""
        pid = self.pids()[name]
        said = self.ssh(f"cd /sys/fs/cgroup$(sed -n s/^0:://p /proc/{pid}/cgroup) && head -n 50 -v {' '.join(files)}")
        found = {}
        for part in said.split("==> ")[1:]:
            file, _arrow, text = part.partition(" <==\n")
            found[file] = text.strip()
        return found

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            value = condition()
            if value:
                return value
        raise AssertionError(f"not in {PATIENCE:g} s: {what}")


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    one = Machine()
    one.up()
    one.install(tmp_path_factory.mktemp("install"))
    return one
