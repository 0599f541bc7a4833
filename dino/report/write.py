"""Write the files of an evaluation."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dino.common.files import write_text_whole, write_whole
from dino.common.text import counted
from dino.data import CocoIndex, ImageError, open_image
from dino.evaluation.analysis import Analysis
from dino.evaluation.coco_metrics import CocoMetrics
from dino.evaluation.errors import ERRORS, Picture
from dino.report.charts import line_chart
from dino.report.page import Card, Subject, charts, page
from dino.report.pictures import data_uri, describe, draw_found, draw_truth, error_counts, heading, sheet

REPORT_FILE = "report.html"


def write_report(
    folder: Path, subject: Subject, metrics: CocoMetrics, analysis: Analysis, index: CocoIndex
) -> list[str]:
    """Write the report of an evaluation into a folder, replacing an older one.

    - `report.html`: everything, in one file;
    - `report.json`: the numbers; `confusions.csv`: true class, detected class, boxes;
    - `precision_recall.svg`, `f1.svg`, `worst_images.jpg`, which the page holds, too.

    Args:
        folder: created if it does not exist.
        index: the annotations, for the files of the worst images.

    Returns:
        The names of the files.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "report.json": json.dumps(_to_dict(subject, metrics, analysis), indent=1),
        "confusions.csv": _confusions(analysis),
    }
    for name, chart in zip(("precision_recall.svg", "f1.svg"), charts(analysis), strict=True):
        texts[name] = line_chart(*chart)
    cards, rows = [], []
    for number, (picture, name, image) in enumerate(_worst(analysis, index), start=1):
        drawn: tuple[Image.Image, ...] = ()
        if image is not None:
            titles = analysis.categories.titles
            drawn = draw_truth(image, picture, titles), draw_found(image, picture, titles)
            rows.append((heading(number, name, picture), *drawn))
        summary = f"{counted(picture.num_errors, 'error')}: {error_counts(picture)}"
        sources = [data_uri(drawing) for drawing in drawn] or ["", ""]
        cards.append(Card(name, summary, describe(picture, analysis.categories), *sources))
    texts[REPORT_FILE] = page(subject, metrics, analysis, cards)
    if rows:
        write_whole(folder / "worst_images.jpg", lambda new: sheet(rows).save(new, "JPEG", quality=88))
    else:  # an older one must not be taken for a part of this report
        (folder / "worst_images.jpg").unlink(missing_ok=True)
    for name, text in texts.items():
        # Names in JSON can hold half a character, which UTF-8 cannot.
        write_text_whole(folder / name, text.encode("utf-8", "backslashreplace").decode("utf-8"))
    return [*(["worst_images.jpg"] if rows else []), *texts]


def _worst(analysis: Analysis, index: CocoIndex) -> Iterator[tuple[Picture, str, Image.Image | None]]:
    """Yield the worst images, their names, and their pixels or None; one at a time is in memory."""
    for picture in analysis.errors.worst:
        position = int(np.searchsorted(index.image_ids, picture.image_id))
        width, height = index.sizes_wh[position].tolist()
        try:
            image = open_image(index.image_path(position), image_id=picture.image_id, size_wh=(width, height))
        except ImageError:  # readable a moment ago
            image = None
        yield picture, index.file_names[position], image


def _confusions(analysis: Analysis) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["true", "detected", "boxes"])
    for (true, found), count in sorted(analysis.errors.confusions.items(), key=lambda item: -item[1]):
        writer.writerow([analysis.title(true), analysis.title(found), count])
    return text.getvalue()


def _to_dict(subject: Subject, metrics: CocoMetrics, analysis: Analysis) -> dict[str, Any]:
    """Return the numbers as JSON values."""
    best = analysis.pooled.best
    return {
        "model": subject.model,
        "data": subject.data,
        "metrics": metrics.to_dict(),
        "left_out": list(subject.left_out),
        "best_single_threshold": None if best is None else best.threshold,
        "errors": {kind.value: analysis.errors.count(kind) for kind in ERRORS},
        "images_with_errors": analysis.errors.images_with_errors,
        "classes": [
            {
                "category_id": analysis.categories.ids[r.label],
                "name": analysis.categories.names[r.label],
                "title": r.title,
                "boxes": r.curve.num_true,
                "AP": _or_none(metrics.per_class.get(r.title, math.nan)),
                "AP50": _or_none(r.curve.ap50),
                "best_threshold": None if r.curve.best is None else r.curve.best.threshold,
                "precision": _or_none(r.point.precision),
                "recall": _or_none(r.point.recall),
                "F1": _or_none(r.point.f1),
                "mean_iou": _or_none(r.mean_iou),
                "true_boxes": {kind.value: count for kind, count in r.true.items() if count},
                "detections": {kind.value: count for kind, count in r.found.items() if count},
                "precision_at_recall": _rounded(r.curve.precision),
                "f1_at_threshold": _rounded(r.curve.f1),
            }
            for r in analysis.classes
        ],
        "worst_images": [
            {"image_id": picture.image_id, "errors": picture.num_errors} for picture in analysis.errors.worst
        ],
    }


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _rounded(curve: np.ndarray) -> list[float]:
    return np.round(curve, 4).tolist()
