"""Random sizes, costs, predictions, dtypes and formulas of the matching ops: `--fuzz 10000` for a long run.

Of the emulated CUDA kernels a quarter of the examples, of Triton's interpreter a twentieth; a long run has as many
of each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dino_kernels import hungarian_match, linear_sum_assignment, matching_cost
from dino_kernels.ops._matching import INCOMPLETE, PRESETS
from dino_kernels.ops.hungarian_match import Match
from dino_kernels.ops.linear_sum_assignment import Assignment
from dino_kernels.targets import PackedTargets
from dino_kernels.testing import (
    DTYPES,
    MatchingCase,
    assert_cost_accurate,
    assert_optimal,
    assert_same_bits,
    matching_inputs,
)

SHARE = {"reference": 1, "cpu": 1, "emulated": 4, "interpreted": 20}  # of the examples, one in so many
NAN, INF = float("nan"), float("inf")
SIZES = st.one_of(st.integers(0, 4), st.integers(0, 14))
# Few, so that there are ties, and what is special about numbers.
SPECIAL = (0.0, -0.0, 1.0, -1.0, 2.0, 3.0, 1e-45, 1e-30, 3e38, -3e38, 2.0**24, 2.0**24 + 2, NAN, INF, -INF)
KINDS = ("numbers", "ties", "special", "forbidden", "lattice")


@pytest.fixture(params=["cpu", "emulated", "interpreted"])
def fuzzed(request: pytest.FixtureRequest, require_matching: Callable[[str], None]) -> str:
    """The kernels that run on this CPU."""
    require_matching(request.param)
    return request.param


@pytest.fixture(params=["reference", "cpu", "emulated", "interpreted"])
def fuzzed_backend(request: pytest.FixtureRequest, require_matching: Callable[[str], None]) -> str:
    """The same, and the reference, for what has another oracle."""
    require_matching(request.param)
    return request.param


def run_fuzz(
    request: pytest.FixtureRequest, backend: str, check: Callable[..., None], **drawn: st.SearchStrategy
) -> None:
    requested = int(request.config.getoption("--fuzz") or 1)
    long_run = requested > 200
    profile = settings(
        max_examples=requested if long_run else max(1, requested // SHARE[backend]),
        deadline=None,
        derandomize=not long_run,  # the default run is the same everywhere; a long run is new each time
        database=None,
        print_blob=long_run,
        suppress_health_check=[HealthCheck.too_slow],
    )
    profile(given(**drawn)(check))()


@st.composite
def costs(draw: st.DrawFn, finite: bool = False) -> Tensor:
    """[B, W, T] float64 that float32 holds as well."""
    shape = (draw(st.integers(0, 3)), draw(SIZES), draw(SIZES))
    kind = draw(st.sampled_from(["numbers", "ties", "lattice"] if finite else KINDS))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if kind == "special":
        return torch.from_numpy(random.choice(SPECIAL, shape)).float().double()
    if kind == "ties":
        cost = random.integers(0, draw(st.integers(1, 5)), shape).astype(float)
    elif kind == "lattice":  # rows and columns add up, so that every assignment costs the same, but for a few pairs
        cost = random.integers(0, 9, (shape[0], shape[1], 1)) + random.integers(0, 9, (shape[0], 1, shape[2]))
        cost = cost + (random.random(shape) < 0.1)
    else:
        cost = random.standard_normal(shape)
    if kind == "forbidden":
        cost[random.random(shape) < random.random()] = random.choice([NAN, INF, -INF, INF])
    return torch.from_numpy(cost.astype(float)).float().double()


def strided(tensor: Tensor, how: str) -> Tensor:
    """The same numbers at other addresses."""
    if how == "transposed":
        return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    if how == "sliced":
        return torch.cat([tensor, tensor], -1)[..., : tensor.shape[-1]]
    return tensor


OPTIONS = {
    "ties": st.sampled_from(["lowest", "scipy"]),
    "maximize": st.booleans(),
    "dtype": st.sampled_from([torch.float32, torch.float64]),
    "how": st.sampled_from(["dense", "transposed", "sliced"]),
}


def test_any_assignment_has_the_references_bits(fuzzed, request):
    def check(cost: Tensor, seed: int, ties: str, maximize: bool, dtype: torch.dtype, how: str) -> None:
        cost = strided(cost.to(dtype), how)
        random = np.random.default_rng(seed)
        sizes = None
        if seed % 2:
            sizes = [[int(random.integers(0, n + 1)) for n in cost.shape[1:]] for _ in cost]
        options: Any = {"ties": ties, "maximize": maximize, "full_output": True}
        result, expected = (
            linear_sum_assignment(cost, sizes, **options, backend=name) for name in (fuzzed, "reference")
        )
        assert_same_bits(result, expected, Assignment._fields)

    run_fuzz(request, fuzzed, check, cost=costs(), seed=st.integers(0, 2**16), **OPTIONS)


def test_any_packed_assignment_has_the_references_bits(fuzzed, request):
    def check(cost: Tensor, seed: int, ties: str, maximize: bool, dtype: torch.dtype, how: str) -> None:
        cost = strided(cost.to(dtype), how)
        random = np.random.default_rng(seed)
        starts = np.sort(random.integers(0, cost.shape[1] + 1, random.integers(1, 6)))
        starts[0] = 0
        options: Any = {"offsets": torch.from_numpy(starts), "ties": ties, "maximize": maximize, "full_output": True}
        result, expected = (linear_sum_assignment(cost, **options, backend=name) for name in (fuzzed, "reference"))
        assert_same_bits(result, expected, Assignment._fields)

    run_fuzz(request, fuzzed, check, cost=costs(), seed=st.integers(0, 2**16), **OPTIONS)


def test_any_finite_assignment_costs_what_scipys_does(fuzzed_backend, request):
    def check(cost: Tensor, ties: str, maximize: bool, dtype: torch.dtype, how: str) -> None:
        given = strided(cost.to(dtype), how)
        options: Any = {"ties": ties, "maximize": maximize, "full_output": True}
        result = linear_sum_assignment(given, **options, backend=fuzzed_backend)
        for matrix, columns, objective, status in zip(
            cost.numpy(), result.columns, result.objective.tolist(), result.status.tolist(), strict=True
        ):
            rows, wanted = scipy.optimize.linear_sum_assignment(matrix, maximize)
            assert status == 0
            assert abs(objective - matrix[rows, wanted].sum()) <= 1e-12 * (1 + np.abs(matrix).sum())
            if ties == "scipy":
                full = np.full(len(matrix), -1)
                full[rows] = wanted
                assert columns.tolist() == full.tolist()
        assert_optimal(cost, result, maximize, ties)

    run_fuzz(request, fuzzed_backend, check, cost=costs(finite=True), **OPTIONS)


def test_any_assignment_is_certified_by_its_duals(fuzzed_backend, request):
    def check(cost: Tensor, ties: str, maximize: bool, dtype: torch.dtype, how: str) -> None:
        # What is not finite forbids a pair; the certificate takes one infinity for that.
        forbidden = -INF if maximize else INF
        cost = cost.where(cost.isfinite() & (cost.abs() < 1e30), forbidden)
        options: Any = {"ties": ties, "maximize": maximize, "full_output": True}
        result = linear_sum_assignment(strided(cost.to(dtype), how), **options, backend=fuzzed_backend)
        assert_optimal(cost, result, maximize, ties)
        assert not (result.status & ~INCOMPLETE).any()

    run_fuzz(request, fuzzed_backend, check, cost=costs(), **OPTIONS)


@st.composite
def matching_cases(draw: st.DrawFn) -> MatchingCase:
    return MatchingCase(
        "fuzz",
        sets=draw(st.integers(0, 3)),
        queries=draw(SIZES),
        classes=draw(st.integers(1, 9)),
        targets=tuple(draw(st.lists(st.integers(0, 5), max_size=4))),
        stage=draw(st.sampled_from(["initial", "middle", "late", "collapsed", "saturated", "repeated"])),
    )


DRAWN = {
    "case": matching_cases(),
    "dtype": st.sampled_from(list(DTYPES)),
    "preset": st.sampled_from(list(PRESETS)),
    "broken": st.sampled_from([0.0, 0.0, 0.03, 0.3]),
    "capacity": st.one_of(st.none(), st.integers(0, 3)),
    "extra": st.sampled_from(["none", "shared", "each", "hostile"]),
    "form": st.sampled_from(["stacked", "list", "strided"]),
    "seed": st.integers(0, 2**16),
}


def fuzz_inputs(
    case: MatchingCase,
    dtype: str,
    preset: str,
    broken: float,
    capacity: int | None,
    extra: str,
    form: str,
    seed: int,
) -> dict[str, Any]:
    """With a part `broken` of all numbers made NaN or infinite, and bad labels."""
    inputs = {**matching_inputs(case, DTYPES[dtype], seed=seed), "preset": preset}
    generator = torch.Generator().manual_seed(seed)
    targets = inputs["targets"]
    count = len(targets)
    if capacity is not None:
        targets = PackedTargets.empty(len(case.targets), count + capacity).copy_(targets)
        inputs["targets"] = targets
    values = torch.tensor([NAN, INF, -INF])
    assert targets.boxes_cxcywh is not None
    for tensor in (inputs["logits"], inputs["boxes"], targets.boxes_cxcywh):
        drawn = values[torch.randint(3, tensor.shape, generator=generator)].to(tensor.dtype)
        tensor.copy_(torch.where(torch.rand(tensor.shape, generator=generator) < broken / 4, drawn, tensor))
    chosen = torch.rand(len(targets), generator=generator) < broken
    bad = torch.tensor([-1, case.classes, 2**40])[torch.randint(3, (len(targets),), generator=generator)]
    targets.labels.copy_(torch.where(chosen, bad, targets.labels))
    if extra != "none":
        cost = torch.randn(1 if extra == "shared" else case.sets, len(targets), case.queries, generator=generator)
        if extra == "hostile":
            drawn = values[torch.randint(3, cost.shape, generator=generator)]
            cost = torch.where(torch.rand(cost.shape, generator=generator) < 0.1, drawn, cost)
        inputs["extra_cost"] = cost
    for name in ("logits", "boxes"):
        if form == "list" and case.sets:
            inputs[name] = list(inputs[name])
        elif form == "strided":
            inputs[name] = strided(inputs[name], "transposed")
    return inputs


def test_any_cost_is_as_accurate_as_pytorchs(fuzzed, request):
    def check(**drawn: Any) -> None:
        inputs = fuzz_inputs(**drawn)
        assert_cost_accurate(inputs, matching_cost(**inputs, backend=fuzzed), fuzzed)

    run_fuzz(request, fuzzed, check, **DRAWN)


def test_any_matching_is_the_assignment_of_its_costs(fuzzed_backend, request):
    def check(ties: str, **drawn: Any) -> None:
        inputs = fuzz_inputs(**drawn)
        match = hungarian_match(**inputs, ties=ties, full_output=True, backend=fuzzed_backend)  # type: ignore[arg-type]
        cost = matching_cost(**inputs, backend=fuzzed_backend)
        offsets = inputs["targets"].offsets
        options: Any = {"offsets": offsets, "ties": ties, "full_output": True}
        expected = linear_sum_assignment(cost, **options, backend=fuzzed_backend)
        joined = Match(*expected)._replace(status=expected.status | match.status & 3)
        assert_same_bits(match, joined, Match._fields)  # type: ignore[arg-type]
        status = hungarian_match(**inputs, ties=ties, backend="reference").status  # type: ignore[arg-type]
        assert torch.equal(match.status, status)

    run_fuzz(request, fuzzed_backend, check, ties=OPTIONS["ties"], **DRAWN)
