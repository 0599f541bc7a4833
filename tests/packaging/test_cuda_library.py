"""The compiled CUDA library on any machine: that it loads, what it registers, and which GPUs it turns down."""

from __future__ import annotations

import re

import pytest
import torch

from dino_kernels import explain, fused_ms_deform_attn
from dino_kernels.ops._core import libraries
from dino_kernels.ops._core.dispatch import ops
from dino_kernels.ops._core.libraries import CudaLibrary, unsupported_gpu
from dino_kernels.ops.ms_deform_attn.native import unsupported_sizes
from dino_kernels.testing import Case, sample_inputs

NATIVE_OPS = sorted({name for each in ops().values() for name in each.modules["cuda"].native_ops})


@pytest.fixture
def on_gpu(monkeypatch):
    """A machine with a GPU of the given capability, and a library compiled for the given architectures."""

    def pretend(capability: tuple[int, int], architectures: str, flags: list[str]) -> None:
        monkeypatch.setattr(libraries, "_unsupported_gpus", {})
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
        monkeypatch.setattr(libraries, "CUDA", CudaLibrary(13000, 13000, architectures, True))
        monkeypatch.setattr(libraries, "build_info", lambda: {"cuda": {"nvcc": "13.0.48", "flags": flags}})

    return pretend


@pytest.mark.skipif(libraries.CUDA is None, reason=str(libraries.CUDA_MISSING))
@pytest.mark.parametrize("name", NATIVE_OPS)
def test_every_native_op_has_a_cuda_kernel_once_the_library_is_loaded(name):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"dino_kernels_native::{name}", "CUDA")


@pytest.mark.skipif(libraries.CUDA is None, reason=str(libraries.CUDA_MISSING))
def test_the_library_says_which_cuda_and_which_architectures_it_was_compiled_for():
    assert libraries.CUDA is not None
    compiler = (libraries.build_info() or {})["cuda"]
    assert compiler["nvcc"].startswith(f"{libraries.version_text(libraries.CUDA.runtime)}.")
    architectures = sorted({int(number) for flag in compiler["flags"] for number in re.findall(r"sm_(\d+)", flag)})
    assert libraries.CUDA.architectures == ",".join(f"{number}0" for number in architectures)


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0)])
def test_machine_code_runs_on_its_own_architecture_and_newer_ones_of_the_same_generation(on_gpu, capability):
    on_gpu(capability, "800,900", ["-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90,code=sm_90"])
    assert unsupported_gpu(0) is None


@pytest.mark.parametrize("capability", [(10, 0), (12, 0)])
def test_newer_generations_need_ptx(on_gpu, capability):
    on_gpu(capability, "800,900", ["-gencode=arch=compute_90,code=sm_90"])
    assert unsupported_gpu(0) == (
        f"the kernels were compiled for sm_80, sm_90, and this GPU is sm_{capability[0]}{capability[1]}: build again "
        f'with TORCH_CUDA_ARCH_LIST="{capability[0]}.{capability[1]}"'
    )
    on_gpu(capability, "800,900", ["-gencode=arch=compute_90,code=[sm_90,compute_90]"])
    assert unsupported_gpu(0) is None


@pytest.mark.parametrize("capability", [(7, 0), (7, 5)])
def test_older_gpus_are_turned_down_with_what_to_do(on_gpu, capability):
    on_gpu(capability, "800,900", ["-gencode=arch=compute_90,code=[sm_90,compute_90]"])
    assert "TORCH_CUDA_ARCH_LIST" in str(unsupported_gpu(0))


def test_an_older_minor_version_is_turned_down(on_gpu):
    on_gpu((8, 0), "860", [])
    assert unsupported_gpu(0) is not None


def test_a_gpu_is_looked_at_once(on_gpu, monkeypatch):
    on_gpu((9, 0), "800,900", [])
    looked_at = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: looked_at.append(index) or (9, index))
    assert [unsupported_gpu(index) for index in (0, 1, 0, 1)] == [None] * 4
    assert looked_at == [0, 1]


def test_asking_for_the_gpu_breaks_no_graph(on_gpu):
    on_gpu((9, 0), "800,900", [])

    @torch.compile(fullgraph=True, backend="eager")
    def call(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if unsupported_gpu(0) is None else x

    assert call(torch.zeros(1)).item() == 1


def test_too_many_levels_or_samples_are_refused_with_the_number():
    assert unsupported_sizes([4] * 32) is None
    assert unsupported_sizes([1] * 33) == "it has room for 32 levels, got 33"
    assert unsupported_sizes([1024]) is None
    assert unsupported_sizes([1000, 25]) == "it has room for 1024 samples per head, got 1025"


def test_cpu_tensors_are_not_for_cuda():
    inputs = sample_inputs("fused_ms_deform_attn", Case("cpu", 1, 5, 2, 8, ((3, 4),), (2,)), torch.float32)
    reason = explain(fused_ms_deform_attn, **inputs).reasons["cuda"]
    assert reason == "it runs on CUDA tensors, value is on cpu"
