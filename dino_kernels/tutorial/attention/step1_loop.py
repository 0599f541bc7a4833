"""Step 1: the equation, literally: a loop over images, queries, heads and samples.

python -m dino_kernels.tutorial.attention.step1_loop
"""

from __future__ import annotations

from itertools import product
from math import floor

from torch import Tensor

from dino_kernels.tutorial.attention.problem import Problem


def attend(given: Problem) -> Tensor:
    """Return [B, Q, M * D]."""
    (B, _, M, D), Q, frame = given.value.shape, given.logits.shape[1], given.frame()
    output = given.value.new_zeros(B, Q, M, D)
    level_of = [level for level, count in enumerate(given.points) for _ in range(count)]
    for b, q, m in product(range(B), range(Q), range(M)):
        weights = given.logits[b, q, m].softmax(-1)
        for k, level in enumerate(level_of):
            base, scale = frame[b, q, level].split(2)
            x, y = (base + scale * given.offsets[b, q, m, k]).tolist()
            output[b, q, m] += weights[k] * bilinear(given, b, m, level, x, y)
    return output.flatten(2)


def bilinear(given: Problem, b: int, m: int, level: int, x: float, y: float) -> Tensor:
    """Return the value [D] between the four pixels around (x, y); pixels outside and padding count as zero."""
    height, width, start, _ = given.levels[level]
    sampled = given.value.new_zeros(given.value.shape[3])
    if not (-1 <= x < width and -1 <= y < height):  # also true for NaN
        return sampled
    for column, row in product((floor(x), floor(x) + 1), (floor(y), floor(y) + 1)):
        s = start + row * width + column
        if 0 <= column < width and 0 <= row < height and (given.mask is None or not given.mask[b, s]):
            sampled += (1 - abs(x - column)) * (1 - abs(y - row)) * given.value[b, s, m]
    return sampled


def why(given: Problem) -> str:
    """Count what makes this step what it is."""
    (B, _, M, _), (_, Q, _, K) = given.value.shape, given.logits.shape
    return f"{B * Q * M * K:,} samples, one after the other in Python"


if __name__ == "__main__":
    from dino_kernels.tutorial.attention.run import main

    main("step1_loop")
