# The verbs of this repository. Each works alone in a fresh clone with Python 3.11+ and make.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready
# Tests run in as many processes as there are cores, with one thread each.
JOBS ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)

.PHONY: setup demo test test-fast prove check bench gpu clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt tests/oss-harmony.txt hatch_build.py $(wildcard src/ossia/kernels/cpu/native/*.[ch])
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Ossia needs Python 3.11 or newer; try: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,offline]'
	@$(BIN)/python -m pip install --quiet --no-deps --only-binary :all: --upgrade --target $(VENV)/oss-harmony \
		--requirement tests/oss-harmony.txt || echo "oss-harmony was not installed: its tests will be skipped"
	@touch $(READY)

demo: $(READY)  ## the whole line on a tiny gpt-oss, in a few minutes, without a GPU
	$(BIN)/ossia demo

test: $(READY)  ## all tests that need no GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not cuda" -n $(JOBS) --dist loadfile

test-fast: $(READY)  ## the tests but for the slow ones (tests/slow.txt); says how many it left out
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not cuda and not slow" -n $(JOBS) --dist loadfile

# `make prove parser`: the word behind the verb is the proof's name and no target.
ifeq (prove,$(firstword $(MAKECMDGOALS)))
PROOF := $(wordlist 2,$(words $(MAKECMDGOALS)),$(MAKECMDGOALS))
.PHONY: $(PROOF)
$(PROOF): prove
	@:
endif
prove: $(READY)  ## a large proof in full, resumable: make prove parser | harmony | examples | faults | kills | rehearsal
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m prove $(PROOF) $(OPTIONS)

check: $(READY)  ## formatting, lint, types
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/mypy

bench: $(READY)  ## benchmarks that run on a CPU; JSON in benchmarks/results
	$(BIN)/python -m benchmarks

# Uses the Python that is there (RUN_PYTHON), because GPU machines bring their own torch; and what PYTHONPATH adds to it.
# A warning that only CUDA gives is shown and fails no test, but for Ossia's own that its attention takes the slow form.
RUN_PYTHON ?= python3
ON_GPU = PYTHONPATH=src$${PYTHONPATH:+:$$PYTHONPATH} $(RUN_PYTHON)
gpu:  ## tests and the short benchmark that need CUDA, in minutes; JSON in benchmarks/results
	$(ON_GPU) -m pytest -m cuda -o filterwarnings=default -W 'error:attention on:RuntimeWarning' tests/test_cuda.py
	$(ON_GPU) -m benchmarks --cuda train_step

clean:  ## everything that the other verbs made, but no run
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .hypothesis *.egg-info src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
