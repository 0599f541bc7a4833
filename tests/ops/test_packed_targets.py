"""`PackedTargets`: the targets of a batch in one piece, of a fixed capacity if requested."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dino_kernels.targets import NO_LABEL, PackedTargets

COUNTS = (2, 0, 3)


def image(count: int, start: int = 0, **options: Any) -> dict[str, Tensor]:
    labels = torch.arange(start, start + count)
    return {"labels": labels, "boxes": (labels[:, None] / 100 + torch.tensor([0.1, 0.2, 0.3, 0.4])).to(**options)}


def batch(*counts: int) -> list[dict[str, Tensor]]:
    return [image(count, 10 * number) for number, count in enumerate(counts)]


def contents(targets: PackedTargets) -> list[Any]:
    tensors = (targets.labels, targets.boxes_cxcywh, targets.offsets)
    return [None if tensor is None else tensor.clone() for tensor in tensors]


def assert_contents(targets: PackedTargets, expected: list[Any]) -> None:
    for got, wanted in zip(contents(targets), expected, strict=True):
        assert got is wanted is None or torch.equal(got, wanted)


def test_images_follow_each_other():
    given = batch(*COUNTS)
    packed = PackedTargets.pack(given)
    assert packed.labels.tolist() == [0, 1, 20, 21, 22]
    assert packed.offsets.tolist() == [0, 2, 2, 5]
    assert packed.boxes_cxcywh is not None
    assert torch.equal(packed.boxes_cxcywh, torch.cat([target["boxes"] for target in given]))
    assert (packed.num_images, len(packed), packed.max_targets, packed.counts) == (3, 5, 3, COUNTS)


@pytest.mark.parametrize("labels", [torch.int32, torch.uint8, torch.int64])
@pytest.mark.parametrize("boxes", [torch.float64, torch.bfloat16, torch.float32])
def test_any_dtype_becomes_int64_and_float32_without_gradient(labels, boxes):
    given = image(3, dtype=boxes)
    given["labels"] = given["labels"].to(labels)
    packed = PackedTargets.pack([{**given, "boxes": given["boxes"].requires_grad_()}])
    assert packed.labels.dtype == packed.offsets.dtype == torch.int64
    assert packed.boxes_cxcywh is not None and packed.boxes_cxcywh.dtype == torch.float32
    assert not packed.boxes_cxcywh.requires_grad
    assert torch.equal(packed.boxes_cxcywh, given["boxes"].float())


@pytest.mark.parametrize("images", [0, 1, 4])
def test_a_batch_may_be_empty(images):
    packed = PackedTargets.pack(batch(*[0] * images))
    assert (packed.num_images, len(packed), packed.max_targets) == (images, 0, 0)
    assert packed.offsets.tolist() == [0] * (images + 1)
    assert packed.boxes_cxcywh is not None and packed.boxes_cxcywh.shape == (0, 4)
    assert packed.labels.dtype == packed.image_of_each().dtype == torch.int64


def test_targets_may_have_no_boxes():
    packed = PackedTargets.pack([{"labels": torch.tensor([3, 4])}, {"labels": torch.tensor([5])}])
    assert packed.boxes_cxcywh is None
    assert packed.labels.tolist() == [3, 4, 5]


def test_other_keys_are_found_by_name():
    """As in transformers."""
    given = [{"class_labels": target["labels"], "my_boxes": target["boxes"], "area": 1} for target in batch(*COUNTS)]
    packed = PackedTargets.pack(given, label_key="class_labels", box_key="my_boxes")
    assert_contents(packed, contents(PackedTargets.pack(batch(*COUNTS))))


@pytest.mark.parametrize(
    ("target", "error", "words"),
    [
        ({"boxes": torch.zeros(1, 4)}, TypeError, ["targets[1]", "'labels'", "['boxes']", "label_key"]),
        (torch.zeros(3), TypeError, ["targets[1]", "dictionary", "Tensor"]),
        ({"labels": torch.zeros(1), "boxes": torch.zeros(1, 4)}, TypeError, ["targets[1]['labels']", "float32"]),
        ({"labels": torch.zeros(1, 1).long(), "boxes": torch.zeros(1, 4)}, TypeError, ["integers [T]", "[1, 1]"]),
        (
            {"labels": torch.ones(1).bool(), "boxes": torch.zeros(1, 4)},
            TypeError,
            ["targets[1]['labels']", "torch.bool"],
        ),
        ({"labels": [3], "boxes": torch.zeros(1, 4)}, TypeError, ["targets[1]['labels']", "list"]),
        ({"labels": torch.zeros(2).long(), "boxes": torch.zeros(3, 4)}, ValueError, ["targets[1]['boxes']", "[3, 4]"]),
        ({"labels": torch.zeros(2).long(), "boxes": torch.zeros(2, 5)}, ValueError, ["[T, 4] = [2, 4]", "[2, 5]"]),
        ({"labels": torch.zeros(1).long(), "boxes": torch.zeros(1, 4).long()}, ValueError, ["floating point", "int64"]),
        ({"labels": torch.zeros(1).long(), "boxes": None}, ValueError, ["targets[1]['boxes']", "NoneType"]),
        ({"labels": torch.zeros(1).long()}, ValueError, ["targets[1]", "'boxes'"]),
    ],
)
def test_a_malformed_target_is_named(target, error, words):
    with pytest.raises(error) as caught:
        PackedTargets.pack([image(2), target])
    assert all(word in str(caught.value) for word in words), caught.value


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("box", "advice"),
    [
        ((0.5, 0.5, -0.1, 0.2), "Correct or remove"),
        ((0.5, 0.5, 0.1, -1e-4), "Correct or remove"),
        ((320.0, 240.0, 64.0, 48.0), "(W, H, W, H)"),
        ((0.5, 0.5, 1.5, 0.1), "(W, H, W, H)"),
        ((0.5, 1.02, 0.1, 0.1), "(W, H, W, H)"),
        ((-0.02, 0.5, 0.1, 0.1), "(W, H, W, H)"),
        ((NAN, 0.5, 0.1, 0.1), "Correct or remove"),
        ((0.5, 0.5, 0.1, INF), "Correct or remove"),
        ((-INF, 0.5, 0.1, 0.1), "Correct or remove"),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_a_wrong_box_is_named_with_its_values_and_the_range(box, advice, dtype):
    wrong = {"labels": torch.arange(3), "boxes": torch.tensor([(0.5, 0.5, 0.1, 0.1), box, box], dtype=dtype)}
    for targets, place in (([wrong, image(2)], 0), ([image(2), image(0), wrong], 2)):
        message = rf"targets\[{place}\]\['boxes'\] must be .* in 0\.\.1, .* got \("
        with pytest.raises(ValueError, match=message) as caught:
            PackedTargets.pack(targets)
        assert f"({wrong['boxes'][1, 0].item():.6g}, " in str(caught.value)
        assert advice in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_what_crops_and_rounding_leave_is_a_box(dtype):
    boxes = [(1.001, -0.001, 0.3, 0.2), (0.5, 0.5, 1.001, 1.0), (0.0, 1.0, 0.0, 0.0), (0.95, 0.5, 0.4, 0.2)]
    given = torch.tensor(boxes, dtype=dtype)
    packed = PackedTargets.pack([{"labels": torch.zeros(4).long(), "boxes": given}])
    assert packed.boxes_cxcywh is not None and torch.equal(packed.boxes_cxcywh, given.float())


def test_boxes_in_another_unit_are_packed_on_request_and_must_be_finite():
    target = {"labels": torch.tensor([0]), "boxes": torch.tensor([[320.0, 240.0, 64.0, 48.0]])}
    packed = PackedTargets.pack([target], normalized=False)
    assert packed.boxes_cxcywh is not None and torch.equal(packed.boxes_cxcywh, target["boxes"])
    for wrong in (NAN, INF, 1e300, -3.0):
        boxes = torch.tensor([[320.0, 240.0, 64.0, wrong]], dtype=torch.float64)
        with pytest.raises(ValueError, match=r"targets\[0\]\['boxes'\] must be .* finite") as caught:
            PackedTargets.pack([{**target, "boxes": boxes}], normalized=False)
        assert "in 0..1" not in str(caught.value)


@pytest.mark.parametrize("label", [-1, -100])
def test_a_negative_label_is_named(label):
    targets = [image(2), {"my_labels": torch.tensor([3, label]), "boxes": torch.zeros(2, 4)}]
    targets[0] = {"my_labels": targets[0]["labels"], "boxes": targets[0]["boxes"]}
    with pytest.raises(ValueError, match=rf"targets\[1\]\['my_labels'\] must be classes, .* got {label}\."):
        PackedTargets.pack(targets, label_key="my_labels")


def test_the_largest_label_is_known_without_a_transfer():
    packed = PackedTargets.pack(batch(*COUNTS))
    assert (packed.largest_label, packed.largest_at) == (22, "targets[2]['labels']")
    packed.check_labels(23)
    for targets in (packed, packed.to("meta")):
        with pytest.raises(ValueError, match=r"^targets\[2\]\['labels'\] must be in 0\.\.2, .* 3 classes, got 22\."):
            targets.check_labels(3)
    PackedTargets.pack(batch(0, 0)).check_labels(1)
    # A fixed capacity is for other targets in each step.
    assert PackedTargets.pack(batch(*COUNTS), capacity=8).largest_label is None


def test_values_that_are_not_on_the_host_are_not_read():
    on_meta = {"labels": torch.zeros(2).long().to("meta"), "boxes": torch.zeros(2, 4, device="meta")}
    packed = PackedTargets.pack([on_meta, {key: x.to("meta") for key, x in image(3).items()}])
    assert packed.largest_label is None
    packed.check_labels(1)


@pytest.mark.parametrize("targets", [{"labels": torch.zeros(1).long()}, None, 3, torch.zeros(2, 5)])
def test_anything_but_a_list_of_targets_is_refused(targets):
    with pytest.raises(TypeError, match=r"targets must be a list with a dictionary for each image, got "):
        PackedTargets.pack(targets)


@pytest.mark.parametrize("default", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_the_default_dtype_changes_nothing(default):
    expected = [PackedTargets.pack(batch(*COUNTS)), PackedTargets.pack(batch(*COUNTS), capacity=8)]
    expected += [PackedTargets.pack(batch(0, 0)), PackedTargets.pack([]), PackedTargets.empty(2, 3)]
    given = batch(*COUNTS)
    try:
        torch.set_default_dtype(default)
        found = [PackedTargets.pack(given), PackedTargets.pack(given, capacity=8)]
        found += [
            PackedTargets.pack([image(0, dtype=torch.float32)] * 2),
            PackedTargets.pack([]),
            PackedTargets.empty(2, 3),
        ]
    finally:
        torch.set_default_dtype(torch.float32)
    for got, wanted in zip(found, expected, strict=True):
        assert_contents(got, contents(wanted))
        for one, other in zip(contents(got), contents(wanted), strict=True):
            assert one.dtype == other.dtype


def test_boxes_that_only_later_images_have_are_not_dropped():
    with pytest.raises(ValueError, match=r"targets\[1\].*boxes"):
        PackedTargets.pack([{"labels": torch.zeros(1).long()}, image(2)])


def test_targets_that_are_no_dictionaries_are_named():
    with pytest.raises(TypeError, match=r"targets\[0\] must be a dictionary"):
        PackedTargets.pack([torch.zeros(3)])  # type: ignore[list-item]


def test_a_capacity_leaves_room_at_the_end():
    packed = PackedTargets.pack(batch(*COUNTS), capacity=8, max_targets=4)
    assert packed.labels.tolist() == [0, 1, 20, 21, 22, *[NO_LABEL] * 3]
    assert packed.offsets.tolist() == [0, 2, 2, 5]
    assert packed.boxes_cxcywh is not None and (packed.boxes_cxcywh[5:] == 0).all()
    assert (len(packed), packed.max_targets, packed.counts) == (8, 4, None)
    assert PackedTargets.pack(batch(*COUNTS), capacity=8).max_targets == 8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"capacity": 4}, ["5 targets", "4"]),
        ({"capacity": 9, "max_targets": 2}, ["3 in an image", "2"]),
        ({"capacity": 4, "max_targets": 5}, ["max_targets", "0..capacity = 4", "5"]),
        ({"capacity": 4, "max_targets": -1}, ["max_targets", "-1"]),
        ({"max_targets": 5}, ["max_targets", "capacity"]),
    ],
)
def test_what_does_not_fit_a_capacity_is_refused(options, words):
    with pytest.raises(ValueError, match="PackedTargets") as caught:
        PackedTargets.pack(batch(*COUNTS), **options)
    assert all(word in str(caught.value) for word in words), caught.value


def test_copies_go_into_the_same_memory_and_leave_nothing_of_the_step_before():
    fixed = PackedTargets.empty(3, 8, max_targets=5)
    addresses = [tensor.data_ptr() for tensor in (fixed.labels, fixed.boxes_cxcywh, fixed.offsets)]  # type: ignore[union-attr]
    assert fixed.labels.tolist() == [NO_LABEL] * 8 and fixed.offsets.tolist() == [0] * 4
    for counts in ((5, 1, 2), (0, 0, 0), COUNTS, (0, 0, 1)):
        assert fixed.copy_(PackedTargets.pack(batch(*counts))) is fixed
        assert_contents(fixed, contents(PackedTargets.pack(batch(*counts), capacity=8, max_targets=5)))
    assert addresses == [tensor.data_ptr() for tensor in (fixed.labels, fixed.boxes_cxcywh, fixed.offsets)]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (PackedTargets.pack(batch(1, 1)), ["2 images", "3"]),
        (PackedTargets.pack(batch(3, 3, 3)), ["9 targets", "capacity of 8"]),
        (PackedTargets.pack(batch(0, 6, 0)), ["6 in an image", "at most 5"]),
        (PackedTargets.pack([{"labels": torch.zeros(1).long()}] * 3), ["boxes"]),
        (PackedTargets.pack(batch(1, 1, 1), capacity=8), ["without a capacity"]),
    ],
    ids=["images", "capacity", "max_targets", "boxes", "source_with_capacity"],
)
def test_a_refused_copy_changes_nothing(targets, words):
    fixed = PackedTargets.pack(batch(*COUNTS), capacity=8, max_targets=5)
    before = contents(fixed)
    with pytest.raises(ValueError, match=r"PackedTargets\.copy_") as caught:
        fixed.copy_(targets)
    assert all(word in str(caught.value) for word in words), caught.value
    assert_contents(fixed, before)


def test_only_a_fixed_capacity_can_be_copied_into():
    exact = PackedTargets.pack(batch(*COUNTS))
    with pytest.raises(ValueError, match="capacity"):
        exact.copy_(PackedTargets.pack(batch(*COUNTS)))


def test_a_capacity_without_boxes_copies_labels():
    fixed = PackedTargets.empty(2, 4, boxes=False)
    fixed.copy_(PackedTargets.pack([{"labels": torch.tensor([7])}, {"labels": torch.tensor([8, 9])}]))
    assert fixed.labels.tolist() == [7, 8, 9, NO_LABEL] and fixed.boxes_cxcywh is None


@pytest.mark.parametrize("counts", [COUNTS, (0, 0), (), (0, 4), (3, 0, 0)])
def test_every_target_knows_its_image(counts):
    expected = [number for number, count in enumerate(counts) for _ in range(count)]
    assert PackedTargets.pack(batch(*counts)).image_of_each().tolist() == expected
    # A slot that no target uses belongs to no image.
    fixed = PackedTargets.pack(batch(*counts), capacity=7)
    assert fixed.image_of_each().tolist() == expected + [len(counts)] * (7 - len(expected))


@pytest.mark.parametrize("capacity", [None, 8])
def test_to_moves_everything_and_nothing_else(capacity):
    packed = PackedTargets.pack(batch(*COUNTS), capacity=capacity)
    moved = packed.to("meta")
    assert moved.boxes_cxcywh is not None
    assert {tensor.device.type for tensor in (moved.labels, moved.boxes_cxcywh, moved.offsets)} == {"meta"}
    assert (moved.counts, moved.max_targets, moved.num_images, len(moved)) == (
        packed.counts, packed.max_targets, packed.num_images, len(packed),
    )  # fmt: skip
    assert packed.labels.device.type == "cpu"
    assert_contents(packed.to(torch.device("cpu")), contents(packed))
    without = PackedTargets.pack([{"labels": torch.zeros(1).long()}]).to("meta")
    assert without.boxes_cxcywh is None and without.labels.device.type == "meta"


def test_packed_targets_cannot_be_reassigned():
    with pytest.raises(AttributeError):
        PackedTargets.pack(batch(1)).max_targets = 9  # type: ignore[misc]
