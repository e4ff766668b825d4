# Every target sets up what it needs. `make` alone lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The domains that have a sample; that of a domain of messages is streamed to its topic.
DEFS := retail_assets/defs
DOMAINS := $(patsubst $(DEFS)/%/sample.py,%,$(sort $(wildcard $(DEFS)/*/sample.py)))
# Bytecode is written once, at installation: without it every start pays seconds.
unexport PYTHONDONTWRITEBYTECODE

RUNTIME := $(VENV)/.runtime-installed
DEVELOPMENT := $(VENV)/.development-installed

.PHONY: help demo test test-live dev lint definitions format bench docs pins clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(RUNTIME) ## Install, generate samples, run every domain, print what landed where
	@$(foreach domain,$(DOMAINS),$(BIN)/retail-assets sample $(domain) \
	  && $(BIN)/retail-assets run $(domain) \
	    $(if $(wildcard $(DEFS)/$(domain)/messages.py),--stream sample) &&) true

test: $(DEVELOPMENT) ## Run the whole test suite, but for what needs a server
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not live" $(PYTEST_ARGS)

test-live: $(DEVELOPMENT) ## Run what needs a server, on emulators that start and stop with it
	@trap '.ci/servers stop' EXIT; trap 'exit 130' INT TERM; \
	  PYTHON=$(PYTHON) .ci/servers start && $(BIN)/python -m pytest -m live -n 0 -ra $(PYTEST_ARGS)

dev: $(RUNTIME) ## Start Dagster's UI and daemon on localhost:3000
	@$(BIN)/retail-assets dev

lint: $(DEVELOPMENT) ## Check style, types, import arrows, dbt's sources and SQL
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m retail_assets.defs.marts.sources --check
	cd dbt_project && ../$(BIN)/sqlfluff lint --disable-progress-bar .

definitions: export DG_CLI_CONFIG := .ci/dg.toml
definitions: $(DEVELOPMENT) ## Have dg check the definitions and list them
	$(BIN)/dg check toml
	$(BIN)/dg check defs
	$(BIN)/dg list defs

format: $(DEVELOPMENT) ## Format Python and SQL, and write dbt's sources by the contracts
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python -m retail_assets.defs.marts.sources
	cd dbt_project && ../$(BIN)/sqlfluff fix --disable-progress-bar .

bench: $(DEVELOPMENT) ## Measure against bare DuckDB (BENCH_ARGS=--quick for one repetition)
	$(BIN)/python -m retail_assets_tests.benchmarks $(BENCH_ARGS)

docs: $(RUNTIME) ## Generate dbt's documentation under .retail/dbt/docs
	$(BIN)/retail-assets dbt docs generate

pins: ## Resolve the ranges of pyproject.toml anew into the hashed requirements
	$(PYTHON) -m venv $(VENV)/.pins && $(VENV)/.pins/bin/pip install --quiet uv
	$(VENV)/.pins/bin/uv pip compile --universal --python-version 3.11 --generate-hashes \
	  --strip-extras --no-annotate --no-header --quiet pyproject.toml -o requirements.txt
	$(VENV)/.pins/bin/uv pip compile --universal --python-version 3.11 --generate-hashes \
	  --strip-extras --no-annotate --no-header --quiet --group dev -c requirements.txt \
	  pyproject.toml -o requirements-dev.txt
	$(VENV)/.pins/bin/uv pip compile --universal --python-version 3.11 --generate-hashes \
	  --strip-extras --no-annotate --no-header --quiet .ci/emulators.in -o .ci/emulators.txt

clean: ## Remove the environment and all local state
	rm -rf $(VENV) .retail .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	rm -rf build *.egg-info dbt_project/target dbt_project/logs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; \
	  sys.exit(0 if (3, 11) <= v < (3, 14) else f"Python {v[0]}.{v[1]} found; 3.11 to 3.13 needed")'
	$(PYTHON) -m venv $(VENV)

# --no-deps: the file is complete, and pip refuses extras of dependencies in hash mode.
$(RUNTIME): requirements.txt pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m compileall -q -j 0 $(VENV)/lib retail_assets || true
	@touch $@

$(DEVELOPMENT): requirements-dev.txt $(RUNTIME)
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements-dev.txt
	@touch $@
