"""Samples depend on (seed, epoch, index) alone, and unreadable images neither stop a run nor pass unnoticed."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dino.data import (
    Categories,
    CocoDataset,
    CocoIndex,
    DatasetError,
    EvalTransform,
    ImageError,
    TrainTransform,
    normalise,
)
from tests.dino.data.data_examples import document, numbered_split, write_split

SMALL = TrainTransform(short_sides=(24, 32, 40), long_side=64, crop_short_sides=(28, 32), crop_size=(16, 28))


def dataset(folder: Path, *, train: bool = True, seed: int = 0, strict: bool = False) -> CocoDataset:
    index = CocoIndex.load(folder / "_annotations.coco.json", folder)
    transform = SMALL if train else EvalTransform(32, 64)
    return CocoDataset(index, index.categories, transform, train=train, seed=seed, strict=strict)


def test_a_sample_is_the_image_and_its_target(tmp_path: Path) -> None:
    write_split(tmp_path)
    index = CocoIndex.load(tmp_path / "_annotations.coco.json", tmp_path)
    data = CocoDataset(index, index.categories, EvalTransform(48, 100), train=False)
    image, target = data[1]
    assert image is not None
    assert set(target) == {"image_id", "size_hw", "boxes", "labels"}
    assert target["image_id"] == 12 and isinstance(target["image_id"], int)
    assert target["size_hw"].tolist() == [48, 64] and target["size_hw"].dtype == torch.int64
    # 64x48 is not resized at short side 48. Corners [3, 9, 23, 14] and [50, 30, 64, 48]; the crowd is not a target.
    expected = torch.tensor([[13 / 64, 11.5 / 48, 20 / 64, 5 / 48], [57 / 64, 39 / 48, 14 / 64, 18 / 48]])
    assert torch.allclose(target["boxes"], expected, atol=1e-6)
    assert target["labels"].tolist() == [0, 0] and target["labels"].dtype == torch.int64
    assert torch.equal(image, normalise(Image.open(tmp_path / "cat.jpg").convert("RGB")))


def test_images_without_boxes_have_empty_targets(tmp_path: Path) -> None:
    write_split(tmp_path)
    image, target = dataset(tmp_path)[2]
    assert image is not None
    assert target["boxes"].shape == (0, 4) and target["boxes"].dtype == torch.float32
    assert target["labels"].shape == (0,) and target["labels"].dtype == torch.int64


def test_original_size_is_reported_whatever_the_augmentation(tmp_path: Path) -> None:
    write_split(tmp_path)
    data = dataset(tmp_path)
    for epoch in range(5):
        assert data[epoch, 0][1]["size_hw"].tolist() == [70, 50]


def test_samples_depend_on_seed_epoch_and_index_alone(tmp_path: Path) -> None:
    numbered_split(tmp_path, 4)
    data, again = dataset(tmp_path, seed=3), dataset(tmp_path, seed=3)
    forwards = [data[5, i][0] for i in range(4)]
    backwards = [again[5, i][0] for i in reversed(range(4))][::-1]
    for a, b in zip(forwards, backwards, strict=True):
        assert a is not None and b is not None
        assert torch.equal(a, b)
    first = data[1][0]
    assert first is not None and torch.equal(first, data[0, 1][0])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("changed", ["seed", "epoch"])
def test_another_seed_or_epoch_augments_differently(changed: str, tmp_path: Path) -> None:
    numbered_split(tmp_path, 6)
    data = dataset(tmp_path, seed=3)
    other = dataset(tmp_path, seed=4) if changed == "seed" else data
    epoch = 1 if changed == "epoch" else 0
    assert any(data[0, i][0].shape != other[epoch, i][0].shape for i in range(6))  # pyright: ignore


def test_labels_follow_the_given_categories(tmp_path: Path) -> None:
    write_split(tmp_path)
    index = CocoIndex.load(tmp_path / "_annotations.coco.json", tmp_path)
    official = CocoDataset(index, Categories.official_coco(), SMALL, train=False)
    assert official[0, 0][1]["labels"].tolist() == [18]
    swapped = CocoDataset(index, Categories((18, 17), ("dog", "cat")), SMALL, train=False)
    assert swapped[0, 0][1]["labels"].tolist() == [0]


def test_a_category_that_the_model_lacks_is_an_error_before_the_first_step(tmp_path: Path) -> None:
    write_split(tmp_path)
    index = CocoIndex.load(tmp_path / "_annotations.coco.json", tmp_path)
    with pytest.raises(DatasetError, match=r"have category ids 17, but the model's categories are 18"):
        CocoDataset(index, Categories((18,), ("dog",)), SMALL, train=True)


@pytest.mark.parametrize("position", [-1, 3])
def test_an_index_out_of_range_is_named(position: int, tmp_path: Path) -> None:
    write_split(tmp_path)
    with pytest.raises(IndexError, match=rf"index must be one of 0\.\.2, got {position}"):
        dataset(tmp_path)[position]


def test_iterating_over_the_dataset_ends(tmp_path: Path) -> None:
    write_split(tmp_path)
    assert [target["image_id"] for _, target in dataset(tmp_path)] == [3, 12, 700]


def test_training_replaces_an_unreadable_image_by_the_next_readable_one(tmp_path: Path) -> None:
    numbered_split(tmp_path, 6)
    (tmp_path / "4.png").write_bytes(b"garbage")
    (tmp_path / "5.png").write_bytes((tmp_path / "5.png").read_bytes()[:60])
    data = dataset(tmp_path)
    image, target = data[2, 4]
    assert image is not None
    assert target["image_id"] == 1000  # past the end it continues at the beginning
    assert len(target["problems"]) == 2
    assert "4.png (image 1004): cannot be read as an image" in target["problems"][0]
    assert "5.png (image 1005): cannot be read as an image" in target["problems"][1]
    assert torch.equal(image, data[2, 4][0])  # pyright: ignore[reportArgumentType]
    assert "problems" not in data[2, 3][1]


def test_evaluation_leaves_an_unreadable_image_out(tmp_path: Path) -> None:
    numbered_split(tmp_path, 3)
    (tmp_path / "1.png").unlink()
    (tmp_path / "1.png").touch()
    image, target = dataset(tmp_path, train=False)[1]
    assert image is None
    assert target["image_id"] == 1001
    assert "1.png (image 1001): cannot be read as an image" in target["problems"][0]


@pytest.mark.parametrize("train", [True, False])
def test_strict_raises_on_an_unreadable_image(train: bool, tmp_path: Path) -> None:
    numbered_split(tmp_path, 3)
    (tmp_path / "1.png").write_bytes(b"garbage")
    data = dataset(tmp_path, train=train, strict=True)
    assert data[0][0] is not None
    with pytest.raises(ImageError, match=r"1\.png \(image 1001\)"):
        data[1]


def test_an_image_of_another_size_than_stated_is_not_trained_on(tmp_path: Path) -> None:
    content = document()
    write_split(tmp_path, content)
    Image.new("RGB", (48, 64)).save(tmp_path / "cat.jpg")
    _, target = dataset(tmp_path)[1]
    assert target["image_id"] == 700
    assert "has 48x64 pixels, but the annotation file states 64x48" in target["problems"][0]


@pytest.mark.parametrize("count", [3, 40])
def test_a_folder_that_became_unreadable_ends_the_run(count: int, tmp_path: Path) -> None:
    numbered_split(tmp_path, count)
    data = dataset(tmp_path)
    for k in range(count):
        (tmp_path / f"{k}.png").unlink()
    with pytest.raises(
        DatasetError, match=rf"{min(count, 20)} images in a row cannot be read, .*the file does not exist"
    ):
        data[0]


def test_training_decodes_large_photographs_smaller_and_changes_pixels_only(tmp_path: Path) -> None:
    image = {"id": 1, "file_name": "large.jpg", "width": 322, "height": 241}
    boxes = [{"id": 1, "image_id": 1, "category_id": 17, "bbox": [30.5, 40, 200, 150]}]
    write_split(tmp_path, document() | {"images": [image], "annotations": boxes})
    smooth = Image.open(tmp_path / "large.jpg").resize((12, 9)).resize((322, 241), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "large.jpg", quality=95)
    reduced, whole = dataset(tmp_path), dataset(tmp_path)
    whole.transform = dataclasses.replace(SMALL, reduced_decoding=False)
    for epoch in range(30):
        (image, target), (expected, truth) = reduced[epoch, 0], whole[epoch, 0]
        assert image is not None and expected is not None and image.shape == expected.shape
        assert torch.equal(target["boxes"], truth["boxes"]) and torch.equal(target["labels"], truth["labels"])
        assert 0 < (image - expected).abs().mean() < 0.05


def test_a_transform_of_ones_own_and_evaluation_get_whole_images(tmp_path: Path) -> None:
    write_split(tmp_path)
    sizes = []

    def transform(image: Image.Image, boxes: torch.Tensor, labels: torch.Tensor, rng: random.Random) -> Any:
        sizes.append(image.size)
        return normalise(image), boxes, labels

    data = dataset(tmp_path)
    data.transform = transform  # type: ignore[assignment]
    assert data[1][0] is not None and sizes == [(64, 48)]
    assert not hasattr(EvalTransform, "first_size")


@given(st.tuples(st.integers(30, 2000), st.integers(30, 2000)), st.integers(0, 99), st.sampled_from([None, 0.0, 1.0]))
def test_the_first_size_is_that_of_the_first_resize(size_wh: tuple[int, int], seed: int, crops: float | None) -> None:
    transform = SMALL if crops is None else dataclasses.replace(SMALL, crop_probability=crops)
    with mock.patch.object(Image.Image, "resize", autospec=True, side_effect=Image.Image.resize) as resize:
        transform(Image.new("RGB", size_wh), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), random.Random(seed))
    assert resize.call_args_list[0].args[1] == transform.first_size(size_wh, random.Random(seed))
