# Every target sets up what it needs; `make` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
# Corral without the developers' tools; a developers' environment has it too.
USABLE := $(or $(wildcard $(READY)),$(VENV)/.usable)
LATEST := .venv-latest

.PHONY: help install lock gen go-module baseline fmt check check-latest unit test e2e bench bench-full demo prove walk wheel clean

help: ## List the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

install: $(READY) ## Make the virtual environment with everything for users and developers

$(READY): pyproject.toml sdk/python/pyproject.toml requirements/developers.lock scripts/bootstrap.sh
	@scripts/bootstrap.sh $(VENV) developers
	@touch $@

$(VENV)/.usable: pyproject.toml sdk/python/pyproject.toml requirements/users.lock scripts/bootstrap.sh
	@scripts/bootstrap.sh $(VENV) users
	@touch $@

lock: $(READY) ## Renew the lock files with the newest versions that pyproject.toml allows
	scripts/lock.sh $(VENV)

gen: $(READY) ## Regenerate what is generated: the stubs from protos/, the tables of the README
	$(BIN)/python scripts/gen_protos.py
	$(BIN)/python scripts/gen_readme.py

go-module: $(READY) ## Set the Go module of the generated Go code: MODULE=example.org/you/corral
	@test -n "$(MODULE)" || { echo "name it: make go-module MODULE=example.org/you/corral"; exit 1; }
	echo "$(MODULE)" >protos/go_module.txt
	$(MAKE) gen baseline

baseline: $(READY) ## Take the contracts as they are for the ones that later changes must not break
	$(BIN)/buf build --exclude-source-info --path protos/corral -o protos/baseline.binpb

fmt: $(READY) ## Format code and protos
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/buf format -w --path protos/corral

check: $(READY) ## Everything that holds without running the program: format, lint, types, imports, protos
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m scripts.structure
	$(BIN)/python -m scripts.plain_english
	$(BIN)/buf lint
	$(BIN)/buf format -d --exit-code --path protos/corral
	$(BIN)/buf breaking --against protos/baseline.binpb
	$(BIN)/python scripts/gen_protos.py --check
	$(BIN)/python scripts/gen_readme.py --check
	$(BIN)/python scripts/check_versions.py

unit: $(READY) ## The tests that start no service, in under a minute
	$(BIN)/pytest tests/unit tests/contract -n auto --maxprocesses 4

check-latest: $(READY) ## Unit tests with the newest versions that pyproject.toml allows, in an environment of their own
	scripts/check_latest.sh $(VENV) $(LATEST)

test: $(READY) ## All tests, side by side: most of their time is waiting for processes to start
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile

e2e: $(READY) ## The tests of the whole, with real models
	$(BIN)/pytest tests/e2e

bench: $(READY) ## The benchmarks in short, about five minutes: paths side by side, figures beside goals
	$(BIN)/python -m benchmarks

bench-full: $(READY) ## The benchmarks in full, about 50 minutes (PEERS=1: other servers too)
	$(BIN)/python -m benchmarks --full $(if $(PEERS),--peers)

prove: $(READY) ## Break each invariant in a copy, and see that a test notices (ONLY=3: those of one)
	$(BIN)/python -m scripts.break_rules $(if $(ONLY),--only $(ONLY))

walk: $(READY) ## Record the walks of a call through the modules (ONLY=cold: list one; CHECK=1: check the goals)
	$(BIN)/python -m scripts.walk $(if $(ONLY),--list $(ONLY)) $(if $(CHECK),--check)

demo: $(USABLE) ## Install a real language model, load it, and see it answer
	@$(BIN)/python scripts/demo.py

wheel: $(READY) ## Build the suite and the SDK and try each in an empty environment
	scripts/check_wheel.sh $(VENV)

clean: ## Remove what the other targets made
	rm -rf $(VENV) $(LATEST) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
