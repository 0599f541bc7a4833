"""Multi-route training: two more passes through the decoder, one to many (Mr.DETR, arXiv 2412.10028).

Switch `multi_route`. Three routes share the decoder's layers and heads, and see the same denoising queries; inference
has the primary route alone, with the same bits as without the switch.

    primary           self-attention -> cross-attention -> feed-forward network   one to one
    feed_forward      self-attention -> cross-attention -> two linear layers*     one to many   (training)
    instructed*       self-attention -> cross-attention -> feed-forward network   one to many   (training)

* stands for weights of the route's own. Self-attention of `instructed` has 10 more keys and values per layer, its
learned tokens, which its matching queries attend to and denoising queries do not, and its own layer norm after. Its
queries come from encoder heads of its own, matched one to one, with the content of the primary ones.

Both assign by the score S = 0.8 IoU + 0.2 p, p the probability of the target's class. A query is positive for the
target of its highest score if that is at least 0.4, or if the query is the best one of any target. A target with c
positive queries is matched with the min(c, 6) of its highest scores. Losses are divided by 3 times the number of boxes.

As in the public code, a query can thereby be matched with two targets; it then has both classes, where theirs keeps
one of them. Theirs limits the positives of an image to 225 drawn at random, which is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino.model.boxes import cxcywh_to_xyxy, iou_and_giou
from dino.model.config import ModelConfig
from dino.model.layers import MLP, FeedForward
from dino_kernels.targets import PackedTargets

Tokens = tuple[Tensor, Tensor]
MOST, LEAST_SCORE, IOU_SHARE, BOXES = 6, 0.4, 0.8, 3
TOKENS = 10


class RouteLayer(nn.Module):
    """What a route replaces in a decoder layer: the feed-forward network, or what self-attention needs."""

    def __init__(self, config: ModelConfig, *, instructed: bool) -> None:
        super().__init__()
        channels = config.hidden_dim
        self.instructed = instructed
        if instructed:
            self.content = nn.Parameter(torch.empty(TOKENS, channels))
            self.position = nn.Parameter(torch.empty(TOKENS, channels))
            self.norm = nn.LayerNorm(channels)
        else:
            self.linear1 = nn.Linear(channels, config.ffn_dim)
            self.linear2 = nn.Linear(config.ffn_dim, channels)

    def parts(self, norm: nn.Module, ffn: FeedForward) -> tuple[Tokens | None, nn.Module, Callable[[Tensor], Tensor]]:
        """Return the tokens (keys and values, [10, C] each), norm and feed-forward network, made of the primary's."""
        if self.instructed:
            return (self.content + self.position, self.content), self.norm, ffn
        return None, norm, partial(self._feed_forward, norm=ffn.norm)

    def _feed_forward(self, states: Tensor, norm: nn.LayerNorm) -> Tensor:
        rows = states.flatten(0, -2)
        return norm(rows + self.linear2(self.linear1(rows).relu_())).view_as(states)


class Routes(nn.Module):
    """Weights of the two routes, and the encoder heads of the instructed one unless queries are static."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels, layers = config.hidden_dim, range(config.num_decoder_layers)
        self.num_queries, self.content = config.num_queries, None  # it is that of query selection
        self.feed_forward = nn.ModuleList(RouteLayer(config, instructed=False) for _ in layers)
        self.instructed = nn.ModuleList(RouteLayer(config, instructed=True) for _ in layers)
        self.has_heads = config.query_selection != "static"
        if self.has_heads:
            self.class_head = nn.Linear(channels, config.num_classes)
            self.box_head = MLP(channels, channels, 4, 3)


def instructed_mask(blocked: Tensor | None, num_denoising: int) -> Tensor | None:
    """Return the attention mask [Q, Q] with columns of the tokens before it, blocked for denoising queries."""
    if blocked is None:
        return None
    is_denoising = torch.arange(len(blocked), device=blocked.device) < num_denoising
    return torch.cat([is_denoising[:, None].expand(-1, TOKENS), blocked], 1)


@torch.no_grad()
def assign_one_to_many(
    logits: Tensor,  # [sets, B, Q, C]
    boxes_cxcywh: Tensor,  # [sets, B, Q, 4]
    targets: PackedTargets,
) -> Tensor:
    """Return the queries of each target, [sets, N * 6] with -1 where there are fewer, without synchronising."""
    assert targets.boxes_cxcywh is not None  # pack() refuses
    image, queries = targets.image_of_each(), logits.shape[2]
    is_target = image < targets.num_images
    image, label = image.clamp(max=targets.num_images - 1), targets.labels.clamp(0, logits.shape[-1] - 1)
    probability = logits.float()[:, image, :, label].transpose(0, 1).sigmoid()  # [sets, N, Q]
    true = cxcywh_to_xyxy(targets.boxes_cxcywh)[:, None]
    overlap = iou_and_giou(cxcywh_to_xyxy(boxes_cxcywh.float())[:, image], true)[0]
    score = IOU_SHARE * overlap + (1 - IOU_SHARE) * probability
    score = score.where(score.isfinite() & is_target[:, None], -1)  # of none

    each = image[:, None].expand_as(score)
    per_query = score.new_full(logits.shape[:3], -1)
    highest = per_query.scatter_reduce(1, each, score, "amax")  # [sets, B, Q]
    number = torch.arange(len(image), device=image.device)[:, None]
    candidates = number.where(score == highest[:, image], len(image))
    owner = torch.full_like(highest, len(image), dtype=torch.int64).scatter_reduce(1, each, candidates, "amin")
    best = torch.zeros_like(score).scatter(-1, score.argmax(-1, keepdim=True), 1.0) * (score >= 0)
    is_best = per_query.scatter_reduce(1, each, best, "amax") > 0
    positive = (highest >= LEAST_SCORE) | is_best
    count = ((owner[:, image] == number) & positive[:, image]).sum(-1, keepdim=True)
    top = score.topk(min(MOST, queries), -1)
    exists = (torch.arange(top.values.shape[-1], device=image.device) < count) & (top.values >= 0)
    return F.pad(top.indices.where(exists, -1), (0, MOST - top.values.shape[-1]), value=-1).flatten(1)
