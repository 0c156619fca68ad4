#!/usr/bin/python
# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Front of the module `process_info`: documentation and options. What it does is in module_utils/_process_info.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: process_info
short_description: What runs on a host, and how
version_added: 0.1.0
description:
  - Gives the instances that the agent pm3 keeps on a host, their definitions, revisions and holds, and if wanted their last lines of
    output.
  - Where no agent is installed the answer is empty, with RV(installed) being V(false).
author:
  - pm3.fleet maintainers (@pm3-fleet)
extends_documentation_fragment:
  - pm3.fleet._agent
  - pm3.fleet._attributes
  - pm3.fleet._attributes.actiongroup_pm3
  - pm3.fleet._attributes.info_module
attributes:
  async:
    support: full
options:
  project:
    description:
      - Only what belongs to this project.
    type: str
  names:
    description:
      - Only these processes or instances.
    type: list
    elements: str
  log_lines:
    description:
      - How many of the last lines of output to give for each instance.
    type: int
    default: 0
  wait_for:
    description:
      - Wait until every instance that is asked about is up, and fail if one is not in time, or if there is none.
      - In check mode nothing is waited for, as what earlier tasks would have started does not run.
    type: str
    choices:
      - online
  timeout:
    description:
      - How many seconds to wait for O(wait_for).
    type: int
    default: 30
seealso:
  - module: pm3.fleet.processes
  - module: pm3.fleet.process
"""

EXAMPLES = r"""
- name: What runs here?
  pm3.fleet.process_info:
  become: true
  register: here

- name: The shop is up within a minute
  pm3.fleet.process_info:
    project: shop
    wait_for: online
    timeout: 60
    log_lines: 10
  become: true
"""

RETURN = r"""
installed:
  description: Whether there is an agent on the host.
  returned: always
  type: bool
  sample: true
agent:
  description: What the agent says of itself, V(null) if there is none.
  returned: always
  type: dict
  contains:
    version:
      description: Its version.
      type: str
      sample: 0.1.0
    identity:
      description: The hash over its files, V(null) if it runs from source.
      type: str
      sample: 0f3c6b1f5a2e4d77
    pid:
      description: Its process id.
      type: int
      sample: 812
    data_dir:
      description: Where it keeps its data.
      type: str
      sample: /var/lib/pm3
    scope:
      description: V(system) or V(user).
      type: str
      sample: system
    manager:
      description: What keeps it running, V(systemd), V(keeper) or V(none).
      type: str
      sample: systemd
    protocol:
      description: The version of the protocol it speaks.
      type: int
      sample: 1
    instances:
      description: How many instances there are (C(total)) and how many run (C(running)).
      type: dict
      sample: {"total": 9, "running": 9}
    features:
      description: What this host's kernel gives it.
      type: dict
      sample: {"cgroup": true, "pidfd": true}
instances:
  description: The instances, in order of name.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The name of the instance.
      type: str
      sample: web:0
    process:
      description: The name of its process.
      type: str
      sample: web
    project:
      description: The project that it belongs to, V(null) if it was started by hand.
      type: str
      sample: shop
    number:
      description: Its number among the instances of its process, from 0, or the one that C(instance_ids) has.
      type: int
      sample: 0
    count:
      description: The number of instances that it has been told.
      type: int
      sample: 4
    status:
      description: V(online), V(starting), V(unhealthy), V(stopped) or V(errored).
      type: str
      sample: online
    phase:
      description: The same to the letter, as the agent's state machine calls it.
      type: str
      sample: online
    pid:
      description: The process id, V(null) if it does not run.
      type: int
      sample: 4711
    uptime:
      description: For how many seconds it has been running.
      type: int
      sample: 86400
    since:
      description: Since when it has had this status, in seconds since the epoch.
      type: float
      sample: 1793000000.0
    restarts:
      description: >-
        Restarts, those by hand included. An end of its own after it has lived for C(min_uptime) makes it begin at 0 again, and so does
        a definition that replaces it.
      type: int
      sample: 0
    total_restarts:
      description: Restarts since it was created, whatever the reason.
      type: int
      sample: 2
    cpu_percent:
      description: What all of its processes together use, in percent of one CPU.
      returned: if it runs
      type: float
      sample: 1.5
    memory_bytes:
      description: Resident memory of all of its processes together. What they share is counted for each of them.
      returned: if it runs
      type: int
      sample: 31457280
    wanted:
      description: Whether it is to run. V(false) after it was stopped on purpose.
      type: bool
      sample: true
    group:
      description: The group under which commands reach it.
      type: str
      sample: web
    last_exit:
      description: >-
        How it ended the last time, with secrets masked. V(null) if it never did, or if it has been replaced since (rolled, reloaded).
        The keys are those of RV(pm3.fleet.processes#module:instances[].last_exit).
      type: dict
      sample: {"cause": "exit", "code": 3, "signal": null, "message": "exited with code 3", "at": 1793000000.0, "log_tail": []}
    held:
      description: By whom it is held, since when, and why. What is held is left alone by M(pm3.fleet.processes).
      returned: if it is held
      type: str
      sample: "held by ada since 2026-11-20 19:34: looking into the timeouts"
    stdout_log:
      description: The file that its output goes to.
      type: str
      sample: /var/lib/pm3/logs/web:0-out.log
    stderr_log:
      description: The file that its error output goes to.
      type: str
      sample: /var/lib/pm3/logs/web:0-err.log
    log_tail:
      description: The last lines of its output.
      returned: if O(log_lines) is greater than 0
      type: list
      elements: str
      sample: ["listening on port 8080"]
definitions:
  description: The definitions by project and process, with secrets masked.
  returned: always
  type: dict
  sample: {"shop": {"web": {"command": "/srv/shop/web", "instances": 4}}}
revisions:
  description:
    - The revisions by project, oldest first. They are what O(pm3.fleet.processes#module:rollback_to) can go back to.
    - Each is a table with its number (C(revision)), its C(label), the time (C(at), in seconds since the epoch), who made it (C(uid), and
      the name in C(user)), the processes that it changed (C(changed)), the revision that it brought back (C(origin)), and whether it is
      the C(current) one. If it did not come up, C(failed_at) is when, and C(failure) says why.
  returned: always
  type: dict
  sample:
    shop:
      - revision: 7
        label: "42"
        at: 1793000000.0
        uid: 1000
        user: ada
        changed: [web]
        origin: null
        current: true
        failed_at: null
        failure: null
holds:
  description: What is to be left alone, and why.
  returned: always
  type: list
  elements: dict
  contains:
    kind:
      description: V(process), or V(project) for all that belongs to it.
      type: str
      sample: process
    name:
      description: The name of the process or of the project.
      type: str
      sample: web
    reason:
      description: Why.
      type: str
      sample: looking into the timeouts
    since:
      description: Since when, in seconds since the epoch.
      type: float
      sample: 1793000000.0
    uid:
      description: The user id of who holds it, V(null) if it is not known.
      type: int
      sample: 1000
    user:
      description: The name of that user, V(null) if there is none.
      type: str
      sample: ada
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pm3.fleet.plugins.module_utils import _process_info


def main() -> None:
    _process_info.run(AnsibleModule(argument_spec=_process_info.OPTIONS, supports_check_mode=True))


if __name__ == "__main__":
    main()
