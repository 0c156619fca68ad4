# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pm3: a small supervisor of processes. Holds its version and nothing else, because every import of a room passes through here."""

from __future__ import annotations

VERSION = "0.1.0"
