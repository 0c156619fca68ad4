# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Definitions that start where they once did: whole paths are replaced wherever they are written, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.definition import Definition, load
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.pins import pinned
from hypothesis import given
from hypothesis import strategies as st

PLACES = {"/srv/current": "/srv/releases/1", "/srv/current/etc": "/etc/shop"}


def web(**fields: Any) -> Definition:
    return load({"web": {"command": "serve", **fields}})["web"]


def test_without_places_it_is_the_very_definition() -> None:
    one = web(cwd="/srv/current")
    assert pinned(one, {}) is one


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("/srv/current", "/srv/releases/1"),
        ("/srv/current/bin/serve --port 1", "/srv/releases/1/bin/serve --port 1"),
        ("serve '/srv/current/a b' \"/srv/current\"", "serve '/srv/releases/1/a b' \"/srv/releases/1\""),
        ("serve --root=/srv/current", "serve --root=/srv/releases/1"),
        ("java -cp /srv/current:/srv/current/lib x", "java -cp /srv/releases/1:/srv/releases/1/lib x"),
        ("serve --of /srv/current,/srv/current/lib", "serve --of /srv/releases/1,/srv/releases/1/lib"),
        ("serve /srv/current/etc/shop.conf", "serve /etc/shop/shop.conf"),
        (
            "serve /srv/currently /srv/current-2 /srv/current.old",
            "serve /srv/currently /srv/current-2 /srv/current.old",
        ),
        ("serve /backup/srv/current ./srv/current", "serve /backup/srv/current ./srv/current"),
    ],
)
def test_a_command(command: str, expected: str) -> None:
    assert pinned(web(command=command), PLACES).command == expected


def test_paths_of_fields() -> None:
    one = web(
        cwd="/srv/current",
        env_file=["/srv/current/env", "/srv/other"],
        watch="/srv/current/src",
        restart_when_changed=["/srv/current", "/srv/current/etc/*.conf"],
    )
    moved = pinned(one, PLACES)
    assert moved.cwd == "/srv/releases/1"
    assert moved.env_file == ("/srv/releases/1/env", "/srv/other")
    assert moved.watch == "/srv/releases/1/src"
    assert moved.restart_when_changed == ("/srv/releases/1", "/etc/shop/*.conf")


def test_what_is_no_path_of_the_host_stays() -> None:
    """What a program is told in its environment is its own affair, and a check names no file."""
    one = web(env={"ROOT": "/srv/current"}, readiness_check="exec://test -e /srv/current/up", group="/srv/current")
    assert pinned(one, PLACES) == one


def test_a_place_may_have_any_name() -> None:
    """Neither the path as it is written nor where it leads is a pattern."""
    assert pinned(web(command="run /a.b+c/x /aXb+c/x"), {"/a.b+c": r"/\1\g<0>"}).command == r"run /\1\g<0>/x /aXb+c/x"


@given(st.lists(st.sampled_from(["/srv/current", "/srv/current/etc/a", "/srv/currently", "--x=1", "'/srv/current'"])))
def test_twice_is_once(words: list[str]) -> None:
    """What is pinned already is where it is to be: a revision that was brought back can be brought back."""
    one = pinned(web(command=" ".join(["serve", *words])), PLACES)
    assert pinned(one, PLACES) == one
    assert len(one.command.split()) == len(words) + 1
