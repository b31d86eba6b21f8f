# Two commands from a clean checkout, with Python 3.10 or newer and a C++ compiler:
#   make demo    installs fsad into .venv and runs it on real defects
#   make test    installs the tools too, then runs lint, type checks and the tests
# Also: make bench, make format, make clean.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
INSTALL := $(PIP) install --quiet --disable-pip-version-check --constraint .ci/constraints.txt

# One architecture, and its PTX for newer ones, keeps nvcc short. The other way round, a plain
# `pip install .` compiles for all. Without nvcc this means nothing.
export TORCH_CUDA_ARCH_LIST ?= 8.0+PTX

# pip shows the decisions of the build only when it fails.
SAY_WHAT_WAS_BUILT := $(BIN)/python -c 'import fsad_ext, torch; print("built:", torch.ops.fsad.build_info())'

BUILD_FILES := setup.py pyproject.toml CMakeLists.txt $(wildcard _build/*.py) .ci/constraints.txt
cxx_files = $(shell find $(1) -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
NATIVE := $(call cxx_files,csrc) csrc/build_info.h.in
CXX_FILES := $(call cxx_files,csrc tests)

.PHONY: demo test lint bench format clean

demo: $(VENV)/demo.stamp
	$(BIN)/fsad demo

# A process a core, each with whole files and one thread but in the tests of threads, which would wait for each
# other; timings, which need a machine to themselves, are for `make bench`.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile -p no:benchmark

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(BIN)/mypy

bench: $(VENV)/dev.stamp
	$(BIN)/pytest bench --benchmark-only

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

clean:
	rm -rf $(VENV) build dist fsad-demo *.egg-info python/*.egg-info fsad_ext/*.so
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment, with torch and what the build needs. It serves both commands, which therefore
# install fsad in the same (editable) way.
$(VENV)/base.stamp: .ci/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and \
	  "fsad needs Python 3.10 or newer, and $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch setuptools cmake ninja
	touch $@

$(VENV)/demo.stamp: $(VENV)/base.stamp $(BUILD_FILES) $(NATIVE)
	$(INSTALL) --no-build-isolation --editable '.[demo]'
	@$(SAY_WHAT_WAS_BUILT)
	touch $@

$(VENV)/dev.stamp: $(VENV)/base.stamp $(BUILD_FILES) $(NATIVE)
	$(INSTALL) --no-build-isolation --editable '.[dev]'
	@$(SAY_WHAT_WAS_BUILT)
	touch $@
