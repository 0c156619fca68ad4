#!/usr/bin/env bash
# The fleet tests: hosts up, pytest among them, hosts down again, whatever happens in between.
# Arguments go to pytest: tests/tools/fleet.sh -k reboot
set -eu

python=.venv/bin/python
hosts() { "$python" tests/fleet/hosts.py "$@"; }

if ! hosts check; then
    echo "These reasons keep the fleet tests from running here." >&2
    exit 1
fi
trap 'hosts down' EXIT
hosts up

# The collection reaches pytest-ansible through ANSIBLE_COLLECTIONS_PATH; addopts turns that plugin off for all other tests.
hosts run -- "$python" -m pytest -o addopts="--import-mode=importlib --strict-markers" --ansible-unit-inject-only tests/fleet "$@"
