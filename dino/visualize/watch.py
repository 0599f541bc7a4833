"""Record a model's forward pass on one image: selected anchors, sampling points, boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dino.data import pad_images
from dino.inference.detector import Detector
from dino.model.outputs import DetectionOutput
from dino_kernels.nn import MSDeformAttn


@dataclass(frozen=True)
class Attention:
    """Samples of one deformable attention: M heads with K samples each, level by level."""

    locations: Tensor  # [Q, M, K, 2] x, y in 0..1 of the image
    weights: Tensor  # [Q, M, K], their sum over K is 1
    levels: Tensor  # [K] the level of each sample
    references: Tensor  # [Q, 2] x, y or [Q, 4] cxcywh, at the first level


@dataclass
class Watched:
    """The forward pass on one image. Tensors are on the CPU, without the batch dimension."""

    outputs: DetectionOutput
    """The model's output with the batch dimension, on its device."""
    anchors_cxcywh: Tensor = field(default_factory=lambda: torch.zeros(0, 4))  # [Q, 4] input of the decoder
    level_shapes: list[tuple[int, int]] = field(default_factory=list)
    """(H, W) of each level."""
    strides: list[int] = field(default_factory=list)
    """Stride of each level, in pixels of the model's input."""
    attentions: dict[str, Attention] = field(default_factory=dict)
    """By the module's name, such as "decoder.layers.0.cross_attn"."""


@torch.no_grad()
def watch(detector: Detector, image: Image.Image, attentions: Sequence[str] = ()) -> Watched:
    """Run a detector on an RGB image and record its internals.

    Args:
        attentions: names of the `MSDeformAttn` modules whose samples to record.

    Raises:
        ValueError: a name is not one of these modules.
    """
    modules = {n: module for n, module in detector.model.named_modules() if isinstance(module, MSDeformAttn)}
    unknown = [name for name in attentions if name not in modules]
    if unknown:
        raise ValueError(f"attentions must be among {list(modules)}, got {unknown}")
    nothing = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    images, mask = pad_images([detector.transform(image, *nothing)[0]])
    seen: dict[str, Any] = {}
    looked: dict[str, Attention] = {}

    def keep_anchors(module: Any, arguments: tuple[Any, ...]) -> None:
        seen["anchors"] = arguments[1][0].float().sigmoid().cpu()
        seen["shapes"] = list(arguments[2].levels.spatial_shapes)

    def keep_attention(name: str) -> Any:
        def hook(module: MSDeformAttn, arguments: tuple[Any, ...]) -> None:
            looked[name] = attention_of(module, *arguments[:2], level_shapes=arguments[3])

        return hook

    model = detector.model
    hooks = [model.decoder.register_forward_pre_hook(keep_anchors)]
    hooks += [modules[name].register_forward_pre_hook(keep_attention(name)) for name in attentions]
    try:
        outputs = model(images.to(detector.device), mask.to(detector.device))
    finally:
        for hook in hooks:
            hook.remove()
    height = images.shape[2]
    strides = [2 ** round(torch.log2(torch.tensor(height / rows)).item()) for rows, _ in seen["shapes"]]
    return Watched(outputs, seen["anchors"], seen["shapes"], strides, looked)


def attention_of(
    module: MSDeformAttn,
    query: Tensor,  # [1, Q, C]
    reference_points: Tensor,  # [1, Q, L, 2] or [1, Q, L, 4]
    level_shapes: Any,  # [L] (H, W)
) -> Attention:
    """Return the samples of a deformable attention for its inputs, as its kernel computes them."""
    shapes = [(int(height), int(width)) for height, width in level_shapes]
    points = module.n_points if isinstance(module.n_points, list) else [module.n_points] * module.n_levels
    levels = torch.repeat_interleave(torch.arange(len(points)), torch.tensor(points)).to(query.device)
    heads = module.n_heads
    offsets = module.sampling_offsets(query)[0].float().unflatten(-1, (heads, -1, 2))  # [Q, M, K, 2]
    weights = module.attention_weights(query)[0].float().unflatten(-1, (heads, -1)).softmax(-1)
    reference = reference_points[0].float()[:, levels][:, None]  # [Q, 1, K, 2 or 4]
    if reference.shape[-1] == 2:
        sizes = torch.tensor([(width, height) for height, width in shapes], device=query.device)
        locations = reference + offsets / sizes[levels]
    else:
        counts = torch.tensor(points, device=query.device)[levels][:, None]
        locations = reference[..., :2] + offsets / counts * reference[..., 2:] * 0.5
    return Attention(locations.cpu(), weights.cpu(), levels.cpu(), reference_points[0, :, 0].float().cpu())
