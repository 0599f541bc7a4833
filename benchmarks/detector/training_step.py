"""Time a training step of DINO, by turns: with the kernels, with PyTorch's operators, and the official code's.

    python -m benchmarks.detector.training_step                  dino_4scale_r50, 480x640, 2 images of 8 boxes
    python -m benchmarks.detector.training_step --official DINO  and the official code, from a checkout that imports
    python -m benchmarks.detector.training_step --compile        and ours compiled: minutes before the first step
    python -m benchmarks.detector.training_step --static         and ours replayed, on a GPU as CUDA graphs
    python -m benchmarks.detector.training_step --amp bf16 fp16  and everyone in these, too
    python -m benchmarks.detector.training_step --publish        also write it under benchmarks/results/MACHINE

The official code runs as its main.py does, with its own operator for CUDA on a GPU and its own definition in PyTorch on
a CPU; its operator takes float32 and float16, not bfloat16. Every step has the same images and boxes, and ends with
clipping and AdamW. On a GPU whole steps are timed several in a row, and parts in steps of their own, with waits between
them; the peak is that of torch's allocator over what the contestant keeps between steps.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from benchmarks.detector.memory import GIB, PRESET, build_step
from benchmarks.detector.precision import pytorch_operators
from benchmarks.measure import machine
from benchmarks.measure.race import middle_half
from benchmarks.measure.results import LATEST, RESULTS, spread, write_json
from benchmarks.measure.tables import as_text
from dino.checkpoint import build_model
from dino.data import Batch
from dino.model.criterion import SetCriterion
from dino.training.precision import Precision
from dino_kernels import PackedTargets

FILE_NAME = "training_step.json"
PARTS = ("forward", "matching and losses", "backward", "update")
OFFICIAL, PYTORCH, KERNELS, COMPILED = "official code", "PyTorch operators", "kernels", "kernels, compiled"
STATIC = "kernels, replayed"
CAPACITY = 100  # targets of an image, where shapes must not depend on them
IN_A_ROW = 5  # steps between two readings of a GPU's clock
Stages = Iterator[None]
"""A step that stops after each of PARTS, or only at its end."""


class Ours:
    """Steps of this project's model."""

    def __init__(self, device: str, *, amp: str = "off", kernels: bool = True, compiled: bool = False) -> None:
        torch.manual_seed(0)
        self.model = build_model(PRESET, pretrained_backbone=False).to(device).train()
        self.criterion = SetCriterion(self.model.config).to(device)
        self.optimizer = torch.optim.AdamW(trained(self.model), lr=1e-5, weight_decay=1e-4, fused=True)
        self.forward: Callable[..., Any] = self.model
        self.losses: Callable[..., Any] = self.criterion
        if compiled:
            self.forward, self.losses = (torch.compile(each, fullgraph=True) for each in (self.model, self.criterion))
        self.kernels = kernels
        self.compiled = compiled
        self.precision = Precision(amp, device)

    def step(self, images: Tensor, mask: Tensor, targets: list[dict[str, Tensor]]) -> Stages:
        capacity = CAPACITY * len(targets) if self.compiled else None
        packed = PackedTargets.pack(targets, capacity=capacity, max_targets=CAPACITY if capacity else None)
        with self.precision.autocast():
            outputs = self.forward(images, mask, packed)
        yield
        num_boxes = torch.full((), float(sum(len(target["labels"]) for target in targets)), device=images.device)
        loss = self.criterion.weighted_total(self.losses(outputs, packed, num_boxes))
        yield
        self.precision.backward(loss)
        yield
        self.precision.unscale(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 0.1)
        self.precision.step(self.optimizer, (~norm.isfinite()).float())
        self.optimizer.zero_grad()
        yield


class Replayed:
    """Steps of this project's training with `--static`: on a GPU two replays of CUDA graphs."""

    def __init__(self, device: str, *, amp: str = "off") -> None:
        self.kernels = True
        self.whole = build_step(torch.device(device), amp, static=True)

    def step(self, images: Tensor, mask: Tensor, targets: list[dict[str, Tensor]]) -> Stages:
        packed = PackedTargets.pack(targets, capacity=CAPACITY * len(targets), max_targets=CAPACITY)
        sizes = torch.tensor([images.shape[-2:]] * len(images))
        boxes = sum(len(target["labels"]) for target in targets)
        self.whole([Batch(images, mask, packed, list(range(len(images))), sizes, boxes)])
        yield


class StayOnCpu(TorchFunctionMode):
    """Leaves tensors where they are, for code that moves some to a GPU on every machine. Costs 0.3 % of its step."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.cuda:
            return args[0]
        return func(*("cpu" if isinstance(x, str) and x == "cuda" else x for x in args), **(kwargs or {}))


class Official:
    """Steps of the official code, as its `engine.train_one_epoch` takes them."""

    def __init__(self, checkout: Path, device: str, *, amp: str = "off") -> None:
        if str(checkout) not in sys.path:
            sys.path.insert(0, str(checkout))
        if device == "cpu":
            # Its module calls the operator for CUDA on every device; its own definition for tests runs on a CPU.
            sys.modules.setdefault("MultiScaleDeformableAttention", type(sys)("MultiScaleDeformableAttention"))
        main, _ = __import__("main"), __import__("models")
        functions = sys.modules["models.dino.ops.functions.ms_deform_attn_func"]
        if device == "cpu":
            modules = sys.modules["models.dino.ops.modules.ms_deform_attn"]
            modules.MSDeformAttnFunction = type(  # type: ignore[attr-defined]
                "OnCpu",
                (),
                {
                    "apply": staticmethod(
                        lambda value, shapes, _starts, places, weights, _step: functions.ms_deform_attn_core_pytorch(
                            value, shapes, places, weights
                        )
                    )
                },
            )
        config = checkout / "config" / "DINO" / "DINO_4scale.py"
        args = argparse.ArgumentParser(parents=[main.get_args_parser()]).parse_args(
            ["--config_file", str(config), "--device", device]
        )
        for name, value in main.SLConfig.fromfile(str(config))._cfg_dict.to_dict().items():
            setattr(args, name, value)
        # As the README of the official code sets them; the last two it reads, but its configuration lacks.
        args.dn_scalar, args.embed_init_tgt, args.dn_label_coef, args.dn_bbox_coef = 100, True, 1.0, 1.0
        args.use_ema, args.dn_box_noise_scale = False, 1.0
        torch.manual_seed(0)
        backbone = sys.modules["models.dino.backbone"]
        backbone.is_main_process = lambda: False  # type: ignore[attr-defined]  # random weights: no download
        self.model, self.criterion, _ = main.build_model_main(args)
        self.model.to(device).train()
        self.criterion.to(device)
        self.misc = sys.modules["util.misc"]
        self.place = StayOnCpu() if device == "cpu" else nullcontext()
        self.optimizer = torch.optim.AdamW(trained(self.model), lr=1e-5, weight_decay=1e-4)
        self.kernels = True
        self.scaler = torch.amp.GradScaler(device, enabled=amp == "fp16")
        self.autocast = partial(torch.autocast, device, torch.float16, enabled=amp == "fp16")

    def step(self, images: Tensor, mask: Tensor, targets: list[dict[str, Tensor]]) -> Stages:
        with self.place, self.autocast():
            outputs = self.model(self.misc.NestedTensor(images, mask), targets)
        yield
        with self.place, self.autocast():
            losses = self.criterion(outputs, targets)
        weights = self.criterion.weight_dict
        total: Any = sum(losses[name] * weights[name] for name in losses if name in weights)
        reduced = self.misc.reduce_dict(losses)
        logged: Any = sum(reduced[name] * weights[name] for name in reduced if name in weights)
        logged.item()
        yield
        self.optimizer.zero_grad()
        self.scaler.scale(total).backward()
        yield
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), 0.1)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        yield


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


Contestant = Ours | Replayed | Official


def timed(steps: Contestant, inputs: Sequence[Any], device: str) -> list[float]:
    """Return the seconds of each of PARTS in a step, or of the step if it does not stop between them."""
    seconds = []
    with pytorch_operators(active=not steps.kernels):
        started = time.perf_counter()
        for _ in steps.step(*inputs):
            if device == "cuda":
                torch.cuda.synchronize()
            now = time.perf_counter()
            seconds.append(now - started)
            started = now
    return seconds


def timed_in_a_row(steps: Contestant, inputs: Sequence[Any]) -> float:
    """Return the seconds of a step on a GPU, several of which run without a wait that is not their own."""
    torch.cuda.synchronize()
    with pytorch_operators(active=not steps.kernels):
        started = time.perf_counter()
        for _ in range(IN_A_ROW):
            deque(steps.step(*inputs), maxlen=0)
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / IN_A_ROW


def peak_on_gpu(steps: Contestant, inputs: Sequence[Any], device: str) -> float:
    """Return the peak GiB of a contestant's second step, in which static ones are captured, over what it keeps."""
    timed(steps, inputs, device)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    timed(steps, inputs, device)
    return round((torch.cuda.max_memory_allocated() - before) / GIB, 3)


def table(document: dict[str, Any]) -> list[list[str]]:
    """Make a row per contestant: milliseconds of each part and of the step, images a second, and ratio to the first."""
    first = document["steps"][0]
    on_gpu = "peak_gib" in first
    lines = [["step", *PARTS, "whole ms", f"x {first['name']}", *(["images/s", "peak GiB"] if on_gpu else [])]]
    for row in document["steps"]:
        parts = [f"{1e3 * seconds:.0f}" for seconds in row["parts_s"]] if len(row["parts_s"]) == len(PARTS) else []
        parts = parts or ["-"] * len(PARTS)
        line = [row["name"], *parts, f"{1e3 * row['whole_s']:.0f}", f"{row['speedup']['median']:.2f}x"]
        lines.append(line + ([f"{document['batch'] / row['whole_s']:.1f}", f"{row['peak_gib']:.1f}"] if on_gpu else []))
    return lines


def contestants_of(options: argparse.Namespace, device: str) -> dict[str, Contestant]:
    made: dict[str, Contestant] = {}
    for amp in ("off", *options.amp):
        label = "" if amp == "off" else f", {amp}"
        if options.official and amp != "bf16":
            made[OFFICIAL + label] = Official(options.official, device, amp=amp)
        if amp == "off":
            made[PYTORCH] = Ours(device, kernels=False)
        made[KERNELS + label] = Ours(device, amp=amp)
        if options.compile:
            made[COMPILED + label] = Ours(device, amp=amp, compiled=True)
        if options.static:
            made[STATIC + label] = Replayed(device, amp=amp)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), help="height and width (480 640)")
    parser.add_argument("--batch", type=int, default=2, help="images (2)")
    parser.add_argument("--boxes", type=int, default=8, help="of each image (8)")
    parser.add_argument("--laps", type=int, default=5, help="steps of each contestant (5)")
    parser.add_argument("--official", type=Path, help="checkout of the official code")
    parser.add_argument("--compile", action="store_true", help="compile ours, too")
    parser.add_argument("--static", action="store_true", help="replay ours, too")
    parser.add_argument("--amp", nargs="+", choices=["bf16", "fp16"], default=[], help="these precisions, too")
    parser.add_argument("--publish", action="store_true", help="write the result under benchmarks/results/MACHINE")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    contestants = contestants_of(options, device)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(options.batch, 3, *options.size, generator=generator).to(device)
    mask = torch.zeros(options.batch, *options.size, dtype=torch.bool, device=device)
    targets = [
        {
            "boxes": (torch.rand(options.boxes, 4, generator=generator) * 0.3 + 0.2).to(device),
            "labels": torch.randint(80, (options.boxes,), generator=generator).to(device),
        }
        for _ in range(options.batch)
    ]
    inputs = (images, mask, targets)
    peaks = {}
    if device == "cuda":
        peaks = {name: {"peak_gib": peak_on_gpu(steps, inputs, device)} for name, steps in contestants.items()}
    parts: dict[str, list[list[float]]] = {name: [] for name in contestants}
    whole: dict[str, list[float]] = {name: [] for name in contestants}
    for lap in range(options.laps + 1):
        for name in list(contestants)[:: 1 if lap % 2 else -1]:
            seconds = timed(contestants[name], inputs, device)
            step = timed_in_a_row(contestants[name], inputs) if device == "cuda" else sum(seconds)
            print(f"lap {lap} of {options.laps}: {name} {step:.3f} s", flush=True)
            if lap > 0:  # the first one warms up
                parts[name].append(seconds)
                whole[name].append(step)
    base = whole[next(iter(contestants))]
    facts = machine.describe(device)
    document = {"machine": facts, "preset": PRESET, "size": list(options.size), "batch": options.batch}
    document |= {"boxes": options.boxes, "laps": options.laps}
    document["steps"] = [
        {
            "name": name,
            "parts_s": [round(median(lap[i] for lap in parts[name]), 5) for i in range(len(parts[name][0]))],
            "whole_s": round(median(whole[name]), 5),
            "speedup": spread(middle_half([b / lap for b, lap in zip(base, whole[name], strict=True)])),
            **peaks.get(name, {}),
        }
        for name in contestants
    ]
    path = RESULTS / (machine.slug(facts) if options.publish else LATEST) / FILE_NAME
    write_json(path, document)
    print(f"\n{as_text(table(document))}\n{path}")


if __name__ == "__main__":
    main()
