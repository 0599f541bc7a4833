"""A malformed argument raises an error that names it, the value received and the allowed values."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
import torch

import dino_kernels
from dino_kernels import PackedTargets
from dino_kernels.testing import Case, sample_inputs

SHAPES = ((5, 6), (3, 2))
CLASSIC, FUSED = "ms_deform_attn", "fused_ms_deform_attn"
CASE = Case("arguments", 2, 7, 4, 8, SHAPES, (3, 3), mask=True)  # S = 36, K = 6
UNEVEN = Case("uneven", 2, 7, 4, 8, SHAPES, (1, 5))

# fmt: off
# (argument, what is passed, type of the error, its message after "<op>: "); {op} stands for the op.
BOTH: list[tuple[str, Any, type[Exception], str]] = [
    ("value", [1.0], TypeError, "value must be a tensor, got list"),
    ("value", torch.zeros(36, 4, 8), ValueError, "value must be [B, S, M, D], got [36, 4, 8]"),
    ("value", torch.zeros(2, 36, 32), ValueError, "value must be [B, S, M, D], got [2, 36, 32]"),
    ("value", torch.zeros(2, 36, 4, 8, dtype=torch.int64), TypeError,
     "value must be float32, float64, bfloat16 or float16, got torch.int64. Convert it with .to()"),
    ("value", torch.zeros(2, 36, 4, 8, dtype=torch.complex64), TypeError,
     "value must be float32, float64, bfloat16 or float16, got torch.complex64. Convert it with .to()"),
    ("spatial_shapes", torch.zeros(4, dtype=torch.int64), ValueError,
     "spatial_shapes must be [L, 2], rows (H, W), L >= 1, got [4]"),
    ("spatial_shapes", torch.ones(2, 3, dtype=torch.int64), ValueError,
     "spatial_shapes must be [L, 2], rows (H, W), L >= 1, got [2, 3]"),
    ("spatial_shapes", torch.ones(0, 2, dtype=torch.int64), ValueError,
     "spatial_shapes must be [L, 2], rows (H, W), L >= 1, got [0, 2]"),
    ("spatial_shapes", torch.ones(2, 2), TypeError, "spatial_shapes must be int64 or int32, got torch.float32"),
    ("spatial_shapes", torch.ones(2, 2, dtype=torch.bool), TypeError,
     "spatial_shapes must be int64 or int32, got torch.bool"),
    ("spatial_shapes", torch.ones(2, 2, dtype=torch.int64, device="meta"), ValueError,
     "spatial_shapes is on meta and value on cpu. Pass a list of (H, W), which costs no copy, "
     "or move it with spatial_shapes.to(value.device)"),
    ("spatial_shapes", [(5, 6), (3, 0)], ValueError, "spatial_shapes must be positive, got [(5, 6), (3, 0)]"),
    ("spatial_shapes", [(5, -6), (3, 2)], ValueError, "spatial_shapes must be positive, got [(5, -6), (3, 2)]"),
    *(
        ("spatial_shapes", wrong, TypeError,
         f"spatial_shapes must be an integer tensor [L, 2] or a list of (H, W) integers, got {wrong!r}")
        for wrong in ([], [(5, 6, 7)], [5, 6], [(5.0, 6.0), (3, 2)], ["56", "32"], 5, None, [("5", "6"), (3, 2)])
    ),
    ("level_start_index", [0, 30], TypeError,
     "level_start_index must be a tensor or None (then it follows from spatial_shapes), got list"),
    ("level_start_index", torch.tensor([0]), ValueError, "level_start_index must be [L] = [2], got [1]"),
    ("level_start_index", torch.zeros(2), TypeError, "level_start_index must be int64 or int32, got torch.float32"),
    ("level_start_index", torch.zeros(2, dtype=torch.int64, device="meta"), ValueError,
     "level_start_index is on meta and value on cpu. Move it with level_start_index.to(value.device)"),
    ("num_points", [3, 4], ValueError, "num_points [3, 4] disagrees with {samples} [2, 7, 4, 2, 3, 2]"),
    ("backend", "fast", ValueError, "backend must be one of 'auto', 'cuda', 'triton', 'cpu', 'reference', got 'fast'"),
]

# Of either op: the tensor with coordinates, the one with a number a sample.
SAMPLES = {CLASSIC: ("sampling_locations", "attention_weights"), FUSED: ("sampling_offsets", "attention_logits")}


def of_samples(positions: str, weights: str) -> list[tuple[str, Any, type[Exception], str]]:
    def sized(*size: int) -> torch.Tensor:
        return torch.zeros(size)

    both = "[B, Q, M, L, P, 2], or [B, Q, M, K, 2] with num_points"
    flat = "[B, Q, M, L, P], or [B, Q, M, K] with num_points"
    dimensions = "as its sample dimensions (K = L * P or the sum of num_points), got"
    return [
        (positions, [0.5], TypeError, f"{positions} must be a tensor, got list"),
        (weights, None, TypeError, f"{weights} must be a tensor, got NoneType"),
        (positions, sized(2, 7, 4, 2, 3, 2).long(), TypeError,
         f"{positions} must be floating point, got torch.int64. Convert it with .to()"),
        (weights, sized(2, 7, 4, 2, 3).int(), TypeError,
         f"{weights} must be floating point, got torch.int32. Convert it with .to()"),
        (positions, sized(2, 7, 4, 2, 3, 2).to("meta"), ValueError,
         f"{positions} is on meta and value on cpu. Move it with {positions}.to(value.device)"),
        (weights, sized(2, 7, 4, 2, 3).to("meta"), ValueError,
         f"{weights} is on meta and value on cpu. Move it with {weights}.to(value.device)"),
        (positions, sized(2, 7, 4, 2, 3, 3), ValueError, f"{positions} must be {both}, got [2, 7, 4, 2, 3, 3]"),
        (positions, torch.zeros(()), ValueError, f"{positions} must be {both}, got []"),
        (positions, sized(7, 4, 6, 2), ValueError, f"{positions} must be {both}, got [7, 4, 6, 2]"),
        (positions, sized(2, 7, 4, 3, 2, 2), ValueError,
         f"{positions} must be [B, Q, M, L, P, 2] with L = 2, got [2, 7, 4, 3, 2, 2]"),
        (positions, sized(2, 7, 4, 6, 2), ValueError,
         f"{positions} is [B, Q, M, K, 2] with K = 6, but num_points is None. Pass the number of samples of each of "
         "the 2 levels, e.g. num_points=[3, 6, 3]"),
        (positions, sized(3, 7, 4, 2, 3, 2), ValueError,
         f"{positions} must have [B, Q, M, K] = [2, Q, 4, 6] {dimensions} [3, 7, 4, 6]"),
        (positions, sized(2, 7, 5, 2, 3, 2), ValueError,
         f"{positions} must have [B, Q, M, K] = [2, Q, 4, 6] {dimensions} [2, 7, 5, 6]"),
        (weights, sized(2, 7, 6), ValueError, f"{weights} must be {flat}, got [2, 7, 6]"),
        (weights, sized(2, 7, 4, 3, 2), ValueError,
         f"{weights} must be [B, Q, M, L, P] with L = 2, got [2, 7, 4, 3, 2]"),
        (weights, sized(2, 8, 4, 2, 3), ValueError,
         f"{weights} must have [B, Q, M, K] = [2, 7, 4, 6] {dimensions} [2, 8, 4, 6]"),
        (weights, sized(2, 7, 5, 2, 3), ValueError,
         f"{weights} must have [B, Q, M, K] = [2, 7, 4, 6] {dimensions} [2, 7, 5, 6]"),
        (weights, sized(1, 7, 4, 2, 3), ValueError,
         f"{weights} must have [B, Q, M, K] = [2, 7, 4, 6] {dimensions} [1, 7, 4, 6]"),
    ]


OF_FUSED: list[tuple[str, Any, type[Exception], str]] = [
    ("reference_points", "centre", TypeError, "reference_points must be a tensor, got str"),
    ("reference_points", torch.zeros(2, 7, 2, 2, dtype=torch.int64), TypeError,
     "reference_points must be floating point, got torch.int64. Convert it with .to()"),
    *(
        ("reference_points", torch.zeros(size), ValueError,
         f"reference_points must be [B, Q, L or 1, 2 or 4] = [2, 7, 2 or 1, 2 or 4], got {list(size)}")
        for size in ((2, 7, 2), (2, 7, 3, 2), (2, 7, 2, 3), (2, 6, 2, 2), (1, 7, 2, 2), (2, 7, 4))
    ),
    ("value_mask", torch.zeros(2, 30, dtype=torch.bool), ValueError,
     "value_mask must be [B, S] = [2, 36], got [2, 30]"),
    ("value_mask", torch.zeros(2, 36), TypeError, "value_mask must be bool, True = padding, got torch.float32"),
    ("value_mask", torch.zeros(2, 36, dtype=torch.bool, device="meta"), ValueError,
     "value_mask is on meta and value on cpu. Move it with value_mask.to(value.device)"),
    ("value_mask", [True] * 36, TypeError, "value_mask must be a tensor or None, got list"),
]

# fmt: on

TABLE = [(op, *entry) for op in (CLASSIC, FUSED) for entry in BOTH + of_samples(*SAMPLES[op])]
TABLE += [(FUSED, *entry) for entry in OF_FUSED]


def label(entry: tuple[Any, ...]) -> str:
    return f"{entry[0]}-{entry[1]}-{entry[4][len(entry[1]) + 1 : 60].strip()}"


@pytest.mark.parametrize("entry", TABLE, ids=label)
def test_a_malformed_argument_is_named(entry):
    op, argument, passed, error, message = entry
    inputs = sample_inputs(op, CASE, torch.float32)
    message = f"{op}: {message.format(samples=SAMPLES[op][0])}"
    with pytest.raises(error) as caught:
        getattr(dino_kernels, op)(**{**inputs, argument: passed})
    assert str(caught.value) == message


def test_rows_that_a_list_of_sizes_does_not_describe_are_counted(op):
    inputs = sample_inputs(op, CASE, torch.float32)
    inputs |= {"spatial_shapes": [(5, 6), (3, 3)], "level_start_index": None}
    message = f"{op}: value must have S = 39 rows, the sum of H * W of spatial_shapes [(5, 6), (3, 3)], got 36"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        getattr(dino_kernels, op)(**inputs)


@pytest.mark.parametrize("counts", [[1, 4], [6], [1, 2, 3], [7, -1], []], ids=str)
def test_point_counts_must_add_up(op, counts):
    inputs = sample_inputs(op, UNEVEN, torch.float32)
    inputs["num_points"] = counts
    message = (
        f"{op}: num_points must be 2 counts, one per level, that add up to K = 6 "
        f"of {SAMPLES[op][0]} [2, 7, 4, 6, 2], got {counts}"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        getattr(dino_kernels, op)(**inputs)


@pytest.mark.parametrize("counts", [3, "33", [3.0, 3.0], [None, 6]], ids=str)
def test_point_counts_must_be_integers(op, counts):
    inputs = sample_inputs(op, UNEVEN, torch.float32)
    inputs["num_points"] = counts
    with pytest.raises((TypeError, ValueError), match=f"^{op}: num_points must be 2 counts"):
        getattr(dino_kernels, op)(**inputs)


def test_every_backend_gives_the_same_message(op, backend):
    """Arguments are checked before a backend is chosen."""
    inputs = sample_inputs(op, CASE, torch.float32)
    inputs["value"] = inputs["value"][0]
    with pytest.raises(ValueError, match=rf"^{op}: value must be \[B, S, M, D\], got \[36, 4, 8\]$"):
        getattr(dino_kernels, op)(**inputs, backend=backend)


def test_every_documented_argument_is_checked(op):
    names = set(inspect.signature(getattr(dino_kernels, op)).parameters)
    assert {argument for name, argument, *_ in TABLE if name == op} == names


def test_signatures_are_the_published_ones():
    samples = "sampling_locations attention_weights"
    raw = "reference_points sampling_offsets attention_logits value_mask"
    for op, own in ((CLASSIC, samples), (FUSED, raw)):
        signature = inspect.signature(getattr(dino_kernels, op))
        positional = [name for name, p in signature.parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
        keyword = [name for name, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY]
        assert positional == ["value", "spatial_shapes", "level_start_index", *own.split()]
        assert keyword == ["num_points", "backend"]


LOGITS, BOXES = torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 4, 4)
TARGETS = PackedTargets.pack([{"labels": torch.tensor([1]), "boxes": torch.rand(1, 4)}] * 3)
LABELS = PackedTargets.pack([{"labels": torch.tensor([1])}] * 3)
USUAL = {"logits": LOGITS, "boxes": BOXES, "targets": TARGETS}
COST = torch.zeros(2, 3, 4)

# fmt: off
# (changed arguments, type of the error, what its message has): of matching_cost and hungarian_match alike.
OF_COST: list[tuple[dict[str, Any], type[Exception], list[str]]] = [
    ({"logits": LOGITS[0, 0]}, ValueError, ["logits must be", "[4, 5]"]),
    ({"logits": LOGITS.long()}, TypeError, ["logits must be", "int64"]),
    ({"logits": []}, ValueError, ["logits must be", "empty list"]),
    ({"logits": [1.0]}, TypeError, ["logits must be", "float"]),
    ({"logits": [LOGITS, LOGITS[..., :3]], "boxes": [BOXES] * 2}, ValueError, ["C = 5", "[2, 3, 4, 3]"]),
    ({"boxes": BOXES[..., :3]}, ValueError, ["boxes must be", "[2, 3, 4, 3]"]),
    ({"boxes": BOXES[:, :, :2]}, ValueError, ["boxes must have the shapes", "[2, 3, 2, 4]"]),
    ({"boxes": [BOXES] * 2}, ValueError, ["boxes must have the shapes"]),
    ({"boxes": BOXES.int()}, TypeError, ["boxes must be", "int32"]),
    ({"boxes": BOXES.to("meta")}, ValueError, ["boxes", "meta", "cpu"]),
    ({"boxes": None}, ValueError, ["boxes is None", "weights"]),
    ({"targets": LABELS}, ValueError, ["targets", "boxes", "weights"]),
    ({"targets": []}, ValueError, ["targets has 0 images", "B = 3"]),
    ({"targets": TARGETS.to("meta")}, ValueError, ["targets is on meta", "to(logits.device)"]),
    ({"extra_cost": torch.zeros(3, 4)}, ValueError, ["extra_cost", "[2, 3, 4]"]),
    ({"extra_cost": torch.zeros(3, 3, 4)}, ValueError, ["extra_cost", "[3, 3, 4]"]),
    ({"extra_cost": torch.zeros(2, 3, 4, device="meta")}, ValueError, ["extra_cost", "meta"]),
    ({"preset": "yolo"}, ValueError, ["preset", "deformable_detr", "'yolo'"]),
    ({"class_cost": "bce"}, ValueError, ["class_cost", "'focal' or 'softmax'", "'bce'"]),
    ({"weights": (1.0, 2.0)}, ValueError, ["weights", "three", "(1.0, 2.0)"]),
    ({"giou_eps": -1.0}, ValueError, ["giou_eps", "-1.0"]),
    ({"beta": 2.0}, TypeError, ["'beta'", "gamma"]),
    ({"backend": "gpu"}, ValueError, ["backend", "'auto'", "'gpu'"]),
]
# Of the two ops that assign.
OF_CHOICES: list[tuple[dict[str, Any], type[Exception], list[str]]] = [
    ({"ties": "first"}, ValueError, ["ties", "'lowest' or 'scipy'", "'first'"]),
    ({"check": True}, ValueError, ["check", "'raise', 'warn' or 'none'", "True"]),
]
OF_ASSIGNMENT: list[tuple[dict[str, Any], type[Exception], list[str]]] = [
    ({"backend": "gpu"}, ValueError, ["backend", "'auto'", "'gpu'"]),
    ({"cost": torch.zeros(3)}, ValueError, ["cost must be", "[3]"]),
    ({"cost": torch.zeros(1, 2, 3, 4)}, ValueError, ["cost must be", "[1, 2, 3, 4]"]),
    ({"cost": COST.to(torch.complex64)}, TypeError, ["cost must be real", "complex64"]),
    ({"cost": [COST]}, ValueError, ["[W, T]", "[2, 3, 4]"]),
    ({"cost": [COST[0], [1.0]]}, ValueError, ["[W, T]", "[1]"]),
    ({"cost": [COST[0]], "sizes": [[1, 1]]}, ValueError, ["list", "sizes"]),
    ({"cost": [COST[0]], "full_output": True}, ValueError, ["list", "full_output"]),
    ({"cost": [COST[0]], "offsets": torch.tensor([0, 3])}, ValueError, ["list", "offsets"]),
    ({"sizes": [1]}, ValueError, ["sizes", "B = 2", "[1, 1]"]),
    ({"sizes": [[1, 2, 3], [1, 2, 3]]}, ValueError, ["sizes", "[2, 3]"]),
    ({"sizes": torch.tensor([1.0, 2.0])}, ValueError, ["sizes", "float32"]),
    ({"sizes": [5, 1]}, ValueError, ["sizes", "T = 4", "5"]),
    ({"sizes": [[4, 1], [1, 1]]}, ValueError, ["sizes", "W = 3", "4"]),
    ({"sizes": [-1, 2]}, ValueError, ["sizes", "-1"]),
    ({"sizes": [1, 2], "offsets": torch.tensor([0, 3])}, ValueError, ["offsets and sizes"]),
    ({"offsets": torch.tensor([0, 3], dtype=torch.int32)}, ValueError, ["offsets", "int32"]),
    ({"offsets": torch.tensor([[0, 3]])}, ValueError, ["offsets", "[1, 2]"]),
    ({"offsets": torch.zeros(0, dtype=torch.int64)}, ValueError, ["offsets", "[0]"]),
    ({"offsets": torch.zeros(2, dtype=torch.int64, device="meta")}, ValueError, ["meta", "cpu"]),
]
# fmt: on
OF_MATCHING = [("matching_cost", USUAL, *entry) for entry in OF_COST]
OF_MATCHING += [("hungarian_match", USUAL, *entry) for entry in OF_COST + OF_CHOICES]
OF_MATCHING += [("linear_sum_assignment", {"cost": COST}, *entry) for entry in OF_ASSIGNMENT + OF_CHOICES]


@pytest.mark.parametrize(("op", "usual", "changed", "error", "words"), OF_MATCHING)
def test_a_malformed_argument_of_matching_is_named(op, usual, changed, error, words):
    with pytest.raises(error) as caught:
        getattr(dino_kernels, op)(**usual | changed)
    assert str(caught.value).startswith(f"{op}: ")
    assert all(word in str(caught.value) for word in words), caught.value
