PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help install test lint demo bench

help:  ## list these targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

$(BIN)/cascadebert: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -c constraints.txt -e ".[dev]"
	@touch $@

install: $(BIN)/cascadebert  ## make a virtual environment with everything for development

test: install  ## run the tests
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: install  ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

demo: install  ## run the demo
	$(BIN)/cascadebert demo

bench: install  ## run every benchmark (hours; needs CASCADEBERT_DATA)
	$(BIN)/python benchmarks/fetch_checkpoints.py
	$(BIN)/python benchmarks/stages.py sst2 MiniLM-L3 MiniLM-L6 MPNet
	$(BIN)/python benchmarks/stages.py clinc150 MiniLM-L3 MiniLM-L6 MPNet
	$(BIN)/python benchmarks/stages.py snli MiniLM-L3 MiniLM-L6 MPNet
	$(BIN)/python benchmarks/stages.py mrpc MPNet
	$(BIN)/python benchmarks/stages.py agnews MPNet
	$(BIN)/python benchmarks/plain_cascades.py
	$(BIN)/python benchmarks/training.py run
	$(BIN)/python benchmarks/training.py table
	$(BIN)/python benchmarks/million_rows.py
