# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's part of `processes`: reads, templates, parses and checks the definitions, and sends them as data.

Whatever is wrong with a text is found here, so that a mistake fails before any host is touched. Secrets leave in an option of their
own, which Ansible hides. What is on the host (`remote_src`, folders, users) is none of this file's business.
"""

from __future__ import annotations

import os
from typing import Any

from ansible import constants
from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.template import trust_as_template
from ansible_collections.pm3.fleet.plugins.module_utils import _definitions, _processes
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.formats import pm3_toml
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model import loading
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.problems import DefinitionError, Problem
from ansible_collections.pm3.fleet.plugins.plugin_utils._tables import Tables, plain, without_secrets


class ActionModule(ActionBase):
    _supports_check_mode = True
    _supports_async = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        variables = task_vars or {}
        super().run(None, variables)
        if self._task.args.get("secrets") is not None:
            raise AnsibleActionFail("secrets is not an option for tasks; write them into the definitions")
        _dummy, options = self.validate_argument_spec(_processes.OPTIONS, **_processes.RULES)
        try:
            tables = self._definitions(options, variables)
        except DefinitionError as error:
            problems = _definitions.as_documents(error)
            return {
                "failed": True,
                "msg": _processes.faulty(problems),
                "problems": problems,
                **_processes.nothing(options["project"]),
            }
        # The task's own words, not their validated form: a path such as ~/shop is to be expanded on the host.
        words = {key: value for key, value in self._task.args.items() if key not in ("src", "content", "template")}
        if tables is not None:
            words["definitions"], words["secrets"] = without_secrets(tables)
        return self._execute_module(module_args=words, task_vars=variables, wrap_async=bool(self._task.async_val))

    def _definitions(self, options: dict[str, Any], variables: dict[str, Any]) -> Tables | None:
        """The checked tables, None if they are not ours to read. Raises `DefinitionError`."""
        base, overlay, tables = options["chdir"], options["overlay"], None
        if options["definitions"] is not None:
            file = "definitions"
            tables = plain(options["definitions"])
            if not tables:
                raise empty(file)
            found = self._loaded(tables, file, base, overlay)
        elif options["src"] is not None or options["content"] is not None:
            file = options["src"] or "content"
            text = str(options["content"]) if options["src"] is None else self._text(options, variables)
            if not any(line.strip() and not line.strip().startswith("#") for line in text.splitlines()):
                raise empty(file)
            found = pm3_toml.load(text, file, base, overlay)
            tables = pm3_toml.parse(text, file)
        else:
            return None
        unknown = sorted(set(options["only"] or ()) - set(found))
        if unknown:
            raise DefinitionError(Problem("named in only, but not defined", file, name) for name in unknown)
        return tables

    def _loaded(self, tables: Tables, file: str, base: str | None, overlay: str | None) -> Tables:
        try:
            return loading.load(tables, base, overlay)
        except DefinitionError as error:
            raise error.located(file) from None

    def _text(self, options: dict[str, Any], variables: dict[str, Any]) -> str:
        try:
            path = self._find_needle("templates" if options["template"] else "files", options["src"])
            text = self._loader.get_text_file_contents(path)
        except AnsibleError as error:
            raise AnsibleActionFail(f"src cannot be read: {error}") from error
        return self._templated(text, path, variables) if options["template"] else str(text)

    def _templated(self, text: str, path: str, variables: dict[str, Any]) -> str:
        """As ansible.builtin.template would write it."""
        folders = [*variables.get("ansible_search_path", []), self._loader.get_basedir(), os.path.dirname(path)]
        names = {
            "ansible_managed": constants.config.get_config_value("DEFAULT_MANAGED_STR"),
            **variables,
            "template_path": path,
            "template_fullpath": os.path.abspath(path),
        }
        templar = self._templar.copy_with_new_env(
            searchpath=[place for folder in folders for place in (os.path.join(folder, "templates"), folder)],
            available_variables=names,
        )
        result = templar.template(
            trust_as_template(text), escape_backslashes=False, overrides={"trim_blocks": True, "lstrip_blocks": False}
        )
        return "" if result is None else str(result)


def empty(file: str) -> DefinitionError:
    return DefinitionError(
        [
            Problem(
                "defines no process at all, so nothing was done and nothing pruned; to remove all processes of a project,"
                " say state: absent without any definitions",
                file,
            )
        ]
    )
