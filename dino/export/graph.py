"""From a model to an exported program of PyTorch, from which all formats are made."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from dino.export.attention import Form, replace_attention
from dino.export.description import Description
from dino.model.backbones.convnext import ConvNeXt
from dino.model.backbones.resnet import Convolve, ResNet
from dino.model.config import ModelConfig
from dino.model.dino import DINO
from dino.model.postprocess import best_pairs
from dino.model.query_selection import QuerySelection

LOGITS, BOXES, SCORES, LABELS, SELECTED = "logits", "boxes", "scores", "labels", "selected"


def input_names(description: Description) -> list[str]:
    """Return the names of a file's inputs."""
    return ["images", "mask"] if description.detections is None else ["images", "mask", "sizes"]


def output_names(description: Description) -> list[str]:
    """Return the names of a file's outputs."""
    return [LOGITS, BOXES] if description.detections is None else [SCORES, LABELS, BOXES]


class ExportedGraph(nn.Module):
    """What a file computes.

    Args:
        model: a model prepared by `prepared`.
        description: says which outputs there are.
        with_selected: return the selected tokens, too: for the check of a file.
    """

    def __init__(self, model: DINO, description: Description, *, with_selected: bool) -> None:
        super().__init__()
        self.model = model
        self.detections = description.detections
        self.with_selected = with_selected

    def forward(
        self,
        images: Tensor,  # [B, 3, H, W] float32, normalised, zeros for padding
        mask: Tensor,  # [B, H, W] bool, True = padding
        sizes: Tensor | None = None,  # [B, 2] int64 (height, width) of the original images, for detections
    ) -> tuple[Tensor, ...]:
        """Return float32 logits [B, Q, C] and boxes [B, Q, 4] cxcywh in 0..1 of the image without its padding.

        With detections, N of each image: scores [B, N] in descending order, labels [B, N] int64, and boxes [B, N, 4]
        xyxy in pixels of the original images.
        """
        outputs = self.model(images, mask)
        logits, boxes = outputs.logits[-1].float(), outputs.boxes_cxcywh[-1].float()
        results = (logits, boxes) if sizes is None else self._detections(logits, boxes, sizes)
        return (*results, outputs.selected_indices) if self.with_selected else results

    def _detections(self, logits: Tensor, boxes: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Do as `dino.model.postprocess`, on a whole batch."""
        assert self.detections is not None
        scores, labels, corners = best_pairs(logits, boxes, self.detections)
        return scores.sigmoid(), labels, corners * sizes.flip(1).repeat(1, 2)[:, None].float()


def prepared(model: DINO, form: Form, half: bool) -> DINO:
    """Return a copy of a model, on the CPU and in evaluation mode, with the same detections and fewer operations."""
    prepared = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    if isinstance(prepared.backbone, ResNet):
        _fold(prepared.backbone)
    replace_attention(prepared, form)
    if prepared.config.query_selection != "static":
        prepared.query_selection.select = _select(prepared.query_selection)  # type: ignore[method-assign]
    return prepared.half() if half else prepared


def _fold(backbone: ResNet) -> None:
    """Make frozen normalisation a part of the convolutions' weights, as each forward pass of the model does."""
    folded = Convolve(backbone).folded
    for module in list(backbone.modules()):
        names = list(dict(module.named_children()))
        for name, norm in itertools.pairwise(names):
            convolution = module.get_submodule(name)
            if convolution in folded:
                weight, bias, *_ = folded[convolution]
                convolution.weight = nn.Parameter(weight, requires_grad=False)
                convolution.bias = nn.Parameter(bias, requires_grad=False)
                setattr(module, norm, nn.Identity())


def _select(selection: QuerySelection) -> Callable[[Tensor], Tensor]:
    """Return `QuerySelection.select` for images of at least as many tokens as queries: their number is then fixed."""

    def select(tokens: Tensor) -> Tensor:
        scores = selection.class_head(selection.norm(selection.project(tokens))).amax(-1)
        torch._check(scores.shape[1] >= selection.num_queries)
        return scores.topk(selection.num_queries, 1).indices

    return select


def least_side(model: DINO) -> int:
    """Return the smallest height and width for which each level has two rows, and there are as many tokens as queries.

    Exporters treat sizes of 1 apart, and TensorRT's TopK needs a fixed number.
    """
    side = 2
    while (shapes := level_sides(model, side))[-1] < 2 or sum(s * s for s in shapes) < _tokens(model.config):
        side += 1
    return side


def _tokens(config: ModelConfig) -> int:
    return 0 if config.query_selection == "static" else config.num_queries


def level_sides(model: DINO, side: int) -> list[int]:
    """Return the height of each level for images of a height."""
    rounded = math.floor if isinstance(model.backbone, ConvNeXt) else math.ceil
    sides = [rounded(side / stride) for stride in model.backbone.strides]
    while len(sides) < model.config.num_levels:
        sides.append(math.ceil(sides[-1] / 2))
    return sides


def trace(model: DINO, form: Form, description: Description, *, with_selected: bool = False) -> ExportedProgram:
    """Return the exported program of a model: float32 inputs and outputs; batch, height and width are free.

    Args:
        model: is not changed.
        form: of deformable attention.
        description: what to export.
        with_selected: the last output is the selected tokens [B, Q], int64, unless queries are static.
    """
    size = description.size
    # Sizes that differ in every dimension and level, of a batch of 2: an example of 1 would fix it.
    least = description.least_side
    height, width = size or (least + 32, least + 96)
    example: list[Tensor] = [torch.zeros(2, 3, height, width), torch.zeros(2, height, width, dtype=torch.bool)]
    batch = Dim("batch", min=1)
    sides = {} if size else {"height": Dim("height", min=least), "width": Dim("width", min=least)}
    shapes: list[dict[int, Any]] = [{0: batch}, {0: batch}]
    if sides:
        shapes = [{0: batch, 2: sides["height"], 3: sides["width"]}, {0: batch, 1: sides["height"], 2: sides["width"]}]
    if description.detections is not None:
        example.append(torch.ones(2, 2, dtype=torch.int64))
        shapes.append({0: batch})
    selected = with_selected and description.model.query_selection != "static"
    graph = ExportedGraph(prepared(model, form, description.half), description, with_selected=selected).eval()
    names = input_names(description)
    with torch.no_grad():
        return torch.export.export(
            graph, tuple(example), dynamic_shapes=dict(zip(names, shapes, strict=True)), strict=False
        )
