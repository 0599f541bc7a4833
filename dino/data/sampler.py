"""Which images make up which batch: seeded, sharded over ranks, and resumable inside an epoch."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from torch.utils.data import Sampler


class ResumableSampler(Sampler[list[tuple[int, int]]]):
    """Batches of `(epoch, index)` for one rank.

    Training: a permutation by (seed, epoch) of which each rank takes its part of every global batch; images that do
    not fill a global batch wait for the next epoch. Evaluation: rank r takes the images r, r + world_size, ... in
    order, each image once.

    An iteration yields what is left of the current epoch. It does not move the position: a data loader asks for
    batches long before they are used, so the one who uses them sets `epoch` and `batch`.

    Args:
        num_images: images of the data set.
        batch_size: images of a batch on one rank.
        train: shuffle, and drop the last incomplete batch.
        seed: of the permutation.
        rank, world_size: which of how many processes this is.

    Raises:
        ValueError: an argument out of range, or fewer images than one global batch in training.
    """

    def __init__(
        self, num_images: int, batch_size: int, *, train: bool, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be one of 0..{world_size - 1}, got {rank}")
        if train and num_images < batch_size * world_size:
            raise ValueError(
                f"the data set has {num_images} images, fewer than one batch of {batch_size * world_size}"
                f" (batch_size {batch_size} on {world_size} ranks); lower batch_size"
            )
        self.num_images = num_images
        self.batch_size = batch_size
        self.train = train
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.batch = 0
        """Batches of the epoch that have been used."""

    @property
    def batches_per_epoch(self) -> int:
        """Batches of a whole epoch on this rank."""
        if self.train:
            return self.num_images // (self.batch_size * self.world_size)
        own = len(range(self.rank, self.num_images, self.world_size))
        return -(-own // self.batch_size)

    def __len__(self) -> int:
        """Batches that an iteration yields now."""
        return self.batches_per_epoch - self.batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, size = self.epoch, self.batch_size
        order = list(range(self.num_images))
        if self.train:
            random.Random(f"{self.seed}/{epoch}").shuffle(order)
        own = order[self.rank :: self.world_size]
        for batch in range(self.batch, self.batches_per_epoch):
            yield [(epoch, index) for index in own[batch * size : (batch + 1) * size]]

    def state_dict(self) -> dict[str, Any]:
        """The position, and what it depends on."""
        return {"epoch": self.epoch, "batch": self.batch, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a position.

        Raises:
            ValueError: the position belongs to other data, another seed or another batch size.
        """
        for name, here in self._identity().items():
            if state[name] != here:
                raise ValueError(
                    f"cannot resume: {name} was {state[name]} and is now {here}, so the rest of the epoch would not be"
                    f" the same images; go back to {name} {state[name]}, or start a new run from the weights"
                )
        self.epoch, self.batch = state["epoch"], state["batch"]

    def _identity(self) -> dict[str, Any]:
        return {"num_images": self.num_images, "global_batch": self.batch_size * self.world_size, "seed": self.seed}
