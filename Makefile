# Everything is installed into .venv by the first target that needs it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo test test-cluster chaos lint constraints clean

demo: $(VENV)/.installed        ## draw a small data set; its labels become masks and figures
	$(BIN)/python jobs/run_pipeline.py --demo

test: $(VENV)/.installed lint   ## everything that must hold
	$(BIN)/python -m pytest

test-cluster: $(VENV)/.installed ## the long tests of Ray itself
	$(BIN)/python -m pytest -m cluster

chaos: $(VENV)/.installed       ## kill a small job at random times, again and again, and compare its bytes
	PYTHONPATH=$(CURDIR) $(BIN)/python tests/chaos.py

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/mypy

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

constraints:                    ## freeze what is installed and works together
	$(BIN)/pip freeze --exclude-editable > constraints.txt

clean:
	rm -rf $(VENV) build *.egg-info
