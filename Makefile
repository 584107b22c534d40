# Every target sets up what it needs in .venv and runs from a fresh clone.
#   make demo      the paper's table on real stars with the shipped model, into runs/demo; SEEDS=4: a quick look
#   make experiments   all experiments of docs/experiments.md, into runs/experiments
#   make test      the test suite without the slow and gpu marks; test-all: with slow; test-gpu: on an accelerator
#   make lint      ruff and mypy;  make format: rewrite in place
#   make package   wheel and sdist into dist, and the wheel tried in an empty environment
#   make docs      the documentation site, into build/site; RUN=0: without executing the tutorials
#   make bench     throughput, beside PyTorch, on a GPU where there is one

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= -c constraints.txt
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS)
comma := ,
RUN ?= 1
SEEDS ?= 16
BENCH := bench$(if $(shell command -v nvidia-smi),$(comma)cuda)
INPUTS := pyproject.toml constraints.txt

.PHONY: demo experiments test test-all test-gpu lint format docs package bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed-baselines
	$(BIN)/python -m experiments.main_table --out runs/demo --adapt.seeds $(SEEDS)

experiments: $(VENV)/.installed-baselines
	$(BIN)/python -m experiments.suite

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not slow and not gpu"

test-all: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not gpu"

test-gpu: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m gpu

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(wildcard specjax checkpoints_convert experiments benchmarks website)

format: $(VENV)/.installed-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The script runs from another folder, so that nothing is imported from the checkout.
package: $(VENV)/.installed-package
	rm -rf dist build/try
	$(BIN)/python -m build --outdir dist
	$(PYTHON) -m venv build/try
	build/try/bin/python -m pip install --quiet --disable-pip-version-check --no-compile $(CONSTRAINTS) dist/*.whl
	cd build/try && bin/python ../../.ci/smoke.py

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 SPECJAX_DOCS_RUN=$(RUN) PYTHONPATH=. $(BIN)/mkdocs build

bench: $(VENV)/.installed-$(BENCH)
	$(BIN)/python -m benchmarks

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "specjax needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

# One stamp an extra: `demo` does not wait for torch. Without byte-compiling up front the installation is a third
# shorter; what is imported gets compiled then.
$(VENV)/.installed-%: $(INPUTS) | $(BIN)/python
	$(PIP) --no-compile --editable '.[$*]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
