"""Every user's FLOP counter sees the ops, whichever is imported first."""

from __future__ import annotations

import json

import pytest

PROGRAM = """
import json, sys
imports = ["import torch.utils.flop_counter", "import dino_kernels"]
for line in imports if sys.argv[1] == "counter" else imports[::-1]:
    exec(line)
assert sys.argv[1] == "counter" or "torch.utils.flop_counter" in sys.modules
import torch
from torch.utils.flop_counter import FlopCounterMode
from dino_kernels.nn import MSDeformAttn
counts = []
for points, frozen in ((2, False), ([1, 2, 3], True)):
    module = MSDeformAttn(32, 3, 4, points)
    module.value_proj.requires_grad_(not frozen)
    query, value = torch.rand(2, 5, 32, requires_grad=True), torch.rand(2, 28, 32)
    with FlopCounterMode(display=False) as counter:
        module(query, torch.rand(2, 5, 3, 2), value, [(4, 5), (2, 3), (1, 2)]).sum().backward()
    found = {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}
    counts.append([found[f"dino_kernels.fused_ms_deform_attn{end}"] for end in ("", "_backward")])
print(json.dumps(counts))
"""


@pytest.mark.parametrize("first", ["counter", "kernels"])
def test_a_counter_sees_forward_and_backward(run_python, first):
    # Batch, queries, heads, samples; four corners of 8 channels, a multiply-add counted as two.
    forward = 2 * 5 * 4 * 6 * 4 * (2 * 8 + 2)
    assert json.loads(run_python(PROGRAM, first)) == [[forward, 2 * forward], [forward, forward]]


def test_the_counter_is_not_imported_with_the_package(run_python):
    program = "import sys, dino_kernels; print('torch.utils.flop_counter' in sys.modules)"
    assert run_python(program).strip() == "False"
