"""Batched linear sum assignment: exact, ragged, rectangular either way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from dino_kernels.ops._core.arguments import LinearSumAssignmentArguments as Arguments
from dino_kernels.ops._core.dispatch import AUTO, Backends
from dino_kernels.ops._core.eager import is_observed
from dino_kernels.ops._core.registration import define_undifferentiable
from dino_kernels.ops._core.repeated import RepeatedAssignment
from dino_kernels.ops._matching import ASSIGNMENT_RESULTS, Check, Ties, check_choices, empty_assignment, report_status
from dino_kernels.ops.linear_sum_assignment import forms, native, reference, triton
from dino_kernels.ops.linear_sum_assignment.forms import Pairs, Sizes
from dino_kernels.ops.linear_sum_assignment.limit import check_limit, limited, unlimited

OP = "linear_sum_assignment"
Matrix = np.ndarray | Sequence[Sequence[float]]


class Assignment(NamedTuple):
    """The result of `linear_sum_assignment` with `full_output=True`; [B] is [G, B] for packed costs."""

    columns: Tensor  # [B, W] int64: the column of each row, or -1
    status: Tensor  # [B] int32: 0, or bits that `dino_kernels.matching_status` explains
    objective: Tensor  # [B] float64: sum of the assigned costs
    # With a cost limit, duals are those of the problem in README.md, where greater costs are replaced by the limit.
    row_duals: Tensor  # [B, W] float64
    # [B, T] float64. cost - row_duals - column_duals is never negative (with maximize: never positive), and the duals
    # add up to the objective, which proves it optimal. If the status is not 0, this holds for the allowed pairs.
    column_duals: Tensor


def prepare(
    cost: Tensor | Matrix | Sequence[Tensor],
    sizes: Sizes | bool | None = None,
    *,
    cost_limit: float | None = None,
    **options: Any,
) -> Arguments:
    """Check the arguments and return them in the form that backends take."""
    arguments = _without_limit(cost, sizes, **options)
    limit = check_limit(OP, cost_limit, arguments.maximize)
    return arguments if limit is None else limited(arguments, limit)[0]


def _without_limit(
    cost: Tensor | Matrix | Sequence[Tensor],
    sizes: Sizes | bool | None = None,
    *,
    offsets: Tensor | None = None,
    maximize: bool = False,
    ties: Ties = "lowest",
    check: Check = "none",
    full_output: bool = False,
) -> Arguments:
    check_choices(OP, ties, check, full_output)
    sizes, maximize = forms.as_scipy(OP, sizes, maximize)
    cost = forms.as_costs(OP, cost)
    if isinstance(cost, list):
        _refuse_with_list(sizes, offsets, full_output)
        cost, sizes, offsets, *_ = forms.join(OP, cost)
    if cost.dim() not in (2, 3):
        raise ValueError(f"{OP}: cost must be [B, W, T], [W, T] or a list of [W, T], got {list(cost.shape)}")
    cost = cost.detach()
    if cost.is_complex():
        raise TypeError(f"{OP}: cost must be real, got {cost.dtype}")
    if cost.dtype not in (torch.float32, torch.float64):
        # 16-bit numbers are float32 numbers; integers are exact up to 2^53.
        cost = cost.float() if cost.is_floating_point() else cost.double()
    if offsets is not None and cost.dim() == 2:
        cost = cost[None]
    if cost.dim() == 2:
        cost = cost[None]
    problems, rows, columns = cost.shape
    if offsets is not None:
        if sizes is not None:
            raise ValueError(f"{OP}: offsets and sizes exclude each other. Pass one of them")
        if not isinstance(offsets, Tensor):
            raise TypeError(f"{OP}: offsets must be an int64 tensor [B + 1], got {type(offsets).__name__}")
        if offsets.dim() != 1 or offsets.dtype != torch.int64 or offsets.shape[0] == 0:
            raise ValueError(f"{OP}: offsets must be int64 [B + 1], got {offsets.dtype} {list(offsets.shape)}")
        if offsets.device != cost.device:
            raise ValueError(f"{OP}: offsets is on {offsets.device} and cost on {cost.device}. Move it there")
    if sizes is not None:
        sizes = forms.as_sizes(OP, sizes, problems, rows, columns, cost.device)
    return Arguments(cost, offsets, sizes, rows, maximize, ties, full_output)


backends = Backends(OP, prepare, cuda=native.cuda, triton=triton, cpu=native.cpu, reference=reference)


@overload
def linear_sum_assignment(
    cost: Tensor,
    sizes: Sizes | bool | None = None,
    *,
    offsets: Tensor | None = None,
    maximize: bool = False,
    cost_limit: float | None = None,
    ties: Ties = "lowest",
    check: Check = "none",
    full_output: Literal[False] = False,
    backend: str = "auto",
) -> Tensor: ...


@overload
def linear_sum_assignment(
    cost: Tensor,
    sizes: Sizes | bool | None = None,
    *,
    offsets: Tensor | None = None,
    maximize: bool = False,
    cost_limit: float | None = None,
    ties: Ties = "lowest",
    check: Check = "none",
    full_output: Literal[True],
    backend: str = "auto",
) -> Assignment: ...


@overload
def linear_sum_assignment(
    cost: Sequence[Tensor] | Sequence[np.ndarray],
    sizes: bool | None = None,
    *,
    maximize: bool = False,
    cost_limit: float | None = None,
    ties: Ties = "lowest",
    check: Check = "none",
    backend: str = "auto",
) -> list[Pairs]: ...


@overload
def linear_sum_assignment(
    cost: Matrix,
    sizes: Sizes | bool | None = None,
    *,
    offsets: Tensor | None = None,
    maximize: bool = False,
    cost_limit: float | None = None,
    ties: Ties = "lowest",
    check: Check = "none",
    full_output: bool = False,
    backend: str = "auto",
) -> Any: ...


def linear_sum_assignment(
    cost: Any,  # [B, W, T], [W, T], packed [G, N, Q] with offsets, or a list of [W, T]
    sizes: Sizes | bool | None = None,  # [B] or [B, 2]
    *,
    offsets: Tensor | None = None,  # [B + 1]
    maximize: bool = False,
    cost_limit: float | None = None,
    ties: Ties = "lowest",
    check: Check = "none",
    full_output: bool = False,
    backend: str = "auto",
) -> Tensor | Assignment | Pairs | list[Pairs]:
    """Assign rows to columns at least total cost, for many problems at once.

    Exact, like `scipy.optimize.linear_sum_assignment`: every row gets a column, or every column a row if columns are
    fewer. A batch does not synchronise with a GPU. Costs in float32 (or 16 bit) and float64 are summed in float64.

    A cost of +inf (-inf with `maximize`) forbids its pair; so do NaN and the other infinity, which the status reports.
    Rows and columns without an allowed pair are left out. If even then not all of the smaller side can be matched, as
    many as possible are, and the status reports it; which pairs are kept is then not by cost.

    With `cost_limit`, both sides may stay unmatched, and the least sum of `cost - cost_limit` over the pairs is found.

    Args:
        cost: a batch of matrices; one matrix; a list of matrices of any sizes; or, with `offsets`, G matrices whose
            rows `offsets[b]` to `offsets[b + 1]` are one problem each, such as those of `dino_kernels.matching_cost`.
            Any real dtype, any strides. NumPy arrays and nested lists of numbers become tensors on the CPU.
        sizes: used part of each matrix of a batch: its columns, [B], or its rows and columns, [B, 2]; a list, or an
            integer tensor on any device. The rest may have any value. True or False is `maximize`, as in SciPy.
        offsets: int64, on the device of `cost`.
        maximize: find the greatest total instead.
        cost_limit: a pair that costs more (with `maximize`: less) is not worth matching. Of matchings with equal sums,
            one that leaves no pair at exactly the limit unmatched is preferred. None: no limit.
        ties: choice between assignments of equal cost. "lowest": rows prefer low columns, and all backends agree to the
            bit; "scipy": that of SciPy 1.4 and newer, if the costs are finite.
        check: "raise" raises a ValueError with SciPy's message if a cost is invalid or a row or column that could be
            matched is not; "warn" is a RuntimeWarning. Both synchronise with a GPU; "none" does not.
        full_output: return an `Assignment`: status, objective and duals too.
        backend: "auto", "cpu", "cuda", "triton" or "reference"; see `dino_kernels.explain`.

    Returns:
        For a batch the column of each row or -1, [B, W] int64 ([G, N] for packed costs). For one matrix, as in SciPy,
        `(row_ind, col_ind)`, int64, rows ascending; for a list of matrices a list of these.

    Raises:
        ValueError, TypeError: an argument is malformed; with check="raise", a cost is invalid or infeasible.
        UnsupportedError: no backend, or not the requested one, can run the call.
    """
    quick = sizes is None and cost_limit is None and not full_output and not is_observed()
    options = (backend, check, maximize, ties, full_output)
    outputs = _repeated.run(cost, offsets, options) if quick else None
    if outputs is not None:
        report_status(OP, outputs[1], check)
        return outputs[0]
    sizes, maximize = forms.as_scipy(OP, sizes, maximize)
    cost = forms.as_costs(OP, cost)
    if isinstance(cost, list):
        _refuse_with_list(sizes, offsets, full_output)
        joined = forms.join(OP, cost)
        columns = linear_sum_assignment(
            joined.cost,
            joined.sizes,
            offsets=joined.offsets,
            maximize=maximize,
            cost_limit=cost_limit,
            ties=ties,
            check=check,
            # Without matrices there is no device that a backend could ask for.
            backend=backend if cost or backend not in backends.modules else AUTO,
        )
        return forms.split(columns, joined)
    arguments = _without_limit(
        cost, sizes, offsets=offsets, maximize=maximize, ties=ties, check=check, full_output=full_output
    )
    limit = check_limit(OP, cost_limit, maximize)
    if limit is None:
        outputs = _op(arguments, backend)
        if quick:
            _repeated.add(cost, options, arguments, backends.choose(backend, arguments))
    else:
        replaced, allowed = limited(arguments, limit)
        outputs = unlimited(_op(replaced, backend), arguments, allowed)
    report_status(OP, outputs[1], check)
    if cost.dim() == 2 and offsets is None and not full_output:
        return forms.pairs(outputs[0][0], False)
    if not full_output:
        return outputs[0]
    columns, status, objective, row_duals, column_duals = outputs
    if offsets is None:
        status, objective, column_duals = (tensor[:, 0] for tensor in (status, objective, column_duals))
    return Assignment(columns, status, objective, row_duals, column_duals)


def _refuse_with_list(sizes: Sizes | None, offsets: Tensor | None, full_output: bool) -> None:
    """Refuse arguments that a list of matrices does not take."""
    if sizes is not None or offsets is not None or full_output:
        raise ValueError(f"{OP}: a list of matrices takes no sizes, offsets or full_output. Pass a padded tensor")


def _fake(arguments: Arguments) -> tuple[Tensor, ...]:
    cost, offsets = arguments.cost, arguments.offsets
    problems = 1 if offsets is None else offsets.shape[0] - 1
    groups, rows, columns = cost.shape
    return empty_assignment(cost, groups, problems, rows, columns, arguments.full)


_op = define_undifferentiable(
    backends,
    Arguments,
    "Tensor cost, Tensor? offsets, Tensor? sizes, SymInt max_rows, bool maximize, str ties, bool full",
    ASSIGNMENT_RESULTS,
    fake=_fake,
)
_repeated = RepeatedAssignment(backends)
