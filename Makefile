# Every target makes .venv first if it is missing or older than the lock.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help install demo dev test lint format generate lock bench

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  \033[1m%-10s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/.installed ## make .venv with everything, at the versions of requirements.lock

.venv/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python >= 3.11 is needed; name one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

demo: install ## a cluster on this machine, the quickstart in it, and its answer
	@scripts/demo.sh

dev: install ## the local control plane in the foreground; Ctrl-C ends it
	@$(BIN)/dalang dev up

test: install ## every test; the first time it builds the Kubernetes binaries (about 6 minutes)
	$(BIN)/python -m dalang_cli.dev.binaries
	$(BIN)/pytest

lint: install ## style, types, layers, generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy && $(BIN)/mypy tests
	$(BIN)/lint-imports
	$(BIN)/python -m dalang_api.crdgen --check

format: install ## let ruff format and mend what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

generate: install ## crds/*.yaml from the models in crds/dalang_api
	$(BIN)/python -m dalang_api.crdgen

lock: install ## pin the newest versions that pyproject.toml allows (needs uv)
	uv pip compile pyproject.toml --all-extras --group dev --universal --generate-hashes --no-emit-index-url --no-header --quiet --upgrade -o requirements.lock

bench: install ## measure against a bare Temporal workflow; prints and writes bench/results.json
	$(BIN)/python -m bench
