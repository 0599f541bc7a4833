"""The matchings of one training step, and a proof of optimality that needs no solver.

    minimise   sum of cost[i, j] over the pairs,   each target i its own query j   (or each query its own target)

**Proof.** Let u[i] and v[j] be any numbers with u[i] + v[j] <= cost[i, j] for all pairs, v <= 0, and v[j] = 0 for every
query without a target. A matching of all targets costs at least sum u + sum of v over its queries >= sum u + sum v. If
ours has u[i] + v[j] = cost[i, j] in its pairs, it costs exactly sum u + sum v: no other is cheaper. `violation` checks
these conditions, so that an algorithm proves each of its answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dino_kernels import matching_cost
from dino_kernels.testing import MatchingCase, matching_inputs

# Boxes of images as COCO has them: mean 7.3, median 4.
COCO = MatchingCase("coco", 7, 900, 91, (4, 1, 17, 2, 9, 3, 18, 4), "middle")
CROWD = MatchingCase("crowd", 7, 900, 91, (100, 100), "middle")
COLLAPSED = MatchingCase("collapsed", 7, 900, 91, (30, 30), "collapsed")  # all queries nearly equal


class Matching(NamedTuple):
    """The query of each target, and the duals of steps that compute them."""

    query_idx: Tensor  # [G, N] int64, -1 if none
    target_duals: Tensor | None = None  # u, [G, N] float64
    query_duals: Tensor | None = None  # v, [G, B, Q] float64


@dataclass(frozen=True)
class Step:
    """The costs of one step: G sets of predictions, B images, Q queries.

    Costs are finite numbers; the kernels take infinities and NaN, too.
    """

    inputs: dict[str, Any]  # of `dino_kernels.hungarian_match`
    cost: Tensor  # [G, N, Q] float32
    counts: list[int]  # [B] targets of each image, N in all

    @cached_property
    def offsets(self) -> list[int]:
        """Return where the targets of each image begin in N, and the end."""
        return [sum(self.counts[:image]) for image in range(len(self.counts) + 1)]

    def problems(self) -> list[tuple[int, int, Tensor]]:
        """Return (set, image, cost [T, Q]) of each problem."""
        images = [self.cost[:, a:b] for a, b in zip(self.offsets, self.offsets[1:], strict=False)]
        return [(g, b, image[g]) for g in range(self.cost.shape[0]) for b, image in enumerate(images)]

    @cached_property
    def layers(self) -> list[Tensor]:
        """Return the costs of each set as DINO has them, [B, Q, N]. An image uses its own columns alone."""
        return [layer.T.contiguous().expand(len(self.counts), -1, -1) for layer in self.cost]


def step(case: MatchingCase, seed: int = 0) -> Step:
    """Draw predictions and targets and compute their costs."""
    inputs = matching_inputs(case, seed=seed)
    return Step(inputs, matching_cost(**inputs), list(case.targets))


def total(given: Step, query_idx: Tensor) -> float:
    """Return the cost of all pairs, in float64."""
    paired = query_idx >= 0
    costs = given.cost.double().gather(2, query_idx.clamp(min=0)[..., None]).squeeze(2)
    return costs[paired].sum().item()


def violation(given: Step, found: Matching) -> float:
    """Return by how much an answer misses its proof: at most rounding if it is optimal.

    Raises:
        AssertionError: the step has no duals, or it pairs a query twice or too few targets.
    """
    assert found.target_duals is not None and found.query_duals is not None, "this step has no duals"
    worst = 0.0
    for g, b, float_cost in given.problems():
        cost, rows = float_cost.double(), slice(given.offsets[b], given.offsets[b + 1])
        j, u, v = found.query_idx[g, rows], found.target_duals[g, rows], found.query_duals[g, b]
        i = (j >= 0).nonzero().flatten()
        j = j[i]
        assert len(set(j.tolist())) == len(j) == min(cost.shape), "pairs must be complete and one to one"
        slack = cost - u[:, None] - v
        larger, paired = (v, j) if cost.shape[0] <= cost.shape[1] else (u, i)  # the side that has free members
        free = torch.ones(len(larger), dtype=torch.bool).index_fill(0, paired, False)
        misses = [-slack.flatten(), slack[i, j].abs(), larger, larger[free].abs()]
        worst = max(worst, *(float(x.max()) for x in misses if x.numel()))
    return worst
