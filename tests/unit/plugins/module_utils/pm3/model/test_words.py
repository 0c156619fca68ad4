# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A command line cut into words: as POSIX and pm3 do it, and so as shlex does but in a few places."""

from __future__ import annotations

import shlex

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.problems import Unfit
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.words import split
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("node server.js --port 80", ["node", "server.js", "--port", "80"]),
        ("  a\tb\n c  ", ["a", "b", "c"]),
        ("sh -c 'sleep 1; echo \"$X\"'", ["sh", "-c", 'sleep 1; echo "$X"']),
        ('echo "it\'s" a\\ b', ["echo", "it's", "a b"]),
        ("a''b \"\" ''", ["ab", "", ""]),
        ("a | b && c > d *.txt ~", ["a", "|", "b", "&&", "c", ">", "d", "*.txt", "~"]),
        ("run # and the rest is a comment\nnext # again", ["run", "next"]),
        ("''#literal", ["#literal"]),
        ("run \\#literal", ["run", "#literal"]),
        ("run \\\n  --port 1 \\\n  --verbose", ["run", "--port", "1", "--verbose"]),
        ("ru\\\nn", ["run"]),
        ("run \\\n\\\n# a comment", ["run"]),
        ("\"a\\\nb\" 'a\\\nb'", ["ab", "a\\\nb"]),
        ("'\\' \"\\\\\" \\\\", ["\\", "\\", "\\"]),
        ('"\\$X \\` \\" \\n"', ['$X ` " \\n']),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert split(text) == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("w1#w2", ["w1#w2"]),  # cut at the hash
        ('"\\$X"', ["$X"]),  # backslash kept
        ("a\\", ["a\\"]),  # rejected
        ("a\rb", ["a\rb"]),  # a separator
    ],
    ids=["hash in a word", "escaped dollar", "trailing backslash", "carriage return"],
)
def test_where_shlex_differs(text: str, words: list[str]) -> None:
    """The four places of the specification (section 1.5)."""
    assert split(text) == words
    try:
        assert shlex.split(text, comments=True) != words
    except ValueError:
        pass


@pytest.mark.parametrize("text", ["", "  \n", "# only a comment", "a 'b", 'a "b', '"\\', '"a\\"', "\\\n"])
def test_nothing_to_run(text: str) -> None:
    with pytest.raises(Unfit, match="expected"):
        split(text)


def test_no_message_repeats_the_text() -> None:
    """A command line may hold a password."""
    with pytest.raises(Unfit) as caught:
        split("login --password 'hunter2")
    assert "hunter2" not in str(caught.value)


@given(st.text(alphabet="ab \t\n'\"-=/"))
def test_elsewhere_it_is_shlex(text: str) -> None:
    try:
        expected = shlex.split(text)
    except ValueError:
        expected = []
    if expected:
        assert split(text) == expected
    else:
        with pytest.raises(Unfit):
            split(text)


@given(st.lists(st.text(), min_size=1))
def test_what_is_quoted_comes_back(words: list[str]) -> None:
    assert split(shlex.join(words)) == words


@given(st.text())
def test_any_text_is_words_or_unfit(text: str) -> None:
    try:
        assert split(text)
    except Unfit:
        pass
