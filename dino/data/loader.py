"""Batches, and the loader that makes them."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dino.data.dataset import CocoDataset
from dino.data.sampler import ResumableSampler
from dino_kernels import PackedTargets

_TENSORS = ("images", "mask", "sizes_hw")


@dataclass
class Batch:
    """Images padded to one size, with their ground truth."""

    images: Tensor  # [B, 3, H, W] float32, zero on padding, which is at the right and at the bottom
    mask: Tensor  # [B, H, W] bool, True on padding
    targets: PackedTargets  # boxes cxcywh in 0..1 of the augmented images, and labels
    image_ids: list[int]  # [B] as in the annotation file
    sizes_hw: Tensor  # [B, 2] int64, height and width of the original images
    problems: list[str] = field(default_factory=list)
    """Images that could not be read, each with its file and id."""

    def __len__(self) -> int:
        return len(self.image_ids)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Return the batch with its tensors on another device."""
        moved = {name: getattr(self, name).to(device, non_blocking=non_blocking) for name in _TENSORS}
        return dataclasses.replace(self, targets=self.targets.to(device), **moved)

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, from which copies to a GPU can overlap with its work."""
        pinned = {name: getattr(self, name).pin_memory() for name in _TENSORS}
        return dataclasses.replace(self, targets=self.targets.pin_memory(), **pinned)


def pad_images(images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return images [3, h, w] padded to one size, [B, 3, H, W], and the mask of the padding, [B, H, W] bool."""
    height = max((image.shape[1] for image in images), default=0)
    width = max((image.shape[2] for image in images), default=0)
    padded = torch.zeros(len(images), 3, height, width)
    mask = torch.ones(len(images), height, width, dtype=torch.bool)
    for k, image in enumerate(images):
        padded[k, :, : image.shape[1], : image.shape[2]] = image
        mask[k, : image.shape[1], : image.shape[2]] = False
    return padded, mask


def collate(samples: Sequence[tuple[Tensor | None, dict[str, Any]]]) -> Batch:
    """Return a batch of samples of `CocoDataset`; those without an image are left out, and their problems kept.

    A batch of nothing has images [0, 3, 0, 0].
    """
    problems = [problem for _, target in samples for problem in target.get("problems", ())]
    read = [(image, target) for image, target in samples if image is not None]
    targets = [target for _, target in read]
    return Batch(
        *pad_images([image for image, _ in read]),
        PackedTargets.pack(targets),
        [target["image_id"] for target in targets],
        torch.cat([torch.zeros(0, 2, dtype=torch.int64), *(target["size_hw"][None] for target in targets)]),
        problems,
    )


class Loader:
    """Iterates over the batches that are left of the current epoch, and knows how far it is.

    In training, `state_dict()` inside the loop counts the batch at hand as used: a run that loads it continues with
    exactly the next one. At the end of an epoch the next one begins. In evaluation each iteration is the same whole
    pass. A batch of which no image can be read is not yielded; its problems come with the next batch.

    Attributes:
        problems: every problem met so far, in order.
    """

    def __init__(self, dataset: CocoDataset, sampler: ResumableSampler, *, workers: int, pin_memory: bool) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self.problems: list[str] = []
        self._loader = DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_outlive_signals,
            pin_memory=pin_memory,
            # Its own, because a data loader draws a number whenever an iteration starts: from the global generator,
            # a run that was stopped and resumed would see other random numbers than one that was not.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self.sampler.batches_per_epoch

    @property
    def epoch(self) -> int:
        """The current epoch, from 0."""
        return self.sampler.epoch

    def __iter__(self) -> Iterator[Batch]:
        waiting: list[str] = []
        for batch in self._loader:
            if self.sampler.train:
                self.sampler.batch += 1
            self.problems += batch.problems
            waiting += batch.problems
            if len(batch) > 0:
                batch.problems, waiting = waiting, []
                yield batch
        if self.sampler.train:
            self.sampler.epoch += 1
            self.sampler.batch = 0

    def state_dict(self) -> dict[str, Any]:
        """The epoch and the number of batches used; the same on every rank."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict()` was taken.

        Raises:
            ValueError: the data, the seed or the global batch size differ.
        """
        self.sampler.load_state_dict(state)


def _outlive_signals(_worker: int) -> None:
    """A signal to the whole group of processes is for the trainer, which still needs its workers to end in order."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def build_loader(
    dataset: CocoDataset,
    batch_size: int,
    *,
    train: bool,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> Loader:
    """A loader of the batches of one rank.

    Args:
        batch_size: images of a batch on this rank.
        train: shuffled, incomplete batches dropped, resumable; otherwise in order and complete.
        workers: processes that prepare batches; 0 prepares them in this one. The batches are the same.
        rank, world_size: which of how many training processes this is.
        pin_memory: for copies to a GPU.

    Raises:
        ValueError: an argument out of range, or fewer images than one global batch in training.
    """
    sampler = ResumableSampler(
        len(dataset), batch_size, train=train, seed=dataset.seed, rank=rank, world_size=world_size
    )
    return Loader(dataset, sampler, workers=workers, pin_memory=pin_memory)
