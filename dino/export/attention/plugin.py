"""The form "plugin": TensorRT's plugin for the classic op; locations and softmax are basic operations before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dino.export.attention import gather
from dino.export.quiet import quiet
from dino.model.config import ModelConfig
from dino_kernels import ms_deform_attn

DOMAIN = "trt.plugins"
"""The domain in which ONNX Runtime's TensorRT provider finds plugins; TensorRT's own parser takes the name alone."""
NAME = "MultiscaleDeformableAttnPlugin_TRT"


def attend(
    value: Tensor,  # [B, S, M, D], zeros for padding
    shapes: Sequence[tuple[int, int]],  # L (H, W)
    locations: Tensor,  # [B, Q, M, K, 2] float32
    weights: Tensor,  # [B, Q, M, K] float32
    num_points: Sequence[int],  # L
) -> Tensor:
    """Return `ms_deform_attn` of these samples, [B, Q, M * D] float32."""
    table = torch.tensor([[height, width] for height, width in shapes], dtype=torch.int32, device=value.device)
    rows = table[:, 0] * table[:, 1]
    first = rows.cumsum(0, dtype=torch.int32) - rows
    levels = (len(shapes), -1)
    # Contiguous, and float32 throughout: the plugin takes one type for all, and 16-bit locations are too coarse.
    return _plugin(
        value.float().contiguous(), table, first, locations.unflatten(3, levels), weights.unflatten(3, levels)
    ).flatten(2)


@torch.library.custom_op("dino_export::ms_deform_attn_plugin", mutates_args=())
def _plugin(
    value: Tensor,  # [B, S, M, D]
    spatial_shapes: Tensor,  # [L, 2] (H, W) int32
    level_start_index: Tensor,  # [L] int32
    sampling_locations: Tensor,  # [B, Q, M, L, P, 2]
    attention_weights: Tensor,  # [B, Q, M, L, P]
) -> Tensor:
    """Return what the plugin returns: `ms_deform_attn` as [B, Q, M, D]."""
    output = ms_deform_attn(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    return output.unflatten(-1, value.shape[2:])


@_plugin.register_fake
def _(value: Tensor, spatial_shapes: Tensor, level_start_index: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return value.new_empty((*locations.shape[:2], *value.shape[2:]))


def translations() -> dict[Any, Any]:
    """Return the node for the torch op."""
    import onnx
    from onnxscript import values

    schema = onnx.defs.OpSchema(
        NAME,
        DOMAIN,
        1,
        type_constraints=[("T", ["tensor(float)"], "values"), ("I", ["tensor(int32)"], "sizes")],
        inputs=[
            onnx.defs.OpSchema.FormalParameter(name, kind)
            for name, kind in (
                ("value", "T"),
                ("spatial_shapes", "I"),
                ("level_start_index", "I"),
                ("sampling_locations", "T"),
                ("attention_weights", "T"),
            )
        ],
        outputs=[onnx.defs.OpSchema.FormalParameter("output", "T")],
        attributes=[
            onnx.defs.OpSchema.Attribute("plugin_version", onnx.defs.OpSchema.AttrType.STRING, ""),
            onnx.defs.OpSchema.Attribute("plugin_namespace", onnx.defs.OpSchema.AttrType.STRING, ""),
        ],
    )
    op = values.Op(values.Opset(DOMAIN, 1), NAME, schema)

    def node(value, spatial_shapes, level_start_index, sampling_locations, attention_weights):
        inputs = value, spatial_shapes, level_start_index, sampling_locations, attention_weights
        return op(*inputs, plugin_version="1", plugin_namespace="")

    return {torch.ops.dino_export.ms_deform_attn_plugin.default: node}


class _Definition(nn.Module):
    """The plugin in basic operations."""

    def forward(self, value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        output = gather.sample(value, shapes.flip(1).float(), starts.long(), locations, weights.flatten(3))
        return output.unflatten(-1, value.shape[2:])


def runnable(model: Any, config: ModelConfig) -> Any:
    """Return the model with a definition of the plugin in basic operations, which ONNX Runtime runs in its place."""
    import onnx

    heads, channels = config.num_heads, config.hidden_dim // config.num_heads
    levels, points = config.num_levels, config.num_points
    batch, queries, rows = (torch.export.Dim(name, min=2) for name in ("batch", "queries", "rows"))
    with quiet():
        program = torch.onnx.export(
            _Definition().eval(),
            (
                torch.zeros(2, 5, heads, channels),
                torch.ones(levels, 2, dtype=torch.int32),
                torch.zeros(levels, dtype=torch.int32),
                torch.zeros(2, 3, heads, levels, points, 2),
                torch.zeros(2, 3, heads, levels, points),
            ),
            dynamo=True,
            verbose=False,
            opset_version=next(entry.version for entry in model.opset_import if entry.domain == ""),
            dynamic_shapes=({0: batch, 1: rows}, {}, {}, {0: batch, 1: queries}, {0: batch, 1: queries}),
        )
    assert program is not None
    body = program.model_proto
    constants = [
        onnx.helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in body.graph.initializer
    ]
    function = onnx.helper.make_function(
        DOMAIN,
        NAME,
        [value.name for value in body.graph.input],
        [value.name for value in body.graph.output],
        [*constants, *body.graph.node],
        body.opset_import,
        ["plugin_version", "plugin_namespace"],
    )
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.functions.extend([function])
    return copy
