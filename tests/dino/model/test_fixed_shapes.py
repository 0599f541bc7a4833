"""Targets with a fixed capacity: shapes that no ground truth changes, with the losses and gradients of exact ones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import dino
from dino.model.denoising import Denoising, Noise
from dino_kernels import PackedTargets
from tests.dino.model.criterion_toys import CLASSES, targets_of

COUNTS = [(2, 3), (0, 0), (5, 0), (0, 1), (60, 1), (30, 70)]


def padded(noise: Noise, slots: int) -> Noise:
    """Return noise for more slots, the same in those that there were."""
    fields = {name: getattr(noise, name) for name in ("p", "new_label", "sign", "part")}
    return Noise(
        **{
            name: F.pad(x, (0, 0) * (x.ndim - 2) + (0, slots - x.shape[1]), value=1)  # of behind the last group: any
            for name, x in fields.items()
        }
    )


def step(
    model: dino.DINO, images: Tensor, mask: Tensor, truth: PackedTargets, noise: Noise | None
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return losses, class error and the gradients of a training step."""
    model.zero_grad()
    criterion = dino.build_criterion(model.config)
    losses = criterion(model(images, mask, truth, denoising_noise=noise), truth)
    criterion.weighted_total(losses).backward()
    return losses.table.detach(), losses.class_error, [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize("settings", [{}, {"denoising": "plain"}, {"num_denoising": 3}, {"denoising": "off"}], ids=str)
def test_a_fixed_capacity_changes_no_loss_and_no_gradient(counts: tuple[int, int], settings: dict) -> None:
    torch.manual_seed(0)
    model = dino.build_model("dino_tiny", num_classes=CLASSES, num_queries=12, **settings).train()
    images, mask = torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.bool)
    exact = PackedTargets.pack(targets_of(*counts))
    fixed = PackedTargets.pack(targets_of(*counts), capacity=150, max_targets=75)
    noises: tuple[Noise | None, Noise | None] = None, None
    if model.denoising is not None:
        slots = [model.denoising.layout(truth).num_queries for truth in (exact, fixed)]
        noise = Noise.draw(2, slots[0], CLASSES, torch.device("cpu"))
        noises = noise, padded(noise, slots[1])
    table, class_error, gradients = step(model, images, mask, exact, noises[0])
    found, found_error, others = step(model, images, mask, fixed, noises[1])
    torch.testing.assert_close(found, table, rtol=1e-5, atol=1e-5)
    assert torch.equal(found_error, class_error)
    largest = max(gradient.abs().max().item() for gradient in gradients)
    for gradient, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(other, gradient, rtol=1e-4, atol=1e-5 * largest)


def test_shapes_depend_on_the_capacity_alone() -> None:
    denoising = Denoising(dino.model_config("dino_tiny", num_classes=CLASSES))
    shapes = set()
    for counts in COUNTS:
        made = denoising(PackedTargets.pack(targets_of(*counts), capacity=150, max_targets=75))
        assert made.in_group is not None
        groups, size = int(made.layout.num_groups), int(made.layout.group_size)
        assert size == max(counts) and made.in_group.sum() == groups * 2 * size
        shapes.add((*made.anchors.shape, *made.blocked(12).shape))
        exact = denoising(PackedTargets.pack(targets_of(*counts)))
        assert groups == exact.layout.num_groups or max(counts) == 0
        slots = exact.layout.num_queries
        assert torch.equal(exact.blocked(12)[:slots, :slots], made.blocked(12)[:slots, :slots])
    assert shapes == {(2, 150, 4, 162, 162)}


def test_matching_queries_do_not_attend_behind_the_last_group() -> None:
    denoising = Denoising(dino.model_config("dino_tiny", num_classes=CLASSES))
    made = denoising(PackedTargets.pack(targets_of(7, 2), capacity=20))
    assert made.in_group is not None and not made.in_group.all()
    blocked = made.blocked(5)
    assert blocked[-5:, :-5].all() and not blocked[:, -5:].any()
    assert blocked[:-5, :-5][made.in_group][:, ~made.in_group].all()
    assert len(made.group) == len(made.in_group) == made.layout.num_queries
