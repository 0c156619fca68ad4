from __future__ import annotations

import pathlib

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.formats import env_file
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.problems import DefinitionError
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("KEY=value", "KEY", "value"),
        ("  KEY =  value  ", "KEY", "value"),
        ("KEY=", "KEY", ""),
        ("KEY=a=b", "KEY", "a=b"),
        ("KEY=value # no comment", "KEY", "value # no comment"),
        ("KEY=$HOME", "KEY", "$HOME"),
        ("export KEY=v", "export KEY", "v"),
        ('KEY=" a "', "KEY", " a "),
        (r'KEY="a\nb\tc\\d\"e\qf"', "KEY", 'a\nb\tc\\d"e\\qf'),
        (r'KEY="\\n"', "KEY", r"\n"),
        (r'KEY="end\"', "KEY", "end\\"),
        (r"KEY='a\nb\'", "KEY", r"a\nb" + "\\"),
        ("KEY=''", "KEY", ""),
        ('KEY="', "KEY", '"'),
        ("KEY='", "KEY", "'"),
        ("KEY=\"a'", "KEY", "\"a'"),
        ('KEY="a" b', "KEY", '"a" b'),
        ("KEY=value\r", "KEY", "value"),
        ("KEY=a\x0bb", "KEY", "a\x0bb"),
        ("KEY=a\u2028b\u2028", "KEY", "a\u2028b"),
        ("KEY=a\x1f", "KEY", "a\x1f"),
        ("\ufeffKEY=v", "\ufeffKEY", "v"),
    ],
)
def test_a_line(line: str, key: str, value: str) -> None:
    assert env_file.parse(f"{line}\n") == {key: value}


@pytest.mark.parametrize("line", ["", "   ", "# KEY=v", "  # KEY=v", "no equals", "=value", "  = value"])
def test_a_line_that_is_none(line: str) -> None:
    assert env_file.parse(f"A=1\n{line}\nB=2") == {"A": "1", "B": "2"}


def test_the_last_of_a_key_wins() -> None:
    assert env_file.parse("A=1\nB=2\nA=3") == {"A": "3", "B": "2"}


def test_no_environment_holds_a_nul() -> None:
    with pytest.raises(DefinitionError, match="line 2: expected text, found a NUL character"):
        env_file.parse("A=1\nSECRET=hunter2\0\n")
    assert env_file.parse("# \0\nno equals \0") == {}


def test_a_file_is_read(tmp_path: pathlib.Path) -> None:
    file = tmp_path / ".env"
    file.write_bytes("NAME=é\r\nOTHER='x'\r\n".encode())
    assert env_file.read(str(file)) == {"NAME": "é", "OTHER": "x"}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "No such file or directory"),
        (b"A=\xff", "expected UTF-8, found a byte that is not"),
        (b"A=\0", "line 1: expected"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: pathlib.Path, content: bytes | None, why: str) -> None:
    file = tmp_path / ".env"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DefinitionError) as caught:
        env_file.read(str(file))
    assert str(caught.value).startswith(f"env_file: env file {file}: {why}")


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_is_read_or_told(text: str) -> None:
    try:
        variables = env_file.parse(text)
    except DefinitionError:
        assert "\0" in text
        return
    for key, value in variables.items():
        assert key
        assert "=" not in key
        assert "\0" not in key + value


@given(st.dictionaries(st.from_regex(r"[A-Z_]{1,8}", fullmatch=True), st.text().filter(lambda text: "\0" not in text)))
def test_a_quoted_value_comes_back(variables: dict[str, str]) -> None:
    quoted = {
        key: value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for key, value in variables.items()
    }
    assert env_file.parse("\n".join(f'{key}="{value}"' for key, value in quoted.items())) == variables
