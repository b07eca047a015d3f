# Short names for the commands of README.md and CONTRIBUTING.md; nothing here that is not there.
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: test unit lint format demo bench

$(BIN)/python:
	python3 -m venv $(VENV)
	$(BIN)/pip install -q -e '.[test]'

test: $(BIN)/python
	$(BIN)/python -m tests

unit: $(BIN)/python
	$(BIN)/python -m pytest -q tests/unit

lint: $(BIN)/python
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: $(BIN)/python
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

demo: $(BIN)/python
	$(BIN)/mlflow-artifact-gc demo

bench: $(BIN)/python
	$(BIN)/python -m benchmarks
