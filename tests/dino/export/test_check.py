"""The check finds what differs, and forgives what rounding reorders."""

from __future__ import annotations

import math

import pytest
import torch

from dino.data import EvalTransform
from dino.export.check import batches, compare, photographs, set_difference
from dino.export.description import Description, ExportError, FixedSize
from tests.dino.export.export_toys import CATEGORIES, TRANSFORM, small_model


def detections(count: int = 8, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(1, count, generator=generator).sort(1, descending=True).values
    return scores, torch.randint(3, (1, count), generator=generator), torch.rand(1, count, 4, generator=generator)


def taken(found, places):
    """The detections at some places."""
    scores, labels, boxes = (values[:, places] for values in found)
    return scores, labels, boxes


def test_the_order_of_detections_does_not_count():
    found = detections()
    assert set_difference(found, taken(found, [1, 0, *range(2, 8)])) == (0.0, 0.0)


def test_differences_of_scores_and_boxes_are_found():
    scores, labels, boxes = detections()
    moved = boxes.clone()
    moved[0, 2, 1] += 0.03
    lower = scores.clone()
    lower[0, 1] -= 0.02
    score, box = set_difference((scores, labels, boxes), (lower, labels, moved))
    assert score == pytest.approx(0.02, abs=1e-6) and box == pytest.approx(0.03, abs=1e-6)


def test_a_detection_of_another_class_has_no_partner():
    scores, labels, boxes = detections()
    others = labels.clone()
    others[0, 0] = 3
    assert set_difference((scores, labels, boxes), (scores, others, boxes)) == (math.inf, math.inf)


def test_a_repeated_detection_does_not_pass_for_two():
    found = detections()
    assert max(set_difference(found, taken(found, [0, 0, *range(2, 8)]))) > 0.01


def described(transform=TRANSFORM, **fields):
    return Description(small_model().config, CATEGORIES, transform, "gather", least_side=40, **fields)


def test_batches_have_two_sizes_and_one_is_padded():
    first, second = batches(photographs(), described(EvalTransform(96, 160)))
    assert first[0].shape[0] == 1 and not first[1].any()
    assert second[0].shape[0] == 2 and second[1][1].any() and not second[1][0].any()
    assert first[0].shape[2:] != second[0].shape[2:]
    smallest = batches(photographs(), described(EvalTransform(32, 64)))
    assert all(min(images.shape[2:]) == 40 and mask[0, -1].all() for images, mask, _ in smallest)
    fixed = batches(photographs(), described(FixedSize(64, 96, 64, 96)))
    assert all(images.shape[2:] == (64, 96) and mask[0].any() for images, mask, _ in fixed)


def test_a_run_with_its_own_tokens_is_compared_with_these_tokens():
    model, description = small_model(), described(EvalTransform(48, 80))
    batch = batches(photographs(), description)[1]

    def run(swap):
        def of(inputs):
            images, mask = (torch.from_numpy(inputs[name]) for name in ("images", "mask"))
            with torch.no_grad():
                selected = model(images, mask).selected_indices
                assert selected is not None
                if swap == "neighbours":
                    selected = selected[:, [1, 0, *range(2, 20)]]
                elif swap == "worst":
                    selected = selected.clone()
                    selected[:, 0] = int(next(i for i in range(40, -1, -1) if not (selected == i).any()))
                outputs = model(images, mask, query_indices=selected)
            return [o.numpy() for o in (outputs.logits[-1], outputs.boxes_cxcywh[-1], selected)]

        return of

    same, neighbours, worst = (compare(model, run(swap), description, batch) for swap in ("", "neighbours", "worst"))
    assert same.within == same.raw == same.other_tokens == 0 and same.gap is not None
    assert neighbours.within == 0 and neighbours.other_tokens == 4
    assert worst.shortfall > 0.01 and worst.within > 0.01


def test_photographs_are_two_files(tmp_path):
    with pytest.raises(ExportError, match="must be two image files"):
        photographs([tmp_path / "one.jpg"])
