# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module `process` (and what its action plugin and its documentation must know of it): one definition as options.

The options of a definition are computed from the field table, so this module imports the model, which `processes` does not. What
becomes of the request is told as `processes` tells it. Private to this collection.
"""

from __future__ import annotations

import re
import typing as t

from . import _place, _processes
from ._place import Document, Place, Refused, Unanswered
from .pm3.model import kinds
from .pm3.model.definition import FIELDS, Field

if t.TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

STATES = {
    "started": "present",
    "stopped": "stopped",
    "restarted": "restarted",
    "reloaded": "reloaded",
    "absent": "absent",
}
# An overlay is chosen before a definition is applied: a task says in `env` what it means. `update` is an option of its own.
_LEFT_OUT = ("environments", "update")
_TYPES = (  # of options, and of their elements
    ("str", None, (kinds.TEXT, kinds.COMMAND, kinds.HOOK, kinds.USER, kinds.SIGNAL, kinds.CHECK)),
    ("str", None, (kinds.CRON, kinds.DATE_FORMAT)),
    ("path", None, (kinds.PATH,)),
    ("bool", None, (kinds.BOOLEAN,)),
    ("int", None, (kinds.COUNT, kinds.POSITIVE, kinds.NICE)),
    ("dict", None, (kinds.ENVIRONMENT, kinds.LIMITS)),
    ("list", "path", (kinds.FILES,)),
    ("list", "str", (kinds.NAMES, kinds.PATTERNS)),
    ("list", "int", (kinds.EXIT_CODES, kinds.IDS)),
)
_NUMBERS = (kinds.INSTANCES, kinds.MILLISECONDS, kinds.SECONDS, kinds.SIZE)  # or texts


def option(row: Field) -> Document:
    """A field's option, as an argument spec has it. What can be of several types is raw; so is umask, lest 022 become "18"."""
    if row.masked:
        return {"type": "raw", "no_log": True}  # what comes from the action plugin is one encoded text
    if row.kind.choices:
        return {"type": "str", "choices": list(row.kind.choices)}
    for name, elements, of in _TYPES:
        if row.kind in of:
            return {"type": name, "elements": elements} if elements else {"type": name}
    return {"type": "raw"}


DEFINITION = [row for row in FIELDS.values() if row.name not in _LEFT_OUT]
OPTIONS: dict[str, t.Any] = {
    "name": {"type": "list", "elements": "str", "required": True},
    "project": {"type": "str", "default": "default"},
    "state": {"type": "str", "choices": list(STATES), "default": "started"},
    "wait": {"type": "bool", "default": True},
    "label": {"type": "str"},
    "update": _processes.UPDATE,
    **_place.OPTIONS,
    **{row.name: option(row) for row in DEFINITION},
}


def table(params: Document) -> Document:
    """What the options say of the definition, as a pm3.toml would; without secrets, which travel apart."""
    said = {row.name: params[row.name] for row in DEFINITION if not row.masked and params[row.name] is not None}
    return {name: _written(FIELDS[name], value) for name, value in said.items()}


def mistake(params: Document) -> str | None:
    """What is wrong with the options together, in a sentence; None if nothing is."""
    names = params["name"]
    if not names or not all(names):
        return "name is empty; expected the name of a process, or a list of names"
    given = [row.name for row in DEFINITION if params[row.name] is not None]
    given += [name for name in ("update",) if params[name] is not None]
    beside = [name for name in given if name not in ("instances", "instance_ids")]
    if beside and "command" not in given and params["state"] != "absent":
        fields = f"{beside[0]} is" if len(beside) == 1 else f"{', '.join(beside)} are"
        return (
            f"{fields} given, but no command; without one the process is as it was defined elsewhere, and only instances and"
            " instance_ids can be changed: give the whole definition, with its command"
        )
    return None


def run(module: AnsibleModule) -> None:
    """Asks the agent, once unless the names are of several projects, and ends the module."""
    wrong = mistake(module.params)
    if wrong:
        module.fail_json(msg=wrong, **_processes.nothing(module.params["project"]))
    _processes.end(module, lambda place: _answer(module, place))


def _answer(module: AnsibleModule, place: Place) -> Document:
    request = _request(module)
    try:
        return _asked(place, request)
    except Refused as error:
        # In check mode an earlier task may have been about to define it.
        if not module.check_mode or "unknown" not in error.answer:
            raise
        module.warn(f"it is not known yet what becomes of {', '.join(error.answer['unknown'])}: {_first_of(error)}")
        return {}
    except Unanswered as error:
        if not error.absent or not (module.check_mode or request["state"] == "absent"):
            raise
        if request["state"] == "absent":
            return {}
        if request["known"]:
            module.warn(f"it is not known yet what becomes of {', '.join(request['known'])}: {error}")
            return {}
    from . import _definitions

    return _definitions.planned_from_nothing(request)


def _asked(place: Place, request: Document) -> Document:
    try:
        return place.ask(request)
    except Refused as error:
        owners = error.answer.get("owners")
        if not owners:
            raise
    answers: list[Document] = []
    for names in owners.values():
        answers.append(place.ask({**request, "known": {name: request["known"][name] for name in names}}))
        if not answers[-1].get("ok", True):
            break
    return _together(answers)


def _together(answers: list[Document]) -> Document:
    """One result of several projects. It has no revision, as each of them has one."""
    result: Document = {"project": None, "summary": {}}
    for key in ("instances", "report", "diff", "warnings"):
        result[key] = [item for answer in answers for item in answer.get(key) or ()]
    for key in ("changed", "reverted", "timed_out", "in_progress"):
        result[key] = any(answer.get(key) for answer in answers)
    for answer in answers:
        for kind, count in answer["summary"].items():
            result["summary"][kind] = result["summary"].get(kind, 0) + count
    return {**result, "ok": answers[-1].get("ok", True), "message": answers[-1].get("message")}


def _request(module: AnsibleModule) -> Document:
    params = module.params
    said = table(params)
    request: Document = {
        "type": "plan" if module.check_mode else "apply",
        "project": params["project"],
        "definitions": {},
        "known": {},
        "secrets": {},
        "overlay": None,
        "base": None,
        "state": STATES[params["state"]],
        "prune": False,
        "only": None,
        "label": params["label"],
        "wait": params["wait"],
        "update": _processes.given(params["update"]),
    }
    if params["state"] == "absent":
        request["known"] = {name: {} for name in params["name"]}
    elif "command" in said:
        request["definitions"] = dict.fromkeys(params["name"], said)
        request["secrets"] = _secrets(params)
    else:
        request["known"] = dict.fromkeys(params["name"], said)
    return request


def _secrets(params: Document) -> Document:
    said = params["secrets"]
    if isinstance(said, str):
        return _processes.decoded(said)
    return dict.fromkeys(params["name"], said) if said else {}


def _written(row: Field, value: t.Any) -> t.Any:
    """Numbers and booleans that a template has made into texts are meant as what they were."""
    if isinstance(value, str) and row.kind in _NUMBERS and re.fullmatch(r"-?\d{1,20}", value.strip()):
        return int(value)
    if isinstance(value, str) and row.kind is kinds.WATCH and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if isinstance(value, str) and row.kind is kinds.CPU and re.fullmatch(r"\d{1,10}(\.\d{1,10})?", value.strip()):
        return float(value)
    return value


def _first_of(error: Refused) -> str:
    return str(error.problems[0]["message"]) if error.problems else str(error)
