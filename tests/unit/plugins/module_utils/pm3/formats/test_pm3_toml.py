from __future__ import annotations

import pathlib
from typing import Any

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.formats import pm3_toml
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.problems import DefinitionError
from hypothesis import given
from hypothesis import strategies as st

SHOP = """
# the shop
[web]
command = "./web --port 80"
cwd = "web"
env_file = ".env"
instances = 4
depends_on = ["db"]
env = { MODE = "dev", LEVEL = "1" }
env_prod = { MODE = "prod" }

[db]
command = "postgres"
kill_timeout = "10s"
"""


def problems(text: str, base: str | None = "/srv", overlay: str | None = None) -> list[str]:
    with pytest.raises(DefinitionError) as caught:
        pm3_toml.load(text, "pm3.toml", base, overlay)
    assert all(problem.file == "pm3.toml" for problem in caught.value.problems)
    return [str(problem).replace("pm3.toml: ", "", 1) for problem in caught.value.problems]


def test_raw_tables() -> None:
    tables = pm3_toml.parse(SHOP, "pm3.toml")
    assert list(tables) == ["web", "db"]
    assert tables["web"]["instances"] == 4
    assert tables["web"]["env_prod"] == {"MODE": "prod"}


def test_definitions_are_located_and_overlaid() -> None:
    found = pm3_toml.load(SHOP, "pm3.toml", "/srv/shop", "prod")
    assert list(found) == ["db", "web"]
    assert found["web"].cwd == "/srv/shop/web"
    assert found["web"].env_file == ("/srv/shop/web/.env",)
    assert found["web"].env == {"MODE": "prod", "LEVEL": "1"}
    assert found["web"].environments == {}
    assert found["db"].cwd == "/srv/shop"
    assert found["db"].kill_timeout == 10_000


def test_start_keeps_the_overlays() -> None:
    found = pm3_toml.load_for_start(SHOP, "pm3.toml", "/srv/shop")
    assert found["web"].cwd == "/srv/shop/web"
    assert found["web"].env["MODE"] == "dev"
    assert found["web"].environments == {"prod": {"MODE": "prod"}}


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n"])
def test_an_empty_file(text: str) -> None:
    assert problems(text) == ["the config file is empty; expected at least one [name] table with a command"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[web]\ncommand = "x', "line 2, column 13, the end of the file: unterminated string"),
        ("[web]\ncommand = x", "line 2, column 11: invalid value"),
        ('[web]\ncommand "x"', "line 2, column 9: expected '=' after a key in a key/value pair"),
        ('[web]\r\ncommand "x"\r\n', "line 2, column 9: expected '=' after a key in a key/value pair"),
        ("[web", "line 1, column 5, the end of the file: expected ']' at the end of a table declaration"),
        ("[web]\na = 1\n[web]\n", "line 3, column 5: the same table is defined twice"),
        ("[web]\na = 1\na = 2\n", "line 3, column 6: the same key is given twice"),
        ('\ufeff[web]\ncommand = "x"', "line 1, column 1: begins with a byte order mark; save it as UTF-8 without one"),
        ("a = " + "[" * 100_000, "a number is too long, or arrays or tables are nested too deeply"),
        ("a = " + "9" * 100_000, "a number is too long, or arrays or tables are nested too deeply"),
    ],
)
def test_a_syntax_error_names_its_place(text: str, said: str) -> None:
    assert problems(text) == ["TOML parse error: " + said]


@pytest.mark.parametrize(
    "line",
    [
        "hunter2",
        "PASSWORD = hunter2",
        'PASSWORD = "hunter2',
        "PASSWORD = 'hunter2",
        'PASSWORD = "hunter2\\q"',
        'PASSWORD = "hunter2\\u12"',
        'PASSWORD = "hunter2" hunter2',
        "{ hunter2 = 1, hunter2 = 2 }",
        "a = { hunter2 = 1, hunter2 = 2 }",
        "hunter2 = 1\nhunter2 = 2",
        "hunter2 = { a = 1 }\nhunter2.b = 2",
        "[hunter2]\n[hunter2]",
        "hunter2 = 1\n[web.secrets.hunter2]",
        'a = "hunter2\x01"',
    ],
)
def test_a_syntax_error_never_shows_the_line(line: str) -> None:
    said = problems(f'[web]\ncommand = "x"\n[web.secrets]\n{line}\n')
    assert said[0].startswith("TOML parse error: line ")
    assert "hunter2" not in " ".join(said)


def test_a_scalar_at_the_top() -> None:
    said = problems('name = "shop"\n[web]\ncommand = "x"')
    assert said == ['[name]: expected a table such as [web] with command = "…" in it']
    with pytest.raises(DefinitionError) as caught:
        pm3_toml.parse("a = 1\nb = []\n[web]", "pm3.toml")
    assert [problem.table for problem in caught.value.problems] == ["a", "b"]


def test_all_problems_of_all_stages_at_once() -> None:
    text = """
    top = 1
    [api]
    comand = "x"
    [db]
    command = "x"
    cwd = "relative"
    [web]
    command = "x"
    depends_on = ["dbb", "api"]
    when = 2026-01-01
    [worker]
    command = "x"
    depends_on = ["db", "nothing", "api"]
    """
    assert problems(text, base=None, overlay="prod") == [
        "[api] comand: unknown field; did you mean command?",
        "[api] command: missing; every process needs one",
        "[db] cwd: a relative path needs a base: give an absolute one, or chdir",
        '[top]: expected a table such as [web] with command = "…" in it',
        "[web] when: unknown field",
        "[web] depends_on: depends on dbb, which is not defined; did you mean db?",
        "[worker] depends_on: depends on nothing, which is not defined",
        "unknown environment: 'prod'; no process defines one",
    ]


def test_dependencies_that_only_the_agent_knows() -> None:
    text = '[web]\ncommand = "x"\ndepends_on = ["db:1"]\n'
    assert problems(text) == ["[web] depends_on: depends on db:1, which is not defined"]
    for elsewhere in (["db"], None):
        assert pm3_toml.load(text, "pm3.toml", "/srv", elsewhere=elsewhere)["web"].depends_on == ("db:1",)
    assert pm3_toml.load_for_start(text, "pm3.toml", "/srv")
    circle = text + '[api]\ncommand = "x"\ndepends_on = ["api"]\n'
    with pytest.raises(DefinitionError, match="circular dependency detected: api -> api"):
        pm3_toml.load(circle, "pm3.toml", "/srv", elsewhere=None)


def test_an_overlay_of_a_faulty_table_is_known() -> None:
    text = '[web]\nenv_prod = { A = "1" }\n[db]\ncommand = "x"\n'
    assert problems(text, overlay="prod") == ["[web] command: missing; every process needs one"]


@pytest.mark.parametrize(
    "value", ["2026-01-01", "2026-01-01T00:00:00Z", "12:00:00", "nan", "inf", "-inf", "[[]]", "{}"]
)
def test_values_that_only_toml_has_are_type_errors(value: str) -> None:
    assert len(problems(f'[web]\ncommand = "x"\nkill_timeout = {value}\n')) == 1


def test_a_file_is_read(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "pm3.toml"
    file.write_text(SHOP, "utf-8")
    assert pm3_toml.read(str(file)) == SHOP
    with pytest.raises(DefinitionError, match=r"^missing\.toml: No such file or directory$"):
        pm3_toml.read(str(tmp_path / "missing"), "missing.toml")
    with pytest.raises(DefinitionError, match="Is a directory"):
        pm3_toml.read(str(tmp_path))
    with pytest.raises(DefinitionError, match="null byte"):
        pm3_toml.read("a\0b", "strange name")


def test_bytes_that_are_not_utf8_name_the_line() -> None:
    with pytest.raises(
        DefinitionError, match=r"^f: TOML parse error: line 2: expected UTF-8, found a byte that is not$"
    ):
        pm3_toml.decode(b'[web]\ncommand = "\xe9"', "f")


def test_without_a_toml_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pm3_toml, "TOML", None)
    assert [said.partition(" needs ")[2] for said in problems(SHOP)] == [
        "the library tomli to read TOML, and it is not installed"
    ]


def loads_or_tells(text: str) -> None:
    for overlay in (None, "x"):
        try:
            pm3_toml.load(text, "pm3.toml", "/srv", overlay)
        except DefinitionError as error:
            told = error.problems
        else:
            continue
        assert told
        assert all(problem.file == "pm3.toml" for problem in told)


@given(st.text(st.characters(exclude_categories=()), max_size=60))
def test_any_text_loads_or_tells(text: str) -> None:
    loads_or_tells(text)


pieces = st.sampled_from(
    [
        *"[]{}=.,\"'#\\\n 1",
        *('"""', "'''", "[[", "]]", "web", "command", "env", "env_x", "depends_on", "instances", "cwd", "secrets"),
        *("2026-01-01", "inf", "nan", "0x1", "true", '"@{instance}"', '"x"', "[web]\n", 'command = "x"\n'),
    ]
)


@given(st.lists(pieces, max_size=25).map("".join))
def test_anything_like_toml_loads_or_tells(text: str) -> None:
    loads_or_tells(text)


values: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from(
        ["1", "-1", "true", "1.5", "nan", "2026-01-01", '""', '"x"', '"@{"', '"a:b"', '"max"', '"10s"', '"\\u0000"']
    ),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: "[" + ", ".join(items) + "]")
        | st.dictionaries(st.sampled_from("ABx"), inner, max_size=2).map(
            lambda table: "{" + ", ".join(f"{key} = {value}" for key, value in table.items()) + "}"
        )
    ),
    max_leaves=5,
)
fields = st.sampled_from(
    [
        "command",
        "cwd",
        "env",
        "env_file",
        "env_x",
        "environments",
        "secrets",
        "instances",
        "instance_ids",
        "depends_on",
        "kill_signal",
        "wat",
        "env_",
    ]
)
tables = st.dictionaries(
    st.sampled_from(["web", '"db:1"', '""', '"é\\u0000"', "api"]),
    st.dictionaries(fields, values, max_size=5),
    max_size=3,
)


@given(tables)
def test_any_tables_load_or_tell(found: dict[str, dict[str, str]]) -> None:
    loads_or_tells(
        "".join(
            f"[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in table.items())
            for name, table in found.items()
        )
    )
