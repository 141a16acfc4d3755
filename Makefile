# Everything a fresh machine needs is python3 and make: both targets set up the virtual environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= runs/digits

.PHONY: demo test test-all lint format types clean

demo: $(VENV)/.installed
	@if [ -e $(RUN) ]; then echo "continuing $(RUN) (make clean removes it)"; fi
	$(BIN)/nextscale train --modality image --preset digits --out $(RUN) --resume auto
	$(BIN)/nextscale sample $(RUN) -n 100 --film --out $(RUN)/demo
	@echo "look at $(RUN)/demo: grid.png holds 100 digits, film.png shows how they come about, scale by scale"

test: $(VENV)/.installed lint types
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-all: $(VENV)/.installed lint types
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache .hypothesis
