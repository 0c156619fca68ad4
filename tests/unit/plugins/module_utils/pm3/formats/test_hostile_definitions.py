# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Definition files that nobody in his right mind would write: they load to what they say, or to problems that say where they are.

Never another exception, and never the value of a secret in a message.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.cli import main as cli
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.formats import pm3_toml
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model import definition, difference, loading
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.definition import FIELDS
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.plan import plan
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.problems import DefinitionError
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.wire import messages
from ansible_collections.pm3.fleet.tests.unit.examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

SECRET = "s3cr3t-pa55word"
ANYTHING = st.text(st.characters(), max_size=20)  # surrogates and control characters included
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 1, 2**31, 2**32, 2**63, 2**64, -(2**63), 10**400]),
    st.floats(),
    ANYTHING,
    st.sampled_from(
        [
            *(
                "",
                " ",
                "\0",
                "\ud800",
                "@{",
                "@{instance}",
                "@{1//0}",
                "@{9**9}",
                "@{count*count}",
                "@@{",
                "'",
                '"',
                "\\",
                "#",
            ),
            *(
                "max",
                "10s",
                "1e400s",
                "99999999999999999999d",
                "SIGTERM",
                "sig",
                "http://[",
                "tcp://x:99999",
                "://",
                "../..",
                "/",
            ),
            *(
                "a:b:c",
                "web",
                "web:0",
                "web:-1",
                "x" * 5000,
                "\u202e",
                "\r\n",
                "true",
                "@{" + "(" * 90 + "}",
                "@{instance" + "+1" * 60 + "}",
            ),
        ]
    ),
    st.dates(),
    st.times(),
    st.datetimes(),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(ANYTHING, inner, max_size=4)),
    max_leaves=8,
)
KEYS = st.one_of(st.sampled_from([*FIELDS, "env_prod", "env_", "comand", "name"]), ANYTHING)
NAMES = st.one_of(st.sampled_from(["web", "db", "a b", "web:1", "..", "x" * 300, "ü", "-x", "a/b"]), ANYTHING)
TABLES = st.dictionaries(KEYS, VALUES, max_size=5).map(lambda table: {"command": "sleep 1", **table})
FILES = st.dictionaries(NAMES, st.one_of(TABLES, TABLES, VALUES), min_size=1, max_size=4)


def check_error(error: DefinitionError, tables: dict[str, Any]) -> None:
    """Each problem says where it is, in one line."""
    assert error.problems
    for problem in error.problems:
        assert problem.message
        assert problem.table in (None, *map(str, tables))
        assert problem.field is None or problem.table is not None
        assert SECRET not in str(problem)
        messages.encode(messages.error(str(error), error.problems))  # it can be sent, whatever it quotes


def check_loaded(loaded: dict[str, definition.Definition]) -> None:
    """A definition is what its data says, also after a travel, and can be planned for and shown."""
    for name, one in loaded.items():
        data = json.loads(json.dumps(one.data()))
        again, problems = definition.parse(name, data)
        assert (again, problems) == (one, [])
    found = plan("shop", loaded, [], cpus=2) if sum(count(one) for one in loaded.values()) < 50 else None
    if found is not None:
        assert SECRET not in json.dumps(difference.of("shop", found))


def count(one: definition.Definition) -> int:
    if one.instance_ids is not None:
        return len(one.instance_ids)
    return one.instances if isinstance(one.instances, int) else 2


def outcome(
    load: Callable[[], dict[str, definition.Definition]],
) -> tuple[dict[str, definition.Definition], DefinitionError | None]:
    """What loading gives: definitions, or the error with all problems; nothing else may be raised."""
    try:
        return load(), None
    except DefinitionError as error:
        return {}, error


@settings(max_examples=examples(400))
@given(FILES, st.sampled_from([None, "/srv"]), st.sampled_from([None, "prod", "\ud800"]))
def test_tables_load_or_say_why(tables: dict[str, Any], base: str | None, overlay: str | None) -> None:
    loaded, error = outcome(lambda: loading.load(tables, base, overlay))
    if error is not None:
        check_error(error, tables)
    check_loaded(loaded)


@pytest.mark.parametrize("field", sorted(FIELDS))
@settings(max_examples=examples(60))
@given(value=VALUES)
def test_every_field_takes_any_value_or_says_why(field: str, value: Any) -> None:
    tables = {"web": {"command": "sleep 1", "secrets": {"PASSWORD": SECRET}, field: value}}
    loaded, error = outcome(lambda: loading.load(tables, "/srv"))
    if error is not None:
        check_error(error, tables)
        # A check that limits, or depends on, another field may name that one.
        assert all(problem.table == "web" and problem.field in FIELDS for problem in error.problems)
    check_loaded(loaded)


@settings(max_examples=examples(300))
@given(value=VALUES)
def test_no_message_tells_a_secret(value: Any) -> None:
    for secrets in (
        {"PASSWORD": SECRET, "OTHER": value},
        {"PASSWORD": [SECRET]},
        {SECRET: value, "=": SECRET},
        [SECRET, value],
        SECRET,
    ):
        tables = {"web": {"command": "sleep 1", "secrets": secrets}}
        error = outcome(partial(loading.load, tables, "/srv"))[1]
        assert SECRET not in str(error)


# Text

PIECES = st.one_of(
    st.sampled_from(
        [
            *(
                "[web]\n",
                "[db]\n",
                "[web.env]\n",
                "[[web]]\n",
                "[web",
                "]",
                "=",
                "\n",
                " ",
                "#",
                '"',
                "'",
                '"""',
                "'''",
                "\\",
                "{",
                "}",
                ",",
            ),
            *(
                'command = "sleep 1"\n',
                "command = 1\n",
                'env = { A = "b" }\n',
                'depends_on = ["db"]\n',
                "instances = 3\n",
                "kill_timeout = inf\n",
            ),
            *(
                "x = nan\n",
                "x = 0x\n",
                "x = 1979-05-27\n",
                "x = 99999-01-01\n",
                "x = 25:61:61\n",
                "1 = 2\n",
                "= 1\n",
                '"" = 1\n',
                "a.b.c = 1\n",
            ),
            *(
                '["a\\nb"]\ncommand = 1\n',
                '"x\\u001b[2J\\n" = 1\n',
                'command = "x @{a\\nb}"\n',
                'depends_on = ["\\r\\n"]\n',
            ),
            *(
                "[" * 50,
                "x = " + "[" * 300 + "\n",
                "\ufeff",
                "\0",
                "\r",
                "\u2028",
                f'secrets = {{ P = "{SECRET}" }}\n',
                f'P = "{SECRET}\n',
                SECRET,
            ),
        ]
    ),
    st.text(max_size=8),
)
TEXTS = st.lists(PIECES, max_size=10).map("".join)


@settings(max_examples=examples(600))
@given(TEXTS)
def test_texts_load_or_say_why(text: str) -> None:
    for load in (
        lambda: pm3_toml.load(text, "pm3.toml", "/srv"),
        lambda: pm3_toml.load_for_start(text, "pm3.toml", "/srv"),
    ):
        loaded, error = outcome(load)
        if error is not None:
            assert error.problems
            assert {problem.file for problem in error.problems} == {"pm3.toml"}
            # Only a key or a name is quoted, and nobody writes a secret there.
            if f"{SECRET}" not in text.replace(f'"{SECRET}', ""):
                assert SECRET not in str(error)
        check_loaded(loaded)


@settings(max_examples=examples(300))
@given(st.binary(max_size=200))
def test_bytes_load_or_say_why(data: bytes) -> None:
    error = outcome(lambda: pm3_toml.load(pm3_toml.decode(data, "pm3.toml"), "pm3.toml", "/srv"))[1]
    if error is not None:
        assert {problem.file for problem in error.problems} == {"pm3.toml"}


@pytest.mark.parametrize(
    "text",
    [
        "x = " + "[" * 100_000,
        "x = " + "{a=" * 100_000,
        "[" + "a." * 20_000 + "a]\n",
        "[web]\ncommand = 'x'\n" + "\n".join(f"f{number} = 1" for number in range(3000)),
        "\n".join(
            f"[p{number}]\ncommand = 'sleep 1'\ndepends_on = ['p{(number + 1) % 2000}']" for number in range(2000)
        ),
        "[web]\ncommand = '" + "x" * 2_000_000 + "'\n",
        "[web]\ncommand = 1" + "0" * 100_000 + "\n",
        "[web]\ncommand = '@{" + "-" * 100_000 + "1}'\n",
        "[web]\ncommand = 'x'\ndepends_on = [" + "'nothing'," * 3000 + "]\n",
        "[web]\ncommand = 'x'\nreadiness_check = 'http://" + "a" * 100_000 + ":'\n",
    ],
    ids=[
        "arrays",
        "inline tables",
        "dotted",
        "unknown fields",
        "cycle",
        "long command",
        "long number",
        "placeholder",
        "names",
        "url",
    ],
)
def test_huge_texts_end(text: str) -> None:
    loaded, error = outcome(lambda: pm3_toml.load(text, "pm3.toml", "/srv"))
    assert error is None or error.problems
    check_loaded(loaded)


# On the command line


@settings(max_examples=examples(80))
@given(st.lists(PIECES, max_size=8).map("".join))
def test_check_tells_each_problem_in_one_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.getbasetemp() / "hostile"
    folder.mkdir(exist_ok=True)
    check(folder, text)


@pytest.mark.parametrize(
    "text",
    [
        '["a\\nb"]\ncommand = 1\n',
        '[web]\ncommand = "x"\n"x\\u001b[2J\\n" = 1\n',
        '[web]\ncommand = "x @{a\\nb}"\n',
        '[web]\ncommand = "x"\ndepends_on = ["\\r\\n"]\n',
        '[web]\ncommand = "x"\n[web.env]\n"A\\nB" = 1\n',
    ],
)
def test_names_break_no_line_and_no_terminal(tmp_path: Path, text: str) -> None:
    check(tmp_path, text)


def check(folder: Path, text: str) -> None:
    (folder / "pm3.toml").write_bytes(text.encode("utf-8", "surrogatepass"))
    before, out, err = os.getcwd(), io.StringIO(), io.StringIO()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = cli.main(["check"])
    finally:
        os.chdir(before)
    error = outcome(lambda: pm3_toml.load(pm3_toml.read(str(folder / "pm3.toml")), "pm3.toml", str(folder), None, ()))[
        1
    ]
    if error is not None:
        assert status == 1
        lines = out.getvalue().splitlines()
        assert all(line.isprintable() for line in lines)
        assert len(lines) == len(error.problems), (lines, error.problems)
    else:
        assert status == 0
    assert not err.getvalue()


def test_dates_are_no_texts() -> None:
    with pytest.raises(DefinitionError, match=r"\[web\] cwd: expected a string, found a date"):
        loading.load({"web": {"command": "x", "cwd": datetime.date(2026, 1, 1)}}, "/srv")
