# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes over the socket: one JSON object and a newline per message, and the table of requests with their fields.

The protocol is pm3's (spec: pm3.md, section 6) with requests of our own beside it. Both ends use this file: a client to frame,
the server also to check. It checks shapes only; what definitions mean is the model's affair. No I/O here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, Callable

from .. import VERSION

Document = dict[str, Any]

PROTOCOL = 1  # told by hello; raised when an older client or agent would misunderstand the other
_MOST_DIGITS = 400  # of a number: to read a million takes older Pythons a minute
_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # what neither the store nor the kernel could take
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_NO_PATH = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")
LONGEST_REQUEST = 16 * 1024 * 1024  # bytes of a request's line; more is refused by the server


class Malformed(ValueError):
    """A message that cannot be used; the text is the sentence for whoever sent it."""


class Field:
    """A field of a request. A field that is missing or null has the default; others that nobody knows are ignored."""

    __slots__ = ("choices", "default", "fits", "required", "words")

    def __init__(
        self,
        words: str,
        default: Any = None,
        required: bool = False,
        choices: tuple[str, ...] = (),
        fits: Callable[[Any], bool] | None = None,
    ) -> None:
        self.words = words  # a key of _KINDS, completes "expected …"
        self.fits = fits or _KINDS[words]
        self.default = default
        self.required = required
        self.choices = choices


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not _NO_TEXT.search(value)


def is_name(value: Any) -> bool:
    """Whether it can be the name of a project, or of a revision."""
    return _is_text(value) and bool(value) and not _CONTROL.search(value)


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and not _NO_PATH.search(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _is_tables(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(table, dict) for table in value.values())


TEXT, TEXTS, FLAG, COUNT = "a string", "an array of strings", "true or false", "a whole number, 0 or more"
NAME = "a name: a string that is not empty, without control characters"
PATH = "a string that can be a path"  # bytes that are not UTF-8 included, as half surrogate pairs
SECONDS, TABLE, TABLES, SECRETS = (
    "a number, 0 or more",
    "an object",
    "an object of objects",
    "an object of objects of strings",
)
_KINDS: dict[str, Callable[[Any], bool]] = {
    TEXT: _is_text,
    NAME: is_name,
    PATH: _is_path,
    TEXTS: lambda value: isinstance(value, list) and all(map(_is_text, value)),
    FLAG: lambda value: isinstance(value, bool),
    COUNT: _is_count,
    SECONDS: lambda value: _is_count(value) or (isinstance(value, float) and 0 <= value < 2**53),
    TABLE: lambda value: isinstance(value, dict),
    TABLES: _is_tables,
    SECRETS: lambda value: (
        _is_tables(value) and all(_is_text(text) for table in value.values() for text in table.values())
    ),
}


def _sought(required: bool = False) -> Field:
    """The name of what is looked for. It may be any bytes that somebody typed, for then it is not found."""
    return Field(TEXT, required=required, fits=_is_path)


def _sought_all(required: bool = False) -> Field:
    return Field(TEXTS, required=required, fits=lambda value: isinstance(value, list) and all(map(_is_path, value)))


_NAMES = {"names": _sought_all()}  # none: all
_WALK = {"progress": Field(FLAG, False)}  # rows while the work goes on
_APPLY = {
    "project": Field(NAME, required=True),
    "definitions": Field(TABLES, {}),
    "known": Field(TABLES, {}),  # processes as the agent knows them, by name, with the fields that are to be another
    "rollback_to": Field(TEXT),  # a revision's number or label, instead of definitions
    "rollback_from": Field(NAME),  # back from the revision of this label, if it is the current one
    "secrets": Field(SECRETS, {}),
    "update": Field(TABLE, {}),  # for definitions that have none of their own
    "update_once": Field(TABLE, {}),  # for this run alone, whatever the definitions say
    "overlay": Field(TEXT),
    "base": Field(PATH),  # the folder that relative paths are relative to
    "state": Field(TEXT, "present", choices=("present", "stopped", "restarted", "reloaded", "absent")),
    "prune": Field(FLAG, True),
    "only": Field(TEXTS),
    "take_over": Field(FLAG, False),  # processes of another project become this one's
    "retry_failed": Field(FLAG, True),  # try again what has been reverted
    "label": Field(NAME),
    "wait": Field(FLAG, True),
    "path": Field(PATH),
    "file": Field(PATH),  # how messages call the file that the definitions are from
    **_WALK,
}
REQUESTS: dict[str, dict[str, Field]] = {
    "hello": {},
    "apply": _APPLY,
    "plan": _APPLY,
    "snapshot": {
        "project": Field(NAME),
        **_NAMES,
        "log_lines": Field(COUNT, 0),
        "wait_for": Field(TEXT, choices=("online",)),
        "timeout": Field(SECONDS, 30),
    },
    "start": {
        "configs": Field(TABLES, required=True),
        **_NAMES,
        "env": Field(TEXT),
        "wait": Field(FLAG, False),
        "path": Field(PATH),
        **_WALK,
    },
    "stop": {**_NAMES, **_WALK},
    "restart": {**_NAMES, **_WALK},
    "reload": {**_NAMES, "path": Field(PATH), **_WALK},
    "flush": _NAMES,
    "signal": {"name": _sought(required=True), "signal": _sought(required=True)},
    "save": {},
    "resurrect": {"path": Field(PATH)},
    "delete": {"names": _sought_all(required=True)},
    "doctor": {},
    "history": {"project": _sought(required=True)},
    "hold": {**_NAMES, "project": _sought(), "reason": Field(TEXT, required=True)},
    "release": {**_NAMES, "project": _sought()},
    "list": {},
    "info": {"name": _sought(required=True)},
    "log": {
        "name": _sought(),
        **_NAMES,
        "lines": Field(COUNT, 15),
        "follow": Field(FLAG, False),
        "stream": Field(TEXT, choices=("out", "err")),  # none: both
        "since": Field(SECONDS),  # since the epoch
        "timestamps": Field(FLAG, False),
    },
    "kill": {},
}


def encode(document: Document) -> bytes:
    """The line that carries `document`. Pure ASCII, so that any text survives, bytes that were not UTF-8 included."""
    return json.dumps(document, separators=(",", ":")).encode("ascii") + b"\n"


def decode(line: bytes) -> Document:
    """The object in a line. Raises `Malformed`."""
    try:
        document = json.loads(line.decode("utf-8"), parse_constant=_no_number, parse_int=_whole)
    except UnicodeDecodeError:
        raise Malformed("expected one JSON object in UTF-8, found bytes that are not UTF-8") from None
    except json.JSONDecodeError as error:
        raise Malformed(f"expected one JSON object: {error.msg} at character {error.pos + 1}") from None
    except (ValueError, RecursionError):
        raise Malformed("expected one JSON object without endless numbers or nesting") from None
    if not isinstance(document, dict):
        raise Malformed("expected one JSON object, found another JSON value")
    return document


def check(document: Document) -> Document:
    """The request with all of its fields and no other: defaults stand where nothing was said. Raises `Malformed`."""
    kind = document.get("type")
    if not isinstance(kind, str):
        raise Malformed("expected a request with its type, a string")
    if kind not in REQUESTS:
        raise Malformed(f"request type {kind[:40]!r} is unknown to this agent (pm3 {VERSION})")
    request: Document = {"type": kind}
    for name, field in REQUESTS[kind].items():
        value = document.get(name)
        if value is None:
            if field.required:
                raise Malformed(f"request {kind}: {name} is missing; expected {field.words}")
            request[name] = field.default
            continue
        if not field.fits(value):
            raise Malformed(f"request {kind}: {name}: expected {field.words}")
        if field.choices and value not in field.choices:
            raise Malformed(f"request {kind}: {name}: expected one of {', '.join(field.choices)}")
        request[name] = value
    return request


def success(message: str | None = None) -> Document:
    return {"type": "success", "message": message}


def error(message: str, problems: Iterable[Any] = ()) -> Document:
    """An error reply. `problems` are the model's `Problem`s, where definitions are at fault."""
    reply: Document = {"type": "error", "message": message}
    listed = [{"file": one.file, "table": one.table, "field": one.field, "message": one.message} for one in problems]
    return {**reply, "problems": listed} if listed else reply


def _whole(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError("a number without end")
    return int(text)


def _no_number(text: str) -> None:
    raise ValueError(text)  # NaN and the infinities, which Python reads and JSON does not have
