PYTHON ?= python
CXX ?= c++
CSRC := $(shell find csrc tests/emulation -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.h')

# The sanitized library lives apart, with a copy of the package, so that the normal build stays as it is.
SANITIZED := build/sanitized
# Compilers, other people's models and processes that crash on purpose are slow or noisy under a sanitizer, and not
# what it is for; nor are registrations and what never gets to a kernel.
SANITIZED_TESTS := $(filter-out tests/test_install.py tests/test_compile% tests/test_matching_compile.py \
  tests/test_opcheck.py tests/test_layering.py tests/test_nn% tests/test_memory.py \
  tests/test_integrations_% tests/test_triton_% tests/test_gpu_suite.py tests/test_benchmark_tables.py \
  tests/test_hungarian_matcher.py tests/test_emulation.py tests/test_cuda_kernels.py tests/test_cuda_matching.py, \
  $(wildcard tests/test_*.py))
# Python itself is not instrumented, so the runtime has to be there before it; libstdc++ too, to see exceptions.
SANITIZED_PYTHON = PYTHONPATH=$(SANITIZED) ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
  LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" $(PYTHON) -P
# Before the "." of pyproject.toml, which has the package that is not sanitized. A sanitizer ends the process: what it
# says must not be captured.
SANITIZED_PYTEST = $(SANITIZED_PYTHON) -m pytest -q -p no:cacheprovider --capture=sys \
  -o "pythonpath=$(SANITIZED) ."
# Of the emulated CUDA kernels, which take ten times as long as the CPU's: each kernel, access and table; float16 has
# the accesses of bfloat16.
SANITIZED_EMULATION := tests/test_emulation.py tests/test_cuda_kernels.py tests/test_fuzz.py

GPU_RESULTS ?= build/gpu/results.json
# What `make gpu` may take in all, and of that its tests; what they leave is for the measurements.
GPU_SECONDS ?= 530
GPU_TEST_SECONDS ?= 160
GPU_OPTIONS ?=
# memcheck and racecheck, which finds races in shared memory; initcheck, reads of memory that nobody wrote.
GPU_TOOLS ?= memcheck racecheck initcheck

.PHONY: help install test bench lint format types sanitize sanitized-library sanitize-cpu sanitize-cuda sanitize-cuda-matching gpu gpu-sanitize

help:  ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install:  ## the package, editable, with everything to test, measure and develop it
	$(PYTHON) -m pip install -e ".[bench,test,dev]"

test:  ## all tests
	$(PYTHON) -m pytest

bench:  ## speed and memory of every kernel and installed peer
	$(PYTHON) -m pytest benchmarks/

lint:  ## style of Python and C++
	ruff check .
	ruff format --check .
	clang-format --dry-run -Werror $(CSRC)

format:  ## put style right
	ruff check --fix .
	ruff format .
	clang-format -i $(CSRC)

types:  ## pyright
	pyright --pythonpath "$$($(PYTHON) -c 'import sys; print(sys.executable)')"

sanitize: sanitize-cuda sanitize-cpu sanitize-cuda-matching  ## op tests with AddressSanitizer and UBSan: CPU library, emulated CUDA kernels

sanitized-library:
	DINO_KERNELS_SANITIZE=address $(PYTHON) setup.py -q build --build-lib $(SANITIZED)
	$(SANITIZED_PYTHON) -c 'from dino_kernels import _native; assert _native.build_info()["sanitize"] == "address"'

sanitize-cpu: sanitized-library
	$(SANITIZED_PYTEST) -k "cpu and not emulated and not interpreted" --fuzz 60 $(SANITIZED_TESTS)

sanitize-cuda: sanitized-library
	$(SANITIZED_PYTEST) -k "(emulated or test_emulation or test_cuda_kernels) and not subset and not fp16 and not ((channels or hundreds) and bf16)" --fuzz 20 $(SANITIZED_EMULATION)

sanitize-cuda-matching: sanitized-library
	$(SANITIZED_PYTEST) -k "not fp16" tests/test_cuda_matching.py

# A failing or endless test does not cost the measurements; the exit code tells of both.
gpu:  ## on a machine with a GPU, without network, in 9 minutes: install, test, measure into GPU_RESULTS
	@end=$$(($$(date +%s) + $(GPU_SECONDS))); set -ex; \
	$(PYTHON) -m pip install --no-build-isolation --no-deps -e .; \
	$(PYTHON) -m dino_kernels; \
	status=0; \
	timeout --kill-after=5 $(GPU_TEST_SECONDS) $(PYTHON) -m pytest --gpu --fuzz 50 -q --tb=short --maxfail=10 || status=$$?; \
	$(PYTHON) -m benchmarks.gpu --results $(GPU_RESULTS) --budget $$((end - $$(date +%s))) $(GPU_OPTIONS) || status=$$?; \
	exit $$status

gpu-sanitize:  ## the CUDA kernels under compute-sanitizer, on the smallest cases
	for tool in $(GPU_TOOLS); do \
	  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --error-exitcode 1 --print-limit 20 \
	    $(PYTHON) -m benchmarks.sanitize || exit 1; \
	done
