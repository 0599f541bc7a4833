"""Write exported programs in each format.

No file holds a path of the machine that made it, but for those of AOTInductor, which keep the compiler's.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from dino.export.attention import Form
from dino.export.description import PREFIX, Description, ExportError
from dino.export.onnx_file import to_onnx
from dino.export.runtime import DESCRIPTION_FILE, missing_engine

FORMATS = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2", "aoti": ".pt2"}
"""Formats and the ends of their files' names."""
_TRACES = ("stack_trace", "from_node", "nn_module_stack", "source_fn_stack", "torch_fn")


def require_packages(format: str) -> None:
    """Raise ImportError if a package of a format is not installed."""
    try:
        if format in ("onnx", "openvino"):
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
    except ImportError as error:
        raise missing_engine(error.name or "ONNX", '"dino-kernels[export]"') from error
    if format == "openvino":
        try:
            import openvino  # pyright: ignore[reportMissingImports]  # noqa: F401
        except ImportError as error:
            raise missing_engine("OpenVINO", '"dino-kernels[openvino]"') from error


def write(path: Path, format: str, program: ExportedProgram, form: Form, description: Description, opset: int) -> str:
    """Write a file and return what is in it, in words."""
    if format in ("onnx", "openvino"):
        model = to_onnx(program, form, description, opset)
        path.write_bytes(model.SerializeToString()) if format == "onnx" else _write_openvino(path, model, description)
        return f"opset {opset}, {len(model.graph.node):,} nodes"
    strip_traces(program)
    if format == "torch":
        torch.export.save(program, path, extra_files={DESCRIPTION_FILE: description.to_json()})
        return f"{sum(node.op == 'call_function' for node in program.graph.nodes):,} operations"
    from torch._inductor import aoti_compile_and_package

    aoti_compile_and_package(program, package_path=str(path))
    _add_description(path, description)
    return "compiled for this machine's processor"


def strip_traces(program: ExportedProgram) -> None:
    """Remove the source lines noted at each operation of a program."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                for key in _TRACES:
                    node.meta.pop(key, None)


def _write_openvino(path: Path, model: Any, description: Description) -> None:
    import openvino  # pyright: ignore[reportMissingImports]

    try:
        converted = openvino.convert_model(io.BytesIO(model.SerializeToString()))
    except RuntimeError as error:
        raise ExportError(f"OpenVINO cannot convert the graph: {error}") from error
    for name, value in description.to_strings().items():
        converted.set_rt_info(value, ["dino", name.removeprefix(PREFIX)])
    openvino.save_model(converted, path, compress_to_fp16=description.half)


def _add_description(path: Path, description: Description) -> None:
    """Add the metadata to a package of AOTInductor, where PyTorch keeps files of users."""
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
        root = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{root}/data/extra/{DESCRIPTION_FILE}", description.to_json())
