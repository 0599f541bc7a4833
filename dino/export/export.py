"""Export a model to a file, and compare the file with the model before it gets its name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from dino.data import Categories, EvalTransform
from dino.export.attention import FORMS, Form, form_of
from dino.export.check import BOUND, HALF_BOUND, HEADINGS, Comparison, batches, compare, photographs
from dino.export.description import Description, ExportError, file_size, fixed_transform
from dino.export.graph import SELECTED, least_side, prepared, trace
from dino.export.onnx_file import LEAST_OPSET
from dino.export.runtime import SUFFIXES, Run, load_exported, onnx_session, openvino_run
from dino.export.write import FORMATS, require_packages, write
from dino.model.dino import DINO


class ExportArguments(TypedDict, total=False):
    """Options of `export_model`."""

    format: str | None
    attention: str | None
    size: tuple[int, int] | None
    opset: int
    half: bool
    detections: int | None
    photos: Sequence[Path]
    log: Callable[[str], None]


@dataclass(frozen=True)
class Exported:
    """An exported file that passed its check."""

    path: Path
    format: str
    description: Description
    content: str
    """What is in the file, in words."""
    engine: str
    """What ran it for the check."""
    comparisons: tuple[Comparison, ...]
    bound: float

    def __str__(self) -> str:
        rows = [HEADINGS, *(comparison.row() for comparison in self.comparisons)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
        files = [self.path, self.path.with_suffix(".bin")] if self.format == "openvino" else [self.path]
        size = sum(path.stat().st_size for path in files)
        return "\n".join(
            [
                f"{self.path}: {self.format}, attention as {self.description.attention}, {self.content}, "
                f"{file_size(size)}",
                f"detections of photographs in {self.engine} and in PyTorch (bound {self.bound:g}):",
                *lines,
            ]
        )


def export_model(
    model: DINO,
    path: str | Path,
    categories: Categories,
    transform: EvalTransform,
    *,
    format: str | None = None,
    attention: str | None = None,
    size: tuple[int, int] | None = None,
    opset: int = LEAST_OPSET,
    half: bool = False,
    detections: int | None = None,
    photos: Sequence[Path] = (),
    log: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Write a model to a file that runs without this package, or with its kernels alone, and compare the two.

    Args:
        model: is not changed.
        path: the file. It gets this name after the check; the file of a failed check is `NAME.failed.SUFFIX`.
        categories, transform: stored in the file.
        format: "onnx", "openvino", "torch" (torch.export) or "aoti" (AOTInductor); by default by the file's name.
        attention: a form of `dino.export.attention.FORMS`; by default the format's.
        size: fixed height and width; by default any size.
        opset: of ONNX.
        half: weights and activations in float16; positions, boxes, inputs and outputs stay float32.
        detections: number of detections of an image in the outputs, instead of logits and boxes of all queries.
        photos: two image files for the check; by default the photographs that scikit-learn ships.
        log: is called with a line before each part that takes time.

    Raises:
        ExportError: the model cannot be exported in this way, or the file's detections differ by more than the bound.
        ValueError: an argument is unknown or out of range.
        ImportError: a package of the format is not installed.
    """
    path = Path(path)
    format = format_of(path, format)
    name, form = form_of(attention, format)
    require_packages(format)
    if opset < LEAST_OPSET:
        # PyTorch's exporter writes this one, and converts it to later ones alone.
        raise ExportError(f"opset must be at least {LEAST_OPSET}, got {opset}.")
    least = least_side(model)
    pairs = model.config.num_queries * model.config.num_classes
    if size is not None and (len(size) != 2 or min(size) < least):
        raise ExportError(f"size must be a height and a width of at least {least} pixels, got {size}.")
    if detections is not None and not 1 <= detections <= pairs:
        raise ExportError(
            f"detections must be in 1..{pairs:,}, the model's pairs of query and class, got {detections}."
        )
    description = Description(
        model=model.config,
        categories=categories,
        transform=fixed_transform(transform, size),
        attention=name,
        half=half,
        detections=detections,
        least_side=least,
    )
    pictures = photographs(photos)
    log("tracing the model")
    program = trace(model, form, description, with_selected=True)
    log("compiling: about 3 minutes on two cores, more on a busy machine" if format == "aoti" else f"writing {format}")
    path.parent.mkdir(parents=True, exist_ok=True)
    candidate = path.with_name(f"{path.stem}.failed{path.suffix}")
    content = write(candidate, format, program, form, description, opset)
    log("comparing the file with the model")
    run, engine = engine_of(candidate, format, form, description)
    reference = prepared(model, FORMS["op"], half=False)
    comparisons = tuple(compare(reference, run, description, batch) for batch in batches(pictures, description))
    bound = HALF_BOUND if half else BOUND
    exported = Exported(path, format, description, content, engine, comparisons, bound)
    largest = max(comparison.within for comparison in comparisons)
    if largest > bound:
        raise ExportError(
            f"{candidate}: its detections differ from the model's by {largest:.1e}, and the bound is {bound:g}. Do not "
            f"use the file; try another --attention or --format.\n{dataclasses.replace(exported, path=candidate)}"
        )
    _rename(candidate, path)
    return exported


def format_of(path: Path, format: str | None) -> str:
    """Return the format of a file, by its name if none is requested.

    Raises:
        ExportError: the format is unknown, or the name has another suffix.
    """
    if format is None:
        if path.suffix not in SUFFIXES:
            raise ExportError(f"output must end with {', '.join(SUFFIXES)}, got {path}. Or pass --format.")
        return SUFFIXES[path.suffix]
    if format not in FORMATS:
        raise ExportError(f"format must be one of {', '.join(FORMATS)}, got {format!r}.")
    if path.suffix != FORMATS[format]:
        raise ExportError(f"a file of format {format} must end with {FORMATS[format]}, got {path}.")
    return format


def engine_of(path: Path, format: str, form: Form, description: Description) -> tuple[Run, str]:
    """Return a function that runs a file, with the selected tokens as last output, and the engine's name."""
    selected = description.model.query_selection != "static"
    if format == "onnx":
        import onnx
        import onnxruntime

        model = onnx.load(path)
        if selected:
            model.graph.output.append(onnx.helper.make_tensor_value_info(SELECTED, onnx.TensorProto.INT64, None))
        runnable = form.runnable(model, description.model)
        session = onnx_session(runnable.SerializeToString(), description.attention)
        note = "" if runnable is model else ", the plugin replaced by its definition"
        return lambda inputs: session.run(None, inputs), f"ONNX Runtime {onnxruntime.__version__}{note}"
    if format == "openvino":
        import openvino  # pyright: ignore[reportMissingImports]

        model = openvino.Core().read_model(path)
        if selected:
            model.add_outputs(SELECTED)
        return openvino_run(model), f"OpenVINO {openvino.__version__}"
    loaded = load_exported(path)
    return loaded.run, loaded.engine


def _rename(candidate: Path, path: Path) -> None:
    if path.suffix == ".xml":
        candidate.with_suffix(".bin").replace(path.with_suffix(".bin"))
    candidate.replace(path)
