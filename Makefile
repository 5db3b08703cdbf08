# `make test` on a fresh machine sets up .venv, builds, and runs every check; `make help` lists the targets.
#
#   PYTHON       the Python that makes .venv (python3)
#   TORCH        what pip installs as torch where .venv has none (torch==2.13.0)
#   VENV_ARGS    further arguments for python -m venv; --system-site-packages uses the machine's torch
#   PYTEST_ARGS  further arguments for pytest, such as "-m long"; "-n 0" runs the tests one after the other
#   FUZZ_SECONDS how long make fuzz runs each target (600), its committed inputs included, which are always read to the end

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV_ARGS ?=
PYTEST_ARGS ?=
FUZZ_SECONDS ?= 600

export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Python compiles what it imports; pip would compile every file of every package, 20 s for torch alone.
export PIP_NO_COMPILE := 1
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

SOURCES := $(shell find csrc cmake -type f) CMakeLists.txt setup.py pyproject.toml gct/_version.py
CLANG_FORMATTED := $(shell find csrc tests/cpp tests/fuzz benchmarks/peers -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
PIP := pip --quiet --disable-pip-version-check
# C++ tests of threads; others use the same pool and would take minutes under ThreadSanitizer.
THREADED := test_thread_pool|test_concurrency|test_piece_ring
# Many tests are ranks that wait for each other. A file stays with one worker: its tests share what is slow to set up.
TWO_AT_A_TIME := -n 2 --dist loadfile
INSTALL := GCT_DEV=1 GCT_BUILD_DIR=build/ext $(PIP) install --no-build-isolation --editable

.PHONY: help test build lint format cpp-test sanitize fuzz fuzz-short py-test dist-test aarch64 gpu browser demo clean

help:
	@echo 'make test       lint, cpp-test, sanitize, fuzz for seconds and py-test, from nothing'
	@echo 'make build      .venv with torch, the tools and gct in editable form'
	@echo 'make lint       ruff, clang-format, mypy'
	@echo 'make cpp-test   C++ tests of the codec, built without torch'
	@echo 'make sanitize   C++ tests and malformed-wire tests under ASan and UBSan, threads under TSan'
	@echo 'make fuzz       the fuzz targets of tests/fuzz under ASan and UBSan, FUZZ_SECONDS=600 each; two at a time'
	@echo 'make py-test    pytest'
	@echo 'make dist-test  sdist and wheel, installed in fresh environments'
	@echo 'make aarch64    C++ tests built for aarch64 and run by qemu: NEON; TESTS=test_codec runs one of them'
	@echo 'make gpu        on a machine with a GPU: tests/gpu, compute-sanitizer, benchmarks; writes docs/gpu-report.md'
	@echo 'make browser    Chromium for the tests that look at pages; without it they are skipped'
	@echo 'make format     rewrite the files the way lint wants them'
	@echo 'make demo       train with and without compression and compare'
	@echo 'make clean      remove what was built; .venv stays'

test: lint cpp-test sanitize fuzz-short py-test

# ---- environment and build; stamps make the second call quick

build: build/.built

.venv/.tools:
	test -x .venv/bin/python || $(PYTHON) -m venv $(VENV_ARGS) .venv
	python -c 'import torch' 2> /dev/null || $(PIP) install '$(TORCH)'
	$(PIP) install 'setuptools>=77' 'pybind11>=3' ninja 'cmake>=3.20'
	touch $@

build/.built: .venv/.tools $(SOURCES)
	$(INSTALL) '.[dev]'
	touch $@

.venv/.examples: build/.built
	$(INSTALL) '.[dev,examples,mpi]'
	touch $@

.venv/.experiments: .venv/.examples
	$(INSTALL) '.[dev,experiments]'
	touch $@

# ---- checks

lint: build
	ruff check .
	ruff format --check .
	clang-format --dry-run -Werror $(CLANG_FORMATTED)
	mypy

format: build
	ruff check --fix .
	ruff format .
	clang-format -i $(CLANG_FORMATTED)

cpp-test: .venv/.tools
	tools/cpp_test.sh build/cpp -DGCT_DEV=ON

sanitize: build
	tools/cpp_test.sh build/cpp-sanitize -DGCT_DEV=ON -DGCT_SANITIZE=ON
	TESTS='$(THREADED)' tools/cpp_test.sh build/cpp-threads -DGCT_SANITIZE_THREADS=ON
	tools/sanitized_pytest.sh tests/test_malformed.py

fuzz: .venv/.tools
	tools/fuzz.sh $(FUZZ_SECONDS)

# Long enough to read the committed inputs and to see that the targets still search.
fuzz-short: .venv/.tools
	tools/fuzz.sh 6

py-test: .venv/.experiments
	pytest -q $(TWO_AT_A_TIME) $(PYTEST_ARGS)

dist-test: build
	TORCH='$(TORCH)' tools/dist_test.sh

aarch64: .venv/.tools
	tools/aarch64_test.sh build/aarch64

gpu:
	tools/gpu_report.sh

browser:
	tools/install_browser.sh

# ---- the rest

demo: .venv/.examples
	.venv/bin/python examples/demo.py

clean:
	rm -rf build dist *.egg-info gct/*.so .mypy_cache .pytest_cache .ruff_cache
