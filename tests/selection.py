"""Which variants of a test run: with --gpu, without a GPU, and of the slow backends.

Slow variants are those of Triton's interpreter, which takes a thousand times as long, and of emulated CUDA kernels in
dtypes that are instantiations of another's templates. --fuzz of more than 200 runs all of them.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
import torch

from dino_kernels.testing import (
    ASSIGNMENT_CASES,
    CASES,
    DTYPES,
    MATCHING_CASES,
    AssignmentCase,
    Case,
    MatchingCase,
)

EMULATED, INTERPRETED = "emulated", "interpreted"
ON_A_GPU = {"cuda", "triton"}
RARE_DTYPES = ("fp16", "fp64")  # of emulated kernels
# The cases of the shared tables that slow variants run: each loop and each kind of input once.
SMALL: dict[type, tuple[str, ...]] = {
    Case: ("encoder_masked", "rtdetr", "channels_3", "hostile_boxes"),
    MatchingCase: ("middle", "saturated", "more_targets_than_queries", "no_targets"),
    AssignmentCase: ("random_tall", "integers_square", "forbidden", "hostile"),
}
SHARED = {*CASES, *MATCHING_CASES, *ASSIGNMENT_CASES}
# The most variants of a test of each kind; on a GPU each by Triton compiles for seconds.
MOST = {INTERPRETED: 2, **dict.fromkeys(RARE_DTYPES, 2), "triton": 2}

# The order on a GPU, by how paths begin. Files not named here follow; those that compile for long come last.
GPU_ORDER = ("gpu/test_attention.py", "gpu/", "cuda/")
GPU_LAST = ("ops/contract/test_compile.py", "ops/contract/test_export.py", "ops/contract/test_opcheck.py")


def select(items: list[pytest.Item], gpu: bool, everything: bool) -> list[pytest.Item]:
    """Return the tests to run, in order.

    Args:
        items: all tests.
        gpu: only those with a parameter "cuda" or "triton": a machine with a GPU runs what no other can. Without this
            and without a GPU, all but those.
        everything: all variants, also the slow ones.
    """
    if not everything:
        items = _without(items, _slow_variants(items))
    if not gpu:
        return items if torch.cuda.is_available() else [item for item in items if not _strings(item) & ON_A_GPU]
    chosen = sorted((item for item in items if _strings(item) & ON_A_GPU), key=_rank_on_a_gpu)
    if not everything:
        by_triton = {item: "triton" for item in chosen if "cuda" not in _strings(item)}
        chosen = _without(chosen, by_triton)
    return chosen


def _slow_variants(items: list[pytest.Item]) -> dict[pytest.Item, str]:
    """The slow variants and the kind of each."""
    kinds = {}
    for item in items:
        values = _strings(item)
        if INTERPRETED in values:
            kinds[item] = INTERPRETED
        elif EMULATED in values and (rare := [name for name in RARE_DTYPES if name in values]):
            kinds[item] = rare[0]
    return kinds


def _without(items: list[pytest.Item], kinds: dict[pytest.Item, str]) -> list[pytest.Item]:
    """Leave out variants of the same test and kind beyond MOST representative ones."""
    variants: dict[tuple[str, str], list[pytest.Item]] = defaultdict(list)
    for item, kind in kinds.items():
        variants[item.nodeid.partition("[")[0], kind].append(item)
    kept = {item for (_, kind), each in variants.items() for item in _representatives(each, MOST[kind])}
    return [item for item in items if item not in kinds or item in kept]


def _representatives(variants: list[pytest.Item], most: int) -> list[pytest.Item]:
    """Choose variants of one test: the k-th has the k-th value of each parameter, counted round if there are fewer.

    Of the shared tables of cases only SMALL ones count.
    """
    small = [item for item in variants if all(_is_small(value) for value in item.callspec.params.values())]  # type: ignore[attr-defined]
    by_indices = {tuple(item.callspec.indices.values()): item for item in small or variants}  # type: ignore[attr-defined]
    values = [sorted(set(column)) for column in zip(*by_indices, strict=True)]
    chosen: dict[pytest.Item, None] = {}
    for k in range(max(map(len, values))):
        diagonal = tuple(column[k % len(column)] for column in values)
        if diagonal in by_indices:
            chosen[by_indices[diagonal]] = None
    # Where parameters are no product, there is no diagonal.
    chosen |= dict.fromkeys(by_indices.values()) if len(chosen) < most else {}
    return list(chosen)[:most]


def _is_small(value: object) -> bool:
    return not (type(value) in SMALL and value in SHARED) or value.name in SMALL[type(value)]  # type: ignore[attr-defined]


def _strings(item: pytest.Item) -> set[str]:
    """Names among a test's parameters; a dtype has the name that DTYPES gives it."""
    callspec = getattr(item, "callspec", None)
    values = list(callspec.params.values()) if callspec else []
    names = {name for name, dtype in DTYPES.items() if any(value is dtype for value in values)}
    return names | {value for value in values if isinstance(value, str)}


def _rank_on_a_gpu(item: pytest.Item) -> tuple[bool, int]:
    """CUDA before Triton; within either, files in GPU_ORDER."""
    name = item.path.relative_to(Path(__file__).parent).as_posix()
    if name in GPU_LAST:
        rank = len(GPU_ORDER) + 1
    else:
        rank = next((place for place, start in enumerate(GPU_ORDER) if name.startswith(start)), len(GPU_ORDER))
    return "cuda" not in _strings(item), rank
