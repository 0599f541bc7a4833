"""Step 4 on a GPU, in Triton: a program sums the rows of one item in registers; it has no corner in memory either.

    python -m dino_kernels.tutorial.attention.triton_rows

Forward only. It has never run on a GPU: the tests run it in Triton's interpreter, and no speed is claimed for it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dino_kernels.tutorial.attention.problem import Problem


@triton.jit
def _rows_kernel(
    value, frame, offsets, logits, mask, levels, output, S, M, Q, K, L,
    D: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    item = tl.program_id(0).to(tl.int64)  # (b * Q + q) * M + m
    query, m = item // M, item % M
    b = query // Q
    k, d = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_D)
    real = k < K
    logit = tl.load(logits + item * K + k, mask=real, other=float("-inf")).to(tl.float32)
    weight = tl.exp(logit - tl.max(logit, 0))
    weight = weight / tl.sum(weight, 0)
    level = tl.load(levels + 4 * k + 3, mask=real, other=0)
    height = tl.load(levels + 4 * k, mask=real, other=0)
    width = tl.load(levels + 4 * k + 1, mask=real, other=0)
    start = tl.load(levels + 4 * k + 2, mask=real, other=0)
    base = frame + (query * L + level) * 4
    sample = offsets + (item * K + k) * 2
    x = tl.load(base, mask=real) + tl.load(base + 2, mask=real) * tl.load(sample, mask=real).to(tl.float32)
    y = tl.load(base + 1, mask=real) + tl.load(base + 3, mask=real) * tl.load(sample + 1, mask=real).to(tl.float32)
    x = tl.where((x >= -1) & (x < width), x, -2.0)  # -2, for NaN too: all corners outside
    y = tl.where((y >= -1) & (y < height), y, -2.0)
    left, upper = tl.floor(x), tl.floor(y)
    total = tl.zeros([BLOCK_D], tl.float32)
    for corner in tl.static_range(4):
        column = left.to(tl.int32) + corner % 2
        row = upper.to(tl.int32) + corner // 2
        inside = real & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        s = b * S + start + row * width + column
        if HAS_MASK:
            inside = inside & (tl.load(mask + s, mask=inside, other=1) == 0)
        near = (1 - tl.abs(x - column)) * (1 - tl.abs(y - row)) * weight
        address = value + (s * M + m)[:, None] * D + d[None, :]
        numbers = tl.load(address, mask=inside[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)
        total += tl.sum(numbers * near[:, None], 0)
    tl.store(output + item * D + d, total, mask=d < D)


def attend(given: Problem) -> Tensor:
    """Return [B, Q, M * D]; forward only."""
    (B, S, M, D), (_, Q, _, K), L = given.value.shape, given.logits.shape, len(given.shapes)
    output = given.value.new_zeros(B, Q, M * D)
    rows = [(h, w, start, level) for level, (h, w, start, count) in enumerate(given.levels) for _ in range(count)]
    levels = torch.tensor(rows, dtype=torch.int32).view(K, 4).to(given.value.device)
    mask = levels if given.mask is None else given.mask.contiguous().view(torch.uint8)
    constants = triton.next_power_of_2(max(K, 1)), triton.next_power_of_2(D), given.mask is not None
    tensors = [x.detach().contiguous() for x in (given.value, given.frame(), given.offsets, given.logits)]
    if output.numel() and K:
        _rows_kernel[(B * Q * M,)](*tensors, mask, levels, output, S, M, Q, K, L, D, *constants)
    return output


def why(given: Problem) -> str:
    """Count what makes this step what it is."""
    return f"{given.logits[..., 0].numel():,} programs, each sums {4 * given.logits.shape[3]} rows in registers"


if __name__ == "__main__":
    from dino_kernels.tutorial.attention.run import main

    main("triton_rows")
