"""The claims' experiment in small: statistics, the order and the end of the runs, what is measured, the figures."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import ttest_rel

import dino
from benchmarks.claims import __main__ as command
from benchmarks.claims import backbone, claims, figures, recipe
from benchmarks.claims.gradients import look_forward_numbers
from benchmarks.claims.pictures import corner_moves
from benchmarks.claims.probe import measure, on_objects, probe
from benchmarks.claims.run import LOGGED, finished, output_of, run
from benchmarks.measure.results import write_json
from dino.checkpoint import save_model
from dino.commands.demo.digits import make_digits_dataset
from dino.commands.visualize import kept_checkpoints
from dino.data import Batch, Datasets, EvalTransform, build_datasets, build_loader
from dino.model.config import ModelConfig
from dino.visualize.gradients import box_loss_gradients

ALL_CLAIMS = [claim for topic in claims.CLAIMS.values() for claim in topic]
SMALL: dict[str, Any] = {"hidden_dim": 32, "ffn_dim": 32, "num_queries": 12, "num_heads": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Datasets:
    config = dataclasses.replace(recipe.CROWD, train_images=8, valid_images=6)
    folder = make_digits_dataset(tmp_path_factory.mktemp("claims") / "data", config)
    return build_datasets(folder, eval_transform=EvalTransform(recipe.IMAGE_SIZE, recipe.IMAGE_SIZE))


@pytest.fixture(scope="module")
def batch(data: Datasets) -> Batch:
    assert data.valid is not None
    return next(iter(build_loader(data.valid, 6, train=False)))


def model_of(**fields: Any) -> dino.DINO:
    torch.manual_seed(0)
    config: ModelConfig = dataclasses.replace(recipe.VARIANTS["DINO"].model, **SMALL | fields)
    return dino.build_model(config).eval()


def test_crowded_digits_overlap_as_much_as_allowed(data: Datasets) -> None:
    assert data.layout.train is not None
    document = json.loads(data.layout.train.annotations.read_text())
    shares = []
    by_image: dict[int, list[list[int]]] = {}
    for annotation in document["annotations"]:
        by_image.setdefault(annotation["image_id"], []).append(annotation["bbox"])
    for boxes in by_image.values():
        assert recipe.CROWD.min_digits <= len(boxes) <= recipe.CROWD.max_digits
        for i, (x, y, w, h) in enumerate(boxes):
            for left, top, width, height in boxes[:i]:
                common = max(0, min(x + w, left + width) - max(x, left)) * max(
                    0, min(y + h, top + height) - max(y, top)
                )
                shares.append(common / min(w * h, width * height))
    assert 0.1 < max(shares) <= recipe.CROWD.overlap


@pytest.mark.parametrize("name", recipe.VARIANTS)
def test_a_variant_is_a_model(name: str) -> None:
    assert recipe.VARIANTS[name].model.num_classes == 10


def test_every_claim_names_variants() -> None:
    assert {claim.variant for claim in ALL_CLAIMS} <= set(recipe.VARIANTS)
    assert {claim.against for claim in ALL_CLAIMS} <= {None, *recipe.VARIANTS}


def test_intervals_are_those_of_a_paired_t_test() -> None:
    torch.manual_seed(1)
    first, second = torch.rand(5).tolist(), torch.rand(5).tolist()
    middle, half = claims.interval([a - b for a, b in zip(first, second, strict=True)])
    expected = ttest_rel(first, second).confidence_interval(0.95)
    assert (middle - half, middle + half) == pytest.approx((expected.low, expected.high))
    assert math.isnan(claims.interval([1.0])[1])


def runs_of(**aps: list[float]) -> list[dict[str, Any]]:
    return [
        {"variant": variant.replace("_", " "), "seed": seed, "history": [{"AP": value}]}
        for variant, values in aps.items()
        for seed, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("other", "verdict"), [([0.4, 0.41, 0.42], "shown"), ([0.6, 0.61, 0.62], "contradicted"), ([0.4, 0.6, 0.5], "open")]
)
def test_a_claim_is_decided_by_the_seeds_that_both_variants_have(other: list[float], verdict: str) -> None:
    claim = next(c for c in ALL_CLAIMS if c.value is claims.AP and c.against == "no denoising")
    effect = claims.effect(claim, runs_of(DINO=[0.5, 0.512, 0.52, 0.9], no_denoising=other))
    assert effect is not None
    assert effect.seeds == 3
    assert effect.verdict(claim.sign) == verdict
    assert claims.effect(claim, runs_of(DINO=[0.5])) is None


def test_a_detection_on_an_object_has_its_class_and_half_its_box(batch: Batch) -> None:
    truth = batch.targets
    assert truth.boxes_cxcywh is not None
    first = truth.boxes_cxcywh[0]
    corner, size = first[:2] - first[2:] / 2, first[2:]
    box = torch.cat([corner, corner + size]) * recipe.IMAGE_SIZE
    label = truth.labels[0]
    boxes = torch.stack([box, box, box + 100, box])
    labels = torch.stack([label, label, label, (label + 1) % 10])
    detections = [{"boxes": boxes, "labels": labels, "scores": torch.tensor([0.9, 0.8, 0.7, 0.6])}]
    nothing = {"boxes": torch.empty(0, 4), "labels": torch.empty(0, dtype=torch.int64), "scores": torch.empty(0)}
    scores, overlap, index = next(on_objects(detections + [nothing] * 5, batch))
    assert scores.tolist() == pytest.approx([0.9, 0.8])
    assert overlap.tolist() == pytest.approx([1, 1], abs=1e-4)
    assert index.tolist() == [0, 0]


@pytest.mark.parametrize("selection", ["mixed", "static"])
def test_measurements_at_two_checkpoints(selection: str, data: Datasets, tmp_path: Path) -> None:
    model = model_of(query_selection=selection)
    for step in (1, 2):
        save_model(model, tmp_path / f"step-{step:08d}", data.categories)
    first, second = probe(sorted(tmp_path.iterdir()), data)
    assert (first["step"], second["step"]) == (1, 2)
    assert first["instability"] is None
    assert second["instability"] == 0  # the same weights
    assert first["layer_iou"] == second["layer_iou"]
    assert len(first["layer_iou"]) == 1 + model.config.num_decoder_layers
    selection_heads: Any = model.query_selection
    with torch.no_grad():
        if selection == "static":
            selection_heads.anchors.weight.add_(1)
        else:
            selection_heads.class_head.weight.neg_()
    changed, query = measure(model, data)
    assert changed["ATD"] != first["ATD"]
    assert len(query) > 6


def test_gradients_of_looking_forward(batch: Batch) -> None:
    model = model_of()
    head: Any = model.decoder.box_head
    torch.nn.init.normal_(head.layers[-1].weight, std=0.1)  # it starts at zero: no gradient would pass
    found = look_forward_numbers(model, batch)
    assert [len(values) for values in found.values()] == [2, 2, 2, 2]
    assert min(found["own"] + found["content"] + found["box"]) > 0
    once, twice = box_loss_gradients(model, batch.images, batch.mask, batch.targets)
    for layer in range(2):
        torch.testing.assert_close(once[layer][layer], twice[layer][layer])  # its own loss: the same path
        difference = twice[layer][layer + 1] - once[layer][layer + 1]
        assert found["box"][layer] == pytest.approx(difference.norm().item(), rel=1e-4)
    assert len(once) == 3  # the last layer has no next one


def test_a_run_is_trained_measured_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    crowd = dataclasses.replace(recipe.CROWD, train_images=8, valid_images=4)
    monkeypatch.setattr(recipe, "CROWD", crowd)
    monkeypatch.setattr(recipe, "BACKBONE_IMAGES", 4)
    monkeypatch.setattr(backbone, "STEPS", 2)
    monkeypatch.setattr(backbone, "BATCH", 4)
    tiny = {name: dataclasses.replace(variant, epochs=2) for name, variant in recipe.VARIANTS.items()}
    monkeypatch.setattr(recipe, "VARIANTS", tiny)
    monkeypatch.setattr("benchmarks.claims.run.VARIANTS", tiny)
    assert run("DINO", 1, tmp_path) == 0
    (row,) = finished(tmp_path)
    assert (row["variant"], row["seed"], row["steps"]) == ("DINO", 1, 4)
    assert [entry["step"] for entry in row["history"]] == [2, 4]
    assert set(row["history"][-1]["training"]) == set(LOGGED)
    assert not kept_checkpoints(output_of(tmp_path, "DINO", 1))
    # A run of the results file is not repeated, nor is one of the output folder.
    place = tmp_path / "results"
    slug = command.machine.slug(command.machine.describe("cpu"))
    write_json(place / slug / claims.FILE_NAME, {"runs": [row | {"seed": 2}]})
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)  # the folder's name has their number
    monkeypatch.setattr(command, "RESULTS", place)
    monkeypatch.setattr(command, "measure_groups", lambda folder: [])
    arguments = ["claims", "--output", str(tmp_path), "--variants", "DINO", "--seeds", "1", "2", "--publish"]
    monkeypatch.setattr(sys, "argv", arguments)
    capsys.readouterr()
    assert command.main() == 0
    said = capsys.readouterr().out
    assert "making data" not in said
    assert re.search(r"^DINO +2 +4 ", said, re.MULTILINE)
    document = {"runs": [row, row | {"seed": 2}], "groups": [], "machine": command.machine.describe("cpu")}
    assert claims.runs_table(document)[1][:3] == ["DINO", "2", "4"]
    assert [line[0] for line in claims.table(document)[1:]] == [
        c.statement for c in ALL_CLAIMS if c.against is None and c.variant == "DINO"
    ]


def test_runs_are_ordered_by_turn_then_seed() -> None:
    jobs = command.jobs_of(["DINO", "12 groups", "varifocal"], [0, 1])
    assert jobs == [("DINO", 0), ("varifocal", 0), ("DINO", 1), ("varifocal", 1), ("12 groups", 0), ("12 groups", 1)]


def test_failed_runs_are_reported_and_the_others_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "prepare", lambda folder: None)
    monkeypatch.setattr(command, "command_of", lambda job, folder: [sys.executable, "-c", "print('why'); exit(3)"])
    assert command.train_missing([("DINO", 0), ("varifocal", 1)], 2, tmp_path)
    text = capsys.readouterr().out
    assert "[2/2]" in text
    assert text.count("exit code 3, see") == 2
    assert (output_of(tmp_path, "varifocal", 1) / "output.txt").read_text() == "why\n"


PARENT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # the shell of a background job has it ignored
from pathlib import Path
from benchmarks.claims import __main__ as command
command.command_of = lambda job, folder: [sys.executable, "-c",
    "import os, time; open(r'{0}/pid' + str(os.getpid()), 'w').close(); time.sleep(60)"]
list(command.run_all([("DINO", 0), ("DINO", 1)], 2, Path(r"{0}")))
"""


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_ends_its_runs(signal_number: int, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", PARENT.format(tmp_path)], stderr=subprocess.DEVNULL)
    while len(started := list(tmp_path.glob("pid*"))) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal_number)
    assert process.wait(30) != 0
    for path in started:
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.name.removeprefix("pid")), 0)


def test_corners_of_positives_move_by_less_than_those_of_negatives(batch: Batch) -> None:
    positives, negatives = (moves.abs() for moves in corner_moves(batch))
    assert len(positives) > 50 and len(negatives) > 50
    assert positives.max() < 1.001
    assert 1.9 < negatives.max() < 2.001
    # All but those of boxes turned inside out, whose size becomes nearly zero.
    assert (negatives > 0.999).float().mean() > 0.7


def test_every_figure_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    torch.manual_seed(0)

    def row(step: int) -> dict[str, Any]:
        names = ("AP", "AP50", "AP75", "AP_nms_0.7", "AP_nms_0.5", "duplicates", "score_iou", "ATD", "instability")
        values: dict[str, Any] = dict(zip(names, torch.rand(9).tolist(), strict=True)) | {"step": step}
        gradients = {name: torch.rand(2).tolist() for name in ("own", "content", "box", "cosine")}
        training = dict.fromkeys(LOGGED, 0.5)
        return values | {"layer_iou": torch.rand(4).tolist(), "gradients": gradients, "training": training}

    runs = [
        {"variant": name, "seed": seed, "steps": 2, "history": [row(1), row(2)]}
        for name in recipe.VARIANTS
        for seed in (0, 1)
    ]
    document = {"runs": runs, "machine": command.machine.describe("cpu")}
    drawn = figures.draw_all(document, tmp_path)
    assert [path.name for path in drawn] == [f"claims-{name}.png" for name in figures.FIGURES]
    assert all(path.stat().st_size > 10_000 for path in drawn)
    assert len(claims.table(document)) == 1 + len(ALL_CLAIMS)
