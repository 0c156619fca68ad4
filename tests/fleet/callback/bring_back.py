"""Writes what tasks have registered as `result` into a folder, a file for each host: cheaper than a task that copies it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "bring_back"
    CALLBACK_NEEDS_ENABLED = True

    def v2_runner_on_ok(self, result: Any) -> None:
        self._write(result, failed=False)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        if ignore_errors:  # or there is nothing that a task after it could have seen
            self._write(result, failed=True)

    def _write(self, result: Any, failed: bool) -> None:
        if "result" in (result.task.register or ()):  # the name, or a mapping of names
            path = Path(os.environ["PM3_RESULTS"]) / f"{result.host.get_name()}.json"
            path.write_text(json.dumps({"changed": False, "failed": failed, **result.result}))
