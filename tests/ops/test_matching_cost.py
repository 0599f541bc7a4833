"""Costs are as accurate as PyTorch's in float32 whatever the dtype, and infinite exactly where a pair is forbidden."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dino_kernels import matching_cost
from dino_kernels.ops._matching import INVALID_TARGET, NONFINITE_PREDICTION, PRESETS, CostFormula
from dino_kernels.ops.matching_cost import prepare
from dino_kernels.ops.matching_cost.reference import cost_and_status
from dino_kernels.targets import PackedTargets
from dino_kernels.testing import (
    DTYPES,
    MATCHING_CASES,
    MatchingCase,
    assert_cost_accurate,
    assert_same_bits,
    matching_inputs,
)

OPS = ("matching_cost",)
SLOW = ("emulated", "interpreted")
CASE = MatchingCase("usual", 2, 24, 7, (5, 0, 3))
NAN, INF = float("nan"), float("inf")


def sized(case: MatchingCase, backend: str) -> MatchingCase:
    return case.small() if backend in SLOW else case


def assert_same_cost(cost: Tensor, expected: Tensor) -> None:
    assert_same_bits([cost], [expected], ["cost"])


def formula_cost(inputs: dict[str, Any], formula: CostFormula) -> Tensor:
    """The formula in float64, pair by pair, with Python's own functions. Every query and target has to be valid."""
    logits, boxes, targets = inputs["logits"].double().cpu(), inputs["boxes"].double().cpu(), inputs["targets"]
    labels, offsets = targets.labels.tolist(), targets.offsets.tolist()
    truth = targets.boxes_cxcywh.double().tolist()
    sets, images, queries, _ = logits.shape
    cost = torch.full((sets, len(labels), queries), INF, dtype=torch.float64)
    for g in range(sets):
        for b in range(images):
            rows = logits[g, b].tolist()
            for q, box in enumerate(boxes[g, b].tolist()):
                for n in range(offsets[b], offsets[b + 1]):
                    l1 = sum(abs(x - y) for x, y in zip(box, truth[n], strict=True))
                    class_part = class_cost(rows[q], labels[n], formula)
                    giou = generalized_iou(box, truth[n], formula.giou_eps)
                    weights = formula.weights
                    cost[g, n, q] = weights[0] * class_part + weights[1] * l1 - weights[2] * giou
    return cost


def class_cost(logits: list[float], label: int, formula: CostFormula) -> float:
    if formula.class_cost == "softmax":
        top = max(logits)
        return -math.exp(logits[label] - top) / sum(math.exp(logit - top) for logit in logits)
    probability, opposite = (1 / (1 + math.exp(sign * logits[label])) for sign in (-1, 1))
    positive, negative = (
        -math.log(x + formula.class_eps) if formula.class_eps else math.log1p(other / x)
        for x, other in ((probability, opposite), (opposite, probability))
    )
    positive *= formula.alpha * opposite**formula.gamma
    return positive - (1 - formula.alpha) * probability**formula.gamma * negative


def generalized_iou(box: list[float], other: list[float], eps: float) -> float:
    (left, top, right, bottom), (left_, top_, right_, bottom_) = corners(box), corners(other)
    width, height = min(right, right_) - max(left, left_), min(bottom, bottom_) - max(top, top_)
    intersection = max(width, 0.0) * max(height, 0.0)
    union = (right - left) * (bottom - top) + (right_ - left_) * (bottom_ - top_) - intersection
    hull = max(max(right, right_) - min(left, left_), 0.0) * max(max(bottom, bottom_) - min(top, top_), 0.0)
    return intersection / (union + eps) - (hull - union) / (hull + eps)


def corners(box: list[float]) -> tuple[float, float, float, float]:
    x, y, width, height = box
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def exact_cost(inputs: dict[str, Any], **options: Any) -> tuple[Tensor, Tensor]:
    """The reference in float64, and the status."""
    arguments = prepare(**inputs, **options)
    logits, boxes, labels, truth, offsets, extra, _, kind, formula = arguments
    return cost_and_status(logits, boxes, labels, truth, offsets, extra, kind, formula, torch.float64)


FORMULAS: dict[str, dict[str, Any]] = {
    **{name: {"preset": name} for name in PRESETS},
    "gamma_1.5": {"gamma": 1.5},
    "gamma_0": {"gamma": 0.0},
    "gamma_1_exact": {"gamma": 1.0, "class_eps": 0.0},
    "gamma_0.5_exact": {"gamma": 0.5, "class_eps": 0.0},
    "alpha_0.9": {"alpha": 0.9},
    "large_eps": {"class_eps": 1e-3, "giou_eps": 1e-2},
    "only_classes": {"weights": (1.0, 0.0, 0.0)},
    "only_l1": {"weights": (0.0, 1.0, 0.0)},
    "only_giou": {"weights": (0.0, 0.0, 1.0)},
    "softmax_only_classes": {"class_cost": "softmax", "weights": (1.0, 0.0, 0.0)},
    "negative_weights": {"weights": (-1.0, 3.0, -2.0)},
}


def named_formula(options: dict[str, Any]) -> CostFormula:
    options = dict(options)
    return replace(PRESETS[options.pop("preset", "dino")], **options)


@pytest.mark.parametrize("stage", ["middle", "saturated"])
@pytest.mark.parametrize("formula", FORMULAS)
def test_the_reference_is_the_formula(formula, stage):
    inputs = matching_inputs(replace(CASE, stage=stage), torch.float64)
    expected = formula_cost(inputs, named_formula(FORMULAS[formula]))
    cost, status = exact_cost(inputs, **FORMULAS[formula])
    torch.testing.assert_close(cost, expected, rtol=1e-9, atol=1e-9)
    assert (status == 0).all()


@pytest.mark.parametrize("case", MATCHING_CASES, ids=lambda case: case.id)
@pytest.mark.parametrize("dtype", DTYPES)
def test_costs_are_as_accurate_as_pytorchs_in_float32(matching_kernel, device, deterministic, case, dtype):
    inputs = matching_inputs(sized(case, matching_kernel), DTYPES[dtype], device)
    assert_cost_accurate(inputs, matching_cost(**inputs, backend=matching_kernel), matching_kernel)


@pytest.mark.parametrize("stage", ["middle", "late", "saturated"])
@pytest.mark.parametrize("formula", FORMULAS)
def test_every_part_of_every_formula_is_accurate(matching_kernel, device, formula, stage):
    inputs = matching_inputs(sized(replace(CASE, stage=stage), matching_kernel), device=device)
    inputs |= FORMULAS[formula]
    assert_cost_accurate(inputs, matching_cost(**inputs, backend=matching_kernel), matching_kernel)


@pytest.mark.parametrize("part", range(3), ids=["class", "l1", "giou"])
def test_a_cost_with_one_part_wrong_is_not_accurate(part):
    """What the tests above stand on."""
    inputs = matching_inputs(CASE)
    weights = [2.0, 5.0, 2.0]
    weights[part] *= 1 + 1e-4
    wrong = matching_cost(**inputs, weights=(weights[0], weights[1], weights[2]), backend="reference")
    assert_cost_accurate(inputs, matching_cost(**inputs, backend="reference"))
    with pytest.raises(AssertionError, match="max error"):
        assert_cost_accurate(inputs, wrong)


def focal_in_its_own_dtype(logits: Tensor) -> Tensor:
    probability = logits.sigmoid()
    negative = 0.75 * probability**2 * -(1 - probability + 1e-8).log()
    return 0.25 * (1 - probability) ** 2 * -(probability + 1e-8).log() - negative


def test_the_formula_in_float16_is_infinite_where_the_cost_is_not(matching_backend, device):
    """1e-8 is 0 in float16; hence everything is computed in float32."""
    values = torch.tensor([-40.0, -20, -12, -9, 0, 9, 12, 20, 40])
    naive = focal_in_its_own_dtype(values.half())
    assert not naive[[0, 1, 5, 6, 7, 8]].isfinite().any()
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        inputs: dict[str, Any] = {
            "logits": values.to(device, dtype)[None, :, None],
            "boxes": None,
            "targets": [{"labels": torch.tensor([0], device=device)}],
            "weights": (1.0, 0.0, 0.0),
        }
        cost = matching_cost(**inputs, backend=matching_backend)
        assert cost.isfinite().all()
        assert_cost_accurate(inputs, cost)
        assert (cost.diff() < 0).all(), "a better logit costs less"


@pytest.mark.parametrize("logit", [-1e30, -1e4, -200.0, -89.0, 89.0, 200.0, 1e4, 1e30])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("class_eps", [0.0, 1e-8])
def test_logits_far_beyond_the_exponentials_range_cost_what_the_limit_does(
    matching_backend, device, logit, gamma, class_eps
):
    options: dict[str, Any] = {"gamma": gamma, "class_eps": class_eps, "weights": (1.0, 0.0, 0.0)}
    logits = torch.full((1, 3, 2), logit, device=device)
    targets = [{"labels": torch.tensor([0, 1], device=device)}]
    cost = matching_cost(logits, None, targets, **options, backend=matching_backend).cpu()
    penalty = -math.log(class_eps) if class_eps else abs(logit)
    expected = -0.75 * penalty if logit > 0 else 0.25 * penalty
    torch.testing.assert_close(cost, torch.full((1, 2, 3), expected), rtol=1e-5, atol=1e-6)


def test_classes_that_are_masked_out_by_minus_infinity_cost_nothing(matching_backend, device):
    inputs = matching_inputs(sized(CASE, matching_backend), device=device)
    labels = inputs["targets"].labels
    masked = int((labels[0] + 1) % 6)
    inputs["logits"][..., masked] = -INF
    inputs["preset"] = "detr"
    cost = matching_cost(**inputs, backend=matching_backend)
    assert cost.isfinite().all()
    assert_cost_accurate(inputs, cost)
    inputs["weights"] = (1.0, 0.0, 0.0)
    only = matching_cost(**inputs, backend=matching_backend)
    assert (only[:, labels == masked] == 0).all() and (only[:, labels != masked] != 0).any()


def test_a_query_of_which_all_classes_are_masked_out_is_forbidden(matching_backend, device):
    inputs = matching_inputs(sized(CASE, matching_backend), device=device)
    inputs["logits"][1, 0, 2] = -INF
    cost = matching_cost(**inputs, preset="detr", backend=matching_backend)
    count = inputs["targets"].counts[0]
    assert cost[1, :count, 2].isposinf().all()
    assert int((~cost.isfinite()).sum()) == count


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("coordinate", range(4))
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_query_whose_box_is_not_finite_is_forbidden(matching_backend, device, value, coordinate, dtype):
    inputs = matching_inputs(sized(CASE, matching_backend), DTYPES[dtype], device)
    clean = matching_cost(**inputs, backend=matching_backend)
    inputs["boxes"][1, 2, 4, coordinate] = value
    first, last = inputs["targets"].offsets[2:4].tolist()
    expected = clean.clone()
    expected[1, first:last, 4] = INF
    assert last > first
    assert_same_cost(matching_cost(**inputs, backend=matching_backend), expected)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("kind", ["focal", "softmax"])
def test_a_query_with_a_logit_that_is_needed_and_not_finite_is_forbidden(matching_backend, device, value, kind):
    inputs = matching_inputs(sized(CASE, matching_backend), device=device)
    targets = inputs["targets"]
    label = int(targets.labels[0])
    clean = matching_cost(**inputs, class_cost=kind, backend=matching_backend)
    inputs["logits"][0, 0, 3, label] = value
    cost = matching_cost(**inputs, class_cost=kind, backend=matching_backend)
    expected = clean.clone()
    if kind == "focal" or value != -INF:
        expected[0, : targets.counts[0], 3] = INF
        assert_same_cost(cost, expected)
    else:  # a class that is masked out
        assert cost.isfinite().all()


def test_a_class_that_no_target_of_the_image_has_forbids_nothing_by_focal_cost(matching_backend, device):
    """Only logits of labels that occur in the image are read; softmax needs them all."""
    inputs = matching_inputs(sized(CASE, matching_backend), device=device)
    clean = matching_cost(**inputs, backend=matching_backend)
    offsets = inputs["targets"].offsets.tolist()
    for image in range(len(offsets) - 1):
        absent = torch.ones(inputs["logits"].shape[-1], dtype=torch.bool, device=device)
        absent[inputs["targets"].labels[offsets[image] : offsets[image + 1]]] = False
        inputs["logits"][:, image, :, absent] = NAN
    assert inputs["logits"].isnan().any()
    assert_same_cost(matching_cost(**inputs, backend=matching_backend), clean)
    assert matching_cost(**inputs, preset="detr", backend=matching_backend).isposinf().all()


BAD_TARGETS = {
    "label_is_negative": {"label": -1},
    "label_is_too_large": {"label": 7},
    "label_is_huge": {"label": 2**62},
    "box_is_nan": {"box": [0.5, NAN, 0.1, 0.1]},
    "box_is_infinite": {"box": [0.5, 0.5, INF, 0.1]},
    "box_has_a_negative_width": {"box": [0.5, 0.5, -0.1, 0.1]},
    "box_has_a_negative_height": {"box": [0.5, 0.5, 0.1, -1e-30]},
}


@pytest.mark.parametrize("kind", ["focal", "softmax"])
@pytest.mark.parametrize("bad", BAD_TARGETS)
def test_a_bad_target_is_forbidden_and_no_other(matching_backend, device, bad, kind):
    inputs = matching_inputs(replace(CASE, queries=9), device=device)
    clean = matching_cost(**inputs, class_cost=kind, backend=matching_backend)
    targets = inputs["targets"]
    if "label" in BAD_TARGETS[bad]:
        targets.labels[1] = BAD_TARGETS[bad]["label"]
    else:
        targets.boxes_cxcywh[1] = torch.tensor(BAD_TARGETS[bad]["box"])
    expected = clean.clone()
    expected[:, 1] = INF
    assert_same_cost(matching_cost(**inputs, class_cost=kind, backend=matching_backend), expected)
    if "label" not in BAD_TARGETS[bad]:  # not looked at
        ignored = matching_cost(**inputs, weights=(1.0, 0.0, 0.0), backend=matching_backend)
        assert ignored.isfinite().all()


@pytest.mark.parametrize("kind", ["focal", "softmax"])
def test_all_targets_may_be_bad(matching_backend, device, kind):
    inputs = matching_inputs(replace(CASE, queries=9), device=device)
    inputs["targets"].labels[:] = -5
    inputs["logits"][0, 0, 0] = NAN  # not needed by any target
    assert matching_cost(**inputs, class_cost=kind, backend=matching_backend).isposinf().all()


def test_the_status_of_the_reference_names_what_was_wrong():
    inputs = matching_inputs(CASE)
    inputs["boxes"][1, 0, 3, 0] = NAN
    inputs["boxes"][0, 1, 3, 0] = NAN  # an image without targets needs none
    inputs["targets"].labels[-1] = 99
    _, status = exact_cost(inputs)
    assert status.tolist() == [[0, 0, INVALID_TARGET], [NONFINITE_PREDICTION, 0, INVALID_TARGET]]


def test_empty_boxes_cost_what_they_do_in_detr(matching_kernel, device):
    """0 / 0 where both are empty and there is no eps; the assignment forbids such a pair."""
    boxes = torch.tensor([[[0.5, 0.5, 0.0, 0.0], [0.5, 0.5, 0.0, 0.2], [0.2, 0.2, 0.1, 0.1]]], device=device)
    inputs: dict[str, Any] = {
        "logits": torch.zeros(1, 3, 2, device=device),
        "boxes": boxes,
        "targets": [{"labels": torch.tensor([0, 1], device=device), "boxes": boxes[0, [0, 2]]}],
    }
    for preset in ("dino", "deformable_detr"):
        cost = matching_cost(**inputs, preset=preset, backend=matching_kernel)
        assert_cost_accurate({**inputs, "preset": preset}, cost)
        assert bool(cost[0, 0, 0].isnan()) == (preset == "deformable_detr")


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1333.0, 1e8])
def test_boxes_may_be_in_any_unit(matching_kernel, device, scale):
    inputs = matching_inputs(sized(CASE, matching_kernel), device=device)
    inputs["boxes"] *= scale
    boxes = inputs["targets"].boxes_cxcywh
    boxes *= scale
    for preset in ("dino", "deformable_detr"):
        cost = matching_cost(**inputs, preset=preset, backend=matching_kernel)
        assert_cost_accurate({**inputs, "preset": preset}, cost)


def test_predicted_boxes_of_negative_size_have_the_formulas_cost(matching_kernel, device):
    inputs = matching_inputs(sized(CASE, matching_kernel), device=device)
    inputs["boxes"][:, :, ::2, 2] *= -1
    inputs["boxes"][:, :, ::3, 3] *= -1
    cost = matching_cost(**inputs, backend=matching_kernel)
    assert cost.isfinite().all()
    assert_cost_accurate(inputs, cost)


@pytest.mark.parametrize("form", ["4d", "3d_last", "several_each"])
def test_a_list_of_sets_gives_what_the_stacked_tensor_gives(matching_backend, device, form):
    case = replace(sized(CASE, matching_backend), sets=5)
    inputs = matching_inputs(case, torch.bfloat16, device)
    expected = matching_cost(**inputs, backend=matching_backend)

    def listed(x: Tensor) -> list[Tensor]:
        return {
            "4d": lambda: list(x.split(1)),
            "3d_last": lambda: [x[:4], x[4]],
            "several_each": lambda: [x[0], x[1:4].clone(), x[4]],
        }[form]()

    split = {**inputs, "logits": listed(inputs["logits"]), "boxes": listed(inputs["boxes"])}
    assert_same_cost(matching_cost(**split, backend=matching_backend), expected)


@pytest.mark.parametrize("extra", [0.0, NAN, -INF])
def test_shorter_sets_end_in_infinity(matching_backend, device, extra):
    """Whatever extra cost stands there."""
    counts = (9, 4, 0, 13)
    each = [matching_inputs(replace(CASE, sets=1, queries=queries), device=device) for queries in counts]
    padding = torch.full((4, 8, 13), extra, device=device)
    for of_set, queries in zip(padding, counts, strict=True):
        of_set[:, :queries] = 0
    together = matching_cost(
        [inputs["logits"] for inputs in each],
        [inputs["boxes"] for inputs in each],
        each[0]["targets"],
        extra_cost=padding,
        backend=matching_backend,
    )
    assert together.shape == (4, 8, 13)
    for cost, inputs, queries in zip(together, each, counts, strict=True):
        inputs["targets"] = each[0]["targets"]
        assert_same_cost(cost[None, :, :queries], matching_cost(**inputs, backend=matching_backend))
        assert cost[:, queries:].isposinf().all()


def test_sets_of_several_dtypes_are_computed_in_float32(matching_backend, device):
    inputs = matching_inputs(sized(CASE, matching_backend), device=device)
    logits, boxes = inputs["logits"], inputs["boxes"]
    mixed = [logits[0].bfloat16(), logits[1]]
    expected = matching_cost(
        [logits[0].bfloat16().float(), logits[1]], list(boxes), inputs["targets"], backend="reference"
    )
    got = matching_cost(mixed, list(boxes), inputs["targets"], backend=matching_backend)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("logits", ["fp16", "fp64", "fp32"])
@pytest.mark.parametrize("boxes", ["fp16", "bf16", "fp64"])
def test_logits_and_boxes_may_differ_in_dtype(matching_kernel, device, logits, boxes):
    inputs = matching_inputs(sized(CASE, matching_kernel), device=device)
    inputs |= {"logits": inputs["logits"].to(DTYPES[logits]), "boxes": inputs["boxes"].to(DTYPES[boxes])}
    assert_cost_accurate(inputs, matching_cost(**inputs, backend=matching_kernel))


@pytest.mark.parametrize("shared", [False, True], ids=["each_set", "shared"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "fp64"])
def test_an_extra_cost_is_added(matching_backend, device, shared, dtype):
    inputs = matching_inputs(sized(CASE, matching_backend), device=device)
    plain = matching_cost(**inputs, backend=matching_backend)
    shape = (1 if shared else plain.shape[0], *plain.shape[1:])
    extra = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device, DTYPES[dtype])
    cost = matching_cost(**inputs, extra_cost=extra, backend=matching_backend)
    torch.testing.assert_close(cost, plain + extra.float(), rtol=1e-6, atol=1e-6)
    transposed = extra.transpose(1, 2).contiguous().transpose(1, 2)
    assert_same_cost(matching_cost(**inputs, extra_cost=transposed, backend=matching_backend), cost)
    expanded = extra[:, :, :1].expand(shape)
    assert_same_cost(
        matching_cost(**inputs, extra_cost=expanded, backend=matching_backend),
        matching_cost(**inputs, extra_cost=expanded.contiguous(), backend=matching_backend),
    )


def test_an_extra_cost_may_forbid_and_be_nan(matching_kernel, device):
    inputs = matching_inputs(sized(CASE, matching_kernel), device=device)
    count, queries = len(inputs["targets"]), inputs["logits"].shape[2]
    inputs["boxes"][:, 0, 1] = NAN
    values = torch.tensor([0.0, INF, NAN, -INF, 1.0])
    extra = values[torch.randint(5, (2, count, queries), generator=torch.Generator().manual_seed(1))].to(device)
    extra[:, :2, 1] = torch.tensor([NAN, -INF], device=device)  # a forbidden query stays so
    inputs["extra_cost"] = extra
    cost = matching_cost(**inputs, backend=matching_kernel)
    assert_cost_accurate(inputs, cost)
    assert cost[:, : inputs["targets"].counts[0], 1].isposinf().all()


@pytest.mark.parametrize("extra", [False, True], ids=["plain", "extra"])
def test_rows_of_unused_capacity_are_infinite(matching_backend, device, extra):
    inputs = matching_inputs(sized(CASE, matching_backend), device=device)
    targets, queries = inputs["targets"], inputs["logits"].shape[2]
    used = len(targets)
    fixed = PackedTargets.empty(3, used + 5, device=device).copy_(targets)
    options: dict[str, Any] = {}
    if extra:
        options["extra_cost"] = torch.rand(1, used + 5, queries, device=device)
        options["extra_cost"][:, used:, :2] = torch.tensor([NAN, -INF], device=device)
    cost = matching_cost(**{**inputs, "targets": fixed}, **options, backend=matching_backend)
    assert cost[:, used:].isposinf().all()
    if extra:
        options["extra_cost"] = options["extra_cost"][:, :used]
    assert_same_cost(cost[:, :used], matching_cost(**inputs, **options, backend=matching_backend))


def test_dictionaries_give_what_packed_targets_give(matching_backend, device):
    inputs = matching_inputs(sized(CASE, matching_backend), device=device)
    packed = inputs["targets"]
    counts = list(packed.counts)
    listed = [
        {"labels": labels, "boxes": boxes, "area": None}
        for labels, boxes in zip(packed.labels.split(counts), packed.boxes_cxcywh.split(counts), strict=True)
    ]
    expected = matching_cost(**inputs, backend=matching_backend)
    inputs["targets"] = listed
    assert_same_cost(matching_cost(**inputs, backend=matching_backend), expected)


@pytest.mark.parametrize("kind", ["focal", "softmax"])
def test_without_weights_of_boxes_none_are_needed(matching_backend, device, kind):
    inputs = matching_inputs(sized(CASE, matching_backend), device=device)
    inputs |= {"weights": (1.0, 0.0, 0.0), "class_cost": kind}
    expected = matching_cost(**inputs, backend=matching_backend)
    inputs["boxes"][:] = NAN
    assert_same_cost(matching_cost(**inputs, backend=matching_backend), expected)
    targets = replace(inputs["targets"], boxes_cxcywh=None)
    without = matching_cost(**inputs | {"boxes": None, "targets": targets}, backend=matching_backend)
    assert_same_cost(without, expected)


@pytest.mark.parametrize("name", ["logits", "boxes"])
def test_results_have_no_gradient(matching_backend, device, name):
    inputs = matching_inputs(sized(CASE, matching_backend), device=device)
    expected = matching_cost(**inputs, backend=matching_backend)
    inputs[name].requires_grad_()
    cost = matching_cost(**inputs, backend=matching_backend)
    assert not cost.requires_grad and cost.grad_fn is None
    assert_same_cost(cost, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_autocast_changes_nothing(matching_backend, device, dtype):
    inputs = matching_inputs(replace(CASE, queries=9), device=device)
    inputs["logits"][0, 0, 0] = 12.0  # infinite in float16
    for preset in ("dino", "detr", "rf_detr"):
        expected = matching_cost(**inputs, preset=preset, backend=matching_backend)
        with torch.autocast(device, dtype):
            cost = matching_cost(**inputs, preset=preset, backend=matching_backend)
        assert_same_cost(cost, expected)


def in_a_wider_tensor(tensor: Tensor) -> Tensor:
    wide = torch.cat([torch.full_like(tensor, NAN), tensor, torch.full_like(tensor, NAN)], -1)
    return wide[..., tensor.shape[-1] : 2 * tensor.shape[-1]]


VIEWS = {
    "images_last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "queries_first": lambda x: x.transpose(0, 2).contiguous().transpose(0, 2),
    "inside_a_wider_tensor": in_a_wider_tensor,
    "reversed_dimensions": lambda x: x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    "every_second_set": lambda x: torch.stack([x, torch.full_like(x, NAN)], 1).flatten(0, 1)[::2],
    "misaligned": lambda x: x.new_empty(x.numel() + 1)[1:].view(x.shape).copy_(x),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("preset", ["dino", "detr"])
def test_strides_change_nothing(matching_kernel, device, view, dtype, preset):
    inputs = matching_inputs(sized(CASE, matching_kernel), DTYPES[dtype], device)
    expected = matching_cost(**inputs, preset=preset, backend=matching_kernel)
    for name in ("logits", "boxes"):
        viewed = {**inputs, name: VIEWS[view](inputs[name])}
        assert torch.equal(viewed[name], inputs[name])
        cost = matching_cost(**viewed, preset=preset, backend=matching_kernel)
        torch.testing.assert_close(cost, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dimension", [0, 1, 2, 3])
def test_expanded_predictions_are_read_as_they_are(matching_kernel, device, dimension):
    inputs = matching_inputs(sized(CASE, matching_kernel), device=device)
    expanded = inputs["logits"].narrow(dimension, 0, 1).expand_as(inputs["logits"])
    cost = matching_cost(**{**inputs, "logits": expanded}, backend=matching_kernel)
    expected = matching_cost(**{**inputs, "logits": expanded.clone()}, backend=matching_kernel)
    torch.testing.assert_close(cost, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["focal", "softmax"])
@pytest.mark.parametrize("classes", [1, 2, 3, 33, 65, 300])
def test_any_number_of_classes_is_accurate(matching_kernel, device, classes, kind):
    case = MatchingCase("classes", 1, 9, classes, (3, 2))
    inputs: dict[str, Any] = {**matching_inputs(case, device=device), "class_cost": kind}
    assert_cost_accurate(inputs, matching_cost(**inputs, backend=matching_kernel))


@pytest.mark.parametrize("queries", [1, 2, 7, 8, 9, 31, 32, 33, 257])
def test_any_number_of_queries_is_written_and_nothing_else(matching_kernel, device, deterministic, queries):
    inputs = matching_inputs(MatchingCase("queries", 2, queries, 3, (2, 3)), device=device)
    assert_cost_accurate(inputs, matching_cost(**inputs, backend=matching_kernel))


def test_repeated_calls_give_the_same_bits(matching_kernel, device):
    inputs = matching_inputs(sized(CASE, matching_kernel), device=device)
    first = matching_cost(**inputs, backend=matching_kernel)
    for _ in range(3):
        assert_same_cost(matching_cost(**inputs, backend=matching_kernel), first)


def test_a_set_and_an_image_do_not_depend_on_the_others(matching_kernel, device):
    inputs = matching_inputs(sized(CASE, matching_kernel), device=device)
    together = matching_cost(**inputs, backend=matching_kernel)
    offsets, targets = inputs["targets"].offsets.tolist(), inputs["targets"]
    for g in range(2):
        for b in (0, 2):
            some = slice(offsets[b], offsets[b + 1])
            alone = matching_cost(
                inputs["logits"][g, b : b + 1],
                inputs["boxes"][g, b : b + 1],
                [{"labels": targets.labels[some], "boxes": targets.boxes_cxcywh[some]}],
                backend=matching_kernel,
            )
            assert_same_cost(alone, together[g : g + 1, some])


def test_any_number_of_threads_gives_the_same_bits(cpu_kernel, restored_threads):
    inputs = matching_inputs(MATCHING_CASES[2])
    torch.set_num_threads(1)
    alone = matching_cost(**inputs, backend=cpu_kernel)
    for threads in (2, 3, 8):
        torch.set_num_threads(threads)
        assert_same_cost(matching_cost(**inputs, backend=cpu_kernel), alone)


PROGRAM = """
import json
from dino_kernels.ops._core import libraries
from dino_kernels import matching_cost
from dino_kernels.testing import DTYPES, MATCHING_CASES, assert_cost_accurate, matching_inputs

failed = []
for case in MATCHING_CASES:
    for dtype, preset in zip(DTYPES, ("dino", "detr", "rf_detr", "dino")):
        inputs = {**matching_inputs(case, DTYPES[dtype]), "preset": preset}
        try:
            assert_cost_accurate(inputs, matching_cost(**inputs, backend="cpu"))
        except AssertionError as error:
            failed.append(f"{case.id} {dtype} {preset}: {error}")
print(json.dumps({"capability": libraries.C.cpu_capability(), "failed": failed}))
"""


def test_every_instruction_set_is_as_accurate(cpu_kernel, run_at_capability):
    failed = run_at_capability(PROGRAM)
    assert not failed, "\n".join(failed)


def test_every_number_of_a_formula_is_used(matching_backend, device):
    inputs = matching_inputs(replace(CASE, queries=9), device=device)
    usual = CostFormula(giou_eps=1e-2, class_eps=1e-2)
    options: dict[str, Any] = asdict(usual)
    cost = matching_cost(**inputs, **options, backend=matching_backend)
    changes = {"class_cost": "softmax", "alpha": 0.3, "gamma": 2.1, "class_eps": 2e-2, "giou_eps": 2e-2}
    for name, value in changes.items():
        other = matching_cost(**inputs, **options | {name: value}, backend=matching_backend)
        assert not torch.allclose(other, cost), name
    for part in range(3):
        weights = [*usual.weights]
        weights[part] += 0.5
        changed: dict[str, Any] = {**options, "weights": tuple(weights)}
        other = matching_cost(**inputs, **changed, backend=matching_backend)
        assert not torch.allclose(other, cost), part


LOGITS, BOXES = torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 4, 4)
TARGETS = PackedTargets.pack([{"labels": torch.tensor([1]), "boxes": torch.rand(1, 4)}] * 3)
LABELS = PackedTargets.pack([{"labels": torch.tensor([1])}] * 3)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((LOGITS[0, 0], BOXES, TARGETS), {}, ValueError, ["logits must be", "[4, 5]"]),
        ((LOGITS.long(), BOXES, TARGETS), {}, TypeError, ["logits must be", "int64"]),
        (([], BOXES, TARGETS), {}, ValueError, ["logits must be", "empty list"]),
        (([1.0], BOXES, TARGETS), {}, TypeError, ["logits must be", "float"]),
        (([LOGITS, LOGITS[..., :3]], [BOXES] * 2, TARGETS), {}, ValueError, ["C = 5", "[2, 3, 4, 3]"]),
        ((LOGITS, BOXES[..., :3], TARGETS), {}, ValueError, ["boxes must be", "[2, 3, 4, 3]"]),
        ((LOGITS, BOXES[:, :, :2], TARGETS), {}, ValueError, ["boxes must have the shapes", "[2, 3, 2, 4]"]),
        ((LOGITS, [BOXES] * 2, TARGETS), {}, ValueError, ["boxes must have the shapes"]),
        ((LOGITS, BOXES.int(), TARGETS), {}, TypeError, ["boxes must be", "int32"]),
        ((LOGITS, BOXES.to("meta"), TARGETS), {}, ValueError, ["boxes", "meta", "cpu"]),
        ((LOGITS, None, TARGETS), {}, ValueError, ["boxes must be given", "weights"]),
        ((LOGITS, BOXES, LABELS), {}, ValueError, ["targets", "boxes", "weights"]),
        ((LOGITS[:, :2], BOXES[:, :2], TARGETS), {}, ValueError, ["targets has 3 images", "B = 2"]),
        ((LOGITS, BOXES, TARGETS.to("meta")), {}, ValueError, ["targets is on meta", "to(logits.device)"]),
        ((LOGITS, BOXES, TARGETS), {"extra_cost": torch.zeros(3, 4)}, ValueError, ["extra_cost", "[2, 3, 4]"]),
        ((LOGITS, BOXES, TARGETS), {"extra_cost": torch.zeros(3, 3, 4)}, ValueError, ["extra_cost", "[3, 3, 4]"]),
        (
            (LOGITS, BOXES, TARGETS),
            {"extra_cost": torch.zeros(2, 3, 4, device="meta")},
            ValueError,
            ["extra_cost", "meta"],
        ),
        ((LOGITS, BOXES, TARGETS), {"preset": "yolo"}, ValueError, ["preset", "deformable_detr", "'yolo'"]),
        ((LOGITS, BOXES, TARGETS), {"class_cost": "bce"}, ValueError, ["class_cost", "'focal' or 'softmax'", "'bce'"]),
        ((LOGITS, BOXES, TARGETS), {"weights": (1.0, 2.0)}, ValueError, ["weights", "three", "(1.0, 2.0)"]),
        ((LOGITS, BOXES, TARGETS), {"giou_eps": -1.0}, ValueError, ["giou_eps", "-1.0"]),
        ((LOGITS, BOXES, TARGETS), {"beta": 2.0}, TypeError, ["'beta'", "gamma"]),
        ((LOGITS, BOXES, TARGETS), {"backend": "gpu"}, ValueError, ["backend", "'gpu'"]),
    ],
)
def test_a_malformed_argument_is_named(arguments, options, error, words):
    with pytest.raises(error) as caught:
        matching_cost(*arguments, **options)
    assert str(caught.value).startswith("matching_cost: ")
    assert all(word in str(caught.value) for word in words), caught.value
