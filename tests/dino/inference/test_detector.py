"""The Python API: accepted images, results, and models on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dino.checkpoint import CheckpointError, save_model, to_official
from dino.checkpoint.find import SIZE, find_model, load_trained
from dino.data import Categories, EvalTransform, ImageError, pad_images
from dino.inference.detector import Detector
from dino.inference.images import load_image
from dino.model.config import PRESETS, model_config
from dino.model.postprocess import postprocess
from tests.dino.tools_toys import CATEGORIES, TINY, noise_picture, same, tiny_model


def test_detections_are_those_of_the_model_in_pixels_of_the_original(detector, picture):
    found = detector.predict(picture, 0.0)
    image, _, _ = detector.transform(picture, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert image.shape[1:] == (96, 128)  # the image itself has 60x80
    images, mask = pad_images([image])
    with torch.no_grad():
        expected = postprocess(detector.model(images, mask), torch.tensor([[60, 80]]))[0]
    assert torch.equal(found.boxes_xyxy, expected["boxes"])
    assert torch.equal(found.scores, expected["scores"])
    assert torch.equal(found.labels, expected["labels"])
    assert found.size_hw == (60, 80) and len(found) == 60
    assert found.boxes_xyxy.dtype == torch.float32 and not found.boxes_xyxy.requires_grad


def test_labels_ids_and_names_belong_together(detector, picture):
    found = detector.predict(picture, 0.0)
    assert len(set(found.labels.tolist())) > 1
    for label, category_id, name in zip(found.labels.tolist(), found.category_ids, found.names, strict=True):
        assert (category_id, name) == (CATEGORIES.ids[label], CATEGORIES.names[label])


def test_the_threshold_is_the_least_score(detector, picture):
    everything = detector.predict(picture, 0.0)
    least = float(everything.scores[10])
    found = detector.predict(picture, least)
    assert len(found) == int((everything.scores >= least).sum()) >= 11
    assert (found.scores.diff() <= 0).all()
    assert len(found.names) == len(found.category_ids) == len(found.boxes_xyxy)
    assert len(detector.predict(picture, 1.0)) == 0
    assert len(detector.predict(picture, 0.0, top_k=7)) == 7


KINDS = {
    "array": np.asarray,
    "array_rgba": lambda image: np.asarray(image.convert("RGBA")),
    "array_float": lambda image: np.asarray(image, dtype=np.float64) / 255,
    "array_not_contiguous": lambda image: np.ascontiguousarray(np.asarray(image)[..., ::-1])[..., ::-1],
    "tensor": lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1),
    "tensor_float": lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255,
    "tensor_bfloat16": lambda image: (torch.from_numpy(np.array(image)).permute(2, 0, 1).double() / 255).bfloat16(),
    "pil_rgba": lambda image: image.convert("RGBA"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_gives_the_same_detections(detector, picture, kind):
    if kind == "tensor_bfloat16":  # 8 bits of precision: compare with what they leave of the image
        picture = Image.fromarray((KINDS[kind](picture).float() * 255).round().byte().permute(1, 2, 0).numpy())
    assert same(detector.predict(KINDS[kind](picture), 0.0), detector.predict(picture, 0.0))


def test_grey_is_three_equal_channels(picture):
    grey = np.asarray(picture.convert("L"))
    expected = np.repeat(grey[..., None], 3, 2)
    for given in (grey, grey[..., None], torch.from_numpy(grey.copy()), torch.from_numpy(grey.copy())[None]):
        assert np.array_equal(np.asarray(load_image(given)), expected)
    assert np.array_equal(np.asarray(load_image(picture.convert("L"))), expected)


def test_floating_point_is_rounded_to_the_nearest_of_256():
    given = np.full((4, 4, 3), 100.6 / 255)
    assert (np.asarray(load_image(given)) == 101).all()
    assert (np.asarray(load_image(torch.full((3, 4, 4), 100.4 / 255))) == 100).all()


def test_files_are_read_by_str_and_path(detector, picture, tmp_path):
    picture.save(tmp_path / "a.png")
    expected = detector.predict(picture, 0.0)
    assert same(detector.predict(tmp_path / "a.png", 0.0), expected)
    assert same(detector.predict(str(tmp_path / "a.png"), 0.0), expected)


def test_a_list_gives_a_list_in_its_order(detector):
    pictures = [noise_picture(80, 60, seed) for seed in range(3)]
    expected = [detector.predict(picture, 0.0) for picture in pictures]
    assert not same(expected[0], expected[1])
    for batch_size in (1, 2, 5):
        found = detector.predict(pictures, 0.0, batch_size=batch_size)
        assert isinstance(found, list) and len(found) == 3
        for one, alone in zip(found, expected, strict=True):
            torch.testing.assert_close(one.scores, alone.scores, rtol=1e-4, atol=1e-5)
            assert one.image is not None and one.size_hw == (60, 80)
    assert detector.predict([]) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((3, 40, 50), np.uint8), r"got \[3, 40, 50\].*transpose"),
        (np.zeros((40, 50, 2), np.uint8), "must be"),
        (np.zeros((0, 50, 3), np.uint8), "must be"),
        (np.full((40, 50, 3), 200.0), r"in 0\.\.1, got 200 to 200"),
        (np.full((40, 50, 3), np.nan), r"in 0\.\.1"),
        (np.full((40, 50, 3), -0.1), r"in 0\.\.1"),
        (torch.zeros(40, 50, 3), "a tensor must be"),
        (torch.zeros(2, 3, 40, 50), r"list\(images\)"),
        ("https://example.com/cat.jpg", "local files"),
    ],
)
def test_what_is_not_an_image_is_named(detector, given, message):
    with pytest.raises(ValueError, match=message):
        detector.predict(given)


def test_other_types_and_broken_files_are_errors(detector, tmp_path):
    with pytest.raises(TypeError, match="got int"):
        detector.predict(5)
    with pytest.raises(ImageError, match="does not exist"):
        detector.predict(tmp_path / "missing.jpg")
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(ImageError, match="cannot be read"):
        detector.predict(tmp_path / "text.jpg")


def test_to_coco_has_the_fields_of_a_result_file(detector, picture):
    found = detector.predict(picture, 0.0)
    results = found.to_coco(42)
    assert len(results) == len(found) > 0
    x0, y0, x1, y1 = found.boxes_xyxy[0].tolist()
    assert results[0]["bbox"] == pytest.approx([x0, y0, x1 - x0, y1 - y0], rel=1e-5)
    assert results[0]["image_id"] == 42 and results[0]["category_id"] == found.category_ids[0]
    assert json.loads(json.dumps(results)) == results


def test_drawing_leaves_the_image_alone_and_needs_its_size(detector, picture):
    found = detector.predict(picture, 0.0)
    before = np.array(found.image)
    drawn = found.draw()
    assert drawn.width == 800 and drawn.height >= 600 and drawn.mode == "RGB"  # small images are enlarged
    assert (np.asarray(found.image) == before).all()
    assert (np.asarray(found[:1].draw(scale=1)) != before).any()
    assert (np.asarray(found[:1].draw(scores=False)) != np.asarray(found[:1].draw())).any()
    with pytest.raises(ValueError, match="size of the original image"):
        found.draw(picture.resize((30, 30)))
    nothing = detector.predict(picture, 1.0)
    assert np.array_equal(np.asarray(nothing.draw(scale=1)), before)


def test_representations_say_what_is_there(detector, picture):
    assert "3 classes: cat, dog, a horse" in repr(detector) and "96 to 128 pixels" in repr(detector)
    found = detector.predict(picture, 0.0)
    text = repr(found)
    assert text.startswith("Detections(60 in 80x60: ") and f"best {found.scores[0]:.2f}" in text
    assert f"{found.names.count('cat')} cat" in text
    assert repr(detector.predict(picture, 1.0)) == f"Detections(0 in 80x60: nothing (best {found.scores[0]:.2f}))"


def test_the_model_is_in_evaluation_mode_whatever_it_was():
    model = tiny_model().train()
    assert not Detector(model, CATEGORIES, device="cpu").model.training
    with pytest.raises(ValueError, match="3 classes, but categories has 2"):
        Detector(model, Categories((1, 2), ("a", "b")))


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="device must be cpu, cuda"):
        Detector(tiny_model(), CATEGORIES, device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="finds no GPU"):
            Detector(tiny_model(), CATEGORIES, device="cuda")


def test_from_preset_knows_coco_names():
    detector = Detector.from_preset("dino_tiny", num_classes=91, hidden_dim=32, num_decoder_layers=1)
    assert detector.categories == Categories.official_coco()
    assert Detector.from_preset("dino_tiny", hidden_dim=32).categories.names[9] == "class 9"


# Models on disk


def test_a_saved_model_predicts_the_same(detector, picture, tmp_path):
    file = save_model(detector.model, tmp_path / "model", CATEGORIES)
    expected = detector.predict(picture, 0.0)
    for path in (tmp_path / "model", file, str(file)):
        loaded = Detector.from_checkpoint(path, short_side=96, long_side=128, device="cpu")
        assert loaded.categories == CATEGORIES
        assert same(loaded.predict(picture, 0.0), expected)


def save_run(folder: Path, places: list[str]) -> None:
    for seed, place in enumerate(places):
        save_model(tiny_model(seed=seed), folder / place, CATEGORIES, {SIZE: {"short_side": 96, "long_side": 160}})


@pytest.mark.parametrize(
    ("places", "chosen"), [(["last", "final", "best"], "best"), (["last", "final"], "final"), (["last"], "last")]
)
def test_a_run_means_its_best_model_and_its_image_size(tmp_path, places, chosen):
    save_run(tmp_path, places)
    found = load_trained(tmp_path)
    assert found.file == tmp_path / chosen / "model.safetensors"
    assert found.transform == EvalTransform(96, 160)
    (tmp_path / chosen).rename(tmp_path / "elsewhere")
    assert load_trained(tmp_path / "elsewhere").transform == EvalTransform(96, 160)
    name = "decoder.class_head.weight"
    expected = tiny_model(seed=places.index(chosen)).get_parameter(name)
    assert torch.equal(found.model.get_parameter(name), expected)


def test_sizes_given_replace_those_of_the_run(tmp_path):
    save_run(tmp_path, ["best"])
    assert Detector.from_checkpoint(tmp_path, short_side=32).transform == EvalTransform(32, 160)
    with pytest.raises(ValueError, match="long_side must be"):
        Detector.from_checkpoint(tmp_path, short_side=500)


def test_the_link_to_the_last_checkpoint_finds_the_runs_size(tmp_path):
    save_run(tmp_path, ["checkpoints/step-00000004"])
    (tmp_path / "last").symlink_to("checkpoints/step-00000004")
    assert load_trained(tmp_path / "last").transform == EvalTransform(96, 160)


def test_paths_without_a_model_say_what_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        find_model(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"looked for model\.safetensors, best/model\.safetensors"):
        find_model(tmp_path)
    save_model(tiny_model(), tmp_path / "best", CATEGORIES, {SIZE: {"side": 96}})
    with pytest.raises(CheckpointError, match="image_size is not a size"):
        load_trained(tmp_path)


def test_official_weights_need_the_name_of_their_model(monkeypatch, picture, tmp_path):
    config = model_config(TINY, num_classes=91)
    monkeypatch.setitem(PRESETS, "dino_toy", config)
    model = tiny_model(config)
    torch.save({"model": to_official(model.state_dict(), aliases=True)}, tmp_path / "official.pth")
    with pytest.raises(CheckpointError, match="without a configuration"):
        Detector.from_checkpoint(tmp_path / "official.pth")
    loaded = Detector.from_checkpoint(tmp_path / "official.pth", preset="dino_toy", device="cpu")
    assert loaded.categories == Categories.official_coco() and loaded.transform == EvalTransform(800, 1333)
    ours = Detector(model, Categories.official_coco(), transform=EvalTransform(96, 128), device="cpu")
    loaded.transform = EvalTransform(96, 128)
    assert same(loaded.predict(picture, 0.0), ours.predict(picture, 0.0))
