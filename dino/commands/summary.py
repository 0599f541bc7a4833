"""`python -m dino summary`: each part of a model with its output, parameters and operations."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dino.commands.parsing import parse
from dino.common.text import counted

if TYPE_CHECKING:
    from torch import Tensor

    from dino.model import DINO, ModelConfig


@dataclass(frozen=True)
class SummaryOptions:
    """List a model's parts with their outputs, parameters and operations. Computes nothing: no weights are needed."""

    preset: str = "dino_4scale_r50"
    """A name of dino.PRESETS; a wrong one lists them."""
    size: tuple[int, int] = (800, 1333)
    """Height and width of the image in pixels."""


def summary_command(argv: Sequence[str]) -> None:
    """Print the summary of a preset."""
    options = parse(SummaryOptions, "summary", argv)
    width = min(max(shutil.get_terminal_size((100, 24)).columns, 80), 110)
    print(summarise(options.preset, options.size).table(width))


@dataclass(frozen=True)
class Published:
    """Size of a model in the paper."""

    parameters: str
    gflops: float | None = None
    """From the authors' tools/benchmark.py, which counts a multiply-add as one, and element-wise operations."""
    image_size: tuple[int, int] | None = None
    """The usual size whose count is nearest to theirs, within 2 %; they do not name theirs."""


PUBLISHED = {
    "dino_4scale_r50": Published("47M", 279.0, (800, 1280)),
    "dino_5scale_r50": Published("47M", 860.0, (800, 1333)),
    "dino_4scale_swin_l": Published("218M"),
    "dino_5scale_swin_l": Published("218M"),
}


@dataclass(frozen=True)
class Part:
    """A part of a model, or a stage of a part."""

    name: str
    what: str
    output: tuple[int, ...] | None
    """Shape of its output for one image; None if it runs in training only, or its stages have the shapes."""
    parameters: int
    trainable: int
    flops: int
    """Operations of one image, a multiply-add counted as two."""
    depth: int = 0
    """1 for a stage, which the part above it includes."""


@dataclass(frozen=True)
class ModelSummary:
    """The parts of a model in order, for one image of a size."""

    title: str
    image_size: tuple[int, int]
    """Height and width in pixels."""
    parts: tuple[Part, ...]
    published: Published | None = None

    @property
    def total(self) -> Part:
        """All parts together; statistics of frozen normalisation are not parameters."""
        whole = [part for part in self.parts if part.depth == 0]
        sums = (sum(getattr(part, name) for part in whole) for name in ("parameters", "trainable", "flops"))
        return Part("total", "", None, *sums)

    def table(self, width: int = 100) -> str:
        """Return the parts as text of at most `width` columns (80 or more), with notes on the counting."""
        names = max(len(part.name) + 2 * part.depth for part in self.parts) + 2
        shapes = max(len(_shape(part.output)) for part in self.parts)
        words = width - names - shapes - 27
        height, image_width = self.image_size
        lines = [f"{self.title}, one image of {height}x{image_width}", ""]
        lines.append(f"{'':{names + words}}{'output':>{shapes}}{'params':>9}{'trained':>9}{'GFLOPs':>9}")
        for part in (*self.parts, self.total):
            if part.name == "total":
                lines.append("-" * width)
            first, *rest = textwrap.wrap(part.what, words - 2) or [""]
            counts = f"{part.parameters / 1e6:>8.2f}M{part.trainable / 1e6:>8.2f}M{part.flops / 1e9:>9.1f}"
            name = "  " * part.depth + part.name
            lines.append(f"{name:<{names}}{first:<{words}}{_shape(part.output):>{shapes}}{counts}")
            lines += [" " * names + line for line in rest]
        return "\n".join([*lines, "", *(line for note in self.notes() for line in textwrap.wrap(note, width))])

    def notes(self) -> list[str]:
        """Return how operations are counted, and the paper's numbers."""
        notes = [
            "GFLOPs count a multiply-add as two operations, as PyTorch does. Counted as one, as papers on detectors "
            f"do, the total is {self.total.flops / 2e9:.1f}. Convolutions, matrix products and deformable sampling are "
            "counted, element-wise operations are not."
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
        image_size: height and width in pixels of the image.

    Raises:
        ValueError: an unknown preset, or an image smaller than 32x32.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from dino.model import DINO, PRESETS, model_config

    if min(image_size) < 32:
        raise ValueError(f"image_size must be (height, width) of at least 32 pixels, got {image_size}")
    config = model_config(preset)
    # Weights without data: made on the meta device, then faked as CPU tensors, which the operators accept.
    with torch.device("meta"):
        model = DINO(config)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        images, mask = torch.zeros(1, 3, *image_size), torch.zeros(1, *image_size, dtype=torch.bool)
        parts = tuple(Counts(model, images, mask).parts())
    name = preset if isinstance(preset, str) else next((name for name in PRESETS if PRESETS[name] == config), None)
    return ModelSummary(name or "model", image_size, parts, PUBLISHED.get(name or ""))


class Counts:
    """Parameters, operations and output shapes of a model's modules, from one forward pass.

    The model is left in evaluation mode, without gradients.
    """

    def __init__(self, model: DINO, images: Tensor, mask: Tensor) -> None:
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        self.model = model
        self.modules = dict(model.named_modules())
        self.trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.shapes: dict[str, tuple[int, ...]] = {}
        hooks = [module.register_forward_hook(self._note_shape(name)) for name, module in self.modules.items()]
        # The reference backend is grid_sample, which the counter leaves out.
        sampling: Any = {torch.ops.aten.grid_sampler_2d: _grid_sample_flops}
        with FlopCounterMode(display=False, custom_mapping=sampling) as counter, torch.no_grad():
            outputs = model.eval().requires_grad_(False)(images, mask)
        for hook in hooks:
            hook.remove()
        self.queries = outputs.logits.shape[2]
        self.counts = counter.get_flop_counts()

    def _note_shape(self, name: str) -> Any:
        def hook(module: Any, arguments: Any, output: Any) -> None:
            shape = getattr(getattr(output, "tokens", output), "shape", None)
            if shape is not None:
                self.shapes[name] = tuple(shape)[1:]

        return hook

    def flops(self, name: str) -> int:
        """Return the operations of a module and its children; a list of modules is not called, its children are."""
        key = f"{type(self.model).__name__}.{name}"
        if key in self.counts:
            return sum(self.counts[key].values())
        module = self.modules.get(name)
        return 0 if module is None else sum(self.flops(f"{name}.{child}") for child, _ in module.named_children())

    def row(self, name: str, what: str, output: tuple[int, ...] | None, modules: Sequence[str], depth: int = 0) -> Part:
        """Return the row of some modules, children included."""
        prefixes = tuple(f"{module}." for module in modules)
        sizes = {key: p.numel() for key, p in self.model.named_parameters() if key.startswith(prefixes)}
        trained = sum(size for key, size in sizes.items() if key in self.trainable)
        return Part(name, what, output, sum(sizes.values()), trained, sum(map(self.flops, modules)), depth)

    def parts(self) -> Iterator[Part]:
        """Yield the rows of the summary."""
        config = self.model.config
        channels = config.hidden_dim
        yield self.row("backbone", config.backbone, None, ["backbone"])
        yield from self.backbone_stages()
        yield self.row("neck", f"convolutions to {channels} channels, group norm", None, ["neck"])
        for level in range(config.num_levels):
            name = f"neck.projections.{level}"
            kernel = "1x1" if self.modules[f"{name}.conv"].kernel_size == (1, 1) else "3x3, stride 2"
            yield self.row(f"level {level}", kernel, self.shapes[name], [name], 1)
        layers = (
            f"{counted(config.num_encoder_layers, 'layer')}: FFN of {config.ffn_dim}; deformable attention, "
            f"{config.num_heads} heads x {config.num_levels} levels x {config.num_points} samples"
            f"{'; all layers fused' if config.memory_fusion else ''}"
        )
        yield self.row("encoder", layers, self.shapes["encoder"], ["encoder"])
        selection = _SELECTION[config.query_selection]
        yield self.row("query selection", selection, (self.queries, 4), ["query_selection"])
        attention = "self-attention, biased by the relation of boxes" if config.relation_bias else "self-attention"
        layers = f"{counted(config.num_decoder_layers, 'layer')}: {attention}, then as in the encoder"
        states = (config.num_decoder_layers, self.queries)
        modules = ["decoder.layers", "decoder.query_position", "decoder.norm", "decoder.relation"]
        yield self.row("decoder", layers, (*states, channels), modules)
        heads = ["decoder.class_head", "decoder.box_head"]
        pairs = "one pair for all decoder layers" if config.shared_heads else "one pair per decoder layer"
        yield self.row("heads", pairs, None, heads)
        yield self.row("classes", "linear", (*states, config.num_classes), heads[:1], 1)
        yield self.row("boxes", "3-layer MLP that moves a box", (*states, 4), heads[1:], 1)
        if self.model.denoising is not None:
            yield self.row("denoising", f"{config.denoising}, in training only", None, ["denoising"])
        if self.model.hybrid is not None:
            second = f"{counted(config.hybrid_queries, 'query')} of a second branch, in training only"
            yield self.row("hybrid matching", second, None, ["hybrid"])
        if self.model.routes is not None:
            yield self.row("routes", "two more passes of the decoder, in training only", None, ["routes"])

    def backbone_stages(self) -> Iterator[Part]:
        """Yield stem and stages of a ResNet, Swin or ConvNeXt."""
        backbone = self.model.backbone
        if "layer1" in dict(backbone.named_children()):
            homes = [f"layer{i + 1}" for i in range(4)]
            row = self.row("stem", "7x7 convolution and pooling", None, ["backbone.conv1", "backbone.bn1"], 1)
            output = (self.model.get_parameter("backbone.conv1.weight").shape[0], *self.shapes["backbone.layer1.0"][1:])
            # Convolutions with folded normalisation are counted where they are called.
            flops = self.flops("backbone") - sum(self.flops(f"backbone.{home}") for home in homes)
            what = row.what + ("" if row.trainable else ", frozen")
            yield replace(row, output=output, flops=flops, what=what)
        elif hasattr(backbone, "patch_embed"):
            homes = [f"layers.{i}.blocks" for i in range(4)]
            yield self.row("patches", "of 4x4 pixels", self._map_shape("patch_embed"), ["backbone.patch_embed"], 1)
        else:
            homes = [f"stages.{i}" for i in range(4)]
        for i, home in enumerate(home for home in homes if f"backbone.{home}" in self.modules):
            blocks = list(self.modules[f"backbone.{home}"].children())
            kind = {"BasicBlock": "basic block", "Bottleneck": "bottleneck"}.get(type(blocks[0]).__name__, "block")
            # Swin's merging of patches runs after its stage, not inside it.
            homes_of_stage = (home, home.replace("blocks", "downsample"), f"downsample_layers.{i}", f"norm{i}")
            names = [f"backbone.{name}" for name in dict.fromkeys(homes_of_stage)]
            what = f"{counted(len(blocks), kind)}, stride {4 * 2**i}"
            row = self.row(f"stage {i}", what, self._map_shape(f"{home}.{len(blocks) - 1}"), names, 1)
            yield replace(row, what=row.what + ("" if row.trainable else ", frozen"))

    def _map_shape(self, name: str) -> tuple[int, ...]:
        """Return the [channels, H, W] of a module of the backbone; Swin has the channels last."""
        shape = self.shapes[f"backbone.{name}"]
        return (shape[2], *shape[:2]) if hasattr(self.model.backbone, "patch_embed") else shape


_SELECTION = {
    "mixed": "mixed: anchors from the best-scored tokens, learned content",
    "pure": "pure: anchors and content from the best-scored tokens",
    "static": "static: learned anchors and content",
}


def _grid_sample_flops(*_: Any, out_shape: Any = None, **options: Any) -> int:
    """Return what `dino_kernels` counts for the same samples."""
    batch, channels, height, width = out_shape
    return batch * height * width * 4 * (2 * channels + 2)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "" if shape is None else "x".join(map(str, shape))
