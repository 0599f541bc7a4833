"""What the native kernels ask of a tensor's strides; the rest of them is the kernels' business."""

from __future__ import annotations

from torch import Tensor

# Rows further apart are copied: the kernels multiply row numbers with strides of at most 31 bits in bytes.
MAX_ROW_STRIDE = 2**27


def rows(tensor: Tensor) -> Tensor:
    """[B, Q, ...] with n numbers that follow one another behind Q: as it is, or as [B, Q, n]."""
    if tensor.is_contiguous():
        return tensor
    tensor = tensor if tensor.dim() == 3 else tensor.flatten(2)
    return tensor if tensor.stride(2) == 1 else tensor.contiguous()


def like(grad: Tensor, tensor: Tensor) -> Tensor:
    """The gradient of `rows(tensor)` as one of `tensor`."""
    return grad if grad.dim() == tensor.dim() else grad.view_as(tensor)


def heads(value: Tensor) -> Tensor:
    """[B, S, M, D] with dense rows of M * D."""
    _, row, head, channel = value.stride()
    dense = channel == 1 and head == value.shape[3]
    return value if dense and row < MAX_ROW_STRIDE else value.contiguous()


def contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def dense_last(sources: list[Tensor]) -> list[Tensor]:
    """Each with a dense last dimension."""
    return [source if source.stride(-1) == 1 else source.contiguous() for source in sources]
