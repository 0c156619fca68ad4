# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The readable difference: what it shows of a change, and what it never shows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model import difference
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.definition import load
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.plan import Actual, plan


def between(before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, str]]:
    actual = [
        Actual(one.name, one.process, one.number, "shop", one.definition, one.count, True, True, "online")
        for one in (plan("shop", load(before), [], cpus=4).rows if before else ())
    ]
    return difference.of("shop", plan("shop", load(after), actual, cpus=4))


def test_only_what_changes_is_shown() -> None:
    before = {"web": {"command": "serve", "cwd": "/41"}, "db": {"command": "db"}}
    assert between(before, {**before, "web": {"command": "serve", "cwd": "/42"}}) == [
        {
            "before": '[web]\ncommand = "serve"\ncwd = "/41"\ninstances = 1\n',
            "after": '[web]\ncommand = "serve"\ncwd = "/42"\ninstances = 1\n',
            "before_header": "shop/web",
            "after_header": "shop/web",
        }
    ]


def test_what_comes_and_what_goes() -> None:
    made = between({"old": {"command": "run"}}, {"new": {"command": "run", "instances": 2}})
    assert [(one["before_header"], one["before"], one["after"]) for one in made] == [
        ("shop/new", "", '[new]\ncommand = "run"\ninstances = 2\n'),
        ("shop/old", '[old]\ncommand = "run"\ninstances = 1\n', ""),
    ]


def test_numbers_are_shown_as_numbers() -> None:
    (made,) = between(
        {"web": {"command": "run", "instance_ids": [7, 12]}}, {"web": {"command": "run", "instance_ids": [3, 7]}}
    )
    assert made["before"] == '[web]\ncommand = "run"\ninstance_ids = [7, 12]\n'
    assert made["after"] == '[web]\ncommand = "run"\ninstance_ids = [3, 7]\n'
    (made,) = between(
        {"web": {"command": "run", "instances": 2}}, {"web": {"command": "run --all", "instance_ids": []}}
    )
    assert made["before"].endswith("instances = 2\n")
    assert made["after"] == '[web]\ncommand = "run --all"\ninstance_ids = []\n'


def test_a_secret_that_changes_is_said_to_and_never_shown() -> None:
    (made,) = between(
        {"web": {"command": "run", "secrets": {"T": "one"}}}, {"web": {"command": "run", "secrets": {"T": "two"}}}
    )
    assert 'secrets.T = "********"\n' in made["before"]
    assert 'secrets.T = "******** (changed)"\n' in made["after"]


def test_what_becomes_a_secret_is_not_shown_as_it_leaves_env() -> None:
    (made,) = between(
        {"web": {"command": "run", "env": {"T": "hunter2"}}}, {"web": {"command": "run", "secrets": {"T": "hunter2"}}}
    )
    assert 'env.T = "********"\n' in made["before"]
    assert "hunter2" not in str(made)


def test_a_secret_in_another_text_is_covered_there() -> None:
    (made,) = between(
        {"web": {"command": "run hunter2", "env": {"URL": "db://ada:hunter2@db"}}},
        {"web": {"command": "run it hunter2", "env": {"URL": "db://eve:hunter2@db"}, "secrets": {"T": "hunter2"}}},
    )
    assert 'command = "run ********"\n' in made["before"]
    assert 'env.URL = "db://ada:********@db"\n' in made["before"]
    assert 'command = "run it ********"\n' in made["after"]
    assert "hunter2" not in str(made)


def test_a_file_that_changed_is_shown_where_the_definition_is_the_same() -> None:
    definitions = load({"web": {"command": "run"}})
    made = plan("shop", definitions, [], cpus=4).rows[0]
    there = Actual("web", "web", 0, "shop", made.definition, 1, True, True, "online", "/srv/app.conf is new")
    (shown,) = difference.of("shop", plan("shop", definitions, [there], cpus=4))
    assert shown["before"].startswith("# web: /srv/app.conf is new\n")
    assert shown["after"].startswith("# web: rolled\n")
    other = replace(there, definition=load({"web": {"command": "run it"}})["web"])
    (shown,) = difference.of("shop", plan("shop", definitions, [other], cpus=4))
    assert "#" not in shown["before"] + shown["after"]
