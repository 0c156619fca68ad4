"""What a run that changes nothing costs over a fleet, beside `ansible.builtin.ping` over the same hosts: `make fleet-scale N=100`.

The hosts have to be up; fleet_scale.sh sees to that. Each size is measured with both, by turns, and the best of each counts: whatever
else the machine does makes both slower, and none faster. The bar is told, and a miss fails nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "fleet"))

from hosts import Fleet  # noqa: E402

BAR = 1.3
TURNS = 3
FORKS = 10
SHOP = """
[db]
command = "sleep infinity"

[web]
command = "sleep infinity"
instances = 8
depends_on = ["db"]
env = { PORT = "@{8000 + instance}" }

[worker]
command = "sleep infinity"
instances = 2
"""
TASKS = {
    "ping": {"ansible.builtin.ping": {}},
    "processes": {"pm3.fleet.processes": {"project": "scale", "src": "pm3.toml"}},
}


def play(fleet: Fleet, folder: Path, hosts: list[str], tasks: list[dict[str, object]], **keywords: object) -> str:
    found = [{"name": "A run", "hosts": ",".join(hosts), "gather_facts": False, "tasks": tasks, **keywords}]
    (folder / "play.yml").write_text(json.dumps(found))
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "-i", fleet.inventory, "-f", str(FORKS), "play.yml"],
        cwd=folder,
        env={**os.environ, "ANSIBLE_FORCE_COLOR": "0"},
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stdout)
    return done.stdout


def main() -> None:
    fleet = Fleet()
    hosts = fleet.running()
    sizes = [size for size in (1, 10, 30, 100) if size < len(hosts)] + [len(hosts)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pm3.toml").write_text(SHOP)
        play(fleet, folder, hosts, [TASKS["processes"]], roles=["pm3.fleet.agent"])
        print(
            f"{'HOSTS':>5}  {'PING':>7}  {'NOTHING CHANGES':>15}  {'RATIO':>5}  (seconds, {FORKS} forks; the bar is {BAR})"
        )
        for size in sizes:
            best = dict.fromkeys(TASKS, float("inf"))
            for _turn in range(TURNS):
                for what, task in TASKS.items():
                    began = time.monotonic()
                    output = play(fleet, folder, hosts[:size], [task])
                    best[what] = min(best[what], time.monotonic() - began)
                    if "changed=1" in output:
                        raise SystemExit(f"{what} was to change nothing:\n{output}")
            ratio = best["processes"] / best["ping"]
            missed = "  MISS" if ratio > BAR else ""
            print(f"{size:5}  {best['ping']:7.2f}  {best['processes']:15.2f}  {ratio:5.2f}{missed}", flush=True)


if __name__ == "__main__":
    main()
