#!/usr/bin/env python
"""Runs ansible-test on this checkout: `run_ansible_test.py sanity …`, `units …`, `integration …`.

ansible-test wants four things that a plain checkout on a plain machine does not give. Each is given here, under .cache/, which
also keeps its virtual environments warm from one run to the next:

- a folder that is really called …/ansible_collections/pm3/fleet: a copy of the files that git does not ignore;
- pip's bootstrap script, which it would download from a host of its own: a stand-in that installs the same pip from a wheel,
  put where ansible-test looks for an earlier download, in a HOME of its own;
- pip's settings, of which it passes no environment variable on: a link in that HOME to the user's;
- Pythons that work under the names python3.9, python3.10, …: their real folders come first on PATH, before any shim.

Pythons that this machine does not have are named as not tested.
"""

from __future__ import annotations

import filecmp
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from ansible_test._util.target.common import constants

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache"
COPY = CACHE / "ansible-test" / "ansible_collections" / "pm3" / "fleet"
HOME = CACHE / "home"
OLDEST = "3.9"  # the oldest Python of a host, as tests/config.yml says

PIP_STAND_IN = '''\
"""Stands in for get-pip.py: installs pip from a wheel, and whatever else is named from where pip is set up to look."""

import sys

WHEEL = {wheel!r}

if __name__ == "__main__":
    sys.path.insert(0, WHEEL)
    from pip._internal.cli.main import main

    others = [word for word in sys.argv[1:] if not word.startswith("pip==") and word not in ("--no-setuptools", "--no-wheel")]
    sys.exit(main(["install", "--quiet", *others, WHEEL]))
'''


def files(folder: Path) -> set[str]:
    """What git would not ignore in a folder, as relative paths."""
    listing = subprocess.check_output(["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=folder, text=True)
    return {path for path in listing.split("\0") if path and os.path.lexists(folder / path)}


def copy_checkout() -> None:
    """Makes COPY equal to the checkout. What git ignores there, ansible-test's own output, stays."""
    if not (COPY / ".git").is_dir():
        COPY.mkdir(parents=True, exist_ok=True)
        # ansible-test asks git for the files.
        subprocess.run(["git", "init", "--quiet", COPY], check=True)
    wanted = files(ROOT)
    for path in files(COPY) - wanted:
        (COPY / path).unlink()
        for folder in (COPY / path).parents:
            if folder == COPY or any(folder.iterdir()):
                break
            folder.rmdir()
    for path in wanted:
        source, target = ROOT / path, COPY / path
        if source.is_symlink() or not target.is_file() or not same(source, target):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)


def same(source: Path, target: Path) -> bool:
    return source.stat().st_mode == target.stat().st_mode and filecmp.cmp(source, target)


def make_home() -> None:
    """Makes HOME: the stand-in for each pip that this ansible-test may ask for, and links to the user's settings of pip."""
    spec = importlib.util.find_spec("ansible_test._internal.python_requirements")
    assert spec is not None
    assert spec.origin is not None
    downloads = HOME / ".ansible" / "test" / "cache"
    downloads.mkdir(parents=True, exist_ok=True)
    for version in re.findall(r"\bpip='([\d.]+)'", Path(spec.origin).read_text("utf-8")):
        wheel = downloads / f"pip-{version}-py3-none-any.whl"
        if not wheel.exists():
            words = ["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", f"pip=={version}"]
            subprocess.run([sys.executable, *words, "-d", str(downloads)], check=True)
        stand_in = downloads / f"get_pip_{version.replace('.', '_')}.py"
        stand_in.write_text(PIP_STAND_IN.format(wheel=str(wheel)), "utf-8")
    user = Path.home()
    settings = Path(os.environ.get("XDG_CONFIG_HOME", user / ".config"))
    cache = Path(os.environ.get("XDG_CACHE_HOME", user / ".cache"))
    links = {".config/pip": settings / "pip", ".pip": user / ".pip", ".cache/pip": cache / "pip"}
    for name, target in links.items():
        link = HOME / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not link.exists():
            link.unlink(missing_ok=True)
            link.symlink_to(target)


def pythons() -> dict[str, Path]:
    """The Pythons of this machine by version, newest first."""
    lines = subprocess.check_output([ROOT / "tests" / "tools" / "pythons.sh"], text=True).splitlines()
    return {version: Path(path) for version, path in (line.split(" ", 1) for line in lines)}


def main(words: list[str]) -> int:
    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    found = pythons()
    wanted = [*constants.REMOTE_ONLY_PYTHON_VERSIONS, *constants.CONTROLLER_PYTHON_VERSIONS]  # oldest first
    wanted = wanted[wanted.index(OLDEST) :]
    missing = [version for version in wanted if version not in found]
    if missing and words[0] != "integration":
        print(f"not tested: Python {', '.join(missing)} (not on this machine)", flush=True)
    if words[0] == "integration":
        # The modules run on the oldest Python there is, as they may on a host; the controller has ours.
        oldest = next(version for version in wanted if version in found)
        words += ["--controller", f"origin:python={own}", "--target", f"controller:python={oldest}"]

    copy_checkout()
    make_home()
    folders = [Path(sys.executable).parent, *(path.parent for path in found.values())]
    environment = {
        **os.environ,
        "HOME": str(HOME),
        "PATH": os.pathsep.join([*map(str, folders), os.environ["PATH"]]),
    }
    # ansible-test says which collections there are.
    environment.pop("ANSIBLE_COLLECTIONS_PATH", None)
    command = [str(Path(sys.executable).with_name("ansible-test")), *words]
    return subprocess.run(command, cwd=COPY, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
