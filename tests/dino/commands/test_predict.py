"""`python -m dino predict`: what is written and printed, whatever happens on the way."""

from __future__ import annotations

import errno
import json

import pytest

from dino import commands
from dino.checkpoint import save_model
from dino.inference.detector import Detector
from tests.dino.tools_toys import CATEGORIES, noise_picture, tiny_model


@pytest.fixture
def album(tmp_path, monkeypatch):
    """Two folders with images of one name, and a model; the working directory."""
    size = {"image_size": {"short_side": 64, "long_side": 96}}
    save_model(tiny_model(), tmp_path / "run" / "best", CATEGORIES, size)
    for folder, seed in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        noise_picture(seed=seed).save(tmp_path / folder / "x.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def predict(*arguments):
    return commands.main(["predict", "--checkpoint", "run", "--device", "cpu", "--output", "out", *map(str, arguments)])


def written(folder):
    return [json.loads((folder / "out" / name).read_text()) for name in ("predictions.json", "images.json")]


def test_every_result_leads_back_to_one_input(album, capsys):
    assert predict("a/x.jpg", "b", "--threshold", 0, "--top-k", 3) == 0
    results, images = written(album)
    assert [image["file_name"] for image in images] == ["a/x.jpg", "b/x.jpg"]
    assert [image["picture"] for image in images] == ["x.jpg", "x-2.jpg"]
    assert all((album / "out/pictures" / image["picture"]).is_file() for image in images)
    detector = Detector.from_checkpoint(album / "run", device="cpu")
    for image in images:
        expected = detector.predict(image["file_name"], 0.0, top_k=3).to_coco(image["id"])
        assert [result for result in results if result["image_id"] == image["id"]] == expected
    assert "6 detections in 2 images" in capsys.readouterr().out


def test_counts_are_grammatical_and_nothing_names_the_best(album, capsys):
    assert predict("a/x.jpg", "--threshold", 0, "--top-k", 1, "--no-pictures") == 0
    assert "1 detection in 1 image\n" in capsys.readouterr().out
    assert predict("a/x.jpg", "b/x.jpg", "--threshold", 1) == 0
    detector = Detector.from_checkpoint(album / "run", device="cpu")
    best = max((float(detector.predict(path, 0.0).scores[0]), path) for path in ("a/x.jpg", "b/x.jpg"))
    text = capsys.readouterr().out
    assert "0 detections in 2 images\n" in text
    assert f"the best score is {best[0]:.3f}, in {best[1]}; the threshold is 1\n" in text
    assert written(album)[0] == []


def test_options_reach_the_detector(album):
    options = ["--tile", 40, "--overlap", 0.3, "--nms", 0.5, "--classes", "dog", "a horse", "--threshold", 0]
    assert predict("a/x.jpg", *options) == 0
    detector = Detector.from_checkpoint(album / "run", device="cpu")
    expected = detector.predict("a/x.jpg", 0.0, tile=40, overlap=0.3, nms=0.5, classes=["dog", "a horse"])
    assert written(album)[0] == expected.to_coco(1) and {7, 40} >= {r["category_id"] for r in written(album)[0]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["a", "--threshold", "30"], "error: predict: threshold must be a number in 0..1"),
        (["a", "--classes", "dgo"], "error: predict: the model has no class 'dgo'. Perhaps you meant 'dog'"),
        (["a", "--tile", "3"], "error: predict: tile must be an integer of at least 16"),
        (["a", "--every", "0"], "error: predict: --every must be at least 1"),
        (["a", "--font", "a/x.jpg"], "error: font must be a TrueType file"),
        (["https://example.com/a.jpg"], "error: https://example.com/a.jpg: images must be local files"),
        (["rtsp://host/live"], "error: rtsp://host/live: videos, cameras and streams need OpenCV"),
        (["0"], "error: 0: videos, cameras and streams need OpenCV"),
    ],
)
def test_wrong_options_end_before_anything_is_written(album, capsys, monkeypatch, options, message):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    (album / "out").mkdir()
    (album / "out" / "predictions.json").write_text("[7]")
    assert predict(*options) == 2
    assert capsys.readouterr().err.startswith(message)
    assert (album / "out/predictions.json").read_text() == "[7]" and len(list((album / "out").iterdir())) == 1


def test_broken_images_are_named_once_and_counted(album, capsys):
    for k in range(25):
        (album / "a" / f"broken{k:02}.jpg").write_text("broken")
    assert predict("a", "b") == 1
    text = capsys.readouterr().err
    assert text.count("left out: a/broken00.jpg: cannot be read") == 1
    assert text.count("left out: ") == 20 and "\nand 5 more\n25 of 27 files could not be read\n" in text
    assert len(written(album)[1]) == 2


def test_a_picture_that_cannot_be_written_is_named_and_the_results_are_kept(album, capsys):
    (album / "out/pictures/x.jpg").mkdir(parents=True)
    assert predict("a", "b", "--threshold", 0) == 1
    text = capsys.readouterr().err
    assert "no picture: out/pictures/x.jpg: cannot be written" in text and "1 picture could not be written" in text
    results, images = written(album)
    assert {result["image_id"] for result in results} == {1, 2}
    assert ["picture" in image for image in images] == [False, True]


class Stop:
    """Ends the run at the second image."""

    def __init__(self, error):
        self.error, self.count, self.detect = error, 0, Detector.detect

    def __call__(self, detector, *arguments):
        self.count += 1
        if self.count == 2:
            raise self.error
        return self.detect(detector, *arguments)


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyboardInterrupt(), 130), (OSError(errno.ENOSPC, "No space left on device", "x"), 2), (MemoryError(), None)],
    ids=["Ctrl-C", "full disk", "out of memory"],
)
def test_what_was_predicted_is_kept_whatever_ends_the_run(album, capsys, monkeypatch, error, code):
    stop = Stop(error)
    monkeypatch.setattr(Detector, "detect", lambda *arguments: stop(*arguments))
    if code is None:
        with pytest.raises(MemoryError):
            predict("a", "b", "--threshold", 0)
    else:
        assert predict("a", "b", "--threshold", 0) == code
    results, images = written(album)
    assert {result["image_id"] for result in results} == {1} and [image["id"] for image in images] == [1]
    assert "in 1 image\nwrote predictions.json, images.json and pictures/ to out" in capsys.readouterr().out


def test_a_model_that_is_not_finite_is_one_line(album, capsys):
    import torch

    model = tiny_model()
    with torch.no_grad():
        model.decoder.class_head.get_parameter("bias")[0] = float("nan")
    save_model(model, album / "run" / "best", CATEGORIES)
    assert predict("a", "--threshold", 0) == 2
    captured = capsys.readouterr()
    assert "decoder.class_head.bias" in captured.err and captured.out == ""


def test_letters_that_no_font_has_are_said_once(album, capsys):
    from dino.data import Categories

    odd = Categories((1, 2, 3), ("cat", "d\u00f6g", "\U000e1234"))
    save_model(tiny_model(), album / "run" / "best", odd, {"image_size": {"short_side": 64, "long_side": 96}})
    assert predict("a", "b", "--threshold", 0) == 0
    assert capsys.readouterr().err.count("no font of this system has the letters") == 1
