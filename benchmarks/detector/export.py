"""Export presets and variants of random weights, and record how far each file's detections differ from its model's.

    python -m benchmarks.detector.export                 all of EXPORTS that are not recorded yet: minutes each, 4 GiB
    python -m benchmarks.detector.export --only tiny     those whose name holds a text
    python -m benchmarks.detector.export --publish       into benchmarks/results/MACHINE/export.json

The comparison is that of `python -m dino export`: two photographs, two sizes, one image padded. An export that is
refused is recorded with the reason.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import machine
from benchmarks.measure.results import LATEST, RESULTS, write_json
from benchmarks.measure.tables import as_text
from dino.checkpoint.find import default_categories
from dino.data import EvalTransform
from dino.export.description import ExportError
from dino.export.export import export_model
from dino.export.write import FORMATS
from dino.model.config import model_config
from dino.model.dino import DINO

FILE_NAME = "export.json"
SIDES = (480, 800)
# Name: preset, fields.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "dino_tiny": ("dino_tiny", {}),
    "dino_4scale_r50": ("dino_4scale_r50", {}),
    "dino_5scale_r50": ("dino_5scale_r50", {}),
    "dino_4scale_r18": ("dino_4scale_r18", {}),
    "dino_4scale_r101": ("dino_4scale_r101", {}),
    "dino_4scale_swin_t": ("dino_4scale_swin_t", {}),
    "dino_4scale_swin_l": ("dino_4scale_swin_l", {}),
    "dino_5scale_swin_l": ("dino_5scale_swin_l", {}),
    "ConvNeXt-T, 4 scales": ("dino_4scale_r50", {"backbone": "convnext_t"}),
    "dino_tiny, pure": ("dino_tiny", {"query_selection": "pure"}),
    "dino_tiny, static": ("dino_tiny", {"query_selection": "static"}),
    "dino_tiny, once": ("dino_tiny", {"look_forward": "once", "denoising": "off"}),
}
# Format, attention, other options.
KINDS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("onnx", "gather", {}),
    ("onnx", "grid", {}),
    ("onnx", "plugin", {}),
    ("onnx", "gather", {"half": True}),
    ("openvino", "gather", {}),
    ("torch", "op", {}),
    ("aoti", "op", {}),
)
# The small model in every kind, the others as ONNX files.
EXPORTS = [(model, kind) for model in MODELS for kind in range(len(KINDS)) if kind == 0 or model == "dino_tiny"]


def export_one(model: str, kind: int) -> dict[str, Any]:
    """Return what a file holds and its comparisons, or why there is none."""
    preset, fields = MODELS[model]
    format, attention, others = KINDS[kind]
    torch.manual_seed(0)
    built = DINO(model_config(preset, pretrained_backbone=False, **fields)).eval()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"model{FORMATS[format]}")
        categories = default_categories(built.config.num_classes)
        try:
            exported = export_model(
                built, path, categories, EvalTransform(*SIDES), format=format, attention=attention, **others
            )
        except ExportError as error:
            return {"refused": str(error).partition("\n")[0].replace(f"{folder}/", "")}
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
    return {
        "content": exported.content,
        "engine": exported.engine,
        "megabytes": round(size / 1e6, 1),
        "seconds": round(time.perf_counter() - start),
        "comparisons": [asdict(comparison) for comparison in exported.comparisons],
    }


def table(document: dict[str, Any]) -> list[list[str]]:
    """Make a row per file with the larger difference of its comparisons."""
    header = [
        "model",
        "format",
        "attention",
        "size",
        "file MB",
        "scores differ by",
        "boxes by",
        "raw logits by",
        "runs in",
    ]
    rows = [header]
    for run in document["runs"]:
        format = run["format"] + (", half" if run["options"].get("half") else "")
        about = [run["model"], format, run["attention"], run.get("size", "free")]
        if "refused" in run:
            rows.append([*about, *["-"] * 4, run["refused"]])
            continue
        worst = {
            key: max((c[key] for c in run["comparisons"] if c[key] is not None), default=None)
            for key in ("score", "box", "raw")
        }
        differences = ["-" if worst[key] is None else f"{worst[key]:.0e}" for key in worst]
        rows.append([*about, f"{run['megabytes']:.0f}", *differences, re.sub(r"(\d)-\S+", r"\1", run["engine"])])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--publish", action="store_true", help="write the result under benchmarks/results/MACHINE")
    parser.add_argument("--only", default="", help="part of the name of the models, or of the format")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # in the child: the model and kind to export
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(export_one(options.one[0], int(options.one[1]))))
        return
    facts = machine.describe("cpu")
    path = RESULTS / (machine.slug(facts) if options.publish else LATEST) / FILE_NAME
    document = json.loads(path.read_text()) if path.exists() else {"sides": SIDES, "runs": []}
    document["machine"] = facts
    for model, kind in EXPORTS:
        format, attention, others = KINDS[kind]
        about = {"model": model, "format": format, "attention": attention, "options": others}
        recorded = any({key: run[key] for key in about} == about for run in document["runs"])
        if recorded or options.only not in f"{model} {format} {attention}":
            continue
        print(f"{model}, {format}, {attention} {others or ''} ...", file=sys.stderr)
        command = [sys.executable, "-m", "benchmarks.detector.export", "--one", model, str(kind)]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        document["runs"].append({**about, **json.loads(output.splitlines()[-1])})
        write_json(path, document)
    print(f"{as_text(table(document))}\n{path}")


if __name__ == "__main__":
    main()
