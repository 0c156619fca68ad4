#!/usr/bin/env bash
# Something among real hosts: hosts up, it, hosts down again, whatever happens in between.
#   tests/tools/fleet.sh -k reboot           the fleet tests; arguments go to pytest
#   tests/tools/fleet.sh --stay -k reboot    the same on the hosts that are up, one file after the other, and they stay up
#   tests/tools/fleet.sh --scale 100         what a run over that many hosts costs
set -eu

python=.venv/bin/python
hosts() { "$python" tests/fleet/hosts.py "$@"; }

if ! hosts check; then
    echo "These reasons keep the fleet tests from running here." >&2
    exit 1
fi
if [ "${1:-}" = --stay ]; then
    shift
    workers=()
else
    trap 'hosts down' EXIT
    # Most of a test is waiting. So two files are tested at a time, each among hosts of its own.
    workers=(-n 2 --dist loadfile --no-loadscope-reorder) # the longest are among the first by name
fi
if [ "${1:-}" = --scale ]; then
    hosts up "$2"
    hosts run -- "$python" tests/benchmarks/fleet.py
    exit
fi
hosts wheels # from here, because the tests are in the network of the hosts

# The collection reaches pytest-ansible through ANSIBLE_COLLECTIONS_PATH; addopts turns that plugin off for all other tests.
"$python" -m pytest -o addopts="--import-mode=importlib --strict-markers" --ansible-unit-inject-only \
    "${workers[@]}" tests/fleet "$@"
