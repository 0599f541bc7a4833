"""Swin Transformer as detectors use it, with the parameter names of the official checkpoints."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino.model.backbones.base import Backbone
from dino.model.layers import recompute


class Swin(Backbone):
    """Stages of shifted-window attention on maps of any size; each returned map is layer-normalised.

    Args:
        embed_dim: channels of stage 0; each later stage has twice as many.
        depths: blocks per stage.
        heads: attention heads per stage.
        window: side of an attention window, in patches.
        levels, gradient_checkpointing: as in `Backbone`.
        drop_path: probability that the last block's branches are dropped in training; it rises linearly from 0.
    """

    def __init__(
        self,
        embed_dim: int,
        depths: Sequence[int],
        heads: Sequence[int],
        window: int,
        levels: Sequence[int],
        *,
        drop_path: float = 0.2,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__([embed_dim * 2**stage for stage in range(4)], levels, gradient_checkpointing)
        self.patch_embed = PatchEmbedding(embed_dim)
        rates = [drop_path * block / (sum(depths) - 1) for block in range(sum(depths))]
        self.layers = nn.ModuleList(
            Stage(
                embed_dim * 2**stage,
                heads[stage],
                window,
                rates[sum(depths[:stage]) : sum(depths[: stage + 1])],
                merge=stage < max(levels),
                gradient_checkpointing=gradient_checkpointing,
            )
            for stage in range(max(levels) + 1)
        )
        for stage, channels in zip(levels, self.channels, strict=True):
            self.add_module(f"norm{stage}", nn.LayerNorm(channels))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return one map [B, channels, ceil(H / stride), ceil(W / stride)] per level."""
        x = self.patch_embed(images)
        outputs = []
        for index, stage in enumerate(self.layers):
            x = stage(x)
            if index in self.levels:
                outputs.append(self.get_submodule(f"norm{index}")(x).permute(0, 3, 1, 2).contiguous())
            if index < max(self.levels):
                x = self.get_submodule(f"layers.{index}.downsample")(x)
        return outputs


class PatchEmbedding(nn.Module):
    """Patches of 4x4 pixels, zero-padded to whole ones: [B, 3, H, W] to [B, ceil(H / 4), ceil(W / 4), C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, 4, 4)
        self.norm = nn.LayerNorm(channels)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        x = self.proj(F.pad(images, (0, _rounded_up(width, 4) - width, 0, _rounded_up(height, 4) - height)))
        return self.norm(x.permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """Every 2x2 patches become one, zero-padded to even sizes: [B, H, W, C] to [B, ceil(H / 2), ceil(W / 2), 2C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, _rounded_up(width, 2) - width, 0, _rounded_up(height, 2) - height))
        # Down each column of a 2x2 cell, then to the next column: the order of the official weights.
        cells = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
        cells = [cells[:, :, row, :, column] for column in range(2) for row in range(2)]
        return self.reduction(self.norm(torch.cat(cells, -1)))


class Stage(nn.Module):
    """Blocks with plain and shifted windows in turn, on maps [B, H, W, C]."""

    def __init__(
        self,
        channels: int,
        heads: int,
        window: int,
        drop_path: Sequence[float],
        *,
        merge: bool,
        gradient_checkpointing: bool,
    ) -> None:
        super().__init__()
        self.window = window
        self.gradient_checkpointing = gradient_checkpointing
        self.blocks = nn.ModuleList(
            Block(channels, heads, window, shift=window // 2 if index % 2 else 0, drop_path=rate)
            for index, rate in enumerate(drop_path)
        )
        self.downsample = PatchMerging(channels) if merge else None

    def forward(self, x: Tensor) -> Tensor:
        mask = shifted_window_mask(x.shape[1], x.shape[2], self.window, x.device)
        orders: list[tuple[Tensor, Tensor] | None] = [None, None]
        if torch.compiler.is_exporting():
            shifts = (0, self.window // 2)
            orders = [window_order(x.shape[1], x.shape[2], self.window, shift, x.device) for shift in shifts]
        for index, block in enumerate(self.blocks):
            inputs = (x, mask, orders[index % 2])
            x = recompute(block, *inputs) if self.gradient_checkpointing else block(*inputs)
        return x


class Block(nn.Module):
    """Window attention and a two-layer network, each normalised before and added to its input."""

    def __init__(self, channels: int, heads: int, window: int, shift: int, drop_path: float) -> None:
        super().__init__()
        self.shift = shift
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, window)
        self.norm2 = nn.LayerNorm(channels)
        hidden = {"fc1": nn.Linear(channels, 4 * channels), "act": nn.GELU(), "fc2": nn.Linear(4 * channels, channels)}
        self.mlp = nn.Sequential(OrderedDict(hidden))

    def forward(
        self,
        x: Tensor,  # [B, H, W, C]
        shifted_mask: Tensor,  # of `shifted_window_mask`
        order: tuple[Tensor, Tensor] | None = None,  # of `window_order`
    ) -> Tensor:
        x = x + self._drop(self._attend(self.norm1(x), shifted_mask if self.shift > 0 else None, order))
        return x + self._drop(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor, mask: Tensor | None, order: tuple[Tensor, Tensor] | None) -> Tensor:
        batch, height, width, channels = x.shape
        window, shift = self.attn.window, self.shift
        if order is not None:
            # One patch of zeros is all padding.
            tokens = torch.cat([x.flatten(1, 2), x.new_zeros(batch, 1, channels)], 1).index_select(1, order[0])
            tokens = self.attn(tokens.unflatten(1, (-1, window * window)), mask)
            return tokens.flatten(1, 2).index_select(1, order[1]).unflatten(1, (height, width))
        # Padding comes after the normalisation, so padded patches are zeros, not the norm's bias.
        rows, columns = (height + window - 1) // window, (width + window - 1) // window
        x = F.pad(x, (0, 0, 0, columns * window - width, 0, rows * window - height))
        if shift > 0:
            x = x.roll((-shift, -shift), (1, 2))
        x = x.view(batch, rows, window, columns, window, channels).transpose(2, 3)
        x = self.attn(x.reshape(batch, rows * columns, window * window, channels), mask)
        x = x.view(batch, rows, columns, window, window, channels).transpose(2, 3)
        x = x.reshape(batch, rows * window, columns * window, channels)
        if shift > 0:
            x = x.roll((shift, shift), (1, 2))
        return x[:, :height, :width]

    def _drop(self, branch: Tensor) -> Tensor:
        """Apply stochastic depth: zero for some images, larger for the others."""
        if not self.training or self.drop_path == 0:
            return branch
        keep = 1 - self.drop_path
        kept = torch.rand(len(branch), 1, 1, 1, dtype=branch.dtype, device=branch.device) < keep
        return branch * kept / keep


class WindowAttention(nn.Module):
    """Self-attention inside each window, with a learned bias per head and relative position."""

    relative_position_index: Tensor

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        position = torch.cartesian_prod(torch.arange(window), torch.arange(window))  # [window^2, 2] row, column
        offset = position[:, None] - position[None, :] + window - 1
        self.register_buffer("relative_position_index", offset[..., 0] * (2 * window - 1) + offset[..., 1])

    def forward(
        self,
        x: Tensor,  # [B, windows, N, C], N = window^2
        mask: Tensor | None,  # [windows, N, N], added to the logits
    ) -> Tensor:
        """Return [B, windows, N, C]."""
        batch, windows, tokens, channels = x.shape
        qkv = self.qkv(x).view(batch, windows, tokens, 3, self.heads, channels // self.heads)
        query, key, value = qkv.permute(3, 0, 1, 4, 2, 5)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)  # [M, N, N]
        logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1) + bias
        if mask is not None:
            logits = logits + mask[:, None]
        weights = logits.softmax(-1).to(value.dtype)
        return self.proj((weights @ value).transpose(2, 3).flatten(3))


def shifted_window_mask(height: int, width: int, window: int, device: torch.device) -> Tensor:
    """Return what separates the parts of a window that come from opposite edges of the padded map.

    Returns:
        [windows, N, N], N = window^2: 0 where a patch may attend, -100 where not.
    """
    ends: list[Any] = [_rounded_up(size, window) for size in (height, width)]
    by_window = torch.compiler.is_exporting()  # see `window_order`
    positions = [torch.arange(ends[0], device=device)[:, None], torch.arange(ends[1], device=device)]
    if by_window:
        positions, ends = _by_window(height, width, window, device), [_number(end, device) for end in ends]
    rows, columns = (
        (position >= end - window).int() + (position >= end - window // 2).int()
        for position, end in zip(positions, ends, strict=True)
    )
    region = rows * 3 + columns
    if by_window:
        region = region.unflatten(0, (-1, window**2))
    else:
        region = region.unflatten(1, (-1, window)).unflatten(0, (-1, window)).transpose(1, 2).flatten(2).flatten(0, 1)
    return (region[:, None] != region[:, :, None]) * -100.0


def window_order(height: int, width: int, window: int, shift: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return indices that pad a map, shift it and cut it into windows, and those that do the inverse.

    Eager blocks take these steps one by one. In a graph of free size, PyTorch would prove how the sizes of the steps
    compare, which takes more than 8 minutes; two gathers have nothing to compare.

    Returns:
        [(windows + 1) * N], N = window^2: the patch at each place of each window, H * W for padding; the last window is
        not needed. And [H * W]: the place of each patch.
    """
    sides = [_number(size, device) for size in (height, width)]
    padded = [_number(_rounded_up(size, window), device) for size in (height, width)]
    place = _by_window(height, width, window, device)
    row, column = ((position + shift) % size for position, size in zip(place, padded, strict=True))
    patch = torch.where((row < sides[0]) & (column < sides[1]), row * sides[1] + column, sides[0] * sides[1])
    patches = torch.arange(height * width, device=device)
    row, column = (patches // sides[1] - shift) % padded[0], (patches % sides[1] - shift) % padded[1]
    of_window = row // window * (padded[1] // window) + column // window
    return patch, of_window * window**2 + row % window * window + column % window


def _by_window(height: int, width: int, window: int, device: torch.device) -> list[Tensor]:
    """Return the rows and the columns of the padded map's patches, window by window, both [(windows + 1) * N]."""
    columns = _rounded_up(width, window)
    # The last window is of any patches, and nothing reads its results: a graph of many windows refuses a single one.
    place = torch.arange(_rounded_up(height, window) * columns + window**2, device=device)
    of_window, count = place // window**2, _number(columns // window, device)
    row = of_window // count * window + place % window**2 // window
    return [row, of_window % count * window + place % window]


def _number(size: int, device: torch.device) -> Tensor:
    """Return a size as a tensor: PyTorch's exporter to ONNX fails at a remainder by a size that is not one."""
    return torch.full((), size, dtype=torch.int64, device=device)


def _rounded_up(size: int, divisor: int) -> int:
    """Return the next multiple."""
    return (size + divisor - 1) // divisor * divisor
