"""Step 3: rows that lost their cheapest column take the shortest augmenting path; all others stay as they are.

    python -m dino_kernels.tutorial.matching.step3_conflicts

Rows are the smaller side, usually the targets. The duals u, v of `problem.py` are kept throughout: u = row minima and
v = 0 satisfy them at the start, and each path keeps them, so the answer comes with its proof.
"""

from __future__ import annotations

import numpy as np
import torch

from dino_kernels.tutorial.matching.problem import Matching, Step


def match(given: Step) -> Matching:
    """Return the query of each target, and the duals."""
    G, N, Q = given.cost.shape
    query_idx, u, v = np.full((G, N), -1), np.zeros((G, N)), np.zeros((G, len(given.counts), Q))
    for g, b, costs in given.problems():
        rows, cost = slice(given.offsets[b], given.offsets[b + 1]), costs.numpy()
        if cost.shape[0] <= cost.shape[1]:
            query_idx[g, rows] = solve(cost, u[g, rows], v[g, b])
        else:  # more targets than queries
            query_idx[g, rows][solve(cost.T, v[g, b], u[g, rows])] = np.arange(Q)
    return Matching(*(torch.from_numpy(x) for x in (query_idx, u, v)))


def solve(cost: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return the column of each row, and set the duals u and, from zeros, v; no more rows than columns."""
    rows, columns = cost.shape
    nearest = cost.argmin(1) if rows else np.empty(0, dtype=int)
    u[:] = cost[np.arange(rows), nearest]
    claimed, first = np.unique(nearest, return_index=True)  # the first row to claim a column gets it
    column_of = np.full(rows, -1)
    column_of[first] = claimed
    if len(first) < rows:
        row_of = np.full(columns, -1)
        row_of[claimed] = first
        for i in np.flatnonzero(column_of < 0):
            augment(int(i), cost, u, v, column_of, row_of)
    return column_of


def augment(start: int, cost: np.ndarray, u: np.ndarray, v: np.ndarray, column_of: np.ndarray, row_of: np.ndarray):
    """Give row `start` a column: Dijkstra's algorithm over columns, with lengths cost - u - v >= 0."""
    distance, via = np.full(len(v), np.inf), np.full(len(v), -1)
    settled = np.zeros(len(v), dtype=bool)
    i, base = start, 0.0
    while True:
        through = base + (cost[i] - u[i] - v)
        nearer = ~settled & (through < distance)
        distance[nearer], via[nearer] = through[nearer], i
        j = int(np.where(settled, np.inf, distance).argmin())
        base = distance[j]
        if row_of[j] < 0:
            break  # the nearest column that is free
        settled[j], i = True, row_of[j]
    u[start] += base
    u[row_of[settled]] += base - distance[settled]
    v[settled] -= base - distance[settled]
    i = -1
    while i != start:  # from the free column back: each row on the path takes the column that it reached
        i = via[j]
        row_of[j], column_of[i], j = i, j, column_of[i]


def why(given: Step) -> str:
    """Count what makes this step what it is."""
    lost = sum(cost.shape[0] - len(cost.argmin(1).unique()) for _, _, cost in given.problems() if cost.numel())
    return f"{lost} of {given.cost.shape[0] * given.cost.shape[1]} targets need a path; SciPy computes one for each"


if __name__ == "__main__":
    from dino_kernels.tutorial.matching.run import main

    main("step3_conflicts")
