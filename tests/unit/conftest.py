"""What all unit tests share."""

from __future__ import annotations

import hypothesis
from ansible_collections.pm3.fleet.tests.unit.examples import examples

# How long an example takes says something of the machine, and nothing of the code.
hypothesis.settings.register_profile("any machine", deadline=None, max_examples=examples())
hypothesis.settings.load_profile("any machine")
