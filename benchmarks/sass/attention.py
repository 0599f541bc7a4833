"""Launch the kernels of deformable attention on the workloads that `benchmarks.sass.counts` counts."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure.machine import ROOT
from benchmarks.sass.disassembly import Kernel
from benchmarks.sass.halves import from_bfloat16, from_half, to_bfloat16, to_half
from benchmarks.sass.launch import GLOBAL, Launch, constant_bank
from benchmarks.sass.memory import Memory
from benchmarks.sass.parameters import Headers

TOGETHER = 8  # items in the unit of the counts
CHANNELS, HEADS = 32, 8
TYPES = {"__nv_bfloat16": "bf16", "__half": "fp16", "float": "fp32", "double": "fp64"}
RAW: dict[str, Any] = {"bf16": np.uint16, "fp16": np.uint16, "fp32": np.float32, "fp64": np.float64}
DTYPE = {"fp32": 0, "fp64": 1, "bf16": 2, "fp16": 3}  # csrc/common/dtype.h


@dataclass(frozen=True)
class Family:
    """What the machine code of a kernel does not show: change it with cuda_launch.cu.

    `pattern` matches the demangled name; of its groups, T is required, `lanes` are those whose product is the lanes
    of an item, `fused` and `tiles` are "true" or "false", and `K`, if present, is the number of samples that
    the kernel is compiled for.
    """

    name: str
    pattern: str
    lanes: tuple[str, ...] = ("group", "split")
    backward: bool = False


_ARGUMENTS = r"<(?P<T>\w+), (?P<V>\d+), (?P<group>\d+), (?P<split>\d+), (?P<fused>true|false)"
_OF_PAIRS = r"<(?P<T>\w+), (?P<fused>true|false), (?P<samples>\d+)"
PAIR_LANES = 4  # of an item, in the kernels that take pairs of items
FAMILIES = (
    Family("forward", rf"forward_kernel{_ARGUMENTS}\b[^>]*>"),
    Family("backward", rf"backward_kernel{_ARGUMENTS}, (?P<fixed>true|false)>", backward=True),
    Family("forward", rf"forward_mma_kernel{_OF_PAIRS}, (?P<mask>true|false)>", lanes=()),
    Family(
        "backward",
        rf"backward_mma_kernel{_OF_PAIRS}, \(dino_kernels::ValueSums\)(?P<sums>0|2)>",
        lanes=(),
        backward=True,
    ),
)


@dataclass(frozen=True)
class Case:
    """The queries of an image, and where they sample."""

    name: str
    shapes: tuple[tuple[int, int], ...]
    points: int  # samples per level and head
    queries: int | None = None  # None: the pixels of all levels
    batch: int = 1
    heads: int = HEADS
    coordinates: int = 2
    spread: float = 2.0  # pixels, standard deviation of trained offsets

    @property
    def rows(self) -> int:
        return sum(height * width for height, width in self.shapes)


COCO = ((100, 167), (50, 84), (25, 42), (13, 21))  # 800x1333
ENCODER = Case("encoder 800x1333", COCO, 4)
DECODER = Case("decoder Q=900", COCO, 4, queries=900, coordinates=4)


def match_family(name: str) -> tuple[Family, dict[str, str]] | None:
    for family in FAMILIES:
        found = re.search(rf"\b{family.pattern}", name)
        if found:
            return family, {key: value for key, value in found.groupdict().items() if value is not None}
    return None


def label_of(name: str) -> str | None:
    """Label a demangled name, as in "forward large bf16 fused"; None for kernels that are not in FAMILIES."""
    found = match_family(name)
    if found is None:
        return None
    family, groups = found
    lanes = [int(groups[key]) for key in family.lanes]
    if 0 in lanes:
        size = "general"
    else:
        size = "small" if lanes and lanes[-1] > 1 else "tile" if groups.get("sums") == "2" else "large"
    samples = " K<=32" if groups.get("samples") == "32" else ""
    samples += " fixed point" if groups.get("fixed") == "true" and size != "general" else ""
    samples += " mask" if not samples and groups.get("mask") == "true" else ""
    kind = "fused" if groups["fused"] == "true" else "classic"
    return f"{family.name} {size} {TYPES[groups['T']]} {kind}{samples}"


def launch(kernel: Kernel, name: str, label: str, blocks: int) -> AttentionLaunch:
    """Prepare the kernel on the workload that it is for."""
    return prepare(kernel, name, DECODER if "small" in label else ENCODER, blocks)


@cache
def headers() -> Headers:
    folder = ROOT / "csrc" / "ms_deform_attn"
    return Headers(folder / "params.h", folder / "cuda_params.h")


def narrow(numbers: np.ndarray, dtype: str) -> np.ndarray:
    """Convert float64 to the bytes of a dtype."""
    if dtype == "bf16":
        return to_bfloat16(numbers.astype(np.float32)).astype(np.uint16)
    if dtype == "fp16":
        return to_half(numbers.astype(np.float32)).astype(np.uint16)
    return numbers.astype(np.float32 if dtype == "fp32" else np.float64)


def widened(raw: np.ndarray, dtype: str) -> np.ndarray:
    """Convert the bytes of a dtype to float64: the inverse of `narrow`."""
    if dtype == "bf16":
        return from_bfloat16(raw).astype(np.float64)
    return from_half(raw).astype(np.float64) if dtype == "fp16" else raw.astype(np.float64)


@dataclass
class Inputs:
    """Inputs rounded to their dtypes: raw offsets and logits with references, or locations and weights."""

    value: np.ndarray  # [B, S, M, D]
    positions: np.ndarray  # [B, Q, M, K, 2]
    weights: np.ndarray  # [B, Q, M, K]
    reference: np.ndarray | None  # [B, Q, L, coordinates]
    grad_output: np.ndarray  # [B, Q, M, D]


def rays(case: Case) -> np.ndarray:
    """Return the original module's initial offsets in pixels, [M, L * P, 2]."""
    angle = np.arange(case.heads) * (2 * math.pi / case.heads)
    ray = np.stack([np.cos(angle), np.sin(angle)], -1)
    ray /= np.abs(ray).max(-1, keepdims=True)
    steps = np.tile(np.arange(1, case.points + 1), len(case.shapes))
    return ray[:, None] * steps[:, None]


@cache
def sample_inputs(case: Case, fused: bool) -> Inputs:
    random = np.random.default_rng(0)
    B, M, L, K = case.batch, case.heads, len(case.shapes), len(case.shapes) * case.points
    if case.queries is None:
        centers = np.concatenate(
            [
                np.stack(np.meshgrid((np.arange(w) + 0.5) / w, (np.arange(h) + 0.5) / h), -1).reshape(-1, 2)
                for h, w in case.shapes
            ]
        )
    else:
        centers = random.random((case.queries, 2))
    Q = len(centers)
    reference = np.broadcast_to(centers[None, :, None], (B, Q, L, 2))
    if case.coordinates == 4:
        sizes = np.broadcast_to(random.uniform(0.05, 0.5, (1, Q, 1, 2)), reference.shape)
        reference = np.concatenate([reference, sizes], -1)
    offsets = rays(case) + random.normal(0, case.spread, (B, Q, M, K, 2))
    logits = random.normal(0, 1, (B, Q, M, K))
    value = random.normal(0, 1, (B, case.rows, M, CHANNELS))
    grad_output = random.normal(0, 1, (B, Q, M, CHANNELS))
    if fused:
        return Inputs(value, offsets, logits, reference.astype(np.float32), grad_output)
    level = np.repeat(np.arange(L), case.points)
    size = np.array([(w, h) for h, w in case.shapes])[level]
    base = reference[:, :, None, level, :2]
    if case.coordinates == 4:
        locations = base + offsets / case.points * reference[:, :, None, level, 2:] * 0.5
    else:
        locations = base + offsets / size
    weights = np.exp(logits)
    return Inputs(value, locations, weights / weights.sum(-1, keepdims=True), None, grad_output)


@dataclass
class AttentionLaunch(Launch):
    """A launch of deformable attention; `items` is the number of (query, head) pairs of a block."""

    case: Case = ENCODER
    family: Family = FAMILIES[0]
    dtype: str = ""
    fused: bool = False
    given: str = ""  # dtype of positions and weights
    items: int = 0
    inputs: Inputs | None = None

    def result(self, name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        """Return one of the outputs as float64."""
        return widened(self.memory.get(self.addresses[name], RAW[dtype], shape), dtype)


def chosen_blocks(of_head: int, heads: int, count: int) -> list[int]:
    """Choose evenly spaced blocks, each of another head. The one in the middle always comes first."""
    order = sorted(range(count), key=lambda i: abs(2 * i + 1 - count))
    return [n % heads * of_head + (2 * i + 1) * of_head // (2 * count) for n, i in enumerate(order)]


def prepare(kernel: Kernel, name: str, case: Case, blocks: int = 3) -> AttentionLaunch:
    """Prepare a launch of a kernel, by its demangled name, with `blocks` evenly spaced blocks to run."""
    found = match_family(name)
    if found is None:
        raise ValueError(f"{name} is in none of the families. Add its family to {Path(__file__).name}.")
    family, groups = found
    dtype, fused = TYPES[groups["T"]], groups["fused"] == "true"
    lanes = math.prod(int(groups[key]) for key in family.lanes) if family.lanes else PAIR_LANES
    if lanes == 0:  # any number of lanes
        lanes = 1 << max(0, math.ceil(math.log2(CHANNELS / int(groups["V"]))))
    inputs = sample_inputs(case, fused)
    B, Q, M, K = inputs.weights.shape
    S, L = case.rows, len(case.shapes)
    items = kernel.max_threads // lanes
    of_head = math.ceil(Q / items)
    grid = B * M * of_head
    compute = "fp64" if dtype == "fp64" else "fp32"
    as_value = fused  # one product gives raw offsets and logits; locations and weights are float32 in the classic op
    given = dtype if as_value else compute
    unit = {"bf16": 2, "fp16": 2, "fp32": 4, "fp64": 8}
    wide = unit[compute]
    size = B * S * M * CHANNELS * (2 * unit[dtype] + wide) + B * Q * M * CHANNELS * 2 * unit[dtype]
    size += B * Q * M * K * 6 * unit[given] + B * Q * L * 4 * wide * (1 + M)
    memory = Memory("global", size + (1 << 16), GLOBAL)
    put = memory.put
    at = {
        "value": put(narrow(inputs.value, dtype)),
        "positions": put(narrow(inputs.positions, given)),
        "weights": put(narrow(inputs.weights, given)),
        "output": memory.allocate(B * Q * M * CHANNELS * unit[dtype]),
    }

    def strided(name: str, rows: int, row: int) -> dict[str, int]:
        return {"data": at[name], "batch_stride": rows * row, "row_stride": row}

    parameters: dict[str, Any] = {"B": B, "S": S, "M": M, "D": CHANNELS, "Q": Q, "L": L, "K": K}
    parameters |= {
        "dtype": DTYPE[dtype],
        "value": strided("value", S, M * CHANNELS),
        "positions": strided("positions", Q, M * K * 2),
        "weights": strided("weights", Q, M * K),
        "positions_as_value": as_value,
        "weights_as_value": as_value,
        "output": at["output"],
        "table": {"sizes": [n for shape in case.shapes for n in shape], "points": [case.points] * L},
        "blocks_per_head": math.ceil(Q / items),
        "group": lanes,
        "pairs_aligned": True,
        "queries_on_grid": Q == S,
    }
    if inputs.reference is not None:
        parameters["reference_points"] = put(inputs.reference.astype(np.float64 if compute == "fp64" else np.float32))
        parameters["reference_coordinates"] = case.coordinates
    if family.backward:
        at["grad_output"] = put(narrow(inputs.grad_output, dtype))
        at["sums"] = memory.allocate(B * S * M * CHANNELS * wide)
        at["grad_positions"] = memory.allocate(B * Q * M * K * 2 * unit[given])
        at["grad_weights"] = memory.allocate(B * Q * M * K * unit[given])
        parameters |= {name: at[name] for name in ("sums", "grad_positions", "grad_weights")}
        parameters |= {"grad_value": at["sums"], "grad_output": strided("grad_output", Q, M * CHANNELS)}
    written = "grad_weights" if family.backward else "output"
    width = (K if family.backward else CHANNELS) * unit[given if family.backward else dtype]
    begin = at[written] - GLOBAL
    rows = memory.bytes[begin : begin + B * Q * M * width].reshape(-1, width)
    rows[:] = 0xFF

    def check(blocks_run: int) -> None:
        found = int((rows != 0xFF).any(1).sum())
        if not blocks_run * items - items < found <= blocks_run * items:
            raise ValueError(
                f"{blocks_run} blocks of {name} wrote {found} items of {items} each. Correct the lanes of an item in "
                f"FAMILIES of {Path(__file__).name}."
            )

    return AttentionLaunch(
        kernel,
        case.name,
        f"{TOGETHER} items",
        items / TOGETHER,
        B * Q * M / TOGETHER,
        memory,
        constant_bank(kernel, headers().pack("CudaParams", parameters), grid, kernel.max_threads),
        grid,
        chosen_blocks(of_head, B * M, blocks),
        kernel.max_threads,
        at,
        check,
        case=case,
        family=family,
        dtype=dtype,
        fused=fused,
        given=given,
        items=items,
        inputs=inputs,
    )
