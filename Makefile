# Two commands do everything on a fresh machine with Python 3.11 or newer: make demo, make test.
PYTHON ?= python3
BIN := .venv/bin
BENCH ?= --memory
CPUS ?= auto
TIMED := tests/faults/test_soak.py tests/faults/test_dead_servers.py

.PHONY: help setup demo test check test-faults test-nightly golden smoke wheel bench bench-peers clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 16

$(BIN)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(BIN)/.ready  ## make .venv with the tested versions

demo: setup  ## scratch, transfer, FO-MAML and MAML on the embedded glyphs; under 4 minutes on 2 cores
	$(BIN)/metarun experiment=transfer_vs_maml

test: check  ## what CI runs: check, then the slow tests (README's commands, a wheel elsewhere)
	$(BIN)/pytest -q -n $(CPUS) --dist worksteal -m 'slow and not faults and not nightly'

check: setup  ## format, lint, types, fast tests; 4 minutes on 2 cores
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/pytest -q -n $(CPUS) --dist worksteal -m 'not faults and not slow and not nightly'

test-faults: setup  ## kills, full disks, dead networks, stopped sweeps; minutes, best undisturbed
	$(BIN)/pytest -q -n $(CPUS) -m 'faults and not nightly'

test-nightly: setup  ## 500 kills, soaks of 10,000 and 20,000 steps; first, alone, what is timed
	$(BIN)/pytest -q -m nightly $(TIMED)
	$(BIN)/pytest -q -n $(CPUS) --dist worksteal -m nightly $(TIMED:%=--ignore=%)

golden: setup  ## accept today's numbers as the golden ones
	METARUN_GOLDEN=write $(BIN)/pytest -q tests/test_golden.py

smoke: setup  ## one short real run on Omniglot, where it is
	METARUN_DATA=$${METARUN_DATA:-../shared/data} $(BIN)/metarun dataset=omniglot \
	  algo=fomaml debug=limit name=smoke

bench: setup  ## measure metarun beside the peers that are there; BENCH='--works w3 --rounds 1'
	python=$(BIN)/python; [ ! -x .venv-peers/bin/python ] || python=.venv-peers/bin/python; \
	  $$python -m benchmarks $(BENCH)

bench-peers:  ## make .venv-peers with the libraries that metarun is measured beside
	PYTHON=$(PYTHON) sh benchmarks/install_peers.sh .venv-peers

wheel: setup  ## build dist/*.whl
	$(BIN)/python -m build --wheel --no-isolation

clean:  ## remove what can be made again; outputs stay
	rm -rf .venv .venv-peers dist build .pytest_cache .ruff_cache .hypothesis
