# make demo: the main job on built-in data. make test: lint, types, tests. Both make .venv and install what they need.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
.PHONY: demo test torture lint install install-dev clean-demo
.DELETE_ON_ERROR:

$(VENV)/.installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || \
		(echo "Python 3.11 or 3.12 is needed, $(PYTHON) is another: make PYTHON=python3.12" >&2; exit 1)
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

torture: install-dev
	NO_ALBUMENTATIONS_UPDATE=1 $(PY) -m tests.torture
	NO_ALBUMENTATIONS_UPDATE=1 WANDB_MODE=offline $(PY) -m pytest -m slow
	$(PY) -m pytest --hypothesis-profile=torture tests/test_fuzz.py
