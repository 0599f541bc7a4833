"""Costs are as accurate as PyTorch's in float32 whatever the dtype, for every formula."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dino_kernels import matching_cost
from dino_kernels.ops._matching import CostFormula
from dino_kernels.ops.matching_cost import prepare
from dino_kernels.ops.matching_cost.reference import cost_and_status
from dino_kernels.testing import DTYPES, MATCHING_CASES, MatchingCase, assert_cost_accurate, matching_inputs
from tests.ops.costs import CASE, FORMULAS, NAN, assert_same_cost, formula_cost, named_formula, sized


def exact_cost(inputs: dict[str, Any], **options: Any) -> tuple[Tensor, Tensor]:
    """The reference in float64, and the status."""
    return cost_and_status(prepare(**inputs, **options), torch.float64)


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
    """A precondition of the tests above."""
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


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("class_eps", [0.0, 1e-8])
def test_logits_far_beyond_the_exponentials_range_cost_what_the_limit_does(matching_backend, device, gamma, class_eps):
    options: dict[str, Any] = {"gamma": gamma, "class_eps": class_eps, "weights": (1.0, 0.0, 0.0)}
    logits = [-1e30, -1e4, -200.0, -89.0, 89.0, 200.0, 1e4, 1e30]
    given = torch.tensor(logits, device=device)[None, :, None].expand(1, -1, 2).contiguous()
    targets = [{"labels": torch.tensor([0, 1], device=device)}]
    cost = matching_cost(given, None, targets, **options, backend=matching_backend).cpu()
    penalties = [-math.log(class_eps) if class_eps else abs(logit) for logit in logits]
    expected = [(-0.75 if logit > 0 else 0.25) * penalty for logit, penalty in zip(logits, penalties, strict=True)]
    torch.testing.assert_close(cost, torch.tensor(expected).expand(1, 2, -1), rtol=1e-5, atol=1e-6)


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


@pytest.mark.parametrize("logits", ["fp16", "fp64", "fp32"])
@pytest.mark.parametrize("boxes", ["fp16", "bf16", "fp64"])
def test_logits_and_boxes_may_differ_in_dtype(matching_kernel, device, logits, boxes):
    inputs = matching_inputs(sized(CASE, matching_kernel), device=device)
    inputs |= {"logits": inputs["logits"].to(DTYPES[logits]), "boxes": inputs["boxes"].to(DTYPES[boxes])}
    assert_cost_accurate(inputs, matching_cost(**inputs, backend=matching_kernel))


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
