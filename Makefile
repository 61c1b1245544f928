# make demo          trains, validates and detects on the data set that the project draws itself
# make test          runs the test suite
# make lint          checks the style; make format corrects it
# make fuzz          reads 100,000 damaged files of each kind, such as labels, images, YAMLs and checkpoints: some hours
#                    (CASES=1000 for another number: some minutes)
# make test-export   runs the tests of export that need more than the suite installs, such as TensorFlow, in separate
#                    environments (4 GB; TensorFlow.js needs npm)
# make clean         removes the environment, runs and the drawn data set
# Each sets up a virtual environment in .venv first. PYTHON=... chooses the interpreter.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

CASES ?= 100000
ENVIRONMENTS = $(abspath $(VENV))/environments

.PHONY: demo test test-export fuzz lint format clean

demo: $(VENV)/.core
	$(RUN) tools/demo.py

test: $(VENV)/.dev
	$(RUN) -m pytest -n auto --dist worksteal

test-export: $(VENV)/.export
	YOLOV5_ENVIRONMENTS=$(ENVIRONMENTS) $(RUN) -m pytest tests/utils/export tests/utils/runtimes tests/test_export.py

fuzz: $(VENV)/.dev
	FUZZ_CASES=$(CASES) OPENCV_LOG_LEVEL=OFF $(RUN) -m pytest tests/fuzz --durations=20 --show-capture=no

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

$(VENV)/.export: $(VENV)/.dev requirements-export.txt
	$(PYTHON) tools/setup_env.py $(VENV) requirements-export.txt
	-YOLOV5_ENVIRONMENTS=$(ENVIRONMENTS) $(RUN) -m utils.runtimes.environments
	@touch $@

clean:
	rm -rf $(VENV) runs data/shapes
