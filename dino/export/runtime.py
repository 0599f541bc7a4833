"""Run an exported file as a model: the same call, the same outputs."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dino.export.attention import FORMS
from dino.export.description import PREFIX, Description, ExportError
from dino.export.graph import input_names
from dino.model.boxes import xyxy_to_cxcywh
from dino.model.outputs import DetectionOutput

Arrays = dict[str, np.ndarray]
Run = Callable[[Arrays], list[np.ndarray]]
"""From inputs by name to the outputs in order."""
SUFFIXES = {".onnx": "onnx", ".xml": "openvino", ".pt2": "torch"}
"""Formats by the end of the file's name; a .pt2 file is one of "torch" or "aoti"."""
DESCRIPTION_FILE = "dino.json"


class ExportedModel(nn.Module):
    """An exported file, called as a `DINO`.

    Args:
        run: runs the file.
        description: the file's metadata.
        engine: what runs it, in words.
        device: where inputs and outputs are.
    """

    def __init__(self, run: Run, description: Description, engine: str, device: torch.device) -> None:
        super().__init__()
        self.run, self.description, self.engine, self.device = run, description, engine, device
        self.config = description.model
        self.most_detections = description.detections
        """Detections of an image in the file's outputs; None: as many as there are pairs of query and class."""

    @torch.no_grad()
    def forward(
        self,
        images: Tensor,  # [B, 3, H, W] normalised, zero-padded at the bottom and the right
        mask: Tensor,  # [B, H, W] bool, True = padding
    ) -> DetectionOutput:
        """Return the last layer's predictions.

        Of a file with detections in its outputs, each detection is a query with a score for one class.

        Raises:
            ExportError: images larger than the file's fixed size.
        """
        images, mask = self._padded(images, mask)
        inputs = {"images": images.cpu().numpy(), "mask": mask.cpu().numpy()}
        if self.most_detections is not None:
            inputs["sizes"] = np.ones((len(images), 2), dtype=np.int64)
        # Copies: engines reuse the memory of their outputs.
        outputs = [torch.from_numpy(np.array(output)).to(self.device) for output in self.run(inputs)]
        if self.most_detections is None:
            return DetectionOutput(outputs[0][None].float(), outputs[1][None].float())
        scores, labels, boxes = outputs[:3]
        logits = torch.full((*scores.shape, self.config.num_classes), -100.0, device=self.device)
        logits.scatter_(2, labels[..., None].long(), scores.float().logit(1e-7)[..., None])
        return DetectionOutput(logits[None], xyxy_to_cxcywh(boxes.float())[None])

    def _padded(self, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Pad images to the file's fixed size, or to its least one."""
        height, width = images.shape[-2:]
        size, least = self.description.size, self.description.least_side
        if size is not None and (height > size[0] or width > size[1]):
            raise ExportError(
                f"images must be at most {size[0]}x{size[1]}, the fixed size of the file, got {height}x{width}. Use "
                "the detector's transform, or export without --size."
            )
        below, right = (size[0] - height, size[1] - width) if size else (max(0, least - height), max(0, least - width))
        if below == right == 0:
            return images, mask
        edges = (0, right, 0, below)
        return nn.functional.pad(images, edges), nn.functional.pad(mask, edges, value=True)

    def extra_repr(self) -> str:
        return self.engine


def is_exported(path: str | Path) -> bool:
    """Return whether a path has the name of an exported file."""
    return isinstance(path, str | os.PathLike) and Path(path).suffix in SUFFIXES


def load_exported(path: str | Path, *, device: torch.device | str | None = None) -> ExportedModel:
    """Load a file of `python -m dino export`.

    Args:
        path: an .onnx file, the .xml file of OpenVINO, or a .pt2 file.
        device: "cpu", or a GPU that the engine supports; None is the CPU. OpenVINO chooses by itself.

    Raises:
        FileNotFoundError: the file does not exist.
        ExportError: it is not an export of this package, or not of this device, or damaged.
        ImportError: the engine is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(2, "no such file", str(path))
    if path.suffix not in SUFFIXES:
        raise ExportError(f"{path}: an exported file ends with {', '.join(SUFFIXES)}.")
    where = torch.device(device or "cpu")
    if path.suffix == ".onnx":
        return _from_onnx(path, where)
    if path.suffix == ".xml":
        return _from_openvino(path, where)
    return _from_pt2(path, where)


def onnx_session(model: bytes | str, attention: str, *, device: str = "cpu") -> Any:
    """Return a session of ONNX Runtime on a file or its content, with as many threads as PyTorch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    FORMS[attention].prepare_session(options)
    provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise ImportError(f"this ONNX Runtime has no {provider}. Install onnxruntime-gpu, or use the device cpu.")
    return onnxruntime.InferenceSession(model, options, providers=[provider])


def missing_engine(name: str, package: str) -> ImportError:
    """Return the error for an engine that is not installed."""
    return ImportError(f"{name} is not installed. Install it: pip install {package}")


def _from_onnx(path: Path, device: torch.device) -> ExportedModel:
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_engine("ONNX Runtime", '"dino-kernels[export]"') from error
    from onnxruntime.capi import onnxruntime_pybind11_state as states  # pyright: ignore[reportAttributeAccessIssue]

    reasons = (states.InvalidProtobuf, states.InvalidGraph, states.Fail, states.NotImplemented, states.InvalidArgument)
    try:
        # Of a file with a node that this engine lacks, the metadata say what runs it.
        description = _onnx_description(path)
        form = FORMS.get(description.attention)
        if form is not None and form.runs_in:
            raise ExportError(
                f"{path}: has its deformable attention as {description.attention!r}, which runs in {form.runs_in} "
                "alone. Export with --attention gather."
            )
        session = onnx_session(str(path), description.attention, device=device.type)
    except reasons as error:
        raise ExportError(f"{path}: ONNX Runtime cannot load it: {error}") from error
    engine = f"ONNX Runtime {onnxruntime.__version__}, {session.get_providers()[0]}"
    return ExportedModel(lambda inputs: session.run(None, inputs), description, engine, torch.device("cpu"))


def _onnx_description(path: Path) -> Description:
    """Read the metadata of an ONNX file without loading its graph into an engine."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise ExportError(f"{path}: not an ONNX file, or damaged.") from error
    return Description.from_strings({entry.key: entry.value for entry in model.metadata_props}, path)


def _from_openvino(path: Path, device: torch.device) -> ExportedModel:
    try:
        import openvino  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise missing_engine("OpenVINO", '"dino-kernels[openvino]"') from error
    core = openvino.Core()
    try:
        model = core.read_model(path)
        info = model.get_rt_info()["dino"] if model.has_rt_info(["dino"]) else {}
        strings = {f"{PREFIX}{name}": str(value.value) for name, value in getattr(info, "value", info).items()}
        description = Description.from_strings(strings, path)
        run = openvino_run(model)
    except RuntimeError as error:
        raise ExportError(f"{path}: OpenVINO cannot load it: {error}") from error
    return ExportedModel(run, description, f"OpenVINO {openvino.__version__}", torch.device("cpu"))


def openvino_run(model: Any, **others: Any) -> Run:
    """Compile a model of OpenVINO, or a file, for the CPU, in float32, with as many threads as PyTorch.

    Args:
        others: further options of the engine.
    """
    import openvino  # pyright: ignore[reportMissingImports]

    options = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32", **others}
    compiled = openvino.Core().compile_model(model, "CPU", options)

    def run(inputs: Arrays) -> list[np.ndarray]:
        results = compiled(inputs)
        return [results[output] for output in compiled.outputs]

    return run


def _from_pt2(path: Path, device: torch.device) -> ExportedModel:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            stored = next((name for name in names if name.endswith(f"extra/{DESCRIPTION_FILE}")), None)
            text = None if stored is None else archive.read(stored).decode()
            compiled = any(name.endswith(".so") for name in names)
    except (zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise ExportError(f"{path}: not a .pt2 file, or damaged.") from error
    description = Description.from_json(text, path)
    if compiled:
        from torch._inductor import aoti_load_package

        call: Callable[..., Any] = aoti_load_package(str(path))
    else:
        program = torch.export.load(path)
        if device.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, device)
        call = program.module()
    names_of = input_names(description)

    def run(inputs: Arrays) -> list[np.ndarray]:
        tensors = [torch.from_numpy(inputs[name]).to(device) for name in names_of]
        return [output.cpu().numpy() for output in call(*tensors)]

    engine = f"PyTorch {torch.__version__}, {'compiled by AOTInductor' if compiled else 'torch.export'}"
    return ExportedModel(run, description, engine, torch.device("cpu"))
