"""Run the CUDA kernels on the smallest cases, under compute-sanitizer: `make gpu-sanitize`.

    compute-sanitizer --tool racecheck python3 -m benchmarks.gpu.sanitize
    compute-sanitizer --tool racecheck python3 -m benchmarks.gpu.sanitize --tiles  # only an encoder's tiles

Exits with 1 if a kernel refuses a call or its result is wrong; the tool adds its own findings.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import product
from typing import Any

import torch
from torch import Tensor

import dino_kernels
from benchmarks.attention import gate
from benchmarks.attention.peers import implementations
from benchmarks.attention.workloads import OPS
from benchmarks.measure.stage import Refused
from dino_kernels import hungarian_match, linear_sum_assignment, matching_cost
from dino_kernels.ops._core import libraries
from dino_kernels.testing import (
    ASSIGNMENT_CASES,
    CASES,
    DTYPES,
    MATCHING_CASES,
    Case,
    Result,
    assert_cost_accurate,
    assert_result_accurate,
    assert_same_bits,
    assignment_costs,
    matching_inputs,
    sample_inputs,
)

# As many multiprocessors as make any call large, or any test's call small.
LARGE, SMALL = 1, 1_000_000
# Queries of every kind, masks, boxes, borders, odd sizes; each a few thousand samples, because sanitizers are slow.
NAMES = ("encoder_masked", "decoder_few_queries", "odd_points", "one_pixel_levels", "channels_36", "hostile_boxes")
# As many queries as rows, with 32 channels: a large call uses tiles.
TILES = ("encoder_masked",)


def sized(backend: str, count: int) -> AbstractContextManager[object]:
    """Make calls use the kernels of a GPU with `count` multiprocessors, if the backend has a choice."""
    return libraries.assume_multiprocessors(count) if backend == "cuda" else nullcontext()


def attention(
    backend: str,
    device: str,
    names: Sequence[str] = NAMES,
    dtypes: Sequence[str] = tuple(DTYPES),
    modes: Sequence[bool] = (False, True),
) -> int:
    """Check deformable attention, in each of `modes` deterministic or not; return the number of calls."""
    cases = [case for case in CASES if case.name in names]
    calls = list(product(OPS, cases, dtypes, modes))
    for op, case, dtype, deterministic in calls:
        # Compared on the CPU, because the sanitizer slows down PyTorch's kernels too.
        check_attention(op, case, dtype, backend, device, "cpu", deterministic)
    return len(calls)


def check_attention(
    op: str,
    case: Case,
    dtype: str,
    backend: str,
    device: str,
    compare_on: str,
    deterministic: bool = False,
    runs: int = 1,
) -> None:
    """Check forward and backward by the tolerance rule, and that all runs have the same bits."""
    inputs, same_inputs = (sample_inputs(op, case, DTYPES[dtype], where) for where in (device, compare_on))
    require(getattr(dino_kernels, op), backend, f"{case.id} {dtype}", **inputs)
    torch.use_deterministic_algorithms(deterministic)
    try:
        result, *others = (gate.forward_backward(implementations()[backend], op, inputs) for _ in range(runs))
    finally:
        torch.use_deterministic_algorithms(False)
    for other in others:
        assert_same_bits(list(result.named().values()), list(other.named().values()), list(result.named()))
    grads = {key: grad.to(compare_on) for key, grad in result.grads.items()}
    label = f"{backend} in {dtype}{', deterministic' if deterministic else ''}"
    assert_result_accurate(op, same_inputs, Result(result.output.to(compare_on), grads), label)


def matching(backend: str, device: str, dtypes: Sequence[str] = tuple(DTYPES)) -> int:
    """Check costs by the tolerance and matches by the reference's bits; return the number of calls."""
    runs = 0
    for case in MATCHING_CASES:
        for name in dtypes:
            dtype = DTYPES[name]
            inputs, on_cpu = (matching_inputs(case.small(), dtype, where) for where in (device, "cpu"))
            offsets = on_cpu["targets"].offsets
            for function in (matching_cost, hungarian_match):
                require(function, backend, f"{case.id} {name}", **inputs)
            cost = matching_cost(**inputs, backend=backend).cpu()
            assert_cost_accurate(on_cpu, cost, f"{backend} in {name}, {case.id}")
            for ties in ("lowest", "scipy"):
                match = hungarian_match(**inputs, ties=ties, full_output=True, backend=backend)
                expected = linear_sum_assignment(
                    cost, offsets=offsets, ties=ties, full_output=True, backend="reference"
                )
                assert_same_assignment(match, expected, f"hungarian_match by {backend} in {name}, {case.id}")
            runs += 3
    return runs


def assignment(backend: str, device: str) -> int:
    """Check assignments of given costs by the reference's bits; return the number of calls."""
    runs = 0
    for case in ASSIGNMENT_CASES:
        for dtype in (torch.float32, torch.float64):
            cost = assignment_costs(case.small(), dtype)
            for ties, maximize in product(("lowest", "scipy"), (False, True)):
                options: dict[str, Any] = {"ties": ties, "maximize": maximize}
                require(linear_sum_assignment, backend, case.id, cost=cost.to(device), **options)
                found = linear_sum_assignment(cost.to(device), full_output=True, backend=backend, **options)
                expected = linear_sum_assignment(cost, full_output=True, backend="reference", **options)
                assert_same_assignment(found, expected, f"linear_sum_assignment by {backend}, {case.id}, {options}")
                runs += 1
    return runs


def require(function: Any, backend: str, call: str, **arguments: Any) -> None:
    reason = dino_kernels.explain(function, **arguments).reasons[backend]
    if reason is not None:
        raise Refused(f"{function.__name__} {call}: {reason}")


def assert_same_assignment(found: Any, expected: Any, label: str) -> None:
    """Compare all but the status, which for a matching also covers predictions and targets."""

    def results(some: Any) -> list[Tensor]:
        return [result for name, result in zip(some._fields, some, strict=True) if name != "status"]

    names = [f"{label}: {name}" for name in found._fields if name != "status"]
    assert_same_bits(results(found), results(expected), names)


def main(backend: str, device: str, tiles: bool) -> int:
    # Filling would hide a kernel's reads of memory that was never written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    try:
        if tiles:
            with sized(backend, LARGE):
                runs = attention(backend, device, TILES, ("fp32", "bf16"), (False,))
            print(f"{runs} calls of {backend} with tiles, forward and backward")
            return 0
        for name, count in (("large", LARGE), ("small", SMALL)):
            with sized(backend, count):
                print(f"{attention(backend, device)} calls of {backend} as {name} ones, forward and backward")
        print(f"{matching(backend, device) + assignment(backend, device)} calls of {backend}, matching")
    except Refused as refusal:
        print(refusal)
        return 1
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backend", nargs="?", default="cuda")
    parser.add_argument("device", nargs="?", default="cuda")
    parser.add_argument("--tiles", action="store_true", help="only the kernels of an encoder's tiles")
    options = parser.parse_args()
    sys.exit(main(options.backend, options.device, options.tiles))
