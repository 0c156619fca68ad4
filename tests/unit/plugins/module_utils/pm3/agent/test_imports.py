"""What an agent loads it keeps in memory for as long as it runs, on every host."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

MAIN = Path(__file__).resolve().parents[6] / "plugins" / "module_utils" / "pm3" / "__main__.py"


def test_what_most_agents_never_use_is_not_loaded() -> None:
    command = [sys.executable, "-B", "-X", "importtime", "-I", "-S", str(MAIN), "--daemon"]
    nowhere = {**os.environ, "PM3_DATA_DIR": "/dev/null/pm3"}
    done = subprocess.run(command, env=nowhere, capture_output=True, text=True, check=False)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "pm3.agent.supervisor" in loaded
    assert "cannot run: [Errno 20] Not a directory: '/dev/null/pm3'" in done.stderr
    heavy = {
        "argparse",
        "asyncio",
        "ctypes",
        "logging",
        "ssl",
        "subprocess",
        "traceback",
        "urllib.parse",
        "pm3.model.cron",
    }
    if sys.version_info < (3, 12):  # from there on dataclasses reads annotations with the help of one of these
        heavy |= {"ast", "dis", "inspect", "pm3.model.expressions"}
    assert loaded & heavy == set()
