#!/usr/bin/python
# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Front of the module `agent`: documentation and options. What it does is in module_utils/_agent.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: agent
short_description: Install, upgrade or remove the agent pm3
version_added: 0.1.0
description:
  - Brings the agent of this collection to a host, has it started now and at every boot, and upgrades it in place, without a restart of
    any process that it keeps.
  - The agent is packed on the controller. Where the host has it already nothing is sent.
  - Most users want the role C(pm3.fleet.agent), which also makes the admin group and an unprivileged user for programs.
author:
  - pm3.fleet maintainers (@pm3-fleet)
extends_documentation_fragment:
  - pm3.fleet._agent
  - pm3.fleet._attributes
  - pm3.fleet._attributes.actiongroup_pm3
attributes:
  check_mode:
    support: full
  diff_mode:
    support: partial
    details:
      - Shows units and the launcher, not the agent's program.
  idempotent:
    support: full
  async:
    support: none
options:
  state:
    description:
      - Whether the agent is to be on the host.
    type: str
    default: present
    choices:
      present: It is installed in the version of this collection, and runs.
      absent: >-
        It is stopped and removed. Refused while instances run, unless O(stop_instances=true). Data is kept, unless O(purge=true).
  service_manager:
    description:
      - What keeps the agent running.
    type: str
    default: auto
    choices:
      auto: >-
        What keeps it already. If it is new, with O(scope=system) systemd where the host runs it, with O(scope=user) the user's own where
        the user lingers and O(data_dir) is not given; V(none) otherwise.
      systemd: >-
        The host's systemd, or with O(scope=user) the user's own, which is told to linger.
      none: >-
        A small keeper process that comes with the agent. It survives a crash of the agent, but nothing starts it at boot, and a shutdown
        does not wait for what runs to stop in order. The module warns of that when it starts the agent, and with V(auto) at every run.
  python:
    description:
      - The Python 3.9 or newer that runs the agent. By default the one that runs this module, see C(ansible_python_interpreter).
    type: path
  admin_group:
    description:
      - The group whose members, beside root, may use the agent with O(scope=system). It must exist.
    type: str
    default: pm3
  stop_instances:
    description:
      - Whether O(state=absent) may stop instances that run.
    type: bool
    default: false
  purge:
    description:
      - Whether O(state=absent) also removes definitions, history and logs. Files in O(data_dir) that are not the agent's stay, and all of
        it does where no agent ever was.
    type: bool
    default: false
  package:
    description:
      - Not for tasks. The action plugin says here what the agent of this collection is, and where on the host it has put it.
    type: dict
    suboptions:
      identity:
        description: The hash over the agent's files.
        type: str
        required: true
      version:
        description: The agent's version.
        type: str
        required: true
      libraries:
        description: Libraries that travel with the agent, with the versions that are needed and that the controller has.
        type: dict
        default: {}
      archive:
        description: The packed agent, a file on the host.
        type: path
seealso:
  - module: pm3.fleet.processes
  - module: pm3.fleet.process_info
"""

EXAMPLES = r"""
- name: The agent is on the host
  pm3.fleet.agent:
  become: true

- name: An agent of the user's own, without systemd, in one folder
  pm3.fleet.agent:
    scope: user
    service_manager: none
    data_dir: ~/pm3

- name: The agent is gone, with all that it ran, its logs and its history
  pm3.fleet.agent:
    state: absent
    stop_instances: true
    purge: true
  become: true
"""

RETURN = r"""
before:
  description: The agent before the run.
  returned: success
  type: dict
  contains: &agent
    identity:
      description: The hash over its files, V(null) if there is none.
      type: str
      sample: 0f3c6b1f5a2e4d77
    version:
      description: Its version, V(null) if it does not run.
      type: str
      sample: 0.1.0
    running:
      description: Whether it runs.
      type: bool
      sample: true
    pid:
      description: Its process id, which an upgrade does not change. V(null) if it does not run, or will only be started.
      type: int
      sample: 812
after:
  description: The agent after the run.
  returned: success
  type: dict
  contains: *agent
actions:
  description: What was done, or in check mode would be, in words and in order.
  returned: success
  type: list
  elements: str
  sample:
    - installed version 0.1.0 (0f3c6b1f5a2e4d77)
    - made 0f3c6b1f5a2e4d77 the current version
    - upgraded the running agent in place
instances_kept:
  description: How many instances ran before the run, and still do.
  returned: success
  type: int
  sample: 9
gap:
  description: >-
    For how many milliseconds an upgrade in place kept the agent from answering. What is asked meanwhile waits, and instances do not
    notice. V(null) if the agent that runs did not change.
  returned: success
  type: float
  sample: 38.5
data_dir:
  description: Where the agent keeps its data.
  returned: success
  type: str
  sample: /var/lib/pm3
command:
  description: The command with which people look at it.
  returned: success
  type: str
  sample: /usr/local/bin/pm3
service_manager:
  description: What keeps the agent running, V(systemd) or V(none).
  returned: success
  type: str
  sample: systemd
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pm3.fleet.plugins.module_utils import _agent


def main() -> None:
    _agent.run(AnsibleModule(argument_spec=_agent.OPTIONS, supports_check_mode=True))


if __name__ == "__main__":
    main()
