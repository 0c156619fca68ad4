# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter `status_page`."""

from __future__ import annotations

DOCUMENTATION = r"""
name: status_page
short_description: Make an HTML page of the status of a fleet
version_added: 0.1.0
description:
  - One file that needs no network to be looked at, for a screen of any width, light or dark. Trouble comes first.
author:
  - pm3.fleet maintainers (@pm3-fleet)
options:
  _input:
    description:
      - What P(pm3.fleet.fleet_status#filter) gave.
    type: dict
    required: true
  made_at:
    description:
      - What the page says of its age, such as a time.
    type: str
    required: true
seealso:
  - plugin: pm3.fleet.fleet_status
    plugin_type: filter
"""

EXAMPLES = r"""
- name: The page is written
  ansible.builtin.copy:
    content: "{{ fleet | pm3.fleet.status_page(made_at=now().strftime('%Y-%m-%d %H:%M')) }}"
    dest: status.html
    mode: "0644"
  delegate_to: localhost
  run_once: true
"""

RETURN = r"""
_value:
  description: The page.
  type: str
"""

from typing import Any

from ansible_collections.pm3.fleet.plugins.plugin_utils import _reports


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"status_page": _reports.page}
