"""Write an exported program as an ONNX file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch.export import ExportedProgram

from dino.export.attention import Form
from dino.export.description import Description, ExportError
from dino.export.graph import BOXES, LABELS, LOGITS, SCORES, SELECTED, input_names, output_names
from dino.export.quiet import quiet

LEAST_OPSET = 18
_MOST_BYTES = 2**31 - 2**20  # protobuf's limit, with room for what is not weights
_AXES = {
    "images": ("batch", "3", "height", "width"),
    "mask": ("batch", "height", "width"),
    "sizes": ("batch", "2"),
    LOGITS: ("batch",),
    SCORES: ("batch",),
    LABELS: ("batch",),
    BOXES: ("batch",),
}
_MACHINE = re.compile(r"(?:^|[\s\"'(])(?:/[\w.+-]+){2,}|\b[A-Za-z]:\\")


def to_onnx(program: ExportedProgram, form: Form, description: Description, opset: int) -> Any:
    """Return the ONNX model of a program, with metadata; the selected tokens are `selected` inside its graph.

    Raises:
        ExportError: the exporter made another opset or fixed a size, or the file would have more than 2 GB.
    """
    import torch

    outputs = output_names(description)
    selected = len(program.graph_signature.user_outputs) > len(outputs)
    with quiet():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            opset_version=opset,
            input_names=input_names(description),
            output_names=[*outputs, *([SELECTED] if selected else [])],
            custom_translation_table=form.translations(),
        )
    assert exported is not None
    weights = sum(value.const_value.nbytes for value in exported.model.graph.initializers.values() if value.const_value)
    if weights > _MOST_BYTES:
        raise ExportError(
            f"the model has {weights / 1e9:.1f} GB of weights, and an ONNX file holds at most 2. Export with --half, "
            "or with --format torch."
        )
    model = exported.model_proto
    found = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    if found["ai.onnx"] != opset:
        raise ExportError(
            f"opset {opset} was requested, but PyTorch's exporter wrote {found['ai.onnx']}. Pass --opset "
            f"{found['ai.onnx']}."
        )
    if selected:
        del model.graph.output[-1]
    _clean(model)
    _name_axes(model, description)
    model.producer_name = "dino"
    model.doc_string = model.graph.doc_string = ""
    add_metadata(model, description.to_strings())
    remains = machine_paths(model)
    if remains:
        raise ExportError(f"the file would hold paths of this machine: {remains[0]!r}. Report this as a bug.")
    return model


def add_metadata(model: Any, strings: Mapping[str, str]) -> None:
    """Replace an ONNX model's metadata."""
    del model.metadata_props[:]
    for name, value in strings.items():
        model.metadata_props.add(key=name, value=value)


def machine_paths(model: Any) -> list[str]:
    """Return texts of an ONNX model that look like paths of the machine which made it."""
    texts = [model.doc_string, model.graph.doc_string, *(entry.value for entry in model.metadata_props)]
    for node in (*model.graph.node, *(node for function in model.functions for node in function.node)):
        texts += [node.doc_string, *(entry.value for entry in node.metadata_props)]
    return [text for text in texts if _MACHINE.search(text)]


def _clean(model: Any) -> None:
    """Remove the source lines that the exporter notes at each node, and other notes."""
    graphs = [model.graph, *model.functions]
    for graph in graphs:
        for item in (graph, *graph.node, *graph.value_info):
            del item.metadata_props[:]
            item.doc_string = ""
    for item in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""


def _name_axes(model: Any, description: Description) -> None:
    """Give the free dimensions of inputs and outputs their names; the others are numbers."""
    for value in (*model.graph.input, *model.graph.output):
        names = _AXES[value.name]
        for k, dimension in enumerate(value.type.tensor_type.shape.dim):
            free = k == 0 or (description.size is None and k < len(names) and names[k] in ("height", "width"))
            if free and dimension.HasField("dim_value"):
                raise ExportError(
                    f"the exporter fixed dimension {k} of {value.name} to {dimension.dim_value}. Report this as a bug."
                )
            if free:
                dimension.dim_param = names[k]
            elif not dimension.HasField("dim_value"):
                raise ExportError(
                    f"dimension {k} of {value.name} is {dimension.dim_param!r}, not a number. Report this as a bug."
                )
