"""Hooks, checks and restarts of their own on real hosts: in cells, as another user, after a reboot."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Play, processes
from hosts import Fleet

pytestmark = pytest.mark.usefixtures("clean")

SERVER = """
import http.server, socket
class Server(http.server.ThreadingHTTPServer):
    def server_bind(self):
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()
Server(("127.0.0.1", 9000), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


def shown(fleet: Fleet, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(fleet.ssh("app1", f"pm3 --json info {name}").stdout)["info"]
    return found


def applied(play: Play, **definitions: Any) -> None:
    done = play([processes(definitions=definitions)], hosts="app1")
    assert done.status == 0, done.output


def eventually(fleet: Fleet, condition: str) -> None:
    """Waits on the host until a shell condition holds."""
    fleet.ssh("app1", f"timeout 30 sh -c 'until {condition}; do sleep 0.05; done'")


def test_hooks_and_checks_are_the_users_and_leave_nothing(fleet: Fleet, play: Play) -> None:
    fleet.ssh("app1", "rm -rf /tmp/story; install -d -o pm3-run /tmp/story")
    applied(
        play,
        job={
            "command": "sleep 1000000",
            "user": "pm3-run",
            "cwd": "/tmp/story",
            "pre_start": "id -un >before; setsid -f setsid -f sleep 1000002; true",
            "post_stop": "id -un >after; setsid -f sleep 1000002; true",
            "readiness_check": """exec://sh -c 'test "$(id -un)" = pm3-run && setsid -f sleep 1000003'""",
        },
    )
    assert not fleet.ssh("app1", "pgrep -f '^sleep 1000002' || true").stdout.strip()
    assert fleet.ssh("app1", "pgrep -f '^sleep 1000003'").stdout.strip()  # a check's belongs to the instance
    fleet.ssh("app1", "pm3 stop job")
    assert fleet.ssh("app1", "cat /tmp/story/before /tmp/story/after").stdout.split() == ["pm3-run"] * 2
    assert not fleet.ssh("app1", "pgrep -f '^sleep 100000[23]' || true").stdout.strip()


def test_a_reload_swaps_in_cells(fleet: Fleet, play: Play, pids: Callable[[str], dict[str, int]]) -> None:
    fleet.ssh("app1", f"cat >/tmp/server.py <<'END'\n{SERVER}\nEND")
    applied(play, web={"command": "python3 /tmp/server.py", "readiness_check": "http://127.0.0.1:9000/", "cwd": "/srv"})
    before = pids("app1")["web"]
    assert "reloaded: web" in fleet.ssh("app1", "pm3 reload web").stdout
    after = shown(fleet, "web")
    assert (after["status"], after["restarts"]) == ("online", 0)
    assert after["pid"] != before
    assert fleet.ssh("app1", f"test -d /proc/{before} && echo there || echo gone").stdout.strip() == "gone"
    cells = "ls -d /sys/fs/cgroup/unified/system.slice/pm3-cells.service/*/ | grep -vc anchor"
    assert fleet.ssh("app1", cells).stdout.strip() == "1"


def test_memory_of_all_processes_in_a_cell(fleet: Fleet, play: Play) -> None:
    fleet.ssh("app1", "rm -f /tmp/once")
    hungry = 'test -e /tmp/once || { touch /tmp/once; setsid python3 -c "kept = bytearray(90 << 20); import time; time.sleep(999)" & }'
    applied(play, web={"command": f"sh -c '{hungry}; exec sleep 1000000'", "max_memory": "60M", "restart": "never"})
    eventually(fleet, 'pm3 --json info web | grep "\\"cause\\":\\"memory\\"" | grep -q "\\"status\\":\\"online\\""')
    assert not fleet.ssh("app1", "pgrep -fx 'python3 -c kept.*' || true").stdout.strip()


def test_limits_that_a_host_cannot_keep(fleet: Fleet, play: Play, pids: Callable[[str], dict[str, int]]) -> None:
    """These hosts have cgroups, and no controllers in them wherever this machine has v1 beside v2."""
    if "memory" in fleet.ssh("app1", "cat /sys/fs/cgroup/cgroup.controllers 2>/dev/null || true").stdout:
        pytest.skip("this machine gives its hosts cgroup v2 alone, with controllers: tests/machine")
    applied(play, web={"command": "sleep 1000000"})
    before = pids("app1")
    task = processes(definitions={"web": {"command": "sleep 1000000", "memory_max": "64M"}})
    said = "[web] memory_max: cannot be kept on this host, its cgroup v2 has no controller memory"
    foreseen = play([task], "--check", hosts="app1")
    assert (foreseen.status, foreseen.actions()) == (0, {"web": "updated"}), foreseen.output
    assert said in " ".join(foreseen.output.split())
    done = play([task], hosts="app1")
    assert done.status != 0
    assert said in " ".join(done.output.split())
    assert pids("app1") == before
    assert "memory_max" not in shown(fleet, "web")
    assert "no controller memory" in fleet.ssh("app1", "pm3 doctor").stdout


def test_schedules_and_limits_are_back_after_a_reboot(fleet: Fleet, play: Play) -> None:
    fleet.ssh("app1", "rm -f /srv/ticks")
    applied(
        play,
        job={
            "command": "sh -c 'ulimit -n >>/srv/ticks'",
            "cron_restart": "* * * * * *",
            "restart": "never",
            "limits": {"nofile": 4242},
            "nice": -5,
        },
    )
    fleet.reboot("app1")
    fleet.ssh("app1", "rm -f /srv/ticks")
    eventually(fleet, "test $(grep -c 4242 /srv/ticks 2>/dev/null || echo 0) -ge 2")
