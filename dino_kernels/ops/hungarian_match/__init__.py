"""Hungarian matching: the cost of every pair and the optimal assignment, in one call for all sets and images."""

from __future__ import annotations

from typing import NamedTuple, Unpack

from torch import Tensor

from dino_kernels.ops._core.dispatch import Backends
from dino_kernels.ops._core.registration import define_undifferentiable
from dino_kernels.ops._matching import (
    ASSIGNMENT_RESULTS,
    COST_SCHEMA,
    Check,
    FormulaOptions,
    Predictions,
    Targets,
    Ties,
    check_choices,
    cost_arguments,
    empty_assignment,
    report_status,
    sizes_of,
)
from dino_kernels.ops.hungarian_match import native, reference, triton

OP = "hungarian_match"


class Match(NamedTuple):
    """What `hungarian_match` returns: G sets of predictions, B images, N packed targets, Q queries."""

    query_idx: Tensor  # [G, N] int64: the query of each target in its image, -1 where none
    status: Tensor  # [G, B] int32: 0, or bits that `dino_kernels.matching_status` spells out
    objective: Tensor | None  # [G, B] float64: sum of the matched costs
    target_duals: Tensor | None  # [G, N] float64
    query_duals: Tensor | None  # [G, B, Q] float64; cost - target_duals - query_duals is never negative


class Arguments(NamedTuple):
    """The arguments as the op and its backends see them; see `CostArguments`."""

    logits: list[Tensor]  # each [G_i, B, Q_i, C]
    boxes: list[Tensor]  # each [G_i, B, Q_i, 4], or empty
    labels: Tensor  # [N] int64
    target_boxes: Tensor | None  # [N, 4] float32
    offsets: Tensor  # [B + 1] int64
    extra_cost: Tensor | None  # [G or 1, N, Q] float32
    max_targets: int
    class_cost: str
    formula: list[float]
    ties: str
    full: bool


def prepare(
    logits: Predictions,
    boxes: Predictions | None,
    targets: Targets,
    *,
    preset: str = "dino",
    extra_cost: Tensor | None = None,
    ties: Ties = "lowest",
    check: Check = "none",
    full_output: bool = False,
    **formula: Unpack[FormulaOptions],
) -> Arguments:
    check_choices(OP, ties, check)
    return Arguments(*cost_arguments(OP, logits, boxes, targets, preset, extra_cost, formula), ties, full_output)


backends = Backends(OP, prepare, cuda=native.cuda, triton=triton, cpu=native.cpu, reference=reference)


def hungarian_match(
    logits: Predictions,  # [G, B, Q, C], or a list of [G_i, B, Q_i, C] and [B, Q_i, C]
    boxes: Predictions | None,  # likewise [G, B, Q, 4], (cx, cy, w, h)
    targets: Targets,
    *,
    preset: str = "dino",
    extra_cost: Tensor | None = None,
    ties: Ties = "lowest",
    check: Check = "none",
    full_output: bool = False,
    backend: str = "auto",
    **formula: Unpack[FormulaOptions],
) -> Match:
    """The one-to-one matching of queries and targets of least total cost, for each set and image alone (DETR).

    The same as `linear_sum_assignment` of `matching_cost`, exact, in one call for all decoder layers, the encoder and
    groups, without waiting for a GPU. A query that is not finite is matched with nothing, and neither is a target with
    a bad label or box; the status tells of both.

    Args:
        logits, boxes, targets, preset, extra_cost, **formula: as in `dino_kernels.matching_cost`.
        ties: between matchings of equal cost; as in `dino_kernels.linear_sum_assignment`.
        check: "raise" is a ValueError in SciPy's words where anything was not finite, or a target without need has no
            query; "warn" is a RuntimeWarning. Both wait for a GPU; "none" does not.
        full_output: objective and duals too.
        backend: "auto", "cpu", "cuda", "triton" or "reference"; see `dino_kernels.explain`.

    Returns:
        `Match`: the query of each target, in the order of the packed targets, so that labels and boxes need no gather;
        shapes are known without waiting. `dino_kernels.pairs_of` gives DETR's lists.

    Raises:
        ValueError, TypeError: a malformed argument, named; with check="raise", what the status tells.
        UnsupportedError: no backend can run the call, or not the requested one.
    """
    arguments = prepare(
        logits,
        boxes,
        targets,
        preset=preset,
        extra_cost=extra_cost,
        ties=ties,
        check=check,
        full_output=full_output,
        **formula,
    )
    outputs = _op(arguments, backend)
    report_status(OP, outputs[1], check)
    return Match(*outputs) if full_output else Match(outputs[0], outputs[1], None, None, None)


def _fake(arguments: Arguments) -> tuple[Tensor, ...]:
    labels, images = arguments.labels, arguments.offsets.shape[0] - 1
    sets, queries = sizes_of(arguments.logits)
    return empty_assignment(labels, sets, images, labels.shape[0], queries, arguments.full)


_op = define_undifferentiable(
    backends, Arguments, f"{COST_SCHEMA}, str ties, bool full", ASSIGNMENT_RESULTS, fake=_fake
)
