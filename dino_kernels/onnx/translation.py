"""From the PyTorch ops to nodes of ONNX, for `torch.onnx.export(dynamo=True)`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

DOMAIN, VERSION = "dino_kernels", 1
_TYPES = [f"tensor({name})" for name in ("float", "double", "float16", "bfloat16")]


def translations() -> dict[Any, Callable[..., Any]]:
    """Return the `custom_translation_table` for `torch.onnx.export(dynamo=True)`: a node in place of each op.

    Sizes that are dynamic in the exported program stay so.

    Raises:
        ImportError: onnx or onnxscript is missing.
    """
    from onnxscript import values

    opset = values.Opset(DOMAIN, VERSION)
    fused = values.Op(opset, "FusedMSDeformAttn", _schema("FusedMSDeformAttn", _FUSED))
    classic = values.Op(opset, "MSDeformAttn", _schema("MSDeformAttn", _CLASSIC))

    def translate_fused(
        value: Any,
        spatial_shapes: Any,
        level_sizes: Sequence[Any],
        level_start_index: Any,
        num_points: Sequence[int],
        reference_points: Any,
        sampling_offsets: Any,
        attention_logits: Any,
        value_mask: Any,
        backend: str,
    ) -> Any:
        shapes, starts = _levels(spatial_shapes, level_sizes, level_start_index)
        samples = reference_points, sampling_offsets, attention_logits, value_mask
        return fused(value, shapes, *samples, starts, num_points=list(num_points))

    def translate_classic(
        value: Any,
        spatial_shapes: Any,
        level_sizes: Sequence[Any],
        level_start_index: Any,
        num_points: Sequence[int],
        sampling_locations: Any,
        attention_weights: Any,
        backend: str,
    ) -> Any:
        shapes, starts = _levels(spatial_shapes, level_sizes, level_start_index)
        return classic(value, shapes, sampling_locations, attention_weights, starts, num_points=list(num_points))

    ops = torch.ops.dino_kernels
    return {ops.fused_ms_deform_attn.default: translate_fused, ops.ms_deform_attn.default: translate_classic}


# Inputs: name, type, shape. T is value's type, C float64 for float64 and else float32, and S either of them.
_FUSED = (
    ("value", "T", "[B, S, M, D]"),
    ("spatial_shapes", "tensor(int64)", "[L, 2] (H, W)"),
    ("reference_points", "C", "[B, Q, L, 2] or [B, Q, L, 4]"),
    ("sampling_offsets", "S", "[B, Q, M, K, 2]"),
    ("attention_logits", "S", "[B, Q, M, K]"),
    ("value_mask", "tensor(bool)", "[B, S] True = padding; optional"),
    ("level_start_index", "tensor(int64)", "[L]; optional"),
)
_CLASSIC = (
    ("value", "T", "[B, S, M, D]"),
    ("spatial_shapes", "tensor(int64)", "[L, 2] (H, W)"),
    ("sampling_locations", "C", "[B, Q, M, K, 2]"),
    ("attention_weights", "S", "[B, Q, M, K]"),
    ("level_start_index", "tensor(int64)", "[L]; optional"),
)


def _schema(name: str, inputs: Sequence[tuple[str, str, str]]) -> Any:
    from onnx import defs

    parameter = defs.OpSchema.FormalParameter
    optional = defs.OpSchema.FormalParameterOption.Optional
    required = defs.OpSchema.FormalParameterOption.Single
    return defs.OpSchema(
        name,
        DOMAIN,
        VERSION,
        doc=f"See {DOMAIN} {VERSION}: the op of the same name in PyTorch.",
        inputs=[
            parameter(each, kind, description=shape, param_option=optional if "optional" in shape else required)
            for each, kind, shape in inputs
        ],
        outputs=[parameter("output", "T", description="[B, Q, M * D]")],
        type_constraints=[("T", _TYPES, ""), ("C", _TYPES[:2], ""), ("S", _TYPES, "")],
        attributes=[defs.OpSchema.Attribute("num_points", defs.OpSchema.AttrType.INTS, "points of each level")],
    )


def _levels(spatial_shapes: Any, level_sizes: Sequence[Any], level_start_index: Any) -> tuple[Any, Any]:
    """Return the inputs spatial_shapes [L, 2] and level_start_index [L] or None, int64, from the arguments of an op.

    Args:
        level_sizes: [H0, W0, H1, W1, ...] where spatial_shapes is None; numbers, or scalars of the graph.
    """
    from onnx import TensorProto, helper
    from onnxscript import opset18

    op: Any = opset18
    starts = None if level_start_index is None else op.Cast(level_start_index, to=TensorProto.INT64)
    if spatial_shapes is not None:
        return op.Cast(spatial_shapes, to=TensorProto.INT64), starts
    if all(isinstance(size, int) for size in level_sizes):
        return op.Constant(
            value=helper.make_tensor("", TensorProto.INT64, (len(level_sizes) // 2, 2), level_sizes)
        ), starts
    scalars = [op.Reshape(op.Cast(size, to=TensorProto.INT64), [1]) for size in level_sizes]
    return op.Reshape(op.Concat(*scalars, axis=0), [-1, 2]), starts
