"""Cases and sample inputs of deformable attention, and the accuracy assertion over them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dino_kernels.ops._core.dtypes import compute_dtype
from dino_kernels.testing.accuracy import assert_result_accurate, run

DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16, "fp16": torch.float16}
# Distance of samples from pixel centres, where the location gradient jumps, in pixels.
CLEARANCE = 2e-3


@dataclass(frozen=True)
class Case:
    """Sizes of one deformable attention call, and the layout of its samples.

    Layouts:
        uniform: every sample anywhere in its level, one in six outside.
        local: as in an encoder: queries at pixel centres in raster order, offsets = initial ray + N(0, 2 px).
        hostile: borders, just outside, far outside, NaN and infinities.
    """

    name: str
    batch: int
    queries: int
    heads: int
    channels: int
    shapes: tuple[tuple[int, int], ...]  # (H, W) of each level
    points: tuple[int, ...]  # of each level
    reference_coordinates: int = 2
    mask: bool = False
    layout: str = "uniform"

    def __post_init__(self) -> None:
        if len(self.points) != len(self.shapes) or self.reference_coordinates not in (2, 4):
            raise ValueError(f"Case {self.name}: needs one point count per level, and 2 or 4 reference coordinates")
        if self.layout not in ("uniform", "local", "hostile"):
            raise ValueError(f"Case {self.name}: layout must be uniform, local or hostile, got {self.layout!r}")

    @property
    def S(self) -> int:
        return sum(height * width for height, width in self.shapes)

    @property
    def L(self) -> int:
        return len(self.shapes)

    @property
    def K(self) -> int:
        return sum(self.points)

    @property
    def id(self) -> str:
        return f"{self.name}_b{self.batch}"


def sample_inputs(
    op: str,
    case: Case,
    dtype: torch.dtype,
    device: str = "cpu",
    seed: int = 0,
    requires_grad: bool = True,
    draw_on: str = "cpu",
) -> dict[str, Any]:
    """Return random keyword arguments of the public function `dino_kernels.<op>`.

    Numbers are drawn in float64 and rounded, so they are the same for all dtypes. Locations and reference points are
    float32, or float64 for float64. `num_points` is included if the levels' counts differ.

    Args:
        draw_on: device of the generator. A GPU draws an image of 800x1333 in milliseconds, a CPU in seconds; the
            numbers of a seed differ between devices.
    """
    with torch.device(draw_on):
        inputs = _drawn(op, case, dtype, torch.Generator(draw_on).manual_seed(seed))
    for name, argument in inputs.items():
        if isinstance(argument, Tensor):
            argument = argument.to(device)
            inputs[name] = argument.requires_grad_(requires_grad and argument.is_floating_point())
    return inputs


def _drawn(op: str, case: Case, dtype: torch.dtype, generator: torch.Generator) -> dict[str, Any]:
    """Draw the arguments on the generator's device, which must also be the default device."""
    compute = compute_dtype(dtype)
    fused = op == "fused_ms_deform_attn"
    value = _normal(generator, case.batch, case.S, case.heads, case.channels)
    logits = _normal(generator, case.batch, case.queries, case.heads, case.K)
    mask = _padding_mask(case)
    reference = _reference_points(case, generator).to(compute)
    offsets = _offsets(case, reference.double(), generator)
    offsets = _keep_clear_of_pixel_centres(case, reference.double(), offsets, dtype if fused else torch.float64)

    starts = torch.tensor([0] + [height * width for height, width in case.shapes[:-1]]).cumsum(0)
    inputs: dict[str, Any] = {
        "value": value.to(dtype),
        "spatial_shapes": torch.tensor(case.shapes),
        "level_start_index": starts,
    }
    if fused:
        inputs |= {
            "reference_points": reference,
            "sampling_offsets": offsets.to(dtype),
            "attention_logits": logits.to(dtype),
            "value_mask": mask if case.mask else None,
        }
    else:
        if case.mask:
            inputs["value"] = inputs["value"].masked_fill(mask[:, :, None, None], 0)
        inputs |= {
            "sampling_locations": _locations(case, reference.double(), offsets).to(compute),
            "attention_weights": logits.softmax(-1).to(dtype),
        }
    if len(set(case.points)) == 1:
        for name in ("sampling_locations", "attention_weights", "sampling_offsets", "attention_logits"):
            if name in inputs:
                inputs[name] = inputs[name].unflatten(3, (case.L, case.points[0]))
    else:
        inputs["num_points"] = list(case.points)
    return inputs


def assert_accurate(op: str, inputs: dict[str, Any], backend: str) -> None:
    """Run forward and backward on `backend` and assert the tolerance rule; see `assert_result_accurate`."""
    assert_result_accurate(op, inputs, run(op, inputs, backend), backend)


def _normal(generator: torch.Generator, *size: int) -> Tensor:
    return torch.randn(size, generator=generator, dtype=torch.float64)


def _uniform(generator: torch.Generator, *size: int) -> Tensor:
    return torch.rand(size, generator=generator, dtype=torch.float64)


def _padding_mask(case: Case) -> Tensor:
    """Return [B, S], True to the right of and below each image; every second image fills its canvas."""
    masks = []
    for height, width in case.shapes:
        mask = torch.zeros(case.batch, height, width, dtype=torch.bool)
        mask[::2, math.ceil(0.8 * height) :] = True
        mask[::2, :, math.ceil(0.6 * width) :] = True
        masks.append(mask.flatten(1))
    return torch.cat(masks, dim=1)


def _reference_points(case: Case, generator: torch.Generator) -> Tensor:
    """Draw reference points [B, Q, L, 2 or 4]."""
    batch, queries = case.batch, case.queries
    if case.layout == "local":
        centres = []
        for height, width in case.shapes:
            y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
            centres.append(torch.stack([x / width, y / height], -1).double().view(-1, 2))
        points = torch.cat(centres)[torch.arange(queries) % case.S].expand(batch, -1, -1)
    elif case.layout == "hostile":  # multiples of 1/8: the border positions below stay exact in 16 bit
        points = torch.randint(1, 8, (batch, queries, 2), generator=generator) / 8.0
    else:
        points = _uniform(generator, batch, queries, 2)
    points = points.double()
    if case.reference_coordinates == 4:
        sizes = torch.exp2(-1.0 * torch.randint(0, 2, (batch, queries, 2), generator=generator))
        if case.layout != "hostile":
            sizes = 0.1 + 0.9 * _uniform(generator, batch, queries, 2)
        points = torch.cat([points, sizes.double()], -1)
    return points[:, :, None].repeat(1, 1, case.L, 1)


def _offset_scale(case: Case, reference: Tensor) -> Tensor:
    """Return the pixels per unit of offset, broadcastable to [B, Q, M, K, 2]."""
    scales = []
    for level, ((height, width), points) in enumerate(zip(case.shapes, case.points, strict=True)):
        scale = torch.ones(*reference.shape[:2], 2, dtype=torch.float64)
        if case.reference_coordinates == 4:
            scale = reference[:, :, level, 2:] * 0.5 / max(points, 1) * torch.tensor([width, height])
        scales.append(scale[:, :, None, None].expand(-1, -1, -1, points, -1))
    return torch.cat(scales, dim=3)


def _sizes(case: Case) -> Tensor:
    """Return (W, H) of each sample's level, [K, 2]."""
    counts = torch.tensor(case.points)
    return torch.tensor(case.shapes, dtype=torch.float64).flip(-1).repeat_interleave(counts, dim=0, output_size=case.K)


def _reference_pixels(case: Case, reference: Tensor) -> Tensor:
    """Return reference points in pixels of each sample's level, [B, Q, 1, K, 2]."""
    points = reference[..., :2].repeat_interleave(torch.tensor(case.points), dim=2, output_size=case.K)
    return (points * _sizes(case) - 0.5)[:, :, None]


def _offsets(case: Case, reference: Tensor, generator: torch.Generator) -> Tensor:
    """Draw offsets [B, Q, M, K, 2], float64."""
    size = (case.batch, case.queries, case.heads, case.K, 2)
    if case.layout == "local":
        angles = torch.arange(case.heads, dtype=torch.float64) * (2 * math.pi / case.heads)
        rays = torch.stack([angles.cos(), angles.sin()], -1)
        rays = rays / rays.abs().amax(-1, keepdim=True)
        steps = torch.cat([torch.arange(1.0, points + 1) for points in case.points]).double()
        return rays[:, None] * steps[:, None] + 2 * _normal(generator, *size)
    widths = _sizes(case)
    if case.layout == "uniform":
        pixels = (_uniform(generator, *size) * 1.2 - 0.1) * widths - 0.5
    else:
        zero = torch.zeros_like(widths)
        positions = [zero - 1.125, zero - 0.875, zero - 0.25, zero + 0.25, widths / 2 - 0.375, widths - 1.25]
        positions += [widths - 0.75, widths - 0.125, widths + 0.125, zero - 1e3, zero + 1e3, zero + 1e30]
        positions += [zero + float("nan"), zero + float("inf"), zero - float("inf")]
        # Most coordinates lie near borders; one in six is far outside or not finite.
        drawn = torch.randint(9, size, generator=generator)
        drawn = torch.where(_uniform(generator, *size) < 1 / 6, 9 + drawn % 6, drawn)
        pixels = torch.stack(positions).expand(*size[:3], -1, -1, -1).gather(3, drawn[:, :, :, None])[:, :, :, 0]
    return (pixels - _reference_pixels(case, reference)) / _offset_scale(case, reference)


def _pixels(case: Case, reference: Tensor, offsets: Tensor) -> Tensor:
    return _reference_pixels(case, reference) + offsets * _offset_scale(case, reference)


def _locations(case: Case, reference: Tensor, offsets: Tensor) -> Tensor:
    return (_pixels(case, reference, offsets) + 0.5) / _sizes(case)


def _keep_clear_of_pixel_centres(case: Case, reference: Tensor, offsets: Tensor, dtype: torch.dtype) -> Tensor:
    """Round offsets to `dtype`, and move samples that lie within CLEARANCE of pixel centres."""
    offsets = offsets.to(dtype).double()
    if case.layout == "hostile":
        return offsets
    step = (4 * CLEARANCE / _offset_scale(case, reference)).expand_as(offsets)
    for attempt in range(1, 200):
        pixels = _pixels(case, reference, offsets)
        close = (pixels - pixels.round()).abs() < CLEARANCE
        if not close.any():
            return offsets
        # The step grows, because rounding to 16 bits may cancel a small one.
        offsets = torch.where(close, offsets + attempt * step, offsets).to(dtype).double()
    raise AssertionError(f"case {case.id}: samples stay at pixel centres")


_PYRAMID = ((16, 21), (8, 11), (4, 6), (2, 3))
_SMALL = ((9, 11), (5, 6))
_ENCODER = ((11, 14), (6, 7), (3, 4), (2, 2))

CASES: tuple[Case, ...] = (
    Case("encoder", 2, 212, 8, 32, _ENCODER, (4, 4, 4, 4), layout="local"),
    Case("encoder_masked", 2, 212, 4, 32, _ENCODER, (4, 4, 4, 4), mask=True, layout="local"),
    Case("encoder_boxes", 1, 200, 8, 32, _PYRAMID, (4, 4, 4, 4), reference_coordinates=4, layout="local"),
    Case("decoder", 2, 100, 8, 32, _PYRAMID, (4, 4, 4, 4), reference_coordinates=4),
    Case("decoder_masked", 3, 50, 8, 32, _PYRAMID, (4, 4, 4, 4), reference_coordinates=4, mask=True),
    Case("decoder_few_queries", 2, 9, 8, 32, _PYRAMID, (4, 4, 4, 4), reference_coordinates=4),
    Case("rtdetr", 2, 60, 8, 32, ((16, 16), (8, 8), (4, 4)), (3, 6, 3), reference_coordinates=4),
    Case("rfdetr", 2, 40, 16, 16, ((9, 11),), (2,), reference_coordinates=4),
    Case("two_points_masked", 2, 60, 6, 16, ((9, 11),), (2,), reference_coordinates=4, mask=True),
    Case("wide_level", 1, 167, 2, 32, ((3, 167), (2, 84)), (4, 4), layout="local"),
    Case("one_pixel_levels", 2, 19, 2, 8, ((1, 1), (1, 1), (2, 2)), (4, 4, 4)),
    Case("height_one", 2, 20, 2, 8, ((1, 13), (1, 7)), (4, 4)),
    Case("width_one", 2, 20, 2, 8, ((13, 1), (7, 1)), (4, 4), reference_coordinates=4),
    Case("levels_1", 2, 99, 4, 16, ((9, 11),), (4,), layout="local"),
    Case("levels_2", 2, 31, 4, 16, _SMALL, (4, 4)),
    Case("levels_3", 2, 31, 4, 16, (*_SMALL, (3, 3)), (4, 4, 4)),
    Case("levels_5", 2, 31, 4, 16, (*_PYRAMID, (2, 2)), (4, 4, 4, 4, 4), reference_coordinates=4),
    *(Case(f"channels_{channels}", 2, 23, 3, channels, _SMALL, (4, 4)) for channels in (1, 3, 4, 8, 16, 36, 64, 128)),
    Case("one_head", 2, 40, 1, 32, _PYRAMID, (4, 4, 4, 4)),
    Case("one_point", 2, 40, 8, 32, _SMALL, (1, 1)),
    Case("odd_points", 2, 29, 5, 8, (*_SMALL, (3, 3)), (5, 7, 5), layout="local"),
    Case("level_without_points", 2, 25, 2, 16, (*_SMALL, (3, 3)), (4, 0, 2)),
    Case("many_points", 1, 11, 2, 16, _SMALL, (40, 25), reference_coordinates=4),
    Case("no_queries", 2, 0, 8, 32, _SMALL, (4, 4)),
    Case("no_images", 0, 7, 8, 32, _SMALL, (4, 4), reference_coordinates=4),
    Case("no_points", 2, 7, 2, 8, _SMALL, (0, 0)),
    Case("prime_queries", 1, 97, 8, 32, _SMALL, (4, 4), reference_coordinates=4),
    Case("hostile", 2, 41, 4, 16, ((8, 16), (4, 8), (2, 4), (1, 1)), (4, 4, 4, 4), layout="hostile"),
    Case("hostile_boxes", 2, 41, 4, 16, ((8, 16), (4, 8), (2, 4), (1, 1)), (4, 4, 4, 4), 4, layout="hostile"),
    Case("hostile_masked", 2, 41, 2, 8, ((7, 9), (3, 5)), (3, 2), mask=True, layout="hostile"),
)
