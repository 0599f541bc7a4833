"""Define what is measured of matching: predictions and targets at several stages of training, and three series.

DINO matches G = 7 sets a step, six decoder layers and the encoder's output, of Q = 900 queries and C = 91 classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

# Boxes of COCO's images: mean 7.3, median 4, 99 % within 33, a few above 60.
COCO_QUANTILES = ((0.0, 0), (0.01, 1), (0.25, 2), (0.5, 4), (0.75, 9), (0.9, 17), (0.99, 33), (0.9985, 60), (1.0, 93))
COSTS = ("random", "early", "middle", "late", "collapsed")
COST, ASSIGNMENT, MATCHER = OPS = ("matching_cost", "linear_sum_assignment", "hungarian_match")


@dataclass(frozen=True)
class Stage:
    """A stage of training: the share of queries that found an object, the noise of boxes, the logit of the class."""

    found: float
    box_noise: float  # of a box's size
    class_logit: float  # mean of the right class's logit


# At the start every logit is the prior's: a probability of 0.01.
PRIOR_LOGIT = -4.6
STAGES = {"early": Stage(0.1, 1.0, PRIOR_LOGIT), "middle": Stage(0.4, 0.25, -2.0), "late": Stage(0.7, 0.05, 0.5)}


@dataclass(frozen=True)
class MatchingStep:
    """One step's matching.

    Costs:
        random: uniform, as costs; as predictions, uniform boxes and normal logits.
        early, middle, late: boxes near targets and logits of a detector in training.
        collapsed: all queries the same except noise of 1e-3.
    """

    targets: int | None  # of every image; None: drawn as COCO has them
    costs: str
    images: int
    sets: int = 7
    queries: int = 900
    classes: int = 91

    def __post_init__(self) -> None:
        if self.costs not in COSTS:
            raise ValueError(f"costs is {self.costs!r}. Use one of {', '.join(COSTS)}.")

    @property
    def id(self) -> str:
        usual = MatchingStep(self.targets, self.costs, self.images)
        sizes = "".join(
            f"_{letter}{getattr(self, name)}"
            for letter, name in (("g", "sets"), ("q", "queries"), ("c", "classes"))
            if getattr(self, name) != getattr(usual, name)
        )
        return f"{'coco' if self.targets is None else f't{self.targets}'}_{self.costs}_b{self.images}{sizes}"

    @property
    def problems(self) -> int:
        return self.sets * self.images

    @property
    def all_pairs(self) -> int:
        """Count the pairs of all queries and all targets of the batch, which DINO's own way computes."""
        return self.problems * self.queries * sum(self.counts())

    def counts(self) -> list[int]:
        """Return the targets of each image."""
        if self.targets is None:
            return coco_counts(self.images)
        return [self.targets] * self.images


def coco_counts(images: int) -> list[int]:
    """Return boxes per image, evenly spaced in COCO's distribution, so that a small batch is typical too."""
    counts = []
    for image in range(images):
        x = (image + 0.5) / images
        (low, few), (high, many) = next(piece for piece in pairwise(COCO_QUANTILES) if x <= piece[1][0])
        counts.append(round(few + (many - few) * (x - low) / (high - low)))
    order = torch.randperm(images, generator=torch.Generator().manual_seed(images))
    return [counts[image] for image in order.tolist()]


def sample_targets(step: MatchingStep, generator: torch.Generator) -> list[dict[str, Tensor]]:
    """Draw DETR's list: per image labels [T] and boxes (cx, cy, w, h) [T, 4], most of them small."""
    targets = []
    for count in step.counts():
        size = torch.exp(-3.5 + 3.0 * torch.rand(count, 2, generator=generator))  # 3 % to 60 % of the image
        center = size / 2 + (1 - size) * torch.rand(count, 2, generator=generator)
        labels = torch.randint(step.classes, (count,), generator=generator)
        targets.append({"labels": labels, "boxes": torch.cat([center, size], -1)})
    return targets


def sample_predictions(
    step: MatchingStep, targets: Sequence[dict[str, Tensor]], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw logits [G, B, Q, C] and boxes [G, B, Q, 4]."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    shape = (step.sets, step.images, step.queries)
    if step.costs == "collapsed":
        logits = (
            PRIOR_LOGIT + 0.3 * normal(step.sets, step.images, 1, step.classes) + 1e-3 * normal(*shape, step.classes)
        )
        return logits, torch.tensor([0.5, 0.5, 0.4, 0.4]) + 1e-3 * normal(*shape, 4)
    if step.costs == "random":
        return 2 * normal(*shape, step.classes) - 2, 0.05 + 0.9 * uniform(*shape, 4)
    stage = STAGES[step.costs]
    logits = PRIOR_LOGIT + 0.3 * normal(*shape, step.classes)
    boxes = torch.cat([uniform(*shape, 2), torch.exp(-3.0 + 2.5 * uniform(*shape, 2))], -1)
    found = uniform(*shape) < stage.found
    for image, target in enumerate(targets):
        count = len(target["labels"])
        if count == 0:
            continue
        chosen = torch.randint(count, (step.sets, step.queries), generator=generator)
        truth = target["boxes"][chosen]
        size = truth[..., 2:]
        near = torch.cat(
            [
                truth[..., :2] + stage.box_noise * size * normal(step.sets, step.queries, 2),
                size * torch.exp(stage.box_noise * normal(step.sets, step.queries, 2)),
            ],
            -1,
        )
        boxes[:, image] = torch.where(found[:, image, :, None], near, boxes[:, image])
        label = target["labels"][chosen][..., None]
        sure = stage.class_logit + normal(step.sets, step.queries, 1)
        logits[:, image] = torch.where(
            found[:, image, :, None], logits[:, image].scatter(-1, label, sure), logits[:, image]
        )
    return logits, boxes.clamp(min=1e-3, max=1.0)


@dataclass(frozen=True)
class MatchingSeries:
    """One quantity that grows while the rest is fixed."""

    name: str
    label: str  # of the x axis, with its letters
    steps: tuple[tuple[int, MatchingStep], ...]  # (x, step)


def growth(targets: Sequence[int], queries: Sequence[int], images: Sequence[int]) -> tuple[MatchingSeries, ...]:
    usual = MatchingStep(20, "middle", 2)
    problems = [MatchingStep(7, "middle", some) for some in images]
    return (
        MatchingSeries("targets", "targets of an image T", tuple((t, replace(usual, targets=t)) for t in targets)),
        MatchingSeries("queries", "queries Q", tuple((q, replace(usual, queries=q)) for q in queries)),
        MatchingSeries("problems", "problems G x B, G = 7", tuple((step.problems, step) for step in problems)),
    )


@dataclass(frozen=True)
class MatchingEffort:
    """How much of matching one run measures, and for how long."""

    calls: tuple[tuple[str, MatchingStep], ...]  # (op, step), those of a step together
    growth: tuple[MatchingSeries, ...]
    race_s: float
    growth_s: float
    laps: int
    slowest_s: float  # those whose call takes longer are refused, except the baseline
    most_pairs: int  # the baseline is refused above


def calls(ops: Sequence[str], *steps: MatchingStep) -> tuple[tuple[str, MatchingStep], ...]:
    return tuple((op, step) for step in steps for op in ops)


def _grid(targets: Sequence[int | None], costs: Sequence[str], images: Sequence[int]) -> list[MatchingStep]:
    return [MatchingStep(t, cost, b) for b in images for t in targets for cost in costs]


_NOT_RANDOM = tuple(cost for cost in COSTS if cost != "random")
_ALL_TARGETS = (None, 20, 100, 300)

SHORT = MatchingEffort(
    calls(
        OPS,
        MatchingStep(None, "middle", 2),
        MatchingStep(20, "collapsed", 1, sets=2, queries=300),
    ),
    growth((10, 30), (100, 300), (1, 2)),
    race_s=0.2,
    growth_s=0.1,
    laps=2,
    slowest_s=0.5,
    most_pairs=10_000_000,
)
DEFAULT = MatchingEffort(
    calls(OPS, *_grid([None], ["middle"], [2, 8, 16]))
    + calls(OPS, *_grid([20, 100, 300], ["middle"], [2]))
    + calls([ASSIGNMENT, MATCHER], *_grid([20, 100, 300], ["collapsed"], [2]))
    + calls([ASSIGNMENT], *_grid([20, 100, 300], ["random", "early", "late"], [2])),
    growth((10, 30, 100, 300), (100, 300, 1000, 3000), (1, 4, 16, 64)),
    race_s=0.4,
    growth_s=0.1,
    laps=2,
    slowest_s=0.4,
    most_pairs=15_000_000,
)
FULL = MatchingEffort(
    calls(OPS, *_grid(_ALL_TARGETS, ["middle"], [2, 8, 16]))
    + calls([ASSIGNMENT, MATCHER], *_grid(_ALL_TARGETS, [c for c in _NOT_RANDOM if c != "middle"], [2, 8, 16]))
    + calls([ASSIGNMENT], *_grid(_ALL_TARGETS, ["random"], [2, 8, 16])),
    growth((10, 20, 30, 60, 100, 200, 300), (100, 200, 300, 600, 900, 1500, 3000), (1, 2, 4, 8, 16, 32, 64)),
    race_s=5.0,
    growth_s=2.0,
    laps=3,
    slowest_s=20.0,
    most_pairs=200_000_000,
)
# By the name of an Effort of `workloads`.
EFFORTS = {"short": SHORT, "default": DEFAULT, "full": FULL}
