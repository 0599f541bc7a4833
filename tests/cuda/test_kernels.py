"""The CUDA kernels' own limits and choices: which kernel a call gets, shared memory, channels, alignment, bad tables.

A device of one multiprocessor makes calls large, as in all other tests under emulation, and one of 32 makes them
small; these run other kernels. On a GPU the library assumes that number of multiprocessors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

import dino_kernels
from dino_kernels import UnsupportedError
from dino_kernels.ops._core import libraries
from dino_kernels.ops._core.dispatch import ops
from dino_kernels.testing import CASES, Case, assert_accurate, run, sample_inputs
from tests.comparison import assert_same_but_for_the_order_of_sums, assert_same_sums, magnitudes_of_sums
from tests.cuda.emulation import backend as emulation

LARGE, SMALL = 1, 32  # as a call on a device of so many multiprocessors is
GRADIENTS = {
    "ms_deform_attn": ("value", "sampling_locations", "attention_weights"),
    "fused_ms_deform_attn": ("value", "reference_points", "sampling_offsets", "attention_logits"),
}


@pytest.fixture(params=["cuda", emulation.NAME])
def kernel(request: pytest.FixtureRequest) -> str:
    return request.param


@contextmanager
def device_of(kernel: str, multiprocessors: int) -> Iterator[None]:
    """A device of this size. Without a GPU the test is skipped when it makes its inputs."""
    if kernel == emulation.NAME:
        size = emulation.multiprocessors(multiprocessors)
    else:
        size = libraries.assume_multiprocessors(multiprocessors) if torch.cuda.is_available() else nullcontext()
    with size:
        yield


@pytest.fixture(autouse=True)
def large_by_default(request: pytest.FixtureRequest) -> Iterator[None]:
    """All calls here are large, as they are under emulation, also on a GPU of many multiprocessors."""
    gpu = "kernel" in request.fixturenames and request.getfixturevalue("kernel") == "cuda"
    with device_of("cuda", LARGE) if gpu else nullcontext():
        yield


# Kernels of two sizes are for heads of 32 channels.
OF_32 = [case for case in CASES if case.channels == 32]
# Under emulation those with different samples; the others differ from these in the number of queries and heads.
SLOW = ("encoder_masked", "decoder_masked", "decoder_few_queries", "rtdetr", "wide_level", "one_point")
SLOW += ("no_queries", "no_images")
CALLS = [("cuda", size, case) for size in (LARGE, SMALL) for case in OF_32]
CALLS += [(emulation.NAME, SMALL, case) for case in OF_32 if case.name in SLOW]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(
    ("kernel", "multiprocessors", "case"),
    CALLS,
    indirect=["kernel"],
    ids=lambda value: value.id if isinstance(value, Case) else str(value),
)
def test_calls_of_either_size_are_as_accurate_as_pytorch(make_inputs, op, dtype, case, kernel, multiprocessors):
    """Other numbers of channels have one kernel for all sizes; emulated large calls are those of all other tests."""
    inputs = make_inputs(op, case, dtype, kernel)
    with device_of(kernel, multiprocessors):
        assert_accurate(op, inputs, kernel)


_LEVELS = ((6, 8), (3, 4))
# In 16 bits, kernels with tensor cores take 16 samples, or up to 32 in two chunks.
TILES = Case("tiles", 2, 60, 3, 32, _LEVELS, (9, 7), 4, mask=True, layout="local")
PAIRS = Case("pairs", 2, 70, 2, 32, _LEVELS, (7, 9), 4)
CHUNKS = Case("chunks", 2, 60, 3, 32, _LEVELS, (11, 14), 2, mask=True)
# Of the others, K is more than any takes at once, so that each goes over its samples in several rounds.
ENCODER = Case("encoder", 2, 60, 4, 32, _LEVELS, (23, 17), 4, mask=True)
QUERIES = Case("rows", 2, 37, 2, 32, _LEVELS, (23, 17), 4, mask=True)
CHANNELS = Case("channels", 2, 19, 3, 20, _LEVELS, (23, 17), 4, mask=True)
KERNELS = [
    pytest.param(TILES, LARGE, torch.bfloat16, id="tile-bf16"),
    pytest.param(TILES, LARGE, torch.float16, id="tile-fp16"),
    pytest.param(PAIRS, LARGE, torch.bfloat16, id="pairs-bf16"),
    pytest.param(CHUNKS, LARGE, torch.bfloat16, id="chunks-bf16"),
    pytest.param(ENCODER, LARGE, torch.bfloat16, id="many-bf16"),
    pytest.param(ENCODER, LARGE, torch.float32, id="large"),
    pytest.param(QUERIES, SMALL, torch.float32, id="small"),
    pytest.param(QUERIES, SMALL, torch.bfloat16, id="small-bf16"),
    pytest.param(CHANNELS, LARGE, torch.float32, id="any channels"),
    pytest.param(QUERIES, LARGE, torch.float64, id="one channel a lane"),
]
every_kernel = pytest.mark.parametrize(("case", "multiprocessors", "dtype"), KERNELS)


@every_kernel
def test_many_rounds_of_samples_are_as_accurate_as_pytorch(make_inputs, op, kernel, case, multiprocessors, dtype):
    inputs = make_inputs(op, case, dtype, kernel)
    with device_of(kernel, multiprocessors):
        assert_accurate(op, inputs, kernel)


@every_kernel
def test_every_kernel_computes_any_subset_of_gradients(make_inputs, op, kernel, case, multiprocessors, dtype):
    inputs = make_inputs(op, replace(case, batch=1), dtype, kernel)
    names = GRADIENTS[op]
    with device_of(kernel, multiprocessors):
        everything = run(op, inputs, kernel)
        magnitudes = magnitudes_of_sums(op, inputs, kernel)
        sizes = {1, len(names) - 1}  # the pairs of four gradients are between these
        for requested in (subset for size in sizes for subset in combinations(names, size)):
            for name in names:
                inputs[name] = inputs[name].detach().requires_grad_(name in requested)
            for name, grad in run(op, inputs, kernel).grads.items():
                if name == "value":
                    assert_same_sums(grad, everything.grads[name], magnitudes, kernel)
                else:
                    assert torch.equal(grad, everything.grads[name]), f"{name} of {requested}"


@every_kernel
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_no_kernel_reads_rows_that_no_sample_touches(make_inputs, op, kernel, case, multiprocessors, dtype, poison):
    sparse = Case(case.name, 2, case.queries, case.heads, case.channels, _LEVELS, (1, 0), mask=True)
    inputs = make_inputs(op, sparse, dtype, kernel)
    with device_of(kernel, multiprocessors):
        clean = run(op, inputs, kernel)
        untouched = (clean.grads["value"] == 0).all(-1, keepdim=True)
        assert untouched.any() and not untouched.all()
        poisoned = inputs["value"].detach().masked_fill(untouched, poison).requires_grad_()
        result = run(op, {**inputs, "value": poisoned}, kernel)
        assert_same_but_for_the_order_of_sums(op, inputs, kernel, result, clean)


@every_kernel
def test_every_element_of_every_result_is_written_by_every_kernel(
    make_inputs, deterministic, op, kernel, case, multiprocessors, dtype
):
    """Deterministic mode fills new tensors with NaN."""
    with device_of(kernel, multiprocessors):
        for name, tensor in run(op, make_inputs(op, case, dtype, kernel), kernel).named().items():
            assert tensor.isfinite().all(), name


@pytest.mark.parametrize("batch_heads_queries", [(1, 1, 97), (1, 7, 1), (13, 1, 1), (1, 1, 1), (1, 1, 257)], ids=str)
@pytest.mark.parametrize("multiprocessors", [LARGE, SMALL])
def test_a_last_block_that_is_not_full(make_inputs, op, kernel, dtype, batch_heads_queries, multiprocessors):
    batch, heads, queries = batch_heads_queries
    case = Case("prime", batch, queries, heads, 32, ((5, 7), (2, 3)), (3, 2), mask=True)
    inputs = make_inputs(op, case, dtype, kernel)
    with device_of(kernel, multiprocessors):
        assert_accurate(op, inputs, kernel)


@pytest.mark.parametrize(("width", "queries"), [(1, 60), (7, 60), (8, 60), (9, 60), (20, 60), (8, 61)])
def test_tiles_of_queries_at_borders_of_levels(make_inputs, op, kernel, width, queries):
    """60 rows: with as many queries they are taken as a grid, in strips of 8 rows of pixels."""
    height = 48 // width
    shapes = ((height, width), (1, 60 - height * width - 3), (3, 1))
    case = Case("borders", 2, queries, 8, 32, shapes, (5, 4, 7), layout="local")
    assert case.S == 60
    with device_of(kernel, LARGE):
        assert_accurate(op, make_inputs(op, case, torch.bfloat16, kernel), kernel)


def test_windows_of_tiles_on_large_maps(make_inputs, op, kernel):
    """Samples near and far: some hits are in the tile's window of 16 x 16 pixels, some are beyond it."""
    case = Case("windows", 1, 32 * 24 + 16 * 12 + 8 * 6, 1, 32, ((32, 24), (16, 12), (8, 6)), (5, 5, 6))
    assert case.queries == case.S
    for layout in ("local", "uniform"):
        inputs = make_inputs(op, replace(case, layout=layout), torch.bfloat16, kernel)
        with device_of(kernel, LARGE):
            assert_accurate(op, inputs, kernel)


@pytest.mark.parametrize("case", [TILES, PAIRS], ids=["tile", "scatter"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_reaches_the_results_that_the_reference_has_it_in(make_inputs, op, kernel, poison, case):
    """Zero times infinity is NaN, also in a matrix product: there it must not spread to other queries and rows."""
    for where in ("value", "grad_output"):
        inputs = make_inputs(op, case, torch.bfloat16, kernel)
        shape = case.batch, case.queries, case.heads * case.channels
        grad_output = torch.randn(shape, dtype=torch.bfloat16, device=inputs["value"].device)
        poisoned = grad_output if where == "grad_output" else inputs["value"].data
        poisoned[1, 17] = poison
        with device_of(kernel, LARGE):
            result = run(op, inputs, kernel, grad_output)
        tensors, expected = result.named(), run(op, inputs, "reference", grad_output).named()
        # PyTorch gives samples outside a gradient of zero times infinity, kernels give them none.
        for name in ("output", "grad_value"):
            assert torch.equal(tensors[name].isfinite(), expected[name].isfinite()), f"{name}, {where}"
            assert torch.equal(tensors[name] == poison, expected[name] == poison), f"{name}, {where}"


@pytest.mark.parametrize("starts", [(30, 0, 42), (0, 0, 42), (12, 12, 42)], ids=str)
def test_as_many_queries_as_rows_are_no_grid_where_levels_are_not_one_after_the_other(make_inputs, op, kernel, starts):
    case = Case("permuted", 1, 46, 8, 32, ((3, 4), (5, 6), (2, 2)), (4, 4, 4), layout="local")
    inputs = make_inputs(op, case, torch.float32, kernel)
    inputs["level_start_index"] = torch.tensor(starts, device=inputs["value"].device)
    result, expected = run(op, inputs, kernel), run(op, inputs, "reference")
    for (name, tensor), wanted in zip(result.named().items(), expected.named().values(), strict=True):
        torch.testing.assert_close(tensor, wanted, rtol=1e-3, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


# Sizes.


MANY_SAMPLES = [
    *((torch.float32, multiprocessors, points) for multiprocessors in (LARGE, SMALL) for points in (300, 1024)),
    *((torch.bfloat16, multiprocessors, points) for multiprocessors in (LARGE, SMALL) for points in (300, 1024)),
    (torch.float64, LARGE, 300),
]


@pytest.mark.parametrize(("dtype", "multiprocessors", "points"), MANY_SAMPLES, ids=str)
@pytest.mark.parametrize(("levels", "coordinates"), [(1, 4), (2, 2)])
def test_hundreds_of_samples_fit_shared_memory(
    make_inputs, op, kernel, dtype, points, levels, coordinates, multiprocessors
):
    points = (points,) if levels == 1 else (points // 3, points - points // 3)
    case = Case("many_samples", 1, 3, 1, 32, ((7, 9), (4, 5))[:levels], points, coordinates)
    with device_of(kernel, multiprocessors):
        assert_accurate(op, make_inputs(op, case, dtype, kernel), kernel)


def test_tiles_with_hundreds_of_samples_fall_back(make_inputs, op, kernel):
    case = Case("many_samples", 1, 63, 8, 32, ((7, 9),), (300,))
    assert_accurate(op, make_inputs(op, case, torch.float32, kernel), kernel)


@pytest.mark.parametrize(
    ("shapes", "points", "reason"),
    [
        (((2, 2),), (1025,), "it has room for 1024 samples per head, got 1025"),
        (((1, 1),) * 33, (1,) * 33, "it has room for 32 levels, got 33"),
    ],
    ids=["samples", "levels"],
)
def test_what_does_not_fit_is_refused_with_its_reason(add_emulated, op, shapes, points, reason):
    add_emulated()
    inputs = sample_inputs(op, Case("too_large", 1, 2, 1, 8, shapes, points), torch.float32)
    with pytest.raises(UnsupportedError, match=reason):
        getattr(dino_kernels, op)(**inputs, backend=emulation.NAME)


@pytest.mark.parametrize("levels", [1, 2, 9, 31, 32])
def test_as_many_levels_as_there_is_room_for(make_inputs, op, kernel, levels):
    shapes = tuple((1 + level % 3, 1 + level % 4) for level in range(levels))
    points = tuple(1 + level % 2 for level in range(levels))
    case = Case("levels", 2, 11, 2, 32, shapes, points, 4)
    assert_accurate(op, make_inputs(op, case, torch.float32, kernel), kernel)


@pytest.mark.parametrize("first", [*range(1, 41, 5), 60, 124, 252, 296])
def test_any_number_of_channels(make_inputs, op, kernel, dtype, first):
    for channels in range(first, first + 5):
        case = Case(f"channels_{channels}", 1, 5, 2, channels, ((4, 5), (2, 2)), (2, 3))
        assert_accurate(op, make_inputs(op, case, dtype, kernel), kernel)


# Addresses.


def misaligned(tensor: Tensor) -> Tensor:
    storage = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
    return storage[1:].view(tensor.shape).copy_(tensor.detach()).requires_grad_(tensor.requires_grad)


@pytest.mark.parametrize("which", ["value", "samples", "everything"])
def test_misaligned_tensors_are_read_one_number_at_a_time(make_inputs, op, kernel, dtype, which):
    inputs = make_inputs(op, replace(QUERIES, points=(5, 3)), dtype, kernel)
    names = {"value": ("value",), "samples": GRADIENTS[op][-2:], "everything": GRADIENTS[op]}[which]
    assert_accurate(op, {**inputs, **{name: misaligned(inputs[name]) for name in names}}, kernel)


@pytest.mark.parametrize("multiprocessors", [LARGE, SMALL])
def test_a_misaligned_gradient_of_the_output_changes_rounding_only(make_inputs, op, kernel, multiprocessors):
    inputs = make_inputs(op, QUERIES, torch.float32, kernel)
    with device_of(kernel, multiprocessors):
        grad = torch.randn_like(run(op, inputs, kernel).output)
        result, expected = run(op, inputs, kernel, misaligned(grad)), run(op, inputs, kernel, grad)
    for (name, tensor), wanted in zip(result.named().items(), expected.named().values(), strict=True):
        torch.testing.assert_close(tensor, wanted, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


# Tables on the device, which cannot be checked before the launch.


Change = Callable[[dict[str, Any]], dict[str, Any]]


def shapes_of(*shapes: tuple[int, int], starts: bool = True, dtype: torch.dtype = torch.int64) -> Change:
    def change(inputs: dict[str, Any]) -> dict[str, Any]:
        table = {"spatial_shapes": torch.tensor(shapes, dtype=dtype)}
        return {**inputs, **table, **({} if starts else {"level_start_index": None})}

    return change


def starts_of(*starts: int, dtype: torch.dtype = torch.int64) -> Change:
    return lambda inputs: {**inputs, "level_start_index": torch.tensor(starts, dtype=dtype)}


WRONG = {
    "a level too high": shapes_of((7, 8), (3, 4), starts=False),
    "far too high": shapes_of((6, 8), (300, 400)),
    "rows left over": shapes_of((6, 8), (3, 3), starts=False),
    "rows missing": shapes_of((6, 8), (3, 5), starts=False),
    "nothing": shapes_of((6, 8), (0, 4)),
    "negative": shapes_of((6, 8), (-3, -4)),
    "negative, int32": shapes_of((6, 8), (-3, -4), dtype=torch.int32),
    "a product beyond 2^32": shapes_of((2**16, 2**16), (3, 4)),
    "a product beyond 2^64": shapes_of((2**32, 2**32), (3, 4)),
    "beyond int32": shapes_of((6, 2**32 + 8), (3, 4)),
    "a start too late": starts_of(0, 49),
    "a start too early": starts_of(-1, 48),
    "a start too early, int32": starts_of(0, -12, dtype=torch.int32),
    "a start beyond int32": starts_of(0, 2**32 + 48),
    "a start near 2^63": starts_of(0, 2**63 - 6),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("case", [ENCODER, QUERIES], ids=["grid", "queries"])
def test_a_table_that_does_not_fit_value_raises_instead_of_reading_beyond_it(make_inputs, op, case, wrong):
    """In the backward too: it can be called on its own, and a table may have changed since the forward."""
    inputs = make_inputs(op, case, torch.float32, emulation.NAME, requires_grad=False)
    expected = run(op, inputs, emulation.NAME).output
    arguments = ops()[op].prepare(**WRONG[wrong](inputs))
    with pytest.raises(RuntimeError, match="a device assertion failed"):
        getattr(torch.ops.dino_kernels, op)(*arguments, emulation.NAME)
    backward = getattr(torch.ops.dino_kernels, f"{op}_backward")
    with pytest.raises(RuntimeError, match="a device assertion failed"):
        backward(torch.ones_like(expected), *arguments, [True] * len(GRADIENTS[op]), emulation.NAME)
    assert torch.equal(run(op, inputs, emulation.NAME).output, expected), "the next call does not work"
