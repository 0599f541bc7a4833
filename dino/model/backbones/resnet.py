"""ResNet with torchvision's parameter names and frozen batch normalisation."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino.model.backbones.base import Backbone
from dino.model.foreach import foreach_add, foreach_mul, foreach_rsqrt, foreach_sub
from dino.model.layers import recompute

EPS = 1e-5


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation whose statistics, scale and shift are constants, kept under torchvision's names."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=EPS)


class Convolve:
    """Calls convolutions, each with the normalisation after it, which becomes part of the weights if it is frozen.

    Then no map is read, written and kept for the backward pass twice.
    """

    def __init__(self, root: nn.Module) -> None:
        self.folded: dict[nn.Module, tuple[Tensor, Tensor, Any, Any]] = {}
        pairs = [pair for module in root.modules() for pair in _pairs(module)]
        if not pairs:
            return
        convolutions, norms = zip(*pairs, strict=True)
        scales = foreach_rsqrt(foreach_add([norm.running_var for norm in norms], EPS))
        scales = foreach_mul(scales, [norm.weight for norm in norms])
        shifts = foreach_mul(scales, [norm.running_mean for norm in norms])
        shifts = foreach_sub([norm.bias for norm in norms], shifts)
        weights = ScaleWeights.apply(scales, *(convolution.weight for convolution in convolutions))
        for convolution, weight, bias in zip(convolutions, weights, shifts, strict=True):
            self.folded[convolution] = weight, bias, convolution.stride, convolution.padding

    def __call__(self, convolution: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
        folded = self.folded.get(convolution)
        return norm(convolution(x)) if folded is None else F.conv2d(x, *folded)

    def shortcut(self, downsample: nn.Sequential | None, x: Tensor) -> Tensor:
        """Return what a block adds to its result."""
        if downsample is None:
            return x
        convolution, norm = downsample
        return self(convolution, norm, x)


def _pairs(module: nn.Module) -> list[tuple[nn.Conv2d, FrozenBatchNorm2d]]:
    """Return the convolutions of a module that frozen normalisation follows, and this normalisation."""
    return [
        (convolution, norm)
        for convolution, norm in itertools.pairwise(module.children())
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, FrozenBatchNorm2d)
    ]


class ScaleWeights(torch.autograd.Function):
    """Multiplies the weights of each convolution by a scale per channel: all in one call, forward and backward."""

    @staticmethod
    def forward(ctx: Any, scales: list[Tensor], *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.scales = [scale[:, None, None, None] for scale in scales]
        scaled = tuple(foreach_mul(weights, ctx.scales))
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(new for new, old in zip(scaled, weights, strict=True) if not old.requires_grad))
        return scaled

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        needed = [i for i, gradient in enumerate(gradients) if gradient is not None]
        products = foreach_mul([gradients[i] for i in needed], [ctx.scales[i] for i in needed])
        result: list[Any] = [None] * len(gradients)
        for i, product in zip(needed, products, strict=True):
            result[i] = product
        return None, *result


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = norm(width)
        self.downsample = _downsample(in_channels, width, stride, norm)

    def forward(self, x: Tensor, convolve: Convolve) -> Tensor:
        out = convolve(self.conv1, self.bn1, x).relu_()
        out = convolve(self.conv2, self.bn2, out)
        return (out + convolve.shortcut(self.downsample, x)).relu_()


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride, and 1x1 convolution beside a shortcut."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, norm: type[nn.Module]) -> None:
        super().__init__()
        channels = self.expansion * width
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, channels, 1, bias=False)
        self.bn3 = norm(channels)
        self.downsample = _downsample(in_channels, channels, stride, norm)

    def forward(self, x: Tensor, convolve: Convolve) -> Tensor:
        out = convolve(self.conv1, self.bn1, x).relu_()
        out = convolve(self.conv2, self.bn2, out).relu_()
        out = convolve(self.conv3, self.bn3, out)
        return (out + convolve.shortcut(self.downsample, x)).relu_()


def _downsample(in_channels: int, channels: int, stride: int, norm: type[nn.Module]) -> nn.Sequential | None:
    if stride == 1 and in_channels == channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), norm(channels))


def _run(blocks: Sequence[nn.Module], x: Tensor, convolve: Convolve) -> Tensor:
    for block in blocks:
        x = block(x, convolve)
    return x


class GroupNorm8(nn.GroupNorm):
    """Group normalisation in groups of 8 channels: for networks trained from scratch on small batches."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels // 8, channels)


# name: block, blocks per stage, width of the first stage, normalisation
RESNETS = {
    "resnet18": (BasicBlock, (2, 2, 2, 2), 64, FrozenBatchNorm2d),
    "resnet34": (BasicBlock, (3, 4, 6, 3), 64, FrozenBatchNorm2d),
    "resnet50": (Bottleneck, (3, 4, 6, 3), 64, FrozenBatchNorm2d),
    "resnet101": (Bottleneck, (3, 4, 23, 3), 64, FrozenBatchNorm2d),
    # For the demo: trained from scratch on two CPU cores.
    "resnet_tiny": (BasicBlock, (1, 1, 1, 1), 24, GroupNorm8),
}


class ResNet(Backbone):
    """ResNet as in torchvision (stride in the 3x3 convolution), without the classifier.

    With frozen normalisation the stem and the first stage are constants too, as in DETR, unless `freeze_stem` is False.

    Args:
        name: one of `RESNETS`.
        levels, gradient_checkpointing: as in `Backbone`.
        freeze_stem: whether stem and first stage are constants.
    """

    def __init__(
        self, name: str, levels: Sequence[int], *, gradient_checkpointing: bool = False, freeze_stem: bool = True
    ) -> None:
        block, depths, width, norm = RESNETS[name]
        widths = [block.expansion * width * 2**stage for stage in range(4)]
        super().__init__(widths, levels, gradient_checkpointing)
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = norm(width)
        channels = width
        for stage in range(max(levels) + 1):
            stage_width = width * 2**stage
            blocks = []
            for index in range(depths[stage]):
                blocks.append(block(channels, stage_width, 2 if stage > 0 and index == 0 else 1, norm))
                channels = block.expansion * stage_width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if norm is FrozenBatchNorm2d and freeze_stem:
            for part in (self.conv1, self.layer1):
                part.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return one map [B, channels, ceil(H / stride), ceil(W / stride)] per level."""
        if images.device.type == "cpu" and not torch.is_grad_enabled():  # 0.83 of the time on AVX2
            images = images.contiguous(memory_format=torch.channels_last)
        convolve = Convolve(self)
        x = convolve(self.conv1, self.bn1, images).relu_()
        x = F.max_pool2d(x, 3, 2, 1)
        outputs = []
        for stage in range(max(self.levels) + 1):
            blocks = partial(_run, tuple(self.get_submodule(f"layer{stage + 1}").children()))
            # Whole stages: the input of a block is two thirds of what it keeps.
            x = recompute(blocks, x, convolve) if self.gradient_checkpointing else blocks(x, convolve)
            if stage in self.levels:
                outputs.append(x)
        return outputs
