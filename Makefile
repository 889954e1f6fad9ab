# Every target sets up what it needs: `make test` in a fresh clone is enough.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
FILE ?= examples/audio/*.flac
BIN := .venv/bin
READY := .venv/.ready
PARITY_BIN := .venv-parity/bin
PARITY_READY := .venv-parity/.ready
PARITY_REQUIREMENTS := $(wildcard tests/parity/requirements*.txt)
PEERS_BIN := .venv-peers/bin
PEERS_READY := .venv-peers/.ready

.PHONY: help run test parity bench bench-peers lint types format docs clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(READY) ## words arriving live, from the example clips or FILE=yours.mp3
	$(BIN)/pianissimo transcribe --stream --realtime $(FILE)

test: $(READY) ## the quick tests, on the CPU and without a network
	$(BIN)/python -m pytest -q -m "not slow and not gpu and not network"

parity: $(READY) $(PARITY_READY) ## our numbers against the reference implementations, live
	$(BIN)/python -m pytest -q tests/parity/test_live.py tests/parity/test_live_families.py

bench: $(READY) ## speed and word errors on this machine
	BENCH_MINUTES=2 $(BIN)/python bench/offline.py
	$(BIN)/python bench/streaming.py --quick

bench-peers: $(PEERS_READY) ## other engines and their models, 19 GB, for bench/streaming.py
	$(PEERS_BIN)/python bench/peers/make_models.py

lint: $(READY) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## mypy, strict
	$(BIN)/mypy

format: $(READY) ## let ruff rewrite the code
	$(BIN)/ruff check --fix --exit-zero --quiet .
	$(BIN)/ruff format .

docs: $(READY) ## links and examples of README.md and docs/ work
	$(BIN)/python docs/check.py

clean: ## remove environments, caches and build output; runs/ stays
	rm -rf .venv .venv-parity .venv-peers .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# PyTorch comes first and alone: a resolver that sees everything at once may take another one.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

# The reference implementations pin other versions than ours, hence an environment of their own.
$(PARITY_READY): $(PARITY_REQUIREMENTS) pyproject.toml constraints.txt
	@test -n "$(PARITY_REQUIREMENTS)" || { echo "no tests/parity/requirements*.txt" >&2; exit 1; }
	test -x $(PARITY_BIN)/python || $(PYTHON) -m venv .venv-parity
	$(PARITY_BIN)/python -m pip install -q -c constraints.txt torch
	$(PARITY_BIN)/python -m pip install -q $(addprefix -r ,$(PARITY_REQUIREMENTS))
	touch $@

# The other engines of the benchmarks; the parity tests need less.
$(PEERS_READY): bench/peers/requirements.txt constraints.txt
	test -x $(PEERS_BIN)/python || $(PYTHON) -m venv .venv-peers
	$(PEERS_BIN)/python -m pip install -q -c constraints.txt torch
	$(PEERS_BIN)/python -m pip install -q -r bench/peers/requirements.txt
	touch $@
