# Two commands: `make demo` and `make test`. Each makes the virtual environment first, if it is not there or is out of date.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help demo test test-kafka test-slow test-gpu operate chaos chaos-short soak lint format docs constraints clean

help:  ## Say what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: $(INSTALLED)  ## Watch it work: embedded broker, real stream, summary (DEMO="--dataset thyroid" for options)
	$(BIN)/srr-stream demo $(DEMO)

test: $(INSTALLED)  ## The whole default suite, two tests at once, each with a thread for products of matrices
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu and not chaos and not operate and not kafka"

test-kafka: $(INSTALLED)  ## The same promises on a real Apache Kafka (KAFKA_HOME), and by librdkafka
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "kafka and not slow and not chaos and not operate"

test-slow: $(INSTALLED)  ## What takes minutes
	$(BIN)/python -m pytest -m slow

test-gpu: $(INSTALLED)  ## What needs a CUDA device
	$(BIN)/python -m pytest -m gpu

operate: $(INSTALLED)  ## The real chain: broker, service, Prometheus, Alertmanager, webhook, Chromium
	$(BIN)/python -m pytest -m operate

chaos: $(INSTALLED)  ## Kill, freeze, cut and fill up the real thing: all scenarios in both modes (CHAOS="kills --seed 1" for options)
	$(BIN)/python -m chaos $(CHAOS)

chaos-short: $(INSTALLED)  ## A selection of it, in two minutes
	$(BIN)/python -m pytest -m chaos

soak: $(INSTALLED)  ## Thirty minutes near capacity with a random fault every 20 to 60 s
	$(BIN)/python -m chaos soak $(CHAOS)

lint: $(INSTALLED)  ## Style, types, directions of imports, Dockerfile, Prometheus rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

format: $(INSTALLED)  ## Put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED)  ## Write the pages of docs that come from the code: metrics, settings, commands, routes
	$(BIN)/python -m docs.generate

constraints:  ## Write constraints.txt anew from the newest releases that pyproject.toml allows
	$(PYTHON) -m venv var/constraints
	var/constraints/bin/pip install --quiet ".[dev]"
	var/constraints/bin/pip freeze --exclude srr-stream --exclude-editable | sed -E 's/\+cpu$$//' > constraints.txt
	rm -rf var/constraints build

clean:  ## Remove what was made here
	rm -rf $(VENV) var build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@
