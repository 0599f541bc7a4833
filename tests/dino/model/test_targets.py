"""Targets are checked where they enter the model and the criterion; the default dtype changes no number of a step."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import dino
from dino_kernels import PackedTargets
from tests.dino.model.criterion_toys import CLASSES, outputs_of, targets_of


@pytest.fixture
def any_default_dtype() -> Iterator[None]:
    """Restore the default dtype."""
    yield
    torch.set_default_dtype(torch.float32)


def enter(place: str, targets: list[dict[str, Tensor]] | PackedTargets) -> None:
    """Pass targets to the criterion, or to the model for denoising."""
    if place == "criterion":
        dino.build_criterion("dino_tiny", num_classes=CLASSES)(outputs_of(3, 10), targets)
    else:
        model = dino.build_model("dino_tiny", num_classes=CLASSES, num_queries=12).train()
        model(torch.randn(3, 3, 64, 64), torch.zeros(3, 64, 64, dtype=torch.bool), targets)


@pytest.mark.parametrize("place", ["criterion", "model"])
@pytest.mark.parametrize("label", [CLASSES, 90, -1])
def test_a_label_that_is_no_class_is_named(place: str, label: int) -> None:
    targets = targets_of(2, 0, 4)
    targets[2]["labels"][1] = label
    allowed = r"in 0\.\.4" if label > 0 else "numbered from 0"
    with pytest.raises(ValueError, match=rf"targets\[2\]\['labels'\] must be .*{allowed}, .*got {label}\."):
        enter(place, targets)
    if label > 0:  # the largest label is packed with the targets, as a loader does it
        with pytest.raises(ValueError, match=rf"targets\[2\]\['labels'\] must be in 0\.\.4, .*got {label}\."):
            enter(place, PackedTargets.pack(targets))


@pytest.mark.parametrize("place", ["criterion", "model"])
@pytest.mark.parametrize("box", [(0.5, 0.5, -0.2, 0.3), (320.0, 200.0, 40.0, 30.0), (0.5, float("nan"), 0.1, 0.1)])
def test_a_box_of_negative_size_in_pixels_or_not_finite_is_named(place: str, box: tuple[float, ...]) -> None:
    targets = targets_of(3, 0, 4)
    targets[0]["boxes"][2] = torch.tensor(box)
    with pytest.raises(ValueError, match=r"targets\[0\]\['boxes'\] must be \(cx, cy, w, h\) in 0\.\.1"):
        enter(place, targets)


def step(targets: list[dict[str, Tensor]], default: torch.dtype) -> tuple[Tensor, list[Tensor | None]]:
    """Return the losses of a training step of a float32 model, and the gradients."""
    torch.manual_seed(0)
    model = dino.build_model("dino_tiny", num_classes=CLASSES, num_queries=12).train()
    images, mask = torch.randn(3, 3, 64, 64), torch.zeros(3, 64, 64, dtype=torch.bool)
    torch.set_default_dtype(default)
    criterion = dino.build_criterion("dino_tiny", num_classes=CLASSES)
    torch.manual_seed(1)
    losses = criterion(model(images, mask, targets), targets)
    criterion.weighted_total(losses).backward()
    torch.set_default_dtype(torch.float32)
    return losses.table.detach(), [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("default", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_a_step_has_the_same_bits_under_any_default_dtype(any_default_dtype: None, default: torch.dtype) -> None:
    targets = targets_of(2, 0, 5)
    (table, gradients), (found, others) = step(targets, torch.float32), step(targets, default)
    assert found.dtype == torch.float32 and torch.equal(found, table)
    for gradient, other in zip(gradients, others, strict=True):
        assert gradient is other is None or (gradient is not None and other is not None and gradient.equal(other))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_model_built_under_another_default_dtype_trains(any_default_dtype: None, dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    model = dino.build_model("dino_tiny", num_classes=CLASSES, num_queries=12).train()
    criterion = dino.build_criterion("dino_tiny", num_classes=CLASSES)
    targets = targets_of(2, 0, 5)
    losses = criterion(model(torch.randn(3, 3, 64, 64), torch.zeros(3, 64, 64, dtype=torch.bool), targets), targets)
    criterion.weighted_total(losses).backward()
    assert losses.table.isfinite().all()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert {gradient.dtype for gradient in gradients} == {dtype} and all(g.isfinite().all() for g in gradients)
