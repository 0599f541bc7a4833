"""Report what is installed and built, and which backend runs each op, or why it cannot: `python -m dino_kernels`.

With --check, also compare the kernels with the reference on small inputs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import textwrap
from importlib import metadata
from typing import Any

import torch

import dino_kernels
from dino_kernels import PackedTargets, __version__, explain, onnx
from dino_kernels.ops._core import dispatch, libraries
from dino_kernels.testing import Case, sample_inputs
from dino_kernels.testing.check import check_kernels

SAMPLE = Case("sample", batch=1, queries=4, heads=8, channels=32, shapes=((4, 4), (2, 2)), points=(4, 4))


def report() -> dict[str, Any]:
    """Return everything that the command prints, as plain data."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return {
        "versions": {
            "dino_kernels": __version__,
            "python": f"{platform.python_version()} ({platform.system()} {platform.machine()})",
            "torch": torch.__version__,
            "torch's CUDA": torch.version.cuda or "none: torch is a CPU build",
            "triton": _installed("triton"),
            "onnxruntime": _installed("onnxruntime"),
        },
        "devices": {
            "cpu": f"{_processor()}, {torch.get_num_threads()} threads, {libraries.C.cpu_capability()} kernels"
            if libraries.C
            else f"{_processor()}, {torch.get_num_threads()} threads",
            **{f"cuda:{i}": _gpu(i) for i in range(torch.cuda.device_count())},
        },
        "libraries": {
            "cpu": libraries.CPU_MISSING or "loaded",
            "cuda": libraries.CUDA_MISSING or "loaded",
            "onnx": onnx.why_missing() or "loaded",
            **_cuda(),
        },
        "build": libraries.build_info(),
        "ops": {name: {device: _backends(name, device) for device in devices} for name in dispatch.ops()},
    }


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or an Arm kernel without model names
        return platform.processor() or platform.machine()


def _gpu(index: int) -> str:
    major, minor = torch.cuda.get_device_capability(index)
    return f"{torch.cuda.get_device_name(index)}, sm_{major}{minor}"


def _cuda() -> dict[str, str]:
    if libraries.CUDA is None:
        return {}
    driver = libraries.version_text(libraries.CUDA.driver) if libraries.CUDA.driver else "none"
    stream = (
        "found in libtorch_cuda.so" if libraries.CUDA.current_stream else "not found: no CUDA build of torch is loaded"
    )
    return {
        "cuda runtime": libraries.version_text(libraries.CUDA.runtime),
        "cuda driver": driver,
        "cuda stream": stream,
    }


def _backends(op: str, device: str) -> dict[str, Any]:
    explanation = explain(getattr(dino_kernels, op), **_sample(op, device))
    return {"runs": explanation.backend, "reasons": explanation.reasons}


def _sample(op: str, device: str) -> dict[str, Any]:
    """Return arguments of a typical call in float32."""
    if op == "linear_sum_assignment":
        return {"cost": torch.rand(1, 2, 4, device=device)}
    if op in ("matching_cost", "hungarian_match"):
        boxes = torch.full((1, 4, 4), 0.5, device=device)
        target = {"labels": torch.zeros(2, dtype=torch.int64, device=device), "boxes": boxes[0, :2]}
        return {"logits": torch.zeros(1, 4, 3, device=device), "boxes": boxes, "targets": PackedTargets.pack([target])}
    return sample_inputs(op, SAMPLE, torch.float32, device, requires_grad=False)


def render(facts: dict[str, Any]) -> str:
    """Return the report as text, wrapped to the terminal's width."""
    lines: list[str] = []
    for title in ("versions", "devices", "libraries"):
        lines += [title, *_table(facts[title])]
    build = facts["build"]
    lines.append("build")
    lines += _table(_build_table(build)) if build else ["  none"]
    for op, devices in facts["ops"].items():
        for device, backends in devices.items():
            lines.append(f"{op} on {device}, float32: {backends['runs'] or 'no backend'}")
            checked = facts.get("check", {}).get(op, {}).get(device, {})
            states = {name: reason or "supported" for name, reason in backends["reasons"].items()}
            lines += _table(states | {name: f"supported, {result}" for name, result in checked.items()})
    return "\n".join(lines)


def _build_table(build: dict[str, Any]) -> dict[str, str]:
    cuda = build["cuda"]
    return {
        "compiler": build["compiler"],
        "flags": " ".join(build["flags"]),
        "cpu kernels": ", ".join(build["cpu_variants"]),
        "torch": f"compiled against {build['torch_headers']}, runs with {build['runs_with_torch']}",
        **({"sanitizer": build["sanitize"]} if build["sanitize"] else {}),
        "cuda": f"skipped: {cuda['skipped']}" if "skipped" in cuda else f"nvcc {cuda['nvcc']}",
        **({"cuda flags": " ".join(cuda["flags"])} if "flags" in cuda else {}),
    }


def _table(rows: dict[str, str]) -> list[str]:
    width = min(shutil.get_terminal_size((100, 24)).columns, 100)
    indent = 2 + max(map(len, rows)) + 2
    lines = []
    for name, text in rows.items():
        head = f"  {name}".ljust(indent)
        lines += textwrap.wrap(text, width, initial_indent=head, subsequent_indent=" " * indent, break_on_hyphens=False)
    return lines


def _check(devices: list[str]) -> dict[str, dict[str, dict[str, str]]]:
    """Return "correct" or the first error, by op, device and backend."""
    found: dict[str, dict[str, dict[str, str]]] = {name: {} for name in dispatch.ops()}
    for device in devices:
        for op, backend, error in check_kernels(device, lambda line: print(line, file=sys.stderr, flush=True)):
            found[op].setdefault(device, {})[backend] = error or "correct"
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m dino_kernels", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument(
        "--check", action="store_true", help="check the kernels' results; exit with 1 if one is wrong or none runs"
    )
    arguments = parser.parse_args()
    facts = report()
    wrong = False
    if arguments.check:
        facts["check"] = _check(sorted({device for devices in facts["ops"].values() for device in devices}))
        results = [text for devices in facts["check"].values() for by in devices.values() for text in by.values()]
        wrong = not results or any(text != "correct" for text in results)
    try:
        print(json.dumps(facts, indent=2) if arguments.json else render(facts), flush=True)
    except BrokenPipeError:  # by `| head`; Python would raise again when it flushes at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
