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


@dataclass
class Batch:
    """Images padded to one size, with a target for each."""

    images: Tensor  # [B, 3, H, W] float32, zero on padding, which is at the right and at the bottom
    mask: Tensor  # [B, H, W] bool, True on padding
    targets: list[dict[str, Any]]
    """B targets as `CocoDataset` returns them, without `problems`."""
    problems: list[str] = field(default_factory=list)
    """Images that could not be read, each with its file and id."""

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def image_ids(self) -> list[int]:
        return [target["image_id"] for target in self.targets]

    @property
    def sizes_hw(self) -> Tensor:
        """Heights and widths of the original images, int64 [B, 2]."""
        return torch.stack([target["size_hw"] for target in self.targets])

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The batch with its tensors on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, from where copies to a GPU can overlap with work."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Any) -> Batch:
        targets = [
            {key: function(value) if isinstance(value, Tensor) else value for key, value in target.items()}
            for target in self.targets
        ]
        return dataclasses.replace(self, images=function(self.images), mask=function(self.mask), targets=targets)


def collate(samples: Sequence[tuple[Tensor | None, dict[str, Any]]]) -> Batch:
    """A batch of what `CocoDataset` returns; samples without an image are left out, and their problems kept.

    A batch of nothing has images [0, 3, 0, 0].
    """
    problems = [problem for _, target in samples for problem in target.get("problems", ())]
    images = [image for image, _ in samples if image is not None]
    targets = [
        {key: value for key, value in target.items() if key != "problems"}
        for image, target in samples
        if image is not None
    ]
    height = max((image.shape[1] for image in images), default=0)
    width = max((image.shape[2] for image in images), default=0)
    padded = torch.zeros(len(images), 3, height, width)
    mask = torch.ones(len(images), height, width, dtype=torch.bool)
    for k, image in enumerate(images):
        padded[k, :, : image.shape[1], : image.shape[2]] = image
        mask[k, : image.shape[1], : image.shape[2]] = False
    return Batch(padded, mask, targets, problems)


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
