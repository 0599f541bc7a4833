"""DINO: DETR with improved denoising anchor boxes (arXiv 2203.03605)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dino.model.backbones import build_backbone
from dino.model.config import ModelConfig
from dino.model.decoder import Decoder
from dino.model.denoising import Denoising, DenoisingQueries, Noise, contrastive_denoising
from dino.model.encoder import Encoder
from dino.model.initialize import initialize
from dino.model.look_forward import look_forward_once, look_forward_twice
from dino.model.neck import Neck
from dino.model.outputs import DenoisingOutput, DetectionOutput
from dino.model.query_selection import Queries, QuerySelection, mixed_query_selection, static_queries
from dino.model.targets import Targets, num_images


class DINO(nn.Module):
    """The detector. Which of the paper's contributions it has is said by its `config`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(
            config.backbone, config.backbone_levels, gradient_checkpointing=config.gradient_checkpointing
        )
        self.neck = Neck(self.backbone.channels, config.hidden_dim, config.num_levels)
        self.encoder = Encoder(config)
        self.query_selection = QuerySelection(config)
        self.decoder = Decoder(config)
        self.denoising = Denoising(config) if config.denoising != "off" else None
        initialize(self.encoder, self.query_selection, self.decoder, self.denoising)

    def forward(
        self,
        images: Tensor,  # [B, 3, H, W] normalised, zero-padded at the bottom and the right
        mask: Tensor,  # [B, H, W] bool, True = padding
        targets: Targets | None = None,
        *,
        query_indices: Tensor | None = None,  # [B, num_queries]
        denoising_noise: Noise | None = None,
    ) -> DetectionOutput:
        """Detect.

        Args:
            images: the batch.
            mask: its padding.
            targets: what denoising learns from in training: packed, or per image `boxes` [T, 4] cxcywh in 0..1 and
                `labels` [T].
            query_indices: tokens that become queries, in place of the best-scored ones.
            denoising_noise: recorded random numbers for denoising; see `dino.model.denoising.Noise`.

        Raises:
            ValueError: shapes that do not fit together.
        """
        self._check(images, mask, targets)
        maps, masks = self.neck(self.backbone(images), mask)
        memory = self.encoder(maps, masks)
        if self.config.query_selection == "static":
            queries = static_queries(self.query_selection, memory)
        else:
            queries = mixed_query_selection(self.query_selection, memory, query_indices)
        denoising = None
        if self.training and targets is not None and self.denoising is not None:
            denoising = contrastive_denoising(self.denoising, targets, denoising_noise)

        # Both branches go through the same decoder and the same heads, as one sequence of queries.
        content, anchors, blocked = _join(denoising, queries)
        states, references = self.decoder(content, anchors, memory, blocked)
        look_forward = look_forward_twice if self.config.look_forward == "twice" else look_forward_once
        boxes = look_forward(self.decoder.box_head, states, references)
        logits = self.decoder.class_head(states)
        return _split(logits, boxes, denoising, queries)

    def _check(self, images: Tensor, mask: Tensor, targets: Targets | None) -> None:
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be [B, 3, H, W], got {list(images.shape)}")
        if mask.shape != (images.shape[0], *images.shape[2:]) or mask.dtype != torch.bool:
            raise ValueError(
                f"mask must be bool {[images.shape[0], *images.shape[2:]]}, True on padding, got {mask.dtype} "
                f"{list(mask.shape)}"
            )
        if targets is not None and num_images(targets) != len(images):
            raise ValueError(
                f"targets must have one entry per image, got {num_images(targets)} for {len(images)} images"
            )


def _join(denoising: DenoisingQueries | None, queries: Queries) -> tuple[Tensor, Tensor, Tensor | None]:
    """Content, anchors and attention mask of the denoising queries followed by the matching ones."""
    if denoising is None:
        return queries.content, queries.anchors, None
    content = torch.cat([denoising.content.to(queries.content.dtype), queries.content], 1)
    anchors = torch.cat([denoising.anchors, queries.anchors], 1)
    return content, anchors, denoising.blocked(queries.content.shape[1])


def _split(logits: Tensor, boxes: Tensor, denoising: DenoisingQueries | None, queries: Queries) -> DetectionOutput:
    """The predictions of the two branches, apart."""
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
        else DenoisingOutput(logits[:, :, :size], boxes[:, :, :size], denoising.layout),
    )
