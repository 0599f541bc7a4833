"""Hungarian matching: the cost of every pair and the optimal assignment, in one call for all sets and images."""

from __future__ import annotations

from typing import NamedTuple, Unpack

from torch import Tensor

from dino_kernels.ops._core.arguments import HungarianMatchArguments as Arguments
from dino_kernels.ops._core.dispatch import Backends
from dino_kernels.ops._core.eager import is_observed
from dino_kernels.ops._core.registration import define_undifferentiable
from dino_kernels.ops._core.repeated import RepeatedMatching
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
from dino_kernels.targets import PackedTargets

OP = "hungarian_match"


class Match(NamedTuple):
    """The result of `hungarian_match` for G sets of predictions, B images, N packed targets and Q queries."""

    query_idx: Tensor  # [G, N] int64: the query of each target in its image, or -1
    status: Tensor  # [G, B] int32: 0, or bits that `dino_kernels.matching_status` explains
    objective: Tensor | None  # [G, B] float64: sum of the matched costs
    target_duals: Tensor | None  # [G, N] float64
    query_duals: Tensor | None  # [G, B, Q] float64; cost - target_duals - query_duals is never negative


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
    """Check the arguments and return them in the form that backends take."""
    check_choices(OP, ties, check, full_output)
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
    """Match queries and targets one to one at least total cost, separately for each set and image (DETR).

    The result is exact, the same as `linear_sum_assignment` of `matching_cost`, in one call for all decoder layers, the
    encoder and groups, without synchronising with a GPU. Queries that are not finite and targets with an invalid label
    or box stay unmatched and are reported in the status.

    Args:
        logits, boxes, targets, preset, extra_cost, **formula: as in `dino_kernels.matching_cost`.
        ties: between matchings of equal cost; as in `dino_kernels.linear_sum_assignment`.
        check: "raise" raises a ValueError with SciPy's message if anything is not finite, or a target is unmatched
            although a query was free; "warn" is a RuntimeWarning. Both synchronise with a GPU; "none" does not.
        full_output: return objective and duals too.
        backend: "auto", "cpu", "cuda", "triton" or "reference"; see `dino_kernels.explain`.

    Returns:
        `Match`: the query of each target, in the order of the packed targets, so that labels and boxes need no gather
        and shapes are known on the host. `dino_kernels.pairs_of` returns DETR's lists.

    Raises:
        ValueError, TypeError: an argument is malformed; with check="raise", a status is not 0.
        UnsupportedError: no backend, or not the requested one, can run the call.
    """
    # Whatever a mode or a compiler observes, and a rare extra cost, takes the long way.
    quick = isinstance(targets, PackedTargets) and extra_cost is None and not is_observed()
    options = (preset, check, backend, [*formula.items()], ties, full_output) if quick else ()
    outputs = _repeated.run(logits, boxes, targets, options) if quick else None
    if outputs is None:
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
        if quick:
            _repeated.add(logits, boxes, options, arguments, backends.choose(backend, arguments))
    report_status(OP, outputs[1], check)
    return Match(*outputs) if full_output else Match(outputs[0], outputs[1], None, None, None)


def _fake(arguments: Arguments) -> tuple[Tensor, ...]:
    labels, images = arguments.labels, arguments.offsets.shape[0] - 1
    sets, queries = sizes_of(arguments.logits)
    return empty_assignment(labels, sets, images, labels.shape[0], queries, arguments.full)


_op = define_undifferentiable(
    backends, Arguments, f"{COST_SCHEMA}, str ties, bool full", ASSIGNMENT_RESULTS, fake=_fake
)
_repeated = RepeatedMatching(backends)
