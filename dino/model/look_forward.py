"""Box refinement from layer to layer (paper, section 3.5)."""

from __future__ import annotations

from torch import Tensor, nn

from dino.model.boxes import inverse_sigmoid


def refine(
    box_head: nn.Module,
    states: Tensor,  # [..., C]
    reference_cxcywh: Tensor,  # [..., 4]
) -> Tensor:
    """The reference boxes moved by what the head predicts, in logit space and float32; [..., 4] cxcywh."""
    return (box_head(states).float() + inverse_sigmoid(reference_cxcywh)).sigmoid()


def look_forward_twice(
    box_head: nn.Module,
    states: Tensor,  # [layers, B, Q, C], normalised
    references_cxcywh: Tensor,  # [layers, B, Q, 4], with the gradient of the layer before
) -> Tensor:
    """Predicted boxes of all layers, [layers, B, Q, 4] cxcywh.

    Each layer refines the boxes of the layer before *with their gradient*, so that its loss trains both layers'
    refinement; the anchor that the layer itself looked at is a constant.
    """
    return refine(box_head, states, references_cxcywh)


def look_forward_once(box_head: nn.Module, states: Tensor, references_cxcywh: Tensor) -> Tensor:
    """As `look_forward_twice`, but a layer's loss stops at the boxes of the layer before (Deformable DETR)."""
    return refine(box_head, states, references_cxcywh.detach())
