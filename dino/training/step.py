"""One optimisation step: losses of one or more batches, their gradient, and the update, if all of it is finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dino.common.distributed import Ranks, gradient_sync
from dino.common.text import shorten
from dino.model.targets import pack
from dino.training.optimizer import clip_gradients
from dino.training.precision import Precision

if TYPE_CHECKING:
    from dino.data import Batch
    from dino.model.criterion import SetCriterion

LOSS_PARTS = ("loss", "loss_ce", "loss_bbox", "loss_giou", "loss_encoder", "loss_denoising")
"""The training loss; the last layer's three losses, unweighted; the shares of encoder and denoising, weighted."""


_TERMS = ("loss_ce", "loss_bbox", "loss_giou")


class TrainingError(RuntimeError):
    """A run that cannot go on, and what to do about it."""


@dataclass(frozen=True)
class SkippedStep:
    """A step whose loss or gradient was not finite: nothing was updated."""

    terms: tuple[str, ...]
    """Losses that were not finite; none where only the gradient was not."""
    image_ids: tuple[int, ...]
    """The images that those losses, or else the gradient, were of."""
    norm: float
    """Norm of the gradient."""

    def __str__(self) -> str:
        what = f"{shorten(self.terms, 4)} not finite" if self.terms else "gradient not finite, though all losses are"
        return f"{what} (gradient norm {self.norm}); images {shorten(map(str, self.image_ids), 16)}"


@dataclass(frozen=True)
class StepReport:
    """What a step did; the same on all processes."""

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

    The losses of the batches of a step are divided by the number of boxes in all of them, on all processes: their sum
    is the loss of one large batch. What still depends on the split is padding, and how many denoising groups fit.
    """

    def __init__(
        self,
        module: nn.Module,  # the model, or what spreads it
        criterion: SetCriterion,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        ranks: Ranks,
        clip: float,
    ) -> None:
        self.module = module
        self.criterion = criterion
        self.optimizer = optimizer
        self.precision = precision
        self.ranks = ranks
        self.clip = clip

    def __call__(self, batches: Sequence[Batch], flags: Callable[[], Sequence[bool]] = tuple) -> StepReport:
        """Take a step.

        Args:
            batches: this process's, of which the gradients are summed.
            flags: what any process may want all to know; asked when the gradient is there.
        """
        num_boxes = self._mean_boxes(batches)
        parts = torch.zeros(len(LOSS_PARTS), dtype=torch.float64, device=self.ranks.device)
        all_losses: list[dict[str, Tensor]] = []
        for index, batch in enumerate(batches):
            losses, total = self._add_gradient(batch, num_boxes, sync=index == len(batches) - 1)
            all_losses.append(losses)
            parts += loss_parts(self.criterion, losses, total)
        self.precision.unscale(self.optimizer)
        norm = clip_gradients(self.module, self.clip)

        # One message between processes and one wait for the device, with all that the host has to know.
        images = sum(len(batch.targets) for batch in batches)
        host = torch.tensor([*map(float, flags()), float(images)], dtype=torch.float64, device=self.ranks.device)
        summed = self.ranks.sum(torch.cat([parts, norm.double().reshape(1), host])).tolist()
        *means, mean_norm = (value / self.ranks.size for value in summed[: len(LOSS_PARTS) + 1])
        *raised, all_images = summed[len(LOSS_PARTS) + 1 :]

        finite = math.isfinite(means[0]) and math.isfinite(mean_norm)
        self.precision.step(self.optimizer, finite)
        self.optimizer.zero_grad(set_to_none=True)
        skipped = None if finite else self._name(batches, all_losses, mean_norm)
        return StepReport(
            losses=dict(zip(LOSS_PARTS, means, strict=True)),
            norm=mean_norm,
            images=int(all_images),
            flags=tuple(flag > 0 for flag in raised),
            skipped=skipped,
        )

    def _mean_boxes(self, batches: Sequence[Batch]) -> float:
        """Boxes per process in the whole step, at least 1: processes average their gradients."""
        count = sum(len(target["labels"]) for batch in batches for target in batch.targets)
        if self.ranks.size > 1:
            count = self.ranks.sum(torch.tensor(float(count), device=self.ranks.device)).item()
        return max(count / self.ranks.size, 1.0)

    def _add_gradient(self, batch: Batch, num_boxes: float, *, sync: bool) -> tuple[dict[str, Tensor], Tensor]:
        on_device = batch.to(self.ranks.device, non_blocking=True)
        targets = pack(on_device.targets, self.ranks.device)
        with gradient_sync(self.module, sync):
            with self.precision.autocast():
                outputs = self.module(on_device.images, on_device.mask, targets)
            losses = self.criterion(outputs, targets, num_boxes=num_boxes)
            total = self.criterion.weighted_total(losses)
            self.precision.backward(total)
        return {name: loss.detach() for name, loss in losses.items()}, total.detach()

    def _name(self, batches: Sequence[Batch], all_losses: list[dict[str, Tensor]], norm: float) -> SkippedStep:
        """Which losses of which images, over all processes; called by all of them or none."""
        terms: set[str] = set()
        blamed: list[int] = []
        for batch, losses in zip(batches, all_losses, strict=True):
            broken = {name for name in losses if name.startswith(_TERMS) and not math.isfinite(losses[name].item())}
            terms |= broken
            if broken:
                blamed += image_ids(batch)
        gathered = self.ranks.gather((terms, blamed, [i for batch in batches for i in image_ids(batch)]))
        all_terms = sorted(set().union(*(terms for terms, _, _ in gathered)))
        ids = [i for _, some, every in gathered for i in (some if all_terms else every)]
        return SkippedStep(tuple(all_terms), tuple(ids), norm)


def loss_parts(criterion: SetCriterion, losses: dict[str, Tensor], total: Tensor) -> Tensor:
    """`LOSS_PARTS` of a batch, float64 [6]."""
    by_place: dict[str, dict[str, Tensor]] = {"_interm": {}, "_dn": {}}
    for name, loss in losses.items():
        for place, found in by_place.items():
            if place in name and name.startswith(_TERMS):
                found[name] = loss
    last_layer = [losses[name] for name in _TERMS]
    shares = [criterion.weighted_total(found) if found else total.new_zeros(()) for found in by_place.values()]
    return torch.stack([total, *last_layer, *shares]).double()


def image_ids(batch: Any) -> list[int]:
    """The ids of a batch's images, as in the annotation file."""
    return [int(target["image_id"]) for target in batch.targets]
