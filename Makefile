PYTHON ?= python3
CXX ?= c++
CSRC := $(shell find csrc tests/cuda/emulation benchmarks -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.h')

# The sanitized library lives apart, with a copy of the package, so that the normal build stays as it is.
SANITIZED := build/sanitized
# Tests marked "compiler" are slow or noisy under a sanitizer, and not what it is for.
SANITIZED_TESTS := tests/ops
# Python itself is not instrumented, so the runtime has to be there before it; libstdc++ too, to see exceptions.
SANITIZED_PYTHON = PYTHONPATH=$(SANITIZED) ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
  LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" $(PYTHON) -P
# Before the "." of pyproject.toml, which has the package that is not sanitized. A sanitizer ends the process: its
# report must not be captured.
SANITIZED_PYTEST = $(SANITIZED_PYTHON) -m pytest -q -p no:cacheprovider --capture=sys -m "not compiler" \
  -o "pythonpath=$(SANITIZED) ."
# The emulated CUDA kernels take ten times as long as the CPU's: each kernel, access and table; float16 has the accesses
# of bfloat16.
SANITIZED_EMULATION := tests/cuda/test_emulation.py tests/cuda/test_kernels.py tests/ops/test_fuzz.py
