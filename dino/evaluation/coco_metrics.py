"""Compute the twelve COCO metrics with faster-coco-eval."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dino.common.text import columns, counted, percent, shorten
from dino.data import Categories
from dino.data.coco.document import COLLECTIONS, read_document
from dino.data.coco.lenient import obvious_reading
from dino.evaluation.sample import require_finite_results


@dataclass(frozen=True)
class CocoMetrics:
    """The twelve COCO metrics in 0..1; NaN without ground truth."""

    AP: float
    AP50: float
    AP75: float
    AP_small: float
    AP_medium: float
    AP_large: float
    AR1: float
    AR10: float
    AR100: float
    AR_small: float
    AR_medium: float
    AR_large: float
    per_class: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """AP of each class by title (`Categories.titles`), in the order of the category ids; NaN without ground truth."""
    num_images: int = 0
    """Images scored."""
    num_boxes: int = 0
    """Ground truth boxes in these images, without crowds."""

    def summary(self) -> dict[str, float]:
        """Return the twelve metrics by name."""
        return {name: getattr(self, name) for name in METRIC_NAMES}

    def table(self, classes: bool = True) -> str:
        """Return the metrics in per cent as a table; with `classes`, also each class's AP, best first."""
        areas = ("small", "medium", "large")
        lines = [
            f"{counted(self.num_images, 'image')}, {counted(self.num_boxes, 'box')}; per cent",
            _row("Average precision", ("AP", "AP50", "AP75", *areas)),
            _row("", (self.AP, self.AP50, self.AP75, self.AP_small, self.AP_medium, self.AP_large)),
            _row("Average recall", ("AR1", "AR10", "AR100", *areas)),
            _row("", (self.AR1, self.AR10, self.AR100, self.AR_small, self.AR_medium, self.AR_large)),
        ]
        if classes and self.per_class:
            ranked = sorted(self.per_class.items(), key=lambda item: math.inf if math.isnan(item[1]) else -item[1])
            width = max(map(columns, self.per_class))
            lines.append("AP of each class")
            lines += [f"  {name}{' ' * (width - columns(name))}  {percent(ap):>5}" for name, ap in ranked]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON values, NaN as None."""
        plain: dict[str, Any] = {name: _or_none(value) for name, value in self.summary().items()}
        plain["per_class"] = {name: _or_none(value) for name, value in self.per_class.items()}
        return {**plain, "num_images": self.num_images, "num_boxes": self.num_boxes}

    def to_json(self) -> str:
        """Return `to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)


METRIC_NAMES = tuple(field.name for field in dataclasses.fields(CocoMetrics) if field.name.startswith("A"))


def score(
    results: Sequence[Mapping[str, Any]],
    image_ids: Iterable[int],
    ground_truth: Mapping[str, Any] | str | Path,
    categories: Categories | None = None,
) -> CocoMetrics:
    """Compute the metrics of detections in COCO's result format.

    Args:
        results: dicts with `image_id`, `category_id`, `bbox` (x, y, width, height) and `score`.
        image_ids: the images to score; an image without results has no detections.
        ground_truth: a COCO annotation file or its content. Detections of crowds are ignored.
        categories: the model's categories, which may be more than those of the ground truth; only titles depend on
            them.

    Raises:
        NotFiniteError: a score or a box of a result is not finite.
        ValueError: `image_ids` is empty or has an image that is not in the ground truth.
    """
    # Importing takes half a second, which a run without evaluation does not need.
    from faster_coco_eval import COCO, COCOeval_faster

    require_finite_results(results)
    scored = set(image_ids)
    content = _content(ground_truth)
    unknown = scored - {image["id"] for image in content["images"]}
    if not scored or unknown:
        what = (
            f"are not in the ground truth: {shorten(map(str, sorted(unknown)), 5)}" if unknown else "must not be empty"
        )
        raise ValueError(f"image_ids {what}. Evaluate on the images of the ground truth")
    truth = COCO(_boxes_only(content, scored))
    found = truth.loadRes([dict(result) for result in results if result["image_id"] in scored])
    evaluation = COCOeval_faster(truth, found, iouType="bbox")
    evaluation.run()
    titles = dict(zip((union := all_categories(content, categories)).ids, union.titles, strict=True))
    boxes = [annotation for annotation in truth.dataset["annotations"] if not annotation["iscrowd"]]
    return CocoMetrics(
        **{name: _or_nan(value) for name, value in zip(METRIC_NAMES, evaluation.stats, strict=True)},
        per_class=_per_class(evaluation, titles),
        num_images=len(scored),
        num_boxes=len(boxes),
    )


def all_categories(content: Mapping[str, Any], categories: Categories | None) -> Categories:
    """Return the model's categories, followed by those that only the ground truth has.

    Raises:
        ValueError: a category has no id or name, or an id that occurs twice.
    """
    truth = Categories.from_json(content["categories"])
    if categories is None:
        return truth
    own = [record for record in truth.to_json() if record["id"] not in categories.ids]
    return Categories.from_json([*categories.to_json(), *own])


def _content(ground_truth: Mapping[str, Any] | str | Path) -> Mapping[str, Any]:
    if isinstance(ground_truth, Mapping):
        return ground_truth
    path = Path(ground_truth)
    document = read_document(path, path.parent)
    return {name: [obvious_reading(name, entry) for entry in getattr(document, name)] for name in COLLECTIONS}


def _boxes_only(content: Mapping[str, Any], scored: set[int]) -> dict[str, Any]:
    """Return the entries needed to score boxes. Ids start at 1: the evaluation uses 0 for "not matched"."""
    annotations = [a for a in content["annotations"] if a["image_id"] in scored]
    return {
        "info": {},
        "images": [{"id": image["id"]} for image in content["images"] if image["id"] in scored],
        "categories": [{"id": c["id"], "name": c["name"]} for c in content["categories"]],
        "annotations": [
            {
                "id": number,
                "image_id": a["image_id"],
                "category_id": a["category_id"],
                "bbox": list(a["bbox"]),
                "area": a.get("area", a["bbox"][2] * a["bbox"][3]),
                "iscrowd": a.get("iscrowd", 0),
            }
            for number, a in enumerate(annotations, 1)
        ],
    }


def _per_class(evaluation: Any, titles: Mapping[int, str]) -> dict[str, float]:
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, class]
    aps = {}
    for k, category_id in enumerate(evaluation.params.catIds):
        values = precision[:, :, k]
        aps[titles[int(category_id)]] = float(np.mean(values[values > -1])) if (values > -1).any() else math.nan
    return aps


def _or_nan(value: float) -> float:
    return math.nan if value == -1 else float(value)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _row(name: str, cells: Sequence[str | float]) -> str:
    return f"{name:<18}" + "".join(f"{cell if isinstance(cell, str) else percent(cell):>8}" for cell in cells)
