# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a check knocks."""

from __future__ import annotations

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.checks import Target, command, is_notify, parse
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.problems import Unfit
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://localhost", Target("http", "localhost", 80, "/")),
        ("https://shop.example", Target("https", "shop.example", 443, "/")),
        ("http://localhost:8080/health?deep=1", Target("http", "localhost", 8080, "/health?deep=1")),
        ("http://localhost:8080?deep=1", Target("http", "localhost", 8080, "/?deep=1")),
        ("http://localhost/a#part", Target("http", "localhost", 80, "/a")),
        ("http://[::1]:8080/", Target("http", "::1", 8080, "/")),
        ("tcp://localhost:5432", Target("tcp", "localhost", 5432, "")),
        ("tcp://[2001:db8::192.0.2.1]:65535", Target("tcp", "2001:db8::192.0.2.1", 65535, "")),
    ],
)
def test_parse(url: str, target: Target) -> None:
    assert parse(url) == target


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:80",
        "ftp://localhost",
        "exec://",
        "exec://a 'b",
        "http://",
        "http:///path",
        "http://localhost:",
        "http://localhost:port/",
        "http://user:password@localhost/",
        "http://local host/",
        "http://localhost/a b",
        "tcp://localhost",
        "tcp://localhost:80/",
        "tcp://localhost:80?x",
        "tcp://:80",
        "tcp://localhost:0",
        "tcp://localhost:65536",
        "tcp://localhost:" + "9" * 5000,
        "tcp://localhost:٣",
        "tcp://[::1]",
    ],
    ids=lambda url: url[:30] or "empty",
)
def test_what_is_no_target(url: str) -> None:
    with pytest.raises(Unfit, match="expected"):
        parse(url)


def test_a_check_may_be_a_command() -> None:
    assert parse("exec:///usr/bin/pg_isready -q").scheme == "exec"
    assert command("exec://is-ready --host 'a b'") == ["is-ready", "--host", "a b"]
    assert command("tcp://localhost:80") is None


def test_a_check_may_be_the_word_of_the_program() -> None:
    assert parse("notify://").scheme == "notify"
    assert is_notify("notify://")
    assert not is_notify("exec://notify")
    assert not is_notify(None)
    assert command("notify://") is None
    with pytest.raises(Unfit, match="nothing after it"):
        parse("notify://localhost")


@given(
    st.sampled_from(["http", "https", "tcp"]), st.from_regex(r"[a-z0-9.-]{1,9}", fullmatch=True), st.integers(1, 65535)
)
def test_scheme_host_and_port_come_back(scheme: str, host: str, port: int) -> None:
    assert parse(f"{scheme}://{host}:{port}") == Target(scheme, host, port, "" if scheme == "tcp" else "/")


@given(st.one_of(st.text(), st.text().map("http://localhost".__add__), st.text().map("tcp://".__add__)))
def test_any_text_is_a_target_or_unfit(url: str) -> None:
    try:
        assert 1 <= parse(url).port <= 65535 or parse(url).scheme in ("exec", "notify")
    except Unfit:
        pass
