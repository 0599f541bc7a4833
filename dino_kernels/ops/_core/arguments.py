"""The arguments of each op as its backends take them: checked, in the dtypes of backends, on one device."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class MSDeformAttnArguments(NamedTuple):
    """Calls that skip the registered op may leave the sample dimensions as L, P instead of K."""

    value: Tensor  # [B, S, M, D]
    spatial_shapes: Tensor | None  # [L, 2] (H, W), or None if level_sizes has them
    level_sizes: list[int]  # [H0, W0, H1, W1, ...], or empty
    level_start_index: Tensor | None  # [L]; None means the exclusive cumulative sum of H * W
    num_points: list[int]  # [L], sum is K
    sampling_locations: Tensor  # [B, Q, M, K, 2], (x, y) in [0, 1] of the level
    attention_weights: Tensor  # [B, Q, M, K]


class FusedMSDeformAttnArguments(NamedTuple):
    """Calls that skip the registered op may leave the sample dimensions as L, P instead of K."""

    value: Tensor  # the first five as in MSDeformAttnArguments
    spatial_shapes: Tensor | None
    level_sizes: list[int]
    level_start_index: Tensor | None
    num_points: list[int]
    reference_points: Tensor  # [B, Q, L, 2] (x, y) or [B, Q, L, 4] (cx, cy, w, h), in [0, 1]
    sampling_offsets: Tensor  # [B, Q, M, K, 2], (x, y) in pixels or in units of the box
    attention_logits: Tensor  # [B, Q, M, K]
    value_mask: Tensor | None  # [B, S] bool, True = padding


class MatchingCostArguments(NamedTuple):
    """Predictions of G sets, and targets of B images; N targets in all."""

    logits: list[Tensor]  # each [G_i, B, Q_i, C]; their G_i add up to G
    boxes: list[Tensor]  # each [G_i, B, Q_i, 4], or empty
    labels: Tensor  # [N] int64
    target_boxes: Tensor | None  # [N, 4] float32
    offsets: Tensor  # [B + 1] int64
    extra_cost: Tensor | None  # [G or 1, N, Q] float32
    max_targets: int  # of an image
    class_cost: str
    formula: list[float]  # CostFormula.numbers()


class HungarianMatchArguments(NamedTuple):
    """Predictions and targets as in `MatchingCostArguments`, and options of the assignment."""

    logits: list[Tensor]
    boxes: list[Tensor]
    labels: Tensor
    target_boxes: Tensor | None
    offsets: Tensor
    extra_cost: Tensor | None
    max_targets: int
    class_cost: str
    formula: list[float]
    ties: str
    full: bool  # with objective and duals


class LinearSumAssignmentArguments(NamedTuple):
    """One tensor of problems.

    Without offsets each of the G matrices is a problem. With offsets the rows of each matrix are those of B problems,
    one after the other, which share the columns.
    """

    cost: Tensor  # [G, R, C] float32 or float64, any strides
    offsets: Tensor | None  # [B + 1] int64: first row of each problem
    sizes: Tensor | None  # [G, 2] int64: rows and columns in use, without offsets
    max_rows: int  # the most rows of a problem
    maximize: bool
    ties: str
    full: bool  # with objective and duals
