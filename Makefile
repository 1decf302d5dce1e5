# Every target sets up what it needs from a clean clone: a virtual environment in .venv, the generated stubs, and
# llama.cpp's converter. `make demo` and `make test` are the two that matter.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# Before version 13.3 GCC drops most of what llama.cpp writes into a tile configuration (GCC bug 114098), and on a
# processor with AMX multiplying matrices ends in a segmentation fault. So llama.cpp is compiled without AMX.
NO_AMX := $(if $(filter x86_64,$(shell uname -m)),-mno-amx-tile -mno-amx-int8 -mno-amx-bf16)

.PHONY: demo test bench lint clients setup clean

demo: setup
	$(BIN)/modelledger demo

# Two workers, each file whole on one of them: tests share what is dear to make, and half of their time is waiting.
test: setup lint
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

bench: setup
	$(BIN)/modelledger bench append --json
	$(BIN)/modelledger bench append --batch 100 --callers 8 --events 10000 --json
	$(BIN)/modelledger bench append --stream --json
	$(BIN)/modelledger bench lone --json
	$(BIN)/modelledger bench watch --json
	$(BIN)/modelledger bench rebuild --json
	$(BIN)/modelledger bench audit --json
	$(BIN)/modelledger bench growth --json
	$(BIN)/modelledger bench help --json
	$(BIN)/modelledger bench up --json

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code

# Stubs for other languages come here as they are added; the Python ones are made by the build.
clients: setup
	$(BIN)/python hatch_build.py

setup: $(READY)

$(READY): pyproject.toml constraints.txt hatch_build.py $(shell find protos -name '*.proto')
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=24'
	CFLAGS='$(CFLAGS) $(NO_AMX)' CXXFLAGS='$(CXXFLAGS) $(NO_AMX)' \
		$(BIN)/python -m pip install --constraint constraints.txt --editable '.[all,dev]'
	$(BIN)/python -m quantizer.converter
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
