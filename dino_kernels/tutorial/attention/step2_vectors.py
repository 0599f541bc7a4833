"""Step 2: the same arithmetic on whole tensors: all corners of all samples at once, then one gather of their rows.

python -m dino_kernels.tutorial.attention.step2_vectors
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_kernels.tutorial.attention.problem import Problem
from dino_kernels.tutorial.counting import size


def attend(given: Problem) -> Tensor:
    """Return [B, Q, M * D]; differentiable by autograd, on any device."""
    rows, bilinear = corners(given)
    weights = bilinear * given.logits.softmax(-1)[..., None]  # [B, Q, M, K, 4]
    gathered = F.embedding(rows, rows_and_zeros(given.value))  # [B, Q, M, K, 4, D]: the whole cost of this step
    return torch.einsum("bqmkcd,bqmkc->bqmd", gathered, weights).flatten(2)


def corners(given: Problem) -> tuple[Tensor, Tensor]:
    """Return the row, in `rows_and_zeros`, and the bilinear weight of each sample's corners, [B, Q, M, K, 4]."""
    B, S, M, _ = given.value.shape
    counts = torch.tensor(given.points, device=given.value.device)
    frame = given.frame().repeat_interleave(counts, 2)[:, :, None]  # [B, Q, 1, K, 4]
    table = counts.new_tensor(given.levels).repeat_interleave(counts, 0)  # [K, 4]
    height, width, start = table[:, :3, None].unbind(1)  # [K, 1]
    finite = given.offsets.isfinite()  # others contribute nothing, and get no gradient
    offsets = torch.where(finite, given.offsets, 0)
    x, y = (frame[..., :2] + frame[..., 2:] * offsets).unbind(-1)  # [B, Q, M, K]
    column = x.floor().clamp(-9, 1e6)[..., None] + x.new_tensor([0, 1, 0, 1])  # [B, Q, M, K, 4]
    row = y.floor().clamp(-9, 1e6)[..., None] + y.new_tensor([0, 0, 1, 1])
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height) & finite.all(-1, keepdim=True)
    s = torch.where(inside, start + row * width + column, S).long()  # row S is zeros
    image = torch.arange(B, device=s.device).view(B, 1, 1, 1, 1)
    if given.mask is not None:
        s = torch.where(F.pad(given.mask, (0, 1))[image, s], S, s)
    near = (1 - (x[..., None] - column).abs()) * (1 - (y[..., None] - row).abs())
    weights = torch.where(inside, near, 0.0)
    head = torch.arange(M, device=s.device).view(M, 1, 1)
    return (image * (S + 1) + s) * M + head, weights


def rows_and_zeros(value: Tensor) -> Tensor:
    """Return the rows of all images and heads, each image with a row of zeros after them, [B * (S + 1) * M, D]."""
    return F.pad(value, (0, 0, 0, 0, 0, 1)).flatten(0, 2)


def why(given: Problem) -> str:
    """Count what makes this step what it is."""
    D, samples = given.value.shape[3], given.logits.numel()
    return f"gathered rows: {size(samples * 4 * D * given.value.element_size())} written and read again"


if __name__ == "__main__":
    from dino_kernels.tutorial.attention.run import main

    main("step2_vectors")
