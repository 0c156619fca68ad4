# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Named points between two steps that a crash may part. Here they do nothing; they are where a test has the agent die.

The tests run a build of the agent in which another file stands in the place of this one (tests/integration/agent/crash_build.py, with
what each point means). So what is shipped has neither the means to end itself nor anything to look up. A point stands where something
outside of our memory has just changed, or is about to; none stands where bytes are moved one piece after the other.
"""

from __future__ import annotations


def reached(name: str) -> None:
    """This agent is at that point. The name is a literal, and at one place only: a test reads them all."""
