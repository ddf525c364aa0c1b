# make demo   phantom export -> release, with all set-up
# make test   every test that runs without a GPU or a cluster, with all set-up

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
CORES ?= $(shell nproc)

.PHONY: help install demo test test-unit lint format docs clean

help:
	@sed -n 's/^# make/make/p' Makefile

$(READY): envs/requirements.txt pyproject.toml
	@echo "setting up .venv (some 2 GB, a few minutes)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement envs/requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# the export is made once; the key, the plan and the release resume like any other run
demo/export: | $(READY)
	$(BIN)/mrmill phantom demo/export --preset demo

demo/config.yaml: config/examples/demo.yaml
	@mkdir -p demo
	cp $< $@

install: $(READY)

demo: $(READY) demo/export demo/config.yaml
	$(BIN)/mrmill run --configfile demo/config.yaml --cores $(CORES) \
		$(if $(wildcard demo/pseudonym.key),,--new-key)
	$(BIN)/mrmill verify demo/release
	$(BIN)/mrmill picture demo/release demo/pictures

test: $(READY)
	$(BIN)/python -m pytest

test-unit: $(READY)
	$(BIN)/python -m pytest tests/unit scripts/mrmill

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/codespell

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile rules

docs: $(READY)
	$(BIN)/mrmill docs

clean:
	rm -rf demo .pytest_cache .ruff_cache
