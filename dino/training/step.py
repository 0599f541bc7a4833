"""One optimisation step: losses of one or more batches, their gradient, and the update if all of it is finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import Tensor, nn

from dino.common.distributed import Ranks, gradient_sync
from dino.common.text import shorten
from dino.model.criterion import NUM_TRAINED, Losses, SetCriterion, mean_boxes
from dino.training.optimizer import clip_gradients
from dino.training.precision import Precision
from dino.training.replay import Replay
from dino_kernels import PackedTargets

if TYPE_CHECKING:
    from dino.data import Batch

LOSS_PARTS = ("loss", "loss_ce", "loss_bbox", "loss_giou", "loss_encoder", "loss_denoising")
"""The training loss; the last layer's three losses, unweighted; the shares of encoder and denoising, weighted."""
BRANCH_PARTS = ("loss_hybrid", "loss_routes")
"""The weighted shares of `hybrid_queries` and `multi_route`, with all that they add; only where these are on."""

Compiled = TypeVar("Compiled", bound=nn.Module)
MOST_COMPILED = 64
"""Variants of the model that `torch.compile` may make."""


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
    """`Step.parts`, averaged over processes."""
    norm: float
    """Norm of the gradient before clipping."""
    images: int
    """Images of all processes in this step."""
    flags: tuple[bool, ...]
    """The flags given to the step, each true if it was on any process."""
    skipped: SkippedStep | None


@dataclass(frozen=True)
class _Pending:
    """A step whose results are on their way from the device."""

    values: Tensor  # on the host: the step's parts, gradient norm, flags, images; summed over processes
    copied: torch.cuda.Event | None
    losses: list[Losses]
    image_ids: list[list[int]]


class Step:
    """Takes optimisation steps.

    The losses of a step's batches are divided by the number of boxes in all of them, on all processes: their sum is the
    loss of one large batch. Only padding and the number of denoising groups still depend on the split.

    A step does not wait for the device. Its results are read during the next one, before that changes the weights, or
    by `finish`.

    Args:
        module: the model, or its distributed wrapper.
        optimizer: a fused one of PyTorch, which drops a step on the device.
        clip: largest norm of the gradient.
        compiled: whether model and criterion are compiled, see `compiled`; further sizes then compile no more.
        static: replay the passes of a batch, and the update, as CUDA graphs: one process, batches whose targets have a
            fixed capacity.

    Raises:
        ValueError: the optimiser is not fused.
    """

    def __init__(
        self,
        module: nn.Module,
        criterion: SetCriterion,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        ranks: Ranks,
        clip: float,
        *,
        compiled: bool = False,
        static: bool = False,
    ) -> None:
        if not getattr(optimizer, "_step_supports_amp_scaling", False):
            raise ValueError(f"optimizer must be fused, got {type(optimizer).__name__}. Create it with fused=True.")
        self.module = module
        self.criterion = criterion.to(ranks.device)
        self.optimizer = optimizer
        self.precision = precision
        self.ranks = ranks
        self.clip = clip
        self.static = static
        self.compiled = compiled
        self.parts = part_names(criterion)
        """Names of the losses that a step reports: `LOSS_PARTS`, and those of `BRANCH_PARTS` that the model has."""
        self._replayed_passes, self._replayed_update = Replay(self._passes_of_tensors), Replay(self._update)
        self._pending: _Pending | None = None

    def __call__(
        self,
        batches: Sequence[Batch],
        flags: Callable[[], Sequence[bool]] = tuple,
        done: Callable[[StepReport], None] = lambda report: None,
    ) -> None:
        """Take a step. Collective.

        Args:
            batches: this process's, whose gradients are summed.
            flags: what the processes share; called after the backward passes.
            done: gets the report of the step before, if that was not finished, while the weights are still its result.
        """
        num_boxes = mean_boxes(sum(batch.num_boxes for batch in batches), self.ranks.device)
        all_losses, all_parts = [], []
        for index, batch in enumerate(batches):
            losses, weighted = self._add_gradient(batch, num_boxes, sync=index == len(batches) - 1)
            all_losses.append(losses)
            all_parts.append(loss_parts(losses, weighted))

        host = torch.tensor([*map(float, flags()), float(sum(map(len, batches)))], dtype=torch.float64)
        if self.ranks.device.type == "cuda":
            host = host.pin_memory().to(self.ranks.device, non_blocking=True)
        if (report := self.finish()) is not None:
            done(report)
        update = self._replayed_update if self.static else self._update
        (summed,) = update(torch.stack(all_parts).sum(0), host)
        self._pending = _Pending(*self._to_host(summed), all_losses, [batch.image_ids for batch in batches])

    def finish(self) -> StepReport | None:
        """Return the report of the last step; None if there was none, or it was returned before. Collective."""
        pending, self._pending = self._pending, None
        if pending is None:
            return None
        if pending.copied is not None:
            pending.copied.synchronize()
        summed = pending.values.tolist()
        *means, norm = (value / self.ranks.size for value in summed[: len(self.parts) + 1])
        *raised, images = summed[len(self.parts) + 1 :]
        finite = math.isfinite(means[0]) and math.isfinite(norm)
        return StepReport(
            losses=dict(zip(self.parts, means, strict=True)),
            norm=norm,
            images=int(images),
            flags=tuple(flag > 0 for flag in raised),
            skipped=None if finite else self._explain(pending, norm),
        )

    def _to_host(self, values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
        """Start a copy to the host; return it, and the event after which it may be read."""
        if values.device.type != "cuda":
            return values, None
        copy = torch.empty_like(values, device="cpu", pin_memory=True).copy_(values, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        return copy, copied

    def _add_gradient(self, batch: Batch, num_boxes: Tensor, *, sync: bool) -> tuple[Losses, Tensor]:
        """Return the losses, and their weighted sum per set, both without gradient."""
        batch = batch.to(self.ranks.device, non_blocking=True)
        with gradient_sync(self.module, sync):
            if self.static:
                truth = batch.targets
                assert truth.boxes_cxcywh is not None
                tensors = (batch.images, batch.mask, truth.labels, truth.boxes_cxcywh, truth.offsets, num_boxes)
                table, error, weighted = self._replayed_passes(*tensors)
            else:
                table, error, weighted = self._passes(batch.images, batch.mask, batch.targets, num_boxes)
        sizes = self.criterion.num_layers, self.criterion.num_hybrid, self.criterion.num_routes
        return Losses(table, error, *sizes), weighted

    def _passes_of_tensors(
        self, images: Tensor, mask: Tensor, labels: Tensor, boxes_cxcywh: Tensor, offsets: Tensor, num_boxes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        targets = PackedTargets(labels, boxes_cxcywh, offsets, max_targets=len(labels) // len(images))
        return self._passes(images, mask, targets, num_boxes)

    def _passes(
        self, images: Tensor, mask: Tensor, targets: PackedTargets, num_boxes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the forward and backward pass of a batch; return table and class error of the losses, weighted losses."""
        if self.compiled:
            for tensor, sides in ((images, (2, 3)), (mask, (1, 2))):
                torch._dynamo.mark_dynamic(tensor, sides)
        with self.precision.autocast():
            outputs = self.module(images, mask, targets)
        losses = self.criterion(outputs, targets, num_boxes)
        weighted = self.criterion.weighted(losses)
        self.precision.backward(weighted.sum())
        return losses.table.detach(), losses.class_error, weighted.detach()

    def _update(self, parts: Tensor, host: Tensor) -> tuple[Tensor]:
        """Clip the gradient and change the weights, unless losses or gradient are not finite on any process.

        Args:
            parts: the losses of this process, float64.
            host: what the host adds, float64.

        Returns:
            `parts`, gradient norm and `host`, summed over processes: one message between them.
        """
        self.precision.unscale(self.optimizer)
        norm = clip_gradients(self.module, self.clip)
        summed = self.ranks.sum(torch.cat([parts, norm.double().reshape(1), host]))
        broken = ~(summed[0].isfinite() & summed[len(self.parts)].isfinite())
        self.precision.step(self.optimizer, broken.float())
        # Graphs add to gradients in the memory that these had when they were captured.
        self.optimizer.zero_grad(set_to_none=not self.static)
        return (summed,)

    def _explain(self, pending: _Pending, norm: float) -> SkippedStep:
        """Find the losses that were not finite and their images, over all processes. Collective."""
        broken = [losses.not_finite() for losses in pending.losses]
        blamed = [i for ids, names in zip(pending.image_ids, broken, strict=True) if names for i in ids]
        every = [i for ids in pending.image_ids for i in ids]
        gathered = self.ranks.gather(({name for names in broken for name in names}, blamed, every))
        terms = sorted(set().union(*(names for names, _, _ in gathered)))
        ids = [i for _, some, every in gathered for i in (some if terms else every)]
        return SkippedStep(tuple(terms), tuple(ids), norm)


def compiled(module: Compiled, backend: str) -> Compiled:
    """Return the module behind `torch.compile`, in one graph without breaks.

    Args:
        module: the model, before it is replicated, or the criterion.
        backend: of `torch.compile`.
    """
    # Further variants, for example of a batch that lacks an image, must not end the run.
    torch._dynamo.config.recompile_limit = max(MOST_COMPILED, torch._dynamo.config.recompile_limit)
    # Otherwise DistributedDataParallel splits the graph, which fails for free sizes (PyTorch 2.13).
    torch._dynamo.config.optimize_ddp = False
    return cast(Compiled, torch.compile(module, fullgraph=True, backend=backend))


def part_names(sets: Losses | SetCriterion) -> tuple[str, ...]:
    """Return `LOSS_PARTS`, and those of `BRANCH_PARTS` whose sets of predictions there are."""
    counts = sets.num_hybrid, sets.num_routes
    return (*LOSS_PARTS, *(name for name, count in zip(BRANCH_PARTS, counts, strict=True) if count))


def loss_parts(
    losses: Losses,
    weighted: Tensor,  # [sets]
) -> Tensor:
    """Return the losses named by `part_names` of a batch, float64."""
    last, encoder = losses.num_layers - 1, slice(losses.num_layers, losses.first_hybrid)
    denoising = losses.first_denoising + losses.num_layers  # that of the routes follows
    shares = [weighted, weighted[encoder], weighted[losses.first_denoising : denoising]]
    if losses.num_hybrid:
        shares.append(weighted[losses.first_hybrid : losses.first_route])
    if losses.num_routes:
        shares.append(torch.cat([weighted[losses.first_route : losses.first_denoising], weighted[denoising:]]))
    sums = [share.sum(0, keepdim=True) for share in shares]
    return torch.cat([sums[0], losses.table[:NUM_TRAINED, last], *sums[1:]]).double()
