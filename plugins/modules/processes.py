#!/usr/bin/python
# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Front of the module `processes`: documentation and options. What it does is in module_utils/_processes.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: processes
short_description: Keep the processes of a project exactly as a pm3.toml describes them
version_added: 0.1.0
description:
  - Reconciles all processes of a project on a host with their definitions, in dependency order, and reports for every instance
    what was done and why.
  - A second run does nothing. Check mode asks the agent for its plan, which is what a run then does.
  - All definitions are checked on the controller, in one pass, before any host is touched. A failure lists everything that is wrong
    with them.
  - The agent has to be on the host already. See M(pm3.fleet.agent).
author:
  - pm3.fleet maintainers (@pm3-fleet)
extends_documentation_fragment:
  - pm3.fleet._agent
  - pm3.fleet._update
  - pm3.fleet._attributes
  - pm3.fleet._attributes.actiongroup_pm3
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: partial
    details:
      - With O(state=restarted) or O(state=reloaded) every run restarts or reloads.
      - With O(rollback_to) being an empty text every run goes back by one revision more.
  async:
    support: full
options:
  project:
    description:
      - The name of the set of definitions. What O(prune) removes always belongs to this project.
      - A process belongs to one project. Defining one that belongs to another project is an error, unless O(take_over=true).
    type: str
    required: true
  src:
    description:
      - A C(pm3.toml) on the controller, looked for as M(ansible.builtin.copy) does (in C(files)), or with O(template=true) as
        M(ansible.builtin.template) does (in C(templates)). It may be encrypted with Ansible Vault.
      - Exactly one of O(src), O(content), O(definitions) and O(remote_src) is needed, unless O(state=absent),
        or O(rollback_to) or O(rollback_from) is given instead.
    type: str
  content:
    description:
      - The text of a C(pm3.toml).
    type: str
  definitions:
    description:
      - The definitions as data, one key for each process, with the fields of a C(pm3.toml).
      - Values of C(env), C(secrets) and overlays must be texts. Put numbers and booleans in quotes.
    type: dict
  remote_src:
    description:
      - A C(pm3.toml) on the host. Only this one is read and checked on the host.
      - Relative paths in it are relative to its folder, unless O(chdir) says otherwise.
    type: path
  template:
    description:
      - Whether O(src) is a template.
      - O(content) and O(definitions) are templated by Ansible anyway.
    type: bool
    default: false
  overlay:
    description:
      - The name of an overlay, V(prod) for the tables C(env_prod), to be merged into C(env). At least one process must define it.
    type: str
  chdir:
    description:
      - The folder on the host that relative paths in the definitions are relative to, and the working directory of processes without
        C(cwd).
      - Without it a relative path is an error, as definitions that come from a controller have no place on the host.
    type: path
  state:
    description:
      - What is wanted of the processes.
    type: str
    default: present
    choices:
      present: They run as defined.
      stopped: They are defined, and stopped.
      restarted: As V(present), and every instance that ran before is replaced.
      reloaded: >-
        As V(present), and every instance that ran before is reloaded, by its C(reload_signal), or by a new copy that is up before the
        old one ends.
      absent: >-
        They are stopped and forgotten. Without definitions, and with them while O(prune=true), these are all processes of the
        project. Where there is no agent there is nothing to do.
  prune:
    description:
      - Whether processes of O(project) that are not defined any more are stopped and forgotten.
    type: bool
    default: true
  only:
    description:
      - Names of processes. All others are left alone, and nothing is pruned.
    type: list
    elements: str
  label:
    description:
      - A name for the revision that this run makes, such as a version.
    type: str
  rollback_to:
    description:
      - Instead of definitions, the number or the label of the revision of the project to go back to. An empty text means the newest
        earlier one that is good.
      - If the project is there already there is nothing to do.
      - What the revision defined is applied once more, as a new revision. It starts in the folders that the old one started in.
      - Only with O(state=present).
    type: str
  rollback_from:
    description:
      - Instead of definitions, the label of a revision that must not stay. If it is that of the current revision, the project goes back
        to the newest earlier one that is good and has another label. Otherwise there is nothing to do.
      - Only with O(state=present).
    type: str
  update_once:
    description:
      - Keys of O(update) for this run alone. They count more than what the definitions say, and nothing of them is kept, so that the next
        run finds nothing changed.
    type: dict
    suboptions:
      max_unavailable:
        description:
          - See O(update.max_unavailable).
        type: raw
      max_surge:
        description:
          - See O(update.max_surge).
        type: raw
      on_failure:
        description:
          - See O(update.on_failure).
        type: str
        choices:
          - revert
          - pause
      deadline:
        description:
          - See O(update.deadline).
        type: raw
      soak:
        description:
          - See O(update.soak).
        type: raw
  retry_failed:
    description:
      - Whether to try once more what has failed on this host before and was reverted. If not, the same definitions are refused at once.
        That is for runs that nobody watches.
    type: bool
    default: true
  take_over:
    description:
      - Whether processes of the same names that belong to another project become those of O(project). They are not restarted for it.
    type: bool
    default: false
  wait:
    description:
      - Whether to wait until every instance is up. If not, the result tells what has been begun.
    type: bool
    default: true
  secrets:
    description:
      - Not for tasks. The action plugin takes the C(secrets) out of the definitions and hands them over in this option, encoded.
    type: str
seealso:
  - module: pm3.fleet.agent
  - module: pm3.fleet.process
  - module: pm3.fleet.process_info
  - plugin: pm3.fleet.instances
    plugin_type: callback
"""

EXAMPLES = r"""
- name: The shop runs as described
  pm3.fleet.processes:
    src: pm3.toml
    project: shop
    chdir: /srv/shop/current
  become: true

- name: The same, from a template, with the overlay env_prod
  pm3.fleet.processes:
    src: pm3.toml.j2
    template: true
    project: shop
    overlay: prod
    label: "{{ shop_version }}"
  become: true

- name: Definitions as data
  pm3.fleet.processes:
    project: metrics
    definitions:
      exporter:
        command: /usr/bin/exporter --port 9100
        instances: 2
        env:
          LEVEL: "3"
        secrets:
          TOKEN: "{{ vault_exporter_token }}"
        readiness_check: http://127.0.0.1:9100/ready
  become: true

- name: What would change?
  pm3.fleet.processes:
    src: pm3.toml
    project: shop
    chdir: /srv/shop/current
  become: true
  check_mode: true
  diff: true

- name: Restart two processes of the shop
  pm3.fleet.processes:
    src: pm3.toml
    project: shop
    chdir: /srv/shop/current
    state: restarted
    only: [web, worker]
  become: true

- name: Two instances at a time, each replacement before the old one ends
  pm3.fleet.processes:
    src: pm3.toml
    project: shop
    chdir: /srv/shop/releases/42
    label: "42"
    update:
      order: start_first
      max_surge: 2
      deadline: 2m
  become: true

- name: Back to what ran before
  pm3.fleet.processes:
    project: shop
    rollback_to: "41"
  become: true

- name: Away from release 42, on the hosts that are there already
  pm3.fleet.processes:
    project: shop
    rollback_from: "42"
  become: true

- name: The shop is gone from this host
  pm3.fleet.processes:
    project: shop
    state: absent
  become: true
"""

RETURN = r"""
project:
  description: The project.
  returned: always
  type: str
  sample: shop
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
  description:
    - One row for each instance, those that did not change included, in the order in which they were changed.
    - In check mode RV(instances[].name), RV(instances[].action), RV(instances[].changed), RV(instances[].changes) and
      RV(instances[].reason) are those of the run; counters and the last exit are those of now.
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
    action:
      description: >-
        What was done: V(none), V(created), V(started), V(updated) (while it ran on), V(restarted) (asked for), V(rolled) (replaced,
        because its definition changed), V(reloaded) (asked for), V(stopped), V(removed), V(reverted) (replaced, and then what it was
        before came back), V(failed), or V(skipped) (another one had failed before its turn came).
      type: str
      sample: rolled
    changed:
      description: Whether anything was done.
      type: bool
      sample: true
    status:
      description: V(online), V(starting), V(unhealthy), V(stopped) or V(errored).
      type: str
      sample: online
    pid:
      description: The process id, V(null) if it does not run.
      type: int
      sample: 4711
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
    last_exit:
      description: >-
        How it ended the last time, with secrets masked. V(null) if it never did, or if it has been replaced since (rolled, reloaded).
      type: dict
      contains:
        cause:
          description: >-
            V(exit), V(signal), V(oom) (ended by the kernel, for want of memory), V(spawn) (it could not be started, or its C(pre_start)
            failed), V(user) (stopped on purpose), V(memory) (above C(max_memory)), V(watch), V(cron), V(probe) (its C(liveness_check)
            failed), or V(unknown) (it ended unseen, while no agent ran).
          type: str
          sample: exit
        code:
          description: The exit code, V(null) if there is none.
          type: int
          sample: 3
        signal:
          description: The number of the signal that ended it, V(null) if none did.
          type: int
          sample: 9
        message:
          description: The same in words.
          type: str
          sample: exited with code 3
        at:
          description: When, in seconds since the epoch.
          type: float
          sample: 1793000000.0
        log_tail:
          description: >-
            If it ended badly, the last lines that it had written to stderr, or if there were none, to stdout.
          type: list
          elements: str
          sample: ["Traceback (most recent call last):", "KeyError: 'PORT'"]
    reason:
      description: Why it was changed, or why that failed, in words.
      type: str
      sample: "instances: 4 -> 5"
    changes:
      description: The fields of its definition that changed. Secrets are masked.
      type: list
      elements: dict
      contains:
        field:
          description: The field, or the key in a table.
          type: str
          sample: env.PORT
        before:
          description: The value before, V(null) if there was none.
          type: raw
          sample: "8080"
        after:
          description: The value after, V(null) if there is none.
          type: raw
          sample: "8081"
        effect:
          description: What the change costs the instance, V(none), V(hot) or V(restart).
          type: str
          sample: restart
    log_tail:
      description: The last lines of its output, if it failed.
      type: list
      elements: str
      sample: []
    seconds:
      description: How long its change took. V(null) if nothing was done.
      type: float
      sample: 1.3
summary:
  description: How many instances are as they were, were changed, failed, and were skipped.
  returned: always
  type: dict
  contains:
    ok:
      description: Instances that were as described already.
      type: int
      sample: 5
    changed:
      description: Instances that were changed.
      type: int
      sample: 4
    failed:
      description: Instances that could not be changed.
      type: int
      sample: 0
    skipped:
      description: Instances whose change was not begun, because that of another one had failed.
      type: int
      sample: 0
report:
  description: Ready lines for people, one for each instance. The callback P(pm3.fleet.instances#callback) shows them.
  returned: always
  type: list
  elements: str
  sample:
    - "db          ok         online"
    - "web:0       rolled     online     cwd: \"/srv/shop/41\" -> \"/srv/shop/42\""
problems:
  description: Everything that is wrong with the definitions.
  returned: when the definitions cannot be used
  type: list
  elements: dict
  contains:
    file:
      description: The file.
      type: str
      sample: pm3.toml
    table:
      description: The name of the process.
      type: str
      sample: web
    field:
      description: The field.
      type: str
      sample: instances
    message:
      description: What is wrong, and what was expected.
      type: str
      sample: expected a whole number or "max", found a string
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pm3.fleet.plugins.module_utils import _processes


def main() -> None:
    module = AnsibleModule(argument_spec=_processes.OPTIONS, supports_check_mode=True, **_processes.RULES)
    _processes.run(module)


if __name__ == "__main__":
    main()
