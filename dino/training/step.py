"""One optimisation step: losses of one or more batches, their gradient, and the update if all of it is finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dino.common.distributed import Ranks, gradient_sync
from dino.common.text import shorten
from dino.model.criterion import NUM_TRAINED, Losses, SetCriterion, mean_boxes
from dino.training.optimizer import clip_gradients
from dino.training.precision import Precision

if TYPE_CHECKING:
    from dino.data import Batch

LOSS_PARTS = ("loss", "loss_ce", "loss_bbox", "loss_giou", "loss_encoder", "loss_denoising")
"""The training loss; the last layer's three losses, unweighted; the shares of encoder and denoising, weighted."""


class TrainingError(RuntimeError):
    """Training cannot continue; the message says how to recover."""


@dataclass(frozen=True)
class SkippedStep:
    """A step whose loss or gradient was not finite: nothing was updated."""

    terms: tuple[str, ...]
    """Losses that were not finite; empty if only the gradient was not."""
    image_ids: tuple[int, ...]
    """Images of those losses; of the whole step if only the gradient was not finite."""
    norm: float
    """Norm of the gradient."""

    def __str__(self) -> str:
        what = f"{shorten(self.terms, 4)} not finite" if self.terms else "gradient not finite, though all losses are"
        return f"{what} (gradient norm {self.norm}); images {shorten(map(str, self.image_ids), 16)}"


@dataclass(frozen=True)
class StepReport:
    """Results of a step, the same on all processes."""

    losses: dict[str, float]
    """`LOSS_PARTS`, averaged over processes."""
    norm: float
    """Norm of the gradient before clipping."""
    images: int
    """Images of all processes in this step."""
    flags: tuple[bool, ...]
    """The flags given to the step, each true if it was on any process."""
    skipped: SkippedStep | None


class Step:
    """Takes optimisation steps.

    The losses of a step's batches are divided by the number of boxes in all of them, on all processes: their sum is the
    loss of one large batch. Only padding and the number of denoising groups still depend on the split.
    """

    def __init__(
        self,
        module: nn.Module,  # the model, or its distributed wrapper
        criterion: SetCriterion,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        ranks: Ranks,
        clip: float,
    ) -> None:
        self.module = module
        self.criterion = criterion.to(ranks.device)
        self.optimizer = optimizer
        self.precision = precision
        self.ranks = ranks
        self.clip = clip

    def __call__(self, batches: Sequence[Batch], flags: Callable[[], Sequence[bool]] = tuple) -> StepReport:
        """Take a step. Collective.

        Args:
            batches: this process's, whose gradients are summed.
            flags: what the processes share; called after the backward passes.
        """
        num_boxes = mean_boxes(sum(len(batch.targets) for batch in batches), self.ranks.device)
        all_losses, all_parts = [], []
        for index, batch in enumerate(batches):
            losses, weighted = self._add_gradient(batch, num_boxes, sync=index == len(batches) - 1)
            all_losses.append(losses)
            all_parts.append(loss_parts(losses, weighted))
        self.precision.unscale(self.optimizer)
        norm = clip_gradients(self.module, self.clip)

        # All that the host reads goes into one message between processes, and synchronises with the device once.
        host = torch.tensor([*map(float, flags()), float(sum(map(len, batches)))], dtype=torch.float64)
        if self.ranks.device.type == "cuda":
            host = host.pin_memory().to(self.ranks.device, non_blocking=True)
        parts = torch.stack(all_parts).sum(0)
        summed = self.ranks.sum(torch.cat([parts, norm.double().reshape(1), host])).tolist()
        *means, mean_norm = (value / self.ranks.size for value in summed[: len(LOSS_PARTS) + 1])
        *raised, all_images = summed[len(LOSS_PARTS) + 1 :]

        finite = math.isfinite(means[0]) and math.isfinite(mean_norm)
        self.precision.step(self.optimizer, finite)
        self.optimizer.zero_grad(set_to_none=True)
        skipped = None if finite else self._explain(batches, all_losses, mean_norm)
        return StepReport(
            losses=dict(zip(LOSS_PARTS, means, strict=True)),
            norm=mean_norm,
            images=int(all_images),
            flags=tuple(flag > 0 for flag in raised),
            skipped=skipped,
        )

    def _add_gradient(self, batch: Batch, num_boxes: Tensor, *, sync: bool) -> tuple[Losses, Tensor]:
        """Return the losses, and their weighted sum per set, both without gradient."""
        batch = batch.to(self.ranks.device, non_blocking=True)
        with gradient_sync(self.module, sync):
            with self.precision.autocast():
                outputs = self.module(batch.images, batch.mask, batch.targets)
            losses = self.criterion(outputs, batch.targets, num_boxes)
            weighted = self.criterion.weighted(losses)
            self.precision.backward(weighted.sum())
        return losses.detach(), weighted.detach()

    def _explain(self, batches: Sequence[Batch], all_losses: Sequence[Losses], norm: float) -> SkippedStep:
        """Find the losses that were not finite and their images, over all processes. Collective."""
        broken = [losses.not_finite() for losses in all_losses]
        blamed = [i for batch, names in zip(batches, broken, strict=True) if names for i in batch.image_ids]
        every = [i for batch in batches for i in batch.image_ids]
        gathered = self.ranks.gather(({name for names in broken for name in names}, blamed, every))
        terms = sorted(set().union(*(names for names, _, _ in gathered)))
        ids = [i for _, some, every in gathered for i in (some if terms else every)]
        return SkippedStep(tuple(terms), tuple(ids), norm)


def loss_parts(
    losses: Losses,
    weighted: Tensor,  # [sets]
) -> Tensor:
    """Return `LOSS_PARTS` of a batch, float64 [6]."""
    last, denoising = losses.num_layers - 1, losses.first_denoising
    sums = [part.sum(0, keepdim=True) for part in (weighted, weighted[last + 1 : denoising], weighted[denoising:])]
    return torch.cat([sums[0], losses.table[:NUM_TRAINED, last], *sums[1:]]).double()
