"""The claims: what is compared, by which number, and what would show it. Written before the runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student

from benchmarks.claims.recipe import VARIANTS
from benchmarks.measure.tables import Table

FILE_NAME = "claims.json"
History = Sequence[dict[str, Any]]
Value = Callable[[History], float]


def last(name: str, *place: int | str) -> Value:
    """Return a function that reads a number after the last epoch."""

    def read(history: History) -> float:
        value: Any = history[-1][name]
        for index in place:
            value = value[index]
        return value

    return read


def average(name: str) -> Value:
    """Return a function that averages a number over the epochs that have it."""
    return lambda history: float(np.mean([row[name] for row in history if row[name] is not None]))


def per_cent(value: Value) -> Value:
    """Return the function times 100."""
    return lambda history: 100 * value(history)


AP, AP75 = per_cent(last("AP")), per_cent(last("AP75"))
MEAN_AP = per_cent(average("AP"))
MOVED = per_cent(average("instability"))
DUPLICATES, DISTANCE = last("duplicates"), last("ATD")
LAST_IOU = per_cent(last("layer_iou", -1))
ALIGNMENT = last("score_iou")


def nms_loss(history: History) -> float:
    """Return the AP that non-maximum suppression at 0.7 takes away, in points."""
    return 100 * (history[-1]["AP"] - history[-1]["AP_nms_0.7"])


def refinement(history: History) -> float:
    """Return the IoU that the layers after the first add, in points."""
    return 100 * (history[-1]["layer_iou"][-1] - history[-1]["layer_iou"][1])


def agreement(history: History) -> float:
    """Return the cosine of the next layer's gradient through the box with the layer's own, over layers and epochs."""
    return float(np.mean([row["gradients"]["cosine"] for row in history]))


@dataclass(frozen=True)
class Claim:
    """A statement, and the comparison that shows or contradicts it."""

    statement: str
    measure: str
    value: Value
    variant: str
    against: str | None  # None: the value itself is compared with zero
    sign: int  # of the difference, if the statement is true
    digits: int = 1


FULL = "DINO"
LOSSES = ("varifocal", "iou_aware", "position", "matchability")
# By topic.
CLAIMS = {
    "matching": (
        Claim("Denoising makes matching stable", "objects that change their query in 200 steps, %", MOVED,
              "static queries", "static queries, no denoising", -1),
        Claim("... also with queries from the encoder", "the same", MOVED, FULL, "no denoising", -1),
        Claim("Denoising speeds up training", "mean AP over the epochs", MEAN_AP, FULL, "no denoising", +1),
        Claim("... and improves its result", "AP", AP, FULL, "no denoising", +1),
    ),
    "denoising": (
        Claim("Negatives prevent duplicates", "duplicates per object found", DUPLICATES,
              FULL, "plain denoising", -1, 2),
        Claim("Negatives bring anchors closer", "ATD(100)", DISTANCE, FULL, "plain denoising", -1, 3),
        Claim("Contrastive denoising is better than plain", "AP", AP, FULL, "plain denoising", +1),
        Claim("More groups help", "AP, 50 / n groups against 2", AP, FULL, "2 groups", +1),
        Claim("... and still more", "AP, 12 groups against 50 / n", AP, "12 groups", FULL, +1),
    ),
    "selection": (
        Claim("Anchors from the encoder speed up training", "mean AP over the epochs", MEAN_AP,
              FULL, "static queries", +1),
        Claim("... and improve its result", "AP", AP, FULL, "static queries", +1),
        Claim("... also of three times the training", "AP", AP, "DINO, long", "static queries, long", +1),
        Claim("Learned content is better than selected", "AP", AP, FULL, "pure queries", +1),
        Claim("... after three times the training", "AP", AP, "DINO, long", "pure queries, long", +1),
    ),
    "look_forward": (
        Claim("Looking forward twice improves boxes", "mean IoU of matched boxes, %", LAST_IOU,
              FULL, "look forward once", +1),
        Claim("... AP at a strict IoU", "AP75", AP75, FULL, "look forward once", +1),
        Claim("... and AP", "AP", AP, FULL, "look forward once", +1),
        Claim("... and makes the loss of classes higher", "focal loss of the last layer in training",
              last("training", "loss_ce"), FULL, "look forward once", +1, 3),
        Claim("... with class weight 2, it improves AP", "AP", AP,
              "DINO, class weight 2", "look forward once, class weight 2", +1),
        Claim("Its extra gradient agrees with the layer's own", "cosine", agreement, FULL, None, +1, 2),
        Claim("Layers refine boxes", "IoU of the last layer less that of the first, %", refinement, FULL, None, +1),
    ),
    "nms": (
        Claim("NMS is not needed", "AP without NMS less AP with NMS at 0.7", nms_loss, FULL, None, +1),
        Claim("... after three times the training", "the same", nms_loss, "DINO, long", None, +1),
    ),
    "successors": (
        *(Claim(f"`{name}` improves AP", "AP", AP, name, FULL, +1) for name in LOSSES),
        Claim("Focal loss with class weight 2 improves AP", "AP", AP, "DINO, class weight 2", FULL, +1),
        *(Claim(f"`{name}` makes scores follow IoU", "rank correlation of score and IoU", ALIGNMENT, name, FULL, +1, 2)
          for name in LOSSES),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Effect:
    """The mean of a claim's differences between runs of the same seed, with its 95 % interval (Student's t)."""

    values: tuple[float, float | None]  # means of the two variants
    difference: float
    half_width: float  # NaN with fewer than two seeds
    seeds: int

    def verdict(self, sign: int) -> str:
        """Return what the interval says of a claim that expects this sign."""
        if not math.isfinite(self.half_width) or abs(self.difference) <= self.half_width:
            return "open"
        return "shown" if self.difference * sign > 0 else "contradicted"


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the half width of its 95 % interval by Student's t; NaN for one value."""
    if len(values) < 2:
        return float(np.mean(values)), math.nan
    scale = float(student.ppf(0.975, len(values) - 1)) / math.sqrt(len(values))
    return float(np.mean(values)), scale * float(np.std(values, ddof=1))


def effect(claim: Claim, runs: Sequence[dict[str, Any]]) -> Effect | None:
    """Return a claim's effect over the seeds that both variants were trained with; None if there is none."""
    sides = [
        {row["seed"]: claim.value(row["history"]) for row in runs if row["variant"] == name}
        for name in (claim.variant, claim.against)
    ]
    seeds = sorted(sides[0] if claim.against is None else sides[0].keys() & sides[1].keys())
    if not seeds:
        return None
    first, second = [sides[0][s] for s in seeds], [sides[1].get(s, 0.0) for s in seeds]
    difference, half_width = interval([a - b for a, b in zip(first, second, strict=True)])
    return Effect(
        (float(np.mean(first)), None if claim.against is None else float(np.mean(second))),
        difference,
        half_width,
        len(seeds),
    )


def table(document: dict[str, Any], topics: Iterable[str] = CLAIMS) -> Table:
    """Make a row per claim of some topics: the two means, their difference with its interval, and what follows."""
    lines = [["claim", "measure", "with", "without", "difference", "seeds", "result"]]
    for claim in (claim for topic in topics for claim in CLAIMS[topic]):
        if (found := effect(claim, document["runs"])) is not None:
            a, b = (("" if value is None else f"{value:.{claim.digits}f}") for value in found.values)
            difference = f"{found.difference:+.{claim.digits}f}"
            if found.seeds > 1:
                difference += f" ± {found.half_width:.{claim.digits}f}"
            verdict = found.verdict(claim.sign)
            lines.append([claim.statement, claim.measure, a, b, difference, str(found.seeds), verdict])
    return lines


# Of the table of runs: the title of a column, its number, its digits.
COLUMNS: tuple[tuple[str, Value, int], ...] = (
    ("AP", AP, 1),
    ("AP50", per_cent(last("AP50")), 1),
    ("AP75", AP75, 1),
    ("AP, NMS 0.7", per_cent(last("AP_nms_0.7")), 1),
    ("duplicates", DUPLICATES, 2),
    ("ATD(100)", DISTANCE, 3),
    ("IoU, %", LAST_IOU, 1),
    ("moved, %", MOVED, 1),
    ("score-IoU", ALIGNMENT, 2),
)


def runs_table(document: dict[str, Any]) -> Table:
    """Make a row per variant: mean ± standard deviation over the seeds of each number."""
    lines = [["model", "seeds", "steps", *(title for title, _, _ in COLUMNS)]]
    for name in VARIANTS:
        runs = [row for row in document["runs"] if row["variant"] == name]
        if runs:
            cells = []
            for _, value, digits in COLUMNS:
                values = [value(row["history"]) for row in runs]
                spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
                cells.append(f"{np.mean(values):.{digits}f}{spread}")
            lines.append([name, str(len(runs)), f"{runs[0]['steps']:,}", *cells])
    return lines
