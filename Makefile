# Everything is installed into .venv by the first target that needs it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: install demo test coverage test-cluster chaos lint docs reference constraints clean help

install: $(VENV)/.installed     ## install everything into .venv

demo: $(VENV)/.installed        ## draw a small data set; its labels become masks and figures
	$(BIN)/python jobs/run_pipeline.py --demo

test: $(VENV)/.installed        ## everything that must hold
	$(BIN)/ruff check .
# The first run of mypy takes half a minute of one core: it fills its cache beside the tests. In the folders' order the
# long files of cluster/ and jobs/ come before the short ones of storage/, so both processes end at the same time.
# One thread in each process: with two, four threads would wait for two cores, and torch's tests take four times as long.
	$(BIN)/mypy > /dev/null & OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder && wait && $(BIN)/mypy

coverage: $(VENV)/.installed    ## which lines the tests run, in this process; workers of Ray are not seen
	$(BIN)/python -m pytest --cov --cov-report=term:skip-covered

test-cluster: $(VENV)/.installed ## the long tests: killed workers of Ray, several nodes, benchmarks
	$(BIN)/python -m pytest -m cluster

chaos: $(VENV)/.installed       ## kill, stop, restart and damage a small job at random times, and compare its bytes
	PYTHONPATH=$(CURDIR) $(BIN)/python tests/chaos_faults.py
	PYTHONPATH=$(CURDIR) $(BIN)/python tests/chaos_steps.py
	PYTHONPATH=$(CURDIR) $(BIN)/python tests/chaos.py

lint: $(VENV)/.installed        ## style and types
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/.installed        ## the documentation as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

reference: $(VENV)/.installed   ## the pages of docs/ that follow from the code, and the package's copy of the cluster files
	PYTHONPATH=$(CURDIR) $(BIN)/python -m jobs.cli.reference
	PYTHONPATH=$(CURDIR) $(BIN)/python -m cluster.shipped_file

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Installing into $(VENV): 7 GB, 2 to 5 minutes, silent meanwhile."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	touch $@
	@echo "Installed. Next: 'source $(VENV)/bin/activate'. Then 'make demo', or your photographs:"
	@echo "docs/tutorial-own-photographs.md"

constraints:                    ## freeze what is installed and works together
	$(BIN)/pip freeze --exclude-editable > constraints.txt

clean:                          ## remove what was installed
	rm -rf $(VENV) build *.egg-info

help:                           ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14
