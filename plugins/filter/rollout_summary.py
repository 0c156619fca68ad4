# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter `rollout_summary`."""

from __future__ import annotations

DOCUMENTATION = r"""
name: rollout_summary
short_description: Make one document of what became of a rollout
version_added: 0.1.0
description:
  - Gathers what the role C(pm3.fleet.rollout) has written down on every host. Its entry point C(report) is made of it.
author:
  - pm3.fleet maintainers (@pm3-fleet)
positional: _input, project, label, lost
options:
  _input:
    description:
      - By name of the host, its variables.
    type: dict
    required: true
  project:
    description:
      - The project.
    type: str
    required: true
  label:
    description:
      - The label of the release.
    type: str
    required: true
  lost:
    description:
      - The hosts that have dropped out of the plays. What they have written down may be of an earlier rollout.
    type: list
    elements: str
    default: []
seealso:
  - module: pm3.fleet.processes
"""

EXAMPLES = r"""
- name: What became of the rollout
  ansible.builtin.debug:
    msg: "{{ (dict(hosts | zip(hosts | map('extract', hostvars))) | pm3.fleet.rollout_summary('shop', '42')).report }}"
  vars:
    hosts: "{{ ansible_play_hosts_all }}"
  run_once: true
"""

RETURN = r"""
_value:
  description: >-
    The hosts (C(hosts)), how many there are of each kind (C(summary)), whether all went well (C(ok)) or it was C(stopped), and all of it as
    lines for a terminal (C(report)).
  type: dict
"""

from typing import Any

from ansible_collections.pm3.fleet.plugins.plugin_utils import _reports


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"rollout_summary": _reports.rollout}
