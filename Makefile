PYTHON ?= python3
CXX ?= c++
CSRC := $(shell find csrc dino_kernels tests/cuda/emulation benchmarks -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.h')

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
# The emulated CUDA kernels take ten times as long as the CPU's: each kernel, access and table. What reads the same memory
# is left out: other results of a call, further cases of a kernel, float16, which has the accesses of bfloat16.
SANITIZED_EMULATION := tests/cuda/test_emulation.py tests/cuda/test_kernels.py
SANITIZED_VARIANTS := not subset and not either_size and not every_element and not no_kernel_reads and not finite \
  and not fp16 and not ((channels or hundreds) and bf16)
# The classic op's kernels differ from the fused op's in how samples are read.
SANITIZED_CLASSIC := not hundreds and not borders and not windows and not last_block and not gradient_of_the_output

# The three GPU steps, each for one command of at most 9 minutes; benchmarks/README.md has them in order. What they find
# goes into the folder of GPU_RESULTS.
GPU_RESULTS ?= build/gpu/results.json
GPU_COMMIT ?=
# auto: install where no compiled libraries are here that run on this GPU; 1: always; 0: never.
GPU_INSTALL ?= auto
GPU_MEASURE_SECONDS ?= 500
# What `make gpu` may take in all, and of that its tests; what they leave is for the measurements.
GPU_SECONDS ?= 530
GPU_TEST_SECONDS ?= 240
GPU_OPTIONS ?=
GPU_ARCH ?= 9.0
# memcheck and racecheck, which finds races in shared memory; initcheck, reads of memory that nobody wrote.
GPU_TOOLS ?= memcheck racecheck initcheck
GPU_BUILD = TORCH_CUDA_ARCH_LIST=$(GPU_ARCH) PIP_DISABLE_PIP_VERSION_CHECK=1 \
  $(PYTHON) -m pip install --no-build-isolation --no-deps -e .
GPU_SUITE = $(PYTHON) -m benchmarks.gpu.suite --results $(GPU_RESULTS) --commit "$(GPU_COMMIT)" $(GPU_OPTIONS)

# Wheels go into WHEELS. One serves every Python from 3.11 on (limited API) and every torch from 2.10 on (stable ABI).
# The one without CUDA kernels has the version label +cpu. auditwheel names the oldest glibc that they run on, and
# copies nothing: torch brings its own libraries, and CUDA's runtime is linked statically.
WHEELS ?= dist
CPU_LABEL ?= +cpu
TOOLS ?= wheels nvcc
TORCH ?= torch
TAG ?=
TRIED ?= $(CURDIR)/build/tried
MOST_BYTES_OF_A_WHEEL := 100000000
# setuptools would put into a wheel what an earlier build left in build/lib.*.
define BUILD_WHEEL
rm -rf build/lib.* build/bdist.* build/wheel
$(PYTHON) -m build --wheel --no-isolation --outdir build/wheel -C--global-option=--quiet \
  $(if $(1),-C--build-option=egg_info -C--build-option=--tag-build=$(1))
if [ "$$(uname)" = Linux ]; then \
  auditwheel repair --exclude 'libtorch*.so' --exclude 'libc10*.so' --wheel-dir $(WHEELS) build/wheel/*.whl; \
else mkdir -p $(WHEELS) && cp build/wheel/*.whl $(WHEELS); fi
endef

# An aarch64 library is linked with that machine's torch. SYSROOT: a folder with Debian's arm64 packages python3.11-minimal,
# libpython3.11-stdlib, libstdc++6, libgomp1 and what they need, unpacked by `dpkg-deb -x`.
AARCH64 := build/aarch64
AARCH64_CXX ?= aarch64-linux-gnu-g++
AARCH64_TORCH ?= torch==2.10.0
SYSROOT ?= /
# --no-deps: pip would take what torch requires on this machine.
FOR_AARCH64 = $(PYTHON) -m pip install --quiet --upgrade --no-deps --target $(AARCH64)/site --python-version 3.11 \
  --only-binary=:all: $(addprefix --platform manylinux,2014_aarch64 _2_27_aarch64 _2_28_aarch64)

.PHONY: help install test bench lint format types workflows sanitize sanitized-library sanitized-emulation sanitize-cpu sanitize-onnx sanitize-cuda sanitize-cuda-fused sanitize-cuda-others wheels wheel-cpu wheel-cuda check-wheels test-wheels wheel-tools arm check-arm sdist hub check check-release release-page gpu gpu-ready gpu-smoke gpu-measure gpu-peers gpu-sanitize

help:  ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

install:  ## the package, editable, with everything to test, measure and develop it
	$(PYTHON) -m pip install -e ".[bench,test,dev]"

check:  ## the report of what is installed, and the kernels' results on this machine
	$(PYTHON) -m dino_kernels --check

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

workflows:  ## actionlint, and shellcheck where it is installed, on .github/workflows/
	actionlint .github/workflows/*.yml

sanitize: sanitize-cuda sanitize-cuda-fused sanitize-cpu sanitize-onnx sanitize-cuda-others  ## op tests with AddressSanitizer and UBSan: CPU library, ONNX Runtime's op, emulated CUDA kernels
	@$(PYTHON) .ci/sanitized.py --write

sanitized-library:
	DINO_KERNELS_SANITIZE=address $(PYTHON) setup.py -q build --build-lib $(SANITIZED)
	$(SANITIZED_PYTHON) -c 'from dino_kernels.ops._core import libraries; assert libraries.build_info()["sanitize"] == "address"'

# Its tests would compile it, too, and wait for one another.
sanitized-emulation:
	$(PYTHON) tests/cuda/emulation/build.py --sanitize

sanitize-cpu: sanitized-library
	$(SANITIZED_PYTEST) -k "cpu and not emulated and not interpreted and not (accurate and (fp16 or fp64))" --fuzz 60 $(SANITIZED_TESTS)

sanitize-onnx: sanitized-library
	$(SANITIZED_PYTEST) tests/onnx/test_node.py tests/onnx/test_library.py

sanitize-cuda: sanitized-library sanitized-emulation
	$(SANITIZED_PYTEST) -k "not fused_ms and $(SANITIZED_CLASSIC) and $(SANITIZED_VARIANTS)" $(SANITIZED_EMULATION)

sanitize-cuda-fused: sanitized-library sanitized-emulation
	$(SANITIZED_PYTEST) -k "fused_ms and $(SANITIZED_VARIANTS)" $(SANITIZED_EMULATION)

sanitize-cuda-others: sanitized-library sanitized-emulation
	$(SANITIZED_PYTEST) -k "(test_matching or emulated) and not fp16" --fuzz 20 tests/cuda/test_matching.py tests/ops/test_fuzz.py

wheels:  ## a CPU wheel and a CUDA wheel for every Python and torch, into dist/, checked
	rm -f $(WHEELS)/*.whl
	$(MAKE) wheel-cpu
	$(MAKE) wheel-cuda
	$(MAKE) check-wheels

wheel-cpu: export DINO_KERNELS_CUDA = 0
wheel-cuda: export DINO_KERNELS_CUDA = 1

wheel-cpu:  ## the wheel without CUDA kernels, for Linux or macOS
	$(call BUILD_WHEEL,$(CPU_LABEL))

wheel-cuda:  ## the wheel with CUDA kernels; fails without nvcc
	$(call BUILD_WHEEL)

check-wheels:  ## the limited API and the size of the wheels in dist/
	abi3audit --strict --assume-minimum-abi3 3.11 $(WHEELS)/*.whl
	@ls -l $(WHEELS)/*.whl | awk '{print; if ($$5 > $(MOST_BYTES_OF_A_WHEEL)) bad = 1} END {exit bad}'

# No compiler, nvcc or ninja is on the PATH of the new environment.
test-wheels:  ## each wheel in dist/ in a new environment: PYTHON=python3.13 TORCH=torch==2.10.0 (gigabytes)
	$(PYTHON) -m venv --clear $(TRIED)
	$(TRIED)/bin/python -m pip install --quiet "$(TORCH)" numpy
	for wheel in $(abspath $(wildcard $(WHEELS)/*.whl)); do echo "$$wheel"; cd $(TRIED) && \
	  bin/python -m pip install --quiet --no-deps --force-reinstall "$$wheel" && \
	  env -u PYTHONPATH PATH="$$PWD/bin" bin/python -m dino_kernels --check || exit 1; done

wheel-tools:  ## what `make wheels` needs: torch's headers and the extras of TOOLS
	$(PYTHON) -c 'import sys, tomllib; \
	  extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
	  print("numpy", *(need for name in sys.argv[1:] for need in extras[name]), sep="\n")' $(TOOLS) \
	  | $(PYTHON) -m pip install "$(TORCH)" -r /dev/stdin

# Debian's Python includes its configuration by the architecture's name, and is the same for the limited API of another
# 64-bit Linux.
arm:  ## the CPU libraries for aarch64, by a cross compiler, into build/aarch64/
	$(FOR_AARCH64) "$(AARCH64_TORCH)"
	mkdir -p $(AARCH64)/include
	ln -sfn /usr/include/x86_64-linux-gnu $(AARCH64)/include/aarch64-linux-gnu
	_PYTHON_HOST_PLATFORM=linux-aarch64 CXX="$(AARCH64_CXX) -L$(CURDIR)/$(AARCH64)/site/torch/lib" DINO_KERNELS_CUDA=0 \
	  CPATH=$(CURDIR)/$(AARCH64)/include $(PYTHON) setup.py -q build --build-lib $(AARCH64)/lib

check-arm:  ## these kernels against the reference, on qemu's aarch64: SYSROOT=FOLDER
	$(FOR_AARCH64) numpy filelock typing-extensions sympy mpmath networkx jinja2 markupsafe fsspec
	PYTHONPATH=$(CURDIR)/$(AARCH64)/lib:$(CURDIR)/$(AARCH64)/site \
	  qemu-aarch64 -L $(SYSROOT) $(SYSROOT)/usr/bin/python3.11 -P -m dino_kernels --check

check-release:  ## the version, the changelog and the citation agree with TAG=v0.1.0
	$(PYTHON) .ci/release.py "$(TAG)"

release-page:  ## the page of a release, with the files in dist/, by GitHub's client
	gh release create "$(TAG)" --verify-tag --notes-file CHANGELOG.md $(WHEELS)/*

hub:  ## the source of the kernel for the Hugging Face kernel hub, into build/hub/
	$(PYTHON) csrc/hub/export.py build/hub

sdist:  ## the source distribution, into dist/
	$(PYTHON) -m build --sdist --no-isolation --outdir $(WHEELS)

gpu-ready:  # fails with one line where there is no GPU; builds the libraries where they are missing
	@code=0; $(PYTHON) -m benchmarks.gpu.ready || code=$$?; \
	if [ $$code -ne 0 ] && [ $$code -ne 3 ]; then exit $$code; fi; \
	if [ "$(GPU_INSTALL)" = 1 ] || { [ $$code -eq 3 ] && [ "$(GPU_INSTALL)" != 0 ]; }; then \
	  echo '$(GPU_BUILD)'; $(GPU_BUILD); fi

gpu-smoke: gpu-ready  ## on a machine with a GPU, in 2 minutes: does every kernel family work? each check in its own process
	$(PYTHON) -m benchmarks.gpu.smoke --results $(dir $(GPU_RESULTS))smoke.json --commit "$(GPU_COMMIT)"

gpu-measure: gpu-ready  ## in 9 minutes: the speed of kernels and peers into GPU_RESULTS; again: resume
	$(GPU_SUITE) --budget $(GPU_MEASURE_SECONDS)

# A failing or endless test does not cost the measurements; the exit code reports both.
gpu: gpu-ready  ## in 9 minutes: all GPU tests in parallel, then what is not measured yet, into GPU_RESULTS
	@end=$$(($$(date +%s) + $(GPU_SECONDS))); status=0; set -x; \
	$(PYTHON) -m dino_kernels || status=$$?; \
	$(PYTHON) -m benchmarks.gpu.tests --seconds $(GPU_TEST_SECONDS) || status=$$?; \
	$(GPU_SUITE) --budget $$((end - $$(date +%s))) || status=$$?; \
	exit $$status

gpu-peers:  ## peers of the GPU suite into peers/site, to be carried to a machine without network
	$(PYTHON) -m benchmarks.gpu.peers

gpu-sanitize:  ## the CUDA kernels under compute-sanitizer, on the smallest cases
	for tool in $(GPU_TOOLS); do \
	  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --error-exitcode 1 --print-limit 20 \
	    $(PYTHON) -m benchmarks.gpu.sanitize || exit 1; \
	done
