"""One rule of orientation: an image is read alike through every door, and boxes lie on the objects."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dino import commands
from dino.commands.visualize import find_annotated
from dino.data import Categories, CocoDataset, CocoIndex, EvalTransform, build_loader, denormalise, open_image
from dino.evaluation.coco_metrics import score
from dino.evaluation.evaluate import predict_results
from dino.inference.detector import Detector
from dino.inference.draw import draw_detections
from dino.model.config import model_config
from dino.model.outputs import DetectionOutput

WIDTH, HEIGHT = 96, 64
BOX = [8.0, 6.0, 40.0, 26.0]  # in stored pixels, in one corner
ORIENTATIONS = range(1, 9)
FORMATS = ("jpg", "png", "tif", "webp")


class FindsRed(nn.Module):
    """A model that detects the red rectangle of an image."""

    config = model_config("dino_tiny", num_classes=1)

    def forward(self, images: Tensor, mask: Tensor) -> DetectionOutput:
        boxes = []
        for image in images:
            pixels = torch.from_numpy(denormalise(image)).int()
            rows, columns = ((pixels[..., 0] > 150) & (pixels[..., 1] < 90)).nonzero().unbind(-1)
            corners = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
            corners /= torch.tensor([image.shape[2], image.shape[1]] * 2)
            boxes.append(torch.cat([(corners[:2] + corners[2:]) / 2, corners[2:] - corners[:2]]))
        return DetectionOutput(torch.full((1, len(images), 1, 1), 3.0), torch.stack(boxes)[None, :, None])


def stored(path: Path, orientation: int) -> Path:
    pixels = np.full((HEIGHT, WIDTH, 3), 110, np.uint8)
    pixels[6:26, 8:40] = (230, 20, 20)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif, quality=97)
    return path


def upright_box(orientation: int) -> list[float]:
    """The box in the pixels of the upright image."""
    x0, y0, x1, y1 = BOX
    if orientation in (2, 3, 7, 8):
        x0, x1 = WIDTH - x1, WIDTH - x0
    if orientation in (3, 4, 6, 7):
        y0, y1 = HEIGHT - y1, HEIGHT - y0
    return [y0, x0, y1, x1] if orientation > 4 else [x0, y0, x1, y1]


@pytest.fixture(scope="module")
def detector():
    return Detector(FindsRed(), Categories((7,), ("red",)), transform=EvalTransform(64, 96), device="cpu")  # type: ignore[arg-type]


@pytest.fixture(params=["stored", "upright"])
def meaning(request):
    return request.param


def annotated(folder: Path, meaning: str, kind: str = "jpg") -> Path:
    """A COCO file of all orientations, with boxes in stored pixels, or in upright pixels where the size shows it."""
    images, annotations = [], []
    for k in ORIENTATIONS:
        stored(folder / f"{k}.{kind}", k)
        turned = meaning == "upright" and k > 4
        size = (HEIGHT, WIDTH) if turned else (WIDTH, HEIGHT)
        x0, y0, x1, y1 = upright_box(k) if turned else BOX
        images.append({"id": k, "file_name": f"{k}.{kind}", "width": size[0], "height": size[1]})
        annotations.append({"id": k, "image_id": k, "category_id": 7, "bbox": [x0, y0, x1 - x0, y1 - y0]})
    document = {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "red"}]}
    (folder / "coco.json").write_text(json.dumps(document))
    return folder / "coco.json"


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_path_and_pil_image_are_upright_alike(detector, tmp_path, orientation, kind):
    path = stored(tmp_path / f"a.{kind}", orientation)
    loaded = Image.open(path)
    loaded.load()
    doors = {
        "path": detector.predict(path),
        "pil": detector.predict(Image.open(path)),
        "pil, loaded": detector.predict(loaded),
        "call": detector(str(path)),
        "folder": next(iter(detector(tmp_path))),
        "list": detector.predict([path])[0],
        "opened": detector.predict(open_image(path)),
    }
    for name, found in doors.items():
        assert found.boxes_xyxy[0].tolist() == pytest.approx(upright_box(orientation), abs=1.5), name
        assert found.size_hw == ((WIDTH, HEIGHT) if orientation > 4 else (HEIGHT, WIDTH))
    drawn = doors["path"].draw(Image.open(path), scale=1, width=1)
    assert np.array_equal(np.asarray(drawn), np.asarray(doors["path"].draw(scale=1, width=1)))


@pytest.mark.parametrize("kind", FORMATS)
def test_evaluate_and_predict_with_annotations_score_alike(detector, tmp_path, monkeypatch, meaning, kind):
    file = annotated(tmp_path, meaning, kind)
    index = CocoIndex.load(file, tmp_path)
    dataset = CocoDataset(index, detector.categories, detector.transform, train=False)
    loader = build_loader(dataset, 1, train=False, workers=0)
    results, ids = predict_results(detector.model, loader, detector.categories, device="cpu", progress=False)
    assert score(results, ids, file).AP > 0.99
    monkeypatch.setattr(Detector, "from_checkpoint", classmethod(lambda cls, *args, **kwargs: detector))
    out = tmp_path / "out"
    arguments = ["--checkpoint", "x", f"{tmp_path}/*.{kind}", "--annotations", file, "--output", out]
    assert commands.main(["predict", *map(str, arguments), "--no-pictures"]) == 0
    assert score(json.loads((out / "predictions.json").read_text()), ids, file).AP > 0.99


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_predict_without_annotations_is_upright(detector, tmp_path, monkeypatch, orientation):
    stored(tmp_path / "a.jpg", orientation)
    monkeypatch.setattr(Detector, "from_checkpoint", classmethod(lambda cls, *args, **kwargs: detector))
    arguments = ["--checkpoint", "x", tmp_path / "a.jpg", "--output", tmp_path / "out"]
    assert commands.main(["predict", *map(str, arguments)]) == 0
    x0, y0, x1, y1 = upright_box(orientation)
    (result,) = json.loads((tmp_path / "out/predictions.json").read_text())
    assert result["bbox"] == pytest.approx([x0, y0, x1 - x0, y1 - y0], abs=1.5)


@pytest.mark.parametrize("kind", FORMATS)
def test_visualize_draws_the_truth_on_the_objects(detector, tmp_path, meaning, kind):
    file = annotated(tmp_path, meaning, kind)
    for k in ORIENTATIONS:
        path = tmp_path / f"{k}.{kind}"
        found = find_annotated(file, path)
        image = np.asarray(open_image(path, size_wh=found.size_wh)).astype(int)
        boxes, labels = found.true_boxes(detector.categories)
        x0, y0, x1, y1 = boxes[0].round().int().tolist()
        inside = image[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2]
        assert labels.tolist() == [0] and (inside[..., 0] > 150).all() and (inside[..., 1] < 90).all(), k


def test_a_damaged_orientation_is_none(tmp_path):
    path = stored(tmp_path / "a.jpg", 6)
    content = path.read_bytes()
    start = content.index(b"Exif\0\0")
    path.write_bytes(content[: start + 6] + b"XX" + content[start + 8 :])
    assert open_image(path).size == (WIDTH, HEIGHT)


def test_drawing_another_image_follows_the_rule_too(detector, tmp_path):
    path = stored(tmp_path / "a.png", 3)
    found = detector.predict(path)
    plain = draw_detections(open_image(path), found.boxes_xyxy.tolist(), [0], ["red"], [found.scores[0].item()])
    assert np.array_equal(np.asarray(found.draw(path)), np.asarray(plain))
