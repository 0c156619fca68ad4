from __future__ import annotations

import os
import pathlib
import pty
import select
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.cli import init
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.formats import pm3_toml
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model import definition
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.wire import messages
from hypothesis import given
from hypothesis import strategies as st

PACKAGE = pathlib.Path(messages.__file__).parents[1]
COMMAND = [sys.executable, "-B", "-I", str(PACKAGE / "__main__.py"), "init"]

# name, command, working directory, environment, restart, health check, group, another?
ONE = ["web", "./web --port 80", "", "", "", "", "", ""]


def typed(folder: pathlib.Path, *answers: str, end: str = "\n") -> subprocess.CompletedProcess[str]:
    text = "".join(answer + "\n" for answer in answers[:-1]) + (answers[-1] + end if answers else "")
    return subprocess.run(COMMAND, cwd=folder, input=text, text=True, capture_output=True, check=False, timeout=30)


def test_the_least_that_can_be_said(tmp_path: pathlib.Path) -> None:
    done = typed(tmp_path, *ONE)
    assert (done.returncode, done.stdout) == (0, f"Created {tmp_path}/pm3.toml\n")
    assert (tmp_path / "pm3.toml").read_text() == '[web]\ncommand = "./web --port 80"\n'
    assert [line.partition(" ")[0] for line in done.stderr.splitlines()] == [
        "Name:",
        "Command:",
        "Working",
        "Environment",
        "Restart:",
        "Health",
        "Group",
        "Add",
    ]
    assert os.listdir(tmp_path) == ["pm3.toml"]
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "pm3.toml").stat().st_mode & 0o777 == 0o666 & ~mask


def test_everything_that_can_be_said(tmp_path: pathlib.Path) -> None:
    web = ["my.web", "./web", "srv", "A=1, my key=x=y ,B=", "always", "tcp://localhost:80", 'the "group"', "yes"]
    worker = ["worker", "./worker", "", "", "never", "", "", "my.web,", "N"]
    done = typed(tmp_path, *web, *worker)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "pm3.toml").read_text() == (
        '["my.web"]\n'
        'command = "./web"\n'
        'cwd = "srv"\n'
        'env = { A = "1", "my key" = "x=y", B = "" }\n'
        'restart = "always"\n'
        'health_check = "tcp://localhost:80"\n'
        'group = "the \\"group\\""\n'
        "\n"
        "[worker]\n"
        'command = "./worker"\n'
        'restart = "never"\n'
        'depends_on = ["my.web"]\n'
    )
    assert done.stderr.count("Depends on") == 1


def test_name_command_and_restart_are_asked_again(tmp_path: pathlib.Path) -> None:
    done = typed(tmp_path, "", "", "web", "", "./web", "", "", "sometimes", "on_failure", "", "", "")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "pm3.toml").read_text() == '[web]\ncommand = "./web"\nrestart = "on_failure"\n'
    assert [done.stderr.count(prompt) for prompt in ("Name:", "Command:", "Restart:")] == [3, 2, 2]
    assert "on_failure" in done.stderr


@pytest.mark.parametrize("count", range(8))
def test_the_end_of_the_input_aborts(tmp_path: pathlib.Path, count: int) -> None:
    done = typed(tmp_path, *ONE[:count])
    assert done.returncode == 1
    assert done.stdout == ""
    assert "init aborted: the input ended before the last question; nothing was written" in done.stderr
    assert os.listdir(tmp_path) == []


def test_a_last_line_without_its_end_is_an_answer(tmp_path: pathlib.Path) -> None:
    assert typed(tmp_path, *ONE[:7], "n", end="").returncode == 0


@pytest.mark.parametrize("answer", ["", "n", "N", "no", "whatever"])
def test_a_file_that_is_there_stays(tmp_path: pathlib.Path, answer: str) -> None:
    (tmp_path / "pm3.toml").write_text("mine")
    done = typed(tmp_path, answer, *ONE)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{tmp_path}/pm3.toml stays as it is" in done.stderr
    assert (tmp_path / "pm3.toml").read_text() == "mine"


@pytest.mark.parametrize("answer", ["y", "Y", "yes"])
def test_or_is_overwritten_where_it_really_is(tmp_path: pathlib.Path, answer: str) -> None:
    (tmp_path / "elsewhere.toml").write_text("mine")
    (tmp_path / "elsewhere.toml").chmod(0o640)
    (tmp_path / "pm3.toml").symlink_to("elsewhere.toml")
    assert typed(tmp_path, answer, *ONE).returncode == 0
    assert (tmp_path / "pm3.toml").is_symlink()
    assert (tmp_path / "elsewhere.toml").read_text().startswith("[web]")
    assert (tmp_path / "elsewhere.toml").stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir(tmp_path)) == ["elsewhere.toml", "pm3.toml"]


@pytest.mark.parametrize(
    ("at", "answer", "said"),
    [
        (0, "a/b", "Name: invalid process name 'a/b'"),
        (1, "'unclosed", "Command: expected a closing single quote"),
        (3, "A=1, B", "Environment: expected K=V, K=V, found 'B'"),
        (5, "ftp://x", "Health check URL: expected"),
    ],
)
def test_a_wrong_line_shifts_no_answers(tmp_path: pathlib.Path, at: int, answer: str, said: str) -> None:
    done = typed(tmp_path, *ONE[:at], answer, *ONE[at:])
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert "nothing was written" in done.stderr
    assert os.listdir(tmp_path) == []


def test_a_name_is_there_once_and_dependencies_exist(tmp_path: pathlib.Path) -> None:
    assert "web is there already" in typed(tmp_path, *ONE[:7], "y", "web").stderr
    done = typed(tmp_path, *ONE[:7], "y", "worker", *ONE[1:7], "wbe")
    assert "there is no wbe yet; did you mean web?" in done.stderr
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_written(tmp_path: pathlib.Path) -> None:
    (tmp_path / "pm3.toml").mkdir()
    done = typed(tmp_path, *ONE)
    assert done.returncode == 1
    assert "is a folder" in done.stderr


def test_no_agent_has_to_do_with_it(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PM3_DATA_DIR", str(tmp_path / "data"))
    assert typed(tmp_path, *ONE).returncode == 0
    assert os.listdir(tmp_path) == ["pm3.toml"]


class Wizard:
    """`pm3 init` on a terminal of its own."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.master, slave = pty.openpty()
        self.shown = ""
        self.process = subprocess.Popen(
            COMMAND,
            cwd=folder,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "TERM": "dumb"},
            start_new_session=True,
        )
        os.close(slave)

    def until(self, text: str) -> str:
        """What is shown up to `text`."""
        while text not in self.shown:
            assert select.select([self.master], [], [], 30)[0], f"no {text!r} in {self.shown!r}"
            try:
                more = os.read(self.master, 65536)
            except OSError:  # EIO: the other end is closed
                more = b""
            assert more, f"no {text!r} in {self.shown!r}"
            self.shown += more.decode()
        before, _text, self.shown = self.shown.partition(text)
        return before

    def waits(self) -> None:
        """Until it sleeps: readline does not see a signal between its prompt and its sleep before the next key."""
        deadline = time.monotonic() + 30
        stat = pathlib.Path(f"/proc/{self.process.pid}/stat")
        while stat.read_text().rpartition(")")[2].split()[0] != "S":
            assert time.monotonic() < deadline, "it does not wait"

    def answer(self, prompt: str, text: str) -> str:
        before = self.until(prompt)
        os.write(self.master, text.encode())
        return before

    def end(self) -> int:
        status = self.process.wait(timeout=30)
        os.close(self.master)
        return status


def test_a_person_may_try_again(tmp_path: pathlib.Path) -> None:
    wizard = Wizard(tmp_path)
    wizard.answer("Name: ", "a/b\n")
    assert "it may not contain" in wizard.answer("Name: ", "web\n")
    wizard.answer("Command: ", "'./web\n")
    assert "closing single quote" in wizard.answer("Command: ", "./web\n")
    wizard.answer("[this folder]: ", "\n")
    wizard.answer("[none]: ", "A\n")
    assert "expected K=V" in wizard.answer("[none]: ", "A=1\n")
    wizard.answer("[on_failure]: ", "sometimes\n")
    assert "never" in wizard.answer("[on_failure]: ", "\n")
    wizard.answer("[none]: ", "localhost\n")
    assert "expected" in wizard.answer("[none]: ", "tcp://localhost:1\n")
    wizard.answer("[none]: ", "\n")
    wizard.answer("(y/N): ", "y\n")
    wizard.answer("Name: ", "web\n")
    assert "there already" in wizard.answer("Name: ", "worker\n")
    wizard.answer("Command: ", "./worker\n")
    for prompt in ("[this folder]: ", "[none]: ", "[on_failure]: ", "[none]: ", "[none]: "):
        wizard.answer(prompt, "\n")
    wizard.answer("(web) [none]: ", "web\n")
    wizard.answer("(y/N): ", "\n")
    wizard.until(f"Created {tmp_path}/pm3.toml")
    assert wizard.end() == 0
    assert (tmp_path / "pm3.toml").read_text() == (
        '[web]\ncommand = "./web"\nenv = { A = "1" }\nhealth_check = "tcp://localhost:1"\n'
        '\n[worker]\ncommand = "./worker"\ndepends_on = ["web"]\n'
    )


@pytest.mark.parametrize(("key", "why"), [("\x04", "the input ended"), ("\x03", "interrupted")])
def test_a_person_may_leave(tmp_path: pathlib.Path, key: str, why: str) -> None:
    wizard = Wizard(tmp_path)
    # The terminal controls no session here, so its interrupt key would signal nobody.
    if key == "\x03":
        wizard.until("Name: ")
        wizard.waits()
        wizard.process.send_signal(signal.SIGINT)
    else:
        wizard.answer("Name: ", key)
    wizard.until(f"init aborted: {why}")
    assert wizard.end() == 1
    assert os.listdir(tmp_path) == []


@st.composite
def tables(draw: st.DrawFn) -> dict[str, dict[str, Any]]:
    # Whatever a name may be, and any text that a line of input can hold.
    line = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\n\r\0"), min_size=1)
    names = draw(
        st.lists(line.filter(lambda text: not definition.name_unfit(text)), min_size=1, max_size=3, unique=True)
    )
    return {
        name: {
            "command": "x",
            "cwd": "/" + draw(line),
            "env": draw(
                st.dictionaries(line, st.text(st.characters(blacklist_categories=("Cs",)), max_size=5), max_size=3)
            ),
            "group": draw(line),
        }
        for name in names
    }


@given(tables())
def test_what_is_written_is_read_back(written: dict[str, dict[str, Any]]) -> None:
    assert pm3_toml.parse(init.written(written), "pm3.toml") == written
