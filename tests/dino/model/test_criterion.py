"""Matching and losses beyond the stored numbers: packed targets, too many boxes, numbers that are not finite."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import dino
import dino.model.matching
import dino_kernels
from dino.model.boxes import cxcywh_to_xyxy, generalized_iou
from dino.model.criterion import SetCriterion
from dino.model.denoising import Denoising, contrastive_denoising
from dino_kernels import Match, PackedTargets
from tests.dino.model.criterion_toys import CLASSES, outputs_of, targets_of


def criterion() -> SetCriterion:
    return dino.build_criterion("dino_tiny", num_classes=CLASSES)


def test_packed_targets_give_the_losses_and_denoising_queries_of_dictionaries() -> None:
    torch.manual_seed(0)
    model = dino.build_model("dino_tiny", num_classes=CLASSES, num_queries=12).train()
    images, mask = torch.randn(3, 3, 64, 64), torch.zeros(3, 64, 64, dtype=torch.bool)
    targets = targets_of(2, 0, 5)
    losses = []
    for truth in (targets, PackedTargets.pack(targets)):
        torch.manual_seed(1)
        losses.append(criterion()(model(images, mask, truth), truth))
    assert losses[0].keys() == losses[1].keys()
    assert all(torch.equal(value, losses[1][name]) for name, value in losses[0].items())


def test_packed_targets_of_another_number_of_images_are_named() -> None:
    model = dino.build_model("dino_tiny", num_classes=CLASSES).train()
    images, mask = torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.bool)
    with pytest.raises(ValueError, match="one entry per image, got 3 for 2"):
        model(images, mask, PackedTargets.pack(targets_of(1, 2, 0)))


def test_targets_with_a_capacity_are_refused() -> None:
    packed = PackedTargets.pack(targets_of(2, 3), capacity=8)
    with pytest.raises(ValueError, match="no capacity"):
        criterion()(outputs_of(2, 10), packed)


def test_all_layers_and_the_encoder_are_matched_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, match = [], dino_kernels.hungarian_match

    def counted(*arguments, **options):
        calls.append([tuple(source.shape) for source in arguments[0]])
        return match(*arguments, **options)

    monkeypatch.setattr(dino_kernels, "hungarian_match", counted)
    criterion()(outputs_of(2, 10, denoising_of=targets_of(2, 3)), targets_of(2, 3))
    assert calls == [[(2, 2, 10, CLASSES), (1, 2, 10, CLASSES)]]


def test_the_encoder_and_the_layers_are_matched_as_each_would_be_alone() -> None:
    outputs, targets = outputs_of(2, 10), targets_of(2, 3)
    assert outputs.encoder_logits is not None and outputs.encoder_boxes_cxcywh is not None
    logits, boxes = [outputs.logits, outputs.encoder_logits], [outputs.boxes_cxcywh, outputs.encoder_boxes_cxcywh]
    together = criterion().match(logits, boxes, targets)
    alone = [
        criterion().match(some[None], of_some[None], targets).query
        for some, of_some in zip([*logits[0], logits[1]], [*boxes[0], boxes[1]], strict=True)
    ]
    assert torch.equal(together.query, torch.cat(alone))


def test_more_boxes_than_queries_match_every_query_and_count_no_others() -> None:
    outputs, targets = outputs_of(2, 4), targets_of(7, 2)
    for leaf in (outputs.logits, outputs.boxes_cxcywh):
        leaf.requires_grad_()
    losses = criterion()(outputs, targets)
    matches = criterion().match(outputs.logits, outputs.boxes_cxcywh, targets)
    assert (matches.query < 0).sum(1).tolist() == [3, 3]
    for row, name in enumerate(("_0", "")):
        (query, target), (other_query, other_target) = matches.per_image(targets)[row]
        assert query.tolist() == [0, 1, 2, 3] and len(other_query) == 2
        predicted = torch.cat([outputs.boxes_cxcywh[row, 0, query], outputs.boxes_cxcywh[row, 1, other_query]])
        wanted = torch.cat([targets[0]["boxes"][target], targets[1]["boxes"][other_target]])
        giou = generalized_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(wanted))
        assert losses[f"loss_bbox{name}"].item() == pytest.approx((predicted - wanted).abs().sum().item() / 9, rel=1e-5)
        assert losses[f"loss_giou{name}"].item() == pytest.approx((1 - giou).sum().item() / 9, rel=1e-5)
    (losses["loss_bbox"] + losses["loss_giou"] + losses["loss_ce"]).backward()
    assert outputs.boxes_cxcywh.grad is not None and outputs.boxes_cxcywh.grad.isfinite().all()
    touched = outputs.boxes_cxcywh.grad[1].abs().sum(-1) > 0
    assert touched[0].all() and touched[1].sum() == 2


def test_class_error_counts_matched_queries_alone() -> None:
    targets = [{"labels": torch.tensor([1, 2, 3]), "boxes": torch.rand(3, 4) * 0.3 + 0.3}]
    outputs = outputs_of(1, 2, encoder=False)
    # Both queries know a class that is there; one box has no query.
    outputs.logits[-1] = -5.0
    outputs.logits[-1, 0, 0, 1] = outputs.logits[-1, 0, 1, 3] = 5.0
    assert criterion()(outputs, targets)["class_error"].item() == 0
    outputs.logits[-1, 0, :, 0] = 6.0
    assert criterion()(outputs, targets)["class_error"].item() == 100
    nothing = [{"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}]
    assert criterion()(outputs, nothing)["class_error"].item() == 100


@pytest.mark.parametrize("broken", ["logits", "boxes_cxcywh"])
def test_queries_that_are_not_finite_are_not_matched_and_the_loss_shows_them(broken: str) -> None:
    outputs, targets = outputs_of(2, 10), targets_of(2, 3)
    healthy = criterion().match(outputs.logits, outputs.boxes_cxcywh, targets).query
    unlucky = int(healthy[1, 0])
    getattr(outputs, broken)[1, 0, unlucky] = math.nan
    matched = criterion().match(outputs.logits, outputs.boxes_cxcywh, targets).query
    assert torch.equal(matched[0], healthy[0]) and torch.equal(matched[1, 2:], healthy[1, 2:])
    assert (matched >= 0).all() and unlucky not in matched[1, :2].tolist()
    losses = criterion()(outputs, targets)
    if broken == "logits":
        assert losses["loss_ce"].isnan()
    assert losses["loss_ce_0"].isfinite() and losses["loss_bbox"].isfinite()


def test_an_image_without_a_finite_query_is_left_unmatched_and_every_loss_shows_it() -> None:
    outputs, targets = outputs_of(2, 10), targets_of(2, 3)
    outputs.logits[1, 0], outputs.boxes_cxcywh[1, 0] = math.nan, math.inf
    matches = criterion().match(outputs.logits, outputs.boxes_cxcywh, targets)
    assert matches.query[1, :2].tolist() == [-1, -1] and (matches.query[1, 2:] >= 0).all()
    losses = criterion()(outputs, targets)
    for name in ("loss_ce", "loss_bbox", "loss_giou"):
        assert losses[name].isnan() and losses[f"{name}_0"].isfinite() and losses[f"{name}_interm"].isfinite()
    assert criterion().weighted_total(losses).isnan()


def test_weights_of_the_cost_reach_the_matching() -> None:
    targets = targets_of(1)
    outputs = outputs_of(1, 2, encoder=False)
    outputs.boxes_cxcywh[:, 0] = torch.stack([targets[0]["boxes"][0], torch.tensor([0.9, 0.9, 0.1, 0.1])])
    outputs.logits[:, 0, 0, targets[0]["labels"]] = -5.0
    outputs.logits[:, 0, 1, targets[0]["labels"]] = 5.0
    for cost, query in ((dino.MatchCost(0, 1, 0), 0), (dino.MatchCost(0, 0, 1), 0), (dino.MatchCost(1, 0, 0), 1)):
        found = SetCriterion(dino.model_config("dino_tiny"), cost=cost)
        assert found.match(outputs.logits, outputs.boxes_cxcywh, targets).query.tolist() == [[query]] * 2


def test_losses_and_denoising_work_without_data_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors that have a shape and no data, whatever reads a number, or mixes devices, raises."""
    targets = targets_of(2, 0, 5)
    counts = tuple(len(target["labels"]) for target in targets)

    def matched(logits: list[Tensor], *_: object, **__: object) -> Match:
        sets = sum(source.shape[0] for source in logits)
        return Match(torch.zeros(sets, 7, dtype=torch.int64, device="meta"), torch.zeros(0), None, None, None)

    monkeypatch.setattr(dino_kernels, "hungarian_match", matched)
    with torch.device("meta"):
        packed = PackedTargets(
            torch.zeros(7, dtype=torch.int64), torch.zeros(7, 4), torch.zeros(4, dtype=torch.int64), 5, counts
        )
        denoising = Denoising(dino.model_config("dino_tiny", num_classes=CLASSES))
        outputs = outputs_of(3, 10, denoising_of=packed)
    contrastive_denoising(denoising, packed).blocked(10)
    outputs.logits.requires_grad_()
    losses = criterion()(outputs, packed)
    criterion().weighted_total(losses).backward()
    assert all(loss.is_meta for loss in losses.values()) and "loss_giou_dn_0" in losses
