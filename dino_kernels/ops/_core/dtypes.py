"""The dtypes of inputs, and the dtype that results are computed in."""

from __future__ import annotations

import torch

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of positions and sums: float64 for float64 inputs, float32 for all others, never 16 bit."""
    return torch.float64 if dtype == torch.float64 else torch.float32
