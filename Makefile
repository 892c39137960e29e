# Each target makes what it needs: a virtual environment in .venv, and Legato installed in it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help demo test lint format bench soak fuzz alerts-table docs clean

help:
	@echo "make demo         two simulated engines behind one Legato, a live table, a report (under two minutes)"
	@echo "make test         lint, types, import contracts and tests: what CI runs"
	@echo "make lint         only lint, format, types and import contracts"
	@echo "make bench        measure Legato beside no proxy, itself and a plain FastAPI + httpx proxy (needs gcc)"
	@echo "make soak         an hour of streams with Redis, OTLP and scraping on: does anything grow (MINUTES=60)"
	@echo "make fuzz         feed the tap what nobody would think of, guided by coverage (SECONDS=60)"
	@echo "make alerts-table what the alert rules find of simulated traffic, into deploy/runbooks/README.md"
	@echo "make docs         write the configuration and metrics references anew from the code"
	@echo "make clean        remove the virtual environment and caches"

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/legato demo

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check --quiet
	$(BIN)/ruff format --check --quiet
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Four at a time for two processors, as many tests wait; a file's tests stay together and in order.  Then what
# nothing may run beside.  What fails is asked once more, by itself, and then decides: the machine may have been
# busy with others, which a test of sockets and times may not survive.  The first failure stays in the output:
# whoever reads it mends the test, or what it found.
# Compiled files are kept even where the environment says not to: hundreds of processes start.
test: AGAIN = $(BIN)/python -m pytest --last-failed --last-failed-no-failures none
test: export PYTHONDONTWRITEBYTECODE =
test: lint
	$(BIN)/python -m pytest -m "not alone" --cache-clear --numprocesses 4 --dist loadfile --no-loadscope-reorder || $(AGAIN)
	$(BIN)/python -m pytest -m alone --cache-clear || $(AGAIN)

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix --quiet
	$(BIN)/ruff format --quiet

bench: $(VENV)/.installed
	$(BIN)/python -m deploy.bench

MINUTES ?= 60
soak: $(VENV)/.installed
	$(BIN)/python -m deploy.bench.soak --minutes $(MINUTES)

SECONDS ?= 60
fuzz: $(VENV)/.installed-dev
	$(BIN)/python -m deploy.fuzz --seconds $(SECONDS)

alerts-table: $(VENV)/.installed-dev
	$(BIN)/python -m tests.scoring.alarm_table

docs: $(VENV)/.installed
	$(BIN)/python -m proxy.reference
	$(BIN)/python -m proxy.exporters.reference
	$(BIN)/python -m proxy.exporters.otel.reference
	$(BIN)/python -m deploy.grafana.build

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
