"""Difficult calls of the matching ops, for the tests of Triton's kernels."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from dino_kernels.ops._core.arguments import LinearSumAssignmentArguments
from dino_kernels.ops.linear_sum_assignment import reference
from dino_kernels.targets import PackedTargets

INF, NAN = float("inf"), float("nan")


KINDS = (
    *("normal", "float64", "ties", "all_equal", "collapsed", "one_cheap_column"),
    *("infinities", "invalid", "forbidden_lines", "overflow"),
)


def drawn(kind: str, seed: int, *shape: int) -> Tensor:
    """Return difficult costs."""
    generator = torch.Generator().manual_seed(seed)
    cost = torch.randn(shape, generator=generator, dtype=torch.float64)
    chance = torch.rand(shape, generator=generator)
    if kind == "normal":
        return cost.float()
    if kind == "float64":
        return cost
    if kind == "ties":
        return cost.round().float()  # with zeros of both signs
    if kind == "all_equal":
        return torch.zeros(shape).copysign(cost.float())
    if kind == "collapsed":  # all rows prefer the same columns
        return (cost[:, :1] + 1e-3 * cost).float()
    if kind == "one_cheap_column":
        cost[..., shape[-1] // 2] -= 10
        return cost.round()
    if kind == "infinities":
        return cost.float().masked_fill(chance < 0.5, INF)
    if kind == "invalid":
        cost = cost.float().masked_fill(chance < 0.1, NAN).masked_fill(chance > 0.9, -INF)
        return cost.masked_fill((chance > 0.5) & (chance < 0.6), INF)
    if kind == "forbidden_lines":  # so many that the other side becomes the smaller one
        lines = torch.rand(shape[0], shape[2], generator=generator) < 0.7
        return cost.round().float().masked_fill(lines[:, None] | (chance < 0.1), INF)
    if kind == "overflow":
        return 1.7e308 * cost.sign() * chance.clamp(min=0.5)
    raise AssertionError(kind)


def bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.int64) if tensor.dtype == torch.float64 else tensor


def assert_same_bits(outputs: Sequence[Tensor | None], expected: Sequence[Tensor | None]) -> None:
    names = ("columns", "status", "objective", "row_duals", "column_duals")
    for name, output, wanted in zip(names, outputs, expected, strict=True):
        assert output is not None and wanted is not None, name
        assert output.dtype == wanted.dtype and output.shape == wanted.shape, name
        different = (bits(output) != bits(wanted)).nonzero()
        assert len(different) == 0, f"{name} differs at {different[:4].tolist()}: got {output}, expected {wanted}"


def check_assignment(
    module: ModuleType,
    cost: Tensor,
    offsets: Tensor | None = None,
    sizes: Tensor | None = None,
    maximize: bool = False,
    ties: str = "lowest",
) -> None:
    arguments = LinearSumAssignmentArguments(cost, offsets, sizes, cost.shape[1], maximize, ties, True)
    assert_same_bits(module.forward(arguments), reference.forward(arguments))


def predictions(
    dtype: torch.dtype, spread: float, *sources: tuple[int, int], images: int = 3, classes: int = 40, seed: int = 0
) -> tuple[list[Tensor], list[Tensor]]:
    """Logits and boxes of sources with (sets, queries) each."""
    generator = torch.Generator().manual_seed(seed)
    logits, boxes = [], []
    for sets, queries in sources:
        logits.append((spread * torch.randn(sets, images, queries, classes, generator=generator)).to(dtype))
        boxes.append((0.02 + 0.96 * torch.rand(sets, images, queries, 4, generator=generator)).to(dtype))
    return logits, boxes


def truth(counts: tuple[int, ...], classes: int = 40, capacity: int | None = None, seed: int = 1) -> PackedTargets:
    generator = torch.Generator().manual_seed(seed)
    return PackedTargets.pack(
        [
            {
                "labels": torch.randint(classes, (count,), generator=generator),
                "boxes": 0.02 + 0.96 * torch.rand(count, 4, generator=generator),
            }
            for count in counts
        ],
        capacity=capacity,
    )


def spoil(logits: list[Tensor], boxes: list[Tensor], targets: PackedTargets) -> None:
    """Plant numbers that are not finite wherever a call may have them, in place."""
    label = int(targets.labels[0])
    logits[0][0, 0, 1, label] = NAN
    logits[0][0, 0, 2, label] = -INF
    logits[0][0, 0, 3, (label + 1) % 40] = INF
    logits[0][0, 0, 4] = -INF
    logits[-1][-1, 2, 0] = INF
    assert targets.boxes_cxcywh is not None
    if boxes:
        boxes[0][0, 0, 5, 2] = NAN
        boxes[0][-1, 1, 6, 0] = INF  # in an image without targets
        boxes[0][0, 0, 7] = 3e38
        targets.boxes_cxcywh[1, 3] = -0.1
        targets.boxes_cxcywh[2, 0] = NAN
    targets.labels[3] = 40
    targets.labels[-2] = -1
