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
    """Iterates over batches; `batches` starts at any image of any epoch.

    A batch without a readable image is not yielded.

    Attributes:
        problems: images that could not be read so far, each with its file and id.
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
            worker_init_fn=_ignore_signals,
            pin_memory=pin_memory,
            # DataLoader draws a number at the start of each iteration. From the global generator, this would make
            # a resumed run differ from an uninterrupted one.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        """Return the number of batches of the epoch, from where the last iteration started."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        return self.batches()

    def batches(self, epoch: int = 0, images_done: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch that follow its first `images_done` images, of all ranks together."""
        self.sampler.seek(epoch, images_done)
        for batch in self._loader:
            self.problems += batch.problems
            if len(batch) > 0:
                yield batch


def _ignore_signals(_worker: int) -> None:
    """Ignore signals sent to the process group: the trainer handles them and shuts workers down."""
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
    """Build a loader of the batches of one rank.

    Args:
        batch_size: images of a batch on this rank.
        train: shuffle, and drop incomplete batches; otherwise all images in order.
        workers: processes that prepare batches; 0 prepares them in this process. The batches are the same.
        rank, world_size: index of this process and number of processes.
        pin_memory: return page-locked tensors, for copies to a GPU.

    Raises:
        ValueError: an argument is out of range, or training has fewer images than one global batch.
    """
    sampler = ResumableSampler(
        len(dataset), batch_size, train=train, seed=dataset.seed, rank=rank, world_size=world_size
    )
    return Loader(dataset, sampler, workers=workers, pin_memory=pin_memory)
