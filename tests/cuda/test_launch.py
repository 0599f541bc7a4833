"""The path from Python to a kernel's launch, without a GPU: stand-ins for libtorch_cuda.so and for the CUDA runtime.

Lines of launch.h and device.h in csrc/common that exist only for nvcc are compiled, linked to a CUDA runtime that
prints its calls, and run.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dino_kernels.ops._core import libraries
from dino_kernels.ops._core.libraries import CudaLibrary

ROOT = Path(__file__).resolve().parents[2]
STREAM = 0x5EED

# Like torch's own file: its symbols are found only by a look-up in this file.
TORCH_CUDA = f"""
#include <cstdint>
extern "C" int32_t aoti_torch_get_current_cuda_stream(int32_t device, void** stream) {{
  *stream = reinterpret_cast<void*>({STREAM} + device);
  return device == 13;
}}
"""

CUDA_RUNTIME = r"""
#include <cstdint>
#include <cstdio>
#include <cuda_runtime_api.h>
#undef cudaLaunchKernel
int ptx_version = 90;  // that a kernel was compiled for
static dim3 grid, block; static size_t shared; static cudaStream_t stream; static cudaError_t last = cudaSuccess;
extern "C" {
void** __cudaRegisterFatBinary(void*) { static void* handle; return &handle; }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
void __cudaRegisterFunction(void**, const char*, char*, const char*, int, uint3*, uint3*, dim3*, dim3*, int*) {}
unsigned __cudaPushCallConfiguration(dim3 g, dim3 b, size_t s, cudaStream_t on) {
  grid = g; block = b; shared = s; stream = on; return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* g, dim3* b, size_t* s, void* on) {
  *g = grid; *b = block; *s = shared; *static_cast<cudaStream_t*>(on) = stream; return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(function)); return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3 g, dim3 b, void** arguments, size_t s, cudaStream_t on) {
  printf("{\"call\": \"launch\", \"blocks\": %u, \"threads\": %u, \"shared\": %zu, \"stream\": %zu, "
         "\"argument\": %d}\n",
         g.x, b.x, s, reinterpret_cast<size_t>(on), *static_cast<int*>(arguments[0]));
  if (b.x == 1025) last = cudaErrorInvalidConfiguration;
  return last;
}
cudaError_t cudaLaunchKernel(const void*, dim3 g, dim3 b, void** arguments, size_t s, cudaStream_t on) {
  return __cudaLaunchKernel(nullptr, g, b, arguments, s, on);
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int value) {
  printf("{\"call\": \"allow\", \"shared\": %d}\n", value); return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* of, const void*) {
  of->ptxVersion = ptx_version; return cudaSuccess;
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel, void** arguments) {
  const cudaLaunchAttribute& early = *config->attrs;
  printf("{\"call\": \"launch with attributes\", \"number\": %u, \"early\": %d}\n", config->numAttrs,
         early.id == cudaLaunchAttributeProgrammaticStreamSerialization &&
             early.val.programmaticStreamSerializationAllowed == 1);
  return cudaLaunchKernel(kernel, config->gridDim, config->blockDim, arguments, config->dynamicSmemBytes,
                          config->stream);
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? 132 : 232448;
  return device == 7 ? cudaErrorInvalidDevice : cudaSuccess;
}
cudaError_t cudaGetLastError() { const cudaError_t error = last; last = cudaSuccess; return error; }
const char* cudaGetErrorString(cudaError_t) { return "a stand-in's error"; }

// Of torch, in place of libtorch_cpu's: a tensor is the number of its device, from 100 on a CPU.
int32_t aoti_torch_get_device_index(void* tensor, int32_t* index) {
  *index = static_cast<int32_t>(reinterpret_cast<size_t>(tensor)); return 0;
}
int32_t aoti_torch_get_device_type(void* tensor, int32_t* type) {
  *type = reinterpret_cast<size_t>(tensor) < 100; return 0;
}
int32_t aoti_torch_delete_tensor_object(void*) { return 0; }
int32_t aoti_torch_create_device_guard(int32_t index, void** guard) {
  printf("{\"call\": \"enter\", \"device\": %d}\n", index); *guard = &last; return 0;
}
int32_t aoti_torch_delete_device_guard(void* guard) {
  printf("{\"call\": \"leave\", \"right\": %d}\n", guard == &last); return 0;
}
}
"""

PROGRAM = r"""
#include <cstdio>
#include <stdexcept>
#include "common/device.h"
#include "common/launch.h"
using namespace dino_kernels;
extern int ptx_version;
__global__ void kernel(const int number) {}
__global__ void with_shared_memory(float* out) {
  DINO_DYNAMIC_SHARED(memory);
  *out = reinterpret_cast<float*>(memory)[threadIdx.x];
}
template <class Run> void attempt(Run run) {
  try { run(); } catch (const std::exception& error) { printf("{\"error\": \"%s\"}\n", error.what()); }
}
int main(int, char** arguments) {
  attempt([] { launch({"early", 3, 64, 100}, 0, &kernel, 41); });
  dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
  attempt([] { launch({"plain", 3, 64, 100}, 0, &kernel, 42); });
  attempt([] { launch({"much shared memory", 1, 32, 60000}, 1, &kernel, 43); });
  attempt([] { launch({"no blocks", 0, 32, 0}, 0, &kernel, 44); });
  attempt([] { launch({"too many", int64_t{1} << 31, 32, 0}, 0, &kernel, 45); });
  attempt([] { launch({"no stream", 1, 32, 0}, 13, &kernel, 46); });
  attempt([] { launch({"too many threads", 1, 1025, 0}, 0, &kernel, 47); });
  const LaunchShape early{"starts early", 5, 32, 64, true};
  attempt([&] { launch(early, 2, &kernel, 48); });
  ptx_version = 80;  // code without the instruction that waits
  attempt([&] { launch(early, 2, &kernel, 49); });
  attempt([] { device_facts("no device", 7); });
  const auto show = [] {
    const DeviceFacts facts = device_facts("facts", 0);
    printf("{\"multiprocessors\": %d, \"shared\": %ld}\n", facts.multiprocessors, long(facts.shared_bytes));
  };
  show();
  assumed_multiprocessors = 1;
  show();
  for (const size_t number : {3, 100}) {
    const torch::stable::Tensor tensor(reinterpret_cast<AtenTensorHandle>(number));
    const OnDevice device(tensor);
    printf("{\"current\": %d, \"for kernels\": %d}\n", device.index, OnCuda::is_here(tensor));
  }
}
"""


def compiled(command: list[str], source: Path, text: str) -> None:
    source.write_text(text)
    finished = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


@pytest.fixture
def torch_cuda(tmp_path: Path) -> Path:
    """A libtorch_cuda.so with nothing but the stream function."""
    library = tmp_path / "libtorch_cuda.so"
    command = ["c++", "-shared", "-fPIC", "-Wl,-soname,libtorch_cuda.so", "-o", str(library)]
    compiled(command, tmp_path / "torch_cuda.cpp", TORCH_CUDA)
    return library


LOOKUP = """
import ctypes, sys
import torch
from dino_kernels.ops._core import libraries
assert torch.version.cuda is None
library = ctypes.CDLL(str(libraries._CUDA_PATH))
assert not library.dino_kernels_cuda_has_current_stream(), "a CPU build of torch has none"
torch_cuda = ctypes.CDLL(sys.argv[1], ctypes.RTLD_LOCAL)
try:
    ctypes.CDLL(None).aoti_torch_get_current_cuda_stream
    raise SystemExit("the stand-in must keep its symbols to itself, as torch does")
except AttributeError:
    pass
assert library.dino_kernels_cuda_has_current_stream()
"""


@pytest.mark.skipif(libraries.CUDA is None, reason=str(libraries.CUDA_MISSING))
@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has a libtorch_cuda.so of its own")
def test_the_stream_function_is_found_in_a_torch_that_keeps_its_symbols_local(run_python, torch_cuda):
    run_python(LOOKUP, str(torch_cuda))


@pytest.mark.skipif(libraries.CUDA is None, reason=str(libraries.CUDA_MISSING))
@pytest.mark.skipif(torch.version.cuda is None, reason="torch is a CPU build")
def test_the_stream_function_is_found_in_the_installed_torch():
    assert libraries.CUDA is not None and libraries.CUDA.current_stream


def test_a_torch_without_the_stream_function_is_refused_with_what_is_missing(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert libraries._why_unusable(CudaLibrary(13000, 13000, "900", True)) is None
    assert "aoti_torch_get_current_cuda_stream" in str(libraries._why_unusable(CudaLibrary(13000, 13000, "900", False)))


@pytest.mark.skipif(libraries.CUDA is None, reason=str(libraries.CUDA_MISSING))
def test_no_weak_symbol_is_undefined():
    """A weak symbol that nothing defines is address 0 when it is called."""
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("readelf is not installed")
    symbols = subprocess.run(
        [readelf, "-W", "--dyn-syms", libraries._CUDA_PATH], capture_output=True, text=True, check=True
    )
    # These the C and C++ libraries' start-up code tests for null before it calls them.
    harmless = ("__cxa_finalize", "_ITM_", "__gmon_start__")
    weak = [line.split()[7] for line in symbols.stdout.splitlines() if " WEAK " in line and " UND " in line]
    assert [name for name in weak if not name.startswith(harmless)] == []


@pytest.fixture
def launches(tmp_path: Path, torch_cuda: Path, run_nvcc: Callable[..., None]) -> list[dict]:
    """Return what the program above printed, line by line."""
    torch_folder = Path(torch.__file__).parent
    runtime, program = tmp_path / "cudart.cpp", tmp_path / "program"
    runtime.write_text(CUDA_RUNTIME)
    source = tmp_path / "program.cu"
    source.write_text(PROGRAM)
    run_nvcc(
        *["-std=c++20", "-cudart=none", "-arch=sm_80", "-keep", "-DTORCH_TARGET_VERSION=0x020a000000000000"],
        *["-I", str(ROOT / "csrc"), "-isystem", str(torch_folder / "include"), str(source), str(runtime)],
        *["-L", str(torch_folder / "lib"), "-ltorch_cpu", "-lc10", "-ldl"],
        *["-Xlinker", f"-rpath={torch_folder / 'lib'}", "-o", str(program)],
    )
    finished = subprocess.run([program, torch_cuda], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return [json.loads(line) for line in finished.stdout.splitlines()]


def test_a_launch_takes_torchs_stream_and_every_refusal_says_why(launches, tmp_path):
    messages = [line["error"].rpartition("launch.h:")[2].partition(", ")[2] for line in launches if "error" in line]
    assert messages[0].startswith("early: the loaded libtorch_cuda.so has no aoti_torch_get_current_cuda_stream")
    assert messages[1:] == [
        "too many: 2147483648 blocks are more than a launch can have; split the batch",
        "no stream: PyTorch returned no CUDA stream for device 13",
        "too many threads: a stand-in's error",
        "no device: a stand-in's error",
    ]
    lines = [line for line in launches if "error" not in line]
    plain, allow, shared, refused, attributes, early, in_turn, own, assumed, *guards = lines
    assert refused["argument"] == 47
    assert plain == {"call": "launch", "blocks": 3, "threads": 64, "shared": 100, "stream": STREAM, "argument": 42}
    assert allow == {"call": "allow", "shared": 60000}
    assert (shared["shared"], shared["stream"], shared["argument"]) == (60000, STREAM + 1, 43)
    assert attributes == {"call": "launch with attributes", "number": 1, "early": 1}
    expected = {"call": "launch", "blocks": 5, "threads": 32, "shared": 64, "stream": STREAM + 2}
    assert early == {**expected, "argument": 48}
    assert in_turn == {**expected, "argument": 49}, "a kernel that cannot wait must not start early"
    assert own == {"multiprocessors": 132, "shared": 232448}
    assert assumed == {"multiprocessors": 1, "shared": 232448}
    assert guards == [
        {"call": "enter", "device": 3},
        {"current": 3, "for kernels": 1},
        {"call": "leave", "right": 1},
        {"call": "enter", "device": 100},
        {"current": 100, "for kernels": 0},
        {"call": "leave", "right": 1},
    ]
    # Dynamic shared memory is aligned for the largest loads; the compiler kept its output.
    ptx = (tmp_path / "program.ptx").read_text()
    assert re.findall(r"\.extern \.shared \.align (\d+) \.b8 memory\[\]", ptx) == ["16"]
