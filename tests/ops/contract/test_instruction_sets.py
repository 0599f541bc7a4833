"""The CPU kernels of every instruction set of this processor, not only of the one that it would choose."""

from __future__ import annotations

PROGRAM = """
import json
import torch
from dino_kernels import linear_sum_assignment, matching_cost
from dino_kernels.ops._core import libraries
from dino_kernels.ops.linear_sum_assignment import Assignment
from dino_kernels.testing import *

failed = []


def check(label, compare, *arguments):
    try:
        compare(*arguments)
    except Exception as error:
        failed.append(f"{label}: {str(error)[:400]}")


for case in CASES:
    if case.name.startswith(("channels", "decoder_few", "rtdetr", "hostile", "many", "wide", "odd")):
        for dtype in DTYPES:
            for op in ("ms_deform_attn", "fused_ms_deform_attn"):
                inputs = sample_inputs(op, case, DTYPES[dtype])
                check(f"{op} {dtype} {case.id}", assert_accurate, op, inputs, "cpu")
for case in MATCHING_CASES:
    for dtype, preset in zip(DTYPES, ("dino", "detr", "rf_detr", "dino")):
        inputs = {**matching_inputs(case, DTYPES[dtype]), "preset": preset}
        cost = matching_cost(**inputs, backend="cpu")
        check(f"matching_cost {case.id} {dtype} {preset}", assert_cost_accurate, inputs, cost)
for case in ASSIGNMENT_CASES:
    for ties in ("lowest", "scipy"):
        for dtype in (torch.float32, torch.float64):
            cost = assignment_costs(case, dtype)[:3]
            results = [
                linear_sum_assignment(cost, ties=ties, full_output=True, backend=backend)
                for backend in ("cpu", "reference")
            ]
            check(f"assignment {case.id} {ties} {dtype}", assert_same_bits, *results, Assignment._fields)
print(json.dumps({"capability": libraries.C.cpu_capability(), "failed": failed}))
"""


def test_kernels_of_an_instruction_set_are_as_accurate_as_pytorch(require_matching, run_at_capability):
    require_matching("cpu")
    failed = run_at_capability(PROGRAM)
    assert not failed, "\n".join(failed)
