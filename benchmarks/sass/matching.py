"""Launch the kernels of matching: 900 queries, 91 classes and 20 targets, as in DINO's training step.

The assignment has one kernel for few targets, and others for more targets or float64.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.matching.workloads import MatchingStep, sample_predictions, sample_targets
from benchmarks.measure.machine import ROOT
from benchmarks.sass.attention import DTYPE, TYPES, narrow, widened
from benchmarks.sass.disassembly import Kernel
from benchmarks.sass.launch import GLOBAL, Launch, constant_bank
from benchmarks.sass.memory import Memory

TARGETS, IMAGES, SETS = 20, 16, 7
MANY_TARGETS = 100  # more than the kernel for few targets takes
COST_PATTERN = r"matching_cost_kernel\("
SMALL_PATTERN = r"small_assignment_kernel\("
ASSIGNMENT_PATTERN = r"assignment_kernel<(?P<T>\w+), (?:dino_kernels::)?(?P<solver>\w+)>"
TILE = 128  # queries of a block of the cost kernel
SHORT_ROWS, FEW_THREADS = 256, 128  # of the assignment: csrc/linear_sum_assignment/cuda.cu


def label_of(name: str) -> str | None:
    """Label a demangled name; None for other kernels than those of matching."""
    if re.search(rf"\b{COST_PATTERN}", name):
        return "matching_cost"
    if re.search(rf"\b{SMALL_PATTERN}", name):
        return "assignment small fp32"
    if found := re.search(rf"\b{ASSIGNMENT_PATTERN}", name):
        return f"assignment {found['solver']} {TYPES[found['T']]}"
    return None


def launch(kernel: Kernel, name: str, label: str, blocks: int) -> Launch:
    """Launch on DINO's training step: 7 sets of predictions, 16 images with 20 targets, or many for some kernels."""
    return cost(kernel) if label == "matching_cost" else assignment(kernel, label)


@cache
def headers() -> dict[str, Any]:
    from benchmarks.sass.parameters import Headers

    folders = [ROOT / "csrc" / name for name in ("matching_cost", "linear_sum_assignment")]
    return {folder.name: Headers(folder / "params.h", folder / "cuda_params.h") for folder in folders}


@cache
def predictions(costs: str, number: int = TARGETS) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draw the logits [Q, C], boxes [Q, 4], labels [T] and boxes [T, 4] of one image."""
    step = MatchingStep(number, costs, 1, sets=1)
    generator = torch.Generator().manual_seed(0)
    targets = sample_targets(step, generator)
    logits, boxes = sample_predictions(step, targets, generator)
    given = (logits[0, 0], boxes[0, 0], targets[0]["labels"], targets[0]["boxes"])
    return tuple(tensor.numpy() for tensor in given)  # type: ignore[return-value]


def focal_cost_matrix(costs: str, number: int = TARGETS, dtype: str = "fp32") -> np.ndarray:
    """Compute the cost [T, Q] in float64, with DINO's weights (focal 2, L1 5, GIoU 2), from logits of a dtype."""
    logits, boxes, labels, targets = (array.astype(np.float64) for array in predictions(costs, number))
    logits = widened(narrow(logits, dtype), dtype)
    p = 1 / (1 + np.exp(-logits[:, labels.astype(int)].T))
    focal = 0.25 * (1 - p) ** 2 * -np.log(p + 1e-8) - 0.75 * p**2 * -np.log(1 - p + 1e-8)
    distance = np.abs(targets[:, None] - boxes[None]).sum(-1)

    def corners(b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return b[..., :2] - b[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2

    (low, high), (low_t, high_t) = corners(boxes[None]), corners(targets[:, None])
    inner = np.clip(np.minimum(high, high_t) - np.maximum(low, low_t), 0, None).prod(-1)
    union = (high - low).prod(-1) + (high_t - low_t).prod(-1) - inner
    outer = (np.maximum(high, high_t) - np.minimum(low, low_t)).prod(-1)
    giou = inner / union - (outer - union) / outer
    return 2 * focal + 5 * distance - 2 * giou


def cost(kernel: Kernel, dtype: str = "fp32") -> Launch:
    """Launch the cost of an image, from logits of a dtype; the unit is a tile of 128 queries with all targets."""
    logits, boxes, labels, targets = predictions("early")
    Q, C = logits.shape
    tiles = -(-Q // TILE)
    memory = Memory("global", 1 << 22, GLOBAL)
    at = {"cost": memory.allocate(TARGETS * Q * 4), "notes": memory.allocate(tiles * 4)}
    stored = narrow(logits.astype(np.float64), dtype)
    source = {"logits": memory.put(stored), "boxes": memory.put(boxes.astype(np.float32)), "sets": 1, "Q": Q}
    for name, row in (("logits", C), ("boxes", 4)):
        source |= {f"{name}_set_stride": Q * row, f"{name}_batch_stride": Q * row, f"{name}_row_stride": row}
    formula = {
        "class_weight": 2.0,
        "l1_weight": 5.0,
        "giou_weight": 2.0,
        "alpha": 0.25,
        "gamma": 2.0,
        "class_eps": 1e-8,
    }
    sizes = {"G": 1, "B": 1, "Q": Q, "C": C, "N": TARGETS, "max_targets": TARGETS, "num_sources": 1}
    parameters = sizes | {
        "logits_dtype": DTYPE[dtype],
        "boxes_dtype": DTYPE["fp32"],
        "labels": memory.put(labels.astype(np.int64)),
        "target_boxes": memory.put(targets.astype(np.float32)),
        "offsets": memory.put(np.array([0, TARGETS], np.int64)),
        "formula": formula,
        "table": [source],
        "tiles": tiles,
        "logit_bytes": stored.itemsize,
        "cost": at["cost"],
        "notes": at["notes"],
    }
    bank = constant_bank(kernel, headers()["matching_cost"].pack("CudaCostParams", parameters), tiles, TILE)
    units = SETS * IMAGES * tiles
    workload = f"{SETS} x {IMAGES} x {Q} x {TARGETS}"
    return Launch(kernel, workload, "tile of 128 queries", 1, units, memory, bank, tiles, [0, tiles // 2], TILE, at)


def targets_for(label: str) -> int:
    """Return how many targets make the operator choose the kernel: csrc/linear_sum_assignment/cuda.cu."""
    return MANY_TARGETS if label == "assignment LowestSolver fp32" else TARGETS


def assignment(kernel: Kernel, label: str, costs: str = "early") -> Launch:
    """Launch the assignment of an image; the unit is the problem. Its kernel takes float32 or float64 costs."""
    matrix = focal_cost_matrix(costs, targets_for(label))
    T, Q = matrix.shape
    memory = Memory("global", 1 << 22, GLOBAL)
    double = label.endswith("fp64")
    at = {"columns": memory.allocate(8 * T), "status": memory.allocate(4)}
    sizes = {"G": 1, "R": T, "C": Q, "B": 1, "max_rows": T, "solver_rows": T, "solver_columns": Q}
    parameters = sizes | {
        "cost_float64": double,
        "cost": memory.put(matrix.astype(np.float64 if double else np.float32)),
        "group_stride": T * Q,
        "row_stride": Q,
        "column_stride": 1,
        "as_scipy": "SciPy" in label,
        "offsets": memory.put(np.array([0, T], np.int64)),
        "columns": at["columns"],
        "status": at["status"],
    }
    threads = FEW_THREADS if Q <= SHORT_ROWS else kernel.max_threads
    if "small" in label:
        threads = 32 * T  # a warp a row
    packed = headers()["linear_sum_assignment"].pack("CudaAssignmentParams", parameters)

    def check(_: int) -> None:
        if memory.get(at["status"], np.int32, (1,))[0] != 0:
            raise ValueError(f"{label} did not solve its problem. Correct the parameters in {Path(__file__).name}.")

    bank = constant_bank(kernel, packed, 1, threads)
    units = SETS * IMAGES
    workload = f"{SETS} x {IMAGES} x {Q} x {T}"
    return Launch(kernel, workload, "problem", 1, units, memory, bank, 1, [0], threads, at, check)
