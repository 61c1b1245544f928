# make demo   the main job on the embedded data set: train, validate, detect
# make test   the test suite
# Both set up a virtual environment in .venv first. PYTHON=... chooses the interpreter.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test lint format clean

demo: $(VENV)/.core
	$(RUN) tools/demo.py

test: $(VENV)/.dev
	$(RUN) -m pytest

lint: $(VENV)/.dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: $(VENV)/.dev
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

$(VENV)/.core: requirements.txt
	$(PYTHON) tools/setup_env.py $(VENV) requirements.txt
	@touch $@

$(VENV)/.dev: requirements.txt requirements-dev.txt
	$(PYTHON) tools/setup_env.py $(VENV) requirements-dev.txt
	@touch $@ $(VENV)/.core

clean:
	rm -rf $(VENV) runs data/shapes
