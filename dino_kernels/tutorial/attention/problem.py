"""A call of deformable attention, its definition in float64, and the workloads that are timed.

softmax weights   a[k] = exp(logit[k]) / sum over k of exp(logit[k])
position          x[k] = base + offset[k] * scale             in pixels of the sample's level
output[b, q, m]   = sum over k of  a[k] * bilinear(value of the level, of head m, at x[k])
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dino_kernels import fused_ms_deform_attn
from dino_kernels.testing import Case, sample_inputs

OP = "fused_ms_deform_attn"


def pyramid(height: int, width: int) -> tuple[tuple[int, int], ...]:
    """Return (H, W) of the four levels of an image."""
    return tuple((-(-height // stride), -(-width // stride)) for stride in (8, 16, 32, 64))


IMAGE, LARGE_IMAGE = pyramid(480, 640), pyramid(800, 1333)
ENCODER = Case("encoder 480x640", 1, sum(h * w for h, w in IMAGE), 8, 32, IMAGE, (4,) * 4, layout="local")
LARGE_ENCODER = replace(
    ENCODER, name="encoder 800x1333", queries=sum(h * w for h, w in LARGE_IMAGE), shapes=LARGE_IMAGE
)
DECODER = Case("decoder, 900 queries", 1, 900, 8, 32, LARGE_IMAGE, (4,) * 4, reference_coordinates=4)
SMALL = Case("small", 2, 40, 3, 20, ((5, 7), (3, 4)), (4, 2), reference_coordinates=4, mask=True)


@dataclass(frozen=True)
class Problem:
    """The arguments of one call: B images, S rows, M heads, D channels, Q queries, L levels, K samples of a head."""

    value: Tensor  # [B, S, M, D]
    shapes: list[tuple[int, int]]  # [L] (H, W)
    points: list[int]  # [L] samples of each level; K in all
    reference_points: Tensor  # [B, Q, L, 2 or 4] float32
    offsets: Tensor  # [B, Q, M, K, 2]
    logits: Tensor  # [B, Q, M, K]
    mask: Tensor | None  # [B, S], True = padding

    @property
    def levels(self) -> list[tuple[int, int, int, int]]:
        """Return (H, W, first row in S, samples) of each level."""
        starts = [sum(h * w for h, w in self.shapes[:level]) for level in range(len(self.shapes))]
        return [(*shape, start, count) for shape, start, count in zip(self.shapes, starts, self.points, strict=True)]

    @property
    def inputs(self) -> list[Tensor]:
        """Return the tensors that may have gradients."""
        return [self.value, self.reference_points, self.offsets, self.logits]

    def frame(self) -> Tensor:
        """Return base and scale of the positions of each query and level, (x, y, x, y) in pixels, [B, Q, L, 4]."""
        points = self.reference_points
        size = points.new_tensor([(width, height) for height, width in self.shapes])
        base = points[..., :2] * size - 0.5
        if points.shape[-1] == 2:
            return torch.cat([base, torch.ones_like(base)], -1)  # offsets are pixels
        counts = points.new_tensor(self.points).clamp(min=1)[:, None]
        return torch.cat([base, points[..., 2:] * size * 0.5 / counts], -1)  # offsets are box halves over P

    def first(self, queries: int) -> Problem:
        """Return the same call with its first queries alone."""
        each = (self.reference_points, self.offsets, self.logits)
        reference_points, offsets, logits = (tensor[:, :queries].detach().contiguous() for tensor in each)
        return replace(self, reference_points=reference_points, offsets=offsets, logits=logits)

    def to(self, dtype: torch.dtype) -> Problem:
        """Return value, offsets and logits rounded to a dtype; positions become float64 for float64 alone."""
        value, offsets, logits = (x.detach().to(dtype) for x in (self.value, self.offsets, self.logits))
        positions = torch.float64 if dtype == torch.float64 else torch.float32
        reference_points = self.reference_points.detach().to(positions)
        return replace(self, value=value, offsets=offsets, logits=logits, reference_points=reference_points)

    def requires_grad(self, reference_points: bool = True) -> Problem:
        """Return a copy whose inputs have gradients; training needs none of reference points."""
        copies = {name: getattr(self, name).detach().clone().requires_grad_() for name in NAMES}
        copies["reference_points"].requires_grad_(reference_points)
        return replace(self, **copies)

    def kernel(self, backend: str) -> Tensor:
        """Return what a backend of `dino_kernels.fused_ms_deform_attn` computes, [B, Q, M * D]."""
        samples = self.reference_points, self.offsets, self.logits, self.mask
        return fused_ms_deform_attn(self.value, self.shapes, None, *samples, num_points=self.points, backend=backend)


NAMES = ("value", "reference_points", "offsets", "logits")


def problem(case: Case, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> Problem:
    """Draw the call of a case."""
    x = sample_inputs(OP, case, dtype, device, seed, requires_grad=False)
    offsets, logits = x["sampling_offsets"], x["attention_logits"]
    flat = case.batch, case.queries, case.heads, case.K
    tensors = x["reference_points"], offsets.reshape(*flat, 2), logits.reshape(flat), x["value_mask"]
    return Problem(x["value"], list(case.shapes), list(case.points), *tensors)


def gradients(output: Tensor, given: Problem, grad_output: Tensor) -> list[Tensor]:
    """Return the gradients of the inputs that require one, in their order."""
    inputs = [tensor for tensor in given.inputs if tensor.requires_grad]
    return list(torch.autograd.grad(output, inputs, grad_output.to(output.dtype)))


def definition(given: Problem) -> Tensor:
    """Return the result in float64, by `grid_sample`, [B, Q, M * D]."""
    return given.to(torch.float64).kernel("reference")


def error(result: Tensor, exact: Tensor) -> float:
    """Return the largest difference, relative to the largest number of the exact result."""
    if exact.numel() == 0:
        return 0.0
    return ((result.double() - exact).abs().max() / exact.abs().max().clamp(min=1e-300)).item()
