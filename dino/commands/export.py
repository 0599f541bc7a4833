"""`python -m dino export`."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from dino.commands.parsing import ModelOptions, parse
from dino.common.text import counted

if TYPE_CHECKING:
    from dino.evaluation.coco_metrics import CocoMetrics
    from dino.inference.detector import Detector


@dataclass(frozen=True, kw_only=True)
class ExportOptions(ModelOptions):
    """Write a model to a file that runs in another engine, and compare the two.

    The file takes any batch, height and width. Its inputs are images [B, 3, H, W], normalised, and mask [B, H, W], true
    on the padding; its outputs are logits [B, Q, C] and boxes [B, Q, 4], cxcywh in 0..1 of the image without padding.
    Metadata say how to preprocess, and name the classes.

    Before the file gets its name, it detects objects in two photographs, at two sizes and with one padded, and so does
    the model. The largest differences are printed; above 0.001 (0.03 with --half) of a score, or of a box in fractions
    of the image, the file is kept as NAME.failed and the command fails. With --data, the average precision of the
    model and of the file follow.

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
    data: Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="")] = None
    """A data set on which to evaluate the model and then the file, one image at a time."""
    split: Literal["train", "valid", "test"] = "valid"
    """Split of --data."""


def export_command(argv: Sequence[str]) -> None:
    """Export, and print the comparison."""
    options = parse(ExportOptions, "export", argv)
    size = _size(options.size)
    from dino.export.attention import form_of
    from dino.export.export import export_model, format_of
    from dino.export.write import require_packages
    from dino.inference.detector import Detector

    format = format_of(options.output, None if options.format == "auto" else options.format)
    attention = None if options.attention == "auto" else options.attention
    require_packages(format)
    if options.data is not None and (engine := form_of(attention, format)[1].runs_in):
        raise ValueError(f"--data cannot evaluate a file that runs in {engine} alone. Leave it out.")
    detector = options.detector("cpu")
    model = detector.own_model("export")
    before = None if options.data is None else _evaluate(detector, options, "model")
    exported = export_model(
        model,
        options.output,
        detector.categories,
        detector.transform,
        format=format,
        attention=attention,
        size=size,
        opset=options.opset,
        half=options.half,
        detections=options.detections,
        photos=options.photographs,
        log=lambda line: print(f"{line} ...", file=sys.stderr),
    )
    print(exported)
    if before is not None:
        after = _evaluate(Detector.from_exported(exported.path), options, "file")
        print(
            f"average precision on {options.data} ({options.split}), {counted(after.num_images, 'image')}, in per cent:"
        )
        print(_precisions(before, after))


def _evaluate(detector: Detector, options: ExportOptions, title: str) -> CocoMetrics:
    """Evaluate a model or a file on the images of the options."""
    from dino.commands.evaluate import held_out_options
    from dino.data import build_eval_dataset, build_loader, find_eval_split
    from dino.evaluation.evaluate import evaluate

    assert options.data is not None
    split = find_eval_split(options.data, options.split, **held_out_options(options.checkpoint))
    dataset = build_eval_dataset(split, detector.categories, transform=detector.transform)
    print(f"evaluating the {title} ...", file=sys.stderr)
    loader = build_loader(dataset, 1, train=False, workers=0)
    return evaluate(detector.run, loader, dataset.index, detector.categories, device=detector.device)


def _precisions(model: CocoMetrics, file: CocoMetrics) -> str:
    """Return AP before and after as a table."""
    names = ("AP", "AP50", "AP75")
    rows = [("", *names)]
    rows += [
        (title, *(f"{100 * getattr(metrics, name):.2f}" for name in names))
        for title, metrics in (("model", model), ("file", file))
    ]
    return "\n".join("  ".join([row[0].ljust(5), *(cell.rjust(6) for cell in row[1:])]) for row in rows)


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    if not re.fullmatch(r"\d+x\d+", text):
        raise ValueError(f"size must be HEIGHTxWIDTH, for example 800x1344, got {text!r}.")
    height, width = map(int, text.split("x"))
    return height, width
