"""Batched linear sum assignment: exact, ragged, rectangular either way."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from dino_kernels.ops._core.arguments import LinearSumAssignmentArguments as Arguments
from dino_kernels.ops._core.dispatch import Backends
from dino_kernels.ops._core.registration import define_undifferentiable
from dino_kernels.ops._matching import ASSIGNMENT_RESULTS, Check, Ties, check_choices, empty_assignment, report_status
from dino_kernels.ops.linear_sum_assignment import native, reference, triton

OP = "linear_sum_assignment"
Sizes = Tensor | Sequence[int] | Sequence[Sequence[int]]
Pairs = tuple[Tensor, Tensor]


class Assignment(NamedTuple):
    """The result of `linear_sum_assignment` with `full_output=True`; [B] is [G, B] for packed costs."""

    columns: Tensor  # [B, W] int64: the column of each row, or -1
    status: Tensor  # [B] int32: 0, or bits that `dino_kernels.matching_status` explains
    objective: Tensor  # [B] float64: sum of the assigned costs
    row_duals: Tensor  # [B, W] float64
    # [B, T] float64. cost - row_duals - column_duals is never negative (with maximize: never positive), and the duals
    # add up to the objective, which proves it optimal. If the status is not 0, this holds for the allowed pairs.
    column_duals: Tensor


def prepare(
    cost: Tensor | Sequence[Tensor],
    sizes: Sizes | None = None,
    *,
    offsets: Tensor | None = None,
    maximize: bool = False,
    ties: Ties = "lowest",
    check: Check = "none",
    full_output: bool = False,
) -> Arguments:
    """Check the arguments and return them in the form that backends take."""
    check_choices(OP, ties, check)
    if not isinstance(cost, Tensor):
        _refuse_with_list(sizes, offsets, full_output)
        cost, sizes, offsets, *_ = _join(list(cost))
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
        if offsets.dim() != 1 or offsets.dtype != torch.int64 or offsets.shape[0] == 0:
            raise ValueError(f"{OP}: offsets must be int64 [B + 1], got {offsets.dtype} {list(offsets.shape)}")
        if offsets.device != cost.device:
            raise ValueError(f"{OP}: offsets is on {offsets.device} and cost on {cost.device}. Move it there")
    if sizes is not None:
        sizes = _sizes(sizes, problems, rows, columns, cost.device)
    return Arguments(cost, offsets, sizes, rows, maximize, ties, full_output)


backends = Backends(OP, prepare, cuda=native.cuda, triton=triton, cpu=native.cpu, reference=reference)


@overload
def linear_sum_assignment(
    cost: Tensor,
    sizes: Sizes | None = None,
    *,
    offsets: Tensor | None = None,
    maximize: bool = False,
    ties: Ties = "lowest",
    check: Check = "none",
    full_output: Literal[False] = False,
    backend: str = "auto",
) -> Tensor: ...


@overload
def linear_sum_assignment(
    cost: Tensor,
    sizes: Sizes | None = None,
    *,
    offsets: Tensor | None = None,
    maximize: bool = False,
    ties: Ties = "lowest",
    check: Check = "none",
    full_output: Literal[True],
    backend: str = "auto",
) -> Assignment: ...


@overload
def linear_sum_assignment(
    cost: Sequence[Tensor],
    *,
    maximize: bool = False,
    ties: Ties = "lowest",
    check: Check = "none",
    backend: str = "auto",
) -> list[Pairs]: ...


def linear_sum_assignment(
    cost: Tensor | Sequence[Tensor],  # [B, W, T], [W, T], packed [G, N, Q] with offsets, or a list of [W, T]
    sizes: Sizes | None = None,  # [B] or [B, 2]
    *,
    offsets: Tensor | None = None,  # [B + 1]
    maximize: bool = False,
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

    Args:
        cost: a batch of matrices; one matrix; a list of matrices of any sizes; or, with `offsets`, G matrices whose
            rows `offsets[b]` to `offsets[b + 1]` are one problem each, such as those of `dino_kernels.matching_cost`.
            Any real dtype, any strides.
        sizes: used part of each matrix of a batch: its columns, [B], or its rows and columns, [B, 2]; a list, or an
            integer tensor on any device. The rest may have any value.
        offsets: int64, on the device of `cost`.
        maximize: find the greatest total instead.
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
    if not isinstance(cost, Tensor):
        _refuse_with_list(sizes, offsets, full_output)
        joined = _join(list(cost))
        columns = linear_sum_assignment(
            joined.cost,
            joined.sizes,
            offsets=joined.offsets,
            maximize=maximize,
            ties=ties,
            check=check,
            backend=backend,
        )
        return _split(columns, joined)
    arguments = prepare(
        cost, sizes, offsets=offsets, maximize=maximize, ties=ties, check=check, full_output=full_output
    )
    outputs = _op(arguments, backend)
    report_status(OP, outputs[1], check)
    if cost.dim() == 2 and offsets is None and not full_output:
        return _pairs(outputs[0][0], False)
    if not full_output:
        return outputs[0]
    columns, status, objective, row_duals, column_duals = outputs
    if offsets is None:
        status, objective, column_duals = (tensor[:, 0] for tensor in (status, objective, column_duals))
    return Assignment(columns, status, objective, row_duals, column_duals)


def _sizes(sizes: Sizes, problems: int, rows: int, columns: int, device: torch.device) -> Tensor:
    """Return [B, 2], the used rows and columns, on the device. Values are checked if they are on the host."""
    if not isinstance(sizes, Tensor):
        sizes = torch.tensor(sizes, dtype=torch.int64).reshape(len(sizes), -1 if len(sizes) else 1)
    if sizes.dim() == 1:
        sizes = sizes[:, None]
    if sizes.dim() != 2 or sizes.shape[0] != problems or sizes.shape[1] not in (1, 2) or sizes.is_floating_point():
        raise ValueError(
            f"{OP}: sizes must be integers [B] (columns) or [B, 2] (rows, columns) with B = {problems}, got "
            f"{sizes.dtype} {list(sizes.shape)}"
        )
    if sizes.shape[1] == 1:
        sizes = torch.cat([torch.full_like(sizes, rows), sizes], 1)
    if sizes.device.type == "cpu" and sizes.numel() and not torch.compiler.is_compiling():
        most = sizes.amax(0).tolist()
        if sizes.min() < 0 or most[0] > rows or most[1] > columns:
            raise ValueError(
                f"{OP}: sizes must be within 0..W = {rows} and 0..T = {columns} of cost, got up to {most} and down to "
                f"{int(sizes.min())}"
            )
    return sizes.to(device, torch.int64, non_blocking=True)


def _refuse_with_list(sizes: Sizes | None, offsets: Tensor | None, full_output: bool) -> None:
    """Refuse arguments that a list of matrices does not take."""
    if sizes is not None or offsets is not None or full_output:
        raise ValueError(f"{OP}: a list of matrices takes no sizes, offsets or full_output. Pass a padded tensor")


class _Joined(NamedTuple):
    """A list of matrices as one tensor of problems."""

    cost: Tensor
    sizes: Tensor | None
    offsets: Tensor | None
    rows: list[int]  # of each problem
    transposed: bool


def _join(matrices: list[Tensor]) -> _Joined:
    """Join matrices: packed along the side in which they differ if there is only one, else padded."""
    for matrix in matrices:
        if not isinstance(matrix, Tensor) or matrix.dim() != 2:
            got = list(matrix.shape) if isinstance(matrix, Tensor) else type(matrix).__name__
            raise ValueError(f"{OP}: a list of costs must have matrices [W, T], got {got}")
    if not matrices:
        return _Joined(torch.zeros(0, 0, 0), None, None, [], False)
    device = matrices[0].device
    heights, widths = [matrix.shape[0] for matrix in matrices], [matrix.shape[1] for matrix in matrices]
    # Square matrices are not transposed, which could change the choice between equal assignments.
    transposed = len(set(heights)) == 1 and heights[0] not in widths
    if transposed or len(set(widths)) == 1:
        cost = torch.cat(matrices, 1).t() if transposed else torch.cat(matrices)
        rows = widths if transposed else heights
        starts = torch.tensor([0, *itertools.accumulate(rows)]).to(device, non_blocking=True)
        return _Joined(cost[None], None, starts, rows, transposed)
    dtype = functools.reduce(torch.promote_types, (matrix.dtype for matrix in matrices))
    padded = torch.zeros(len(matrices), max(heights), max(widths), dtype=dtype, device=device)
    for into, matrix in zip(padded, matrices, strict=True):
        into[: matrix.shape[0], : matrix.shape[1]] = matrix
    return _Joined(padded, torch.tensor([heights, widths]).t(), None, heights, False)


def _split(columns: Tensor, joined: _Joined) -> list[Pairs]:
    """Return the pairs of each joined problem in SciPy's form."""
    if joined.offsets is None:
        return [_pairs(found[:rows], False) for found, rows in zip(columns, joined.rows, strict=True)]
    return [_pairs(found, joined.transposed) for found in columns[0].split(joined.rows)]


def _pairs(columns: Tensor, transposed: bool) -> Pairs:
    """Return the pairs of one problem in SciPy's form, from the columns of its rows [W]."""
    rows = (columns >= 0).nonzero()[:, 0]
    columns = columns[rows]
    if transposed:
        order = columns.argsort()
        return columns[order], rows[order]
    return rows, columns


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
