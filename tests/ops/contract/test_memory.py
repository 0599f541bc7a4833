"""Peak memory of the CPU kernels, and addresses above 2^31 elements."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import pytest
import torch

from dino_kernels import fused_ms_deform_attn
from dino_kernels.ops._core import libraries
from dino_kernels.testing import Case

pytestmark = pytest.mark.compiler

# Runs by itself: a process's peak cannot be lowered again by every kernel.
PROGRAM = """
import json, sys
import torch
from dino_kernels.testing import Case, random_grad_output, sample_inputs
from dino_kernels import fused_ms_deform_attn, ms_deform_attn

op, dtype, layout = sys.argv[1], getattr(torch, sys.argv[2]), sys.argv[3]
function = {"ms_deform_attn": ms_deform_attn, "fused_ms_deform_attn": fused_ms_deform_attn}[op]


def status(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def reset_peak():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def growth(call):
    reset_peak()
    before = status("VmRSS")
    result = call()
    return status("VmHWM") - before, result


def size(*tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def measure(case):
    inputs = sample_inputs(op, case, dtype)
    differentiated = [x for x in inputs.values() if isinstance(x, torch.Tensor) and x.requires_grad]
    forward, output = growth(lambda: function(**inputs, backend="cpu"))
    grad = random_grad_output(output)
    backward, grads = growth(lambda: torch.autograd.grad(output, differentiated, grad))
    return {
        "forward": forward,
        "backward": backward,
        "output": size(output),
        "inputs": size(*differentiated),
        "gradients": size(*grads),
        "samples": case.batch * case.queries * case.heads * case.K * case.channels * 4,
    }


torch.set_num_threads(2)
points = (4, 4, 4, 4)
small = Case("warm", 1, 50, 8, 32, ((8, 8), (4, 4), (2, 2), (1, 1)), points, layout=layout)
measure(small)
large = ((48, 80), (24, 40), (12, 20), (6, 10))
print(json.dumps(measure(Case("large", 1, 5100, 8, 32, large, points, layout=layout))))
"""
MEGABYTE = 2**20


@pytest.fixture
def peaks(make_inputs, run_python) -> Callable[..., dict[str, int]]:
    if sys.platform != "linux":
        pytest.skip("peak memory is read from /proc")
    make_inputs("ms_deform_attn", Case("probe", 1, 1, 1, 1, ((1, 1),), (1,)), torch.float32, "cpu")
    if (libraries.build_info() or {}).get("sanitize"):
        pytest.skip("a sanitizer's own memory would be measured")

    def measure(op: str, dtype: str, layout: str) -> dict[str, int]:
        # Every large block straight from the kernel and back: freed memory must not hide a new peak.
        return json.loads(run_python(PROGRAM, op, dtype, layout, MALLOC_MMAP_THRESHOLD_="65536"))

    return measure


@pytest.mark.parametrize(("dtype", "layout"), [("float32", "local"), ("bfloat16", "uniform")])
def test_the_fused_op_keeps_nothing_of_the_size_of_its_samples(peaks, dtype, layout):
    peak = peaks("fused_ms_deform_attn", dtype, layout)
    assert peak["forward"] <= peak["output"] + 4 * MEGABYTE, peak
    assert peak["backward"] <= peak["gradients"] + peak["inputs"], peak
    assert peak["backward"] < peak["samples"] / 3, peak


def test_the_classic_op_keeps_nothing_of_the_size_of_its_samples(peaks):
    peak = peaks("ms_deform_attn", "float32", "local")
    assert peak["forward"] <= peak["output"] + 4 * MEGABYTE, peak
    assert peak["backward"] <= peak["gradients"] + peak["inputs"], peak


@pytest.fixture
def large(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--large"):
        pytest.skip("tensors of more than 2^31 elements: pass --large (about 14 GB)")


def test_value_rows_beyond_2_31_elements_are_addressed(make_inputs, large, kernel):
    """The last pixel of a level of 2900 x 2900 pixels, 8 heads and 32 channels, forward and backward."""
    probe = make_inputs("fused_ms_deform_attn", Case("probe", 1, 1, 1, 1, ((1, 1),), (1,)), torch.float32, kernel)
    side, heads, channels, device = 2900, 8, 32, probe["value"].device
    value = torch.zeros(1, side * side, heads, channels, dtype=torch.bfloat16, device=device)
    assert value.numel() > 2**31
    last = torch.arange(heads * channels, dtype=torch.bfloat16, device=device).view(heads, channels)
    value[0, -1] = last
    value.requires_grad_()
    reference = torch.full((1, 1, 1, 2), (side - 0.5) / side, device=device)
    offsets = torch.zeros(1, 1, heads, 1, 1, 2, dtype=torch.bfloat16, device=device)
    logits = torch.zeros(1, 1, heads, 1, 1, dtype=torch.bfloat16, device=device)
    output = fused_ms_deform_attn(value, [(side, side)], None, reference, offsets, logits, backend=kernel)
    # (side - 0.5) / side in float32 may lie a thousandth of a pixel beside the centre.
    torch.testing.assert_close(output.view(heads, channels), last, rtol=0.01, atol=0.01)
    (grad,) = torch.autograd.grad(output, value, torch.ones_like(output))
    torch.testing.assert_close(grad[0, -1], torch.ones_like(last), rtol=0.01, atol=0)
    assert (grad[0, : -side - 2] == 0).all()


def test_offsets_beyond_2_31_elements_are_addressed(make_inputs, large):
    """Two hundred million queries, of which the last looks elsewhere."""
    make_inputs("fused_ms_deform_attn", Case("probe", 1, 1, 1, 1, ((1, 1),), (1,)), torch.float32, "cpu")
    queries, points = 2**28 + 64, 4
    value = torch.arange(12.0, dtype=torch.bfloat16).view(1, 12, 1, 1)
    reference = torch.full((1, 1, 1, 2), 0.5).expand(1, queries, 1, 2)
    offsets = torch.zeros(1, queries, 1, 1, points, 2, dtype=torch.bfloat16)
    assert offsets.numel() > 2**31
    offsets[0, -1, ..., 0] = 1.0
    logits = torch.zeros(1, queries, 1, 1, points, dtype=torch.bfloat16)
    output = fused_ms_deform_attn(value, [(3, 4)], None, reference, offsets, logits, backend="cpu")
    middle = torch.tensor(5.5, dtype=torch.bfloat16)  # between columns 1 and 2 of row 1
    assert (output[0, :-1] == middle).all()
    assert output[0, -1] == middle + 1
