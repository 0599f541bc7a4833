"""Every user's FLOP counter sees the ops, whichever is imported first, and is not imported with the package."""

from __future__ import annotations

import json

import pytest

PROGRAM = """
import json, sys
if sys.argv[1] == "kernels":
    import dino_kernels
    assert "torch.utils.flop_counter" not in sys.modules, "the counter is imported with the package"
import torch.utils.flop_counter
import dino_kernels
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
