"""Step 2: each target takes its cheapest query. If no two take the same one, nothing can be cheaper.

    python -m dino_kernels.tutorial.matching.step2_minima

Proof in two sentences: every matching gives each target some query, which costs at least the target's minimum. So no
matching costs less than the sum of the minima, which is what this one costs.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from dino_kernels.tutorial.matching.problem import Matching, Step


def match(given: Step) -> Matching:
    """Return the query of each target. Problems with conflicts are left to SciPy."""
    query_idx = torch.full(given.cost.shape[:2], -1)
    for g, b, costs in given.problems():
        cost = costs.numpy()  # [T, Q]
        found = query_idx[g, given.offsets[b] : given.offsets[b + 1]].numpy()  # a view: writing to it is the answer
        if cost.shape[0] <= cost.shape[1]:
            found[:] = cost.argmin(1)
            if len(np.unique(found)) == len(found):
                continue
        targets, queries = linear_sum_assignment(cost)
        found[:] = -1
        found[targets] = queries
    return Matching(query_idx)


def why(given: Step) -> str:
    """Count what makes this step what it is."""
    nearest = [cost.argmin(1) for _, _, cost in given.problems()]
    solved = sum(len(queries.unique()) == len(queries) for queries in nearest)
    return f"{solved} of {len(nearest)} problems have no conflict: one pass over {given.cost.numel():,} costs"


if __name__ == "__main__":
    from dino_kernels.tutorial.matching.run import main

    main("step2_minima")
