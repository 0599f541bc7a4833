"""Classification losses against the public code's stored results and a transcription of their formulas."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import dino
from benchmarks.measure.launches import Launches
from dino.model.boxes import cxcywh_to_xyxy, iou_and_giou
from dino.model.criterion import SetCriterion
from dino.model.successors.classification import Pairs, classification_loss, pair_targets
from dino_kernels import PackedTargets
from tests.dino.model.criterion_toys import CLASSES, LAYERS, outputs_of, targets_of
from tests.dino.model.successors.successor_toys import GOLDEN, stored

NAMES = ["varifocal", "iou_aware", "position", "matchability"]


def stored_pairs() -> tuple[Tensor, Pairs]:
    """Return the stored logits [12, 4] and pairs."""
    boxes, queries = stored("boxes").flatten(0, 1), GOLDEN["queries"]
    row = torch.tensor([6 * image + query for image in range(2) for query in queries[image]])
    label = torch.tensor([label for labels in GOLDEN["labels"] for label in labels])
    true = torch.tensor([box for some in GOLDEN["target_boxes"] for box in some], dtype=torch.float64)
    iou = iou_and_giou(cxcywh_to_xyxy(boxes[row]), cxcywh_to_xyxy(true))[0]
    return stored("logits").flatten(0, 1), Pairs(row, label, iou, torch.ones_like(row, dtype=torch.bool), row // 6, 2)


def loss_of(name: str, logits: Tensor, pairs: Pairs) -> Tensor:
    return classification_loss(name, logits, pair_targets(name, logits, pairs), pairs)


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients_are_those_of_the_public_code(name: str) -> None:
    logits, pairs = stored_pairs()
    logits.requires_grad_()
    loss = loss_of(name, logits, pairs).sum()
    loss.backward()
    expected = GOLDEN["expected"][name]
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-7)
    assert logits.grad is not None
    torch.testing.assert_close(
        logits.grad.view(2, 6, 4), torch.tensor(expected["gradient"]).double(), rtol=2e-6, atol=1e-7
    )


def transcribed(name: str, x: float, positive: bool, iou: float, largest: float) -> float:
    """Return the loss of one logit from the table of `dino.model.successors.classification`."""
    p = 1 / (1 + math.exp(-x))
    log_p, log_not_p = -math.log1p(math.exp(-x)), -math.log1p(math.exp(x))
    if not positive:
        weights = {"varifocal": 0.75 * p**2, "iou_aware": p**2, "position": 0.75 * p**2, "matchability": p**1.5}
        return weights[name] * -log_not_p
    t = {
        "varifocal": iou,
        "iou_aware": max(0.01, p**0.25 * iou**0.75),
        "position": iou**2 / (largest**2 + 1e-8),
        "matchability": iou**1.5,
    }[name]
    weight = {"varifocal": t, "position": 0.25 * (t - p) ** 2}.get(name, 1.0)
    return weight * -(t * log_p + (1 - t) * log_not_p)


@pytest.mark.parametrize("name", NAMES)
def test_the_criterion_has_the_formula_in_every_set(name: str) -> None:
    """Decoder layers, encoder and denoising queries; an image without boxes; a box without overlap."""
    targets = targets_of(2, 0, 3)
    packed = PackedTargets.pack(targets)
    outputs = outputs_of(3, 10, denoising_of=packed)
    criterion = dino.build_criterion("dino_tiny", num_classes=CLASSES, classification=name)
    losses = criterion(outputs, targets)
    assert outputs.encoder_logits is not None and outputs.encoder_boxes_cxcywh is not None
    assert outputs.denoising is not None and packed.boxes_cxcywh is not None
    logits = [*outputs.logits, outputs.encoder_logits, *outputs.denoising.logits]
    boxes = [*outputs.boxes_cxcywh, outputs.encoder_boxes_cxcywh, *outputs.denoising.boxes_cxcywh]
    query = criterion.match(torch.stack(logits[:3]), torch.stack(boxes[:3]), packed)
    image, places = packed.image_of_each().tolist(), outputs.denoising.target.tolist()
    denoising = [(b, q, target) for b, row in enumerate(places) for q, target in enumerate(row) if target >= 0]
    for number, (x, box) in enumerate(zip(logits, boxes, strict=True)):
        matched = [(image[n], q, n) for n, q in enumerate(query[number].tolist())] if number <= LAYERS else denoising
        total, found = 0.0, {}
        for b, q, n in matched:
            pair = cxcywh_to_xyxy(box[b, q].double()), cxcywh_to_xyxy(packed.boxes_cxcywh[n].double())
            found[b, q, packed.labels[n].item()] = iou_and_giou(*pair)[0].item()
        for b in range(3):
            largest = max((iou for (image_, *_), iou in found.items() if image_ == b), default=0.0)
            for q in range(x.shape[1]):
                for c in range(CLASSES):
                    iou = found.get((b, q, c))
                    total += transcribed(name, x[b, q, c].item(), iou is not None, iou or 0.0, largest)
        groups = outputs.denoising.layout.num_groups if number > LAYERS else 1
        assert losses.table[0, number].item() == pytest.approx(total / 5 / groups, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name: str) -> None:
    """Finite differences; where the weight is a constant, the derivative of the cross-entropy alone, w (p - t)."""
    logits, pairs = stored_pairs()
    targets = pair_targets(name, logits, pairs)
    loss: Callable[[Tensor], Tensor] = lambda x: classification_loss(name, x, targets, pairs)  # noqa: E731
    logits.requires_grad_()
    if name in ("iou_aware", "position"):
        assert torch.autograd.gradcheck(loss, logits)
        return
    loss(logits).sum().backward()
    p, t, y = logits.detach().sigmoid(), torch.zeros(12, 4).double(), torch.zeros(12, 4).double()
    t[pairs.row, pairs.label], y[pairs.row, pairs.label] = targets, 1.0
    weight = 0.75 * p**2 * (1 - y) + t if name == "varifocal" else p**1.5 * (1 - y) + y
    torch.testing.assert_close(logits.grad, weight * (p - t))


@pytest.mark.parametrize("name", NAMES)
def test_pairs_that_do_not_exist_change_nothing(name: str) -> None:
    logits, pairs = stored_pairs()
    more = Pairs(
        torch.cat([pairs.row, torch.tensor([3])]),
        torch.cat([pairs.label, torch.tensor([0])]),
        torch.cat([pairs.iou, torch.tensor([math.nan])]),
        torch.cat([pairs.exists, torch.tensor([False])]),
        torch.cat([pairs.image, torch.tensor([0])]),
        2,
    )
    assert torch.equal(loss_of(name, logits, more), loss_of(name, logits, pairs))


@pytest.mark.parametrize("name", NAMES)
def test_saturated_logits_have_a_finite_loss_and_gradient(name: str) -> None:
    _, pairs = stored_pairs()
    logits = torch.tensor([-200.0, 200.0, 0.0, 90.0]).double().repeat(12, 1).requires_grad_()
    loss = loss_of(name, logits, pairs)
    loss.sum().backward()
    assert loss.isfinite().all() and logits.grad is not None and logits.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_launches_does_not_grow_with_the_layers(name: str) -> None:
    counts = []
    for classification, repeats in ((name, 1), (name, 3), ("focal", 1)):
        packed = PackedTargets.pack(targets_of(2, 3))
        outputs = outputs_of(2, 10, denoising_of=packed)
        for part in (outputs, outputs.denoising):
            assert part is not None
            part.logits = part.logits.repeat(repeats, 1, 1, 1).requires_grad_()
            part.boxes_cxcywh = part.boxes_cxcywh.repeat(repeats, 1, 1, 1).requires_grad_()
        criterion = dino.build_criterion("dino_tiny", num_classes=CLASSES, classification=classification)
        with Launches() as launches:
            criterion.weighted_total(criterion(outputs, packed)).backward()
        counts.append(launches.count)
    assert counts[0] == counts[1] <= counts[2] + 30, counts


def test_the_class_weight_is_that_of_matching_queries_and_encoder() -> None:
    targets = targets_of(2, 3)
    outputs = outputs_of(2, 10, denoising_of=PackedTargets.pack(targets))
    criterion = dino.build_criterion("dino_tiny", num_classes=CLASSES, class_weight=6.0)
    losses = criterion(outputs, targets)
    sets = {"_0": 6, "": 6, "_interm": 6, "_dn_0": 1, "_dn": 1}
    expected = sum(
        weight * losses[f"loss_ce{name}"] + 5 * losses[f"loss_bbox{name}"] + 2 * losses[f"loss_giou{name}"]
        for name, weight in sets.items()
    )
    torch.testing.assert_close(criterion.weighted_total(losses), expected)
    given = SetCriterion(dino.model_config("dino_tiny", num_classes=CLASSES, class_weight=6.0), dino.LossWeights(2.0))
    expected = 2 * losses.table[0].sum() + 5 * losses.table[1].sum() + 2 * losses.table[2].sum()
    torch.testing.assert_close(given.weighted_total(losses), expected)
