# Every target builds its own virtual environment in .venv, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Where there is no GPU the CPU build of torch is enough, and saves gigabytes.
TORCH ?= torch==2.13.0
CPU_WHEELS := https://download.pytorch.org/whl/cpu
# The Triton that CUDA builds of this torch require. CPU builds require none, and would be tested with any other.
TRITON_TABLE := tests/arithmetic/triton/tritons.txt
TRITON ?= $(shell awk -v torch='$(TORCH)' 'index(torch, "==" $$1 ".") {v = "==" $$2} END {print "triton" v}' $(TRITON_TABLE))
# Tests keep one core busy each. Those of a file share what it has set up. Many of them start processes of their own.
AT_ONCE := -n 2 --dist loadfile
TRITONS := $(addprefix $(VENV)/tritons/,$(sort $(shell awk 'NR > 1 {print $$2}' $(TRITON_TABLE))))

.PHONY: quickstart test foreign lint bench faults sanitize tritons versions clean

# One thread: the network is small, and on a busy machine threads only wait for each other.
quickstart: $(VENV)/quickstart
	OMP_NUM_THREADS=1 $(BIN)/lowprec poc

test: $(VENV)/dev $(TRITONS) lint
	$(BIN)/python -m pytest -q $(AT_ONCE)

# Other people's optimizers, parameters and averages: docs/foreign.md.
foreign: $(VENV)/foreign/installed
	OMP_NUM_THREADS=1 $(VENV)/foreign/bin/python -m pytest -q $(AT_ONCE) tests/foreign

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/quickstart
	$(BIN)/lowprec bench

# An hour: killed trainings, flipped bits, hostile tensors, odd arguments. It ends with an error if the package fails one.
faults: $(VENV)/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.faults kills --out docs/results/faults
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.faults damage --out docs/results/faults
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.faults hostile --out docs/results/faults
	OMP_NUM_THREADS=1 $(BIN)/python -m tools.faults fuzz --out docs/results/faults

# The native kernels under GCC's sanitizers, with a record.
sanitize: $(VENV)/dev
	$(BIN)/python -m tools.sanitize --output docs/results/sanitize.md

# Every kernel, compiled by every version of Triton.
tritons: $(VENV)/dev $(TRITONS)
	$(BIN)/python -m tests.arithmetic.triton.tritons docs/results/triton_versions.md

# The oldest and the newest versions of what the package depends on, each in an environment of its own.
versions:
	$(PYTHON) -m tools.versions

$(VENV)/torch: $(TRITON_TABLE)
	$(PYTHON) -m venv $(VENV)
	@if command -v nvidia-smi >/dev/null 2>&1; then $(BIN)/pip install -q "$(TORCH)"; else \
		$(BIN)/pip install -q "$(TORCH)+cpu" 2>/dev/null || \
		$(BIN)/pip install -q "$(TORCH)" --index-url $(CPU_WHEELS) || \
		$(BIN)/pip install -q "$(TORCH)"; fi
	$(BIN)/pip install -q "$(TRITON); sys_platform == 'linux'"
	touch $@

# Moved into place only when whole; empty where Triton does not exist for the system.
$(VENV)/tritons/%: | $(VENV)/torch
	rm -rf $@.part
	mkdir -p $@.part
	$(BIN)/pip install -q --no-deps --target $@.part "triton==$*; sys_platform == 'linux'"
	mv $@.part $@

$(VENV)/quickstart: $(VENV)/torch pyproject.toml setup.py $(wildcard lowprec_plugin/arithmetic/native/csrc/*)
	$(BIN)/pip install -q -e ".[poc]"
	touch $@

$(VENV)/dev: $(VENV)/quickstart
	DS_BUILD_OPS=0 $(BIN)/pip install -q -e ".[dev]"
	touch $@

# An environment on top of the tests' own: what is there is used from there, and stays the version that it is.
$(VENV)/foreign/installed: $(VENV)/dev pyproject.toml
	rm -rf $(VENV)/foreign
	$(BIN)/python -m venv $(VENV)/foreign
	$(BIN)/python -c "import sys; print(*filter(lambda p: p.endswith('site-packages'), sys.path), sep='\n')" > \
		"$$($(VENV)/foreign/bin/python -c 'import site; print(site.getsitepackages()[0])')/tests.pth"
	$(BIN)/pip list -q --format=freeze --exclude-editable --exclude pip > $(VENV)/foreign/pins.txt
	$(VENV)/foreign/bin/pip install -q -c $(VENV)/foreign/pins.txt -e ".[foreign]"
	touch $@

clean:
	rm -rf $(VENV) .venv-versions build dist *.egg-info lowprec_plugin/arithmetic/native/_native.so
