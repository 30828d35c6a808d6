# Everything below installs what it needs into .venv first; a second run finds it there.

PYTHON ?= python3
PYTEST_ARGS ?=
SCHEDULES ?= 100
# Files with tests on Ray that run at once, each with a Ray of its own; two need four cores.
RAY_AT_ONCE ?= 1
SPHINX_ARGS ?=

BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Files with tests on Ray; those that PYTEST_ARGS names, if it names some.
RAY_ALL = $(shell grep -l 'mark.ray' tests/test_*.py)
RAY_TESTS = $(or $(filter tests/%,$(PYTEST_ARGS)),$(RAY_ALL)) $(filter-out tests/%,$(PYTEST_ARGS))
PYTEST := $(BIN)/python -m pytest --durations=10
BENCHMARKS := $(sort $(wildcard tests/benchmarks/bench_*.py))

# Stamps: what has been installed from the present pyproject.toml and constraints.txt.
RUNTIME := .venv/.runtime
INSTALLED := .venv/.installed
DOCS := .venv/.docs

# Tests start Python hundreds of times: without its byte code each start compiles what it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help env demo test unit compiled ray chaos lint format types check bench audit docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(INSTALLED) ## make .venv with all that development needs

demo: $(RUNTIME) ## label photographs that scikit-image carries; masks, overlays and a report in demo/
	$(BIN)/saff demo --output demo

test: unit compiled ray ## run the tests, except long ones of faults: first those that need no cluster

unit: $(INSTALLED) ## run the tests that need no cluster, in three processes of one thread
	OMP_NUM_THREADS=1 $(PYTEST) -n 3 -m "not ray and not faults and not compiles" $(PYTEST_ARGS) || [ $$? = 5 ] # 5: PYTEST_ARGS selects none of them

compiled: $(INSTALLED) ## run the tests that wait for a compiler: conversion of networks, matting
	OMP_NUM_THREADS=1 $(PYTEST) -m compiles $(PYTEST_ARGS) || [ $$? = 5 ]

ray: $(INSTALLED) ## run the tests on Ray, so many files at once: RAY_AT_ONCE=1
	$(PYTEST) -n $(RAY_AT_ONCE) --dist loadfile -m "ray and not faults" $(RAY_TESTS) || [ $$? = 5 ]

chaos: $(INSTALLED) ## run the long tests of faults, then seeded schedules of them: SCHEDULES=100
	$(BIN)/python -m pytest -m faults $(PYTEST_ARGS)
	$(BIN)/python tests/chaos.py --schedules $(SCHEDULES)

lint: $(INSTALLED) ## check style and formatting, change nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(INSTALLED) ## put style and formatting right
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: $(INSTALLED) ## check types, strictly
	$(BIN)/mypy

check: lint types test ## all that a change must pass

bench: $(INSTALLED) ## run the benchmarks; each prints JSON
	@set -e; for file in $(BENCHMARKS); do $(BIN)/python $$file; done

audit: $(BIN)/python ## look up known vulnerabilities of the versions in constraints.txt, at pypi.org
	@$(PIP_INSTALL) 'pip-audit>=2.9'
	$(BIN)/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt

docs: $(DOCS) ## build docs/_build/html, warnings as errors
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet -b html $(SPHINX_ARGS) docs docs/_build/html
	@echo "open docs/_build/html/index.html"

clean: ## remove .venv, caches and everything built
	rm -rf .venv .hypothesis .mypy_cache .pytest_cache .ruff_cache build demo dist docs/_build docs/generated
	find saff jobs tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "saff needs Python 3.10 or newer as $(PYTHON); with another one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv .venv

$(RUNTIME): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing saff into .venv (one to three minutes the first time)"
	@$(PIP_INSTALL) -e .
	@touch $@

$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing saff and its development tools into .venv (one to three minutes the first time)"
	@$(PIP_INSTALL) -e '.[dev]'
	@# an oracle of the measures, and readers of exports; they ask for another NumPy, Arrow or OpenCV
	@$(PIP_INSTALL) --no-deps pysodmetrics==1.4.2 datumaro==1.13.12 label-studio-sdk==2.1.2
	@touch $(RUNTIME) $@

$(DOCS): $(INSTALLED)
	@echo "installing the documentation tools into .venv"
	@$(PIP_INSTALL) -e '.[docs]'
	@touch $@
