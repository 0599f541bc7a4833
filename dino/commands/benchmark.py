"""`python -m dino benchmark`: latency and throughput of a model here, part by part."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from dino.commands.parsing import OptionalFolder, RunOptions, parse
from dino.common.text import counted

if TYPE_CHECKING:
    from PIL import Image

    from dino.inference.detector import Detector

_LEAST_CALLS = 3
# In the order in which they run: each ends where a module ends. The heads run after the decoder.
_PARTS = {
    "backbone": "backbone",
    "neck": "neck",
    "encoder": "encoder",
    "query_selection": "query selection",
    "decoder": "decoder",
}
_PREPROCESSING, _HEADS, _MODEL, _POSTPROCESSING = "preprocessing", "heads", "model", "postprocessing"


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions(RunOptions):
    """Time a model from images in memory to detections: latency, throughput and parts.

    With --preset and without --checkpoint the weights are random, which changes the times little. Reading and decoding
    of files is not included.
    """

    checkpoint: OptionalFolder = None  # pyright: ignore[reportIncompatibleVariableOverride] - here it can be left out
    """Folder of a run (for its best model), folder or file of a model, or official weights with --preset."""
    batch_sizes: Annotated[tuple[int, ...], arg(metavar="N [N ...]")] = (1, 8)
    """Images per forward pass."""
    image_size: Annotated[tuple[int, int], arg(metavar="HEIGHT WIDTH")] = (480, 640)
    """Pixels of the images, before they are resized to --short-side and --long-side."""
    compile: bool = False
    """Time the compiled model, too. Compiling takes minutes for each batch size."""
    seconds: Annotated[float, arg(metavar="SECONDS")] = 3.0
    """Time for each batch size, eager and compiled; three calls if they take longer."""

    def check(self) -> None:
        """Raise ValueError at values that cannot be timed."""
        if self.checkpoint is None and self.preset is None:
            raise ValueError("benchmark: no model. Pass --checkpoint PATH, or --preset NAME for random weights.")
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ValueError(f"benchmark: --batch-sizes must be at least 1, got {self.batch_sizes}")
        if min(self.image_size) < 1:
            raise ValueError(f"benchmark: --image-size must be at least 1 1, got {self.image_size}")

    def eager_detector(self) -> Detector:
        """Return the detector, not compiled; of random weights without a checkpoint."""
        if self.checkpoint is not None:
            return self._load(None, dtype=self.dtype)
        from dino.checkpoint import build_model
        from dino.checkpoint.find import default_categories
        from dino.data import EvalTransform
        from dino.inference.detector import Detector

        sides = {"short_side": self.short_side, "long_side": self.long_side}
        model = build_model(self.preset or "", pretrained_backbone=False)
        return Detector(
            model,
            default_categories(model.config.num_classes),
            transform=EvalTransform(**{name: side for name, side in sides.items() if side is not None}),
            device=None if self.device == "auto" else self.device,
            dtype=self.dtype,
        )


@dataclass
class Timing:
    """Times of one batch size, of a model in eager mode or compiled."""

    batch_size: int
    compiled: bool
    first_s: float = 0.0
    """Seconds of the first call, which also compiles."""
    calls: list[dict[str, float]] = field(default_factory=list)
    """Of each later call, the seconds of each part; a compiled model is one part."""

    @property
    def name(self) -> str:
        return f"{'compiled' if self.compiled else 'eager'}, batch {self.batch_size}"

    def total_s(self) -> float:
        """Return the median seconds of a call."""
        return median(sum(call.values()) for call in self.calls)

    def part_s(self, part: str) -> float | None:
        """Return the median seconds of a part, or None if it is not timed."""
        return median(call[part] for call in self.calls) if part in self.calls[0] else None


def benchmark_command(argv: Sequence[str]) -> None:
    """Time a model and print a table."""
    options = parse(BenchmarkOptions, "benchmark", argv)
    options.check()
    import torch

    from dino.common.console import Console
    from dino.data.transforms import resized_size
    from dino.inference.detector import Detector

    eager = options.eager_detector()
    detectors = [eager]
    if options.compile:
        same = {"transform": eager.transform, "device": eager.device, "dtype": eager.dtype}
        detectors.append(Detector(eager.model, eager.categories, compile=True, **same))
    height, width = options.image_size
    timings = [Timing(size, detector is not eager) for detector in detectors for size in options.batch_sizes]
    image = _photograph(width, height)
    with Console(sys.stderr).bar(timings, "benchmark", leave=False) as bar:
        for timing in bar:
            bar.set_description_str(timing.name)
            measure(detectors[timing.compiled], image, timing, options.seconds)
    input_width, input_height = resized_size(image.size, eager.transform.short_side, eager.transform.long_side)
    device = torch.cuda.get_device_name(eager.device) if eager.device.type == "cuda" else "CPU"
    threads = "" if eager.device.type == "cuda" else f", {counted(torch.get_num_threads(), 'thread')}"
    print(f"{options.checkpoint or f'{options.preset}, random weights'}")
    print(f"images of {height}x{width}, resized to {input_height}x{input_width}; {eager.dtype}, {device}{threads}\n")
    print(table(timings))


def measure(detector: Detector, image: Image.Image, timing: Timing, seconds: float) -> None:
    """Fill in a timing: the first call, then calls for about some seconds."""
    images = [image] * timing.batch_size
    deadline = 0.0
    with _marks(detector) as marks:
        while len(timing.calls) < _LEAST_CALLS or time.perf_counter() < deadline:
            start = time.perf_counter()
            marks.clear()
            detector.predict(images, batch_size=timing.batch_size)
            marks.append((_POSTPROCESSING, time.perf_counter()))
            if not deadline:
                timing.first_s = marks[-1][1] - start
                deadline = time.perf_counter() + seconds
                continue
            starts = [start, *(end for _, end in marks)]
            timing.calls.append({part: end - begin for begin, (part, end) in zip(starts, marks, strict=False)})


@contextmanager
def _marks(detector: Detector) -> Iterator[list[tuple[str, float]]]:
    """Append each part and the time of its end to a list while the detector runs."""
    import torch

    from dino.model.dino import DINO

    marks: list[tuple[str, float]] = []

    def mark(part: str) -> None:
        if detector.device.type == "cuda":
            torch.cuda.synchronize(detector.device)
        marks.append((part, time.perf_counter()))

    whole = detector.run
    # An exported file is one part, too.
    compiled = whole is not detector.model or not isinstance(whole, DINO)
    hooks = [whole.register_forward_pre_hook(lambda *_: mark(_PREPROCESSING))]
    for name, part in {} if compiled else _PARTS.items():  # hooks would become part of the compiled program
        module = detector.model.get_submodule(name)
        hooks.append(module.register_forward_hook(lambda *_, part=part: mark(part)))
    hooks.append(whole.register_forward_hook(lambda *_: mark(_MODEL if compiled else _HEADS)))
    try:
        yield marks
    finally:
        for hook in hooks:
            hook.remove()


def table(timings: Sequence[Timing]) -> str:
    """Return the milliseconds of each part and of the whole, and images per second, a column per timing."""
    parts = [_PREPROCESSING, *_PARTS.values(), _HEADS, _MODEL, _POSTPROCESSING]
    rows = [("ms per batch", [timing.name for timing in timings])]
    for part in parts:
        cells = ["" if s is None else f"{1e3 * s:,.1f}" for s in (timing.part_s(part) for timing in timings)]
        rows += [(part, cells)] if any(cells) else []
    rows.append(("total", [f"{1e3 * timing.total_s():,.1f}" for timing in timings]))
    rows.append(("images/s", [f"{timing.batch_size / timing.total_s():,.2f}" for timing in timings]))
    rows.append(("first call, s", [f"{timing.first_s:,.1f}" for timing in timings]))
    names = max(len(name) for name, _ in rows)
    widths = [max(map(len, column)) for column in zip(*(cells for _, cells in rows), strict=True)]
    lines = [
        "  ".join([name.ljust(names), *(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))])
        for name, cells in rows
    ]
    lines.insert(-3, "-" * len(lines[0]))
    return "\n".join(lines)


def _photograph(width: int, height: int) -> Image.Image:
    """Return an image of coarse coloured noise."""
    import numpy as np
    from PIL import Image

    cells = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)
