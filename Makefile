# Everything a fresh machine needs is python3 and make: both targets set up the virtual environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= runs/digits

EXAMPLES := --editable examples/nextscale-audio --editable examples/nextscale-points

.PHONY: demo docs test test-all lint format types clean

demo: $(VENV)/.installed
	@if [ -e $(RUN) ]; then echo "continuing $(RUN) (make clean removes it)"; fi
	$(BIN)/nextscale train --modality image --preset digits --out $(RUN) --resume auto
	$(BIN)/nextscale sample $(RUN) -n 100 --film --out $(RUN)/demo
	@echo "look at $(RUN)/demo: grid.png holds 100 digits, film.png shows how they come about, scale by scale"

# The checks take one core each, so they run two at a time; pytest then has both cores.
test: $(VENV)/.installed
	$(MAKE) --no-print-directory --jobs 2 types docs lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-all: $(VENV)/.installed
	$(MAKE) --no-print-directory --jobs 2 types lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

docs: $(VENV)/.installed
	$(BIN)/python -m sphinx --fail-on-warning --keep-going -q docs docs/_build
	@echo "look at docs/_build/index.html"

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
	@# The example plugins, as a third party's would be.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(EXAMPLES)
	@touch $@

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache .hypothesis
