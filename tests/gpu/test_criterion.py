"""Matching and losses on a GPU never synchronise with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import dino
from dino.model.criterion import Losses, SetCriterion
from dino.model.denoising import Denoising
from dino_kernels import PackedTargets, explain, hungarian_match
from tests.dino.model.criterion_toys import CLASSES, outputs_of, targets_of

# Named, so that --gpu chooses these tests.
ON_GPU = pytest.mark.parametrize("device", ["cuda"])
COUNTS = pytest.mark.parametrize(
    "counts", [(2, 0, 5), (0, 0, 0), (30, 1, 2)], ids=["some", "none", "more_than_queries"]
)


@pytest.fixture
def forbid_synchronisation(device: str) -> Iterator[Callable[[], None]]:
    """Yield a function to call after a warm-up: synchronising then raises until the test ends."""
    if not torch.cuda.is_available():
        pytest.skip("cuda: no GPU")
    target = PackedTargets.pack([{"labels": torch.zeros(1, dtype=torch.int64), "boxes": torch.full((1, 4), 0.5)}])
    boxes = torch.full((1, 4, 4), 0.5, device=device)
    explanation = explain(hungarian_match, torch.zeros(1, 4, 3, device=device), boxes, target.to(device))
    if explanation.backend is None:
        pytest.skip(f"no kernel on a GPU: {explanation}")
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def losses_and_gradients(
    criterion: SetCriterion, outputs: dino.DetectionOutput, targets: Any
) -> tuple[Losses, list[Tensor]]:
    leaves = [outputs.logits, outputs.boxes_cxcywh, outputs.encoder_logits, outputs.encoder_boxes_cxcywh]
    if outputs.denoising is not None:
        leaves += [outputs.denoising.logits, outputs.denoising.boxes_cxcywh]
    leaves = [leaf.requires_grad_() for leaf in leaves if leaf is not None]
    losses = criterion(outputs, targets)
    # Without targets no denoising query has a loss.
    return losses, list(torch.autograd.grad(criterion.weighted_total(losses), leaves, materialize_grads=True))


def on_device(outputs: dino.DetectionOutput, device: str) -> dino.DetectionOutput:
    """Copy the predictions to a device, as new leaves."""

    def moved(part: Any) -> Any:
        if isinstance(part, Tensor):
            return part.detach().to(device)
        if not hasattr(part, "logits"):
            return part
        return type(part)(**{name: moved(value) for name, value in vars(part).items()})

    return moved(outputs)


@ON_GPU
@COUNTS
def test_losses_do_not_synchronise_and_equal_the_cpus(
    device: str, counts: tuple[int, ...], forbid_synchronisation: Callable[[], None]
) -> None:
    targets = targets_of(*counts)
    on_cpu = outputs_of(len(counts), 12, denoising_of=PackedTargets.pack(targets))
    criterion = dino.build_criterion("dino_tiny", num_classes=CLASSES)
    expected, expected_gradients = losses_and_gradients(criterion, on_cpu, targets)
    outputs = on_device(on_cpu, device)
    criterion.to(device)
    pinned = [{key: value.pin_memory() for key, value in target.items()} for target in targets]
    losses_and_gradients(criterion, outputs, pinned)
    forbid_synchronisation()
    losses, gradients = losses_and_gradients(criterion, outputs, pinned)
    torch.cuda.set_sync_debug_mode("default")
    assert losses.keys() == expected.keys()
    torch.testing.assert_close(losses.table.cpu(), expected.table, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses.class_error.cpu(), expected.class_error)
    for gradient, on_cpu in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient.cpu(), on_cpu, rtol=1e-4, atol=1e-6)


@ON_GPU
@COUNTS
def test_denoising_queries_do_not_synchronise(
    device: str, counts: tuple[int, ...], forbid_synchronisation: Callable[[], None]
) -> None:
    denoising = Denoising(dino.model_config("dino_tiny", num_classes=CLASSES)).to(device)
    packed = PackedTargets.pack(targets_of(*counts), device=device)
    denoising(packed).blocked(12)
    forbid_synchronisation()
    made = denoising(packed)
    made.blocked(12)
    made.content.sum().backward()
    torch.cuda.set_sync_debug_mode("default")
    assert made.anchors.shape[1] == made.layout.num_queries
