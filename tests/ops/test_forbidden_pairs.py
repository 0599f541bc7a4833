"""`matching_cost` forbids exactly the pairs that it documents, and takes lists, extra costs and a fixed capacity."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dino_kernels import PackedTargets, matching_cost
from dino_kernels.ops._matching import INVALID_TARGET, NONFINITE_PREDICTION
from dino_kernels.ops.matching_cost import prepare
from dino_kernels.ops.matching_cost.reference import cost_and_status
from dino_kernels.testing import DTYPES, assert_cost_accurate, matching_inputs
from tests.ops.costs import CASE, INF, NAN, assert_same_cost, sized


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
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_query_whose_box_is_not_finite_is_forbidden(matching_backend, device, value, dtype):
    inputs = matching_inputs(sized(CASE, matching_backend), DTYPES[dtype], device)
    expected = matching_cost(**inputs, backend=matching_backend)
    first, last = inputs["targets"].offsets[2:4].tolist()
    assert last > first
    for coordinate in range(4):
        inputs["boxes"][1, 2, 4 + coordinate, coordinate] = value
        expected[1, first:last, 4 + coordinate] = INF
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


def test_a_float64_logit_beyond_float32_is_infinite(matching_backend, device):
    inputs = matching_inputs(sized(CASE, matching_backend), torch.float64, device)
    inputs["logits"][1, 0, 2] = INF
    expected = matching_cost(**inputs, backend=matching_backend)
    inputs["logits"][1, 0, 2] = 1e300
    assert_same_cost(matching_cost(**inputs, backend=matching_backend), expected)
    assert expected[1, : inputs["targets"].counts[0], 2].isposinf().all()


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
    _, status = cost_and_status(prepare(**inputs))
    assert status.tolist() == [[0, 0, INVALID_TARGET], [NONFINITE_PREDICTION, 0, INVALID_TARGET]]


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
