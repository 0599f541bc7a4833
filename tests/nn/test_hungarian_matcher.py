"""`HungarianMatcher` returns what the matchers of its family return, and `pairs_of` what they have as a result."""

from __future__ import annotations

import math
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from dino_kernels import Match, PackedTargets, hungarian_match, matching_status, pairs_of
from dino_kernels.nn import HungarianMatcher

Outputs = dict[str, Tensor]
Target = dict[str, Tensor]
Pairs = list[tuple[Tensor, Tensor]]
COUNTS = (3, 0, 7, 1)
BOXES = ("dino", "deformable_detr", "detr", "rt_detr", "d_fine", "rf_detr")
WEIGHTS = {"cost_class": 2.0, "cost_bbox": 5.0, "cost_giou": 2.0}


def predictions(images: int, queries: int, *, seed: int = 0, masks: bool = False, classes: int = 11) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    outputs = {
        "pred_logits": torch.randn(images, queries, classes, generator=generator) * 2 - 2,
        "pred_boxes": torch.rand(images, queries, 4, generator=generator) * 0.4 + 0.2,
    }
    if masks:
        outputs["pred_masks"] = torch.randn(images, queries, 12, 16, generator=generator) * 3
    return outputs


def ground_truth(*counts: int, label: str = "labels", masks: bool = False, classes: int = 10) -> list[Target]:
    generator = torch.Generator().manual_seed(sum(counts))
    targets = []
    for count in counts:
        target = {
            label: torch.randint(classes, (count,), generator=generator),
            "boxes": torch.rand(count, 4, generator=generator) * 0.4 + 0.2,
        }
        if masks:
            target["masks"] = torch.rand(count, 24, 32, generator=generator) > 0.6
        targets.append(target)
    return targets


def assert_same(actual: Any, expected: Pairs) -> None:
    assert isinstance(actual, list) and len(actual) == len(expected)
    for (query, target), (wanted_query, wanted_target) in zip(actual, expected, strict=True):
        assert query.dtype == target.dtype == torch.int64 and query.device.type == "cpu"
        assert query.tolist() == wanted_query.tolist()
        assert target.tolist() == wanted_target.tolist()


# The originals, from their papers: one image, every pair, SciPy -----------------------------------------------------


def focal_cost(logits: Tensor, labels: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    p = logits.sigmoid()
    negative = (1 - alpha) * p**gamma * -(1 - p + 1e-8).log()
    positive = alpha * (1 - p) ** gamma * -(p + 1e-8).log()
    return (positive - negative)[:, labels]


def logsigmoid_cost(logits: Tensor, labels: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    p = logits.sigmoid()
    negative = (1 - alpha) * p**gamma * -F.logsigmoid(-logits)
    positive = alpha * (1 - p) ** gamma * -F.logsigmoid(logits)
    return (positive - negative)[:, labels]


def softmax_cost(logits: Tensor, labels: Tensor) -> Tensor:
    return -logits.softmax(-1)[:, labels]


def giou_cost(boxes: Tensor, others: Tensor, eps: float) -> Tensor:
    (low, high), (other_low, other_high) = (
        (x[..., :2] - x[..., 2:] / 2, x[..., :2] + x[..., 2:] / 2) for x in (boxes[:, None], others[None])
    )
    inside = (torch.minimum(high, other_high) - torch.maximum(low, other_low)).clamp(min=0).prod(-1)
    around = (torch.maximum(high, other_high) - torch.minimum(low, other_low)).clamp(min=0).prod(-1)
    union = (high - low).prod(-1) + (other_high - other_low).prod(-1) - inside
    return -(inside / (union + eps) - (around - union) / (around + eps))


CLASS_COSTS = {"detr": softmax_cost, "rf_detr": logsigmoid_cost}


def original(preset: str, outputs: Outputs, targets: list[Target], class_cost: Any = None, **options: Any) -> Pairs:
    """The matcher of a family, for weights 2, 5, 2."""
    class_cost = class_cost or CLASS_COSTS.get(preset, focal_cost)
    pairs = []
    for logits, boxes, target in zip(outputs["pred_logits"], outputs["pred_boxes"], targets, strict=True):
        cost = 2 * class_cost(logits.double(), target["labels"], **options)
        cost = cost + 5 * torch.cdist(boxes.double(), target["boxes"].double(), p=1)
        cost = cost + 2 * giou_cost(boxes.double(), target["boxes"].double(), 1e-6 if preset == "dino" else 0.0)
        query, index = linear_sum_assignment(cost)
        pairs.append((torch.as_tensor(query), torch.as_tensor(index)))
    return pairs


def mask2former(outputs: Outputs, targets: list[Target], points: int, weights: tuple[float, float, float]) -> Pairs:
    """Mask2Former's: points are drawn image after image, and shared by all masks of an image."""
    pairs = []
    for logits, masks, target in zip(outputs["pred_logits"], outputs["pred_masks"], targets, strict=True):
        where = 2 * torch.rand(1, points, 2) - 1

        def sampled(masks: Tensor, where: Tensor = where) -> Tensor:
            grid = where[:, :, None].repeat(len(masks), 1, 1, 1)
            return F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0, :, 0]

        x, y = sampled(masks), sampled(target["masks"].to(masks))
        as_one = F.binary_cross_entropy_with_logits(x, torch.ones_like(x), reduction="none")
        as_zero = F.binary_cross_entropy_with_logits(x, torch.zeros_like(x), reduction="none")
        mask_cost = (torch.einsum("qp,tp->qt", as_one, y) + torch.einsum("qp,tp->qt", as_zero, 1 - y)) / points
        p = x.sigmoid()
        dice_cost = 1 - (2 * torch.einsum("qp,tp->qt", p, y) + 1) / (p.sum(-1)[:, None] + y.sum(-1) + 1)
        cost = weights[0] * softmax_cost(logits, target["labels"]) + weights[1] * mask_cost + weights[2] * dice_cost
        query, index = linear_sum_assignment(cost)
        pairs.append((torch.as_tensor(query), torch.as_tensor(index)))
    return pairs


def matcher(preset: str, **options: Any) -> HungarianMatcher:
    by_dictionary = preset in ("rt_detr", "d_fine")
    weights = {"weight_dict": WEIGHTS, "use_focal_loss": True} if by_dictionary else WEIGHTS
    return HungarianMatcher(**{"preset": preset, **weights, **options})


def matched(found: Any, preset: str) -> Pairs:
    """The pairs in what `forward` returned."""
    assert isinstance(found, dict) == (preset == "d_fine")
    return found["indices"] if preset == "d_fine" else found


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


# transformers --------------------------------------------------------------------------------------------------------


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


# Sizes ---------------------------------------------------------------------------------------------------------------


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


# Many layers ---------------------------------------------------------------------------------------------------------


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


# Numbers -------------------------------------------------------------------------------------------------------------


def broken_predictions() -> Outputs:
    outputs = predictions(2, 10)
    outputs["pred_logits"][0, 3] = math.nan
    outputs["pred_boxes"][0, 4] = math.inf
    return outputs


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
    # Where half the logits would round a cost away: 1e-8 is zero in fp16.
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


# Arguments -----------------------------------------------------------------------------------------------------------


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


# pairs_of and matching_status ----------------------------------------------------------------------------------------


def expected_pairs(query_idx: Tensor, counts: tuple[int, ...]) -> list[Pairs]:
    """Pair by pair."""
    sets = []
    for row in query_idx.tolist():
        images, start = [], 0
        for count in counts:
            found = sorted((query, t) for t, query in enumerate(row[start : start + count]) if query >= 0)
            images.append(tuple(torch.tensor([pair[i] for pair in found], dtype=torch.int64) for i in (0, 1)))
            start += count
        sets.append(images)
    return sets


def random_queries(sets: int, counts: tuple[int, ...], unmatched: float) -> Tensor:
    generator = torch.Generator().manual_seed(sum(counts))
    rows = []
    for _ in range(sets):
        rows.append(torch.cat([torch.randperm(900, generator=generator)[:count] for count in (0, *counts)]))
    queries = torch.stack(rows)
    return queries.where(torch.rand(queries.shape, generator=generator) >= unmatched, -1)


@pytest.mark.parametrize("counts", [(3, 0, 7, 1), (0, 0), (1,), (), (0, 40, 0, 0, 2)], ids=str)
@pytest.mark.parametrize("unmatched", [0.0, 0.3, 1.0])
def test_pairs_are_sorted_by_query_and_leave_out_targets_without_one(counts: tuple[int, ...], unmatched: float) -> None:
    queries = random_queries(3, counts, unmatched)
    targets = PackedTargets.pack(ground_truth(*counts))
    match = Match(queries, torch.zeros(3, len(counts), dtype=torch.int32), None, None, None)
    before = queries.clone()
    for given in (match, queries):
        found = pairs_of(given, targets)
        assert len(found) == 3
        for pairs, expected in zip(found, expected_pairs(queries, counts), strict=True):
            assert_same(pairs, expected)
    assert torch.equal(queries, before)


@pytest.mark.parametrize("unmatched", [0.0, 0.3])
def test_pairs_leave_out_capacity_that_is_not_in_use(unmatched: float) -> None:
    counts = (3, 0, 7, 1)
    targets = PackedTargets.pack(ground_truth(*counts), capacity=20)
    queries = torch.full((2, 20), -1)
    queries[:, :11] = random_queries(2, counts, unmatched)
    for pairs, expected in zip(pairs_of(queries, targets), expected_pairs(queries, counts), strict=True):
        assert_same(pairs, expected)


def test_pairs_of_a_matching_are_those_of_the_matcher() -> None:
    outputs, targets = predictions(4, 25), ground_truth(*COUNTS)
    weights = (2.0, 5.0, 2.0)
    match = hungarian_match(outputs["pred_logits"], outputs["pred_boxes"], targets, preset="detr", weights=weights)
    assert_same(pairs_of(match, targets)[0], matcher("detr")(outputs, targets))


def test_pairs_of_other_targets_are_refused() -> None:
    with pytest.raises(ValueError, match="targets must have 3 targets, as match, got 2"):
        pairs_of(torch.zeros(1, 3, dtype=torch.int64), ground_truth(2))


def test_a_status_is_spelled_out() -> None:
    assert matching_status(0) == [] == matching_status(torch.zeros(2, 3, dtype=torch.int32))
    assert matching_status(1) == ["matrix contains invalid numeric entries (predictions that are not finite)"]
    assert matching_status(torch.tensor([[0, 8], [2, 0]])) == [
        "matrix contains invalid numeric entries (a target's box or label)",
        "cost matrix is infeasible",
    ]
    outputs = broken_predictions()
    match = hungarian_match(outputs["pred_logits"], outputs["pred_boxes"], ground_truth(6, 4))
    assert matching_status(match.status) == matching_status(match.status[0]) == matching_status(1)
    assert matching_status(match.status[:, 1]) == []
