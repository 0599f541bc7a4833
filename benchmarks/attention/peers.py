"""Define who takes part: our backends, and every other implementation that is importable.

A peer is called as its users call it: `ms_deform_attn` is its core; for `fused_ms_deform_attn` the sampling
locations, the softmax and the padding mask are computed before it, as every module of the family does.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import dino_kernels

CLASSIC = ("value", "spatial_shapes", "level_start_index", "sampling_locations", "attention_weights")
BACKENDS = ("reference", "cpu", "cuda", "triton")


@dataclass(frozen=True)
class Implementation:
    """One contestant."""

    name: str
    ours: bool
    run: Callable[[str, dict[str, Any]], Tensor]  # (op, keyword arguments of the public function) -> output
    unsupported: Callable[[str, dict[str, Any]], str | None]  # the reason, or None


def implementations() -> dict[str, Implementation]:
    everyone = [_backend(name) for name in BACKENDS]
    everyone += [
        _peer("transformers", _transformers, _transformers_unsupported),
        _peer("mmcv", _mmcv, _mmcv_unsupported),
        Implementation("deformops", False, _deformops(), _deformops_unsupported),
        Implementation("deformops-fp32acc", False, _deformops(fp32acc=True), _deformops_fp32acc_unsupported),
        Implementation("deformops-cuda", False, _deformops(backend="CUDA"), _deformops_cuda_unsupported),
        _peer("original", _original, _original_unsupported),
    ]
    return {implementation.name: implementation for implementation in everyone}


COMPILED = "torch.compile"


def compiled_reference(compiler: str = "inductor") -> Implementation:
    """Compile the reference with `torch.compile`; the first call of each shape compiles for half a minute."""

    @functools.cache
    def compiled(op: str) -> Callable[..., Tensor]:
        function = getattr(dino_kernels, op)

        def reference(**inputs: Any) -> Tensor:
            return function(**inputs, backend="reference")

        return torch.compile(reference, backend=compiler, dynamic=False, fullgraph=True)

    def run(op: str, inputs: dict[str, Any]) -> Tensor:
        # Reading a tensor on the host would break the graph.
        shapes = _host_shapes(inputs["spatial_shapes"])
        return compiled(op)(**inputs | {"spatial_shapes": shapes, "level_start_index": None})

    def unsupported(op: str, inputs: dict[str, Any]) -> str | None:
        if compiler == "inductor" and inputs["value"].device.type != "cuda":
            return "compiled for a GPU only"
        return None

    return Implementation(COMPILED, False, run, unsupported)


def _backend(name: str) -> Implementation:
    def run(op: str, inputs: dict[str, Any]) -> Tensor:
        return getattr(dino_kernels, op)(**inputs, backend=name)

    def unsupported(op: str, inputs: dict[str, Any]) -> str | None:
        return dino_kernels.explain(getattr(dino_kernels, op), **inputs).reasons[name]

    return Implementation(name, True, run, unsupported)


def _peer(
    name: str, core: Callable[..., Tensor], unsupported: Callable[[str, dict[str, Any]], str | None]
) -> Implementation:
    def run(op: str, inputs: dict[str, Any]) -> Tensor:
        if op == "ms_deform_attn":
            return core(**inputs)
        classic = classic_inputs(inputs)
        weights = classic["attention_weights"]
        return core(**classic | {"attention_weights": weights.flatten(3).softmax(-1).view_as(weights)})

    return Implementation(name, False, run, unsupported)


def classic_inputs(fused: dict[str, Any]) -> dict[str, Any]:
    """Compute what a module does between its projections and the core, except the softmax: mask and locations."""
    value, offsets, logits = fused["value"], fused["sampling_offsets"], fused["attention_logits"]
    if fused["value_mask"] is not None:
        value = value.masked_fill(fused["value_mask"][..., None, None], 0.0)
    reference, num_points = fused["reference_points"], fused.get("num_points")
    if num_points is None:
        reference, points = reference[:, :, None, :, None], offsets.shape[4]  # [B, Q, 1, L, 1, 2 or 4]
        sizes = fused["spatial_shapes"].flip(-1)[:, None]  # [L, 1, 2]
    else:
        levels, points = _samples(tuple(num_points), value.device)
        reference = reference[:, :, levels][:, :, None]  # [B, Q, 1, K, 2 or 4]
        sizes = fused["spatial_shapes"].flip(-1)[levels]  # [K, 2]
    if reference.shape[-1] == 2:
        locations = reference + offsets / sizes
    else:
        locations = reference[..., :2] + offsets / points * reference[..., 2:] * 0.5
    classic = {name: fused[name] for name in ("spatial_shapes", "level_start_index", "num_points") if name in fused}
    return classic | {"value": value, "sampling_locations": locations, "attention_weights": logits}


@functools.lru_cache(maxsize=4)
def _samples(num_points: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the level of each sample, [K], and how many that level has, [K, 1].

    A module has them as buffers; making them in each call would wait for the GPU.
    """
    counts = torch.tensor(num_points)
    levels = torch.arange(len(num_points)).repeat_interleave(counts)
    return levels.to(device), counts[levels][:, None].to(device)


def import_error(module: str) -> str | None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        return f"{module} is not importable ({error})"
    return None


# Peers are optional, so they are imported by name, when they are called.
RT_DETR = "transformers.models.rt_detr_v2.modeling_rt_detr_v2"
DEFORMABLE_DETR = "transformers.models.deformable_detr.modeling_deformable_detr"
MMCV = "mmcv.ops.multi_scale_deform_attn"
DEFORMOPS = "deformops.registry"
ORIGINAL = "MultiScaleDeformableAttention"


@functools.lru_cache(maxsize=4)
def _host_shapes(spatial_shapes: Tensor) -> list[tuple[int, int]]:
    """Read the shapes once: a transformers model has them on the host, and reading them waits for the GPU."""
    return [(height, width) for height, width in spatial_shapes.tolist()]


def _transformers(value, spatial_shapes, level_start_index, sampling_locations, attention_weights, num_points=None):
    # A transformers model in 16 bit computes its locations in 16 bit; grid_sample accepts no mixture.
    locations = sampling_locations.to(value.dtype)
    shapes = _host_shapes(spatial_shapes)
    if num_points is not None:
        core = importlib.import_module(RT_DETR).multi_scale_deformable_attention_v2
        return core(value, shapes, locations, attention_weights, num_points)
    core = importlib.import_module(DEFORMABLE_DETR).MultiScaleDeformableAttention()
    return core(value, spatial_shapes, shapes, level_start_index, locations, attention_weights, 64)


def _transformers_unsupported(op: str, inputs: dict[str, Any]) -> str | None:
    return import_error(RT_DETR) or import_error(DEFORMABLE_DETR)


def _mmcv(value, spatial_shapes, level_start_index, sampling_locations, attention_weights):
    module = importlib.import_module(MMCV)
    if value.is_cuda:
        # Its module casts like this before its compiled function, whose batches of 64 images hold any batch here.
        samples = sampling_locations.type_as(value).contiguous(), attention_weights.type_as(value).contiguous()
        function = module.MultiScaleDeformableAttnFunction
        return function.apply(value, spatial_shapes, level_start_index, *samples, 64)
    core = module.multi_scale_deformable_attn_pytorch
    return core(value, spatial_shapes, sampling_locations.to(value.dtype), attention_weights)


def _mmcv_unsupported(op: str, inputs: dict[str, Any]) -> str | None:
    return import_error(MMCV) or _equal_points_only(inputs)


def _deformops(backend: str | None = None, **options: bool) -> Callable[[str, dict[str, Any]], Tensor]:
    """Call deformops; without a backend it prefers its Triton kernel to its compiled one on CUDA.

    From sm_90 on the Triton kernel adds up 16-bit gradients of the value in 16 bit, or in float32 with fp32acc; the
    compiled kernel always uses float32.
    """

    def run(op: str, inputs: dict[str, Any]) -> Tensor:
        fused = op == "fused_ms_deform_attn"  # its kernel has the softmax inside
        classic = classic_inputs(inputs) if fused else inputs
        registry = importlib.import_module(DEFORMOPS)
        chosen = options if backend is None else options | {"backend": registry.Backend[backend]}
        return registry.msda(*(classic[name] for name in CLASSIC), softmax=fused, **chosen)

    return run


def _deformops_unsupported(op: str, inputs: dict[str, Any]) -> str | None:
    return import_error(DEFORMOPS) or _equal_points_only(inputs)


def _deformops_fp32acc_unsupported(op: str, inputs: dict[str, Any]) -> str | None:
    value = inputs["value"]
    if value.device.type != "cuda" or value.dtype not in (torch.bfloat16, torch.float16):
        return "its accumulator is a choice on CUDA in 16 bit only"
    return _deformops_unsupported(op, inputs)


def _deformops_cuda_unsupported(op: str, inputs: dict[str, Any]) -> str | None:
    if inputs["value"].device.type != "cuda":
        return "its compiled kernel runs on CUDA only"
    return _deformops_unsupported(op, inputs) or _deformops_cuda_missing()


@functools.cache
def _deformops_cuda_missing() -> str | None:
    registry = importlib.import_module(DEFORMOPS)
    try:
        registry.msda.load(registry.Backend.CUDA)
    except RuntimeError as error:  # its wheel has no library; DEFORMOPS_COMPILE=1 lets it compile one
        return f"its compiled kernel is missing: {error}"
    return None


class _OriginalFunction(torch.autograd.Function):
    """Deformable-DETR's autograd function around its compiled module."""

    @staticmethod
    def forward(ctx, *tensors):
        ctx.save_for_backward(*tensors)
        return importlib.import_module(ORIGINAL).ms_deform_attn_forward(*tensors, 64)

    @staticmethod
    def backward(ctx, grad_output):
        module = importlib.import_module(ORIGINAL)
        grads = module.ms_deform_attn_backward(*ctx.saved_tensors, grad_output.contiguous(), 64)
        return grads[0], None, None, grads[1], grads[2]


def _original(value, spatial_shapes, level_start_index, sampling_locations, attention_weights):
    return _OriginalFunction.apply(
        value, spatial_shapes, level_start_index, sampling_locations.contiguous(), attention_weights
    )


def _original_unsupported(op: str, inputs: dict[str, Any]) -> str | None:
    missing = import_error(ORIGINAL)
    if missing is not None:
        return missing
    if hasattr(importlib.import_module(ORIGINAL), "__dino_kernels__"):
        return "the imported MultiScaleDeformableAttention is this package's own stand-in"
    value = inputs["value"]
    if value.device.type != "cuda" or value.dtype not in (torch.float32, torch.float64):
        return "the original op runs on CUDA in float32 and float64 only"
    return _equal_points_only(inputs)


def _equal_points_only(inputs: dict[str, Any]) -> str | None:
    return "it has no per-level point counts" if "num_points" in inputs else None
