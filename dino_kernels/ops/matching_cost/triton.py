"""Triton backend: the kernel in triton_kernel.py, one launch for all sets whose tensors share shape and strides."""

from __future__ import annotations

import itertools
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from dino_kernels.ops._core import triton_support
from dino_kernels.ops._core.arguments import HungarianMatchArguments
from dino_kernels.ops._core.arguments import MatchingCostArguments as Arguments

# The most tensors that one launch reads. A table of addresses on the device would not be limited, but each call would
# copy it there, from memory that a CUDA graph reads again at every replay.
MAX_SOURCES = 8
TILE_QUERIES = 64
TILE_TARGETS = 8
TILE_CLASSES = 32


def kernels() -> ModuleType:
    """Import and return the module of the kernel; tests/triton/interpreter.py replaces this function."""
    from dino_kernels.ops.matching_cost import triton_kernel

    return triton_kernel


def unsupported(arguments: Any) -> str | None:
    """Return why the Triton kernel cannot run this call, or None."""
    return triton_support.unsupported("logits", arguments.logits[0])


def forward(arguments: Arguments) -> Tensor:
    """Return the cost of every target with every query of its image, [G, N, Q] float32."""
    return cost_and_notes(arguments)[0]


def cost_and_notes(arguments: Arguments | HungarianMatchArguments) -> tuple[Tensor, Tensor]:
    """Return the cost and bits of the status, [G, B, n] int32, to be joined over n."""
    logits, boxes, labels, target_boxes, offsets, extra_cost, _, class_cost, formula, *_ = arguments
    logits = [_dense_rows(source) for source in logits]
    boxes = [_dense_rows(source) for source in boxes]
    sets, queries = sum(len(source) for source in logits), max(source.shape[2] for source in logits)
    targets, images = len(labels), len(offsets) - 1
    tiles = max(1, -(-queries // TILE_QUERIES))  # an invalid target is reported without queries too
    cost = torch.empty(sets, targets, queries, dtype=torch.float32, device=labels.device)
    notes = torch.empty(sets, images, tiles, dtype=torch.int32, device=labels.device)
    if extra_cost is not None:
        extra_cost = extra_cost.contiguous()
    first_set = 0
    for group in _groups(logits, boxes):
        some = [logits[number] for number in group]
        some_boxes = [boxes[number] for number in group] if boxes else [None]
        first = some[0]
        count = len(first) * len(some)
        box_strides = (0, 0, 0) if some_boxes[0] is None else some_boxes[0].stride()[:3]
        if count > 0:
            with triton_support.on_device_of(labels):
                kernels().matching_cost[(tiles * (images + 1) * count,)](
                    *_filled(some),
                    *_filled(some_boxes),
                    labels.contiguous(),
                    None if target_boxes is None else target_boxes.contiguous(),
                    offsets.contiguous(),
                    extra_cost,
                    cost,
                    notes,
                    first_set,
                    len(first),
                    images,
                    first.shape[2],
                    first.shape[3],
                    targets,
                    queries,
                    tiles,
                    *first.stride()[:3],
                    *box_strides,
                    0 if extra_cost is None or len(extra_cost) == 1 else extra_cost.stride(0),
                    *formula,
                    SOFTMAX=class_cost == "softmax",
                    TILE_TARGETS=TILE_TARGETS,
                    TILE_QUERIES=TILE_QUERIES,
                    TILE_CLASSES=TILE_CLASSES,
                )
        first_set += count
    return cost, notes


def _dense_rows(source: Tensor) -> Tensor:
    return source if source.stride(3) == 1 else source.contiguous()


def _groups(logits: list[Tensor], boxes: list[Tensor]) -> list[list[int]]:
    """Return indices of consecutive sources that share shape and strides, in groups of at most MAX_SOURCES."""

    def layout(number: int) -> object:
        return logits[number].shape, logits[number].stride(), boxes[number].stride() if boxes else None

    runs = (list(run) for _, run in itertools.groupby(range(len(logits)), layout))
    return [run[i : i + MAX_SOURCES] for run in runs for i in range(0, len(run), MAX_SOURCES)]


def _filled(sources: list[Tensor] | list[None]) -> list[Tensor | None]:
    """Fill up to MAX_SOURCES tensors, so that the kernel is compiled once; it does not read the additional ones."""
    return [*sources, *[sources[0]] * (MAX_SOURCES - len(sources))]
