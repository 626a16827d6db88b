# `make reproduce` and `make test` set everything up in .venv and need nothing but Python 3.11 or newer.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
WORKERS ?= 2
# Without kept bytecode every process would compile the suite and its tests anew.
unexport PYTHONDONTWRITEBYTECODE
# How many of 10,800 exports `make soak` tries; all of them take a day. (A comment behind the number would put its
# space into the value.)
EXPORT_CELLS ?= 1200

.DEFAULT_GOAL := help
.PHONY: help install reproduce test test_slow check soak paper_tables fidelity docs clean

help:
	@echo "make reproduce     install, train the embedded experiment, report, compare with the committed table"
	@echo "make test          install, run the tests: minutes"
	@echo "make test_slow     the tests with many trainings, processes or compilations: minutes more"
	@echo "make soak          kills, full disks, fuzz, random networks, exports, all networks of torchvision and timm: hours"
	@echo "make check         ruff, format, types, imports between rooms"
	@echo "make paper_tables  rebuild the tables, figures and pages of results/, and the numbers that pages quote"
	@echo "make fidelity      hold the released presets against the release's numbers, and write docs/fidelity.md"
	@echo "make docs          build the documentation site into build/docs; a broken link is an error"
	@echo "make clean         remove .venv and caches (runs/ stays)"

$(BIN)/bench: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $(BIN)/bench

install: $(BIN)/bench

reproduce: install
	$(BIN)/bench run experiments/digits.toml --results runs
	$(BIN)/bench report experiments/digits.toml --results runs
	$(BIN)/python -m docs.tools.compare runs/report/digits paper_tables/digits

test: install
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not slow"

test_slow: install
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m slow

soak: install
	$(BIN)/python -m tests.robustness.soak
	BENCH_NETWORK_CASES=1000 $(BIN)/python -m pytest -q -s tests/robustness/test_random_networks.py
	BENCH_EXPORT_CASES=all $(BIN)/python -m pytest -q tests/export/test_every_quantizer.py tests/export/test_matrix.py tests/export/test_damage.py
	$(BIN)/python -m tests.export.matrix --cells $(EXPORT_CELLS) --results build/export_matrix.jsonl
	$(BIN)/python -m tests.robustness.sweep

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy bench
	$(BIN)/lint-imports

paper_tables: install
	$(BIN)/bench report --results results --out paper_tables
	$(BIN)/python -m docs.tools.quote README.md docs/findings.md

fidelity: install
	$(BIN)/python -m tests.golden.released.fidelity

docs: install
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs
	@echo "build/docs/index.html"

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
