# demo | test | test-slow | check: each sets up .venv first, when it is not there or out of date.
#
#   make demo DEMO="--epochs 4 --images 500"     passes options on to `sparse-detr demo`
#   make test TEST="-k coco"                     passes options on to pytest
#   make demo PYTHON=python3.12                  builds .venv with another Python (3.11 or newer)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# The pins reach the isolated build environments too: without that, a build would fetch the newest of everything.
# pip before 25.3 reads PIP_CONSTRAINT there, later ones PIP_BUILD_CONSTRAINT.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_BUILD_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo test test-slow check cuda-check sanitize emulate cuda-sanitize clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       from scratch to detections, with a report in runs/demo/report.html"
	@echo "make test       the tests"
	@echo "make test-slow  the long ones: trainings that are killed, whole demos, jobs on a cluster"
	@echo "make check      format, lint, types, direction of imports"
	@echo "make cuda-check | sanitize | cuda-sanitize    the op's sources and kernels under compilers and sanitizers"
	@echo "make emulate    the op's CUDA kernels on a CPU, under sanitizers, against the formula"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt $(wildcard setup.py) $(wildcard csrc/*.cpp csrc/*.h csrc/cpu/* csrc/cuda/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "sparse-detr needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
		       "Name another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@echo "Setting up $(VENV) with the versions of constraints.txt; the first time takes some minutes."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# Without isolation, so that the op is built against the torch that it will run with, which is fetched once.
	$(BIN)/python -m pip install --quiet "setuptools>=77" torch
	$(BIN)/python -m pip install --quiet --no-build-isolation -e ".[dev]"
	@touch $@

demo: $(STAMP)
	$(BIN)/sparse-detr demo $(DEMO)

test: $(STAMP)
	$(BIN)/pytest -m "not slow" -n logical --maxprocesses 4 --dist loadgroup $(TEST)

test-slow: $(STAMP)
	$(BIN)/pytest -m slow $(TEST)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The CUDA sources for all architectures, warnings as errors; no GPU needed.
cuda-check: $(STAMP)
	@if command -v nvcc > /dev/null; then $(MAKE) --no-print-directory -C csrc cuda-check BIN=$(CURDIR)/$(BIN); \
	else echo "cuda-check: no nvcc here, nothing compiled"; fi

# The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize: $(STAMP)
	$(MAKE) --no-print-directory -C csrc sanitize BIN=$(CURDIR)/$(BIN)

# The CUDA kernels on a CPU, against the formula: memory errors, races, lanes that part ways.
emulate: $(STAMP)
	@if command -v nvcc > /dev/null; then $(MAKE) --no-print-directory -C csrc emulate BIN=$(CURDIR)/$(BIN); \
	else echo "emulate: no nvcc here, whose headers this needs; nothing was run"; fi

# The CUDA kernels under compute-sanitizer; needs a GPU.
cuda-sanitize: $(STAMP)
	compute-sanitizer --tool memcheck --error-exitcode 1 $(BIN)/pytest -m gpu tests/sparse_detr/ops tests/pipelines/bench/op
	compute-sanitizer --tool racecheck --error-exitcode 1 $(BIN)/pytest -m gpu -k fused tests/sparse_detr/ops

clean:
	@# The stamp too: the op is gone with sparse_detr/lib, and only an installation builds it.
	rm -rf $(STAMP) runs build dist sparse_detr/lib .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
