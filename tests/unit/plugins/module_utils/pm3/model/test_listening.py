# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a process listens."""

from __future__ import annotations

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.listening import Address, parse
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.problems import Unfit
from hypothesis import example, given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("tcp://*:80", Address("*", 80)),
        ("tcp://127.0.0.1:65535", Address("127.0.0.1", 65535)),
        ("tcp://[2001:DB8:0::1]:080", Address("2001:db8::1", 80)),
        ("tcp://[64:ff9b::192.0.2.1]:1", Address("64:ff9b::c000:201", 1)),
        ("unix:///run/web.sock", Address("", 0, "/run/web.sock")),
        ("unix:////run/../run/web sock", Address("", 0, "/run/web sock")),
        ("unix:///" + "x" * 106, Address("", 0, "/" + "x" * 106)),
    ],
)
def test_parse(text: str, address: Address) -> None:
    assert parse(text) == address
    assert parse(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "80",
        "tcp://",
        "tcp://:80",
        "tcp://*",
        "tcp://*:",
        "tcp://*:0",
        "tcp://*:65536",
        "tcp://*:٣",
        "tcp://localhost:80",
        "tcp://127.0.0.256:80",
        "tcp://127.0.0.01:80",
        "tcp://127.1:80",
        "tcp://::1:80",
        "tcp://[127.0.0.1:80",
        "tcp://[::g]:80",
        "tcp://[fe80::1%eth0]:80",
        "tcp://*:80/",
        "tcp://[::ffff:192.0.2.1]:80",
        "udp://*:80",
        "unix://",
        "unix:///",
        "unix://web.sock",
        "unix:///run/web/",
        "unix:///" + "x" * 107,
        "unix:///" + "ü" * 54,
    ],
    ids=lambda text: text[:30] or "empty",
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(Unfit, match="expected"):
        parse(text)


@example("unix:///.")
@example("unix:///run/..")
@given(st.one_of(st.text(), st.text().map("tcp://".__add__), st.text().map("unix:///".__add__)))
def test_any_text_is_an_address_or_unfit(text: str) -> None:
    try:
        address = parse(text)
    except Unfit:
        return
    assert parse(str(address)) == address
