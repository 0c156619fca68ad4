# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter `fleet_drift`."""

from __future__ import annotations

DOCUMENTATION = r"""
name: fleet_drift
short_description: Make one document of what differs from its description on all hosts
version_added: 0.1.0
description:
  - Gathers what M(pm3.fleet.processes) predicted in check mode on every host. Playbook C(pm3.fleet.drift) is made of it.
  - What is held is told, too, and so are hosts that did not answer.
author:
  - pm3.fleet maintainers (@pm3-fleet)
options:
  _input:
    description:
      - By name of the host, what the task registered there, also of a loop. The hosts of the play and their results are
        C(dict(ansible_play_hosts_all | zip(ansible_play_hosts_all | map('extract', hostvars, 'NAME')))).
    type: dict
    required: true
seealso:
  - module: pm3.fleet.processes
"""

EXAMPLES = r"""
- name: What the whole fleet would change
  ansible.builtin.debug:
    msg: "{{ (dict(hosts | zip(hosts | map('extract', hostvars, 'found'))) | pm3.fleet.fleet_drift).report }}"
  vars:
    hosts: "{{ ansible_play_hosts_all }}"
  run_once: true
"""

RETURN = r"""
_value:
  description: >-
    What a run would change (C(drifted)), what is held (C(held)), hosts that gave no answer (C(unreachable), C(failed)), and all of it
    as lines for a terminal (C(report)).
  type: dict
"""

from typing import Any

from ansible_collections.pm3.fleet.plugins.plugin_utils import _reports


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"fleet_drift": _reports.drift}
