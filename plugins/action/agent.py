# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's part of `agent`: tells the module which agent this collection has, and sends that agent where a host lacks it.

One round trip where there is nothing to do. What happens on the host is the module's business.
"""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.pm3.fleet.plugins.module_utils.pm3 import VERSION
from ansible_collections.pm3.fleet.plugins.plugin_utils import _packing


class ActionModule(ActionBase):
    TRANSFERS_FILES = True
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(None, task_vars)
        words = dict(self._task.args)
        if words.get("package") is not None:
            raise AnsibleActionFail("package is not an option for tasks")
        if words.get("state", "present") != "present":
            return self._execute_module(module_args=words, task_vars=task_vars)
        files = _packing.agent_files()
        libraries = {
            library.name: {
                "minimum": library.minimum,
                "below": ".".join(map(str, library.below)) if library.below else None,
                "version": _packing.version_of(library),
                "python": _packing.oldest_python(library),
            }
            for library in _packing.LIBRARIES
        }
        package = {"identity": _packing.identity(files), "version": VERSION, "libraries": libraries}
        words["package"] = package
        result = self._execute_module(module_args=words, task_vars=task_vars)
        if "upload" not in result:
            return result
        python = _packing.numbers(result["upload"]["python"])
        lacks = {library: _packing.lack(library, python) for library in _packing.libraries_for(python)}
        packed = [library for library, why in lacks.items() if why is None]
        words["package"] = {**package, "archive": self._upload(_packing.archive(files, packed))}
        try:
            result = self._execute_module(module_args=words, task_vars=task_vars)
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)
        if len(packed) < len(lacks):
            result["warnings"] = [*result.get("warnings", ()), *(why for why in lacks.values() if why is not None)]
        return result

    def _upload(self, archive: bytes) -> str:
        """Puts the archive on the host, readable for whoever the module runs as; gives its path."""
        shell = self._connection._shell
        if shell.tmpdir is None:
            self._make_tmp_path()
        path = self._transfer_data(shell.join_path(shell.tmpdir, "pm3.zip"), archive)
        self._fixup_perms2((shell.tmpdir, path))
        return str(path)
