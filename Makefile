# The commands a person types. Each one sets up .venv first when pyproject.toml has changed.
#
#   make demo [minutes=5] [ARGS=--no-chat]   raise a small model on this machine and talk to it
#   make test [TESTS=tests/core]             the tests
#   make lint                                format, lint, types, import layers and cycles, documentation
#   make bench [BENCH="logits memory"]       side-by-side benchmarks, results in bench/results/
#   make docs                                refresh the computed parts of docs/, then build the site, in site/
#   make clean                               remove what these commands made; corpora, runs and models stay

PYTHON  ?= python3
minutes ?= 5
ARGS    ?=
TESTS   ?=
JOBS    ?= 2
BENCH   ?= cli_start logits memory train_speed learning

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint bench docs clean

demo: $(STAMP)
	$(BIN)/puna demo --minutes $(minutes) $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) $(TESTS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/import_cycles.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(STAMP)
	set -e; for name in $(BENCH); do $(BIN)/python bench/$$name.py; done

docs: $(STAMP)
	$(BIN)/python docs/render.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) site build dist .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis src/*.egg-info

# The stamp is written last, so an interrupted installation is taken up again.
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $(STAMP)
