# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Packs the agent, on the controller: our own package, and the small pure libraries that a host's Python lacks.

The identity of an agent is a hash over our own files alone. Neither the archive nor the libraries' versions go into it: two
controllers with the same collection would otherwise upgrade a host back and forth. Reads files, writes none. Private to this
collection.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import io
import json
import pathlib
import re
import typing as t
import zipfile
from dataclasses import dataclass

Files = t.Mapping[str, bytes]  # relative names with slashes

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / "module_utils" / "pm3"
IDENTITY_LENGTH = 16
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can hold


@dataclass(frozen=True)
class Library:
    """A pure library that travels with the agent to hosts whose Python is older than `below`; to all of them where that is None."""

    name: str  # both the distribution and the package
    minimum: str
    below: tuple[int, int] | None
    feature: str  # what is missing without it


LIBRARIES = (
    Library("cronsim", "2.6", None, "cron_restart cannot be used"),
    Library("tomli", "2.0", (3, 11), "pm3.toml files cannot be read on the host itself"),
)


def agent_files(folder: pathlib.Path = PACKAGE) -> dict[str, bytes]:
    """The agent's files by the name that they have in an unpacked agent, sorted."""
    found = {
        path.relative_to(folder.parent).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.endswith((".pyc", "~", ".swp"))
    }
    return dict(sorted(found.items()))


def identity(files: Files) -> str:
    """What names this version of the agent on a host: equal for equal files."""
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(b"%s\0%d\0" % (name.encode(), len(content)))
        digest.update(content)
    return digest.hexdigest()[:IDENTITY_LENGTH]


def libraries_for(python: tuple[int, ...]) -> tuple[Library, ...]:
    """The libraries that an agent needs beside it on a host with this Python."""
    return tuple(library for library in LIBRARIES if library.below is None or python < library.below)


def version_of(library: Library) -> str | None:
    """The version that this controller has, or None where it has none that is new enough."""
    try:
        version = importlib.metadata.version(library.name)
    except importlib.metadata.PackageNotFoundError:
        return None
    return version if numbers(version) >= numbers(library.minimum) else None


def oldest_python(library: Library) -> str:
    """The oldest Python that this controller's version of the library runs with; empty where it does not say."""
    try:
        found = re.search(r">=\s*(\d+\.\d+)", importlib.metadata.metadata(library.name).get("Requires-Python") or "")
    except importlib.metadata.PackageNotFoundError:
        return ""
    return found[1] if found else ""


def lack(library: Library, python: tuple[int, ...]) -> str | None:
    """Why a host with this Python goes without a library that it needs, in one sentence; None where it gets it."""
    version, oldest = version_of(library), oldest_python(library)
    host = ".".join(map(str, python[:2]))
    if version is None:
        needs = f", which the host's Python {host} needs," if library.below else ""
        return f"{library.name} {library.minimum} or newer{needs} is not installed on the controller: {library.feature}"
    if python < numbers(oldest):
        return (
            f"{library.name} {version} on the controller needs Python {oldest} or newer, and the host has {host}, so"
            f" {library.feature}; install an older {library.name} on the controller, as the collection's requirements.txt has it"
        )
    return None


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def library_files(library: Library) -> dict[str, bytes]:
    """The library's Python sources and licence. Compiled parts stay behind: these libraries work without them."""
    spec = importlib.util.find_spec(library.name)
    if spec is None or not spec.submodule_search_locations:
        return {}
    folder = pathlib.Path(next(iter(spec.submodule_search_locations)))
    found = {
        f"{library.name}/{path.relative_to(folder).as_posix()}": path.read_bytes() for path in folder.rglob("*.py")
    }
    for path in importlib.metadata.files(library.name) or ():
        if path.name.upper().startswith(("LICENSE", "COPYING")):
            found[f"{library.name}/{path.name}"] = path.read_binary()
    return found


def archive(files: Files, libraries: t.Iterable[Library]) -> bytes:
    """A zip of the agent with libraries beside it, and a note of their versions."""
    content = dict(files)
    versions = {}
    for library in libraries:
        version = version_of(library)
        if version is not None:
            content.update(library_files(library))
            versions[library.name] = version
    content["libraries.json"] = json.dumps(versions, sort_keys=True).encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in sorted(content):
            target.writestr(zipfile.ZipInfo(name, _EPOCH), content[name], zipfile.ZIP_DEFLATED)
    return packed.getvalue()
