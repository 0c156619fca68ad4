"""Programs that say when they begin and end, and what is to be seen of it: for tests of the order in which an agent does both."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from hosts import Fleet

# Says when it begins, when it is asked to end and when it has ended, in nanoseconds since the epoch; that it ends takes its time.
LIFE = """python3 -c "
import signal, time
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
def say(word): print(word, time.time_ns(), flush=True)
say('begun'); signal.sigwait([signal.SIGTERM]); say('asked'); time.sleep(0.1); say('gone')"
"""
LIVES = ("db", "web:0", "web:1", "worker")
DEFINITIONS: dict[str, Any] = {
    "db": {"command": LIFE},
    "web": {"command": LIFE, "instances": 2, "depends_on": ["db"]},
    "worker": {"command": LIFE, "depends_on": ["web"], "restart": "never"},
    "stubborn": {
        "command": "sh -c 'trap \"\" TERM; while :; do sleep 1; done'",
        "kill_timeout": "1s",
        "post_stop": "echo buried",
    },
    "rest": {"command": "sleep 1000000"},
}
ONLINE = {*LIVES, "stubborn"}


@dataclass
class Place:
    """An agent on a host, as somebody sees it who has a shell there."""

    fleet: Fleet
    host: str
    data_dir: str
    user: str = "root"
    pm3: str = "pm3"
    inside: str = ""  # what leads a command to where the agent is

    def runs(self, command: str, status: int = 0) -> str:
        """What a command says, on stderr too."""
        done = self.fleet.ssh(self.host, f"{self.inside} {command}", user=self.user)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def settle(self) -> None:
        """Waits until the agent answers and has begun all that it will begin by itself."""
        look = f"out=$({self.inside} {self.pm3} list 2>&1) && ! echo \"$out\" | grep -qE 'starting|waiting'"
        done = self.fleet.ssh(self.host, f"until {look}; do :; done", user=self.user)
        assert done.returncode == 0, done.stdout + done.stderr

    def listed(self) -> dict[str, dict[str, Any]]:
        listed = json.loads(self.runs(f"{self.pm3} --json list"))["processes"]
        return {one["name"]: one for one in listed}

    def lives(self) -> dict[str, list[tuple[str, int]]]:
        """What each of `LIVES` has said, first to last."""
        found = {}
        for name in LIVES:
            lines = self.runs(f"cat {self.data_dir}/logs/{name}-out.log").splitlines()
            found[name] = [(word, int(when)) for word, when in map(str.split, lines)]
        return found


def in_order(lives: dict[str, list[tuple[str, int]]], turn: int) -> None:
    """They began what they need before them, the `turn`th time."""
    begun = {name: [when for word, when in said if word == "begun"][turn] for name, said in lives.items()}
    assert begun["db"] < min(begun["web:0"], begun["web:1"]), begun
    assert max(begun["web:0"], begun["web:1"]) < begun["worker"], begun


def out_of_order(lives: dict[str, list[tuple[str, int]]]) -> None:
    """At their first end, dependents had ended before what they need was asked to."""
    asked, gone = (
        {name: next(when for word, when in said if word == wanted) for name, said in lives.items()}
        for wanted in ("asked", "gone")
    )
    assert gone["worker"] < min(asked["web:0"], asked["web:1"]), (asked, gone)
    assert max(gone["web:0"], gone["web:1"]) < asked["db"], (asked, gone)


def all_are_back(place: Place) -> None:
    """Everything that was wanted runs, nothing else does, and nothing counts as a crash."""
    place.settle()
    listed = place.listed()
    assert {name for name, one in listed.items() if one["status"] == "online"} >= ONLINE
    assert listed["rest"]["status"] == "stopped"
    assert {one["total_restarts"] for one in listed.values()} == {0}
