# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A pattern that has to match a host: a misspelt one is an error, and not a play that nobody takes part in."""

from __future__ import annotations

DOCUMENTATION = r"""
name: hosts
short_description: A pattern of hosts that matches at least one
version_added: 0.1.0
description:
  - Gives the pattern as it is, for the C(hosts) of a play. A pattern that matches no host is an error there, while a play of Ansible's that
    nobody takes part in is a success.
author:
  - pm3.fleet maintainers (@pm3-fleet)
options:
  _terms:
    description:
      - The pattern, as C(hosts) of a play takes it.
    required: true
  limit:
    description:
      - What C(--limit) says. Of the hosts that it leaves the pattern has to match one.
    type: str
    vars:
      - name: ansible_limit
seealso:
  - plugin: ansible.builtin.inventory_hostnames
    plugin_type: lookup
"""

EXAMPLES = r"""
- name: What runs there
  hosts: "{{ lookup('pm3.fleet.hosts', web_hosts) }}"
  tasks:
    - name: It is asked
      pm3.fleet.process_info:
      register: found
"""

RETURN = r"""
_raw:
  description:
    - The pattern.
  type: list
  elements: str
"""

from typing import Any

from ansible.errors import AnsibleLookupError
from ansible.inventory.manager import InventoryManager
from ansible.plugins.lookup import LookupBase


class LookupModule(LookupBase):
    def run(self, terms: list[Any], variables: dict[str, Any] | None = None, **options: Any) -> list[Any]:
        self.set_options(var_options=variables, direct=options)
        limit = self.get_option("limit")
        inventory = InventoryManager(self._loader, parse=False)
        for group, hosts in (variables or {}).get("groups", {}).items():
            inventory.add_group(group)
            for host in hosts:
                inventory.add_host(host, group=group)
        inventory.subset(limit)
        for pattern in terms:
            if not inventory.get_hosts(pattern):
                raise AnsibleLookupError(f"{pattern} matches no host{' that --limit leaves' if limit else ''}")
        return list(terms)
