# `make` lists the targets. Those marked (root) need `sudo make ...`; `setup` only if it installs.
PYTHON := .venv/bin/python
SOURCES := shoal manager worker engine swarmd swarmctl
# The tests start thousands of processes; each would compile all modules anew.
unexport PYTHONDONTWRITEBYTECODE
# Most tests outside tests/unit wait more than they compute. They run by files, see tests/conftest.py.
JOBS ?= $(shell expr $$(nproc) + 1)
BY_FILE := --maxprocesses 6 --dist loadfile --no-loadscope-reorder
.DEFAULT_GOAL := help
.PHONY: setup demo demo-down check fmt fmt-check lint type imports proto proto-check tidy unit sim test test-linearizability test-names test-powercut test-vm test-zero-loss test-coexistence bench bench-peers clean help

setup: ## Install what is missing from Debian and make .venv
	@tools/setup.sh

demo: setup ## Raise a cluster on this machine with a published web service (root)
	@$(PYTHON) -P tools/demo.py up

demo-down: ## Take the demo's cluster down and leave nothing behind (root)
	@$(PYTHON) -P tools/demo.py down

check: setup fmt-check lint type imports proto-check tidy unit ## Everything that needs no cluster

fmt: ## Format the code
	@$(PYTHON) -m ruff format .

fmt-check: ## Is the code formatted?
	@$(PYTHON) -m ruff format --check .

lint: ## Look for faults and broken rules of style
	@$(PYTHON) -m ruff check .

type: ## Check the types
	@$(PYTHON) -m mypy

imports: ## Check who imports whom
	@.venv/bin/lint-imports

proto: ## Generate shoal/api/v1 and shoal/etcd/v1 from proto/
	@$(PYTHON) tools/proto.py

proto-check: ## Is the generated code up to date?
	@$(PYTHON) tools/proto.py --check

tidy: ## Check the sizes of files and functions, and leftovers
	@$(PYTHON) tools/tidy.py

unit: ## Unit tests
	@$(PYTHON) -m pytest -q -n auto --maxprocesses 8 tests/unit

sim: ## A million steps of the Raft cores in trouble; SEED=n repeats a run
	@$(PYTHON) -m tests.simulation --runs 20 --steps 50000 $(if $(SEED),--seed $(SEED))

test: setup ## All tests (root: without it those that need a kernel are skipped)
	@$(PYTHON) -m pytest -q -n auto --maxprocesses 8 tests/unit
	@$(PYTHON) -m pytest -n $(JOBS) $(BY_FILE) --durations 30 -m 'not alone' tests --ignore tests/unit
	@$(PYTHON) -m pytest --durations 5 -m alone tests --ignore tests/unit

test-linearizability: setup ## Clients against managers in trouble, checked for linearizability; ARGS=... (root)
	@$(PYTHON) -m tests.linearizability --managers 1 --seconds 60 $(ARGS) && $(PYTHON) -m tests.linearizability --managers 3 --seconds 60 --runs 5 $(ARGS)

test-names: setup ## Names asked for in every task while services and nodes change and are cut off; ARGS=... (root)
	@$(PYTHON) -m tests.names $(ARGS) && $(PYTHON) -m tests.names.partition

test-powercut: setup ## Cut the power of 1 and of 3 managers 20 times each; ARGS=... (root)
	@$(PYTHON) -m tests.powercut --managers 1 --cuts 20 $(ARGS) && $(PYTHON) -m tests.powercut --managers 3 --cuts 20 $(ARGS)

test-vm: setup ## Parity, escapes and runtime on control groups version 2, in a virtual machine; TESTS=... ARGS=... (root)
	@$(PYTHON) -P -m tests.vm --timeout 10800 $(ARGS) -- sh -c 'echo "Linux $$(uname -r), control groups: $$(stat -f -c %T /sys/fs/cgroup) $$(cat /sys/fs/cgroup/cgroup.controllers)"; exec $(PYTHON) -m pytest -v --tb=short -o timeout=900 $(or $(TESTS),tests/parity tests/escape tests/integration/runtime)'

test-coexistence: setup ## A lab and a node beside Docker with a swarm of its own, and beside other packet filters (root)
	@SHOAL_COEXISTENCE=all $(PYTHON) -m pytest -v $(ARGS) tests/integration/coexistence

test-zero-loss: setup ## A million requests while a service is changed in every way; ARGS=... (root)
	@$(PYTHON) -m tests.zeroloss $(ARGS)

bench: setup ## Measure, against others where they are installed; ARGS=... is passed on (root)
	@$(PYTHON) -m bench $(ARGS)

bench-peers: ## Install what the measurements compare with (root)
	@tools/bench_peers.sh

clean: ## Remove what was generated, but not .venv and no cluster
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache; find $(SOURCES) tests tools bench -name __pycache__ -prune -exec rm -rf {} +

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
