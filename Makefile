PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help install lock test lint demo bench

help:  ## list these targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

$(BIN)/cascadebert: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -c constraints.txt -e ".[dev]"
	@touch $@

install: $(BIN)/cascadebert  ## make a virtual environment with everything for development

lock:  ## pin every dependency in constraints.txt; LOCK=--upgrade takes the newest versions
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 $(LOCK) \
	  --quiet --no-annotate --no-emit-index-url --custom-compile-command "make lock" \
	  --output-file constraints.txt

test: install  ## run the tests
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: install  ## check style, types and imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

demo: install  ## run the demo
	$(BIN)/cascadebert demo

bench: install  ## run every benchmark (days; needs CASCADEBERT_DATA)
	$(BIN)/python benchmarks/fetch_checkpoints.py
	$(BIN)/python benchmarks/train_plain_stages.py sst2 MiniLM-L3 MiniLM-L6 MPNet
	$(BIN)/python benchmarks/train_plain_stages.py clinc150 MiniLM-L3 MiniLM-L6 MPNet
	$(BIN)/python benchmarks/train_plain_stages.py snli MiniLM-L3 MiniLM-L6 MPNet
	$(BIN)/python benchmarks/train_plain_stages.py mrpc MPNet
	$(BIN)/python benchmarks/train_plain_stages.py agnews MPNet
	$(BIN)/python benchmarks/plain_cascades.py
	$(BIN)/python benchmarks/million_rows.py
	$(BIN)/python benchmarks/search.py
	$(BIN)/python benchmarks/train_small_stages.py
	$(BIN)/python benchmarks/training_scores.py
	$(BIN)/python benchmarks/certified.py
	$(BIN)/python benchmarks/coverage.py run
	$(BIN)/python benchmarks/coverage.py table
	$(BIN)/python benchmarks/power.py
	$(BIN)/python benchmarks/fast_cascades.py train
	$(BIN)/python benchmarks/fast_cascades.py build
	$(BIN)/python benchmarks/fast_cascades.py run
	$(BIN)/python benchmarks/engines.py speed
	$(BIN)/python benchmarks/engines.py accuracy
	$(BIN)/python benchmarks/start_up.py
	$(BIN)/python benchmarks/rivals.py run
	$(BIN)/python benchmarks/rivals.py table
