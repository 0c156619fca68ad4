# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A module is run as Ansible runs it, in this process, against a socket that answers what a test says."""

from __future__ import annotations

import json
import os
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

Document = dict[str, Any]
Run = Callable[..., Document]


class StandIn:
    """Answers each request with the document for its type, or what a function makes of it, and remembers what it was asked."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.answers: dict[str, Document | Callable[[Document], Document]] = {"hello": hello()}
        self.asked: list[Document] = []
        stand_in = self

        class Conversation(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                request = json.loads(self.rfile.readline())
                stand_in.asked.append(request)
                answer = stand_in.answers.get(request["type"], {"type": "error", "message": "unknown"})
                answer = answer(request) if callable(answer) else answer
                self.wfile.write(json.dumps(answer).encode() + b"\n")

        self._server = socketserver.ThreadingUnixStreamServer(str(data_dir / "pm3.sock"), Conversation)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def hello(**other: Any) -> Document:
    known = {"type": "hello", "version": "0.1.0", "identity": "0" * 16, "pid": os.getpid(), "protocol": 1}
    return {**known, "manager": "keeper", "instances": {"total": 0, "running": 0}, **other}


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data dir of an agent that is installed, and down until `agent` is asked for."""
    (tmp_path / "lib" / "pm3").mkdir(parents=True)
    (tmp_path / "lib" / "pm3" / "current").symlink_to("0" * 16)
    return tmp_path


@pytest.fixture
def agent(data_dir: Path) -> Iterator[StandIn]:
    found = StandIn(data_dir)
    yield found
    found.close()


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the module warns of. (Where these go depends on what else this process has imported.)"""
    said: list[str] = []
    monkeypatch.setattr(AnsibleModule, "warn", lambda _module, text: said.append(text))
    return said


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a module's main with options; gives its result."""

    def run_module(main: Callable[[], None], check: bool = False, diff: bool = False, **options: Any) -> Document:
        words = {**options, "_ansible_check_mode": check, "_ansible_diff": diff}
        with patch_module_args(words), pytest.raises(SystemExit):
            main()
        result: Document = json.loads(capsys.readouterr().out)
        return result

    return run_module
