# `make` lists the targets. Everything is installed into .venv, once, and again when one of PACKAGE changes.

VENV := .venv
PEERS := .peers
BIN := $(VENV)/bin
PACKAGE := pyproject.toml setup.py constraints.txt $(wildcard */*.[ch])

# The interpreter that .venv is made with: PYTHON=... if given, else the first of these that runs and is new enough.
CANDIDATES := python3 python3.11 python3.12 python3.13 python3.14 python
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in $(CANDIDATES); do "$$p" -c "$(NEW_ENOUGH)" 2>/dev/null && { echo "$$p"; break; }; done)

# Cards of a test run share the machine, so a big one does not get a worker for every core.
TEST := $(BIN)/python -m pytest -n auto --maxprocesses=8

# Tests that start no processes and wait for no one.
QUICK := not zmq and not shm and not torch and not mesh and not processes and not peer_death and not reporter and not simulate and not traffic and not communicator and not security and not host and not shaped and not fixed_order and not support and not clock and not edges and not mismatch and not disagreement and not inquiry and not multi_ring and not express and not window and not passage

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help train test check conformance support-table tables bench bench-peers validation clean

help: ## this list
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20
	@echo "PYTHON=python3.12 in front chooses the interpreter (3.11 or newer)."

train: $(VENV)/.examples ## 64 cards train a network on handwritten digits
	@$(BIN)/superpod-run -n 64 examples/train_digits.py

test: $(VENV)/.dev ## every test
	@$(TEST)

check: $(VENV)/.dev ## format, lint, types and the fast tests: under a minute
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(TEST) -m "not slow" -k "$(QUICK)" tests/test_architecture.py tests/interconnect tests/collectives

conformance: $(VENV)/.dev ## torch's own tests of torch.distributed, on 2, 3 and 4 cards: some minutes
	@$(BIN)/python tests/conformance/conformance.py

support-table: $(VENV)/.dev ## docs/support.md: what works where, from running it, on gloo too
	@$(BIN)/python tests/collectives/make_support.py

tables: $(VENV)/.dev ## the tables of docs/security.md and docs/hosts.md: attacks and losses, from causing them; as root
	@$(BIN)/python tests/make_tables.py

bench-peers: $(PEERS)/openmpi/.made $(PEERS)/mpich/.made ## Open MPI and MPICH, each in an environment of its own in .peers

bench: $(VENV)/.dev bench-peers ## every figure in README and benchmarks/results, on a quiet machine: about an hour
	@PATH=$(BIN):$$PATH sh benchmarks/all.sh

validation: $(VENV)/.dev ## the model against measured machines: fit a few points, predict the rest
	@$(BIN)/python -m superpod.simulator.validate

clean: ## remove .venv and everything that was built
	rm -rf $(VENV) $(PEERS) build dist src/*.egg-info interconnect/*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.examples: $(PACKAGE) $(VENV)/.made
	@echo "superpod: installing what the examples need"
	@$(BIN)/python -m pip install -q -c constraints.txt -e ".[examples]"
	@touch $@

# Ray's wheels are for fewer Pythons and machines than the rest.
$(VENV)/.dev: $(PACKAGE) $(VENV)/.made
	@echo "superpod: installing what development needs"
	@$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev,bench,examples]"
	@$(BIN)/python -m pip install -q -c constraints.txt -e ".[ray]" \
	  || echo "superpod: Ray cannot be installed here: its test will be skipped" >&2
	@touch $@ $(VENV)/.examples

# An MPI, mpi4py and numpy; superpod is found beside them, and of it the benchmark's ranks need what does with numpy.
$(PEERS)/%/.made: benchmarks/peers/%.txt $(VENV)/.made
	@rm -rf $(@D); echo "superpod: making $(@D)"
	@$(BIN)/python -m venv --without-pip $(@D)
	@$(BIN)/python -m pip --python $(@D)/bin/python install -q -r $<
	@echo $(CURDIR)/src > $$($(@D)/bin/python -c "import site; print(site.getsitepackages()[0])")/superpod.pth
	@touch $@

# A bare Debian python3 cannot put pip into a new environment: then its own pip, or virtualenv, does it.
$(VENV)/.made:
	@"$(PYTHON)" -c "$(NEW_ENOUGH)" 2>/dev/null || { \
	  echo "superpod: PYTHON='$(PYTHON)' must be Python 3.11 or newer; install one, or name it: make PYTHON=/path/to/python3.12" >&2; \
	  exit 1; }
	@rm -rf $(VENV); echo "superpod: making $(VENV) with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv $(VENV) >/dev/null 2>&1 \
	  || { rm -rf $(VENV); "$(PYTHON)" -m virtualenv -q $(VENV) 2>/dev/null; } \
	  || { rm -rf $(VENV); "$(PYTHON)" -m venv --without-pip $(VENV) \
	       && "$(PYTHON)" -m pip --python $(BIN)/python install -q pip 2>/dev/null; } \
	  || { rm -rf $(VENV); \
	       echo "superpod: $(PYTHON) can make no virtual environment: it has neither ensurepip, virtualenv nor pip;" >&2; \
	       echo "          install one of them (Debian: apt-get install python3-venv) or name another: make PYTHON=..." >&2; \
	       exit 1; }
	@touch $@
