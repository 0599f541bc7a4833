"""The CPU kernels of every instruction set this processor has, not only of the one it would choose."""

from __future__ import annotations

import torch

from dino_kernels.testing import Case

PROGRAM = """
import json
import torch
from dino_kernels.ops._core import libraries
from dino_kernels.testing import CASES, DTYPES, assert_accurate, sample_inputs

wanted = ("channels", "decoder_few", "rtdetr", "hostile", "many", "wide", "odd")
cases = [case for case in CASES if case.name.startswith(wanted)]
failed = []
for case in cases:
    for dtype in DTYPES:
        for op in ("ms_deform_attn", "fused_ms_deform_attn"):
            try:
                assert_accurate(op, sample_inputs(op, case, DTYPES[dtype]), "cpu")
            except Exception as error:
                failed.append(f"{op} {dtype} {case.id}: {str(error)[:400]}")
print(json.dumps({"capability": libraries.C.cpu_capability(), "failed": failed}))
"""


def test_kernels_of_an_instruction_set_are_as_accurate_as_pytorch(make_inputs, run_at_capability):
    make_inputs("ms_deform_attn", Case("probe", 1, 1, 1, 1, ((1, 1),), (1,)), torch.float32, "cpu")
    failed = run_at_capability(PROGRAM)
    assert not failed, "\n".join(failed)
