# Every target sets up its environment: `make test` works in a fresh clone.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
FILE ?= examples/audio/*.flac
FUZZ_MINUTES ?= 10
JOBS ?= 2
BIN := .venv/bin
READY := .venv/.ready
PARITY_BIN := .venv-parity/bin
PARITY_READY := .venv-parity/.ready
PARITY_REQUIREMENTS := $(wildcard tests/parity/requirements*.txt)
PEERS_BIN := .venv-peers/bin
PEERS_READY := .venv-peers/.ready
CLIENTS_READY := $(patsubst tests/clients/requirements-%.txt,.venv-clients/%/.ready,$(wildcard tests/clients/requirements-*.txt))

.PHONY: help run test parity clients scale fuzz bench quietbench bench-peers lint types format docs clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(READY) ## live words from the example clips, or from FILE=yours.mp3
	$(BIN)/pianissimo transcribe --stream --realtime $(FILE)

# The tests of a file share servers and models, so a file stays in one process.
test: $(READY) ## fast tests, on the CPU and offline, in JOBS=2 processes
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile -m "not slow and not gpu and not network and not scale"

parity: $(READY) $(PARITY_READY) ## compare numerics with the reference implementations
	$(BIN)/python -m pytest -q tests/parity/test_live.py tests/parity/test_live_families.py \
	    tests/parity/test_live_stored.py

bench: $(READY) ## speed and word error rates on this machine
	BENCH_MINUTES=2 $(BIN)/python bench/offline.py
	$(BIN)/python bench/streaming.py --quick

quietbench: $(READY) ## update the table in docs/quiet-speech.md; SPEECH=DIR of clean speech
	$(BIN)/pianissimo quietbench $(if $(SPEECH),--speech $(SPEECH)) -o runs/quietbench --page docs/quiet-speech.md

bench-peers: $(PEERS_READY) ## install other engines and their models for bench/streaming.py; 19 GB
	$(PEERS_BIN)/python bench/peers/make_models.py

clients: $(READY) $(CLIENTS_READY) ## test third-party clients and the TypeScript client; 1 GB, needs npm
	cd clients/typescript && npm install --no-audit --no-fund && npm run build
	$(BIN)/python -m pytest -q tests/clients tests/e2e/serve/test_typescript_client.py

scale: $(READY) ## several servers: kills under load, a proxy, the Helm chart; 10 minutes
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[scale]'
	$(BIN)/python -m pytest -q -s tests/e2e/deploy
	$(BIN)/python -m pytest -q -s -m scale tests/e2e/serve

fuzz: $(READY) ## random requests, messages and recordings; FUZZ_MINUTES=10 of each
	$(BIN)/python -m pip install -q -r tests/fuzz/requirements.txt
	FUZZ=20 FUZZ_MINUTES=$(FUZZ_MINUTES) $(BIN)/python -m pytest -q tests/fuzz
	$(BIN)/python tests/fuzz/decoder_target.py runs/fuzz/decoder \
	    -max_total_time=$$(( 60 * $(FUZZ_MINUTES) )) -timeout=60 -rss_limit_mb=2048

lint: $(READY) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## mypy, strict
	$(BIN)/mypy

format: $(READY) ## rewrite the code with ruff
	$(BIN)/ruff check --fix --exit-zero --quiet .
	$(BIN)/ruff format .

docs: $(READY) ## build the site in build/site; check links, examples and commands of all pages
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	$(BIN)/python docs/check.py

clean: ## remove environments, caches and build output; runs/ stays
	rm -rf .venv .venv-parity .venv-peers .venv-clients .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# PyTorch is installed first and alone: a resolver that sees all packages may select another one.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

# The reference implementations pin other versions, hence a separate environment.
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

# Third-party clients pin conflicting versions: one environment each.
.venv-clients/%/.ready: tests/clients/requirements-%.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q -r $<
	touch $@
