"""Matching calls that are like an earlier one, and DETR's lists in one native call: the same results and errors."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from dino_kernels import PackedTargets, hungarian_match, linear_sum_assignment, pairs_of
from dino_kernels.ops import hungarian_match as package
from dino_kernels.ops._core import lists
from dino_kernels.ops._core.repeated import RepeatedMatching

COUNTS = ((3, 0, 2), (0, 0), (1, 7))
WRONG = {
    "a label of no class": ({"labels": torch.tensor([9]), "boxes": torch.rand(1, 4)}, r"in 0\.\.4"),
    "another number of images": (None, "targets has 1 images"),
}


def targets_of(counts: tuple[int, ...], seed: int = 0, box: Any = torch.float32) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "labels": torch.randint(5, (count,), generator=generator),
            "boxes": torch.rand(count, 4, generator=generator).to(box),
        }
        for count in counts
    ]


def predictions_of(images: int, seed: int = 0, sets: int = 3, queries: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (sets, images, queries)
    return torch.randn(*shape, 5, generator=generator), torch.rand(*shape, 4, generator=generator)


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for each, its in zip(one, other, strict=True):
            assert_same(each, its)
    else:
        assert one == other


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("with_boxes", [True, False])
def test_a_native_call_packs_as_pytorch_does(counts, with_boxes, monkeypatch):
    targets = targets_of(counts)
    if not with_boxes:
        targets = [{"labels": target["labels"]} for target in targets]
    native = lists.pack(targets, "labels", "boxes", 0.0, 1.0)
    assert native is not None
    quick = PackedTargets.pack(targets)
    monkeypatch.setattr(lists, "pack", lambda *arguments: None)
    slow = PackedTargets.pack(targets)
    for field in fields(PackedTargets):
        assert_same(getattr(quick, field.name), getattr(slow, field.name))


@pytest.mark.parametrize(
    "wrong",
    [
        {"labels": torch.tensor([-1]), "boxes": torch.rand(1, 4)},
        {"labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.1, -0.1]])},
        {"labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 1.5, 0.1, 0.1]])},
        {"labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, torch.nan, 0.1, 0.1]])},
        {"labels": torch.tensor([1]), "boxes": torch.rand(2, 4)},
        {"labels": torch.tensor([1.0]), "boxes": torch.rand(1, 4)},
        {"labels": torch.tensor([1])},
    ],
)
def test_wrong_targets_are_left_to_the_checks(wrong):
    targets = [*targets_of((2,)), wrong]
    assert lists.pack(targets, "labels", "boxes", -0.01, 1.01) is None
    with pytest.raises((ValueError, TypeError), match=r"targets\[1\]"):
        PackedTargets.pack(targets)


def test_strides_and_other_dtypes_are_left_to_pytorch():
    wide = {"labels": torch.tensor([1, 2]), "boxes": (torch.rand(2, 8) / 2)[:, ::2]}
    assert lists.pack([wide], "labels", "boxes", 0.0, 1.0) is None
    assert_same(PackedTargets.pack([wide]).boxes_cxcywh, wide["boxes"].contiguous())
    half = targets_of((2, 1), box=torch.bfloat16)
    assert lists.pack(half, "labels", "boxes", 0.0, 1.0) is None
    assert PackedTargets.pack(half).boxes_cxcywh is not None


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_native_call_pairs_as_numpy_does(counts, lost, monkeypatch):
    packed = PackedTargets.pack(targets_of(counts))
    query = torch.stack([torch.randperm(20)[: len(packed)] for _ in range(4)])
    query[:, : len(packed) * lost // 2] = -1
    quick = pairs_of(query, packed)
    assert lists.pairs(query, packed.offsets) is not None
    monkeypatch.setattr(lists, "pairs", lambda *arguments: None)
    assert_same(quick, pairs_of(query, packed))


@pytest.mark.parametrize("as_lists", [False, True])
@pytest.mark.parametrize("options", [{}, {"weights": (1.0, 0.0, 0.0)}, {"full_output": True, "ties": "scipy"}])
def test_a_repeated_call_gives_the_same(as_lists, options, monkeypatch):
    monkeypatch.setattr(package, "_repeated", RepeatedMatching(package.backends))
    repeated = 0
    for seed in range(4):
        logits, boxes = predictions_of(2, seed)
        logits.requires_grad_()
        packed = PackedTargets.pack(targets_of((seed, 2), seed))
        given = ([*logits], [*boxes]) if as_lists else (logits, boxes)
        match = hungarian_match(*given, packed, **options)
        assert_same(match, hungarian_match(logits.detach(), boxes, packed, backend="cpu", **options))
        assert not match.query_idx.requires_grad
        option = ("dino", "none", "auto", [], "lowest", False)
        repeated += not options and package._repeated.run(*given, packed, option) is not None
    assert options or repeated == 4


@pytest.mark.parametrize("case", WRONG)
def test_a_repeated_call_refuses_wrong_targets(case):
    logits, boxes = predictions_of(2)
    for _ in range(2):
        hungarian_match(logits, boxes, PackedTargets.pack(targets_of((1, 2))))
    wrong, message = WRONG[case]
    packed = PackedTargets.pack([wrong, *targets_of((1,))] if wrong else targets_of((1,)))
    with pytest.raises(ValueError, match=message):
        hungarian_match(logits, boxes, packed)


def test_a_repeated_assignment_gives_the_same():
    for rows in (2, 5, 0, 9):
        cost = torch.rand(2, rows, 7, dtype=torch.float64)
        offsets = torch.tensor([0, rows // 2, rows])
        parts = [linear_sum_assignment(cost[:, : rows // 2]), linear_sum_assignment(cost[:, rows // 2 :])]
        assert_same(linear_sum_assignment(cost, offsets=offsets), torch.cat(parts, 1))
        with pytest.raises(ValueError, match="invalid numeric entries"):
            linear_sum_assignment(torch.full((1, 1, 1), torch.nan), check="raise")
