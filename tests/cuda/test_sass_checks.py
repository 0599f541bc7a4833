"""The checks of machine code find planted faults in a kernel that nvcc compiled, and none in a clean one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from benchmarks.sass import checks
from benchmarks.sass.disassembly import MissingTool, cubins, find_tool, read_kernels
from benchmarks.sass.execution import Block, Program
from benchmarks.sass.launch import constant_bank
from benchmarks.sass.memory import Memory
from tests.cuda.assembly import BASE

PLANTED = r"""
#include <cstdint>
#include <cstring>
// Faults: a vector of shared memory that may be unaligned, an array in local memory in a loop,
// generic accesses and doubles.
extern "C" __global__ void planted(float* to, const int* order, int n) {
  __shared__ unsigned char bytes[64 * 4 + 4];
  bytes[threadIdx.x] = threadIdx.x;
  __syncthreads();
  uint32_t word;
  memcpy(&word, bytes + 4 * threadIdx.x + n, 4);
  float kept[16];
  for (int i = 0; i < 16; ++i) kept[i] = order[i];
  float sum = word;
#pragma unroll 1
  for (int i = 0; i < n; ++i) {
    kept[order[i] & 15] += sum;
    sum += kept[order[i + 1] & 15];
  }
  float* either = n > 7 ? reinterpret_cast<float*>(bytes) + threadIdx.x : to + threadIdx.x;
  *either = static_cast<float>(sum * 1.5 + n);
  __syncthreads();
  atomicAdd(to + threadIdx.x, reinterpret_cast<float*>(bytes)[threadIdx.x]);
}
extern "C" __global__ void clean(float* to, int n) {
  float sum = 0;
#pragma unroll 1
  for (int i = 0; i < n; ++i) sum = sum * 0.5f + i;
  to[threadIdx.x] = sum;
}
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The kernels of PLANTED."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not Path(nvcc).exists():
        pytest.skip("nvcc was not found")
    try:
        for tool in ("cuobjdump", "nvdisasm"):
            find_tool(tool)
    except MissingTool as missing:
        pytest.skip(str(missing))
    folder = tmp_path_factory.mktemp("sass")
    source, cubin = folder / "planted.cu", folder / "planted.cubin"
    source.write_text(PLANTED)
    done = subprocess.run([nvcc, "-O3", "-arch=sm_90", "-cubin", source, "-o", cubin], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"nvcc does not work here: {done.stderr.strip()[:200]}")
    return {kernel.name: kernel for path in cubins(cubin, 90) for kernel in read_kernels(path, 90)}


def test_the_checks_find_what_was_planted(compiled):
    planted = compiled["planted"]
    assert len(checks.byte_loads_of_shared(planted)) >= 4
    assert checks.local_memory_in_loops(planted)
    assert checks.generic_accesses(planted)
    assert checks.doubles(planted)
    assert checks.narrow_reductions(planted) and checks.flushing_reductions(planted)
    assert planted.stack >= 64 and planted.static_shared == 260


def test_the_checks_find_nothing_in_a_clean_kernel(compiled):
    clean = compiled["clean"]
    for check in (
        checks.byte_loads_of_shared,
        checks.local_memory_in_loops,
        checks.generic_accesses,
        checks.doubles,
        checks.narrow_reductions,
        checks.flushing_reductions,
    ):
        assert check(clean) == []
    assert len(checks.loops(clean.instructions)) >= 1


def test_a_compiled_kernel_computes_what_its_source_says(compiled):
    clean = compiled["clean"]
    memory = Memory("global", 4096, BASE)
    at, n = memory.allocate(256), 37
    bank = constant_bank(clean, at.to_bytes(8, "little") + n.to_bytes(4, "little"), 1, 64)
    ledger = Block(Program(clean.instructions), bank, memory, 0, 64, 1024).run()
    total = np.float32(0)
    for i in range(n):
        total = np.float32(total * np.float32(0.5) + np.float32(i))
    assert (memory.get(at, np.float32, (64,)) == total).all()
    assert ledger.at.total() > 2 * 3 * n
    with pytest.raises(ValueError, match="takes 12 bytes"):
        constant_bank(clean, bytes(8), 1, 64)
