"""The agent dies at each of its crash points on real hosts, under systemd and with cells. See files/crash_points.py."""

from __future__ import annotations

import concurrent.futures
import importlib.metadata
import io
import re
import subprocess
import tarfile

from conftest import CHECKOUT, NAMES
from hosts import Fleet

LIBRARIES = ("pytest", "pluggy", "iniconfig", "packaging", "pygments")  # pytest and what it needs
SHARED = ("plugins/module_utils/pm3", "tests/integration/agent")
PLACE = "/srv/crash"


def packed() -> bytes:
    """pytest and our tests, for hosts that have nothing but Python."""
    found = io.BytesIO()
    with tarfile.open(fileobj=found, mode="w:gz", compresslevel=1) as archive:
        for file in (file for library in LIBRARIES for file in importlib.metadata.files(library) or ()):
            if file.suffix != ".pyc" and ".." not in file.parts:
                archive.add(file.locate(), str(file))
        for part in SHARED:
            archive.add(CHECKOUT / part, f"ansible_collections/pm3/fleet/{part}", filter=source)
    return found.getvalue()


def source(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if member.name.endswith("__pycache__") else member


def test_a_crash_at_every_point(fleet: Fleet, clean: None) -> None:
    """Each host tries its share of the points."""
    archive = packed()

    def share(number: int) -> subprocess.CompletedProcess[str]:
        unpack = f"rm -rf {PLACE} && mkdir {PLACE} && tar -xzf - -C {PLACE}"
        subprocess.run(fleet.ssh_command(NAMES[number], unpack), input=archive, check=True, timeout=60)
        variables = f"PYTHONPATH={PLACE}:/srv/shop PM3_SHARE={number}/{len(NAMES)}"
        command = f"{variables} python3 -m pytest -q -x -p no:cacheprovider --durations=3 /srv/shop/crash_points.py"
        return fleet.ssh(NAMES[number], command, timeout=600)

    with concurrent.futures.ThreadPoolExecutor() as threads:
        for done in threads.map(share, range(len(NAMES))):
            print(done.stdout[-1000:])
            assert done.returncode == 0, done.stdout + done.stderr
            assert re.search(r"^\d+ passed in", done.stdout, re.MULTILINE), "none was left out"
