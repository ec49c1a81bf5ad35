# make demo   train and test DAPSAM on synthetic images: tables and plots in a few minutes, no download, no GPU
# make test   run the tests; make test-fast runs those that take seconds: after every edit; make test-all the long ones too
# make lint   ruff and mypy
# make site   the boards of the scores that come with dgbench, as pages in site/: docs/site.md
# Each sets up what it needs in .venv first, and again only when pyproject.toml or constraints.txt changed.

SHELL := /bin/bash
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	&& echo $$p && break; done)
BIN := .venv/bin
# Runs and tests share a machine as processes of one thread each.
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo site test test-fast test-all lint clean

demo: .venv/.demo
	$(BIN)/dgbench run --method dapsam --task phantom

site: .venv/.demo
	$(BIN)/dgbench site --results results --out site

# The cluster's tests come last and alone: its daemons take a node that does not answer within seconds for dead.
test: SELECTED := -m "not thorough"
test test-all: .venv/.test
	$(BIN)/python -m pytest -n 2 --dist worksteal --ignore tests/running/test_slurm.py $(SELECTED)
	$(BIN)/python -m pytest tests/running/test_slurm.py

test-fast: .venv/.test
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

lint: .venv/.lint
	$(BIN)/ruff check .
	$(BIN)/mypy

.venv/.test: EXTRA := [test]
.venv/.lint: EXTRA := [dev]
.venv/.demo .venv/.test .venv/.lint: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.11 to 3.13 with venv: install one, or make PYTHON=/path/to/it"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv --clear .venv
	@echo "installing dgbench$(EXTRA) into .venv (torch is large: the first time takes minutes)"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.$(EXTRA)'
	@touch $@

clean:
	rm -rf .venv build *.egg-info
