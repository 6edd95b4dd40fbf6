# make demo: the whole comparison on synthetic faces. make test: lint, types, tests. make torture: kill and resume, longer.
# Each creates .venv first and installs what it needs there. In an environment of your own: pip install -e .
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
.PHONY: demo test torture bench bench-gpu lint install install-dev clean-demo
.DELETE_ON_ERROR:

$(VENV)/.installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		(echo "error: $(PYTHON) is older than Python 3.11; try make PYTHON=python3.12" >&2; exit 1)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info >= (3, 13))' || \
		echo "warning: $(PYTHON) is newer than the Pythons that SuperFER is tested with, 3.11 and 3.12" >&2
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --upgrade pip
	$(VENV)/bin/pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: requirements.txt requirements-dev.txt $(VENV)/.installed
	$(VENV)/bin/pip install --quiet -r requirements-dev.txt
	touch $@

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

lint: install-dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/lint-imports --no-logo
	$(VENV)/bin/mypy

test: lint
	OMP_NUM_THREADS=1 NO_ALBUMENTATIONS_UPDATE=1 WANDB_MODE=offline $(PY) -m pytest -n 2 --dist loadfile

demo: install
	$(PY) superfer.py demo

clean-demo:
	rm -rf demo/

# Ratios of alternating runs, on this machine's CPU: about 15 minutes when it does nothing else.
bench: install-dev
	@$(PY) -m benchmarks.classifier
	@$(PY) -m benchmarks.generator

# On a machine with a GPU: five stages of at most 9 minutes, `make bench-gpu STAGES=waits` for one. One JSON object a line.
STAGES ?= waits steps feed resume ranks
bench-gpu: install
	$(PY) -m benchmarks.gpu $(STAGES)

torture: install-dev
	NO_ALBUMENTATIONS_UPDATE=1 $(PY) -m tests.torture
	NO_ALBUMENTATIONS_UPDATE=1 WANDB_MODE=offline $(PY) -m pytest -m slow
	$(PY) -m pytest --hypothesis-profile=torture tests/test_fuzz.py
