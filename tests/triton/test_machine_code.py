"""Triton's kernels as machine code: compiled for sm_90, executed on the CPU and counted as the CUDA kernels are."""

from __future__ import annotations

import pytest
import torch

from dino_kernels.ops._core import triton_support
from dino_kernels.testing import Case, run, sample_inputs

pytest.importorskip("triton", reason=triton_support.MISSING)

from benchmarks.sass.disassembly import MissingTool
from benchmarks.sass.kinds import by_kind
from benchmarks.sass.triton_kernels import run_programs
from tests.triton.test_variants import attention, call_attention, gpu, one_cache

__all__ = ["attention", "one_cache"]  # fixtures


def test_the_forward_computes_the_op_and_is_counted(attention):
    op, dtype = "fused_ms_deform_attn", torch.bfloat16
    case = Case("encoder", 1, 9, 8, 32, ((3, 2), (2, 1)), (4, 4))
    call_attention(op, case, dtype, as_list=True)
    forward, _ = attention
    args, options = forward.calls[0]
    output = args[8]
    programs = -(-case.queries // options["BLOCK_Q"]) * case.heads
    try:
        kernel, ledgers = run_programs(
            forward.compile(0, gpu(90))["cubin"], args, options["num_warps"], programs, range(programs)
        )
    except MissingTool as missing:
        pytest.skip(str(missing))
    inputs = sample_inputs(op, case, dtype) | {"spatial_shapes": case.shapes, "level_start_index": None}
    expected = run(op, inputs, "reference").output
    assert (output.float() - expected.float()).abs().max() <= 2e-2 * expected.float().abs().max()
    kinds = by_kind(kernel.instructions, ledgers[0].at)
    assert kinds["LDG 128"] >= 8 * len(case.shapes) and not any(kind.startswith("other") for kind in kinds)
