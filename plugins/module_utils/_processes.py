# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module `processes` (and what its action plugin must know of it): options to one request, the answer to a result.

A run that changes nothing imports this file and the wire's client; everything else is imported where it is needed. Private to this
collection.
"""

from __future__ import annotations

import typing as t

from . import _place
from ._place import Document, Place, Refused, Unanswered

if t.TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

SOURCES = ("src", "content", "definitions", "remote_src")
BACK = ("rollback_to", "rollback_from")  # instead of a source
UPDATE: dict[str, t.Any] = {
    "type": "dict",
    "options": {
        "order": {"type": "str", "choices": ["stop_first", "start_first"]},
        "max_unavailable": {"type": "raw"},
        "max_surge": {"type": "raw"},
        "on_failure": {"type": "str", "choices": ["revert", "pause"]},
        "deadline": {"type": "raw"},
        "soak": {"type": "raw"},
        "on_scale": {"type": "str", "choices": ["keep", "roll"]},
    },
}
ONCE = ("max_unavailable", "max_surge", "on_failure", "deadline", "soak")
UPDATE_ONCE: dict[str, t.Any] = {"type": "dict", "options": {key: UPDATE["options"][key] for key in ONCE}}
OPTIONS: dict[str, t.Any] = {
    "project": {"type": "str", "required": True},
    "src": {"type": "str"},
    "content": {"type": "str"},
    "definitions": {"type": "dict"},
    "remote_src": {"type": "path"},
    "template": {"type": "bool", "default": False},
    "overlay": {"type": "str"},
    "chdir": {"type": "path"},
    "state": {
        "type": "str",
        "choices": ["present", "stopped", "restarted", "reloaded", "absent"],
        "default": "present",
    },
    "prune": {"type": "bool", "default": True},
    "only": {"type": "list", "elements": "str"},
    "label": {"type": "str"},
    "rollback_to": {"type": "str"},
    "rollback_from": {"type": "str"},
    "update": UPDATE,
    "update_once": UPDATE_ONCE,
    "retry_failed": {"type": "bool", "default": True},
    "take_over": {"type": "bool", "default": False},
    "wait": {"type": "bool", "default": True},
    "secrets": {"type": "str", "no_log": True},
    **_place.OPTIONS,
}
RULES: dict[str, t.Any] = {
    "mutually_exclusive": [[*SOURCES, *BACK]],
    "required_if": [
        ("state", "present", [*SOURCES, *BACK], True),
        *(("state", state, list(SOURCES), True) for state in ("stopped", "restarted", "reloaded")),
    ],
}


class Unusable(Exception):
    """Definitions that cannot be used: every problem, as in the protocol."""

    def __init__(self, problems: list[Document]) -> None:
        self.problems = problems
        super().__init__(faulty(problems))


def nothing(project: str | None) -> Document:
    """The result of a run that did nothing. All keys are in every result, whatever became of it."""
    return {
        "changed": False,
        "project": project,
        "revision": None,
        "label": None,
        "previous_revision": None,
        "previous_label": None,
        "reverted": False,
        "timed_out": False,
        "in_progress": False,
        "instances": [],
        "summary": {"ok": 0, "changed": 0, "failed": 0, "skipped": 0},
        "report": [],
    }


def run(module: AnsibleModule) -> None:
    """Asks the agent once and ends the module."""
    back = [name for name in BACK if module.params[name] is not None]
    if back and module.params["state"] != "present":
        module.fail_json(
            msg=f"{back[0]} goes with state: present alone, and state is {module.params['state']}",
            **nothing(module.params["project"]),
        )
    end(module, lambda place: _answer(module, place))


def end(module: AnsibleModule, ask: t.Callable[[Place], Document]) -> None:
    """Ends the module with what `ask` gives: the agent's answer, or {} where nothing was to be done."""
    place = Place(module.params["scope"], module.params["data_dir"])
    result = nothing(module.params["project"])
    if not module.params["project"].strip():
        module.fail_json(
            msg="project is empty, as from a variable that was never set; expected the name of a project", **result
        )
    try:
        answer = ask(place)
    except Unusable as error:
        module.fail_json(msg=str(error), problems=error.problems, **result)
    except Refused as error:
        defined = error.problems and "unknown" not in error.answer
        listed = faulty(error.problems) if defined else str(error)
        module.fail_json(msg=listed, problems=error.problems, **result)
    except Unanswered as error:
        module.fail_json(msg=str(error), **result)
    for warning in answer.get("warnings") or ():
        module.warn(warning)
    result.update((key, answer[key]) for key in result if key in answer)
    if module._diff:  # as Ansible's own modules ask; there is no public name for it
        result["diff"] = answer.get("diff") or []
    if not answer.get("ok", True):
        said = answer.get("message") or f"project {result['project']} is not as its definitions describe it"
        module.fail_json(msg="\n".join([said, *result["report"]]), **result)
    module.exit_json(**result)


def faulty(problems: list[Document]) -> str:
    """All problems of definitions in one message; a single one that is none of theirs, such as nowhere to go back to, by itself."""
    if len(problems) == 1 and not any(problems[0].get(place) is not None for place in ("file", "table", "field")):
        return f"{problems[0]['message']}; nothing was changed"
    count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
    return "\n".join([f"{count} in the definitions; nothing was changed:", *(f"  {_said(one)}" for one in problems)])


def _said(problem: Document) -> str:
    table = f"[{problem['table']}]" if problem.get("table") is not None else ""
    where = " ".join(part for part in (table, problem.get("field")) if part)
    return ": ".join(part for part in (problem.get("file"), where, problem["message"]) if part)


def _answer(module: AnsibleModule, place: Place) -> Document:
    params = module.params
    request: Document = {
        "type": "plan" if module.check_mode else "apply",
        "project": params["project"],
        "definitions": params["definitions"] or {},
        "secrets": decoded(params["secrets"]),
        "overlay": params["overlay"],
        "base": params["chdir"],
        "state": params["state"],
        "prune": params["prune"],
        "only": params["only"],
        "label": params["label"],
        "rollback_to": params["rollback_to"],
        "rollback_from": params["rollback_from"],
        "update": given(params["update"]),
        "update_once": given(params["update_once"]),
        "retry_failed": params["retry_failed"],
        "take_over": params["take_over"],
        "wait": params["wait"],
    }
    if params["remote_src"]:
        from . import _definitions

        asked = (params["remote_src"], params["chdir"], params["overlay"], params["prune"])
        request.update(_definitions.from_host(*asked, place))
    try:
        return place.ask(request)
    except Unanswered as error:
        if not error.absent:
            raise
        if params["state"] == "absent":
            return {}
        if not module.check_mode or any(params[name] is not None for name in BACK):
            raise
    from . import _definitions

    return _definitions.planned_from_nothing(request)


def given(options: Document | None) -> Document:
    """Suboptions that a task has given. A number that a template has made into a text is meant as one."""
    found = {name: value for name, value in (options or {}).items() if value is not None}
    for name, value in found.items():
        if UPDATE["options"][name]["type"] == "raw" and isinstance(value, str) and value.strip().isdecimal():
            found[name] = int(value)
    return found


def decoded(encoded: str | None) -> dict[str, dict[str, str]]:
    """The secrets that an action plugin took out of the definitions. One text, because every value that Ansible must hide costs it
    time and hides equal values elsewhere, pids and all."""
    if not encoded:
        return {}
    import base64
    import json

    return json.loads(base64.b64decode(encoded))
