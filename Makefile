# Set-up, demo and checks. Everything lands in .venv, from the versions pinned in requirements.lock.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

.PHONY: setup demo test test-slow check ui clean

setup: $(INSTALLED)

$(INSTALLED): requirements.lock
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else f"Python 3.11 to 3.13 is needed, this is {v[0]}.{v[1]}: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	touch $@

demo: $(INSTALLED)
	$(RUN) workflows/demo.py

test: $(INSTALLED)
	$(RUN) -m pytest

test-slow: $(INSTALLED)
	$(RUN) -m pytest -m "slow or not slow"

check: $(INSTALLED)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(MAKE) test

ui: $(INSTALLED)
	$(VENV)/bin/mlflow ui --backend-store-uri sqlite:///mlflow.db --host 127.0.0.1 --port 5000

clean:
	rm -rf $(VENV) demo
