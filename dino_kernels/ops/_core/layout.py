"""Copies of tensors whose strides the native kernels do not take."""

from __future__ import annotations

from torch import Tensor

# Tensors with larger strides are copied: the kernels multiply row numbers with 31-bit strides in bytes.
MAX_ROW_STRIDE = 2**27


def rows(tensor: Tensor) -> Tensor:
    """Return [B, Q, ...] with dense rows of n numbers per query, unchanged or as [B, Q, n]."""
    if tensor.is_contiguous():
        return tensor
    tensor = tensor if tensor.dim() == 3 else tensor.flatten(2)
    return tensor if tensor.stride(2) == 1 else tensor.contiguous()


def like(grad: Tensor, tensor: Tensor) -> Tensor:
    """Return the gradient of `rows(tensor)` in the shape of `tensor`."""
    return grad if grad.dim() == tensor.dim() else grad.view_as(tensor)


def heads(value: Tensor) -> Tensor:
    """Return [B, S, M, D] with dense rows of M * D numbers."""
    _, row, head, channel = value.stride()
    dense = channel == 1 and head == value.shape[3]
    return value if dense and row < MAX_ROW_STRIDE else value.contiguous()


def contiguous(tensor: Tensor | None) -> Tensor | None:
    """Return a contiguous tensor, or None for None."""
    return None if tensor is None else tensor.contiguous()


def dense_last(sources: list[Tensor]) -> list[Tensor]:
    """Return each tensor with a dense last dimension."""
    return [source if source.stride(-1) == 1 else source.contiguous() for source in sources]
