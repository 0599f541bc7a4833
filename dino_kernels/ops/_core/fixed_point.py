"""Integer sums, which are the same in any order: for deterministic backward passes on GPUs."""

from __future__ import annotations

import torch
from torch import Tensor

from dino_kernels.ops._core.dtypes import compute_dtype


def sum_bound(grad_output: Tensor, weights: Tensor | None) -> Tensor | None:
    """Return a bound of every single term of grad_value, which sets the scale of its fixed-point sums.

    Args:
        grad_output: gradient of the output.
        weights: attention weights, or None for those of a softmax, which are at most 1.

    Returns:
        [1] on the device, in the compute dtype; None outside deterministic mode: then sums are in floating point.
    """
    if not torch.are_deterministic_algorithms_enabled():
        return None
    compute = compute_dtype(grad_output.dtype)
    if grad_output.numel() == 0:
        return torch.zeros(1, dtype=compute, device=grad_output.device)
    bound = torch.linalg.vector_norm(grad_output, torch.inf).to(compute)
    if weights is not None and weights.numel() > 0:
        bound = bound * torch.linalg.vector_norm(weights, torch.inf).to(compute)
    return bound.view(1)


def scale_of(bound: Tensor, terms: int) -> Tensor:
    """Return the factor of terms before they become int64: the largest power of two with which no sum overflows.

    Args:
        bound: result of `sum_bound`, float32.
        terms: the most terms of a sum.

    Returns:
        [1] float32; NaN if the bound is not finite.
    """
    exponent = torch.frexp(bound).exponent
    # A finer resolution than the smallest normal number is useless.
    finest = (61 - terms.bit_length() - exponent).clamp(max=126)
    scale = torch.ldexp(torch.ones_like(bound), finest)
    return scale.where(bound.isfinite(), torch.nan)
