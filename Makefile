# make demo    install, fetch the compact weights, start the web demo (ARGS="--port 8000" are passed on)
# make test    install with the test tools, fetch the weights if there is a network, run the tests
# make lint    ruff and mypy
# Another interpreter: make PYTHON=python3.12 …   another environment: make VENV=path …

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
PYTEST_ARGS ?=
PY := $(abspath $(VENV))/bin/python

.PHONY: setup setup-dev weights demo test lint lint-check lint-format lint-types clean

setup: $(VENV)/.setup
setup-dev: $(VENV)/.setup-dev

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed: make PYTHON=…" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade "pip>=25.2"  # an older one does not resume a download that breaks

$(VENV)/.setup: requirements.txt | $(VENV)/bin/python
	$(PY) -m pip install -r requirements.txt
	touch $@

# The development tools include the runtime's requirements, so that one install does both.
$(VENV)/.setup-dev: requirements.txt requirements-dev.txt | $(VENV)/bin/python
	$(PY) -m pip install -r requirements-dev.txt
	touch $(VENV)/.setup $@

weights: setup
	cd code && $(PY) fetch_weights.py

demo: weights
	cd code && $(PY) web_demo.py $(ARGS)

# Without a network the tests that need weights are skipped, the others run.
test: setup-dev
	cd code && $(PY) fetch_weights.py || echo "no weights: the tests that need them are skipped"
	$(PY) -m pytest $(PYTEST_ARGS)

# Each is a hook of .pre-commit-config.yaml, too.
lint: lint-check lint-format lint-types

lint-check: setup-dev
	$(PY) -m ruff check .

lint-format: setup-dev
	$(PY) -m ruff format --check .

# mypy reads `anomalygpt` as a folder of that name.
lint-types: setup-dev
	mkdir -p .mypy_link && ln -sfn ../code .mypy_link/anomalygpt
	MYPYPATH=.mypy_link $(PY) -m mypy -p anomalygpt

clean:
	rm -rf .mypy_link .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find code tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
