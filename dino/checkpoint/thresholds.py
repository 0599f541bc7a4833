"""Store the best threshold of each class beside a model, and read it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dino.checkpoint.read import MODEL_FILE, CheckpointError
from dino.common.files import write_text_whole

THRESHOLDS_FILE = "thresholds.json"


@dataclass(frozen=True)
class Thresholds:
    """The scores from which detections of a model count, chosen on some data."""

    by_category: Mapping[int, float]
    """The best threshold of each category id: the one of maximum F1 at IoU 0.5."""
    overall: float
    """The best threshold for all classes together; used for categories that have none of their own."""
    source: Mapping[str, Any] = field(default_factory=dict)
    """The data they were chosen on, as JSON values."""

    def of(self, category_id: int) -> float:
        """Return the threshold of a category."""
        return self.by_category.get(category_id, self.overall)


def thresholds_path(model_file: Path) -> Path:
    """Return where the thresholds of a file of weights are stored: beside it."""
    if model_file.name == MODEL_FILE:
        return model_file.with_name(THRESHOLDS_FILE)
    return model_file.with_name(f"{model_file.stem}.{THRESHOLDS_FILE}")  # official files share a folder of downloads


def save_thresholds(model_file: Path, thresholds: Thresholds) -> Path:
    """Write thresholds beside a file of weights, which is not changed, and return the path.

    Raises:
        OSError: the file cannot be written.
    """
    path = thresholds_path(model_file)
    content = {
        "overall": thresholds.overall,
        "by_category": {str(category_id): score for category_id, score in thresholds.by_category.items()},
        "source": dict(thresholds.source),
        "model": {"file": model_file.name, "sha256": _digest(model_file)},
    }
    write_text_whole(path, json.dumps(content, indent=1) + "\n")
    return path


def load_thresholds(model_file: Path) -> Thresholds | None:
    """Return the thresholds stored beside a file of weights, or None if there are none.

    Raises:
        CheckpointError: the file is damaged, or belongs to other weights.
    """
    path = thresholds_path(model_file)
    try:
        content = json.loads(path.read_bytes())
        by_category = {int(category_id): float(score) for category_id, score in content["by_category"].items()}
        found = Thresholds(by_category, float(content["overall"]), content["source"])
        digest = content["model"]["sha256"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: not a file of thresholds ({type(error).__name__}: {error}). Delete it and run evaluate again"
        ) from error
    if not all(0 <= score <= 1 for score in (found.overall, *by_category.values())):
        raise CheckpointError(f"{path}: thresholds must be in 0..1. Delete it and run evaluate again")
    if digest != _digest(model_file):
        raise CheckpointError(f"{path}: belongs to other weights than {model_file}. Run evaluate again")
    return found


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
