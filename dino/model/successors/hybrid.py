"""Hybrid branch: more queries in training, each box matched with several (H-DETR, arXiv 2207.13080).

Switch `hybrid_queries` (1,500 in H-DETR and Relation-DETR, arXiv 2407.11699), with `hybrid_copies` (6) queries for each
box. The branch passes through the same decoder and its heads, alone: its queries and those of the model do not attend
to each other. Its anchors are the best-scored tokens by encoder heads of its own, its content is learned, and it has
the losses of the others; their normaliser is 6 times as large, as there are 6 times the boxes. Inference has no branch.

                      +-- query selection --> denoising and 900 queries --+--> one to one --> detections
    image -- encoder -|                                                 decoder
                      +-- own two heads ----> 1,500 queries --------------+--> one to six     (training)
"""

from __future__ import annotations

from torch import nn

from dino.model.config import ModelConfig
from dino.model.layers import MLP


class HybridQueries(nn.Module):
    """Learned content and encoder heads of the second branch, for `QuerySelection.forward`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels = config.hidden_dim
        self.num_queries = config.hybrid_queries
        self.content = nn.Embedding(self.num_queries, channels)
        self.class_head = nn.Linear(channels, config.num_classes)
        self.box_head = MLP(channels, channels, 4, 3)
