"""Time exported attention and an exported DINO in ONNX Runtime and OpenVINO beside PyTorch, by turns in one run.

    pip install -e ".[openvino]"
    python -m benchmarks.detector.onnx --prepare      export the files; minutes, no quiet machine needed
    python -m benchmarks.detector.onnx                measure
    python -m benchmarks.detector.onnx --publish      also write benchmarks/results/MACHINE/onnx.json

`attention` is one encoder layer's deformable attention, from value, offsets and logits to the weighted sum; `whole` is
`dino_4scale_r50` with random weights, from pixels to logits and boxes. Everyone has torch's number of threads and
computes in float32. In each lap a contestant is loaded, runs once to warm up, is timed and freed: together they would
take more memory than many machines have. Contestants are compared with PyTorch; a wrong one is an error.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.attention.workloads import pyramid
from benchmarks.detector.test_detector import detector
from benchmarks.measure import machine
from benchmarks.measure.race import Timing, stopwatch_for
from benchmarks.measure.results import LATEST, RESULTS, spread, times, write_json
from benchmarks.measure.tables import as_text, milliseconds
from dino.checkpoint.find import default_categories
from dino.data import EvalTransform
from dino.export.attention import FORMS
from dino.export.description import Description
from dino.export.graph import least_side, trace
from dino.export.onnx_file import to_onnx
from dino.export.runtime import onnx_session, openvino_run
from dino_kernels.testing import Case, sample_inputs

FILE_NAME = "onnx.json"
SIZES = ((480, 640), (800, 1333))
TORCH, OURS = "PyTorch, our kernel", "ONNX Runtime, our op"
# By name: the engine and the form of attention in its file.
CONTESTANTS = {
    TORCH: ("torch", "op"),
    OURS: ("onnxruntime", "op"),
    "ONNX Runtime, gather": ("onnxruntime", "gather"),
    "ONNX Runtime, GridSample": ("onnxruntime", "grid"),
    "OpenVINO, GridSample": ("openvino", "grid"),
}
# Largest difference from PyTorch: of a number of the sum; of one of the 100 best scores in 0..1.
ALLOWED = {"attention": 1e-3, "whole": 1e-3}
TIMED_RUNS = {"attention": 5, "whole": 1}  # of a lap
Run = Callable[[], Sequence[Tensor]]


class Attention(nn.Module):
    """One call of a form, with fixed sizes."""

    def __init__(self, form: str, levels: tuple[tuple[int, int], ...]) -> None:
        super().__init__()
        self.attend, self.levels = FORMS[form].attend, levels

    def forward(self, value: Tensor, references: Tensor, offsets: Tensor, logits: Tensor, mask: Tensor) -> Tensor:
        return self.attend(value, self.levels, None, references, offsets, logits, mask, num_points=[4] * 4)


def attention_inputs(size: tuple[int, int]) -> dict[str, Tensor]:
    """Return the inputs of an encoder layer for an image of a size."""
    levels = pyramid(*size)
    rows = sum(height * width for height, width in levels)
    case = Case("encoder", 1, rows, 8, 32, levels, (4, 4, 4, 4), mask=True, layout="local")
    inputs = sample_inputs("fused_ms_deform_attn", case, torch.float32, requires_grad=False)
    return {
        "value": inputs["value"],
        "references": inputs["reference_points"],
        "offsets": inputs["sampling_offsets"].flatten(3, 4),
        "logits": inputs["attention_logits"].flatten(3, 4),
        "mask": inputs["value_mask"],
    }


def whole_inputs(size: tuple[int, int]) -> dict[str, Tensor]:
    """Return an image of a size without padding."""
    pixels = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    return {"images": pixels, "mask": torch.zeros(1, *size, dtype=torch.bool)}


def export_attention(form: str, size: tuple[int, int]) -> bytes:
    """Return an ONNX file of one call."""
    program = torch.onnx.export(
        Attention(form, pyramid(*size)).eval(),
        tuple(attention_inputs(size).values()),
        dynamo=True,
        verbose=False,
        input_names=list(attention_inputs(size)),
        opset_version=18,
        custom_translation_table=FORMS[form].translations(),
    )
    assert program is not None
    return program.model_proto.SerializeToString()


def export_whole(form: str) -> bytes:
    """Return an ONNX file of the detector, with free sizes."""
    model = detector("cpu")
    names = default_categories(model.config.num_classes)
    description = Description(model.config, names, EvalTransform(), form, least_side=least_side(model))
    return to_onnx(trace(model, FORMS[form], description), FORMS[form], description, 18).SerializeToString()


def text_of(size: tuple[int, int]) -> str:
    """Return (480, 640) as "480x640"."""
    return f"{size[0]}x{size[1]}"


def path_of(folder: Path, job: str, form: str, size: tuple[int, int]) -> Path:
    """Return the path of an exported file; a file of the whole model serves every size."""
    return folder / (f"whole-{form}.onnx" if job == "whole" else f"attention-{form}-{text_of(size)}.onnx")


def prepare(folder: Path) -> None:
    """Export every file that does not exist yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for job in ALLOWED:
        for form in dict.fromkeys(form for _, form in CONTESTANTS.values()):
            for size in SIZES:
                path = path_of(folder, job, form, size)
                if not path.exists():
                    print(f"exporting {path}")
                    path.write_bytes(export_whole(form) if job == "whole" else export_attention(form, size))


def in_torch(job: str, size: tuple[int, int], inputs: dict[str, Tensor]) -> Run:
    model = detector("cpu") if job == "whole" else Attention("op", pyramid(*size))

    def run() -> Sequence[Tensor]:
        with torch.inference_mode():
            output = model(*inputs.values())
        return (output.logits[-1], output.boxes_cxcywh[-1]) if job == "whole" else (output,)

    return run


def in_onnxruntime(path: Path, form: str, inputs: dict[str, Tensor]) -> Run:
    session = onnx_session(str(path), form)
    given = {name: tensor.numpy() for name, tensor in inputs.items()}
    return lambda: [torch.from_numpy(output) for output in session.run(None, given)]


def in_openvino(path: Path, inputs: dict[str, Tensor]) -> Run:
    # Pinned threads would leave other contestants' on one core.
    in_engine = openvino_run(str(path), ENABLE_CPU_PINNING=False)
    given = {name: tensor.numpy() for name, tensor in inputs.items()}
    return lambda: [torch.from_numpy(output) for output in in_engine(given)]


def difference(job: str, outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest difference: of the sum, or of the best scores in order."""
    if job == "attention":
        return (outputs[0] - expected[0]).abs().max().item()
    best = [output[0].sigmoid().flatten().topk(100).values for output in (outputs[0], expected[0])]
    return (best[0] - best[1]).abs().max().item()


def load(name: str, job: str, size: tuple[int, int], folder: Path, inputs: dict[str, Tensor]) -> Run:
    """Return a contestant, ready to run."""
    engine, form = CONTESTANTS[name]
    path = path_of(folder, job, form, size)
    if engine == "torch":
        return in_torch(job, size, inputs)
    return in_openvino(path, inputs) if engine == "openvino" else in_onnxruntime(path, form, inputs)


def measure(job: str, size: tuple[int, int], folder: Path, laps_of_each: int) -> list[dict[str, Any]]:
    """Check and time every contestant of a job at a size.

    Raises:
        AssertionError: a result differs from PyTorch's by more than ALLOWED.
    """
    inputs = whole_inputs(size) if job == "whole" else attention_inputs(size)
    stopwatch, order = stopwatch_for("cpu"), list(CONTESTANTS)  # PyTorch first
    laps: dict[str, list[list[float]]] = {name: [] for name in order}
    expected: Sequence[Tensor] = ()
    differences = dict.fromkeys(order, 0.0)
    for _ in range(laps_of_each):
        for name in order:
            run = load(name, job, size, folder, inputs)
            outputs = run()
            expected = expected or outputs
            differences[name] = max(differences[name], difference(job, outputs, expected))
            laps[name].append([stopwatch(run) for _ in range(TIMED_RUNS[job])])
            del run
        order.reverse()
    wrong = {name: error for name, error in differences.items() if not error <= ALLOWED[job]}
    assert not wrong, f"{job} at {size}: differences above {ALLOWED[job]}: {wrong}"
    timings = {name: Timing(each) for name, each in laps.items()}
    about = {"job": job, "size": text_of(size)}
    return [
        about
        | {"by": name, "difference": differences[name]}
        | times(timings[name])
        | {"speedup_of_our_op": spread(timings[OURS].speedup_over(timings[name]))}
        for name in CONTESTANTS
    ]


def table(document: dict[str, Any]) -> list[list[str]]:
    """Make a row per job and size, with the milliseconds of each contestant."""
    rows = document["rows"]
    lines = [["workload", *(f"{name} ms" for name in CONTESTANTS)]]
    for job, size in dict.fromkeys((row["job"], row["size"]) for row in rows):
        by = {row["by"]: milliseconds(row) for row in rows if (row["job"], row["size"]) == (job, size)}
        title = "attention of an encoder layer" if job == "attention" else "dino_4scale_r50"
        lines.append([f"{title}, {size}", *(by.get(name, "-") for name in CONTESTANTS)])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", action="store_true", help="export what is missing, and measure nothing")
    parser.add_argument("--files", type=Path, default=Path("build/onnx"), help="folder of the exported files")
    parser.add_argument(
        "--jobs", nargs="+", choices=list(ALLOWED), default=list(ALLOWED), help="others keep their rows"
    )
    parser.add_argument("--sizes", nargs="+", choices=[text_of(size) for size in SIZES], default=[*map(text_of, SIZES)])
    parser.add_argument("--laps", type=int, default=3, help="at each size (3)")
    parser.add_argument("--publish", action="store_true", help="write the result under benchmarks/results/MACHINE")
    options = parser.parse_args()
    prepare(options.files)
    if options.prepare:
        return
    facts = machine.describe("cpu")
    folder = RESULTS / (machine.slug(facts) if options.publish else LATEST)
    path = folder / FILE_NAME
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    order = [(job, text_of(size)) for job in ALLOWED for size in SIZES]
    for job in options.jobs:
        for size in SIZES:
            if text_of(size) in options.sizes:
                rows = [row for row in rows if (row["job"], row["size"]) != (job, text_of(size))]
                rows += measure(job, size, options.files, options.laps)
                rows.sort(key=lambda row: order.index((row["job"], row["size"])))
                write_json(path, {"machine": facts, "rows": rows})
    print(f"{machine.caption(facts)}\n\n{as_text(table({'rows': rows}))}\n\n{path}")


if __name__ == "__main__":
    main()
