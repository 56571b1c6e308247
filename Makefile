# Dendrite's commands. `make` alone lists them.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# Tests that share one Ray cluster, which has the machine to itself; the others run on two cores.
ON_RAY := tests/actors tests/serve_apps tests/benchmarks tests/test_examples.py

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format coverage mutants docs dist audit bench readme clean

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Stamps, each as old as the last install: they run again only when pyproject.toml is newer.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e '.[test,dev]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-release: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e '.[test,dev,release]'
	@touch $@ $(VENV)/.installed-dev $(VENV)/.installed

install: $(VENV)/.installed  ## make .venv and install Dendrite into it

demo: $(VENV)/.installed  ## solve 20 Countdown problems by tree search with two workers
	$(BIN)/dendrite solve --task countdown --problems 20 --algorithm mcts --workers 2

test: lint  ## lint, type-check and run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile $(addprefix --ignore=,$(ON_RAY))
	$(BIN)/python -m pytest $(ON_RAY)

lint: $(VENV)/.installed-dev  ## ruff, mypy, and import-linter's contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

format: $(VENV)/.installed-dev  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

coverage: $(VENV)/.installed-dev  ## measure which branches the tests take
	$(BIN)/coverage erase
	$(BIN)/python -m pytest --cov --cov-report=
	$(BIN)/coverage report --include='dendrite/*' --fail-under=90
	$(BIN)/coverage report --include='actors/*,serve_apps/*' --fail-under=80

mutants: $(VENV)/.installed-dev  ## change the KV package line by line, and list what no test notices
	CI=1 $(BIN)/mutmut run
	$(BIN)/mutmut results

dist: $(VENV)/.installed-release  ## build the distributions, and try the wheel outside the checkout
	PYTHON=$(BIN)/python bash .ci/dist

audit: $(VENV)/.installed-release  ## look for known vulnerabilities in what is installed
	PYTHON=$(BIN)/python bash .ci/audit

docs: $(VENV)/.installed  ## build the documentation into build/docs; a warning is an error
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: $(VENV)/.installed-dev  ## measure CPU decoding against transformers, and refresh README's figures
	$(BIN)/python -m benchmarks.decode
	$(BIN)/python -m benchmarks.readme

readme: $(VENV)/.installed-dev  ## write README's figures again from benchmarks/results
	$(BIN)/python -m benchmarks.readme

clean:  ## remove .venv and every cache
	rm -rf $(VENV) build .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache .coverage* htmlcov mutants
