"""Batches are the same for any number of workers, and a resumed epoch continues with the images that are left."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dino.data import (
    Batch,
    CocoDataset,
    CocoIndex,
    EvalTransform,
    ImageError,
    Loader,
    ResumableSampler,
    TrainTransform,
    build_loader,
    collate,
)
from tests.dino.data.data_examples import numbered_split

SMALL = TrainTransform(short_sides=(24, 32, 40), long_side=64, crop_short_sides=(28, 32), crop_size=(16, 28))
SIZES = {
    "count": st.integers(1, 60),
    "batch": st.integers(1, 7),
    "world": st.integers(1, 5),
    "seed": st.integers(0, 99),
}


def samplers(count: int, batch: int, world: int, *, train: bool, seed: int = 0) -> list[ResumableSampler]:
    return [ResumableSampler(count, batch, train=train, seed=seed, rank=r, world_size=world) for r in range(world)]


@given(**SIZES)
def test_evaluation_shards_hold_each_image_once(count: int, batch: int, world: int, seed: int) -> None:
    seen: Counter[int] = Counter()
    for rank, sampler in enumerate(samplers(count, batch, world, train=False, seed=seed)):
        batches = list(sampler)
        assert len(batches) == len(sampler)
        indices = [index for one in batches for _, index in one]
        assert indices == list(range(rank, count, world))
        assert all(len(one) == batch for one in batches[:-1])
        seen.update(indices)
    assert seen == Counter(range(count))


@given(**SIZES, epoch=st.integers(0, 3))
def test_training_ranks_share_one_permutation(count: int, batch: int, world: int, seed: int, epoch: int) -> None:
    if count < batch * world:
        with pytest.raises(ValueError, match=rf"has {count} images?, fewer than one batch of {batch * world}"):
            samplers(count, batch, world, train=True)
        return
    shards = samplers(count, batch, world, train=True, seed=seed)
    for sampler in shards:
        sampler.seek(epoch)
    per_rank = [list(sampler) for sampler in shards]
    assert {len(batches) for batches in per_rank} == {count // (batch * world)}
    assert all(len(one) == batch and {e for e, _ in one} == {epoch} for batches in per_rank for one in batches)
    indices = [index for batches in per_rank for one in batches for _, index in one]
    assert len(set(indices)) == len(indices) == count // (batch * world) * batch * world
    # The same images are in the k-th global batch however many ranks share it.
    alone = ResumableSampler(count, batch * world, train=True, seed=seed)
    alone.seek(epoch)
    for k, whole in enumerate(alone):
        assert sorted(whole) == sorted(key for batches in per_rank for key in batches[k])


@given(
    **SIZES, epoch=st.integers(0, 3), steps=st.integers(0, 60), other_batch=st.integers(1, 7), others=st.integers(1, 5)
)
def test_an_epoch_continued_with_other_batches_and_ranks_has_each_image_once(
    count: int, batch: int, world: int, seed: int, epoch: int, steps: int, other_batch: int, others: int
) -> None:
    """However many images were used, and by whom, the rest of the permutation follows."""
    if count < max(batch * world, other_batch * others):
        return
    whole = ResumableSampler(count, count, train=True, seed=seed)
    whole.seek(epoch)
    (order,) = whole
    first = samplers(count, batch, world, train=True, seed=seed)
    second = samplers(count, other_batch, others, train=True, seed=seed)
    done = min(steps, count // (batch * world)) * batch * world
    for sampler in first:
        sampler.seek(epoch)
    for sampler in second:
        sampler.seek(epoch, done)
    used = [key for sampler in first for one in itertools.islice(sampler, done // (batch * world)) for key in one]
    rest = [key for sampler in second for one in sampler for key in one]
    assert len(used) == done and {len(sampler) for sampler in second} == {(count - done) // (other_batch * others)}
    assert len(rest) == len(second[0]) * other_batch * others
    assert len({*used, *rest}) == len(used) + len(rest)
    assert {*used, *rest} == set(order[: len(used) + len(rest)])


def test_epochs_and_seeds_shuffle_differently() -> None:
    orders = set()
    for seed in range(3):
        for epoch in range(3):
            sampler = ResumableSampler(50, 50, train=True, seed=seed)
            sampler.seek(epoch)
            orders.add(tuple(index for _, index in next(iter(sampler))))
    assert len(orders) == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"rank": 2, "world_size": 2}, r"rank must be one of 0\.\.1, got 2"),
    ],
)
def test_impossible_samplers_are_named(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResumableSampler(10, **({"batch_size": 1} | arguments), train=True)


def sample(height: int, width: int, image_id: int) -> tuple[torch.Tensor, dict]:
    target = {
        "image_id": image_id,
        "size_hw": torch.tensor([height * 2, width * 2]),
        "boxes": torch.rand(2, 4),
        "labels": torch.tensor([0, 1]),
    }
    return torch.randn(3, height, width), target


def test_collate_pads_right_and_below_and_masks_the_padding() -> None:
    samples = [sample(4, 7, 1), sample(6, 5, 2)]
    batch = collate(samples)
    assert batch.images.shape == (2, 3, 6, 7) and batch.mask.shape == (2, 6, 7) and batch.mask.dtype == torch.bool
    for k, (image, _) in enumerate(samples):
        height, width = image.shape[1:]
        assert torch.equal(batch.images[k, :, :height, :width], image)
        assert not batch.mask[k, :height, :width].any()
        assert batch.mask[k].sum() == 42 - height * width
        assert (batch.images[k][:, batch.mask[k]] == 0).all()
    for name, packed in (("boxes", batch.targets.boxes_cxcywh), ("labels", batch.targets.labels)):
        assert packed is not None and torch.equal(packed, torch.cat([target[name] for _, target in samples]))
    assert batch.targets.counts == (2, 2) and batch.image_ids == [1, 2] and len(batch) == 2
    assert batch.sizes_hw.tolist() == [[8, 14], [12, 10]]
    assert batch.problems == []


def test_collate_keeps_problems_and_leaves_out_missing_images() -> None:
    image, target = sample(4, 7, 1)
    batch = collate([(None, {"image_id": 9, "problems": ["nine"]}), (image, {**target, "problems": ["one", "two"]})])
    assert batch.problems == ["nine", "one", "two"]
    assert batch.image_ids == [1] and batch.targets.num_images == 1
    assert torch.equal(batch.images[0], image)


def test_collate_of_nothing_is_an_empty_batch() -> None:
    batch = collate([(None, {"image_id": 9, "problems": ["nine"]})])
    assert len(batch) == batch.targets.num_images == 0 and batch.problems == ["nine"]
    assert batch.images.shape[:2] == (0, 3) and batch.sizes_hw.shape == (0, 2)


def test_to_moves_every_tensor_and_keeps_the_rest() -> None:
    batch = collate([(sample(4, 7, 1)[0], {**sample(4, 7, 1)[1], "problems": ["one"]})])
    moved = batch.to("meta")
    assert moved.images.is_meta and moved.mask.is_meta
    assert moved.sizes_hw.is_meta and moved.targets.labels.is_meta and moved.targets.offsets.is_meta
    assert moved.image_ids == [1] and moved.problems == ["one"]
    assert not batch.images.is_meta and not batch.targets.labels.is_meta


def make_loader(folder: Path, batch_size: int = 2, *, train: bool = True, strict: bool = False, **options) -> Loader:
    index = CocoIndex.load(folder / "_annotations.coco.json", folder)
    transform = SMALL if train else EvalTransform(32, 64)
    data = CocoDataset(index, index.categories, transform, train=train, seed=11, strict=strict)
    return build_loader(data, batch_size, train=train, **options)


def assert_same(one: Batch, other: Batch) -> None:
    assert torch.equal(one.images, other.images) and torch.equal(one.mask, other.mask)
    assert one.image_ids == other.image_ids and one.problems == other.problems
    assert one.targets.counts == other.targets.counts and torch.equal(one.targets.labels, other.targets.labels)
    assert one.targets.boxes_cxcywh is not None and other.targets.boxes_cxcywh is not None
    assert torch.equal(one.targets.boxes_cxcywh, other.targets.boxes_cxcywh)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_batches_are_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    numbered_split(tmp_path, 9)
    (tmp_path / "4.png").write_bytes(b"garbage")
    alone, shared = make_loader(tmp_path), make_loader(tmp_path, workers=2)
    images = []
    for epoch in range(3):  # the same workers load all three
        batches, others = list(alone.batches(epoch)), list(shared.batches(epoch))
        assert len(batches) == len(others) == len(alone) == 4
        for one, other in zip(batches, others, strict=True):
            assert_same(one, other)
        images.append(batches[0].images)
    assert not any(a.shape == b.shape and torch.equal(a, b) for a, b in itertools.pairwise(images))
    assert alone.problems == shared.problems and "4.png (image 1004)" in alone.problems[0]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("done", [0, 1, 3])
def test_a_loader_continues_with_the_next_batch(done: int, workers: int, tmp_path: Path) -> None:
    numbered_split(tmp_path, 9)
    loader, expected = make_loader(tmp_path, workers=workers), list(make_loader(tmp_path).batches(1))
    for _, batch in zip(range(done), loader.batches(1), strict=False):  # left in the middle, as by a signal
        assert len(batch) == 2
    rest = list(loader.batches(1, images_done=2 * done))
    assert len(rest) == len(expected) - done == 4 - done
    for one, other in zip(expected[done:], rest, strict=True):
        assert_same(one, other)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1])
def test_iterating_leaves_the_global_random_state_alone(workers: int, tmp_path: Path) -> None:
    numbered_split(tmp_path, 4)
    loader = make_loader(tmp_path, workers=workers)
    before = torch.get_rng_state()
    assert len(list(loader)) == 2
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_evaluation_skips_unreadable_images_every_time(batch_size: int, tmp_path: Path) -> None:
    numbered_split(tmp_path, 5)
    for name in ("0.png", "4.png"):
        (tmp_path / name).write_bytes(b"garbage")
    loader = make_loader(tmp_path, batch_size, train=False)
    for _ in range(2):
        batches = list(loader)
        assert [image_id for batch in batches for image_id in batch.image_ids] == [1001, 1002, 1003]
        assert all(len(batch) > 0 for batch in batches)
    assert ["0.png" in problem for problem in loader.problems] == [True, False] * 2
    assert ["4.png" in problem for problem in loader.problems] == [False, True] * 2
    assert len(loader) == -(-5 // batch_size)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1])
def test_strict_reaches_the_caller_from_workers(workers: int, tmp_path: Path) -> None:
    numbered_split(tmp_path, 4)
    (tmp_path / "2.png").write_bytes(b"garbage")
    with pytest.raises(ImageError, match=r"2\.png \(image 1002\)"):
        list(make_loader(tmp_path, strict=True, workers=workers))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a CUDA device")
def test_pinned_batches_are_page_locked(tmp_path: Path) -> None:
    numbered_split(tmp_path, 4)
    for batch in make_loader(tmp_path, pin_memory=True):
        tensors = (batch.images, batch.mask, batch.sizes_hw, batch.targets.labels, batch.targets.boxes_cxcywh)
        assert all(tensor is not None and tensor.is_pinned() for tensor in tensors)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_ignore_a_signal_to_the_process_group(number: signal.Signals, tmp_path: Path) -> None:
    numbered_split(tmp_path, 8)
    loader = make_loader(tmp_path, workers=1)
    batches = iter(loader)
    next(batches)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid or 0, number)
    assert len(list(batches)) == len(loader) - 1
