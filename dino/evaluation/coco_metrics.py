"""The twelve numbers of COCO from ground truth and results, by faster-coco-eval."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class CocoMetrics:
    """The twelve numbers of COCO, in 0..1; NaN where there is no ground truth to measure on."""

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
    """AP of each class by name, in the order of the category ids; NaN where it has no ground truth."""
    num_images: int = 0
    """Images scored."""
    num_boxes: int = 0
    """Ground truth boxes in them, crowds left out."""

    def numbers(self) -> dict[str, float]:
        """The twelve numbers by name."""
        return {name: getattr(self, name) for name in NUMBERS}

    def table(self, classes: bool = True) -> str:
        """The numbers in per cent as text, and with `classes` each class's AP, best first."""
        areas = ("small", "medium", "large")
        lines = [
            f"{self.num_images:,} images, {self.num_boxes:,} boxes; per cent",
            _row("Average precision", ("AP", "AP50", "AP75", *areas)),
            _row("", (self.AP, self.AP50, self.AP75, self.AP_small, self.AP_medium, self.AP_large)),
            _row("Average recall", ("AR1", "AR10", "AR100", *areas)),
            _row("", (self.AR1, self.AR10, self.AR100, self.AR_small, self.AR_medium, self.AR_large)),
        ]
        if classes and self.per_class:
            ranked = sorted(self.per_class.items(), key=lambda item: math.inf if math.isnan(item[1]) else -item[1])
            width = max(map(len, self.per_class))
            lines.append("AP of each class")
            lines += [f"  {name:<{width}}  {_per_cent(ap):>5}" for name, ap in ranked]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, NaN as None."""
        plain: dict[str, Any] = {name: _or_none(value) for name, value in self.numbers().items()}
        plain["per_class"] = {name: _or_none(value) for name, value in self.per_class.items()}
        return {**plain, "num_images": self.num_images, "num_boxes": self.num_boxes}

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)


NUMBERS = tuple(field.name for field in dataclasses.fields(CocoMetrics) if field.name.startswith("A"))


def score(
    results: Sequence[Mapping[str, Any]],
    image_ids: Iterable[int],
    ground_truth: Mapping[str, Any] | str | Path,
) -> CocoMetrics:
    """Score results in COCO's format on some images of a ground truth.

    Args:
        results: dicts with `image_id`, `category_id`, `bbox` (x, y, width, height) and `score`.
        image_ids: the images to score; one without results counts as an image where nothing was found.
        ground_truth: a COCO annotation file or its content. Crowds neither reward nor punish a detection.

    Raises:
        ValueError: no image, or an image that the ground truth does not have.
    """
    # Half a second of import that a training run without evaluation does not need.
    from faster_coco_eval import COCO, COCOeval_faster

    wanted = set(image_ids)
    content = _content(ground_truth)
    unknown = wanted - {image["id"] for image in content["images"]}
    if not wanted or unknown:
        what = f"does not have the images {sorted(unknown)[:5]}" if unknown else "was given with no image to score"
        raise ValueError(f"evaluate: the ground truth {what}; evaluate on the images of that ground truth")
    truth = COCO(_boxes_only(content, wanted))
    found = truth.loadRes([dict(result) for result in results if result["image_id"] in wanted])
    evaluation = COCOeval_faster(truth, found, iouType="bbox")
    evaluation.run()
    boxes = [annotation for annotation in truth.dataset["annotations"] if not annotation["iscrowd"]]
    return CocoMetrics(
        **{name: _or_nan(value) for name, value in zip(NUMBERS, evaluation.stats, strict=True)},
        per_class=_per_class(evaluation, {c["id"]: c["name"] for c in content["categories"]}),
        num_images=len(wanted),
        num_boxes=len(boxes),
    )


def _content(ground_truth: Mapping[str, Any] | str | Path) -> Mapping[str, Any]:
    if isinstance(ground_truth, Mapping):
        return ground_truth
    return json.loads(Path(ground_truth).read_text(encoding="utf-8"))


def _boxes_only(content: Mapping[str, Any], wanted: set[int]) -> dict[str, Any]:
    """What scoring boxes needs. Ids start at 1: the evaluation takes an id of 0 for "not matched"."""
    annotations = [a for a in content["annotations"] if a["image_id"] in wanted]
    return {
        "info": {},
        "images": [{"id": image["id"]} for image in content["images"] if image["id"] in wanted],
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


def _per_class(evaluation: Any, names: Mapping[int, str]) -> dict[str, float]:
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, class]
    aps = {}
    for k, category_id in enumerate(evaluation.params.catIds):
        values = precision[:, :, k]
        aps[names[int(category_id)]] = float(np.mean(values[values > -1])) if (values > -1).any() else math.nan
    return aps


def _or_nan(value: float) -> float:
    return math.nan if value == -1 else float(value)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _per_cent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def _row(name: str, cells: Sequence[str | float]) -> str:
    return f"{name:<18}" + "".join(f"{cell if isinstance(cell, str) else _per_cent(cell):>8}" for cell in cells)
