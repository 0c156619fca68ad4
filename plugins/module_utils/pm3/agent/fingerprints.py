# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the files of `restart_when_changed` and the `env_file`s are: taken when an instance starts, compared when one applies.

Owns the reading of those files, and keeps of them nothing but digests. A fingerprint is `{glob: {path: token}}`, plain JSON that
the store keeps. A token says where the path really leads, so that a link that now points elsewhere counts though the content
be the same, and what is there: of a small file a digest, of others size and time. Never opens what is no file: a FIFO would wait
for somebody to write.

Reading happens on the loop, so all of it has bounds: `LARGEST`, `MOST_BYTES`, `MOST_PATHS`, and `globs.MOST_NAMES`.
"""

from __future__ import annotations

import os
import stat
import time
from collections import deque
from collections.abc import Generator, Iterable, Mapping
from dataclasses import replace

from ..model import patterns, placeholders
from ..model.definition import Definition
from ..model.parts import whole
from ..model.problems import Unfit
from ..model.screen import one_line
from . import globs
from .instance import Instance

LARGEST = 2**20  # bytes of a file whose content is compared
MOST_BYTES = 2**24  # of the content of all files of one glob; those beyond are compared by size and time
MOST_PATHS = 4096  # of one glob; of more than that, only their number counts
_ABSENT, _FOLDER, _OTHER = "absent", "folder", "other"
_YOUNG = 2.0  # seconds in which a file can change once more without its times telling
_DIGESTS = 8192  # that are remembered
_RECENT = 32  # fingerprints with which a new one is compared, to be one object with an equal one
_NUMBER = ""  # instead of a path: the number of paths, where it is above MOST_PATHS

# By path. A token is what is there; and after a blank where that really is, if it is not at that very path.
Tokens = Mapping[str, str]
Seen = Mapping[str, Tokens]  # by glob


class Fingerprints:
    """Of all instances of an agent."""

    def __init__(self) -> None:
        self._digests = Digests()
        self._look: Look | None = None
        self._recent: deque[Seen] = deque(maxlen=_RECENT)

    def forget(self) -> None:
        """What is taken from now on is of now. Until then, what several instances have in common is read once."""
        self._look = None

    def take(self, instance: Instance) -> Seen | None:
        """The fingerprint of what the instance is being started with; None where its definition names no files. Raises `Unfit`."""
        return self._taken(globs_of(instance, instance.definition), {})

    def completed(self, instance: Instance) -> Seen | None:
        """What was seen when it was started, of the globs that its definition has now; one that it did not have then is seen now."""
        try:
            wanted = globs_of(instance, instance.definition)
            if list(instance.seen or ()) == wanted:
                return instance.seen
            return self._taken(wanted, instance.seen or {})
        except Unfit:  # its next start will say so
            return instance.seen

    def stale(
        self, instances: Iterable[Instance], desired: Mapping[str, Definition]
    ) -> Generator[None, None, dict[str, str]]:
        """Why processes that run are not what would be started now, by spawn id; only of processes in `desired`, and only of the globs that
        it names. Each file is read once, whoever names it."""
        look, found = Look(self._digests), {}
        for one in instances:
            definition = desired.get(one.process)
            if definition is None or one.pid is None or not one.seen:
                continue
            try:
                reason = yield from _changed_since(one.seen, globs_of(one, definition), look)
            except Unfit:  # its next start will say so
                continue
            if reason:
                found[one.spawn_id] = reason
        return found

    def shared(self, seen: Seen | None) -> Seen | None:
        """An equal one that is known already, or this one: thousands of instances may have seen the same."""
        if seen is None:
            return None
        for known in self._recent:
            if known.keys() == seen.keys() and all(
                known[glob] is seen[glob] or known[glob] == seen[glob] for glob in seen
            ):
                return known
        self._recent.appendleft(seen)
        return seen

    def _taken(self, wanted: list[str], known: Seen) -> Seen | None:
        if not wanted:
            return None
        look = self._look = self._look or Look(self._digests)
        return self.shared({glob: known[glob] if glob in known else whole(look.at(glob)) for glob in wanted})


def globs_of(instance: Instance, definition: Definition) -> list[str]:
    """What counts for an instance: files that must be read to start it, and what its definition adds. Raises `Unfit`."""
    if not definition.env_file and not definition.restart_when_changed:
        return []
    own, literal = instance.scope, patterns.literal
    scope = replace(own, process=literal(own.process), name=literal(own.name), project=literal(own.project))
    said = (*map(literal, definition.env_file), *definition.restart_when_changed)
    return list(dict.fromkeys(placeholders.expand(text, scope) for text in said))


def _changed_since(seen: Seen, wanted: Iterable[str], look: Look) -> Generator[None, None, str]:
    found: dict[str, str] = {}
    for glob in wanted:
        before = seen.get(glob)
        if before is not None:
            after = yield from look.at(glob)
            if after is not before and after != before:
                for path, what in _differences(glob, before, after):
                    found.setdefault(path, what)
            else:
                look.found[glob] = before  # the next one of its process need not be compared in full
    if not found:
        return ""
    first, *others = found.values()
    return first + (f", and {len(others)} more" if others else "")


def _differences(glob: str, before: Tokens, after: Tokens) -> Iterable[tuple[str, str]]:
    """Paths, and in words what has become of them."""
    for path in sorted({*before, *after}):
        was, led = _parted(path, before.get(path, _ABSENT))
        now, leads = _parted(path, after.get(path, _ABSENT))
        shown = one_line(path)
        if (was, led) == (now, leads):
            continue
        if path == _NUMBER:
            yield glob, f"{one_line(glob)} has {_number(now)} paths (was {_number(was)})"
        elif was == _ABSENT:
            yield path, f"{shown} is new"
        elif now == _ABSENT:
            yield path, f"{shown} is gone"
        elif led != leads:
            yield path, f"{shown} now leads to {one_line(leads)} (was {one_line(led)})"
        else:
            yield path, f"{shown} changed since it was started"


def _parted(path: str, token: str) -> tuple[str, str]:
    """What is there, and where it really is."""
    what, _blank, real = token.partition(" ")
    return what, real or path


def _number(text: str) -> str:
    return f"at most {MOST_PATHS}" if text == _ABSENT else text


class Look:
    """What globs mean at one moment: each is looked at once."""

    def __init__(self, digests: Digests) -> None:
        self.found: dict[str, Tokens] = {}
        self._digests = digests
        self._folders: dict[str, str] = {}  # and where they really are

    def at(self, glob: str) -> Generator[None, None, Tokens]:
        """Raises `Unfit`."""
        if glob not in self.found:
            paths: dict[str, None] = {}
            for path in globs.matching(glob):
                if path:
                    paths[path] = None
                yield
            tokens: dict[str, str] = {}
            left = MOST_BYTES
            for path in list(paths)[:MOST_PATHS]:
                tokens[path], size = self._token(path, left)
                left -= size
                yield
            if len(paths) > MOST_PATHS:
                tokens[_NUMBER] = str(len(paths))
            self.found[glob] = tokens
        return self.found[glob]

    def _token(self, path: str, left: int) -> tuple[str, int]:
        """The token, and how much of `left` bytes it took to make it."""
        try:
            about = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return _ABSENT, 0
        except OSError as error:  # a circle of links, a folder that we may not enter
            return f"error-{error.errno}", 0
        real = self._real(path)
        where = f" {real}" if real != path else ""
        if not stat.S_ISREG(about.st_mode):
            return (_FOLDER if stat.S_ISDIR(about.st_mode) else _OTHER) + where, 0
        small = about.st_size <= min(LARGEST, left)
        digest = self._digests.of(path, about) if small else None
        return (digest or f"{about.st_size}-{about.st_mtime_ns}") + where, about.st_size if small else 0

    def _real(self, path: str) -> str:
        if os.path.islink(path):
            return os.path.realpath(path)
        folder, _slash, name = path.rpartition("/")
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder or "/").rstrip("/")
        return f"{self._folders[folder]}/{name}"


class Digests:
    """Of the content of files. An unchanged file is not read again."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], str] = {}

    def of(self, path: str, about: os.stat_result) -> str | None:
        """None of a file that cannot be read."""
        digest = self._known.get(_identity(about))
        if digest is not None:
            return digest
        try:
            # It may have become something else since `about`: what would wait does not wait.
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            about = os.fstat(fd)
            content = _content(fd) if stat.S_ISREG(about.st_mode) else None
        except OSError:
            content = None
        finally:
            os.close(fd)
        if content is None:
            return None
        digest = _digest(content)
        if about.st_ctime + _YOUNG < time.time():
            if len(self._known) >= _DIGESTS:
                self._known.clear()
            self._known[_identity(about)] = digest
        return digest


def _identity(about: os.stat_result) -> tuple[int, ...]:
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns


def _content(fd: int) -> bytes | None:
    """None of a file that has grown too large."""
    content = b""
    while len(content) <= LARGEST:
        part = os.read(fd, LARGEST)
        if not part:
            return content
        content += part
    return None


def _digest(content: bytes) -> str:
    try:
        from _blake2 import blake2b  # what hashlib has, without the four megabytes of OpenSSL that come with that
    except ImportError:
        from hashlib import blake2b
    return blake2b(content, digest_size=16).hexdigest()
