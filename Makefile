# Everything a contributor runs. `make setup` needs Python 3.11+ and nothing else.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin

.PHONY: setup demo test test-slow check bench format clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch torchvision
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[torch,cpu,openvino,executorch,coreml,ncnn,fast,zoo,dev]'
	touch $@

demo: setup
	$(BIN)/segdeploy demo --out runs/demo

# One thread for each of the two processes; what measures time runs alone.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not slow and not gpu and not serial"
	$(BIN)/pytest -m "serial and not slow and not gpu"

test-slow: setup
	$(BIN)/pytest -m slow

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

# The tables of README and docs/compare.md; on an idle machine, some twenty minutes.
bench: setup
	$(BIN)/python benchmarks/camvid_targets.py
	$(BIN)/python -m benchmarks.peers
	$(BIN)/python benchmarks/render_docs.py

clean:
	rm -rf $(VENV) runs build *.egg-info
