# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The option that says how instances are replaced. Private to this collection."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  update:
    description:
      - How instances are replaced when their definition has changed, or with O(state=reloaded).
      - What a definition says of this in its own C(update) counts more.
    type: dict
    suboptions:
      order:
        description:
          - Whether an instance ends before its replacement starts, or after the replacement is up.
        type: str
        choices:
          stop_first: It ends first. This is the default.
          start_first: The replacement is up first. For a moment there are two, which must not want the same port.
      max_unavailable:
        description:
          - How many instances of a process may be down at the same time, as a number or a part such as V(25%). The default is V(1).
        type: raw
      max_surge:
        description:
          - How many instances more than defined there may be at the same time, with O(update.order=start_first), as a number or a
            part such as V(25%). The default is V(1).
        type: raw
      on_failure:
        description:
          - What happens when a replacement does not come up.
        type: str
        choices:
          revert: What was replaced goes back to what it was, and the task fails. This is the default.
          pause: Everything stays as it is at that moment, and the task fails.
      deadline:
        description:
          - How long a step may take, the change of one instance. Seconds, or a time such as V(2m).
        type: raw
      soak:
        description:
          - How long the new instances must then stay up, without a restart or a failed check, before the change has succeeded. If one does
            not, that is a failure like any other. Seconds, or a time such as V(2m). The default is V(0).
        type: raw
      on_scale:
        description:
          - What a change of the number of instances does to those that go on running.
        type: str
        choices:
          keep: Nothing. This is the default.
          roll: They are replaced, as they divide their work by the number of instances.
"""
