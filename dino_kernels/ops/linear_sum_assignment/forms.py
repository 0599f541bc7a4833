"""The forms of costs, sizes and results: tensors, NumPy arrays, nested lists, lists of matrices, SciPy's pairs."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dino_kernels.ops._checks import check_flag

Sizes = Tensor | np.ndarray | Sequence[int] | Sequence[Sequence[int]]
Pairs = tuple[Tensor, Tensor]


def as_costs(op: str, cost: Any) -> Tensor | list[Tensor]:
    """Return a tensor, or a list of matrices; NumPy arrays and nested lists of numbers are converted."""
    if isinstance(cost, Tensor):
        return cost
    if hasattr(cost, "__array__"):
        return _from_numpy(op, np.asarray(cost))
    if isinstance(cost, (str, bytes, Mapping)) or not isinstance(cost, Iterable):
        raise TypeError(
            f"{op}: cost must be a tensor, an array, nested lists of numbers or a list of matrices, got "
            f"{type(cost).__name__}"
        )
    items = list(cost)
    if not items or any(isinstance(item, Tensor) or getattr(item, "ndim", 0) > 1 for item in items):
        return [item if isinstance(item, Tensor) else _from_numpy(op, np.asarray(item)) for item in items]
    try:
        return _from_numpy(op, np.asarray(items))
    except ValueError:
        raise ValueError(
            f"{op}: cost has rows of different lengths. Pass matrices of different sizes as a list of tensors or arrays"
        ) from None


def _from_numpy(op: str, array: np.ndarray) -> Tensor:
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{op}: cost must be real numbers, got an array of {array.dtype}")
    if (array.dtype.kind == "u" and array.itemsize > 1) or array.dtype.itemsize > 8:
        array = array.astype(np.float64)  # for which PyTorch has few operations, or no dtype
    # PyTorch has no negative strides and no other byte order, and warns of arrays that it must not write to.
    if not array.dtype.isnative or not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.astype(array.dtype.newbyteorder("="), order="C", copy=True)
    return torch.from_numpy(array)


def as_scipy(op: str, sizes: Sizes | bool | None, maximize: bool) -> tuple[Sizes | None, bool]:
    """Return sizes and `maximize`, which is SciPy's second argument."""
    if isinstance(sizes, (bool, np.bool_)):
        sizes, maximize = None, sizes
    check_flag(op, "maximize", maximize)
    return sizes, bool(maximize)


def as_sizes(op: str, sizes: Sizes, problems: int, rows: int, columns: int, device: torch.device) -> Tensor:
    """Return [B, 2], the used rows and columns, on the device. Values are checked if they are on the host."""
    given = sizes
    if not isinstance(sizes, Tensor):
        try:
            sizes = torch.tensor(sizes) if len(sizes) else torch.zeros(0, 1, dtype=torch.int64)
        except (TypeError, ValueError, RuntimeError):  # not numbers, or not rectangular
            raise TypeError(
                f"{op}: sizes must be a tensor or a list of integers, [B] (columns) or [B, 2] (rows, columns), got "
                f"{given!r}. The second argument is maximize if it is True or False"
            ) from None
    if sizes.dim() == 1:
        sizes = sizes[:, None]
    integers = not (sizes.is_floating_point() or sizes.is_complex() or sizes.dtype == torch.bool)
    if sizes.dim() != 2 or sizes.shape[0] != problems or sizes.shape[1] not in (1, 2) or not integers:
        raise ValueError(
            f"{op}: sizes must be integers [B] (columns) or [B, 2] (rows, columns) with B = {problems}, got "
            f"{sizes.dtype} {list(sizes.shape)}"
        )
    sizes = sizes.long()
    if sizes.shape[1] == 1:
        sizes = torch.cat([torch.full_like(sizes, rows), sizes], 1)
    if sizes.device.type == "cpu" and sizes.numel() and not torch.compiler.is_compiling():
        most = sizes.amax(0).tolist()
        if sizes.min() < 0 or most[0] > rows or most[1] > columns:
            raise ValueError(
                f"{op}: sizes must be within 0..W = {rows} and 0..T = {columns} of cost, got up to {most} and down to "
                f"{int(sizes.min())}"
            )
    return sizes.to(device, non_blocking=True)


class Joined(NamedTuple):
    """A list of matrices as one tensor of problems."""

    cost: Tensor
    sizes: Tensor | None
    offsets: Tensor | None
    rows: list[int]  # of each problem
    transposed: bool


def join(op: str, matrices: list[Tensor]) -> Joined:
    """Join matrices: packed along the side in which they differ if there is only one, else padded."""
    for matrix in matrices:
        if not isinstance(matrix, Tensor) or matrix.dim() != 2:
            got = list(matrix.shape) if isinstance(matrix, Tensor) else type(matrix).__name__
            raise ValueError(f"{op}: a list of costs must have matrices [W, T], got {got}")
    if not matrices:
        return Joined(torch.zeros(0, 0, 0, dtype=torch.float32), None, None, [], False)
    device = matrices[0].device
    heights, widths = [matrix.shape[0] for matrix in matrices], [matrix.shape[1] for matrix in matrices]
    # Square matrices are not transposed, which could change the choice between equal assignments.
    transposed = len(set(heights)) == 1 and heights[0] not in widths
    if transposed or len(set(widths)) == 1:
        cost = torch.cat(matrices, 1).t() if transposed else torch.cat(matrices)
        rows = widths if transposed else heights
        starts = torch.tensor([0, *itertools.accumulate(rows)]).to(device, non_blocking=True)
        return Joined(cost[None], None, starts, rows, transposed)
    dtype = functools.reduce(torch.promote_types, (matrix.dtype for matrix in matrices))
    padded = torch.zeros(len(matrices), max(heights), max(widths), dtype=dtype, device=device)
    for into, matrix in zip(padded, matrices, strict=True):
        into[: matrix.shape[0], : matrix.shape[1]] = matrix
    return Joined(padded, torch.tensor([heights, widths]).t(), None, heights, False)


def split(columns: Tensor, joined: Joined) -> list[Pairs]:
    """Return the pairs of each joined problem in SciPy's form."""
    if joined.offsets is None:
        return [pairs(found[:rows], False) for found, rows in zip(columns, joined.rows, strict=True)]
    return [pairs(found, joined.transposed) for found in columns[0].split(joined.rows)]


def pairs(columns: Tensor, transposed: bool) -> Pairs:
    """Return the pairs of one problem in SciPy's form, from the columns of its rows [W]."""
    rows = (columns >= 0).nonzero()[:, 0]
    columns = columns[rows]
    if transposed:
        order = columns.argsort()
        return columns[order], rows[order]
    return rows, columns
