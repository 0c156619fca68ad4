from __future__ import annotations

import io
import json

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.cli.console import GREEN, Console, any_text


class Stream(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.mark.parametrize(
    ("terminal", "environ", "as_json", "coloured"),
    [
        (True, {}, False, True),
        (True, {"NO_COLOR": ""}, False, True),  # empty is unset, says no-color.org
        (True, {"NO_COLOR": "1"}, False, False),
        (True, {"TERM": "dumb"}, False, False),
        (True, {}, True, False),
        (False, {}, False, False),
    ],
)
def test_colours_are_for_terminals(terminal: bool, environ: dict[str, str], as_json: bool, coloured: bool) -> None:
    out, err = Stream(terminal), Stream(terminal)
    console = Console(out, err, environ, as_json)
    console.line(console.paint("good", GREEN))
    console.error("bad")
    assert out.getvalue() == ("\x1b[32mgood\x1b[0m\n" if coloured else "good\n")
    assert err.getvalue() == ("\x1b[31;1merror:\x1b[0m bad\n" if coloured else "error: bad\n")


def test_problems_are_a_line_each() -> None:
    problems = [
        {"file": "pm3.toml", "table": "web", "field": "comand", "message": "unknown field"},
        {"file": None, "table": None, "field": None, "message": "nothing is defined"},
    ]
    out, err = Stream(False), Stream(False)
    assert Console(out, err, {}).failure("all of it", problems) == 1
    assert err.getvalue() == "error: pm3.toml: [web] comand: unknown field\nerror: nothing is defined\n"
    assert Console(out, err, {}, as_json=True).failure("all of it", problems) == 1
    assert json.loads(out.getvalue()) == {"type": "error", "message": "all of it", "problems": problems}


def test_no_name_does_anything_to_a_terminal() -> None:
    out, err = Stream(True), Stream(True)
    console = Console(out, err, {})
    console.success("stopped: \x1b[2J\udcff")
    for say in (console.note, console.warning, console.error, console.failure):
        say("two lines:\nnot found: \x1b]0;x\x07")
    assert out.getvalue() == "\x1b[32mstopped: \\x1b[2J\\xff\x1b[0m\n"
    assert err.getvalue().count("two lines:\nnot found: \\x1b]0;x\\x07\n") == 4


@pytest.mark.parametrize("environ", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_progress_is_for_terminals_that_can_show_it(environ: dict[str, str]) -> None:
    assert Console(Stream(True), Stream(True), {}).shows_progress
    assert not Console(Stream(True), Stream(True), environ).shows_progress
    assert not Console(Stream(True), Stream(True), {}, as_json=True).shows_progress
    assert not Console(Stream(False), Stream(True), {}).shows_progress
    assert not Console(Stream(True), Stream(False), {}).shows_progress


def test_every_text_can_be_written() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    any_text(stream)
    stream.write("é │ \udcff\udc80 \ud800")
    stream.flush()
    assert raw.getvalue() == "é │ ".encode() + b"\xff\x80 ?"
