"""Properties of losses that need a GPU: nothing in them synchronises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import dino
from dino.model.criterion import Losses
from dino.model.denoising import Denoising, contrastive_denoising
from dino.model.targets import pack
from dino_kernels import PackedTargets, explain, hungarian_match
from tests.dino.model.criterion_toys import CLASSES, outputs_of, targets_of

# Named, so that --gpu chooses these tests.
ON_GPU = pytest.mark.parametrize("device", ["cuda"])
COUNTS = pytest.mark.parametrize(
    "counts", [(2, 0, 5), (0, 0, 0), (30, 1, 2)], ids=["some", "none", "more_than_queries"]
)


@pytest.fixture
def waiting_is_an_error(device: str) -> Iterator[Callable[[], None]]:
    """Call it after a warm-up: synchronising with the device is an error from then on, until the test ends."""
    if not torch.cuda.is_available():
        pytest.skip("cuda: no GPU")
    target = PackedTargets.pack([{"labels": torch.zeros(1, dtype=torch.int64), "boxes": torch.full((1, 4), 0.5)}])
    boxes = torch.full((1, 4, 4), 0.5, device=device)
    explanation = explain(hungarian_match, torch.zeros(1, 4, 3, device=device), boxes, target.to(device))
    if explanation.backend is None:
        pytest.skip(f"no kernel on a GPU: {explanation}")
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def losses_and_gradients(outputs: dino.DetectionOutput, targets: Any) -> tuple[Losses, list[Tensor]]:
    leaves = [outputs.logits, outputs.boxes_cxcywh, outputs.encoder_logits, outputs.encoder_boxes_cxcywh]
    if outputs.denoising is not None:
        leaves += [outputs.denoising.logits, outputs.denoising.boxes_cxcywh]
    differentiated = [leaf.requires_grad_() for leaf in leaves if leaf is not None]
    criterion = dino.build_criterion("dino_tiny", num_classes=CLASSES)
    losses = criterion(outputs, targets)
    return losses, list(torch.autograd.grad(criterion.weighted_total(losses), differentiated))


def on_device(outputs: dino.DetectionOutput, device: str) -> dino.DetectionOutput:
    """The same numbers on a device, as new leaves."""

    def moved(part: Any) -> Any:
        if isinstance(part, Tensor):
            return part.detach().to(device)
        if not hasattr(part, "logits"):
            return part
        return type(part)(**{name: moved(value) for name, value in vars(part).items()})

    return moved(outputs)


@ON_GPU
@COUNTS
def test_losses_do_not_wait_and_are_those_of_the_cpu(
    device: str, counts: tuple[int, ...], waiting_is_an_error: Callable[[], None]
) -> None:
    targets = targets_of(*counts)
    on_cpu = outputs_of(len(counts), 12, denoising_of=targets)
    expected, expected_gradients = losses_and_gradients(on_cpu, targets)
    outputs = on_device(on_cpu, device)
    pinned = [{key: value.pin_memory() for key, value in target.items()} for target in targets]
    losses_and_gradients(outputs, pinned)
    waiting_is_an_error()
    losses, gradients = losses_and_gradients(outputs, pinned)
    torch.cuda.set_sync_debug_mode("default")
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name].cpu(), loss, rtol=1e-5, atol=1e-6, msg=name)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient.cpu(), wanted, rtol=1e-4, atol=1e-6)


@ON_GPU
@COUNTS
def test_denoising_queries_do_not_wait(
    device: str, counts: tuple[int, ...], waiting_is_an_error: Callable[[], None]
) -> None:
    denoising = Denoising(dino.model_config("dino_tiny", num_classes=CLASSES)).to(device)
    packed = pack(targets_of(*counts), torch.device(device, torch.cuda.current_device()))
    contrastive_denoising(denoising, packed).blocked(12)
    waiting_is_an_error()
    made = contrastive_denoising(denoising, packed)
    made.blocked(12)
    made.content.sum().backward()
    torch.cuda.set_sync_debug_mode("default")
    assert made.anchors.shape[1] == made.layout.num_queries
