# The two commands of the README, and what developers use. Each sets up .venv by itself.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
KERNELS := setup.py $(wildcard src/lamoid/inference/native/*.[ch] src/lamoid/inference/native/build.py)
PEERS := .venv/.installed-peers

.PHONY: quickstart test test-peers check prove build clean

quickstart: $(STAMP)          ## train a small Llama on text that is on this machine, in a few minutes
	$(BIN)/python -m lamoid.recipes.quickstart

test: $(STAMP) check          ## everything that CI runs
	$(BIN)/python -m pytest

test-peers: $(PEERS)          ## what we write, in llama.cpp, which is built once (ten minutes)
	$(BIN)/python -m pytest tests/peers

check: $(STAMP)               ## seconds: style, types, the house
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_house.py

prove: $(PEERS)               ## hours: long proofs and benchmarks; results go to docs/proofs/
	$(BIN)/python -m pytest tests -m "prove or not prove"
	$(BIN)/python -m pytest tests/peers --out docs/proofs
	$(BIN)/python -m benchmarks.training --out docs/proofs
	$(BIN)/python -m benchmarks.decoding --out docs/proofs
	$(BIN)/python -m benchmarks.engine --out docs/proofs
	$(BIN)/python -m benchmarks.methods --out docs/proofs
	$(BIN)/python -m benchmarks.flash --out docs/proofs
	$(BIN)/python -m benchmarks.plan --out docs/proofs
	$(BIN)/python -m benchmarks.gqa --out docs/proofs
	$(BIN)/python -m benchmarks.new_language --out docs/proofs
	$(BIN)/python -m benchmarks.encoders --out docs/proofs
	$(BIN)/python -m benchmarks.translation --out docs/proofs

build: $(STAMP)               ## a wheel in dist/
	$(BIN)/python -m build --wheel

clean:
	rm -rf .venv build dist src/*.egg-info

$(STAMP): pyproject.toml constraints.txt $(KERNELS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Lamoid needs Python 3.11 or newer; name one with: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

$(PEERS): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[peers]'
	touch $(PEERS)
