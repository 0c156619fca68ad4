# pm3.fleet: everything a contributor does, one target each. Start with `make check`.
#
# It needs Python 3.11 or newer, git and make. Everything made on the way lives in .venv/ and .cache/.
#   ARGS="…"   is passed on to the tool: make unit ARGS="-k plan -x", make sanity ARGS="--test validate-modules"

SHELL  := bash
.SHELLFLAGS := -o pipefail -c
BIN    := .venv/bin
PYTHON := $(BIN)/python
PYTEST := $(PYTHON) -m pytest
ARGS   :=
N      := 3
MINUTES := 5

# Ansible finds this checkout as pm3.fleet through a link (tools that need a real folder: tests/tools/run_ansible_test.py).
COLLECTIONS := .cache/collections
CHECKOUT    := $(COLLECTIONS)/ansible_collections/pm3/fleet
SOURCES     := plugins tests
export ANSIBLE_COLLECTIONS_PATH := $(CURDIR)/$(COLLECTIONS)
export PATH := $(CURDIR)/$(BIN):$(PATH)


.PHONY: help venv quickstart quickstart-down check format types unit pythons integration integration-agent \
        integration-modules sanity lint docs fleet fleet-tests machine machine-down soak fleet-scale fleet-up fleet-down test bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- a Python of our own ---------------------------------------------------------------------------------------------

venv: .venv/tests.stamp ## .venv with everything the tests need, made with the newest Python that works

# The newest Python decides the newest ansible-core that pip can choose.
.venv/bin/python:
	@tests/tools/pythons.sh | { \
	    while read -r version python; do \
	        case $$version in 3.1[1-4]) "$$python" -m venv --clear .venv && exit 0 ;; esac; \
	    done; \
	    echo "No Python from 3.11 to 3.14 that can make a venv was found." >&2; exit 1; }

.venv/run.stamp: requirements.txt | .venv/bin/python $(CHECKOUT)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check 'ansible-core>=2.19' -r requirements.txt
	@touch $@

.venv/tests.stamp: tests/requirements.txt .venv/run.stamp
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	@touch $@

$(CHECKOUT):
	@mkdir -p $(@D) && ln -s ../../../.. $@

# --- try it ----------------------------------------------------------------------------------------------------------

PLAY := ANSIBLE_CALLBACKS_ENABLED=pm3.fleet.instances ANSIBLE_LOCALHOST_WARNING=False \
        ANSIBLE_INVENTORY_UNPARSED_WARNING=False $(BIN)/ansible-playbook

quickstart: .venv/run.stamp ## an agent of your own on this machine, with an example project; no root
	$(PLAY) playbooks/quickstart.yml $(ARGS)

quickstart-down: .venv/run.stamp ## take it away again
	$(PLAY) playbooks/quickstart.yml -e quickstart_state=absent $(ARGS)

# --- on every change -------------------------------------------------------------------------------------------------

check: .venv/tests.stamp ## format, lint, types and unit tests: seconds
	$(BIN)/ruff format --check --output-format concise $(SOURCES)
	$(BIN)/ruff check --output-format concise $(SOURCES)
	@$(MAKE) --no-print-directory types unit

format: .venv/tests.stamp ## let ruff format the code and mend what it can
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

# The plugins under their full name; the messages name them by their path.
types: .venv/tests.stamp
	$(BIN)/mypy $(CHECKOUT)/plugins tests/tools tests/fleet/hosts.py tests/machine/emulated.py | sed 's|^$(CHECKOUT)/||'

unit: .venv/tests.stamp ## unit tests
	$(PYTEST) -q -n auto tests/unit $(ARGS)

# --- before a merge --------------------------------------------------------------------------------------------------

ANSIBLE_TEST := $(PYTHON) tests/tools/run_ansible_test.py

sanity: .venv/tests.stamp ## ansible-test sanity: all of its tests, nothing ignored
	$(ANSIBLE_TEST) sanity $(ARGS)

lint: .venv/tests.stamp ## ansible-lint, profile production
	$(BIN)/ansible-lint $(ARGS)

docs: .venv/tests.stamp ## lint the changelog fragments and the documentation of all plugins
	$(BIN)/antsibull-changelog lint
	$(BIN)/antsibull-docs lint-collection-docs --plugin-docs --validate-collection-refs all .

pythons: .venv/tests.stamp ## unit tests on every Python of this machine, from 3.9 on
	$(ANSIBLE_TEST) units --venv $(ARGS)

integration: integration-agent integration-modules ## a real agent, and the modules against it

integration-agent: .venv/tests.stamp
	$(PYTEST) -n 4 tests/integration/agent $(ARGS)

integration-modules: .venv/tests.stamp
	$(ANSIBLE_TEST) integration $(ARGS)

fleet: .venv/tests.stamp ## tests against real hosts: systemd, sshd, reboots (root, Debian-like)
	tests/tools/fleet.sh $(ARGS)

fleet-tests: .venv/tests.stamp ## the same on the hosts of `make fleet-up`, which stay: make fleet-tests ARGS="-k reboot -x"
	tests/tools/fleet.sh --stay $(ARGS)

machine: .venv/tests.stamp ## limits, on an emulated machine with a kernel of its own (root, Debian-like, x86_64)
	tests/tools/machine.sh $(ARGS)

machine-down: .venv/tests.stamp
	$(PYTHON) tests/machine/emulated.py down

soak: .venv/tests.stamp ## a hundred instances and an agent that dies all the time, for MINUTES=5, then all promises checked
	PM3_SOAK_MINUTES=$(MINUTES) tests/tools/fleet.sh -n 0 -s -k soak $(ARGS)

fleet-scale: N := 100
fleet-scale: .venv/tests.stamp ## what a run over N=100 such hosts costs that changes nothing, beside ping
	tests/tools/fleet.sh --scale $(N)

fleet-up: .venv/tests.stamp ## start N=3 such hosts and leave them running
	$(PYTHON) tests/fleet/hosts.py up $(N)

fleet-down: .venv/tests.stamp ## end them
	$(PYTHON) tests/fleet/hosts.py down

test: .venv/tests.stamp ## everything above, with a table at the end; REQUIRE=fleet: fail where that cannot run
	@$(PYTHON) tests/tools/stages.py $(addprefix --require=,$(REQUIRE))

bench: .venv/tests.stamp ## our figures beside the bars of the design
	@$(PYTHON) tests/benchmarks $(ARGS)

# -----------------------------------------------------------------------------------------------------------------------

clean: ## remove everything that was made here
	@if [ -x $(PYTHON) ]; then $(PYTHON) tests/fleet/hosts.py down; $(PYTHON) tests/machine/emulated.py down; fi
	rm -rf --one-file-system .venv .cache .ansible .hypothesis .mypy_cache .nox tests/output
