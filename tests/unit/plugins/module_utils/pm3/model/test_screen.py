# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Texts on a terminal."""

from __future__ import annotations

from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.screen import columns_of, fitted, one_line, padded


def test_widths_of_letters() -> None:
    assert columns_of("日本 é e\u0301") == 8
    assert fitted("日本語", 4) == "日本"
    assert fitted("日本語", 5) == "日本"
    assert fitted("日本語", 6) == "日本語"
    assert fitted("web", 2) == "we"
    assert fitted("web", -1) == ""
    assert padded("日本", 6) == "日本  "
    assert padded("web", 2) == "web"


def test_one_line() -> None:
    assert one_line("é 日本") == "é 日本"
    assert one_line("a\n\x1b[2J\x9b\u202e") == "a\\n\\x1b[2J\\x9b\\u202e"
    assert one_line(b"w\xff".decode("utf-8", "surrogateescape")) == "w\\xff"
