# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module `process_info`: one question to the agent, and its answer. Private to this collection."""

from __future__ import annotations

import typing as t

from . import _place
from ._place import Document, Place, Refused, Unanswered

if t.TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

OPTIONS: dict[str, t.Any] = {
    "project": {"type": "str"},
    "names": {"type": "list", "elements": "str"},
    "log_lines": {"type": "int", "default": 0},
    "wait_for": {"type": "str", "choices": ["online"]},
    "timeout": {"type": "int", "default": 30},
    **_place.OPTIONS,
}


def run(module: AnsibleModule) -> None:
    """Asks the agent once and ends the module."""
    params = module.params
    place = Place(params["scope"], params["data_dir"])
    wait_for = None if module.check_mode else params["wait_for"]
    result: Document = {
        "installed": True,
        "agent": None,
        "instances": [],
        "definitions": {},
        "revisions": {},
        "holds": [],
    }
    request = {key: params[key] for key in ("project", "names", "log_lines", "timeout")}
    try:
        answer = place.ask({"type": "snapshot", "wait_for": wait_for, **request})
        result.update((key, answer[key]) for key in result if key in answer)
    except Refused as error:
        module.fail_json(msg=str(error), **result)
    except Unanswered as error:
        if not error.absent:
            module.fail_json(msg=str(error), **result)
        result["installed"] = False
    late = [f"{one['name']} is {one['status']}" for one in result["instances"] if one["status"] != wait_for]
    if wait_for and (late or not result["instances"]):
        why = ", ".join(late) or ("there is no such instance" if result["installed"] else "there is no agent")
        module.fail_json(msg=f"not {wait_for} within {params['timeout']} s: {why}", **result)
    module.exit_json(changed=False, **result)
