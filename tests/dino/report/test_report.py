"""The page of an evaluation holds everything, needs nothing else, and is right for odd data."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dino.data import CocoIndex
from dino.evaluation.analysis import Analysis, analyse
from dino.evaluation.coco_metrics import score
from dino.evaluation.errors import Kind
from dino.report.page import Subject
from dino.report.pictures import KIND_COLOURS, SIDE, draw_found, draw_truth
from dino.report.write import write_report
from tests.dino.evaluation.analysis_toys import Results, document, results, scene

FILES = ["confusions.csv", "f1.svg", "precision_recall.svg", "report.html", "report.json", "worst_images.jpg"]


class Page(HTMLParser):
    """The text, the elements and the sources of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.elements: list[str] = []
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def report(folder: Path, truth: dict[str, Any], found: Results, **subject: Any) -> tuple[Page, Analysis, Path]:
    """Write grey images for a document, and the report of results on them."""
    images = folder / "images"
    images.mkdir()
    for image in truth["images"]:
        Image.new("RGB", (image["width"], image["height"]), (90, 90, 90)).save(images / image["file_name"])
    (folder / "truth.json").write_text(json.dumps(truth))
    index = CocoIndex.load(folder / "truth.json", images)
    ids = index.image_ids.tolist()
    analysis = analyse(found, ids, index.ground_truth())
    described = Subject("runs/a", "DATA (valid)", len(ids), **subject)
    out = folder / "out"
    names = write_report(out, described, score(found, ids, index.ground_truth()), analysis, index)
    assert sorted(names) == sorted(file.name for file in out.iterdir())
    return Page((out / "report.html").read_text(encoding="utf-8")), analysis, out


def test_one_page_holds_everything_and_loads_nothing(tmp_path):
    truth, found = scene(0)
    page, analysis, out = report(
        tmp_path, truth, found, left_out=("x.png: broken",), predict="dino predict X", thresholds_file="t.json"
    )
    assert sorted(file.name for file in out.iterdir()) == FILES
    assert page.sources and all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    assert page.elements.count("svg") == 2 and not {"link", "iframe", "object"} & set(page.elements)
    source = (out / "report.html").read_text()
    assert set(re.findall(r"https?://[^\"']+", source)) == {"http://www.w3.org/2000/svg"}
    for words in ("Left out: 1 of 12 images", "x.png: broken", "dino predict X", "t.json", "What goes wrong"):
        assert words in page.text, words
    for result in analysis.classes:
        assert result.title in page.text and f"{result.point.threshold:g}" in page.text
    shown = len(analysis.errors.worst)
    assert page.elements.count("img") == 2 * shown > 0 and f"{shown} of 12 images have errors" in page.text
    numbers = json.loads((out / "report.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert [c["best_threshold"] for c in numbers["classes"]] == [r.curve.best.threshold for r in analysis.classes]  # type: ignore[union-attr]
    assert sum(numbers["errors"].values()) == sum(r.num_errors for r in analysis.classes)
    rows = (out / "confusions.csv").read_text().splitlines()
    assert rows[0] == "true,detected,boxes"
    assert sum(int(row.rpartition(",")[2]) for row in rows[1:]) == analysis.errors.confusions.total()


BOX = [10.0, 10, 40, 40]


@pytest.mark.parametrize(
    ("truth", "found", "words"),
    [
        (document([], {1: "cat"}), [], "These images have no true boxes"),
        (document([], {1: "cat"}), [(0, 1, BOX, 0.9)], "1 of 1 image has errors"),
        (document([(0, 1, BOX)], {1: "cat"}), [], "No detection is right at any threshold"),
        (document([(0, 1, BOX)], {1: "cat"}), [(0, 1, BOX, 0.9)], "Nothing: every true box is found"),
        (document([(0, 1, BOX)], {1: "cat", 2: "dog"}), [], "so without AP: dog."),
        (document([(0, 1, [9, 9, 0, 9])], {1: "cat"}), [], "1 true box without width or height can only be missed"),
        (document([(0, 1, [*BOX, 1])], {1: "cat"}), [(0, 1, BOX, 0.9)], "no true boxes"),
        (document([(0, 1, BOX)], {1: "<script>alert(1)</script>"}), [], "<script>alert(1)</script>"),
        (document([(0, 1, BOX)], {1: "Löwe 猫 ёж é"}), [], "missed: Löwe 猫 ёж é"),
        (document([(0, 1, BOX)], {1: "half \ud83d"}), [], r"missed: half \ud83d"),
        (document([(0, 1, BOX)], {1: "$title"}), [], "missed: $title"),
        (document([(0, 1, BOX), (0, 2, BOX)], {1: "car", 2: "car"}), [], "missed: car (id 2)"),
        (document([(0, k, BOX) for k in range(400)], {k: f"c{k}" for k in range(400)}), [], "24 classes with most"),
    ],
    ids=["nothing", "no boxes", "no detections", "no errors", "absent class", "no width", "only a crowd", "markup",
         "non-Latin", "half a character", "template", "one name", "400 classes"],
)  # fmt: skip
def test_odd_data_have_a_page(tmp_path, truth, found, words):
    page, _, out = report(tmp_path, truth, results(found))
    assert words in page.text
    assert page.elements.count("script") == 1
    assert (out / "report.html").stat().st_size < 2_000_000


def test_many_classes_and_boxes_stay_small(tmp_path):
    truth, found = scene(1, images=40, classes=400)
    page, _, out = report(tmp_path, truth, found)
    assert (out / "report.html").stat().st_size < 5_000_000
    assert page.elements.count("polyline") < 2 * 400 + 3


@pytest.mark.parametrize("size", [(1, 1), (3000, 2), (2, 3000), (4000, 3000), (64, 48)])
def test_pictures_of_any_size_are_drawn_to_be_seen(tmp_path, size):
    truth = document([(0, 1, [0, 0, *size])], {1: "cat"})
    truth["images"][0].update(width=size[0], height=size[1])
    _, analysis, _ = report(tmp_path, truth, [])
    drawn = draw_truth(Image.new("RGB", size), analysis.errors.worst[0], analysis.categories.titles)
    assert min(drawn.size) >= 96 and max(drawn.size) <= SIDE


def test_errors_are_marked_in_their_colours():
    truth = document([(0, 1, [0, 0, 90, 40]), (0, 1, [100, 50, 90, 40])], {1: "cat"})
    found = results([(0, 1, [0.0, 0, 90, 40], 0.9), (0, 1, [0.0, 50, 60, 40], 0.9)])
    analysis = analyse(found, [0], truth)
    (picture,), titles = analysis.errors.worst, analysis.categories.titles
    image = Image.new("RGB", (200, 100))
    true, detected = (
        {c for _, c in f(image, picture, titles).getcolors(1 << 20) or ()} for f in (draw_truth, draw_found)
    )
    right, missed = KIND_COLOURS[Kind.FOUND], KIND_COLOURS[Kind.MISSED]
    assert {right, missed} <= true and {right, missed, KIND_COLOURS[Kind.FALSE_ALARM]} <= detected


def test_an_image_that_vanished_keeps_its_place(tmp_path):
    truth = document([(0, 1, BOX)], {1: "cat"})
    _, analysis, out = report(tmp_path, truth, [])
    index = CocoIndex.load(tmp_path / "truth.json", tmp_path / "images")
    (tmp_path / "images" / "0.png").unlink()
    names = write_report(out, Subject("m", "d", 1), score([], [0], truth), analysis, index)
    assert "worst_images.jpg" not in names and not (out / "worst_images.jpg").exists()
    page = Page((out / "report.html").read_text())
    assert "This image could not be read." in page.text and "missed: cat" in page.text
