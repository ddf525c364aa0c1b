# make demo   phantom export -> release, with all set-up
# make test   every test that runs without a GPU, with all set-up; those on Slurm if it is installed
# make slurm  what the tests on Slurm need, by apt-get (Debian, Ubuntu)

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
CORES ?= $(shell nproc)
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo)
SLURMCTLD := $(shell PATH="$$PATH:/usr/sbin" command -v slurmctld)

.PHONY: help install demo slurm test test-unit test-slurm test-faults lint format docs clean

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

slurm:
	$(AS_ROOT) apt-get update --quiet
	$(AS_ROOT) env DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes \
		--no-install-recommends slurm-wlm slurmdbd munge mariadb-server

test: $(READY)
	$(if $(SLURMCTLD),,MRMILL_WITHOUT_SLURM=1) $(BIN)/python -m pytest -m "not faults"

test-slurm: $(READY)
	$(BIN)/python -m pytest tests/slurm -m "not faults"

# some 45 minutes; keeps its result in docs/faults.md
test-faults: $(READY)
	MRMILL_KILLS=24 MRMILL_WRITE_FAULTS=docs/faults.md \
		$(BIN)/python -m pytest tests/workflow/test_faults.py tests/slurm

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
