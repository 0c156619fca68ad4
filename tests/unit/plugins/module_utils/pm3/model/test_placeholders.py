# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Placeholders: what each instance is told of itself."""

from __future__ import annotations

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.expressions import NAMES
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.placeholders import Scope, expand, used
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.problems import Unfit
from hypothesis import given
from hypothesis import strategies as st

THIRD = Scope(instance=2, count=4, process="web", name="web:2", project="shop")


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("nothing to do", "nothing to do"),
        ("@{instance} of @{count}", "2 of 4"),
        ("@{project}/@{process}/@{name}", "shop/web/web:2"),
        ("--port=@{3000 + instance}", "--port=3002"),
        ("@{ instance }", "2"),
        ("@{count - instance - 1}", "1"),
        ("@{100 * (instance + 1)}", "300"),
        ("@{instance % 2}@{7 // 2}", "03"),
        ("@{42}", "42"),
        ("@@{instance}", "@{instance}"),
        ("a@b.example $HOME ${HOME} {{ jinja }} %i @", "a@b.example $HOME ${HOME} {{ jinja }} %i @"),
    ],
)
def test_expand(text: str, expanded: str) -> None:
    assert expand(text, THIRD) == expanded


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("plain", set()),
        ("@@{count}", set()),
        ("@{instance}", {"instance"}),
        ("@{3000 + instance * count} @{name}", {"instance", "count", "name"}),
    ],
)
def test_used(text: str, names: set[str]) -> None:
    assert used(text) == names


@pytest.mark.parametrize(
    "text",
    [
        "@{}",
        "@{instance",
        "@{a{b}}",
        "@{instance + }",
        "@{instance.real}",
        "@{instance[0]}",
        "@{str(instance)}",
        "@{__import__('os')}",
        "@{instance ** 9}",
        "@{1 << 9}",
        "@{-instance}",
        "@{1.5}",
        "@{True}",
        "@{'text'}",
        "@{instance if count else 1}",
        "@{instance; count}",
        "@{nobody}",
        "@{name + 1}",
        "@{1 + project}",
        "@{" + "1+" * 5000 + "1}",
        "@{" + "(" * 500 + "1" + ")" * 500 + "}",
        "@{" + "9" * 10000 + "}",
    ],
    ids=lambda text: text[:20],
)
def test_what_is_no_placeholder_is_found_at_load(text: str) -> None:
    with pytest.raises(Unfit):
        used(text)
    with pytest.raises(Unfit):
        expand(text, THIRD)


def test_hints() -> None:
    with pytest.raises(Unfit, match="did you mean instance"):
        used("@{instanc}")
    with pytest.raises(Unfit, match="name is a text and cannot be computed with"):
        used("@{name + 1}")
    with pytest.raises(Unfit, match=r"written @@\{"):
        used("@{}")


def test_a_division_by_zero_names_the_instance() -> None:
    with pytest.raises(Unfit, match="divides by zero for instance 2 of 4"):
        expand("@{10 // (instance - 2)}", THIRD)


def numbers(depth: int = 3) -> st.SearchStrategy[str]:
    leaves = st.one_of(st.integers(0, 9999).map(str), st.sampled_from(["instance", "count"]))
    return st.recursive(
        leaves,
        lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda three: f"({' '.join(three)})"),
        max_leaves=depth,
    )


@given(numbers())
def test_arithmetic_is_pythons(expression: str) -> None:
    assert expand("<@{" + expression + "}>", THIRD) == f"<{eval(expression, {'instance': 2, 'count': 4})}>"
    assert used("@{" + expression + "}") == {name for name in ("instance", "count") if name in expression}


@given(st.text(alphabet="@{}instace +0"))
def test_a_text_that_was_accepted_can_be_expanded(text: str) -> None:
    try:
        names = used(text)
    except Unfit:
        return
    assert names <= set(NAMES)
    if "%" not in text and "//" not in text:
        assert "@{" not in expand(text.replace("@@{", ""), THIRD)


@given(st.text().filter(lambda text: "@{" not in text))
def test_any_other_text_is_left_alone(text: str) -> None:
    assert expand(text, THIRD) == text
    assert not used(text)


@given(st.text())
def test_any_text_can_be_written(text: str) -> None:
    """`@@{` is the two characters themselves."""
    assert expand(text.replace("@{", "@@{"), THIRD) == text
