"""Arguments of the Python API: what they do, and that wrong ones are errors in words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dino.checkpoint import CheckpointError, save_model
from dino.checkpoint.find import SIZE
from dino.data import EvalTransform
from dino.inference.detector import Detector
from dino.model.config import PRESETS, model_config
from tests.dino.tools_toys import CATEGORIES, TINY, noise_picture, same, tiny_detector, tiny_model

# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": "0.3"}, r"threshold must be a number in 0\.\.1 or .best., got '0\.3'"),
        ({"threshold": float("nan")}, r"threshold must be a number in 0\.\.1 or .best., got nan"),
        ({"threshold": None}, r"threshold must be a number in 0\.\.1 or .best., got None"),
        ({"threshold": True}, r"threshold must be a number in 0\.\.1 or .best., got True"),
        ({"threshold": 30}, r"threshold must be a number in 0\.\.1 or .best., got 30"),
        ({"threshold": -0.1}, r"threshold must be a number in 0\.\.1 or .best., got -0\.1"),
        ({"threshold": [0.3]}, r"threshold must be a number in 0\.\.1 or .best., got \[0\.3\]"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"batch_size": 1.0}, "batch_size must be an integer of at least 1, got 1.0"),
        ({"top_k": "5"}, "top_k must be an integer of at least 1, got '5'"),
        ({"top_k": None}, "top_k must be an integer"),
        ({"tile": 8}, "tile must be an integer of at least 16, got 8"),
        ({"tile": "640"}, "tile must be an integer"),
        ({"overlap": 1}, r"overlap must be a number in 0\.05\.\.0\.8, got 1"),
        ({"nms": 50}, r"nms must be a number in 0\.\.1, got 50"),
        ({"classes": ["dgo"]}, "no class 'dgo'. Perhaps you meant 'dog'. Its classes are cat, dog, a horse"),
        ({"classes": []}, "classes must be names"),
        ({"classes": [3]}, "classes must be names"),
        ({"threshhold": 0.9}, "predict has no argument 'threshhold'. Perhaps you meant 'threshold'"),
        ({"iou": 0.9}, "predict has no argument 'iou'"),
    ],
)
def test_wrong_options_are_errors_in_words(detector, picture, options, message):
    for call in (detector.predict, detector):
        with pytest.raises(ValueError, match=message):
            call(picture, **options)


@pytest.mark.parametrize("threshold", [0, 1, 0.5, np.float32(0.5), torch.tensor(0.5)])
def test_numbers_of_every_kind_are_thresholds(detector, picture, threshold):
    assert same(detector.predict(picture, threshold), detector.predict(picture, float(threshold)))


def test_classes_are_selected_before_the_best_are_taken(detector, picture):
    everything = detector.predict(picture, 0.0)
    dogs = detector.predict(picture, 0.0, classes=["dog"])
    assert set(dogs.names) == {"dog"} and same(dogs, everything[everything.labels == 1])
    assert len(detector.predict(picture, 0.0, classes="dog", top_k=3)) == 3
    both = detector.predict(picture, 0.0, classes=["cat", "dog"])
    assert same(both, everything[everything.labels <= 1]) and both.best_score == float(both.scores[0])


def test_the_best_score_is_known_where_nothing_is_found(detector, picture):
    everything = detector.predict(picture, 0.0)
    for options in ({}, {"tile": 640}):
        nothing = detector.predict(picture, 1.0, **options)
        assert len(nothing) == 0 and nothing.best_score == float(everything.scores[0])
    assert detector.predict(picture, 1.0, tile=32).best_score > 0


def test_suppression_is_optional(detector, picture):
    everything = detector.predict(picture, 0.0)
    suppressed = detector.predict(picture, 0.0, nms=0.3)
    assert 0 < len(suppressed) < len(everything) and same(detector.predict(picture, 0.0, nms=1.0), everything)


def test_one_tile_is_the_image(detector, picture):
    assert same(detector.predict(picture, 0.0, tile=80), detector.predict(picture, 0.0))


def test_tiles_find_what_each_of_them_shows(detector):
    large = noise_picture(200, 100)
    found = detector.predict(large, 0.01, tile=100, overlap=0.2, batch_size=2)
    parts = [detector.predict(large.crop((x, 0, x + 100, 100)), 0.01) for x in (0, 50, 100)]
    assert max(map(len, parts)) <= len(found) <= sum(map(len, parts)) and found.size_hw == (100, 200)
    assert float(found.scores[0]) == pytest.approx(max(float(part.scores[0]) for part in parts), abs=1e-4)
    assert (found.scores.diff() <= 0).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_output_that_is_not_finite_is_an_error_in_words(picture, value):
    broken = tiny_detector()
    with torch.no_grad():
        broken.model.get_parameter("decoder.class_head.weight")[0, 0] = value
    with pytest.raises(ValueError, match=r"not finite.*decoder\.class_head\.weight"):
        broken.predict(picture, 0.0)


def test_a_wrong_model_or_dtype_is_an_error_in_words():
    with pytest.raises(TypeError, match=r"must be a DINO, got str.*from_checkpoint"):
        Detector("runs/mine", CATEGORIES)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"dtype must be one of .*, got 'fp8'"):
        Detector(tiny_model(), CATEGORIES, dtype="fp8")  # type: ignore[arg-type]


# Arguments of from_checkpoint


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    save_model(tiny_model(), folder / "best", CATEGORIES, {SIZE: {"short_side": 96, "long_side": 160}})
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shortside": 32}, "from_checkpoint has no argument 'shortside'. Perhaps you meant 'short_side'"),
        ({"threshhold": 0.9}, "from_checkpoint has no argument 'threshhold'"),
        ({"num_query": 5}, "no argument 'num_query'. Perhaps you meant 'num_queries'"),
        ({"num_queries": 5}, "contradicts the arguments: num_queries is 20, not 5"),
        ({"num_classes": 2}, "contradicts the arguments: num_classes is 3, not 2"),
        (
            {"preset": "dino_4scale_r50"},
            "contradicts preset 'dino_4scale_r50': backbone is 'resnet_tiny', not 'resnet50'",
        ),
        ({"preset": "dino_4scale_r5"}, "preset must be one of .*perhaps you meant 'dino_4scale_r50'"),
        ({"short_side": "32"}, "from_checkpoint: short_side must be an integer of at least 1, got '32'"),
        ({"long_side": 0}, "from_checkpoint: long_side must be an integer of at least 1, got 0"),
        ({"dtype": "half"}, "dtype must be one of"),
        ({"device": "gpu"}, "device must be cpu, cuda"),
    ],
)
def test_arguments_that_mean_nothing_or_contradict_the_file_are_refused(run, arguments: dict[str, Any], message):
    with pytest.raises(ValueError, match=message):
        Detector.from_checkpoint(run, **arguments)


def test_arguments_that_agree_with_the_file_leave_its_names_and_sizes(monkeypatch, run):
    monkeypatch.setitem(PRESETS, "dino_toy", model_config(TINY, num_classes=91, num_denoising=7))
    agreeing: list[dict[str, Any]] = [
        {"preset": "dino_toy"},
        {"preset": "dino_toy", "num_classes": 3},
        {"num_queries": 20, "pretrained_backbone": False, "backbone_levels": list(TINY.backbone_levels)},
    ]
    for arguments in agreeing:
        loaded = Detector.from_checkpoint(run, **arguments)
        assert loaded.categories == CATEGORIES and loaded.transform == EvalTransform(96, 160)


@pytest.mark.parametrize("name", ["x.py", "x.json", "x.jpg"])
def test_a_file_that_holds_no_weights_is_named(tmp_path, name):
    (tmp_path / name).write_text("import os")
    with pytest.raises(CheckpointError, match=rf"{name}: not a file of weights\. Expected \.safetensors"):
        Detector.from_checkpoint(tmp_path / name)
    with pytest.raises(TypeError, match="checkpoint must be a path, got int"):
        Detector.from_checkpoint(5)  # type: ignore[arg-type]
