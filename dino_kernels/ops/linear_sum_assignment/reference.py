"""The definition of `linear_sum_assignment`, in NumPy: one problem at a time, with a fixed choice among optima.

Every kernel repeats it in the same order and in float64, so that all return the same bits. README.md proves optimality.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dino_kernels.ops._core.arguments import LinearSumAssignmentArguments as Arguments

INVALID_COST, INCOMPLETE = 4, 8


def forward(arguments: Arguments) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return columns [G, R], status [G, B], objective [G, B], duals [G, R] and [G, B, C]; B is 1 without offsets.

    Copies costs on a GPU to the host, which synchronises.
    """
    cost, offsets, sizes, _, maximize, ties, full = arguments
    groups, rows, columns = cost.shape
    problems = 1 if offsets is None else len(offsets) - 1
    assigned = np.full((groups, rows), -1)
    status = np.zeros((groups, problems), np.int32)
    objective = np.zeros((groups, problems))
    row_duals, column_duals = np.zeros((groups, rows)), np.zeros((groups, problems, columns))
    matrices = cost.double().cpu().numpy()
    starts = [0, rows] if offsets is None else offsets.tolist()
    used = [[rows, columns]] * groups if sizes is None else sizes.tolist()
    for group in range(groups):
        for problem in range(problems):
            start, end = starts[problem], starts[problem + 1]
            width = columns
            if offsets is None:
                end, width = used[group]
            some = slice(start, end)
            found = solve_problem(matrices[group, some, :width], maximize, ties)
            assigned[group, some], status[group, problem], objective[group, problem] = found[:3]
            row_duals[group, some], column_duals[group, problem, :width] = found[3:]
    results = [assigned, status, *((objective, row_duals, column_duals) if full else [np.zeros(0)] * 3)]
    first, second, *others = (torch.from_numpy(result).to(cost.device) for result in results)
    return first, second, others[0], others[1], others[2]


def solve_problem(cost: np.ndarray, maximize: bool, ties: str) -> tuple[np.ndarray, int, float, np.ndarray, np.ndarray]:
    """Return columns of the rows, status, objective and both duals of one matrix [R, C], in float64."""
    rows, columns = cost.shape
    cost = -cost if maximize else cost
    status = INVALID_COST if (np.isnan(cost) | (cost == -np.inf)).any() else 0
    cost = np.where(np.isfinite(cost), cost, np.inf)
    transposed = columns < rows
    # The solver's rows are the smaller side, counted without rows and columns that infinities forbid.
    used_rows, used_columns = np.isfinite(cost).any(1).sum(), np.isfinite(cost).any(0).sum()
    if used_rows != used_columns and transposed == (used_rows < used_columns):
        transposed = not transposed
    solve = solve_as_scipy if ties == "scipy" else solve_lowest
    large, u, v = solve(np.ascontiguousarray(cost.T) if transposed else cost)
    if transposed:
        u, v = v, u
        assigned = np.full(rows, -1)
        assigned[large[large >= 0]] = np.flatnonzero(large >= 0)
    else:
        assigned = large
    matched = np.flatnonzero(assigned >= 0)
    if len(matched) < min(rows, columns):
        status |= INCOMPLETE
    sign = -1.0 if maximize else 1.0
    objective = 0.0
    for row in matched:
        objective += sign * cost[row, assigned[row]]
    return assigned, status, objective, sign * u + 0.0, sign * v + 0.0


def solve_lowest(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the column of each row, or -1, and duals; forbidden pairs are +inf; rows are the smaller side.

    1. Each row is matched with its cheapest column, the lowest of equals, unless an earlier row has it.
    2. Each unmatched row, in ascending order, is added along a shortest augmenting path (Dijkstra on the reduced
       costs). Unmatched columns have dual 0, so among them only each row's cheapest can end a path.
    """
    rows, columns = cost.shape
    column_of, row_of = np.full(rows, -1), np.full(columns, -1)
    u, v = np.zeros(rows), np.zeros(columns)
    slots: list[int] = []  # matched columns, in the order of matching
    free = []
    for row in range(rows):
        cheapest = int(np.argmin(cost[row])) if columns else -1
        if columns == 0 or cost[row, cheapest] == np.inf:
            continue
        u[row] = cost[row, cheapest]
        if row_of[cheapest] < 0:
            column_of[row], row_of[cheapest] = cheapest, row
            slots.append(cheapest)
        else:
            free.append(row)
    for start in free:
        _augment(cost, start, slots, column_of, row_of, u, v)
    return column_of, u, v


def _augment(
    cost: np.ndarray,
    start: int,
    slots: list[int],
    column_of: np.ndarray,
    row_of: np.ndarray,
    u: np.ndarray,
    v: np.ndarray,
) -> None:
    """Match one more row, if a path exists. Of equals: an unmatched column, the lowest; else the earliest slot."""
    matched = np.array(slots)
    distance, previous = np.full(len(slots), np.inf), np.full(len(slots), -1)
    done = np.zeros(len(slots), bool)
    best, sink, before_sink = np.inf, -1, -1
    row, base = start, 0.0
    while True:
        reach = (cost[row, matched] - v[matched]) + (base - u[row])
        closer = ~done & (reach < distance)
        distance[closer], previous[closer] = reach[closer], row
        unmatched = np.where(row_of < 0, cost[row], np.inf)
        candidate = int(np.argmin(unmatched))
        reach_sink = unmatched[candidate] + (base - u[row])
        if reach_sink < best or (reach_sink == best < np.inf and candidate < sink):
            best, sink, before_sink = reach_sink, candidate, row
        waiting = np.where(done, np.inf, distance)
        slot = int(np.argmin(waiting))
        if best <= waiting[slot]:
            break
        done[slot] = True
        row, base = row_of[matched[slot]], distance[slot]
    if best == np.inf:
        return
    u[start] += best
    for slot in np.flatnonzero(done):
        v[matched[slot]] += distance[slot] - best
        u[row_of[matched[slot]]] += best - distance[slot]
    slots.append(sink)
    column, row = sink, before_sink
    while True:
        row_of[column] = row
        column, column_of[row] = int(column_of[row]), column
        if row == start:
            return
        row = int(previous[slots.index(column)])


def solve_as_scipy(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the same in SciPy's order (Crouse's algorithm): without step 1, every path over all columns in order."""
    rows, columns = cost.shape
    column_of, row_of = np.full(rows, -1), np.full(columns, -1)
    u, v = np.zeros(rows), np.zeros(columns)
    for start in range(rows):
        distance, previous = np.full(columns, np.inf), np.full(columns, -1)
        remaining = np.arange(columns)[::-1].copy()
        visited_rows, visited = [start], []
        row, base, sink = start, 0.0, -1
        while sink < 0 and len(remaining):
            reach = ((base + cost[row]) - u[row]) - v
            closer = np.zeros(columns, bool)
            closer[remaining] = True
            closer &= reach < distance
            distance[closer], previous[closer] = reach[closer], row
            waiting = distance[remaining]
            base = waiting.min()
            if base == np.inf:
                break
            equal = np.flatnonzero(waiting == base)
            unmatched = equal[row_of[remaining[equal]] < 0]
            index = int(unmatched[-1] if len(unmatched) else equal[0])
            column = int(remaining[index])
            visited.append(column)
            if row_of[column] < 0:
                sink = column
            else:
                row = int(row_of[column])
                visited_rows.append(row)
            remaining[index] = remaining[-1]
            remaining = remaining[:-1]
        if sink < 0:
            continue
        u[start] += base
        for row in visited_rows[1:]:
            u[row] += base - distance[column_of[row]]
        for column in visited:
            v[column] -= base - distance[column]
        column = sink
        while True:
            row = int(previous[column])
            row_of[column] = row
            column, column_of[row] = int(column_of[row]), column
            if row == start:
                break
    return column_of, u, v
