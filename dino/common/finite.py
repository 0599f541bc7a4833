"""Find numbers that are not finite, and describe where they come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from dino.common.text import counted, shorten


class NotFiniteError(ValueError):
    """Numbers of a model that are NaN or infinite. The message names them and what to try."""


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Name the tensors that hold NaN or infinite numbers, with the count of these, or return None."""
    # Of a sharded tensor, this process's part: the other processes may be elsewhere.
    tensors = [(name, getattr(tensor, "to_local", lambda tensor=tensor: tensor)()) for name, tensor in tensors]
    # One sum of flags per tensor, all read at once: a GPU waits only once.
    counts = [(~torch.isfinite(tensor)).sum() for _, tensor in tensors]
    bad = [
        f"{name} ({count:,} of {counted(tensor.numel(), 'number')})"
        for (name, tensor), count in zip(tensors, torch.stack(counts).tolist() if counts else [], strict=True)
        if count
    ]
    return shorten(bad, 3) or None


def require_finite_detections(found: Mapping[str, Tensor], model: nn.Module, *, image: str, amp: str) -> None:
    """Raise if a detection of an image has a score or box that is not finite.

    Args:
        found: one image's result of `postprocess`.
        model: the model that made it, whose weights are searched for the reason.
        image: the image in words, for the message.
        amp: the precision that the model ran in.

    Raises:
        NotFiniteError: a score or a coordinate is NaN or infinite.
    """
    if torch.isfinite(found["scores"]).all() & torch.isfinite(found["boxes"]).all():  # one wait for a GPU
        return
    weights = not_finite(model.state_dict().items())
    if weights is not None:
        reason = f"Its weights are not, either: {weights}. Use an earlier checkpoint, or train with a lower --lr"
    elif amp != "off":
        options = "bf16 or float32" if amp == "fp16" else "float32"
        reason = f"The weights are finite: numbers overflow in {amp}. Run it in {options} (--dtype; in training --amp)"
    else:
        reason = "The weights are finite, but too large. Use an earlier checkpoint, or train with a lower --lr"
    raise NotFiniteError(f"{image}: the model's detections are not finite (NaN or infinite). {reason}")
