"""Step 4: all layers and images in one call of C++. Problems of any sizes follow one another: no padding.

python -m dino_kernels.tutorial.matching.step4_batch
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

from dino_kernels.tutorial import native
from dino_kernels.tutorial.matching.problem import Matching, Step


def match(given: Step) -> Matching:
    """Return the query of each target, and the duals."""
    (G, N, Q), B = given.cost.shape, len(given.counts)
    cost, offsets = given.cost.contiguous(), torch.tensor(given.offsets)
    query_idx, u = torch.empty(G, N, dtype=torch.int64), torch.empty(G, N, dtype=torch.float64)
    v = torch.zeros(G, B, Q, dtype=torch.float64)
    sizes = [ctypes.c_int64(size) for size in (G, B, N, Q)]
    inputs, results = ([ctypes.c_void_p(x.data_ptr()) for x in each] for each in ((cost, offsets), (query_idx, u, v)))
    native.load(Path(__file__).with_name("step4_batch.cpp")).match(*inputs, *sizes, *results)
    return Matching(query_idx, u, v)


def why(given: Step) -> str:
    """Count what makes this step what it is."""
    (G, N, _), most = given.cost.shape, max(given.counts, default=0)
    padded = G * len(given.counts) * most
    return f"1 call instead of {G * len(given.counts)}; {G * N} rows, where padded problems would have {padded}"


if __name__ == "__main__":
    from dino_kernels.tutorial.matching.run import main

    main("step4_batch")
