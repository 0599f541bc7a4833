"""Errors name a wrong option of the matching functions and of targets; for an unknown one, the closest."""

# pyright: reportArgumentType=false
# Wrong types are what is tested.

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dino_kernels import PackedTargets, explain, hungarian_match, linear_sum_assignment, matching_cost, matching_status
from dino_kernels import pairs_of as pairs
from dino_kernels.testing import MatchingCase, matching_inputs

INPUTS = matching_inputs(MatchingCase("options", 1, 5, 3, (2, 1)))
NAN, INF = float("nan"), float("inf")

FORMULA: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"alpha": "0.3"}, TypeError, "alpha must be a number, got '0.3'"),
    ({"alpha": NAN}, ValueError, "alpha must be finite, got nan"),
    ({"gamma": -1}, ValueError, "gamma must be finite and at least 0, got -1"),
    ({"gamma": True}, TypeError, "gamma must be a number, got True"),
    ({"gamma": torch.tensor(2.0)}, TypeError, r"gamma must be a number, got tensor\(2\.\)"),
    ({"class_eps": "1e-8"}, TypeError, "class_eps must be a number, got '1e-8'"),
    ({"giou_eps": -1e-6}, ValueError, "giou_eps must be finite and at least 0, got -1e-06"),
    ({"weights": 5}, ValueError, r"weights must be three numbers \(class, L1, GIoU\), got 5"),
    ({"weights": "123"}, ValueError, "weights must be three numbers .* got '123'"),
    ({"weights": (1, "2", 3)}, TypeError, "each of weights must be a number, got '2'"),
    ({"weights": (1, NAN, 3)}, ValueError, "each of weights must be finite, got nan"),
    ({"weights": (1, 2)}, ValueError, r"weights must be three numbers .* got \(1, 2\)"),
    ({"preset": "dinoo"}, ValueError, "preset must be one of dino, .* got 'dinoo'"),
    ({"preset": ["dino"]}, ValueError, r"preset must be one of .* got \['dino'\]"),
    ({"preset": None}, ValueError, "preset must be one of .* got None"),
    ({"class_cost": 3}, ValueError, "class_cost must be 'focal' or 'softmax', got 3"),
    ({"aplha": 0.3}, TypeError, r"got an unknown argument 'aplha'\. Did you mean 'alpha'\?"),
    ({"class_costs": "focal"}, TypeError, r"got an unknown argument 'class_costs'\. Did you mean 'class_cost'\?"),
    ({"extra_costs": None}, TypeError, r"got an unknown argument 'extra_costs'\. Did you mean 'extra_cost'\?"),
    ({"shortside": 3}, TypeError, r"got an unknown argument 'shortside'\. It has preset, .*, giou_eps\."),
    ({"logits": None}, TypeError, r"logits must be \[G, B, Q, C\] .* got NoneType"),
    ({"logits": "logits"}, TypeError, r"logits must be \[G, B, Q, C\] .* got str"),
    ({"boxes": 3}, TypeError, r"boxes must be \[G, B, Q, 4\] .* got int"),
    ({"extra_cost": np.zeros((1, 3, 5))}, TypeError, r"extra_cost must be a tensor \[G, N, Q\] or None, got ndarray"),
    ({"backend": None}, ValueError, "backend must be one of 'auto', .* got None"),
    ({"backend": ["cpu"]}, ValueError, r"backend must be one of 'auto', .* got \['cpu'\]"),
]
ASSIGNMENT: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"ties": "first"}, ValueError, "ties must be 'lowest' or 'scipy', got 'first'"),
    ({"check": True}, ValueError, "check must be 'raise', 'warn' or 'none', got True"),
    ({"full_output": "no"}, TypeError, "full_output must be True or False, got 'no'"),
    ({"full_output": 2}, TypeError, "full_output must be True or False, got 2"),
]


@pytest.mark.parametrize(("options", "error", "message"), FORMULA, ids=str)
@pytest.mark.parametrize("function", [matching_cost, hungarian_match], ids=lambda function: function.__name__)
def test_a_wrong_option_of_the_cost_is_named(function, options, error, message):
    with pytest.raises(error, match=f"^{function.__name__}: {message}"):
        function(**{**INPUTS, **options})


@pytest.mark.parametrize(("options", "error", "message"), ASSIGNMENT, ids=str)
def test_a_wrong_option_of_the_assignment_is_named(options, error, message):
    with pytest.raises(error, match=f"^linear_sum_assignment: {message}"):
        linear_sum_assignment(torch.zeros(1, 2, 3), **options)
    with pytest.raises(error, match=f"^hungarian_match: {message}"):
        hungarian_match(**INPUTS, **options)


@pytest.mark.parametrize("weights", [[1, 2.5, 0], (np.float32(1), np.int64(2), 3)], ids=str)
def test_numbers_of_any_kind_are_numbers(weights):
    expected = matching_cost(**INPUTS, weights=tuple(map(float, weights)))
    assert torch.equal(matching_cost(**INPUTS, weights=weights, alpha=None), expected)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pairs(None, INPUTS["targets"]), TypeError, "pairs_of: match must be the result .* got None"),
        (lambda: pairs(torch.zeros(3).long(), INPUTS["targets"]), TypeError, r"pairs_of: match .* torch.int64 \[3\]"),
        (lambda: pairs(torch.zeros(1, 3), INPUTS["targets"]), TypeError, r"pairs_of: match .* torch.float32 \[1, 3\]"),
        (lambda: pairs(torch.zeros(1, 3).long(), None), TypeError, "PackedTargets: targets must be a list"),
        (lambda: matching_status("8"), TypeError, "matching_status: status must be .* got '8'"),
        (lambda: matching_status(torch.zeros(2)), TypeError, "matching_status: status must be .* got torch.float32"),
        (lambda: matching_status([8]), TypeError, r"matching_status: status must be .* got \[8\]"),
        (
            lambda: explain(linear_sum_assignment, torch.zeros(1, 2), maximise=True),
            TypeError,
            "explain: linear_sum_assignment: got an unexpected keyword argument 'maximise'",
        ),
        (lambda: explain(linear_sum_assignment), TypeError, "explain: .* missing a required argument: 'cost'"),
        (lambda: PackedTargets.empty("3", 4), TypeError, "PackedTargets: images must be an integer, got '3'"),
        (lambda: PackedTargets.empty(-1, 4), ValueError, "PackedTargets: images must be at least 0, got -1"),
        (lambda: PackedTargets.empty(2, 4.5), TypeError, "PackedTargets: capacity must be an integer, got 4.5"),
        (lambda: PackedTargets.empty(2, True), TypeError, "PackedTargets: capacity must be an integer, got True"),
        (lambda: PackedTargets.pack([], capacity="8"), TypeError, "PackedTargets: capacity must be .* got '8'"),
        (
            lambda: PackedTargets.empty(1, 8).copy_([{}]),
            TypeError,
            r"PackedTargets.copy_: targets must be PackedTargets, got list",
        ),
    ],
)
def test_a_wrong_argument_of_a_helper_is_named(call, error, message):
    with pytest.raises(error, match=f"^{message}"):
        call()
