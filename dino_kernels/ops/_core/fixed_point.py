"""Sums that are the same in any order, because they are made in integers: for deterministic backward passes on GPUs."""

from __future__ import annotations

import torch
from torch import Tensor


def sum_bound(grad_output: Tensor, weights: Tensor | None) -> Tensor | None:
    """What no single term of grad_value exceeds, in deterministic mode: the scale of its fixed-point sums.

    Args:
        grad_output: gradient of the output.
        weights: attention weights, or None where they are a softmax's and at most 1.

    Returns:
        One number on the device, in the compute dtype; or None, which asks for sums in floating point.
    """
    if not torch.are_deterministic_algorithms_enabled():
        return None
    compute = torch.float64 if grad_output.dtype == torch.float64 else torch.float32
    if grad_output.numel() == 0:
        return torch.zeros(1, dtype=compute, device=grad_output.device)
    bound = torch.linalg.vector_norm(grad_output, torch.inf).to(compute)
    if weights is not None and weights.numel() > 0:
        bound = bound * torch.linalg.vector_norm(weights, torch.inf).to(compute)
    return bound.view(1)


def scale_of(bound: Tensor, terms: int) -> Tensor:
    """A power of two, or nearly, by which to multiply terms before they become int64: no sum of them overflows.

    Args:
        bound: of `sum_bound`, float32.
        terms: of a sum, at most.

    Returns:
        [1] float32; NaN where the bound is not finite.
    """
    exponent = torch.frexp(bound).exponent
    # Finer than the smallest normal number there is nothing to resolve.
    finest = (61 - terms.bit_length() - exponent).clamp(max=126)
    scale = torch.ldexp(torch.ones_like(bound), finest)
    return scale.where(bound.isfinite(), torch.nan)
