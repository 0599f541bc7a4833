"""The parts of a model, as the rows of its summary."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from dino.commands.count_flops import Trace, under
from dino.model.dino import DINO
from dino.model.neck import Projection


@dataclass(frozen=True)
class Part:
    """One part of a model, or one stage of a part."""

    name: str
    what: str
    """What it is, in words."""
    output: tuple[int, ...] | None
    """Shape of what it returns for one image; None where it runs in training only."""
    parameters: int
    trainable: int
    flops: int
    """Operations of one image, a multiply-add counted as two."""
    depth: int = 0
    """1 for a stage of the part above it, whose numbers the part's own include."""


def list_parts(model: DINO, trainable: set[str], trace: Trace) -> Iterator[Part]:
    """The rows of a model's summary.

    Args:
        model: only its structure is looked at.
        trainable: names of the parameters that training changes.
        trace: of one image through this model.
    """
    table = _Table(model, trainable, trace)
    config = model.config
    channels, queries = config.hidden_dim, trace.queries
    yield table.row("backbone", config.backbone, None, ["backbone"])
    yield from table.backbone_stages()
    yield table.row("neck", f"convolutions to {channels} channels, group norm", None, ["neck"])
    for level, projection in enumerate(model.neck.projections):
        assert isinstance(projection, Projection)
        name = f"neck.projections.{level}"
        kernel = "1x1" if projection.conv.kernel_size == (1, 1) else "3x3, stride 2"
        yield table.row(f"level {level}", kernel, trace.shape(name), [name], 1)
    layers = (
        f"{_counted(config.num_encoder_layers, 'layer')}: FFN of {config.ffn_dim}; deformable attention, "
        f"{config.num_heads} heads x {config.num_levels} levels x {config.num_points} samples"
    )
    yield table.row("encoder", layers, (trace.tokens, channels), ["encoder"])
    yield table.row("query selection", _SELECTION[config.query_selection], (queries, 4), ["query_selection"])
    layers = f"{_counted(config.num_decoder_layers, 'layer')}: self-attention, then as in the encoder"
    states = (config.num_decoder_layers, queries)
    modules = ["decoder.layers", "decoder.query_position", "decoder.norm"]
    yield table.row("decoder", layers, (*states, channels), modules)
    heads = ["decoder.class_head", "decoder.box_head"]
    yield table.row("heads", "one pair for all decoder layers", None, heads)
    yield table.row("classes", "linear", (*states, config.num_classes), heads[:1], 1)
    yield table.row("boxes", "3-layer MLP that moves a box", (*states, 4), heads[1:], 1)
    if model.denoising is not None:
        what = f"{config.denoising}, in training only"
        yield table.row("denoising", what, None, ["denoising"])


_SELECTION = {
    "mixed": "mixed: anchors from the best-scored tokens, learned content",
    "pure": "pure: anchors and content from the best-scored tokens",
    "static": "static: learned anchors and content",
}


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


class _Table:
    """Sums of a model's modules by their names."""

    def __init__(self, model: DINO, trainable: set[str], trace: Trace) -> None:
        self.trainable, self.trace, self.backbone = trainable, trace, model.backbone
        self.sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}

    def row(self, name: str, what: str, output: tuple[int, ...] | None, modules: Sequence[str], depth: int = 0) -> Part:
        """The row of some modules, children included."""
        inside = {key: size for key, size in self.sizes.items() if under(key, modules)}
        trained = sum(size for key, size in inside.items() if key in self.trainable)
        return Part(name, what, output, sum(inside.values()), trained, self.trace.flops_of(modules), depth)

    def backbone_stages(self) -> Iterator[Part]:
        """Stem and stages of a ResNet, Swin or ConvNeXt."""
        names = {name for name, _ in self.backbone.named_children()}
        if "layer1" in names:
            yield self._resnet_stem()
            homes = [f"layer{i + 1}" for i in range(4)]
        elif "patch_embed" in names:
            row = self.row("patches", "of 4x4 pixels", None, ["backbone.patch_embed"], 1)
            yield dataclasses.replace(row, output=self._map_shape("backbone.patch_embed"))
            homes = [f"layers.{i}.blocks" for i in range(4)]
        else:
            homes = [f"stages.{i}" for i in range(4)]
        modules = dict(self.backbone.named_modules())
        for i, home in enumerate(home for home in homes if home in modules):
            blocks = list(modules[home].children())
            kind = {"BasicBlock": "basic block", "Bottleneck": "bottleneck"}.get(type(blocks[0]).__name__, "block")
            modules_of_stage = (home.removesuffix(".blocks"), f"downsample_layers.{i}", f"norm{i}")
            prefixes = [f"backbone.{name}" for name in modules_of_stage]
            row = self.row(f"stage {i}", f"{_counted(len(blocks), kind)}, stride {4 * 2**i}", None, prefixes, 1)
            output = self._map_shape(f"backbone.{home}.{len(blocks) - 1}")
            yield dataclasses.replace(row, output=output, what=row.what + ("" if row.trainable else ", frozen"))

    def _resnet_stem(self) -> Part:
        row = self.row("stem", "7x7 convolution and pooling", None, ["backbone.conv1", "backbone.bn1"], 1)
        stem = self.backbone.get_submodule("conv1")
        assert isinstance(stem, nn.Conv2d)
        output = (stem.out_channels, *self._map_shape("backbone.layer1.0")[1:])
        frozen = "" if row.trainable else ", frozen"
        return dataclasses.replace(row, output=output, what=row.what + frozen)

    def _map_shape(self, name: str) -> tuple[int, ...]:
        """[channels, H, W] of what a module of the backbone returned; Swin has the channels last."""
        shape = self.trace.shapes[name][1:]
        return (shape[2], *shape[:2]) if hasattr(self.backbone, "patch_embed") else shape
