"""Cases and sample inputs of the matching ops."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dino_kernels.targets import PackedTargets

STAGES = ("initial", "middle", "late", "collapsed", "saturated", "repeated")
KINDS = ("random", "wide", "integers", "equal", "collapsed", "signed_zeros", "forbidden", "blocked", "hostile")
PRIOR_LOGIT = -4.6  # of every class at initialisation: a probability of 0.01


@dataclass(frozen=True)
class MatchingCase:
    """Sizes of one matching call, and the kind of predictions.

    Stages:
        initial: logits near the prior, boxes anywhere.
        middle, late: up to three queries near each target, within about 0.1 or 0.01 of the image, with higher logits of
            its class when late.
        collapsed: all queries equal up to noise of 1e-3, so that all targets prefer the same one.
        saturated: logits of up to +-40, and boxes that are tiny, huge, touching or equal to a target.
        repeated: middle, with every query twice, so that costs are equal in pairs.
    """

    name: str
    sets: int
    queries: int
    classes: int
    targets: tuple[int, ...]  # of each image
    stage: str = "middle"

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise ValueError(f"MatchingCase {self.name}: stage must be one of {STAGES}, got {self.stage!r}")

    @property
    def id(self) -> str:
        return f"{self.name}_b{len(self.targets)}"

    def small(self) -> MatchingCase:
        """Return a smaller case for slow backends, with as many images, and more targets than queries if there were."""
        queries = min(self.queries, 9)
        most = max(self.targets, default=0)
        targets = tuple(min(count, 4 if most <= self.queries else queries + 2) for count in self.targets)
        if most == self.queries:
            targets = tuple(min(count, queries) for count in self.targets)
        return replace(self, sets=min(self.sets, 2), queries=queries, classes=min(self.classes, 6), targets=targets)


MATCHING_CASES: tuple[MatchingCase, ...] = (
    MatchingCase("initial", 3, 100, 20, (7, 12), "initial"),
    MatchingCase("middle", 3, 100, 20, (7, 12), "middle"),
    MatchingCase("late", 7, 97, 91, (4, 19), "late"),
    MatchingCase("collapsed", 2, 60, 20, (30, 12), "collapsed"),
    MatchingCase("saturated", 2, 60, 12, (9, 14), "saturated"),
    MatchingCase("repeated", 2, 60, 12, (9, 14), "repeated"),
    MatchingCase("one_crowded_image", 2, 70, 8, (0, 0, 60, 0)),
    MatchingCase("no_targets", 2, 10, 5, (0, 0, 0)),
    MatchingCase("one_target", 1, 33, 3, (1,)),
    MatchingCase("more_targets_than_queries", 2, 8, 4, (11, 3)),
    MatchingCase("square", 2, 17, 4, (17, 17), "collapsed"),
    MatchingCase("one_query", 2, 1, 3, (3, 0, 1)),
    MatchingCase("one_class", 2, 20, 1, (3, 5)),
    MatchingCase("no_queries", 2, 0, 3, (3, 1)),
    MatchingCase("no_images", 2, 10, 3, ()),
    MatchingCase("no_sets", 0, 10, 3, (2, 1)),
)


def matching_inputs(
    case: MatchingCase, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0
) -> dict[str, Any]:
    """Return random keyword arguments of `matching_cost` and `hungarian_match`: logits, boxes and packed targets.

    Numbers are drawn in float64 and rounded, so they are the same for all dtypes.
    """
    generator = torch.Generator().manual_seed(seed)
    targets = [_image_targets(case, count, generator) for count in case.targets]
    images = [_image_predictions(case, target, generator) for target in targets]
    shape = (case.sets, 0, case.queries)
    logits = torch.stack([logits for logits, _ in images], 1) if images else torch.zeros(*shape, case.classes)
    boxes = torch.stack([boxes for _, boxes in images], 1) if images else torch.zeros(*shape, 4)
    return {
        "logits": logits.to(device, dtype),
        "boxes": boxes.to(device, dtype),
        "targets": PackedTargets.pack(targets, device=device),
    }


def _normal(generator: torch.Generator, *size: int) -> Tensor:
    return torch.randn(size, generator=generator, dtype=torch.float64)


def _uniform(generator: torch.Generator, *size: int) -> Tensor:
    return torch.rand(size, generator=generator, dtype=torch.float64)


def _random_boxes(generator: torch.Generator, *size: int) -> Tensor:
    """Draw boxes (cx, cy, w, h) within the image, most of them small."""
    sizes = (_normal(generator, *size, 2) * 0.7 - 2).exp().clamp(0.01, 0.9)
    return torch.cat([sizes / 2 + (1 - sizes) * _uniform(generator, *size, 2), sizes], -1)


def _image_targets(case: MatchingCase, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    return {
        "labels": torch.randint(case.classes, (count,), generator=generator),
        "boxes": _random_boxes(generator, count),
    }


def _image_predictions(
    case: MatchingCase, target: dict[str, Tensor], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw logits [G, Q, C] and boxes [G, Q, 4] of one image, float64."""
    sets, queries, classes = case.sets, case.queries, case.classes
    if case.stage == "collapsed":
        logits = PRIOR_LOGIT + _normal(generator, 1, 1, classes) + 1e-3 * _normal(generator, sets, queries, classes)
        boxes = torch.tensor([0.5, 0.5, 0.4, 0.4]) + 1e-3 * _normal(generator, sets, queries, 4)
        return logits, boxes
    boxes = _random_boxes(generator, sets, queries)
    if case.stage == "saturated":
        return _saturated(case, boxes, target, generator)
    logits = PRIOR_LOGIT + 0.4 * _normal(generator, sets, queries, classes)
    count = len(target["labels"])
    if case.stage != "initial" and count:
        noise, sure = (0.01, 6.0) if case.stage == "late" else (0.1, 3.0)
        order = _uniform(generator, sets, queries).argsort(-1)
        near = (order < 3 * count)[..., None]
        chosen = order % count
        found = target["boxes"][chosen] + noise * _normal(generator, sets, queries, 4)
        found[..., 2:] = found[..., 2:].clamp(min=0.005)
        boxes = torch.where(near, found, boxes)
        logit = near * (sure + _normal(generator, sets, queries, 1))
        logits = logits.scatter_add(-1, target["labels"][chosen][..., None], logit)
    if case.stage == "repeated":
        first = torch.arange(queries) // 2
        logits, boxes = logits[:, first], boxes[:, first]
    return logits, boxes


def _saturated(
    case: MatchingCase, boxes: Tensor, target: dict[str, Tensor], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    logits = (_uniform(generator, case.sets, case.queries, case.classes) - 0.5) * 80
    logits[:, ::7] = logits[:, ::7].round()
    boxes[:, 1::5, 2:] *= 1e-3
    boxes[:, 2::5] *= 10
    count = len(target["labels"])
    if count:
        equal = target["boxes"][torch.arange(boxes[:, 3::5].shape[1]) % count].expand_as(boxes[:, 3::5]).clone()
        boxes[:, 3::5] = equal
        equal[:, ::2, 0] += equal[:, ::2, 2]  # its left neighbour
        boxes[:, 4::5] = equal[:, : boxes[:, 4::5].shape[1]]
    return logits, boxes


@dataclass(frozen=True)
class AssignmentCase:
    """Sizes of a batch of assignment problems, and the kind of costs.

    Kinds:
        random: normal numbers. wide: from 1e-30 to 1e30, of either sign.
        integers: 0 to 3; equal: all the same; collapsed: rows nearly equal, so that all prefer the same columns.
        signed_zeros: 0, -0 and the smallest numbers next to them.
        forbidden: one in three is infinite. blocked: some rows or columns share too few allowed partners.
        hostile: integers mixed with NaN, both infinities and signed zeros, and whole rows and columns of these.
    """

    name: str
    problems: int
    rows: int
    columns: int
    kind: str = "random"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"AssignmentCase {self.name}: kind must be one of {KINDS}, got {self.kind!r}")

    @property
    def id(self) -> str:
        return f"{self.name}_{self.rows}x{self.columns}"

    @property
    def finite(self) -> bool:
        return self.kind not in ("forbidden", "blocked", "hostile")

    @property
    def ties(self) -> bool:
        """Whether several assignments may have equal cost."""
        return self.kind not in ("random", "wide", "collapsed")

    def small(self) -> AssignmentCase:
        """Return a smaller case for slow backends, with the same longer side."""
        rows, columns = (min(size, 4 if size < other else 9) for size, other in self._sides)
        if self.rows == self.columns:
            rows = columns = min(self.rows, 5)
        return replace(self, problems=min(self.problems, 2), rows=rows, columns=columns)

    @property
    def _sides(self) -> tuple[tuple[int, int], tuple[int, int]]:
        return (self.rows, self.columns), (self.columns, self.rows)


ASSIGNMENT_CASES: tuple[AssignmentCase, ...] = (
    AssignmentCase("random", 4, 20, 90),
    AssignmentCase("random_tall", 4, 70, 15),
    AssignmentCase("random_square", 3, 33, 33),
    AssignmentCase("wide_range", 3, 12, 31, "wide"),
    AssignmentCase("collapsed", 3, 30, 64, "collapsed"),
    AssignmentCase("collapsed_square", 2, 32, 32, "collapsed"),
    AssignmentCase("integers", 6, 18, 40, "integers"),
    AssignmentCase("integers_tall", 4, 40, 18, "integers"),
    AssignmentCase("integers_square", 4, 24, 24, "integers"),
    AssignmentCase("equal", 2, 9, 21, "equal"),
    AssignmentCase("signed_zeros", 3, 8, 11, "signed_zeros"),
    AssignmentCase("forbidden", 6, 14, 30, "forbidden"),
    AssignmentCase("forbidden_square", 6, 12, 12, "forbidden"),
    AssignmentCase("blocked", 6, 13, 20, "blocked"),
    AssignmentCase("blocked_tall", 6, 20, 13, "blocked"),
    AssignmentCase("blocked_square", 6, 15, 15, "blocked"),
    AssignmentCase("hostile", 8, 11, 17, "hostile"),
    AssignmentCase("hostile_tall", 8, 17, 11, "hostile"),
    AssignmentCase("one_row", 5, 1, 37),
    AssignmentCase("one_column", 5, 37, 1),
    AssignmentCase("one_pair", 3, 1, 1),
    AssignmentCase("no_rows", 2, 0, 5),
    AssignmentCase("no_columns", 2, 5, 0),
    AssignmentCase("no_problems", 0, 4, 6),
)


def assignment_costs(
    case: AssignmentCase, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0
) -> Tensor:
    """Draw the costs [B, W, T] of the problems of a case."""
    generator = torch.Generator().manual_seed(seed)
    size = (case.problems, case.rows, case.columns)
    integers = torch.randint(4, size, generator=generator).double()
    if case.kind == "random":
        cost = _normal(generator, *size)
    elif case.kind == "wide":
        cost = 10 ** (60 * _uniform(generator, *size) - 30) * (2.0 * torch.randint(2, size, generator=generator) - 1)
    elif case.kind == "integers":
        cost = integers
    elif case.kind == "equal":
        cost = torch.full(size, 0.1, dtype=torch.float64)
    elif case.kind == "collapsed":
        cost = _normal(generator, case.problems, 1, case.columns) + 1e-3 * _normal(generator, *size)
    elif case.kind == "signed_zeros":
        cost = torch.tensor([0.0, -0.0, 1e-45, -1e-45], dtype=torch.float64)[integers.long()]
    elif case.kind == "forbidden":
        cost = _normal(generator, *size).masked_fill(_uniform(generator, *size) < 1 / 3, torch.inf)
    elif case.kind == "blocked":
        cost = _blocked(_normal(generator, *size))
    else:
        cost = _hostile(integers, generator)
    return cost.to(device, dtype)


def _blocked(cost: Tensor) -> Tensor:
    """Leave half of the smaller side, plus one, only a third of that many partners."""
    smaller = cost if cost.shape[1] <= cost.shape[2] else cost.transpose(1, 2)
    many = smaller.shape[1] // 2 + 1
    smaller[:, :many, many // 3 :] = torch.inf
    return cost


def _hostile(cost: Tensor, generator: torch.Generator) -> Tensor:
    problems, rows, columns = cost.shape
    odd = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0], dtype=torch.float64)
    drawn = odd[torch.randint(4, cost.shape, generator=generator)]
    cost = torch.where(_uniform(generator, *cost.shape) < 0.3, drawn, cost)
    for problem in range(problems):
        if problem % 2 and rows and columns:
            cost[problem, problem % rows] = odd[problem % 3]
            cost[problem, :, problem % columns] = odd[(problem + 1) % 3]
    return cost
