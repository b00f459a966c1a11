# What a developer needs, one word each. `make` alone lists them.
# On a machine with nothing but python3 (3.10 or newer), make and git, every target installs first.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
JOBS   ?= 2

# Installed for exactly this pyproject.toml: the name changes with the content, so that neither a new
# checkout's dates nor a second `make` install again.
STAMP  := $(VENV)/.installed-$(shell cksum < pyproject.toml | tr ' ' '-')

# One thread per process: on few cores, JOBS processes of one thread beat one process of many.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all check format types bench clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

install: $(STAMP)  ## create .venv and install controlkit with its development tools

$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || $(PYTHON) -m virtualenv $(VENV)
	@echo "installing into $(VENV); the first time takes some minutes"
	@$(BIN)/python -m pip install --quiet -e ".[dev]"
	@rm -f $(VENV)/.installed-*
	@touch $@

demo: $(STAMP)  ## draw the contact sheet with the embedded models
	$(BIN)/controlkit demo

test: $(STAMP)  ## the quick tests
	@tools/browser.sh
	@$(PYTEST)

test-all: $(STAMP)  ## every test, the slow ones too
	@tools/browser.sh
	@$(PYTEST) --runslow

check: $(STAMP)  ## what a change must pass: format, lint, types, quick tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python tools/typecheck.py
	@$(PYTEST)

format: $(STAMP)  ## let ruff format and mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: $(STAMP)  ## pyright alone
	$(BIN)/python tools/typecheck.py

bench: $(STAMP)  ## every benchmark, one table each
	@for file in benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

clean:  ## remove what tools left behind (not .venv)
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
