"""The CPU kernels of every instruction set this processor has, not only of the one it would choose."""

from __future__ import annotations

import json

import pytest
import torch

from dino_kernels import _native
from dino_kernels.testing import Case

ORDER = ("default", "avx2", "avx512")  # the values of PyTorch's own ATEN_CPU_CAPABILITY
NAMES = {"default": "plain", "avx2": "avx2", "avx512": "avx512"}

PROGRAM = """
import json
import torch
from dino_kernels import _native
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
print(json.dumps({"capability": _native.C.cpu_capability(), "failed": failed}))
"""


@pytest.mark.parametrize("capability", ORDER)
def test_kernels_of_an_instruction_set_are_as_accurate_as_pytorch(make_inputs, run_python, capability):
    make_inputs("ms_deform_attn", Case("probe", 1, 1, 1, 1, ((1, 1),), (1,)), torch.float32, "cpu")
    assert _native.C is not None
    widest = _native.C.cpu_capability()
    if ORDER.index(capability) > list(NAMES.values()).index(widest):
        pytest.skip(f"this processor has no {capability}")
    if NAMES[capability] == widest:
        pytest.skip(f"{widest} is what every other test runs on here")
    result = json.loads(run_python(PROGRAM, ATEN_CPU_CAPABILITY=capability))
    assert result["capability"] == NAMES[capability], "ATEN_CPU_CAPABILITY must choose the kernels"
    assert not result["failed"], "\n".join(result["failed"])
