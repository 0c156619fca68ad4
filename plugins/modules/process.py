#!/usr/bin/python
# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Front of the module `process`: documentation and options. What it does is in module_utils/_process.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: process
short_description: Keep one process as its options define it, or start, stop, restart or reload processes by name
version_added: 0.1.0
description:
  - Defines a process, and keeps it as defined. It comes back after a reboot. Nothing else on the host is touched.
  - Or, without O(command), starts, stops, restarts or reloads processes that are defined already, in whatever project.
  - M(pm3.fleet.processes) is for several processes that belong together. It starts them in order, and removes what is not defined
    any more. This module never does.
  - A second run does nothing. Check mode asks the agent for its plan, which is what a run then does.
  - The agent has to be on the host already. See M(pm3.fleet.agent).
author:
  - pm3.fleet maintainers (@pm3-fleet)
extends_documentation_fragment:
  - pm3.fleet._agent
  - pm3.fleet._definition
  - pm3.fleet._update
  - pm3.fleet._attributes
  - pm3.fleet._attributes.actiongroup_pm3
attributes:
  check_mode:
    support: full
    details:
      - Processes that are not there yet earn a warning, as an earlier task may have been about to define them.
  diff_mode:
    support: full
  idempotent:
    support: partial
    details:
      - With O(state=restarted) or O(state=reloaded) every run restarts or reloads.
  async:
    support: full
options:
  name:
    description:
      - The name of the process. Several names get the same definition, or with no O(command) the same O(state).
    type: list
    elements: str
    required: true
  command:
    description:
      - Program and arguments; split into words, never given to a shell.
      - Without it the processes must exist, unless O(state=absent), and no other field of a definition but O(instances) or
        O(instance_ids) can be given. It does not matter then to which project they belong. Only their own project can change these.
      - With it the options are the whole definition. A field that is not given has its default.
  cwd:
    description:
      - Working directory, an absolute path.
      - Without it other paths, such as those of O(env_file), must be absolute.
      - A change replaces the instances, one after the other.
  project:
    description:
      - The project that owns what is defined here. A run of M(pm3.fleet.processes) for the same project removes it, unless it is told
        not to prune.
      - A process belongs to one project. Defining or removing one that belongs to another project is an error.
      - What was started by hand becomes the property of this project.
    type: str
    default: default
  state:
    description:
      - What is wanted of the processes.
    type: str
    default: started
    choices:
      started: They run as defined.
      stopped: They are defined, and stopped.
      restarted: As V(started), and every instance that ran before is replaced.
      reloaded: >-
        As V(started), and every instance that ran before is reloaded, by its O(reload_signal), or by a new copy that is up before the
        old one ends.
      absent: They are stopped and forgotten. Where there is no such process, or no agent, there is nothing to do.
  label:
    description:
      - A name for the revision that this run makes of the project, such as a version.
    type: str
  wait:
    description:
      - Whether to wait until every instance is up. If not, the result tells what has been begun.
    type: bool
    default: true
seealso:
  - module: pm3.fleet.processes
  - module: pm3.fleet.process_info
  - module: pm3.fleet.agent
  - plugin: pm3.fleet.instances
    plugin_type: callback
"""

EXAMPLES = r"""
- name: The exporter runs, twice
  pm3.fleet.process:
    name: exporter
    command: /usr/bin/exporter --port @{9100 + instance}
    user: exporter
    instances: 2
    env:
      LEVEL: "3"
    secrets:
      TOKEN: "{{ vault_exporter_token }}"
    readiness_check: http://127.0.0.1:@{9100 + instance}/ready
    limits:
      nofile: 65536
  become: true

- name: Four of them from now on
  pm3.fleet.process:
    name: exporter
    instances: 4
  become: true

- name: Two processes of the shop are restarted
  pm3.fleet.process:
    name: [web, worker]
    state: restarted
  become: true

- name: The exporter reads its configuration again
  pm3.fleet.process:
    name: exporter
    state: reloaded
  become: true

- name: The exporter is gone from this host
  pm3.fleet.process:
    name: exporter
    state: absent
  become: true
"""

RETURN = r"""
project:
  description:
    - The project that owns the processes.
    - V(null) if they are of several projects. Then the revisions are V(null), too.
  returned: always
  type: str
  sample: default
revision:
  description: The project's revision after the run, V(null) if it has none.
  returned: always
  type: int
  sample: 7
label:
  description: The label of RV(revision), V(null) if it has none.
  returned: always
  type: str
  sample: "42"
previous_revision:
  description: The project's revision before the run, V(null) if it had none.
  returned: always
  type: int
  sample: 6
previous_label:
  description: The label of RV(previous_revision), V(null) if it has none.
  returned: always
  type: str
  sample: "41"
reverted:
  description: Whether what was changed has been changed back, as something of it did not come up.
  returned: always
  type: bool
  sample: false
timed_out:
  description: Whether the change of an instance took longer than O(update.deadline).
  returned: always
  type: bool
  sample: false
in_progress:
  description: Whether the agent is still busy with it, as after O(wait=false).
  returned: always
  type: bool
  sample: false
instances:
  description: One row for each instance, as in RV(pm3.fleet.processes#module:instances).
  returned: always
  type: list
  elements: dict
  sample:
    - name: exporter:0
      process: exporter
      action: rolled
      changed: true
      status: online
      pid: 4711
summary:
  description: How many instances are as they were, were changed, failed, and were skipped.
  returned: always
  type: dict
  sample: {"ok": 0, "changed": 1, "failed": 0, "skipped": 0}
report:
  description: Ready lines for people, one for each instance. The callback P(pm3.fleet.instances#callback) shows them.
  returned: always
  type: list
  elements: str
  sample: ["exporter:0  rolled     online     env.LEVEL: \"2\" -> \"3\""]
problems:
  description: Everything that is wrong with the definition, as in RV(pm3.fleet.processes#module:problems).
  returned: when the definition cannot be used
  type: list
  elements: dict
  sample: [{"file": null, "table": "exporter", "field": "kill_signal", "message": "expected a signal such as SIGTERM"}]
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pm3.fleet.plugins.module_utils import _process


def main() -> None:
    _process.run(AnsibleModule(argument_spec=_process.OPTIONS, supports_check_mode=True))


if __name__ == "__main__":
    main()
