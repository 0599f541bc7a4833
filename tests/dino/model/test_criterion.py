"""Matching and losses beyond the stored outputs: packed targets, too many boxes, predictions that are not finite."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import dino
import dino_kernels
from benchmarks.measure.launches import Launches
from dino.model.boxes import cxcywh_to_xyxy, generalized_iou
from dino.model.criterion import KINDS, NUM_TRAINED, SetCriterion
from dino.model.denoising import Denoising
from dino_kernels import Match, PackedTargets, pairs_of
from tests.dino.model.criterion_toys import (
    CLASSES,
    assert_what_is_not_finite_is_not_matched,
    outputs_of,
    targets_of,
)


def criterion() -> SetCriterion:
    return dino.build_criterion("dino_tiny", num_classes=CLASSES)


def packed_of(*counts: int) -> PackedTargets:
    return PackedTargets.pack(targets_of(*counts))


def test_packed_targets_give_the_losses_and_denoising_queries_of_dictionaries() -> None:
    torch.manual_seed(0)
    model = dino.build_model("dino_tiny", num_classes=CLASSES, num_queries=12).train()
    images, mask = torch.randn(3, 3, 64, 64), torch.zeros(3, 64, 64, dtype=torch.bool)
    targets = targets_of(2, 0, 5)
    losses = []
    for truth in (targets, PackedTargets.pack(targets)):
        torch.manual_seed(1)
        losses.append(criterion()(model(images, mask, truth), truth))
    assert torch.equal(losses[0].table, losses[1].table) and torch.equal(losses[0].class_error, losses[1].class_error)


def test_packed_targets_of_another_number_of_images_are_named() -> None:
    model = dino.build_model("dino_tiny", num_classes=CLASSES).train()
    images, mask = torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.bool)
    with pytest.raises(ValueError, match="one entry per image, got 3 for 2"):
        model(images, mask, packed_of(1, 2, 0))


def test_logits_of_another_number_of_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"num_classes = 10 .* got 5\. Use dino\.build_criterion\(model\.config\)"):
        dino.build_criterion("dino_tiny")(outputs_of(2, 10), targets_of(2, 3))


@pytest.mark.parametrize("encoder", [True, False])
def test_losses_have_the_official_names_and_one_weighted_sum(encoder: bool) -> None:
    found = criterion()
    losses = found(outputs_of(2, 10, encoder=encoder, denoising_of=packed_of(2, 3)), targets_of(2, 3))
    sets = ["_0", "", *(["_interm"] if encoder else []), "_dn_0", "_dn"]
    assert list(losses) == [f"{kind}{name}" for kind in KINDS for name in sets] + ["class_error"]
    assert len(losses) == len(dict(losses)) == losses.table.numel() + 1
    assert losses["loss_giou_dn_0"] == losses.table[2, losses.first_denoising] and "loss_ce_dn_1" not in losses
    weights = {"loss_ce": 1, "loss_bbox": 5, "loss_giou": 2}
    total = sum(weight * losses[f"{kind}{name}"] for kind, weight in weights.items() for name in sets)
    torch.testing.assert_close(found.weighted_total(losses), total)
    other = SetCriterion(dino.model_config("dino_tiny", num_classes=CLASSES), dino.LossWeights(0, 0, 3))
    torch.testing.assert_close(other.weighted_total(losses), 3 * losses.table[2].sum())


def test_only_trained_losses_have_a_gradient_and_are_named_if_not_finite() -> None:
    outputs = outputs_of(2, 10, denoising_of=packed_of(2, 3))
    outputs.boxes_cxcywh.requires_grad_()
    losses = criterion()(outputs, targets_of(2, 3))
    assert losses.not_finite() == []
    losses.table[NUM_TRAINED:].sum().backward()
    assert outputs.boxes_cxcywh.grad is not None and not outputs.boxes_cxcywh.grad.any()
    outputs.boxes_cxcywh = outputs.boxes_cxcywh.detach()
    outputs.boxes_cxcywh[1] = math.nan
    losses = criterion()(outputs, targets_of(2, 3))
    assert losses["loss_xy"].isnan() and losses.not_finite() == ["loss_bbox", "loss_giou"]


def test_the_normaliser_may_stay_on_the_device() -> None:
    outputs, targets = outputs_of(2, 10, denoising_of=packed_of(2, 3)), targets_of(2, 3)
    default, number, tensor, least = (
        criterion()(outputs, targets, num_boxes).table
        for num_boxes in (None, 2.5, torch.tensor(2.5), torch.tensor(0.0))
    )
    assert torch.equal(number, tensor)
    torch.testing.assert_close(number[:5], 2 * default[:5])  # 5 boxes
    torch.testing.assert_close(least[:5], 5 * default[:5])


def test_the_number_of_launches_is_small_and_does_not_grow_with_the_layers() -> None:
    counts = []
    for repeats in (1, 3):
        outputs, targets = outputs_of(2, 10, denoising_of=packed_of(2, 3)), packed_of(2, 3)
        for part in (outputs, outputs.denoising):
            assert part is not None
            part.logits = part.logits.repeat(repeats, 1, 1, 1).requires_grad_()
            part.boxes_cxcywh = part.boxes_cxcywh.repeat(repeats, 1, 1, 1).requires_grad_()
        with Launches() as launches:
            criterion().weighted_total(criterion()(outputs, targets)).backward()
        counts.append(launches.count)
    assert counts[0] == counts[1] < 220, counts


def test_all_layers_and_the_encoder_are_matched_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, match = [], dino_kernels.hungarian_match

    def counted(*arguments, **options):
        calls.append([tuple(source.shape) for source in arguments[0]])
        return match(*arguments, **options)

    monkeypatch.setattr(dino_kernels, "hungarian_match", counted)
    criterion()(outputs_of(2, 10, denoising_of=packed_of(2, 3)), targets_of(2, 3))
    assert calls == [[(2, 2, 10, CLASSES), (1, 2, 10, CLASSES)]]


def test_the_encoder_and_the_layers_are_matched_as_each_would_be_alone() -> None:
    outputs, targets = outputs_of(2, 10), packed_of(2, 3)
    assert outputs.encoder_logits is not None and outputs.encoder_boxes_cxcywh is not None
    logits, boxes = [outputs.logits, outputs.encoder_logits], [outputs.boxes_cxcywh, outputs.encoder_boxes_cxcywh]
    together = criterion().match(logits, boxes, targets)
    alone = [
        criterion().match(some[None], of_some[None], targets)
        for some, of_some in zip([*logits[0], logits[1]], [*boxes[0], boxes[1]], strict=True)
    ]
    assert torch.equal(together, torch.cat(alone))


def test_more_boxes_than_queries_match_every_query_and_count_no_others() -> None:
    outputs, targets = outputs_of(2, 4), targets_of(7, 2)
    for leaf in (outputs.logits, outputs.boxes_cxcywh):
        leaf.requires_grad_()
    losses = criterion()(outputs, targets)
    matched = criterion().match(outputs.logits, outputs.boxes_cxcywh, PackedTargets.pack(targets))
    assert (matched < 0).sum(1).tolist() == [3, 3]
    for row, name in enumerate(("_0", "")):
        (query, target), (other_query, other_target) = pairs_of(matched, targets)[row]
        assert query.tolist() == [0, 1, 2, 3] and len(other_query) == 2
        predicted = torch.cat([outputs.boxes_cxcywh[row, 0, query], outputs.boxes_cxcywh[row, 1, other_query]])
        true = torch.cat([targets[0]["boxes"][target], targets[1]["boxes"][other_target]])
        giou = generalized_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(true))
        assert losses[f"loss_bbox{name}"].item() == pytest.approx((predicted - true).abs().sum().item() / 9, rel=1e-5)
        assert losses[f"loss_giou{name}"].item() == pytest.approx((1 - giou).sum().item() / 9, rel=1e-5)
    (losses["loss_bbox"] + losses["loss_giou"] + losses["loss_ce"]).backward()
    assert outputs.boxes_cxcywh.grad is not None and outputs.boxes_cxcywh.grad.isfinite().all()
    touched = outputs.boxes_cxcywh.grad[1].abs().sum(-1) > 0
    assert touched[0].all() and touched[1].sum() == 2


def test_class_error_counts_matched_queries_alone() -> None:
    targets = [{"labels": torch.tensor([1, 2, 3]), "boxes": torch.rand(3, 4) * 0.3 + 0.3}]
    outputs = outputs_of(1, 2, encoder=False)
    # Both queries predict the class of a box; one box has no query.
    outputs.logits[-1] = -5.0
    outputs.logits[-1, 0, 0, 1] = outputs.logits[-1, 0, 1, 3] = 5.0
    assert criterion()(outputs, targets)["class_error"].item() == 0
    outputs.logits[-1, 0, :, 0] = 6.0
    assert criterion()(outputs, targets)["class_error"].item() == 100
    nothing = [{"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}]
    assert criterion()(outputs, nothing)["class_error"].item() == 100


@pytest.mark.parametrize("broken", ["logits", "boxes_cxcywh"])
def test_queries_that_are_not_finite_are_not_matched_and_the_loss_shows_them(broken: str) -> None:
    outputs, targets = outputs_of(2, 10), packed_of(2, 3)
    assert_what_is_not_finite_is_not_matched(criterion(), outputs, targets, broken)
    losses = criterion()(outputs, targets)
    if broken == "logits":
        assert losses["loss_ce"].isnan()
    assert losses["loss_ce_0"].isfinite() and losses["loss_bbox"].isfinite()


def test_an_image_without_a_finite_query_is_left_unmatched_and_every_loss_shows_it() -> None:
    outputs, targets = outputs_of(2, 10), packed_of(2, 3)
    outputs.logits[1, 0], outputs.boxes_cxcywh[1, 0] = math.nan, math.inf
    matched = criterion().match(outputs.logits, outputs.boxes_cxcywh, targets)
    assert matched[1, :2].tolist() == [-1, -1] and (matched[1, 2:] >= 0).all()
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
        assert found.match(outputs.logits, outputs.boxes_cxcywh, PackedTargets.pack(targets)).tolist() == [[query]] * 2


def test_losses_and_denoising_work_without_data_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a number or mixing devices raises on tensors that have a shape and no data."""

    def matched(logits: list[Tensor], *_: object, **__: object) -> Match:
        sets = sum(source.shape[0] for source in logits)
        return Match(torch.zeros(sets, 7, dtype=torch.int64, device="meta"), torch.zeros(0), None, None, None)

    monkeypatch.setattr(dino_kernels, "hungarian_match", matched)
    with torch.device("meta"):
        packed = PackedTargets(
            torch.zeros(7, dtype=torch.int64), torch.zeros(7, 4), torch.zeros(4, dtype=torch.int64), 5, (2, 0, 5)
        )
        denoising = Denoising(dino.model_config("dino_tiny", num_classes=CLASSES))
        outputs = outputs_of(3, 10, denoising_of=packed)
    denoising(packed).blocked(10)
    outputs.logits.requires_grad_()
    losses = criterion()(outputs, packed)
    criterion().weighted_total(losses).backward()
    assert all(loss.is_meta for loss in losses.values())
