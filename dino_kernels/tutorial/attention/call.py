"""Call a step's C++ functions: fill the struct of call.h, and connect its gradients to autograd."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dino_kernels.tutorial import native
from dino_kernels.tutorial.attention.problem import Problem

SIZES = ["B", "S", "M", "D", "Q", "L", "K"]
POINTERS = ["levels", "value", "frame", "offsets", "logits", "mask", "order"]
RESULTS = ["rows", "weights", "output", "grad_output", "grad_value", "grad_offsets", "grad_logits", "grad_frame"]


class Call(ctypes.Structure):
    """The struct `Call` of call.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in SIZES),
        *((name, ctypes.c_void_p) for name in POINTERS),
        ("backwards", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in RESULTS),
    ]


def run(source: str, function: str, given: Problem, frame: Tensor, backwards: bool = False, **results: Tensor) -> None:
    """Run a function of a C++ or CUDA file on a call. It writes into `results`, by the names of the struct.

    Raises:
        CompilerMissing, RuntimeError: the file cannot be compiled, or CUDA reports an error.
    """
    (B, S, M, D), Q, L = given.value.shape, frame.shape[1], len(given.shapes)
    mask = None if given.mask is None else given.mask.contiguous().view(torch.uint8)
    tensors: dict[str, Tensor | None] = {
        "levels": _levels(tuple(given.levels)).to(frame.device),
        "value": given.value.detach().contiguous(),
        "frame": frame.detach().contiguous(),
        "offsets": given.offsets.detach().contiguous(),
        "logits": given.logits.detach().contiguous(),
        "mask": mask,
        "order": tile_order(tuple(given.shapes), Q).to(frame.device),
        **results,
    }
    pointers = {name: x.data_ptr() for name, x in tensors.items() if x is not None and x.numel()}
    call = Call(B=B, S=S, M=M, D=D, Q=Q, L=L, K=sum(given.points), backwards=backwards, **pointers)
    compiled = getattr(native.load(Path(__file__).with_name(source)), function)
    if not frame.is_cuda:
        compiled(ctypes.byref(call))
    elif code := compiled(ctypes.byref(call), ctypes.c_void_p(torch.cuda.current_stream(frame.device).cuda_stream)):
        raise RuntimeError(f"{source}: CUDA error {code}")


class _Fused(torch.autograd.Function):
    """A step with a backward. It saves its inputs and nothing else."""

    @staticmethod
    def forward(ctx: Any, sources: tuple[str, str], given: Problem, value, frame, offsets, logits) -> Any:  # type: ignore[override]
        ctx.sources, ctx.given = sources, given
        ctx.save_for_backward(value, frame, offsets, logits)
        B, Q, M, _ = logits.shape
        output = value.new_empty(B, Q, M * value.shape[3])
        run(sources[0], "forward", given, frame, output=output)
        return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        value, frame, offsets, logits = ctx.saved_tensors
        B, Q, M, _ = logits.shape
        of_value = torch.zeros_like(value)
        of_offsets, of_logits = torch.empty_like(offsets), torch.empty_like(logits)
        of_frame = frame.new_zeros(B, Q, M, frame.shape[2], 4)
        results: dict[str, Any] = {"grad_value": of_value, "grad_offsets": of_offsets, "grad_logits": of_logits}
        grad_output = grad_outputs[0].contiguous()
        run(ctx.sources[1], "backward", ctx.given, frame, grad_output=grad_output, grad_frame=of_frame, **results)
        return None, None, of_value, of_frame.sum(2), of_offsets, of_logits  # heads are added up in a fixed order


def attend(forward: str, backward: str, given: Problem) -> Tensor:
    """Return [B, Q, M * D] from the functions of two C++ files; differentiable."""
    return _Fused.apply((forward, backward), given, given.value, given.frame(), given.offsets, given.logits)  # type: ignore[return-value]


@functools.cache
def _levels(levels: tuple[tuple[int, ...], ...]) -> Tensor:
    return torch.tensor(levels, dtype=torch.int64)


@functools.cache
def tile_order(shapes: tuple[tuple[int, int], ...], queries: int, side: int = 8) -> Tensor:
    """Return the queries of an encoder in tiles of 8 x 8 pixels, level by level; those of a decoder as they are."""
    if queries != sum(height * width for height, width in shapes):
        return torch.arange(queries)
    tiles, start = [], 0
    for height, width in shapes:
        rows = torch.arange(start, start + height * width).view(height, width)
        tiles += [tile.flatten() for strip in rows.split(side, 0) for tile in strip.split(side, 1)]
        start += height * width
    return torch.cat(tiles)
