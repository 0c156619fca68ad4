# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter `place`."""

from __future__ import annotations

DOCUMENTATION = r"""
name: place
short_description: Tell which instances of a fleet-wide count a host has
version_added: 0.1.0
description:
  - Deals the numbers from V(0) to one below the count out to hosts, and gives those of one host, for the field C(instance_ids) of a
    definition.
  - It depends on nothing but the names of the hosts, the count and O(name), so it is the same in every run and on every controller.
  - Shares are even, hosts differ by one at most. When a host comes or goes, little else than its own share moves. How much, and what to
    mind while it moves, is in C(docs/placement.md).
author:
  - pm3.fleet maintainers (@pm3-fleet)
positional: _input, hosts, host
options:
  _input:
    description:
      - How many instances there are in the whole fleet.
    type: int
    required: true
  hosts:
    description:
      - All hosts that have instances, such as C(groups['workers']). Order and repetitions do not matter.
      - Never the hosts of a play, such as C(ansible_play_hosts). With C(--limit), C(serial) or a host that is down these are fewer, and
        numbers would run twice.
    type: list
    elements: str
    required: true
  host:
    description:
      - The host whose numbers are wanted, C(inventory_hostname) as a rule.
    type: str
    required: true
  name:
    description:
      - What is placed. Each name has a placement of its own, so that of several small counts not all are on the same hosts.
    type: str
    default: ""
seealso:
  - module: pm3.fleet.processes
"""

EXAMPLES = r"""
- name: Twenty workers, wherever the group has hosts
  pm3.fleet.processes:
    project: shop
    definitions:
      worker:
        command: /srv/shop/worker --shard @{instance} --of 20
        instance_ids: "{{ 20 | pm3.fleet.place(groups['workers'], inventory_hostname) }}"

- name: One scheduler in the whole fleet
  pm3.fleet.process:
    name: scheduler
    command: /srv/shop/scheduler
    instance_ids: "{{ 1 | pm3.fleet.place(groups['workers'], inventory_hostname, name='scheduler') }}"
"""

RETURN = r"""
_value:
  description: The numbers of the host in ascending order, possibly none.
  type: list
  elements: int
"""

from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.pm3.fleet.plugins.plugin_utils import _placement


def place(count: Any, hosts: Any, host: Any, name: Any = "") -> list[int]:
    try:
        return _placement.place(count, hosts, host, name)
    except _placement.Misplaced as error:
        raise AnsibleFilterError(str(error)) from None


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"place": place}
