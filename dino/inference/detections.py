"""The detections of one image."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, SupportsIndex, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dino.common.text import counted
from dino.evaluation.evaluate import coco_results
from dino.inference import draw
from dino.inference.images import ImageLike, load_image


class Detection(NamedTuple):
    """One detection."""

    box_xyxy: tuple[float, float, float, float]
    """Pixels of the original image; may reach over its border."""
    score: float
    label: int
    """The model's own class index."""
    category_id: int
    """Id of the class in the training data."""
    name: str


@dataclass(frozen=True)
class Detections:
    """N detections of one image, best score first. Tensors are on the CPU.

    `found[0]` is a `Detection`; `found[:5]`, a mask such as `found[found.scores > 0.5]` and a list of indices give
    `Detections`; a loop yields each `Detection`.
    """

    boxes_xyxy: Tensor  # [N, 4] float32, pixels of the original image; may reach over its border
    scores: Tensor  # [N] float32, falling
    labels: Tensor  # [N] int64, the model's own class indices 0..C-1
    category_ids: list[int]  # [N] ids of the classes in the training data
    names: list[str]  # [N] names of the classes
    size_hw: tuple[int, int]  # height and width of the original image
    image: Image.Image | None = field(default=None, repr=False, compare=False)  # the image in RGB
    path: str | None = None
    """The file, video, camera or stream as it was named; None for an image in memory."""
    frame: int | None = None
    """Number of the frame in a video, from 0; None for an image."""
    best_score: float = 0.0
    """Highest score before the threshold; 0 if there was no detection."""

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        height, width = self.size_hw
        counts = Counter(self.names)
        found = ", ".join(f"{count} {name}" for name, count in counts.most_common(6))
        more = f" and {counted(len(counts) - 6, 'more class', 'more classes')}" if len(counts) > 6 else ""
        best = f" (best {self.scores[0] if len(self) else self.best_score:.2f})"
        return f"Detections({len(self)} in {width}x{height}: {found or 'nothing'}{more}{best})"

    def __iter__(self) -> Iterator[Detection]:
        return (self[i] for i in range(len(self)))

    @overload
    def __getitem__(self, key: slice | Tensor | np.ndarray | Sequence[int] | Sequence[bool]) -> Detections: ...

    @overload
    def __getitem__(self, key: SupportsIndex) -> Detection: ...

    def __getitem__(
        self, key: SupportsIndex | slice | Tensor | np.ndarray | Sequence[int] | Sequence[bool]
    ) -> Detection | Detections:
        if isinstance(key, int | slice):
            chosen = torch.tensor(range(len(self))[key], dtype=torch.int64)
        else:
            chosen = torch.arange(len(self))[_index(key, len(self))]
        if chosen.ndim == 0:
            i = int(chosen)
            box = tuple(self.boxes_xyxy[i].tolist())
            return Detection(box, float(self.scores[i]), int(self.labels[i]), self.category_ids[i], self.names[i])
        return dataclasses.replace(
            self,
            boxes_xyxy=self.boxes_xyxy[chosen],
            scores=self.scores[chosen],
            labels=self.labels[chosen],
            category_ids=[self.category_ids[i] for i in chosen.tolist()],
            names=[self.names[i] for i in chosen.tolist()],
        )

    def above(self, threshold: float) -> Detections:
        """Return the detections with a score of at least `threshold`."""
        return self[self.scores >= threshold]

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Return entries of a COCO result file: image_id, category_id, bbox (x, y, width, height in pixels), score."""
        return coco_results(image_id, self.boxes_xyxy, self.scores, self.category_ids)

    def to_yolo(self, *, scores: bool = False) -> list[str]:
        """Return lines of a YOLO label file: label, and centre x, centre y, width and height in 0..1 of the image.

        Boxes are clipped to the image.

        Args:
            scores: whether the lines end with the score.
        """
        size = torch.tensor(self.size_hw).flip(0)
        corners = torch.minimum(self.boxes_xyxy.view(-1, 2, 2).clamp(min=0), size) / size
        boxes = torch.cat([corners.mean(1), corners[:, 1] - corners[:, 0]], 1).tolist()
        ends = [f" {score:.4f}" if scores else "" for score in self.scores.tolist()]
        return [
            f"{label} {' '.join(f'{value:.6f}' for value in box)}{end}"
            for label, box, end in zip(self.labels.tolist(), boxes, ends, strict=True)
        ]

    def to_pandas(self) -> Any:
        """Return a pandas.DataFrame with columns x0, y0, x1, y1, score, label, category_id and name.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError(f"to_pandas: {error}. Install it: pip install pandas") from error
        frame = pandas.DataFrame(self.boxes_xyxy.numpy(), columns=["x0", "y0", "x1", "y1"])
        return frame.assign(
            score=self.scores.numpy(), label=self.labels.numpy(), category_id=self.category_ids, name=self.names
        )

    def to_supervision(self) -> Any:
        """Return supervision.Detections, with the names of the classes in `data["class_name"]`.

        Raises:
            ImportError: supervision is not installed.
        """
        try:
            import supervision  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError(f"to_supervision: {error}. Install it: pip install supervision") from error
        return supervision.Detections(
            xyxy=self.boxes_xyxy.numpy(),
            confidence=self.scores.numpy(),
            class_id=self.labels.numpy(),
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def draw(
        self,
        image: ImageLike | None = None,
        *,
        font: str | None = None,
        width: int | None = None,
        scores: bool = True,
        scale: float | None = None,
    ) -> Image.Image:
        """Draw boxes, class names and scores.

        Small images are enlarged first. Where tags would bury the objects, they shrink, and then a legend below the
        image names the classes.

        Args:
            image: the image to draw on, a copy of it; by default the original image. Must have its size.
            font: a TrueType file for the names of classes; by default the first font of the system with their letters.
            width: line width in pixels; by default it depends on the sizes of the image and of the box.
            scores: whether the labels end with the score.
            scale: factor by which the image is enlarged before drawing; by default small images are enlarged to 960
                pixels. With `scale=1` pixels of the image keep their place.

        Raises:
            ValueError: there is no image, or it has another size than the original.
        """
        if image is None and self.image is None:
            raise ValueError("draw: these detections hold no image. Pass one as image.")
        shown = self.image if image is None else load_image(image)
        assert shown is not None
        if shown.size[::-1] != self.size_hw:
            raise ValueError(
                f"draw: image must have the size of the original image (height, width) {self.size_hw}, got "
                f"{shown.size[::-1]}"
            )
        return draw.draw_detections(
            shown,
            self.boxes_xyxy.tolist(),
            self.labels.tolist(),
            self.names,
            self.scores.tolist() if scores else None,
            font=font,
            width=width,
            scale=scale,
        )


def _index(key: Any, count: int) -> Tensor:
    """Return a mask or indices as a tensor.

    Raises:
        IndexError: a mask has another length than the detections.
        TypeError: the key is neither.
    """
    index = torch.as_tensor(key)
    if index.dtype == torch.bool and index.shape != (count,):
        raise IndexError(f"a mask of detections must have {counted(count, 'value')}, got shape {list(index.shape)}")
    if index.numel() == 0 and index.dtype != torch.bool:
        return torch.zeros(0, dtype=torch.int64)
    if index.is_floating_point() or index.ndim > 1:
        raise TypeError(f"detections are indexed by integers, slices or masks, got {type(key).__name__}")
    return index.cpu()
