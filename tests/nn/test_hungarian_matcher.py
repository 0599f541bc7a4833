"""`HungarianMatcher` returns what the matchers of its family return."""

from __future__ import annotations

import math
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from dino_kernels import PackedTargets, hungarian_match
from dino_kernels.nn import HungarianMatcher
from tests.nn.originals import (
    BOXES,
    COUNTS,
    WEIGHTS,
    assert_same,
    broken_predictions,
    ground_truth,
    mask2former,
    matched,
    matcher,
    original,
    predictions,
    softmax_cost,
)


@pytest.mark.parametrize("preset", BOXES)
@pytest.mark.parametrize("seed", range(4))
def test_pairs_are_those_of_the_original(preset: str, seed: int) -> None:
    outputs, targets = predictions(4, 25, seed=seed), ground_truth(*COUNTS)
    expected = original(preset, outputs, targets)
    assert_same(matched(matcher(preset)(outputs, targets), preset), expected)
    packed = PackedTargets.pack(targets)
    assert_same(matched(matcher(preset)(outputs, packed), preset), expected)


def test_presets_differ_where_their_formulas_do() -> None:
    """The two formulas of a pair choose differently: one query is better by the one, the other by the other."""
    target = [{"labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.001, 0.001]])}]
    # The eps of 1e-6 is as large as this box: by it, a perfect box is worth half as much.
    boxes = torch.tensor([[[0.5, 0.5, 0.001, 0.001], [0.5, 0.5, 0.002, 0.002]]])
    outputs = {"pred_logits": torch.tensor([[[0.0], [0.9]]]), "pred_boxes": boxes}
    chosen = {preset: matcher(preset)(outputs, target)[0][0].item() for preset in ("dino", "deformable_detr")}
    assert chosen == {"dino": 1, "deformable_detr": 0}
    logits = torch.tensor([[[1.0, -9.0], [2.0, 6.0]]])  # the second class takes the probability only from softmax
    outputs = {"pred_logits": logits, "pred_boxes": torch.full((1, 2, 4), 0.5)}
    target = [{"labels": torch.tensor([0]), "boxes": torch.full((1, 4), 0.5)}]
    chosen = {preset: matcher(preset)(outputs, target)[0][0].item() for preset in ("detr", "deformable_detr")}
    assert chosen == {"detr": 0, "deformable_detr": 1}


def test_rt_detr_without_focal_loss_is_softmax_which_is_its_default() -> None:
    outputs, targets = predictions(4, 25), ground_truth(*COUNTS)
    expected = original("rt_detr", outputs, targets, softmax_cost)
    assert_same(HungarianMatcher(preset="rt_detr", weight_dict=WEIGHTS)(outputs, targets), expected)


@pytest.mark.parametrize(("name", "preset"), [("focal_alpha", "dino"), ("alpha", "rt_detr")])
def test_alpha_and_gamma_reach_the_formula_under_either_name(name: str, preset: str) -> None:
    outputs, targets = predictions(4, 60, seed=3), ground_truth(9, 0, 12, 8)
    outputs["pred_logits"] += 3
    expected = original(preset, outputs, targets, alpha=0.9, gamma=4.0)
    assert_same(matcher(preset, **{name: 0.9}, gamma=4.0)(outputs, targets), expected)
    assert [q.tolist() for q, _ in expected] != [q.tolist() for q, _ in original(preset, outputs, targets)]


@pytest.mark.parametrize("seed", range(4))
def test_masks_are_matched_at_the_points_of_mask2former(seed: int) -> None:
    outputs, targets = predictions(4, 25, seed=seed, masks=True), ground_truth(*COUNTS, masks=True)
    torch.manual_seed(seed)
    expected = mask2former(outputs, targets, 112, (2.0, 5.0, 5.0))
    ours = HungarianMatcher(cost_class=2.0, cost_mask=5.0, cost_dice=5.0, num_points=112, preset="mask2former")
    torch.manual_seed(seed)
    assert_same(ours(outputs, targets), expected)
    without_boxes = [{key: value for key, value in target.items() if key != "boxes"} for target in targets]
    torch.manual_seed(seed)
    assert_same(ours({key: outputs[key] for key in ("pred_logits", "pred_masks")}, without_boxes), expected)


def transformers_matcher(preset: str) -> Any:
    pytest.importorskip("transformers", reason="transformers is not installed")
    if preset == "detr":
        from transformers.loss.loss_for_object_detection import HungarianMatcher as Matcher

        return Matcher(2, 5, 2)
    if preset == "deformable_detr":
        from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher

        return DeformableDetrHungarianMatcher(2, 5, 2)
    from transformers.loss.loss_rt_detr import RTDetrHungarianMatcher

    weights = {"matcher_class_cost": 2, "matcher_bbox_cost": 5, "matcher_giou_cost": 2}
    return RTDetrHungarianMatcher(
        SimpleNamespace(**weights, use_focal_loss=True, matcher_alpha=0.25, matcher_gamma=2.0)
    )


@pytest.mark.parametrize("preset", ["detr", "deformable_detr", "rt_detr"])
@pytest.mark.parametrize(("queries", "counts"), [(25, COUNTS), (100, (20, 30, 1, 0)), (4, (7, 3, 0, 4))])
def test_pairs_are_those_of_transformers(preset: str, queries: int, counts: tuple[int, ...]) -> None:
    theirs = transformers_matcher(preset)
    outputs, targets = predictions(4, queries), ground_truth(*counts, label="class_labels")
    named = {"logits": outputs["pred_logits"], "pred_boxes": outputs["pred_boxes"]}
    assert_same(matcher(preset)(named, targets), theirs(named, targets))


def test_groups_of_queries_are_matched_apart_as_in_transformers() -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers.loss.loss_lw_detr import LwDetrHungarianMatcher

    outputs, targets = predictions(4, 39), ground_truth(*COUNTS, label="class_labels")
    named = {"logits": outputs["pred_logits"], "pred_boxes": outputs["pred_boxes"]}
    expected = LwDetrHungarianMatcher(2, 5, 2)(named, targets, 3)
    ours = matcher("rf_detr")
    assert_same(ours(outputs, targets, group_detr=3), expected)
    assert [len(query) for query, _ in expected] == [3 * count for count in COUNTS]
    together = ours.match_all([outputs, predictions(4, 30, seed=1)], targets, group_detr=3)
    assert_same(together[0], expected)
    assert_same(together[1], ours(predictions(4, 30, seed=1), targets, 3))
    with pytest.raises(ValueError, match=r"multiple of group_detr = 4, got \[4, 39, 11\]"):
        ours(outputs, targets, 4)


@pytest.mark.parametrize("seed", range(3))
def test_masks_are_matched_as_in_transformers(seed: int) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerHungarianMatcher

    outputs, targets = predictions(3, 20, seed=seed, masks=True), ground_truth(5, 2, 1, masks=True)
    theirs = Mask2FormerHungarianMatcher(cost_class=2.0, cost_mask=5.0, cost_dice=5.0, num_points=200)
    torch.manual_seed(7)
    expected = theirs(
        outputs["pred_masks"],
        outputs["pred_logits"],
        [target["masks"].float() for target in targets],
        [target["labels"] for target in targets],
    )
    ours = HungarianMatcher(cost_class=2.0, cost_mask=5.0, cost_dice=5.0, num_points=200, preset="mask2former")
    torch.manual_seed(7)
    assert_same(ours(outputs, targets), expected)


@pytest.mark.parametrize("preset", BOXES)
@pytest.mark.parametrize("counts", [(0, 0, 0), (0, 2, 0), (9, 5, 6), (5, 0, 12)], ids=str)
def test_images_may_be_empty_and_targets_more_than_queries(preset: str, counts: tuple[int, ...]) -> None:
    outputs, targets = predictions(3, 5), ground_truth(*counts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = matched(matcher(preset)(outputs, targets), preset)
    assert_same(found, original(preset, outputs, targets))
    assert [len(query) for query, _ in found] == [min(5, count) for count in counts]


def test_masks_of_empty_images_are_matched_with_nothing() -> None:
    ours = HungarianMatcher(num_points=20, preset="mask2former")
    found = ours(predictions(2, 5, masks=True), ground_truth(0, 0, masks=True))
    assert [len(query) for query, _ in found] == [0, 0]


def test_no_images_and_no_layers_give_empty_lists() -> None:
    assert matcher("dino")(predictions(0, 5), []) == []
    assert matcher("dino").match_all([], ground_truth(1)) == []


@pytest.mark.parametrize("preset", [*BOXES, "mask2former"])
def test_many_layers_at_once_are_matched_as_each_alone(preset: str) -> None:
    masks = preset == "mask2former"
    layers = [predictions(4, queries, seed=queries, masks=masks) for queries in (25, 25, 40)]
    targets = ground_truth(*COUNTS, masks=masks)
    ours = HungarianMatcher(num_points=50, preset=preset) if masks else matcher(preset)
    torch.manual_seed(0)
    together = ours.match_all(layers, targets)
    torch.manual_seed(0)
    assert len(together) == len(layers)
    for found, layer in zip(together, layers, strict=True):
        assert_same(found, matched(ours(layer, targets), preset))


def test_many_layers_are_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    import dino_kernels.nn.hungarian_matcher as module

    calls = []
    monkeypatch.setattr(module, "hungarian_match", lambda *args, **kw: calls.append(1) or hungarian_match(*args, **kw))
    matcher("dino").match_all([predictions(4, 25, seed=seed) for seed in range(7)], ground_truth(*COUNTS))
    assert calls == [1]


def test_predictions_that_are_not_finite_are_warned_of_raised_or_left_out_in_silence() -> None:
    outputs, targets = broken_predictions(), ground_truth(6, 4)
    with pytest.warns(RuntimeWarning, match=r"HungarianMatcher: matrix contains invalid numeric entries .*1 of 2"):
        found = matcher("dino")(outputs, targets)
    with pytest.raises(ValueError, match="HungarianMatcher: matrix contains invalid numeric entries"):
        matcher("dino", check="raise")(outputs, targets)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(matcher("dino", check="none")(outputs, targets), found)
        matcher("dino")(predictions(2, 10), targets)
    assert len(found[0][0]) == 6 and not {3, 4} & set(found[0][0].tolist())
    # As if these two queries were not there.
    others = [query for query in range(10) if query not in (3, 4)]
    healthy = {name: values[:, others] for name, values in outputs.items()}
    expected = original("dino", healthy, targets)
    assert [others[query] for query in expected[0][0]] == found[0][0].tolist()


def test_masks_that_are_not_finite_are_matched_with_nothing() -> None:
    outputs, targets = predictions(1, 6, masks=True), ground_truth(3, masks=True)
    outputs["pred_masks"][0, 2] = math.nan
    ours = HungarianMatcher(num_points=50, preset="mask2former")
    with pytest.warns(RuntimeWarning, match="invalid numeric entries"):
        found = ours(outputs, targets)
    assert len(found[0][0]) == 3 and 2 not in found[0][0].tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("preset", [*BOXES, "mask2former"])
def test_16_bit_predictions_under_autocast_are_matched_in_float32(preset: str, dtype: torch.dtype) -> None:
    masks = preset == "mask2former"
    # Logits at which 16-bit costs would lose a term: 1e-8 is zero in fp16.
    outputs, targets = predictions(4, 25, masks=masks), ground_truth(*COUNTS, masks=masks)
    outputs["pred_logits"] = outputs["pred_logits"] * 4
    half = {name: value if name == "pred_boxes" else value.to(dtype) for name, value in outputs.items()}
    ours = HungarianMatcher(num_points=50, preset=preset) if masks else matcher(preset)
    torch.manual_seed(0)
    expected = matched(ours({name: value.float() for name, value in half.items()}, targets), preset)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype):
        assert_same(matched(ours(half, targets), preset), expected)


def test_no_gradient_and_no_change_of_the_inputs() -> None:
    outputs, targets = predictions(4, 25), ground_truth(*COUNTS)
    before = {name: value.clone() for name, value in outputs.items()}
    for value in outputs.values():
        value.requires_grad_()
    found = matcher("dino")(outputs, targets)
    assert not any(query.requires_grad for query, _ in found)
    assert all(torch.equal(before[name], value) for name, value in outputs.items())


def test_defaults_and_positions_are_the_originals() -> None:
    ours = HungarianMatcher()
    assert (ours.cost_class, ours.cost_bbox, ours.cost_giou, ours.focal_alpha, ours.gamma) == (1, 1, 1, 0.25, 2.0)
    ours = HungarianMatcher(2, 5, 3, 0.5)
    assert (ours.cost_class, ours.cost_bbox, ours.cost_giou, ours.focal_alpha) == (2, 5, 3, 0.5)
    assert repr(ours) == "HungarianMatcher(preset='dino', cost_class=2, cost_bbox=5, cost_giou=3)"
    assert not list(ours.state_dict())


def test_classes_alone_need_no_boxes() -> None:
    outputs, targets = predictions(4, 25), ground_truth(*COUNTS)
    labels = [{"labels": target["labels"]} for target in targets]
    found = HungarianMatcher(1, 0, 0, preset="detr")({"pred_logits": outputs["pred_logits"]}, labels)
    for (query, index), logits, target in zip(found, outputs["pred_logits"], targets, strict=True):
        cost = softmax_cost(logits, target["labels"])
        best = cost[linear_sum_assignment(cost)].sum().item()
        assert cost[query, index].sum().item() == pytest.approx(best, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"preset": "yolo"}, ValueError, "preset must be one of dino, .*mask2former, got 'yolo'"),
        ({"cost_class": 0, "cost_bbox": 0, "cost_giou": 0}, ValueError, "all weights are 0"),
        ({"preset": "mask2former"}, ValueError, "num_points must be at least 1 .* got 0"),
        ({"weight_dict": {"cost_class": 2, "cost_bbox": 5}}, ValueError, "weight_dict must have 'cost_giou'"),
        ({"cost_class": WEIGHTS}, TypeError, "cost_class must be a number, .* Pass it as weight_dict="),
    ],
)
def test_wrong_settings_are_named(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"HungarianMatcher: {message}"):
        HungarianMatcher(**options)


def test_masks_need_dictionaries() -> None:
    ours = HungarianMatcher(num_points=20, preset="mask2former")
    with pytest.raises(TypeError, match="targets must be dictionaries with masks"):
        ours(predictions(1, 5, masks=True), PackedTargets.pack(ground_truth(2)))
