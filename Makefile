# Every target builds its own virtual environment in .venv, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Where there is no GPU the CPU build of torch is enough, and saves gigabytes.
TORCH ?= torch==2.13.0
CPU_WHEELS := https://download.pytorch.org/whl/cpu

.PHONY: quickstart test lint bench versions clean

# One thread: the network is small, and on a busy machine threads only wait for each other.
quickstart: $(VENV)/quickstart
	OMP_NUM_THREADS=1 $(BIN)/lowprec poc

test: $(VENV)/dev lint
	$(BIN)/python -m pytest -q

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/quickstart
	$(BIN)/lowprec bench

# The oldest and the newest versions of what the package depends on, each in an environment of its own.
versions:
	$(PYTHON) -m tools.versions

$(VENV)/torch:
	$(PYTHON) -m venv $(VENV)
	@if command -v nvidia-smi >/dev/null 2>&1; then $(BIN)/pip install -q "$(TORCH)"; else \
		$(BIN)/pip install -q "$(TORCH)+cpu" 2>/dev/null || \
		$(BIN)/pip install -q "$(TORCH)" --index-url $(CPU_WHEELS) || \
		$(BIN)/pip install -q "$(TORCH)"; fi
	touch $@

$(VENV)/quickstart: $(VENV)/torch pyproject.toml setup.py $(wildcard lowprec_plugin/csrc/*)
	$(BIN)/pip install -q -e ".[poc]"
	touch $@

$(VENV)/dev: $(VENV)/quickstart
	DS_BUILD_OPS=0 $(BIN)/pip install -q -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .venv-versions build dist *.egg-info lowprec_plugin/_native.so
