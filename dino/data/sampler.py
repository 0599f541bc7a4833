"""Choose the images of each batch: seeded, sharded over ranks, and resumable within an epoch."""

from __future__ import annotations

import random
from collections.abc import Iterator

from torch.utils.data import Sampler

from dino.common.text import counted


class ResumableSampler(Sampler[list[tuple[int, int]]]):
    """Batches of `(epoch, index)` for one rank.

    Training: a permutation determined by (seed, epoch). Each rank takes its share of every global batch, and images
    that do not fill a global batch are dropped. Evaluation: rank r takes the images r, r + world_size, ... in order,
    each image once.

    An iteration starts at the position that `seek` set and does not change it: data loaders draw batches ahead of
    their use, so only the caller can count the images used.

    Args:
        num_images: size of the data set.
        batch_size: images of a batch on one rank.
        train: shuffle, and drop the last incomplete batch.
        seed: seed of the permutation.
        rank, world_size: index of this process and number of processes.

    Raises:
        ValueError: an argument is out of range, or training has fewer images than one global batch.
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
                f"the data set has {counted(num_images, 'image')}, fewer than one batch of {batch_size * world_size}"
                f" (batch_size {batch_size} on {counted(world_size, 'rank')}). Lower batch_size"
            )
        self.num_images = num_images
        self.batch_size = batch_size
        self.train = train
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self._epoch = 0
        self._images_done = 0

    def seek(self, epoch: int, images_done: int = 0) -> None:
        """Set where iterations start: `images_done` images, of all ranks together, into an epoch.

        The images left do not depend on the batch sizes and the number of ranks that used those before.
        """
        self._epoch = epoch
        self._images_done = images_done

    def __len__(self) -> int:
        """Return the number of batches from the position to the end of the epoch."""
        left = self.num_images - self._images_done
        if self.train:
            return left // (self.batch_size * self.world_size)
        own = len(range(self.rank, left, self.world_size))
        return -(-own // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, size = self._epoch, self.batch_size
        order = list(range(self.num_images))
        if self.train:
            random.Random(f"{self.seed}/{epoch}").shuffle(order)
        own = order[self._images_done :][self.rank :: self.world_size]
        for start in range(0, len(self) * size, size):
            yield [(epoch, index) for index in own[start : start + size]]
