"""Compare an exported file with its model on real photographs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dino.data import EvalTransform, open_image, pad_images
from dino.export.description import Description, ExportError, FixedSize
from dino.export.graph import input_names
from dino.export.runtime import Run
from dino.model.dino import DINO
from dino.model.outputs import DetectionOutput
from dino.model.postprocess import best_pairs
from dino_kernels import linear_sum_assignment

BOUND, HALF_BOUND = 1e-3, 3e-2
"""Largest difference of a detection's score, and of its box in fractions of the image, in float32 and float16."""
_DETECTIONS = 200


@dataclass(frozen=True)
class Comparison:
    """A batch in the file and in the model."""

    images: int
    size: tuple[int, int]
    padded: bool
    score: float
    """Largest difference of the scores of paired detections; infinite if one has no partner of its class."""
    box: float
    """Largest difference of their boxes, in fractions of the image."""
    raw: float | None
    """Largest difference of the logits, queries paired by their place; None with detections in the outputs."""
    gap: float | None
    """Smallest difference of neighbours among the scores that select tokens: smaller errors reorder queries."""
    other_tokens: int | None
    """Places at which the file selected another token; None if the format does not show them."""
    shortfall: float
    """How far the score of a selected token is below that of the last one that the model would select."""

    @property
    def within(self) -> float:
        """What the bound is for: differences of detections, and a wrong choice of tokens. Infinite for NaN."""
        differences = self.score, self.box, self.shortfall, 0.0 if self.raw is None else self.raw
        return max(differences[:3]) if all(map(math.isfinite, differences)) else math.inf

    def row(self) -> tuple[str, ...]:
        """Return the cells of `HEADINGS`."""
        return (
            f"{self.images}{', padded' if self.padded else ''}",
            f"{self.size[0]}x{self.size[1]}",
            f"{self.score:.1e}",
            f"{self.box:.1e}",
            "-" if self.raw is None else f"{self.raw:.1e}",
            "-" if self.other_tokens is None else f"{self.other_tokens}",
            "-" if self.gap is None else f"{self.gap:.1e}",
        )


HEADINGS = ("images", "size", "scores differ by", "boxes by", "raw logits by", "tokens elsewhere", "smallest gap")


def photographs(files: Sequence[Path] = ()) -> list[Image.Image]:
    """Return two photographs: the given ones, or those that scikit-learn ships.

    Raises:
        ExportError: fewer than two are given, or none and scikit-learn is not installed.
        ImageError: a file cannot be read.
    """
    if files:
        if len(files) < 2:
            raise ExportError("photographs must be two image files, of which one is padded, got 1. Pass another one.")
        return [open_image(file) for file in files[:2]]
    try:
        from sklearn.datasets import load_sample_image
    except ImportError as error:
        raise ExportError(
            "the check of an export needs photographs. Pass two by --photographs, or install those of scikit-learn: "
            'pip install "dino-kernels[export]"'
        ) from error
    return [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]


def batches(images: Sequence[Image.Image], description: Description) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return images, mask and sizes of two batches: one image, and two at another size of which one is padded."""
    transform, none = description.transform, (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    first, second = images[0], images[1].crop((0, 0, images[1].width * 3 // 4, images[1].height))
    smaller = transform
    if not isinstance(transform, FixedSize):
        short = max(round(transform.short_side * 0.6), 1)
        smaller = EvalTransform(short, transform.long_side and max(short, round(transform.long_side * 0.6)))
    made = []
    for chosen, pictures in ((transform, [first]), (smaller, [first, second])):
        padded, mask = pad_images([chosen(picture, *none)[0] for picture in pictures])
        size = description.size or tuple(max(side, description.least_side) for side in padded.shape[-2:])
        edges = (0, size[1] - padded.shape[-1], 0, size[0] - padded.shape[-2])
        padded = torch.nn.functional.pad(padded, edges)
        mask = torch.nn.functional.pad(mask, edges, value=True)
        made.append((padded, mask, torch.tensor([picture.size[::-1] for picture in pictures])))
    return made


@torch.no_grad()
def compare(model: DINO, run: Run, description: Description, batch: tuple[Tensor, Tensor, Tensor]) -> Comparison:
    """Run a batch in the file and in the model.

    If the file returns its selected tokens, the model gets them: two tokens with nearly the same score can swap places,
    which changes the content of two queries. The comparison then says how far their scores are apart.

    Args:
        run: runs the file; the selected tokens may be its last output.
        batch: of `batches`.
    """
    images, mask, sizes = batch
    inputs = {"images": images.numpy(), "mask": mask.numpy(), "sizes": sizes.numpy()}
    outputs = [torch.from_numpy(np.array(o)) for o in run({name: inputs[name] for name in input_names(description)})]
    count = 2 if description.detections is None else 3
    selected = outputs.pop() if len(outputs) > count else None
    scores = _selection_scores(model, images, mask)
    expected = model(images, mask, query_indices=selected)
    raw = other = gap = None
    shortfall = 0.0
    if description.detections is None:
        found = best_pairs(outputs[0].sigmoid(), outputs[1], _DETECTIONS)
        raw = (outputs[0] - expected.logits[-1]).abs().max().item()
    else:
        found = outputs[0], outputs[1], outputs[2] / sizes.flip(1).repeat(1, 2)[:, None]
    if scores is not None:
        ordered = scores.sort(1, descending=True).values[:, : model.config.num_queries + 1]
        gap = (ordered[:, :-1] - ordered[:, 1:]).min().item()
        if selected is not None:
            own = scores.topk(model.config.num_queries, 1)
            other = int((own.indices != selected).sum())
            shortfall = (own.values[:, -1:] - scores.gather(1, selected)).max().clamp(min=0).item()
    truth = best_pairs(expected.logits[-1].sigmoid(), expected.boxes_cxcywh[-1], found[0].shape[1])
    score, box = set_difference(truth, found)
    return Comparison(
        images=len(images),
        size=(images.shape[2], images.shape[3]),
        padded=bool(mask.any()),
        score=score,
        box=box,
        raw=raw,
        gap=gap,
        other_tokens=other,
        shortfall=shortfall,
    )


Found = tuple[Tensor, Tensor, Tensor]
"""Scores [B, N] in descending order, labels [B, N], boxes [B, N, 4] xyxy in fractions of the image."""


def set_difference(expected: Found, found: Found) -> tuple[float, float]:
    """Return the largest difference of scores, and of boxes, of detections paired one to one within their class.

    The better half of each list is paired with the whole other list, since rounding can move a detection over the end
    of a list. Pairs minimise the sum of differences. A detection without a partner of its class differs by infinity.
    """
    largest = [0.0, 0.0]
    for one, other in ((expected, found), (found, expected)):
        count = (one[0].shape[1] + 1) // 2
        scores, labels, boxes = (values[:, :count, None] for values in one)
        d_score = (scores - other[0][:, None]).abs()
        d_box = (boxes - other[2][:, None]).abs().amax(-1)
        wrong = labels != other[1][:, None]
        partner = linear_sum_assignment((d_score + d_box + 4.0 * wrong).double())[..., None]  # [B, count, 1]
        if wrong.gather(2, partner).any():
            return math.inf, math.inf
        for k, difference in enumerate((d_score, d_box)):
            largest[k] = max(largest[k], difference.gather(2, partner).max().item())
    return largest[0], largest[1]


def _selection_scores(model: DINO, images: Tensor, mask: Tensor) -> Tensor | None:
    """Return the score of each token in query selection [B, S]; None if queries are static."""
    if model.config.query_selection == "static":
        return None
    kept: list[Tensor] = []
    head = model.query_selection.class_head
    # The first call is that of all tokens.
    handle = head.register_forward_hook(lambda _, __, logits: kept.append(logits.amax(-1)))
    try:
        output: DetectionOutput = model(images, mask)
    finally:
        handle.remove()
    assert output.selected_indices is not None
    return kept[0]
