"""`python -m dino export`."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from dino.commands.parsing import ModelOptions, parse


@dataclass(frozen=True, kw_only=True)
class ExportOptions(ModelOptions):
    """Write a model to a file that runs in another engine, and compare the two.

    The file takes any batch, height and width. Its inputs are images [B, 3, H, W], normalised, and mask [B, H, W], true
    on the padding; its outputs are logits [B, Q, C] and boxes [B, Q, 4], cxcywh in 0..1 of the image without padding.
    Metadata say how to preprocess, and name the classes.

    Before the file gets its name, it detects objects in two photographs, at two sizes and with one padded, and so does
    the model. The largest differences are printed; above 0.001 (0.03 with --half) of a score, or of a box in fractions
    of the image, the file is kept as NAME.failed and the command fails.

    evaluate, predict and benchmark run the file: --checkpoint model.onnx.
    """

    output: Annotated[Path, arg(metavar="FILE")]
    """File to write: .onnx, .xml (OpenVINO) or .pt2 (PyTorch)."""
    format: Annotated[Literal["auto", "onnx", "openvino", "torch", "aoti"], arg(help_behavior_hint="")] = "auto"
    """By default by the file's name; .pt2 is torch (torch.export), or aoti: compiled for this machine, in minutes."""
    attention: Annotated[Literal["auto", "gather", "grid", "plugin", "op"], arg(help_behavior_hint="")] = "auto"
    """Deformable attention in the graph: gather or grid (basic operations; TensorRT runs GridSample wrongly), plugin
    (TensorRT's), op (that of dino_kernels). By default gather, and op in .pt2 files."""
    size: Annotated[str | None, arg(metavar="HxW", help_behavior_hint="")] = None
    """Fix height and width, for example 800x1344; images are padded to it."""
    opset: Annotated[int, arg(metavar="N")] = 18
    """Opset of ONNX."""
    half: bool = False
    """Weights and activations in float16; boxes, inputs and outputs stay float32."""
    detections: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Return the N best detections of each image: scores, labels, and boxes xyxy in pixels of the original images,
    whose sizes [B, 2] (height, width) are a third input."""
    photographs: Annotated[tuple[Path, ...], arg(metavar="FILE FILE", help_behavior_hint="")] = ()
    """Two image files for the comparison; by default those that scikit-learn ships."""


def export_command(argv: Sequence[str]) -> None:
    """Export, and print the comparison."""
    options = parse(ExportOptions, "export", argv)
    size = _size(options.size)
    from dino.export.export import export_model, format_of
    from dino.export.write import require_packages

    format = format_of(options.output, None if options.format == "auto" else options.format)
    require_packages(format)
    detector = options.detector("cpu")
    exported = export_model(
        detector.own_model("export"),
        options.output,
        detector.categories,
        detector.transform,
        format=format,
        attention=None if options.attention == "auto" else options.attention,
        size=size,
        opset=options.opset,
        half=options.half,
        detections=options.detections,
        photos=options.photographs,
        log=lambda line: print(f"{line} ...", file=sys.stderr),
    )
    print(exported)


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    if not re.fullmatch(r"\d+x\d+", text):
        raise ValueError(f"size must be HEIGHTxWIDTH, for example 800x1344, got {text!r}.")
    height, width = map(int, text.split("x"))
    return height, width
