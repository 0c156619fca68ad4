# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options that say which agent of a host is meant. Private to this collection."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  scope:
    description:
      - Which agent of the host is meant. There is no discovery.
    type: str
    default: system
    choices:
      system: >-
        The host's agent. It runs as root, keeps its data in C(/var/lib/pm3), and its command is C(/usr/local/bin/pm3).
        Usually needs C(become).
      user: >-
        An agent of the remote user's own. It keeps its data in C(~/.local/share/pm3) (C(XDG_DATA_HOME) is honoured),
        and its command is C(~/.local/bin/pm3). Needs no privileges.
  data_dir:
    description:
      - Where the agent keeps its socket, its store and its logs, if not in the place that goes with O(scope).
      - With O(scope=user) the agent's program and its command are below this folder as well.
    type: path
"""
