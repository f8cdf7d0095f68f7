# Everything is installed into .venv by the first target that needs it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo test test-cluster lint constraints clean

demo: $(VENV)/.installed        ## draw a small data set, train, make maps, name a picture
	$(BIN)/python jobs/generate_maps.py

test: $(VENV)/.installed lint   ## everything that must hold
	$(BIN)/python -m pytest

test-cluster: $(VENV)/.installed ## the long tests of Ray itself
	$(BIN)/python -m pytest -m cluster

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
