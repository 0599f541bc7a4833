"""Step 1: what DINO's matcher does: layer by layer a copy to the host, then SciPy image by image.

python -m dino_kernels.tutorial.matching.step1_scipy
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment

from dino_kernels.tutorial.matching.problem import Matching, Step


def match(given: Step) -> Matching:
    """Return the query of each target."""
    query_idx = torch.full(given.cost.shape[:2], -1)
    for g, layer in enumerate(given.layers):  # [B, Q, N]
        host = layer.cpu()  # waits for the GPU
        for b, costs in enumerate(host.split(given.counts, -1)):
            queries, targets = linear_sum_assignment(costs[b])
            query_idx[g, given.offsets[b] + torch.from_numpy(targets)] = torch.from_numpy(queries)
    return Matching(query_idx)


def why(given: Step) -> str:
    """Count what makes this step what it is."""
    (sets, _, _), images = given.cost.shape, len(given.counts)
    return f"{sets} copies to the host, each after a wait; {sets * images} calls of SciPy, each converts to float64"


if __name__ == "__main__":
    from dino_kernels.tutorial.matching.run import main

    main("step1_scipy")
