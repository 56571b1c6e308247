# Dendrite's commands. `make` alone lists them.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format bench readme clean

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Two stamps, each as old as the last install: they run again only when pyproject.toml is newer.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e '.[test,dev]'
	@touch $@ $(VENV)/.installed

install: $(VENV)/.installed  ## make .venv and install Dendrite into it

demo: $(VENV)/.installed  ## solve 20 Countdown problems by tree search with two workers
	$(BIN)/dendrite solve --task countdown --problems 20 --algorithm mcts --workers 2

test: lint  ## lint, type-check and run the tests
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-dev  ## measure CPU decoding against transformers, and refresh README's figures
	$(BIN)/python -m benchmarks.decode
	$(BIN)/python -m benchmarks.readme

readme: $(VENV)/.installed-dev  ## write README's figures again from benchmarks/results
	$(BIN)/python -m benchmarks.readme

clean:  ## remove .venv and every cache
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
