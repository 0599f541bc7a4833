"""DINO: DETR with improved denoising anchor boxes (arXiv 2203.03605)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dino.model.backbones import build_backbone
from dino.model.config import ModelConfig
from dino.model.decoder import Decoder, look_forward_once, look_forward_twice
from dino.model.denoising import Denoising, DenoisingQueries, Noise
from dino.model.encoder import Encoder, Memory
from dino.model.initialize import initialize
from dino.model.neck import Neck
from dino.model.outputs import DenoisingOutput, DetectionOutput
from dino.model.query_selection import Queries, QuerySelection
from dino.model.successors.hybrid import HybridQueries
from dino.model.successors.multi_route import Routes, instructed_mask
from dino.model.targets import Targets, pack


class DINO(nn.Module):
    """The detector. `config` selects which of the paper's contributions are active."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(
            config.backbone,
            config.backbone_levels,
            gradient_checkpointing=config.gradient_checkpointing,
            freeze_stem=config.freeze_stem,
        )
        self.neck = Neck(self.backbone.channels, config.hidden_dim, config.num_levels)
        self.encoder = Encoder(config)
        self.query_selection = QuerySelection(config)
        self.decoder = Decoder(config)
        self.denoising = Denoising(config) if config.denoising != "off" else None
        self.hybrid = HybridQueries(config) if config.hybrid_queries > 0 else None
        self.routes = Routes(config) if config.multi_route else None
        initialize(self.encoder, self.query_selection, self.decoder, self.denoising, self.hybrid, self.routes)

    def forward(
        self,
        images: Tensor,  # [B, 3, H, W] normalised, zero-padded at the bottom and the right
        mask: Tensor,  # [B, H, W] bool, True = padding
        targets: Targets | None = None,
        *,
        query_indices: Tensor | None = None,  # [B, num_queries]
        denoising_noise: Noise | None = None,
    ) -> DetectionOutput:
        """Return the predictions of every decoder layer, of the encoder, and of denoising in training.

        Args:
            images: the batch.
            mask: its padding.
            targets: ground truth for denoising, read in training: packed, or per image `boxes` [T, 4] cxcywh in 0..1
                and `labels` [T].
            query_indices: tokens that become queries, in place of the best-scored ones.
            denoising_noise: recorded random numbers for denoising; see `dino.model.denoising.Noise`.

        Raises:
            ValueError, TypeError: shapes that do not fit together; malformed targets.
        """
        _check(images, mask)
        truth = None if targets is None else pack(targets, images.device, self.config.num_classes)
        if truth is not None and truth.num_images != len(images):
            raise ValueError(
                f"targets must have one entry per image, got {truth.num_images} for {len(images)} images. An image "
                f"without objects has an entry of no boxes."
            )
        images = images.to(next(self.parameters()).dtype)  # float64 under torch.set_default_dtype
        memory = self.encoder(*self.neck(self.backbone(images), mask))
        queries = self.query_selection(memory, query_indices)
        denoising = None
        if self.training and truth is not None and self.denoising is not None:
            denoising = self.denoising(truth, denoising_noise)

        # Both branches share the decoder and its heads: they are one sequence of queries.
        content, anchors, blocked = _join(denoising, queries)
        outputs = _split(*self._decode(content, anchors, memory, blocked), denoising, queries)
        if self.training and self.hybrid is not None:
            others = self.query_selection(memory, other=self.hybrid)
            outputs.hybrid = _split(*self._decode(others.content, others.anchors, memory, related=False), None, others)
        if self.training and self.routes is not None:
            outputs.routes = tuple(self._along_routes(self.routes, memory, queries, denoising))
        return outputs

    def _along_routes(
        self, routes: Routes, memory: Memory, queries: Queries, denoising: DenoisingQueries | None
    ) -> Iterator[DetectionOutput]:
        """Yield the predictions of the routes of `multi_route`."""
        same = Queries(queries.content, queries.anchors)
        own = self.query_selection(memory, other=routes) if routes.has_heads else same
        for layers, each in ((routes.feed_forward, same), (routes.instructed, own)):
            content, anchors, blocked = _join(denoising, each)
            if layers is routes.instructed:
                blocked = instructed_mask(blocked, content.shape[1] - each.content.shape[1])
            predicted = self._decode(content, anchors, memory, blocked, related=False, route=layers)
            yield _split(*predicted, denoising, each)

    def _decode(
        self, content: Tensor, anchors: Tensor, memory: Memory, blocked: Tensor | None = None, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Return logits [layers, B, Q, C] and boxes [layers, B, Q, 4] of the decoder's queries."""
        states, references = self.decoder(content, anchors, memory, blocked, **options)
        look_forward = look_forward_twice if self.config.look_forward == "twice" else look_forward_once
        boxes = look_forward(self.decoder.box_head, states, references)
        return self.decoder.class_head(states), boxes


def _check(images: Tensor, mask: Tensor) -> None:
    for name, value in (("images", images), ("mask", mask)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}. Call model(images, mask, targets).")
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be [B, 3, H, W], got {list(images.shape)}. Add the batch dimension.")
    expected = [images.shape[0], *images.shape[2:]]
    if list(mask.shape) != expected or mask.dtype != torch.bool:
        raise ValueError(
            f"mask must be bool {expected}, got {mask.dtype} {list(mask.shape)}. It is True on the padding of `images`."
        )


def _join(denoising: DenoisingQueries | None, queries: Queries) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return content, anchors and attention mask of the denoising queries followed by the matching ones."""
    if denoising is None:
        return queries.content, queries.anchors, None
    content = torch.cat([denoising.content.to(queries.content.dtype), queries.content], 1)
    anchors = torch.cat([denoising.anchors, queries.anchors], 1)
    return content, anchors, denoising.blocked(queries.content.shape[1])


def _split(logits: Tensor, boxes: Tensor, denoising: DenoisingQueries | None, queries: Queries) -> DetectionOutput:
    """Separate the predictions of the two branches."""
    size = 0 if denoising is None else denoising.layout.num_queries
    return DetectionOutput(
        logits=logits[:, :, size:],
        boxes_cxcywh=boxes[:, :, size:],
        encoder_logits=queries.encoder_logits,
        encoder_boxes_cxcywh=queries.encoder_boxes_cxcywh,
        selected_indices=queries.indices,
        proposals_cxcywh=queries.proposals_cxcywh,
        denoising=None
        if denoising is None
        else DenoisingOutput(
            logits[:, :, :size], boxes[:, :, :size], denoising.layout, denoising.target, denoising.in_group
        ),
    )
