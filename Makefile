# Set-up, demo and checks. Everything lands in .venv, from the versions pinned in requirements.lock.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

.PHONY: setup demo test test-slow test-more check ui clean

setup: $(INSTALLED)

$(INSTALLED): requirements.lock
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else f"Python 3.11 to 3.13 is needed, this is {v[0]}.{v[1]}: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	touch $@

demo: $(INSTALLED)
	$(RUN) workflows/demo.py

test: $(INSTALLED)
	$(RUN) -m pytest -n 2 --dist loadgroup --hypothesis-profile repeatable

test-slow: $(INSTALLED)
	$(RUN) -m pytest -m "slow or not slow"

# Of the slow tests, those that CI has the time for: a training and an embedding that are killed, and both in an object store.
test-more: $(INSTALLED)
	$(RUN) -m pytest -m slow \
		tests/workflows/test_object_store.py \
		tests/workflows/test_recovery.py::test_a_killed_driver_goes_on_with_other_workers_even_from_damaged_files \
		'tests/workflows/test_encode_faults.py::test_whatever_is_killed_whenever_every_row_comes_once[0]'

check: $(INSTALLED)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(MAKE) test

ui: $(INSTALLED)
	$(VENV)/bin/mlflow ui --backend-store-uri sqlite:///mlflow.db --host 127.0.0.1 --port 5000

clean:
	rm -rf $(VENV) demo
