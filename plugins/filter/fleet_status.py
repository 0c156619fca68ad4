# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter `fleet_status`."""

from __future__ import annotations

DOCUMENTATION = r"""
name: fleet_status
short_description: Make one document of what runs on all hosts
version_added: 0.1.0
description:
  - Gathers what M(pm3.fleet.process_info) gave on every host, trouble first. Playbook C(pm3.fleet.status) is made of it.
  - Hosts that did not answer are told, too.
author:
  - pm3.fleet maintainers (@pm3-fleet)
options:
  _input:
    description:
      - By name of the host, what the task registered there. The hosts of the play and their results are
        C(dict(ansible_play_hosts_all | zip(ansible_play_hosts_all | map('extract', hostvars, 'NAME')))).
    type: dict
    required: true
seealso:
  - module: pm3.fleet.process_info
  - plugin: pm3.fleet.status_page
    plugin_type: filter
"""

EXAMPLES = r"""
- name: What the whole fleet runs
  ansible.builtin.debug:
    msg: "{{ (dict(hosts | zip(hosts | map('extract', hostvars, 'found'))) | pm3.fleet.fleet_status).report }}"
  vars:
    hosts: "{{ ansible_play_hosts_all }}"
  run_once: true
"""

RETURN = r"""
_value:
  description: >-
    The hosts (C(hosts)) and instances (C(instances)), those that gave no answer (C(unreachable), C(failed)), counts (C(summary)), and
    all of it as lines for a terminal (C(report)).
  type: dict
"""

from typing import Any

from ansible_collections.pm3.fleet.plugins.plugin_utils import _reports


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"fleet_status": _reports.status}
