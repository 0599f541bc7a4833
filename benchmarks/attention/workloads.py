"""Define what is measured: the calls of DINO, Deformable DETR, RT-DETR and RF-DETR, and three series.

These models have M = 8 heads of D = 32 channels, except RF-DETR with M = 16 of D = 16.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dino_kernels.testing import Case

OPS = ("ms_deform_attn", "fused_ms_deform_attn")
STRIDES = (8, 16, 32, 64)


def pyramid(height: int, width: int, strides: Sequence[int] = STRIDES) -> tuple[tuple[int, int], ...]:
    """Return (H, W) of each level of an image: 800x1333 gives 100x167, 50x84, 25x42, 13x21."""
    return tuple((math.ceil(height / stride), math.ceil(width / stride)) for stride in strides)


def encoder(name: str, shapes: tuple[tuple[int, int], ...], batch: int = 1) -> Case:
    """Make an encoder's call: every feature position is a query (Q = S) and samples around itself."""
    rows = sum(height * width for height, width in shapes)
    return Case(name, batch, rows, 8, 32, shapes, (4,) * len(shapes), layout="local")


def decoder(name: str, queries: int, shapes: tuple[tuple[int, int], ...], points: Sequence[int] = (4,) * 4) -> Case:
    """Make a decoder's call: few queries with reference boxes and scattered samples, which miss the caches."""
    return Case(name, 1, queries, 8, 32, shapes, tuple(points), reference_coordinates=4)


COCO = pyramid(800, 1333)

ENCODER_800x1333 = encoder("encoder_800x1333", COCO)
ENCODER_800x1066 = encoder("encoder_800x1066", pyramid(800, 1066))
ENCODER_400x667 = encoder("encoder_400x667", pyramid(400, 667))
ENCODER_5_SCALE = encoder("encoder_5_scale", pyramid(800, 1333, (4, *STRIDES)))
DECODER_900 = decoder("decoder_q900", 900, COCO)
DECODER_1100 = decoder("decoder_q1100", 1100, COCO)
# One level, two points: a small part of a decoder layer's samples.
RF_DETR = Case("rfdetr_768x768", 1, 1300, 16, 16, ((48, 48),), (2,), reference_coordinates=4)
RT_DETR = decoder("rtdetr_640x640", 300, pyramid(640, 640, (8, 16, 32)), points=(3, 6, 3))


@dataclass(frozen=True)
class Series:
    """One quantity that grows while the rest is fixed."""

    name: str
    label: str  # of the x axis, with its unit
    cases: tuple[tuple[int, Case], ...]  # (x, case)


def growth(queries: Sequence[int], heights: Sequence[int], points: Sequence[int]) -> tuple[Series, ...]:
    """Make the series. The forward's time should be linear in queries and samples, and independent of image size."""
    images = [(height, pyramid(height, round(height * 5 / 3))) for height in heights]
    by_image = [decoder(f"image_{height}", 900, shapes) for height, shapes in images]
    return (
        Series("queries", "queries Q", tuple((q, decoder(f"queries_{q}", q, COCO)) for q in queries)),
        Series("image", "feature rows S", tuple((case.S, case) for case in by_image)),
        Series(
            "samples",
            "samples per head K",
            tuple((4 * p, decoder(f"samples_{4 * p}", 900, COCO, [p] * 4)) for p in points),
        ),
    )


@dataclass(frozen=True)
class Effort:
    """How much one run measures, and for how long."""

    name: str
    calls: tuple[tuple[str, Case], ...]  # (op, case), timed
    memory: tuple[tuple[str, Case], ...]
    growth: tuple[Series, ...]
    dtypes: tuple[str, ...]
    race_s: float  # time for one race; its least laps may take longer
    laps: int  # at least so many


def both_ops(*cases: Case) -> tuple[tuple[str, Case], ...]:
    return tuple((op, case) for case in cases for op in OPS)


def fused_op(*cases: Case) -> tuple[tuple[str, Case], ...]:
    return tuple(("fused_ms_deform_attn", case) for case in cases)


SHORT = Effort(
    "short",
    fused_op(ENCODER_400x667) + both_ops(DECODER_900, RT_DETR, RF_DETR),
    fused_op(ENCODER_400x667),
    growth((300, 1000), (200, 400), (4, 8)),
    ("fp32", "bf16"),
    race_s=0.5,
    laps=2,
)
DEFAULT = Effort(
    "default",
    both_ops(ENCODER_800x1333) + fused_op(ENCODER_800x1066) + both_ops(DECODER_900, RT_DETR, RF_DETR),
    fused_op(ENCODER_800x1333, DECODER_900, RT_DETR, RF_DETR),
    growth((100, 300, 1000, 3000), (200, 400, 800), (1, 2, 4, 8, 16)),
    ("fp32", "bf16"),
    race_s=3.0,
    laps=2,
)
_FULL_CASES = (
    ENCODER_800x1333,
    replace(ENCODER_800x1333, batch=2),
    replace(ENCODER_800x1333, batch=4),
    ENCODER_800x1066,
    ENCODER_5_SCALE,
    DECODER_900,
    replace(DECODER_900, batch=2),
    DECODER_1100,
    replace(DECODER_1100, batch=2),
    RT_DETR,
    RF_DETR,
)
FULL = Effort(
    "full",
    both_ops(*_FULL_CASES),
    both_ops(*_FULL_CASES),
    growth((100, 300, 1000, 3000, 10000, 30000), (200, 400, 800, 1120, 1600), (1, 2, 4, 8, 16, 32)),
    ("fp32", "bf16", "fp16", "fp64"),
    race_s=20.0,
    laps=5,
)


def miniature(case: Case) -> Case:
    """Return the same call with maps an eighth as wide and high, small enough to compare with float64."""
    shapes = tuple((math.ceil(height / 8), math.ceil(width / 8)) for height, width in case.shapes)
    rows = sum(height * width for height, width in shapes)
    return replace(case, name=f"{case.name}_small", shapes=shapes, queries=rows if case.queries == case.S else 64)
