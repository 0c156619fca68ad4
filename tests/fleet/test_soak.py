"""The soak on a real host, for PM3_SOAK_MINUTES (two). See files/soak.py; `make soak MINUTES=60` is the long one."""

from __future__ import annotations

import json
import os

import pytest
from conftest import CHECKOUT
from hosts import Fleet

MINUTES = float(os.environ.get("PM3_SOAK_MINUTES", "2"))
SEED = os.environ.get("PM3_SOAK_SEED", "")


def test_the_promises_hold_after_a_soak(fleet: Fleet, clean: None) -> None:
    command = f"python3 -u /srv/shop/soak.py {MINUTES * 60:.0f} {SEED}"
    done = fleet.ssh("app1", f"{command} 2>&1", timeout=MINUTES * 60 + 600)
    told = done.stdout.splitlines()
    (CHECKOUT / ".cache" / "soak.log").write_text(done.stdout)
    if done.returncode:
        agent = fleet.ssh("app1", "journalctl -u pm3 -n 60 --no-pager -o cat; pm3 delete --all >/dev/null").stdout
        pytest.fail("\n".join([told[0], *told[-40:], "", "The agent:", agent]))
    figures = json.loads(told[-1])
    print(f"\n{json.dumps(figures, indent=1)}")
    assert figures["lines"] > 0
    assert figures["restarts"] > 0
