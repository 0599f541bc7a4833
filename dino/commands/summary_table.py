"""What a model is made of: each part with its output, its parameters and its operations."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dino.commands.count_flops import trace_forward
from dino.commands.summary_rows import Part, list_parts
from dino.model.config import PRESETS, ModelConfig, model_config
from dino.model.dino import DINO


@dataclass(frozen=True)
class Published:
    """What the paper says of a model."""

    parameters: str
    gflops: float | None = None
    """By the authors' `tools/benchmark.py`, to which a multiply-add is one; element-wise operations count too."""
    image_size: tuple[int, int] | None = None
    """The usual size at which our count is nearest to theirs, within 2 %; they do not name theirs."""


PUBLISHED = {
    "dino_4scale_r50": Published("47M", 279.0, (800, 1280)),
    "dino_5scale_r50": Published("47M", 860.0, (800, 1333)),
    "dino_4scale_swin_l": Published("218M"),
    "dino_5scale_swin_l": Published("218M"),
}


@dataclass(frozen=True)
class ModelSummary:
    """The parts of a model in their order, for one image of a size."""

    title: str
    image_size: tuple[int, int]
    """Height and width in pixels."""
    parts: tuple[Part, ...]
    published: Published | None = None

    @property
    def parameters(self) -> int:
        """Numbers that are learned or kept fixed; statistics of frozen normalisation are not among them."""
        return sum(part.parameters for part in self.parts if part.depth == 0)

    @property
    def trainable(self) -> int:
        """Parameters that training changes."""
        return sum(part.trainable for part in self.parts if part.depth == 0)

    @property
    def flops(self) -> int:
        """Operations of one image, a multiply-add counted as two."""
        return sum(part.flops for part in self.parts if part.depth == 0)

    def table(self, width: int = 100) -> str:
        """The parts as text of at most `width` columns (80 or more), with a note on how operations are counted."""
        rows = [(p.name, p.what, p.output, p.parameters, p.trainable, p.flops, p.depth) for p in self.parts]
        names = max(len("  " * row[6] + row[0]) for row in rows) + 2
        shapes = max(len(_shape(row[2])) for row in rows)
        words = width - names - shapes - 27
        height, image_width = self.image_size
        lines = [f"{self.title}, one image of {height}x{image_width}", ""]
        lines.append(_line("", "", "output", ("params", "trained", "GFLOPs"), (names, words, shapes)))
        for name, what, output, parameters, trainable, flops, depth in rows:
            numbers = (_millions(parameters), _millions(trainable), f"{flops / 1e9:.1f}")
            first, *rest = textwrap.wrap(what, words - 2) or [""]
            lines.append(_line("  " * depth + name, first, _shape(output), numbers, (names, words, shapes)))
            lines += [" " * names + line for line in rest]
        total = (_millions(self.parameters), _millions(self.trainable), f"{self.flops / 1e9:.1f}")
        lines += ["-" * width, _line("total", "", "", total, (names, words, shapes)), ""]
        lines += [line for note in self.notes() for line in textwrap.wrap(note, width)]
        return "\n".join(lines)

    def notes(self) -> list[str]:
        """How the operations were counted, and what the paper says."""
        gmacs = self.flops / 2e9
        notes = [
            f"GFLOPs count a multiply-add as two operations, as PyTorch does. Counted as one, as papers on detectors "
            f"do, the total is {gmacs:.1f}. Convolutions, matrix products and deformable sampling are counted, "
            f"element-wise operations are not.",
        ]
        if self.published is not None:
            paper = f"The paper: {self.published.parameters} parameters"
            if self.published.gflops is not None and self.published.image_size is not None:
                height, width = self.published.image_size
                paper += (
                    f", {self.published.gflops:.0f} GFLOPs, a multiply-add counted as one, with element-wise "
                    f"operations. This fits our count at {height}x{width} to 2 %"
                )
            notes.append(paper + ".")
        return notes


def summarise(preset: str | ModelConfig, image_size: tuple[int, int] = (800, 1333)) -> ModelSummary:
    """Count the parameters and operations of a model's parts, without allocating or computing anything.

    Args:
        preset: a name of `dino.PRESETS`, or a configuration.
        image_size: height and width in pixels of the one image.

    Raises:
        ValueError: an unknown preset, or an image smaller than 32x32.
    """
    if min(image_size) < 32:
        raise ValueError(f"image_size must be (height, width) of at least 32 pixels, got {image_size}")
    config = model_config(preset)
    # Weights without numbers: made on the meta device, then faked as CPU tensors, which the operators accept.
    with torch.device("meta"):
        model = DINO(config)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        images, mask = torch.zeros(1, 3, *image_size), torch.zeros(1, *image_size, dtype=torch.bool)
        trace = trace_forward(model, images, mask)
        parts = tuple(list_parts(model, trainable, trace))
    name = preset if isinstance(preset, str) else next((name for name in PRESETS if PRESETS[name] == config), None)
    return ModelSummary(name or "model", image_size, parts, PUBLISHED.get(name or ""))


def _line(name: str, what: str, output: str, numbers: Sequence[str], widths: Sequence[int]) -> str:
    names, words, shapes = widths
    cells = "".join(f"{number:>9}" for number in numbers)
    return f"{name:<{names}}{what:<{words}}{output:>{shapes}}{cells}"


def _shape(shape: tuple[int, ...] | None) -> str:
    return "" if shape is None else "x".join(map(str, shape))


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f}M"
