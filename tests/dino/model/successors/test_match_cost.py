"""Position-modulated cost against the public code's stored results, a transcription, and SciPy's assignment."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

import dino
import dino_kernels
from dino.model.boxes import cxcywh_to_xyxy, generalized_iou
from dino.model.criterion import SetCriterion
from dino.model.successors.match_cost import position_class_cost
from dino_kernels import PackedTargets
from tests.dino.model.criterion_toys import (
    CLASSES,
    assert_what_is_not_finite_is_not_matched,
    outputs_of,
    targets_of,
)
from tests.dino.model.successors.successor_toys import GOLDEN, stored


def criterion() -> SetCriterion:
    return dino.build_criterion("dino_tiny", num_classes=CLASSES, match_cost="position")


def test_the_cost_is_that_of_the_public_code() -> None:
    """Where its division by the largest value does nothing, and each class of the batch has one target."""
    golden = GOLDEN["expected"]["cost"]
    truth = [
        {"labels": torch.tensor(labels), "boxes": torch.tensor(boxes)}
        for labels, boxes in zip(golden["labels"], golden["target_boxes"], strict=True)
    ]
    packed = PackedTargets.pack(truth)
    logits, boxes = stored("logits")[None].float(), torch.tensor(golden["boxes"])[None]
    extra = 2 * position_class_cost([logits], [boxes], packed)
    found = dino_kernels.matching_cost(logits, boxes, packed, weights=(0, 5, 2), extra_cost=extra)[0]
    expected = torch.tensor([row for image in golden["cost"] for row in image])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=5e-5)


def transcribed(x: float, overlap: float) -> float:
    m = 1 / (1 + math.exp(-x)) * math.sqrt((overlap + 1) / 2)
    return 0.25 * (1 - m) ** 2 * -math.log(m + 1e-8) - 0.75 * m**2 * -math.log(1 - m + 1e-8)


def cost_of(x: Tensor, boxes: Tensor, truth: dict[str, Tensor]) -> Tensor:
    """Return the whole cost of an image in float64, [T, Q]."""
    x, boxes, true = x.double(), boxes.double(), truth["boxes"].double()
    giou = generalized_iou(cxcywh_to_xyxy(boxes)[None], cxcywh_to_xyxy(true)[:, None])
    classes = [
        [transcribed(x[q, c].item(), giou[t, q].item()) for q in range(len(x))] for t, c in enumerate(truth["labels"])
    ]
    return 2 * torch.tensor(classes).double() + 5 * (true[:, None] - boxes).abs().sum(-1) - 2 * giou


@pytest.mark.parametrize("capacity", [None, 20])
def test_every_set_is_matched_at_the_least_cost(capacity: int | None) -> None:
    outputs, targets = outputs_of(3, 10), targets_of(4, 0, 3)
    packed = PackedTargets.pack(targets, capacity=capacity)
    assert outputs.encoder_logits is not None and outputs.encoder_boxes_cxcywh is not None
    fewer = outputs.encoder_logits[:, :8], outputs.encoder_boxes_cxcywh[:, :8]
    query = criterion().match([outputs.logits, fewer[0][None]], [outputs.boxes_cxcywh, fewer[1][None]], packed)
    sets = zip([*outputs.logits, fewer[0]], [*outputs.boxes_cxcywh, fewer[1]], strict=True)
    differs = False
    for number, (logits, boxes) in enumerate(sets):
        for image, start in ((0, 0), (2, 4)):
            cost = cost_of(logits[image], boxes[image], targets[image])
            rows, columns = linear_sum_assignment(cost)
            found = query[number, start : start + len(cost)]
            assert cost[rows, found].sum().item() == pytest.approx(cost[rows, columns].sum().item(), abs=1e-5)
            differs |= len(cost) > 0
    assert differs and (query[:, 7:] == -1).all()
    plain = dino.build_criterion("dino_tiny", num_classes=CLASSES)
    sources = [outputs.logits, fewer[0][None]], [outputs.boxes_cxcywh, fewer[1][None]]
    assert not torch.equal(plain.match(*sources, packed), query)


def test_queries_that_are_not_finite_are_not_matched() -> None:
    for broken in ("logits", "boxes_cxcywh"):
        targets = PackedTargets.pack(targets_of(2, 3))
        assert_what_is_not_finite_is_not_matched(criterion(), outputs_of(2, 10), targets, broken)


def test_one_call_matches_all_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, match = [], dino_kernels.hungarian_match
    monkeypatch.setattr(dino_kernels, "hungarian_match", lambda *a, **k: calls.append(1) or match(*a, **k))
    criterion()(outputs_of(2, 10, denoising_of=PackedTargets.pack(targets_of(2, 3))), targets_of(2, 3))
    assert len(calls) == 1
