"""The detections of one image."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from torch import Tensor

from dino.evaluation.evaluate import coco_results
from dino.inference import draw


@dataclass(frozen=True)
class Detections:
    """N detections of one image, best score first. Tensors are on the CPU."""

    boxes_xyxy: Tensor  # [N, 4] float32, pixels of the original image; may reach over its border
    scores: Tensor  # [N] float32, falling
    labels: Tensor  # [N] int64, the model's own class indices 0..C-1
    category_ids: list[int]  # [N] ids of the classes in the training data
    names: list[str]  # [N] names of the classes
    size_hw: tuple[int, int]  # height and width of the original image
    image: Image.Image | None = field(default=None, repr=False, compare=False)  # the image in RGB

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        height, width = self.size_hw
        counts = Counter(self.names)
        found = ", ".join(f"{count} {name}" for name, count in counts.most_common(6))
        more = f" and {len(counts) - 6} more classes" if len(counts) > 6 else ""
        best = f" (best {self.scores[0]:.2f})" if len(self) else ""
        return f"Detections({len(self)} in {width}x{height}: {found or 'nothing'}{more}{best})"

    def above(self, threshold: float) -> Detections:
        """Return the detections with a score of at least `threshold`."""
        count = int((self.scores >= threshold).sum())
        return Detections(
            self.boxes_xyxy[:count],
            self.scores[:count],
            self.labels[:count],
            self.category_ids[:count],
            self.names[:count],
            self.size_hw,
            self.image,
        )

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Return entries of a COCO result file: image_id, category_id, bbox (x, y, width, height in pixels), score."""
        return coco_results(image_id, self.boxes_xyxy, self.scores, self.category_ids)

    def draw(
        self,
        image: Image.Image | None = None,
        *,
        font: str | None = None,
        width: int | None = None,
        scores: bool = True,
    ) -> Image.Image:
        """Draw boxes, class names and scores.

        Args:
            image: the image to draw on, a copy of it; by default the original image. Must have its size.
            font: a TrueType file for names that are not in Latin letters.
            width: line width in pixels; by default it depends on the size of the image.
            scores: whether the labels end with the score.

        Raises:
            ValueError: there is no image, or it has another size than the original.
        """
        image = self.image if image is None else image
        if image is None:
            raise ValueError("draw: these detections hold no image. Pass one as image.")
        if image.size[::-1] != self.size_hw:
            raise ValueError(
                f"draw: image must have the size of the original image (height, width) {self.size_hw}, got "
                f"{image.size[::-1]}"
            )
        numbers = [f" {score:.2f}" if scores else "" for score in self.scores.tolist()]
        return draw.draw_boxes(
            image,
            self.boxes_xyxy.tolist(),
            [draw.class_colour(label) for label in self.labels.tolist()],
            [name + number for name, number in zip(self.names, numbers, strict=True)],
            font=font,
            width=width,
        )
