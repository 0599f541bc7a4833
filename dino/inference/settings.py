"""Options of a prediction, checked where they enter."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from dino.common.text import shorten, suggestion
from dino.data import Categories

Threshold = float | Literal["best"]
"""Lowest score of a detection, or the best one of each class, which `evaluate` stored with the model."""


class PredictOptions(TypedDict, total=False):
    """Options of `Detector.predict`; `Settings` describes them."""

    batch_size: int
    top_k: int
    classes: Sequence[str] | None
    tile: int | None
    overlap: float
    nms: float | None


@dataclass(frozen=True)
class Settings:
    """Options of a prediction.

    Raises:
        ValueError: a value is of the wrong type or out of range.
    """

    threshold: Threshold = 0.3
    """Lowest score of a detection; "best" is that of its class that `evaluate` stored."""
    batch_size: int = 1
    """Images or tiles per forward pass."""
    top_k: int = 300
    """Largest number of detections of an image, or of a tile, before the threshold."""
    classes: tuple[str, ...] | None = None
    """Names of the classes to detect; None is all."""
    tile: int | None = None
    """Detect in tiles of this many pixels; None takes the image as a whole."""
    overlap: float = 0.2
    """Share of a tile that the next one covers again."""
    nms: float | None = None
    """Drop a detection whose IoU with a better one of its class is above this; None drops none."""

    def __post_init__(self) -> None:
        for name, least, most in (("threshold", 0, 1), ("overlap", 0.05, 0.8), ("nms", 0, 1)):
            value = getattr(self, name)
            if not (name == "nms" and value is None) and not (name == "threshold" and value == "best"):
                object.__setattr__(self, name, _number(name, value, least, most))
        for name, least in (("batch_size", 1), ("top_k", 1), ("tile", 16)):
            if name != "tile" or self.tile is not None:
                check_integer(f"predict: {name}", getattr(self, name), least)
        if self.classes is not None:
            names = [self.classes] if isinstance(self.classes, str) else list(self.classes)
            if not names or not all(isinstance(name, str) for name in names):
                raise ValueError(f"predict: classes must be names of classes, or None for all, got {self.classes!r}")
            object.__setattr__(self, "classes", tuple(names))

    @classmethod
    def of(cls, threshold: Any, options: PredictOptions) -> Settings:
        """Return the settings of a call.

        Raises:
            ValueError: an option does not exist, or has a wrong value.
        """
        check_names("predict", options, [field.name for field in dataclasses.fields(cls)])
        return cls(threshold, **options)  # type: ignore[arg-type]

    def unwanted(self, categories: Categories) -> Tensor:
        """Return which labels [C] are not to be detected.

        Raises:
            ValueError: a class does not exist.
        """
        unwanted = torch.full((categories.num_classes,), self.classes is not None)
        for wanted in self.classes or ():
            labels = [label for label, name in enumerate(categories.names) if name == wanted]
            if not labels:
                hint = suggestion(wanted, categories.names)
                raise ValueError(
                    f"predict: the model has no class {wanted!r}.{hint} Its classes are "
                    f"{shorten(categories.names, 20)}."
                )
            unwanted[labels] = False
        return unwanted


def check_names(function: str, given: Any, known: Sequence[str]) -> None:
    """Raise ValueError at the first keyword that a function does not know, with a suggestion."""
    for name in given:
        if name not in known:
            hint = suggestion(name, known)
            raise ValueError(f"{function} has no argument {name!r}.{hint} Its arguments are {', '.join(known)}.")


def check_integer(name: str, value: Any, least: int) -> None:
    """Raise ValueError unless a value is an integer of at least `least`."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def _number(name: str, value: Any, least: float, most: float) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real) or not least <= float(value) <= most:
        best = ' or "best"' if name == "threshold" else ""
        raise ValueError(f"predict: {name} must be a number in {least}..{most}{best}, got {value!r}")
    return float(value)
