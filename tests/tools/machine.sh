#!/usr/bin/env bash
# The tests on the emulated machine: it is booted, pytest, and it ends, whatever happens in between. Arguments go to pytest.
set -eu

python=.venv/bin/python
emulated() { "$python" tests/machine/emulated.py "$@"; }

if ! emulated check; then
    echo "These reasons keep the emulated machine from running here." >&2
    exit 1
fi
trap 'emulated down' EXIT
emulated up

"$python" -m pytest tests/machine "$@"
