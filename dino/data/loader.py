"""Batches, and the loader that makes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dino.data.coco.problems import DatasetError
from dino.data.dataset import CocoDataset
from dino.data.images import ImageError
from dino.data.sampler import ResumableSampler
from dino.data.workers import end_workers, prepare_worker, started
from dino_kernels import PackedTargets

CAPACITY = 100
"""Least number of boxes per image for which a fixed capacity has room; an image of COCO has at most 93."""
_TENSORS = ("images", "mask", "sizes_hw")


@dataclass
class Batch:
    """Images padded to one size, with their ground truth."""

    images: Tensor  # [B, 3, H, W] float32, zero on padding, which is at the right and at the bottom
    mask: Tensor  # [B, H, W] bool, True on padding
    targets: PackedTargets  # boxes cxcywh in 0..1 of the augmented images, and labels
    image_ids: list[int]  # [B] as in the annotation file
    sizes_hw: Tensor  # [B, 2] int64, height and width of the original images
    num_boxes: int  # of all images; targets with a fixed capacity do not tell
    problems: list[str] = field(default_factory=list)
    """Images that could not be read, each with its file and id."""

    def __len__(self) -> int:
        return len(self.image_ids)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Return the batch with its tensors on another device."""
        moved = {name: getattr(self, name).to(device, non_blocking=non_blocking) for name in _TENSORS}
        return dataclasses.replace(self, targets=self.targets.to(device), **moved)

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory of the batch, which another stream allocated, until this one no longer needs it."""
        packed = self.targets
        of_targets = [packed.labels, packed.offsets, *([] if packed.boxes_cxcywh is None else [packed.boxes_cxcywh])]
        for tensor in (*(getattr(self, name) for name in _TENSORS), *of_targets):
            tensor.record_stream(stream)

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, from which copies to a GPU can overlap with its work."""
        pinned = {name: getattr(self, name).pin_memory() for name in _TENSORS}
        return dataclasses.replace(self, targets=self.targets.pin_memory(), **pinned)


def to_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield batches on a device. To a GPU they are copied on a stream of their own, while it runs the step before."""
    if device.type != "cuda":
        yield from (batch.to(device) for batch in batches)
        return
    copies = torch.cuda.Stream(device)
    for batch in batches:
        with torch.cuda.stream(copies):
            moved = batch.to(device, non_blocking=True)
        work = torch.cuda.current_stream(device)
        work.wait_stream(copies)
        moved.record_stream(work)
        yield moved


def pad_images(images: Sequence[Tensor], multiple: int = 1) -> tuple[Tensor, Tensor]:
    """Return images [3, h, w] padded to one size, [B, 3, H, W], and the mask of the padding, [B, H, W] bool.

    Args:
        images: the images.
        multiple: H and W are multiples of this.
    """
    height, width = (-(-max((image.shape[i] for image in images), default=0) // multiple) * multiple for i in (1, 2))
    padded = torch.zeros(len(images), 3, height, width, dtype=torch.float32)
    mask = torch.ones(len(images), height, width, dtype=torch.bool)
    for k, image in enumerate(images):
        padded[k, :, : image.shape[1], : image.shape[2]] = image
        mask[k, : image.shape[1], : image.shape[2]] = False
    return padded, mask


def with_capacity(targets: PackedTargets) -> PackedTargets:
    """Return the targets with a fixed capacity: 100 boxes an image, doubled until those of every image fit."""
    room = CAPACITY
    while room < targets.max_targets:
        room *= 2
    return PackedTargets.empty(targets.num_images, room * targets.num_images, max_targets=room).copy_(targets)


def collate(
    samples: Sequence[tuple[Tensor | None, dict[str, Any]]], *, pad_to: int = 1, fixed_capacity: bool = False
) -> Batch:
    """Return a batch of samples of `CocoDataset`; those without an image are left out, and their problems kept.

    A batch of nothing has images [0, 3, 0, 0].

    Args:
        samples: images and targets.
        pad_to: height and width are padded to multiples of this number of pixels.
        fixed_capacity: give the targets a fixed capacity, so that shapes do not depend on the number of boxes.
    """
    problems = [problem for _, target in samples for problem in target.get("problems", ())]
    read = [(image, target) for image, target in samples if image is not None]
    targets = PackedTargets.pack([target for _, target in read])
    return Batch(
        *pad_images([image for image, _ in read], pad_to),
        with_capacity(targets) if fixed_capacity else targets,
        [target["image_id"] for _, target in read],
        torch.cat([torch.zeros(0, 2, dtype=torch.int64), *(target["size_hw"][None] for _, target in read)]),
        len(targets),
        problems,
    )


class LoaderError(RuntimeError):
    """A process that loads images has ended."""


class Loader:
    """Iterates over batches; `batches` starts at any image of any epoch.

    A batch without a readable image is not yielded. Its processes end with `close`, at the end of a `with` block, and
    with this process, however that ends.

    Attributes:
        problems: images that could not be read so far, each with its file and id.
    """

    def __init__(
        self,
        dataset: CocoDataset,
        sampler: ResumableSampler,
        *,
        workers: int,
        pin_memory: bool,
        collate: Callable[..., Batch] = collate,
    ) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self.problems: list[str] = []
        self._loader = DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=prepare_worker,
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
        """Yield the batches of an epoch that follow its first `images_done` images, of all ranks together.

        Raises:
            ImageError: an image cannot be read, and the data set is strict.
            DatasetError: too many images in a row cannot be read.
            LoaderError: a worker has ended.
        """
        self.sampler.seek(epoch, images_done)
        try:
            iterator = iter(self._loader)
            started(self, self._loader)
            for batch in iterator:
                self.problems += batch.problems
                if len(batch) > 0:
                    yield batch
        except (ImageError, DatasetError) as error:
            raise _without_traceback(error) from None
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise LoaderError(
                f"a process that loads images has ended: {str(error).splitlines()[0]} The machine may be out of "
                "memory, or of shared memory (/dev/shm). Pass fewer --workers; 0 loads the images in this process"
            ) from error

    def close(self) -> None:
        """End the processes of the loader. A later iteration starts new ones."""
        end_workers(self._loader)

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _without_traceback(error: ImageError | DatasetError) -> ImageError | DatasetError:
    """Return the error as it was raised in a worker, whose traceback the DataLoader puts before its message."""
    kind = type(error)
    _, found, message = str(error).rpartition(f"\n{kind.__module__}.{kind.__qualname__}: ")
    return kind(message.rstrip()) if found else error


def build_loader(
    dataset: CocoDataset,
    batch_size: int,
    *,
    train: bool,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
    pad_to: int = 1,
    fixed_capacity: bool = False,
) -> Loader:
    """Build a loader of the batches of one rank.

    Args:
        batch_size: images of a batch on this rank.
        train: shuffle, and drop incomplete batches; otherwise all images in order.
        workers: processes that prepare batches; 0 prepares them in this process. The batches are the same.
        rank, world_size: index of this process and number of processes.
        pin_memory: return page-locked tensors, for copies to a GPU.
        pad_to, fixed_capacity: as in `collate`.

    Raises:
        ValueError: an argument is out of range, or training has fewer images than one global batch.
    """
    if workers < 0:
        raise ValueError(f"workers must be at least 0, got {workers}")
    sampler = ResumableSampler(
        len(dataset), batch_size, train=train, seed=dataset.seed, rank=rank, world_size=world_size
    )
    batched = partial(collate, pad_to=pad_to, fixed_capacity=fixed_capacity)
    return Loader(dataset, sampler, workers=workers, pin_memory=pin_memory, collate=batched)
