"""Modules name a wrong argument when they are built, and a wrong input when they are called."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dino_kernels.nn import HungarianMatcher, MSDeformAttn
from tests.nn.originals import ground_truth, predictions

NAN = float("nan")
ATTENTION: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"d_model": "256"}, TypeError, "d_model must be an integer, got '256'"),
    ({"d_model": 256.0}, TypeError, "d_model must be an integer, got 256.0"),
    ({"d_model": 0}, ValueError, "d_model must be at least 1, got 0"),
    ({"n_heads": 0}, ValueError, "n_heads must be at least 1, got 0"),
    ({"n_heads": True}, TypeError, "n_heads must be an integer, got True"),
    ({"n_levels": 0}, ValueError, "n_levels must be at least 1, got 0"),
    ({"n_levels": 4.0}, TypeError, "n_levels must be an integer, got 4.0"),
    ({"n_points": 0}, ValueError, "n_points must not all be 0, got 0"),
    ({"n_points": 4.0}, TypeError, "n_points must be an integer, got 4.0"),
    ({"n_points": "4444"}, TypeError, "n_points must be an integer, got '4444'"),
    ({"n_points": [4, 4, 4, -1]}, ValueError, "n_points must be at least 0, got -1"),
    ({"n_points": [4, 4]}, ValueError, r"n_points must be an int or 4 counts, got \[4, 4\]"),
    ({"ratio": "0.5"}, TypeError, "ratio must be a number, got '0.5'"),
    ({"ratio": NAN}, ValueError, "ratio must be finite and at least 0, got nan"),
    ({"ratio": 0.51}, ValueError, r"int\(d_model \* ratio\) must be a positive multiple of n_heads = 8, got 130"),
    ({"ratio": 0.0}, ValueError, r"int\(d_model \* ratio\) must be a positive multiple .* got 0 = "),
    ({"backend": "gpu"}, ValueError, "backend must be one of 'auto', .* got 'gpu'"),
]
MATCHER: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"cost_class": "2"}, TypeError, "cost_class must be a number, got '2'"),
    ({"cost_bbox": None}, TypeError, "cost_bbox must be a number, got None"),
    ({"cost_giou": NAN}, ValueError, "cost_giou must be finite, got nan"),
    ({"preset": "mask2former", "num_points": 9, "cost_dice": "5"}, TypeError, "cost_dice must be a number, got '5'"),
    ({"preset": "mask2former", "num_points": "100"}, TypeError, "num_points must be an integer, got '100'"),
    ({"preset": "mask2former", "num_points": 12.5}, TypeError, "num_points must be an integer, got 12.5"),
    ({"weight_dict": [1, 2, 3]}, TypeError, r"weight_dict must be a dictionary, got \[1, 2, 3\]"),
    ({"weight_dict": {"cost_class": "2", "cost_bbox": 5, "cost_giou": 2}}, TypeError, "cost_class must be a number"),
    ({"focal_alpha": "0.25"}, TypeError, "focal_alpha must be a number, got '0.25'"),
    ({"gamma": -2}, ValueError, "gamma must be finite and at least 0, got -2"),
    ({"use_focal_loss": "no"}, TypeError, "use_focal_loss must be True or False, got 'no'"),
    ({"check": "error"}, ValueError, "check must be 'raise', 'warn' or 'none', got 'error'"),
    ({"ties": "first"}, ValueError, "ties must be 'lowest' or 'scipy', got 'first'"),
    ({"backend": "gpu"}, ValueError, "backend must be one of 'auto', .* got 'gpu'"),
    ({"preset": ["detr"]}, ValueError, r"preset must be one of dino, .* got \['detr'\]"),
]


@pytest.mark.parametrize(("options", "error", "message"), ATTENTION, ids=str)
def test_a_wrong_argument_of_the_attention_is_named(options, error, message):
    with pytest.raises(error, match=f"^MSDeformAttn: {message}"):
        MSDeformAttn(**options)


@pytest.mark.parametrize(("options", "error", "message"), MATCHER, ids=str)
def test_a_wrong_argument_of_the_matcher_is_named(options, error, message):
    with pytest.raises(error, match=f"^HungarianMatcher: {message}"):
        HungarianMatcher(**options)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"query": torch.zeros(4, 32)}, r"query must be a tensor \[B, Q, C\] with C = 32, got \[4, 32\]"),
        ({"query": torch.zeros(1, 4, 16)}, r"query must be a tensor .* got \[1, 4, 16\]"),
        ({"query": np.zeros((1, 4, 32))}, "query must be a tensor .* got ndarray"),
        ({"input_flatten": torch.zeros(1, 4, 16)}, r"input_flatten must be a tensor \[B, S, C\] .* got \[1, 4, 16\]"),
        ({"input_flatten": None}, "input_flatten must be a tensor .* got NoneType"),
    ],
    ids=str,
)
def test_a_wrong_input_of_the_attention_is_named(changed, message):
    features = torch.zeros(1, 4, 32)
    inputs = {"query": features, "reference_points": torch.zeros(1, 4, 1, 2), "input_flatten": features}
    with pytest.raises(ValueError, match=f"^MSDeformAttn: {message}"):
        MSDeformAttn(32, 1, 2, 2)(**{**inputs, **changed}, input_spatial_shapes=[(2, 2)])


OUTPUTS, TARGETS = predictions(2, 10), ground_truth(3, 2)
MASKS = {**predictions(2, 10, masks=True)}


@pytest.mark.parametrize(
    ("outputs", "targets", "groups", "error", "message"),
    [
        ([1, 2], TARGETS, 1, TypeError, "HungarianMatcher: outputs must be a dictionary with 'pred_logits', got list"),
        (
            {"logit": 1},
            TARGETS,
            1,
            TypeError,
            "HungarianMatcher: outputs must have the tensor 'pred_logits' or 'logits'",
        ),
        (
            {**OUTPUTS, "pred_boxes": None},
            TARGETS,
            1,
            TypeError,
            "HungarianMatcher: outputs must have the tensor 'pred_b",
        ),
        (OUTPUTS, None, 1, TypeError, "PackedTargets: targets must be a list with a dictionary .* got NoneType"),
        (OUTPUTS, TARGETS[0], 1, TypeError, "PackedTargets: targets must be a list with a dictionary .* got dict"),
        (OUTPUTS, ["a", "b"], 1, TypeError, r"PackedTargets: targets\[0\] must be a dictionary .* got str"),
        (OUTPUTS, TARGETS, "2", TypeError, "HungarianMatcher: group_detr must be an integer, got '2'"),
        (OUTPUTS, TARGETS, 0, ValueError, "HungarianMatcher: group_detr must be at least 1, got 0"),
    ],
)
def test_a_wrong_input_of_the_matcher_is_named(outputs, targets, groups, error, message):
    with pytest.raises(error, match=f"^{message}"):
        HungarianMatcher()(outputs, targets, groups)


def test_the_outputs_of_one_layer_are_no_list_of_layers():
    with pytest.raises(TypeError, match=r"match_all takes a list with the outputs of each layer, got one. Pass \["):
        HungarianMatcher().match_all(OUTPUTS, TARGETS)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", ["labels", "class_labels"])
@pytest.mark.parametrize("label", [11, 90, -1])
def test_a_label_that_is_no_class_is_named(name, label):
    targets = ground_truth(3, 2, label=name)
    targets[1][name][0] = label
    with pytest.raises(ValueError, match=rf"targets\[1\]\['{name}'\] must be .* got {label}\."):
        HungarianMatcher()(OUTPUTS, targets)


@pytest.mark.parametrize("box", [(0.5, 0.5, -0.1, 0.1), (320.0, 240.0, 64.0, 48.0), (0.5, 0.5, 0.1, NAN)], ids=str)
def test_a_wrong_box_is_named(box):
    targets = ground_truth(3, 2)
    targets[0]["boxes"][1] = torch.tensor(box)
    with pytest.raises(ValueError, match=r"targets\[0\]\['boxes'\] must be .* in 0\.\.1"):
        HungarianMatcher()(OUTPUTS, targets)


@pytest.mark.parametrize(
    ("masks", "got"),
    [(None, "NoneType"), (torch.zeros(9, 4, 4), r"\[9, 4, 4\]"), (torch.zeros(2, 16), r"\[2, 16\]")],
)
def test_wrong_masks_are_named(masks, got):
    matcher = HungarianMatcher(preset="mask2former", num_points=4)
    targets = ground_truth(3, 2, masks=True)
    targets[1]["masks"] = masks  # type: ignore[assignment]
    with pytest.raises(
        ValueError, match=rf"targets\[1\]\['masks'\] must be a tensor .* a mask for each label, got {got}"
    ):
        matcher(MASKS, targets)
    with pytest.raises(ValueError, match=r"pred_masks must be \[B, Q, H, W\], got \[2, 10, 7\]"):
        matcher({**MASKS, "pred_masks": torch.zeros(2, 10, 7)}, ground_truth(3, 2, masks=True))
