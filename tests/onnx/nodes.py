"""ONNX files with one node of deformable attention, and what ONNX Runtime returns for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch import Tensor

import dino_kernels.onnx

NAMES = {"fused_ms_deform_attn": "FusedMSDeformAttn", "ms_deform_attn": "MSDeformAttn"}
INPUTS = {
    "fused_ms_deform_attn": (
        "value", "spatial_shapes", "reference_points", "sampling_offsets", "attention_logits", "value_mask",
        "level_start_index",
    ),
    "ms_deform_attn": (
        "value", "spatial_shapes", "sampling_locations", "attention_weights", "level_start_index",
    ),
}  # fmt: skip
TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float64: TensorProto.DOUBLE,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.int64: TensorProto.INT64,
    torch.bool: TensorProto.BOOL,
}


def node_inputs(op: str, inputs: dict[str, Any]) -> tuple[dict[str, Tensor | None], list[int]]:
    """Return the node's inputs and its num_points, from the arguments of the public function."""
    given = dict(inputs)
    samples = "attention_logits" if op == "fused_ms_deform_attn" else "attention_weights"
    positions = "sampling_offsets" if op == "fused_ms_deform_attn" else "sampling_locations"
    points = given.pop("num_points", None)
    if points is None:
        points = [given[samples].shape[4]] * given[samples].shape[3]
        given |= {name: given[name].flatten(3, 4) for name in (samples, positions)}
    return {name: given.get(name) for name in INPUTS[op]}, list(points)


def model(op: str, inputs: Mapping[str, Tensor | None], attributes: dict[str, Any]) -> bytes:
    """Return a file with one node, whose sizes are all free. NumPy has no bfloat16, so the graph converts it."""
    through = {name: _outside(tensor) for name, tensor in inputs.items() if tensor is not None}
    nodes, names = [], []
    for name, tensor in inputs.items():
        names.append("" if tensor is None else name)
        if tensor is not None and tensor.dtype != through[name].dtype:
            nodes.append(helper.make_node("Cast", [name], [f"{name}_cast"], to=TYPES[tensor.dtype]))
            names[-1] = f"{name}_cast"
    while not names[-1]:
        names.pop()
    value = inputs["value"]
    assert value is not None
    converts = value.dtype != through["value"].dtype
    result = "result" if converts else "output"
    nodes.append(helper.make_node(NAMES[op], names, [result], domain=dino_kernels.onnx.DOMAIN, **attributes))
    if converts:
        nodes.append(helper.make_node("Cast", ["result"], ["output"], to=TYPES[through["value"].dtype]))
    free = {name: [f"{name}_{d}" for d in range(tensor.dim())] for name, tensor in through.items()}
    graph = helper.make_graph(
        nodes,
        "node",
        [helper.make_tensor_value_info(name, TYPES[x.dtype], free[name]) for name, x in through.items()],
        [helper.make_tensor_value_info("output", TYPES[through["value"].dtype], None)],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(dino_kernels.onnx.DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def session(file: bytes, threads: int = 1, optimized: Path | None = None) -> onnxruntime.InferenceSession:
    """Return a session that knows the ops; `optimized` is where it writes the graph that it runs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if optimized:
        options.optimized_model_filepath = str(optimized)
    dino_kernels.onnx.register(options)
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def run(running: onnxruntime.InferenceSession, inputs: Mapping[str, Tensor | None]) -> Tensor:
    """Return the output of a session."""
    arrays = {name: _outside(tensor).numpy() for name, tensor in inputs.items() if tensor is not None}
    return torch.from_numpy(np.asarray(running.run(None, arrays)[0]))


def run_once(op: str, arguments: dict[str, Any], threads: int = 1) -> Tensor:
    """Return the output for the arguments of the public function, in value's dtype."""
    inputs, points = node_inputs(op, arguments)
    running = session(model(op, inputs, {"num_points": points}), threads)
    return run(running, inputs).to(arguments["value"].dtype)


def _outside(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor
