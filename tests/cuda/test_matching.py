"""The CUDA kernels of matching: orders of threads, borders of warps and blocks, where state is kept, bad offsets.

tests/ops has what all backends have in common. Under emulation the order of threads and blocks is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from dino_kernels import UnsupportedError, hungarian_match, linear_sum_assignment, matching_cost
from dino_kernels.ops._matching import INVALID_TARGET, NONFINITE_PREDICTION
from dino_kernels.ops.hungarian_match import Match
from dino_kernels.ops.linear_sum_assignment import Assignment, prepare
from dino_kernels.targets import PackedTargets
from dino_kernels.testing import (
    DTYPES,
    AssignmentCase,
    MatchingCase,
    assert_cost_accurate,
    assert_same_bits,
    assignment_costs,
    matching_inputs,
)
from tests.cuda.emulation import backend as emulation

TIES = pytest.mark.parametrize("ties", ["lowest", "scipy"])
TILE = 128  # queries of a block
CHUNK = 32  # targets that it takes at once
INFINITY = float("inf")


@pytest.fixture(params=["cuda", emulation.NAME])
def kernel(request: pytest.FixtureRequest, require_matching: Any) -> str:
    require_matching(request.param)
    return request.param


@pytest.fixture
def device(kernel: str) -> str:
    return "cuda" if kernel == "cuda" else "cpu"


def orders(kernel: str, count: int = 6) -> Iterator[AbstractContextManager[None]]:
    """Orders of threads; a GPU has its own."""
    for seed in range(count):
        yield emulation.schedule(seed) if kernel == emulation.NAME else nullcontext()


def with_changes(inputs: dict[str, Any], **changed: Any) -> dict[str, Any]:
    return {**inputs, **changed}


def match_of(inputs: dict[str, Any], backend: str, **options: Any) -> Any:
    """A `Match` with all its fields."""
    return hungarian_match(**inputs, full_output=True, backend=backend, **options)


def solve(cost: Tensor, backend: str, *rest: Any, **options: Any) -> Assignment:
    return linear_sum_assignment(cost, *rest, full_output=True, backend=backend, **options)


def assert_solved(cost: Tensor, kernel: str, *rest: Any, **options: Any) -> Assignment:
    """Every bit of the result is the reference's."""
    result = solve(cost, kernel, *rest, **options)
    assert_same_bits(result, solve(cost, "reference", *rest, **options), Assignment._fields)
    return result


# The assignment.


@TIES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("kind", ["collapsed", "integers", "forbidden", "blocked", "hostile"])
def test_any_order_of_threads_gives_the_references_bits(kernel, device, ties, dtype, kind):
    """In float32 one warp solves, in float64 and in SciPy's order a block."""
    for sides in ((9, 14), (14, 9), (11, 11)):
        cost = assignment_costs(AssignmentCase("order", 3, *sides, kind), dtype, device)
        for number, order in enumerate(orders(kernel)):
            with order:
                assert_solved(cost, kernel, ties=ties, maximize=number % 2 == 1)


@TIES
@pytest.mark.parametrize("columns", [1, 31, 32, 33, 255, 256, 257, 511, 512, 513])
@pytest.mark.parametrize("kind", ["collapsed", "hostile"])
def test_columns_at_borders_of_warps_and_blocks(kernel, device, ties, columns, kind):
    """256 columns have 128 threads, and 257 have 512; a warp takes 256 of a row at once."""
    assert_solved(assignment_costs(AssignmentCase("columns", 1, 3, columns, kind), device=device), kernel, ties=ties)


@pytest.mark.parametrize("rows", [3, 4, 5, 15, 16, 17, 32, 33])
@pytest.mark.parametrize("columns", [40, 260])
def test_rows_at_borders_of_warps_and_blocks(kernel, device, rows, columns):
    """Four or sixteen warps take a row each, and 32 rows choose their columns at once."""
    assert_solved(assignment_costs(AssignmentCase("rows", 1, rows, columns, "integers"), device=device), kernel)


@pytest.mark.parametrize("kind", ["collapsed", "integers", "hostile"])
@pytest.mark.parametrize("sides", [(32, 40), (40, 32), (33, 40), (40, 33)], ids=str)
def test_one_warp_solves_up_to_32_rows_and_a_block_more(kernel, device, kind, sides):
    cost = assignment_costs(AssignmentCase("warp", 1, sides[0], sides[1], kind), device=device)
    for order in orders(kernel, 3):
        with order:
            assert_solved(cost, kernel)


def test_more_columns_than_a_warp_keeps_a_bit_of(kernel, device):
    """Up to 2^18 columns one warp solves; the same costs in the last columns of one more."""
    most = 1 << 18
    for columns in (most, most + 1):
        cost = torch.full((1, 3, columns), 9.0, device=device)
        cost[0, :, -2:] = torch.tensor([[1.0, 2.0], [1.0, 4.0], [1.0, 3.0]], device=device)
        result = assert_solved(cost, kernel)
        assert result.objective.item() == 12  # 2 + 1 + 9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_more_matched_columns_than_threads(kernel, device, dtype):
    """128 threads. All rows prefer the same columns, so that paths are long."""
    cost = assignment_costs(AssignmentCase("long_paths", 1, 130, 134, "collapsed"), dtype, device)
    assert_solved(cost, kernel)


@TIES
def test_state_that_does_not_fit_shared_memory_gives_the_same_bits(kernel, device, ties):
    """Capacity decides, not use: 6000 rows and columns of state are more than any GPU's block has."""
    offsets = torch.tensor([0, 5, 5, 12], device=device)
    small = assignment_costs(AssignmentCase("capacity", 2, 12, 9, "collapsed"), device=device)
    large = torch.full((2, 6000, 6000), torch.nan, device=device)
    large[:, :12, :9] = small
    large[:, :12, 9:] = INFINITY
    result, expected = (solve(cost, kernel, offsets=offsets, ties=ties) for cost in (large, small))
    assert_same_bits(
        [result.columns[:, :12], result.objective, result.row_duals[:, :12], result.column_duals[:, :, :9]],
        [expected.columns, expected.objective, expected.row_duals, expected.column_duals],
        ["columns", "objective", "row_duals", "column_duals"],
    )
    assert (result.columns[:, 12:] == -1).all() and (result.column_duals[:, :, 9:] == 0).all()


@pytest.mark.parametrize("rows_too_many", [False, True], ids=["columns", "rows"])
@TIES
def test_the_side_with_fewer_partners_is_the_smaller_one_whatever_the_shape(kernel, device, ties, rows_too_many):
    """More rows have an allowed column than columns an allowed row, but no row shows it alone: they are counted."""
    cost = torch.full((2, 6, 300), INFINITY, dtype=torch.float64)
    cost[:, :, :3] = torch.arange(36.0).view(2, 6, 3).remainder(7)
    cost[:, 1::2, 1:] = INFINITY
    cost = cost.transpose(1, 2) if rows_too_many else cost
    result = assert_solved(cost.to(device), kernel, ties=ties)
    assert (result.columns >= 0).sum() == 6


def test_a_stride_of_zero_in_both_dimensions_is_no_transposition(kernel, device):
    cost = torch.tensor([2.5], device=device).expand(2, 7, 4)
    result = assert_solved(cost, kernel)
    assert result.columns[:, :4].tolist() == [[0, 1, 2, 3]] * 2


# The costs.


SIZES = (1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 1)


BORDERS = [(1, "fp32", "dino"), (TILE - 1, "bf16", "detr"), (TILE, "fp32", "detr"), (TILE, "fp16", "rf_detr")]
BORDERS += [(TILE + 1, "fp32", "dino"), (TILE + 1, "fp64", "detr"), (2 * TILE, "fp32", "rf_detr")]


@pytest.mark.parametrize(("queries", "name", "preset"), BORDERS)
def test_costs_at_borders_of_tiles_and_chunks(kernel, device, queries, name, preset):
    """Smaller calls of every dtype, formula and stage are tested on all backends."""
    case = MatchingCase("tiles", 1, queries, 40, SIZES, "saturated" if name == "bf16" else "middle")
    inputs = with_changes(matching_inputs(case, DTYPES[name], device), preset=preset)
    assert_cost_accurate(inputs, matching_cost(**inputs, backend=kernel), kernel)


@pytest.mark.parametrize("preset", ["dino", "detr"])
@pytest.mark.parametrize("bad", ["logit", "box"])
def test_a_query_that_only_the_last_target_forbids_is_forbidden_for_all(kernel, device, preset, bad):
    inputs = matching_inputs(MatchingCase("last", 2, 150, 3 * CHUNK, (2 * CHUNK + 1, 4)), device=device)
    inputs["targets"].labels[:] = torch.arange(2 * CHUNK + 5) % (2 * CHUNK + 1)
    last = 2 * CHUNK
    if bad == "logit":
        inputs["logits"][1, 0, 130, last] = torch.nan
        inputs["logits"][1, 1, 7, last] = torch.nan  # no target of its image has this label
    else:
        inputs["boxes"][1, 0, 130, 3] = -INFINITY
    for order in orders(kernel):
        with order:
            cost = matching_cost(**inputs, preset=preset, backend=kernel)
            status = hungarian_match(**inputs, preset=preset, backend=kernel).status
        forbidden = {(1, n, 130) for n in range(last + 1)}
        if preset == "detr" and bad == "logit":  # a softmax needs them all
            forbidden |= {(1, n, 7) for n in range(last + 1, last + 5)}
        assert {tuple(where) for where in (cost == INFINITY).nonzero().tolist()} == forbidden
        both = preset == "detr" and bad == "logit"
        assert status.tolist() == [[0, 0], [NONFINITE_PREDICTION, NONFINITE_PREDICTION if both else 0]]


@pytest.mark.parametrize("images", [0, 1, 3])
@pytest.mark.parametrize("extra", [False, True])
def test_rows_of_unused_capacity_are_infinite_and_unmatched(kernel, device, deterministic, images, extra):
    case = MatchingCase("capacity", 2, 130, 9, (3, 0, 5)[:images])
    inputs = matching_inputs(case, device=device)
    used = len(inputs["targets"])
    inputs["targets"] = PackedTargets.empty(images, 50, device=device).copy_(inputs["targets"])
    if extra:
        inputs["extra_cost"] = torch.arange(130.0, device=device).expand(1, 50, 130)
    cost = matching_cost(**inputs, backend=kernel)
    assert cost[:, :used].isfinite().all() and (cost[:, used:] == INFINITY).all()
    assert_cost_accurate(inputs, cost, kernel)
    match = match_of(inputs, kernel)
    assert (match.query_idx[:, :used] >= 0).all() and (match.query_idx[:, used:] == -1).all()
    assert (match.target_duals[:, used:] == 0).all() and (match.status == 0).all()


def test_sets_of_different_lengths_end_in_infinity(kernel, device):
    sizes = ((1, 3), (2, 0), (0, 300), (2, 257), (1, 128))  # sets, queries
    parts = [matching_inputs(MatchingCase("part", *size, 9, (5, 0, 40)), device=device) for size in sizes]
    call: dict[str, Any] = {
        "logits": [part["logits"] for part in parts],
        "boxes": [part["boxes"] for part in parts],
        "targets": parts[0]["targets"],
    }
    cost = matching_cost(**call, backend=kernel)
    assert cost.shape == (6, 45, 300)
    assert [int(x) for x in cost[:, 0].isfinite().sum(-1)] == [3, 0, 0, 257, 257, 128]
    assert_cost_accurate(call, cost, kernel)


def test_as_many_tensors_as_there_is_room_for(kernel, device):
    inputs = matching_inputs(MatchingCase("sources", 32, 9, 5, (4, 2)), device=device)
    listed = with_changes(inputs, **{name: list(inputs[name]) for name in ("logits", "boxes")})
    stacked = matching_cost(**inputs, backend=kernel)
    assert torch.equal(matching_cost(**listed, backend=kernel), stacked)
    more = with_changes(listed, **{name: [*listed[name], listed[name][0]] for name in ("logits", "boxes")})
    for function in (matching_cost, hungarian_match):
        with pytest.raises(UnsupportedError, match="it takes up to 32 tensors of predictions, got 33"):
            function(**more, backend=kernel)


# Both.


@TIES
@pytest.mark.parametrize("stage", ["late", "collapsed", "repeated"])
def test_a_match_is_the_assignment_of_its_costs_in_any_order_of_threads(kernel, device, ties, stage):
    inputs = matching_inputs(MatchingCase("both", 2, 140, 12, (9, 0, 12), stage), device=device)
    inputs["logits"][0, 0, ::3] = torch.nan
    inputs["targets"].labels[3] = 12
    cost = matching_cost(**inputs, backend=kernel)
    columns, status, *others = solve(cost, "reference", offsets=inputs["targets"].offsets, ties=ties)
    expected = [columns, status | torch.tensor([[3, 0, 0], [2, 0, 0]], device=device).int(), *others]
    assert NONFINITE_PREDICTION | INVALID_TARGET == 3
    for order in orders(kernel):
        with order:
            match = match_of(inputs, kernel, ties=ties)
        assert_same_bits(match, expected, Match._fields)


# Offsets and sizes on the device, which cannot be checked before the launch.


WRONG = {
    "descending": (0, 6, 4, 9),
    "beyond the end": (0, 3, 6, 10),
    "negative": (-1, 3, 6, 9),
    "far": (0, 2**40, 2**40 + 3, 2**40 + 5),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_offsets_that_do_not_fit_raise_instead_of_reading_beyond(add_emulated, wrong):
    add_emulated()
    inputs = matching_inputs(MatchingCase("offsets", 2, 20, 5, (3, 3, 3)))
    expected = hungarian_match(**inputs, backend=emulation.NAME)
    cost = matching_cost(**inputs, backend=emulation.NAME)
    offsets = torch.tensor(WRONG[wrong])
    broken = PackedTargets(inputs["targets"].labels, inputs["targets"].boxes_cxcywh, offsets, 9)
    for function in (matching_cost, hungarian_match):
        with pytest.raises(RuntimeError, match="a device assertion failed"):
            function(**with_changes(inputs, targets=broken), backend=emulation.NAME)
    with pytest.raises(RuntimeError, match="a device assertion failed"):
        linear_sum_assignment(cost, offsets=offsets, backend=emulation.NAME)
    again = hungarian_match(**inputs, backend=emulation.NAME)
    assert torch.equal(again.query_idx, expected.query_idx), "the next call does not work"


def test_an_image_with_more_targets_than_announced_raises(add_emulated):
    """The solver's state has no room for them."""
    add_emulated()
    inputs = matching_inputs(MatchingCase("announced", 1, 20, 5, (3, 7)))
    targets = inputs["targets"]
    broken = PackedTargets(targets.labels, targets.boxes_cxcywh, targets.offsets, 6)
    with pytest.raises(RuntimeError, match="a device assertion failed"):
        hungarian_match(**with_changes(inputs, targets=broken), backend=emulation.NAME)


@pytest.mark.parametrize("sizes", [(7, 5), (-1, 5), (6, 6), (6, -1)], ids=str)
def test_sizes_that_do_not_fit_raise_instead_of_reading_beyond(add_emulated, sizes):
    """On a CPU the public function sees them; on a GPU only the kernel does."""
    add_emulated()
    cost = torch.zeros(2, 6, 5)
    arguments = prepare(cost, [[6, 5], [6, 5]])._replace(sizes=torch.tensor([[6, 5], sizes]))
    with pytest.raises(RuntimeError, match="a device assertion failed"):
        torch.ops.dino_kernels.linear_sum_assignment(*arguments, emulation.NAME)
