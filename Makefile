# Two commands matter: `make demo` and `make test`.  Both set up what they need.

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# An ordinary user's PATH on Debian leaves out where bridge, sysctl and nft are.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin

VENV   := .venv
PYTEST := $(VENV)/bin/python -m pytest
STAMP  := $(VENV)/.setup-done
NATIVE := $(shell find tunnel/native \( -name target -o -name fuzz \) -prune -o -name '*.rs' -print -o -name 'Cargo.toml' -print)
CARGO  := $(shell command -v cargo)
CODE   := overlay tunnel control bench tests

SEEDS        ?= 200
FUZZ_SECONDS ?= 20
ARGS         ?=

.PHONY: help
help: ## print this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The stamp makes a second run quick: pip is asked again only when what is installed may have changed.
$(STAMP): requirements/dev.txt pyproject.toml scripts/virtualenv $(NATIVE)
	@scripts/virtualenv
	@touch $@

.PHONY: setup
setup: $(STAMP) ## install programs and .venv/bin/weft; say what was left out
	@scripts/system-tools
	@test -x $(VENV)/bin/weft || { rm -f $(STAMP); $(MAKE) --no-print-directory $(STAMP); }

.PHONY: demo
demo: setup ## three weft nodes and one of kernel VXLAN in namespaces; pings, throughput, tables
	@$(VENV)/bin/weft demo $(ARGS)

.PHONY: test
test: setup ## every test; those that need root are skipped, with the reason, for everybody else
	@$(if $(CARGO),cd tunnel/native && cargo test --quiet --workspace,echo "left out: the tests in Rust: no cargo")
	@$(PYTEST) -rs $(ARGS)

.PHONY: check
check: setup ## format, lint, types, import contracts, generated documents; format and lint of the Rust
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy $(CODE)
	@$(VENV)/bin/lint-imports
	@$(VENV)/bin/python scripts/generate_docs.py --check
	@$(if $(CARGO),scripts/check-native,echo "left out: the checks in Rust: no cargo")

.PHONY: fuzz
fuzz: setup ## every fuzz target, in Python and in Rust, for FUZZ_SECONDS (20) each
	@FUZZ_SECONDS=$(FUZZ_SECONDS) scripts/fuzz $(ARGS)

.PHONY: sim
sim: setup ## the long simulations, SEEDS (200) seeds each, and as root the long tests of real pools
	@SEEDS=$(SEEDS) $(PYTEST) -rs -m long_sim --timeout 0 tests/sim tests/interop $(ARGS)

.PHONY: history
history: setup ## measure this version for bench/history, README and docs/plots (RECORD=results/…: take that)
	@scripts/bench-history

.PHONY: compose-bench
compose-bench: setup ## measure between containers (SUITE=quick|rungs|…); needs docker, no registry
	@bench/compose/up bench

.PHONY: compose-interop
compose-interop: setup ## a kernel VXLAN and a Flannel node beside weft, in containers
	@bench/compose/up interop

.PHONY: docs
docs: setup ## write the generated documents again
	@$(VENV)/bin/python scripts/generate_docs.py

.PHONY: requirements
requirements: $(STAMP) ## pin the dependencies again (UPGRADE=1: take newer versions)
	@UPGRADE=$(UPGRADE) scripts/pin-requirements

.PHONY: wheel
wheel: setup ## dist/weft-*.whl
	@$(VENV)/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	@ls dist/*.whl

.PHONY: clean
clean: ## remove everything the other targets made, .venv included
	rm -rf $(VENV) build dist *.egg-info tests/artifacts .mypy_cache .ruff_cache .pytest_cache .hypothesis \
	    .import_linter_cache tunnel/native/target tunnel/_native*.so
	find overlay tunnel control bench tests -name __pycache__ -prune -exec rm -rf {} +
