"""Results of a matching in other forms: DETR's pairs of indices, and messages for a status."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from dino_kernels.ops._core import lists
from dino_kernels.ops._matching import MESSAGES, Targets
from dino_kernels.ops.hungarian_match import Match
from dino_kernels.targets import PackedTargets

Pair = tuple[Tensor, Tensor]


def pairs_of(match: Match | Tensor, targets: Targets) -> list[list[Pair]]:
    """Return the pairs of each set of predictions and image in DETR's form, without unmatched targets.

    Synchronises with a GPU, for one transfer to the host.

    Args:
        match: result of `dino_kernels.hungarian_match`, or its `query_idx` [G, N].
        targets: the targets that were matched.

    Returns:
        For each set, per image, (query [R], target within the image [R]), int64 on the CPU, queries ascending.

    Raises:
        ValueError, TypeError: `match` is not such a result; `targets` and `match` differ in the number of targets.
    """
    query_idx = match.query_idx if isinstance(match, Match) else match
    if not isinstance(query_idx, Tensor) or query_idx.dim() != 2 or query_idx.dtype not in (torch.int64, torch.int32):
        got = f"{query_idx.dtype} {list(query_idx.shape)}" if isinstance(query_idx, Tensor) else repr(match)
        raise TypeError(f"pairs_of: match must be the result of hungarian_match, or its query_idx [G, N], got {got}")
    if not isinstance(targets, PackedTargets):
        targets = PackedTargets.pack(targets, normalized=False)
    sets, rows = query_idx.shape
    if rows != len(targets):
        raise ValueError(f"pairs_of: targets must have {rows} targets, as match, got {len(targets)}")
    images = targets.num_images
    pairs = lists.pairs(query_idx, targets.offsets)
    if pairs is not None:
        return _by_set(pairs, sets, images)
    if targets.counts is None:
        numbers = torch.cat([query_idx.flatten(), targets.offsets]).cpu().numpy()
        query, offsets = numbers[: sets * rows].reshape(sets, rows), numbers[sets * rows :]
        query = query[:, : offsets[-1]]  # the rest is unused capacity
    else:
        query = query_idx.cpu().numpy()
        offsets = np.array([0, *accumulate(targets.counts)])
    counts = np.diff(offsets)
    rows = query.shape[1]

    # Image, query and target are packed in one number: a sort is several times faster than an argsort.
    row_bits, query_bits = rows.bit_length(), int(query.max(initial=0) + 1).bit_length()
    key = np.repeat(np.arange(images), counts) << query_bits
    key = (key + query + 1 << row_bits) + np.arange(rows)
    key.sort(1)
    query = (key >> row_bits & (1 << query_bits) - 1) - 1
    # Sorting keeps each image's targets in its range, those without a query first.
    target = (key & (1 << row_bits) - 1) - np.repeat(offsets[:-1], counts)
    matched = query >= 0
    sizes = [*counts.tolist()] * sets
    if not matched.all():
        before = np.zeros((sets, rows + 1), np.int64)
        matched.cumsum(1, out=before[:, 1:])
        sizes = np.diff(before[:, offsets]).ravel().tolist()
        query, target = query[matched], target[matched]
    queries, ids = (torch.from_numpy(indices.ravel()).split(sizes) for indices in (query, target))
    return _by_set(list(zip(queries, ids, strict=True)), sets, images)


def _by_set(pairs: list[Pair], sets: int, images: int) -> list[list[Pair]]:
    """Return a list for each set of the pairs of all sets and images."""
    return [pairs[start : start + images] for start in range(0, sets * images, images)] if images else [[]] * sets


def matching_status(status: Tensor | int) -> list[str]:
    """Return a message for each bit that is set in any number of `status`; an empty list if all are 0.

    Synchronises with a GPU.

    Args:
        status: status of `hungarian_match` or `linear_sum_assignment`, a part of it, or one number.

    Raises:
        TypeError: `status` is something else.
    """
    if isinstance(status, Tensor) and not (status.is_floating_point() or status.is_complex()):
        numbers = status.flatten().tolist()
    elif isinstance(status, (int, np.integer)):
        numbers = [int(status)]
    else:
        got = status.dtype if isinstance(status, Tensor) else repr(status)
        raise TypeError(f"matching_status: status must be the status of a result, or an integer, got {got}")
    return [text for bit, text in MESSAGES.items() if any(number & bit for number in numbers)]
