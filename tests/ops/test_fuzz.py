"""Random sizes, layouts, dtypes, tables and strides: 200 by default, `--fuzz 10000` for a long run.

Of the emulated CUDA kernels a quarter of 200 or fewer; a long run has as many. Of the Triton kernels, which are
interpreted, a few small calls, a fortieth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dino_kernels.testing import DTYPES, Case, assert_accurate, run, sample_inputs
from tests.comparison import assert_same_but_for_the_order_of_sums
from tests.cuda.emulation import backend as emulation

SIZES = st.one_of(st.just(1), st.integers(1, 12))
CHANNELS = st.one_of(st.sampled_from([1, 3, 4, 8, 16, 32, 36, 64, 128]), st.integers(1, 40))


@st.composite
def cases(draw: st.DrawFn, small: bool = False) -> Case:
    shapes = tuple(draw(st.lists(st.tuples(SIZES, SIZES), min_size=1, max_size=3 if small else 5)))
    most = 2 if small else 7  # points
    if draw(st.booleans()):
        points = (draw(st.integers(0, most - 1)),) * len(shapes)
    else:
        points = tuple(draw(st.integers(0, most)) for _ in shapes)
    rows = sum(height * width for height, width in shapes)  # as many queries: an encoder's call
    few = 6 if small else 20
    return Case(
        "fuzz",
        batch=draw(st.integers(0, 2 if small else 3)),
        queries=draw(st.one_of(st.integers(0, few), st.just(rows)) if rows <= 4 * few else st.integers(0, few)),
        heads=draw(st.integers(1, 2 if small else 8)),
        channels=draw(CHANNELS),
        shapes=shapes,
        points=points,
        reference_coordinates=draw(st.sampled_from([2, 4])),
        mask=draw(st.booleans()),
        layout=draw(st.sampled_from(["uniform", "local", "hostile"])),
    )


def table(inputs: dict[str, Any], case: Case, form: str) -> None:
    """Another spelling of the same levels, in place."""
    if form == "list":
        inputs |= {"spatial_shapes": list(case.shapes), "level_start_index": None}
    elif form == "no_starts":
        inputs["level_start_index"] = None
    elif form == "int32":
        inputs["spatial_shapes"] = inputs["spatial_shapes"].int()
        inputs["level_start_index"] = inputs["level_start_index"].int()


def strided(tensor: Tensor, how: str) -> Tensor:
    """The same numbers at other addresses."""
    tensor = tensor.detach()
    if how == "transposed":
        tensor = tensor.transpose(0, 1).contiguous().transpose(0, 1)
    elif how == "sliced":
        tensor = torch.cat([tensor, tensor], -1)[..., : tensor.shape[-1]]
    elif how == "misaligned":
        storage = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
        tensor = storage[1:].view(tensor.shape).copy_(tensor)
    return tensor


@pytest.fixture(params=["cpu", "emulated", "interpreted"])
def library(request: pytest.FixtureRequest) -> str:
    """The kernels that run on this CPU; examples take the CUDA ones several times as long, and Triton's hundreds."""
    return request.param


def run_fuzz(
    request: pytest.FixtureRequest, library: str, check: Callable[..., None], **drawn: st.SearchStrategy
) -> None:
    requested = int(request.config.getoption("--fuzz") or 1)
    long_run = requested > 200
    examples = requested if library == "cpu" or long_run else max(1, requested // 4)
    if library == "interpreted":
        examples = max(1, requested // 40)
        drawn["case"] = cases(small=True)

    def on_any_device(size: int, **rest: Any) -> None:
        with emulation.multiprocessors(size):
            check(**rest)

    if library == "emulated":  # what is large for one device is small for another, and has other kernels
        drawn["size"] = st.sampled_from([1, 32])
    profile = settings(
        max_examples=examples,
        deadline=None,
        derandomize=not long_run,  # the default run is the same everywhere; a long run is new each time
        database=None,
        print_blob=long_run,
        suppress_health_check=[HealthCheck.too_slow],
    )
    profile(given(**drawn)(on_any_device if library == "emulated" else check))()


COMMON = {
    "case": cases(),
    "dtype": st.sampled_from(list(DTYPES)),
    "form": st.sampled_from(["int64", "int32", "no_starts", "list"]),
    "how": st.sampled_from(["dense", "transposed", "sliced", "misaligned"]),
    "seed": st.integers(0, 2**16),
}


def fuzz_inputs(op: str, case: Case, dtype: str, form: str, how: str, seed: int) -> dict[str, Any]:
    inputs = sample_inputs(op, case, DTYPES[dtype], seed=seed)
    table(inputs, case, form)
    for name, argument in inputs.items():
        if isinstance(argument, Tensor) and argument.requires_grad:
            inputs[name] = strided(argument, how).requires_grad_()
    return inputs


def test_any_call_is_as_accurate_as_pytorch(make_inputs, request, op, library):
    make_inputs(op, Case("probe", 1, 1, 1, 1, ((1, 1),), (1,)), torch.float32, library)

    def check(**drawn: Any) -> None:
        assert_accurate(op, fuzz_inputs(op, **drawn), library)

    run_fuzz(request, library, check, **COMMON)


def test_any_call_reads_only_what_it_samples(make_inputs, request, op, library):
    make_inputs(op, Case("probe", 1, 1, 1, 1, ((1, 1),), (1,)), torch.float32, library)

    def check(**drawn: Any) -> None:
        inputs = fuzz_inputs(op, **drawn)
        clean = run(op, inputs, library)
        sampled = (clean.grads["value"] != 0).any(-1, keepdim=True)
        if drawn["dtype"] == "fp16":  # a gradient may underflow where a row was sampled
            wide = {k: v.detach().float().requires_grad_(v.requires_grad) if isinstance(v, Tensor)
                    and v.is_floating_point() else v for k, v in inputs.items()}  # fmt: skip
            sampled = (run(op, wide, library).grads["value"] != 0).any(-1, keepdim=True)
        poisoned = inputs["value"].detach().masked_fill(~sampled, float("nan"))
        if library != "cpu":  # so that the same kernel runs
            poisoned = strided(poisoned, drawn["how"])
        result = run(op, {**inputs, "value": poisoned.requires_grad_()}, library)
        assert_same_but_for_the_order_of_sums(op, inputs, library, result, clean)

    run_fuzz(request, library, check, **COMMON)


def test_any_positions_bits_and_sizes_are_survived(make_inputs, request, op, library):
    """Raw bit patterns as positions: every exponent, denormals, NaN payloads. Nothing but finite results."""
    make_inputs(op, Case("probe", 1, 1, 1, 1, ((1, 1),), (1,)), torch.float32, library)
    position = "sampling_locations" if op == "ms_deform_attn" else "sampling_offsets"

    def check(case: Case, seed: int) -> None:
        inputs = sample_inputs(op, case, torch.float32, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        bits = torch.randint(-(2**31), 2**31, inputs[position].shape, generator=generator, dtype=torch.int64)
        inputs[position] = bits.to(torch.int32).view(torch.float32).requires_grad_()
        result = run(op, inputs, library)
        for name, tensor in result.named().items():
            if name != "grad_reference_points" or case.reference_coordinates == 2:
                assert tensor.isfinite().all(), name
        expected = run(op, inputs, "reference").output
        torch.testing.assert_close(result.output, expected, rtol=1e-3, atol=1e-3)

    run_fuzz(request, library, check, case=cases(), seed=st.integers(0, 2**16))
