# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's part of `process`: checks the definition before a host is touched, and takes its secrets out of the options.

Secrets leave in one encoded text, which Ansible hides: each value by itself would hide its equals everywhere, pids and all.
"""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.pm3.fleet.plugins.module_utils import _definitions, _process, _processes
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model import loading
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.problems import DefinitionError
from ansible_collections.pm3.fleet.plugins.plugin_utils._tables import plain, without_secrets


class ActionModule(ActionBase):
    _supports_check_mode = True
    _supports_async = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        variables = task_vars or {}
        super().run(None, variables)
        _dummy, options = self.validate_argument_spec(_process.OPTIONS)
        options = plain(options)
        wrong = _process.mistake(options)
        if wrong:
            return {"failed": True, "msg": wrong, **_processes.nothing(options["project"])}
        try:
            check(options)
        except DefinitionError as error:
            problems = _definitions.as_documents(error)
            return {
                "failed": True,
                "msg": _processes.faulty(problems),
                "problems": problems,
                **_processes.nothing(options["project"]),
            }
        # The task's own words, not their validated form: a path such as ~/shop is to be expanded on the host.
        words = dict(self._task.args)
        if words.get("secrets") is not None:
            _clean, words["secrets"] = without_secrets(
                {name: {"secrets": options["secrets"]} for name in options["name"]}
            )
        return self._execute_module(module_args=words, task_vars=variables, wrap_async=bool(self._task.async_val))


def check(options: dict[str, Any]) -> None:
    """Raises `DefinitionError` with everything that is wrong with the definition, as far as it can be known without the host."""
    table = _process.table(options)
    if "command" not in table or options["state"] == "absent":
        return
    if options["secrets"] is not None:
        table["secrets"] = options["secrets"]
    loading.load(dict.fromkeys(options["name"], table), elsewhere=None)
