# Short names for the commands of README.md and CONTRIBUTING.md; nothing here that is not there.
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: test unit lint format demo bench soak
STEPS ?= 100000
CRASHES ?= 300

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

# Random histories for as many steps as are wanted, fences broken on purpose, then kills: make soak STEPS=100000 CRASHES=300 (TEST_SEED repeats one).
soak: $(BIN)/python
	$(BIN)/python -m tests.histories $(STEPS)
	$(BIN)/python -m tests.histories $$(( $(STEPS) / 10 )) hide
	$(BIN)/python -m tests.histories $$(( $(STEPS) / 10 )) tag
	$(BIN)/python -m tests.mutations
	SOAK_CRASHES=$(CRASHES) SOAK_FAULTS=1 $(BIN)/python -m pytest -q --timeout 0 tests/integration/test_crashes.py tests/integration/test_faults.py
