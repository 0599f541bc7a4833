"""The part of an image that a drawing shows: faded, with pixel positions."""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from dino.inference.legend import GROUND
from dino.inference.outlines import Box, clip_box, line_width
from dino.model.boxes import xyxy_to_cxcywh

_LEAST_SHARE = 0.3


class View:
    """An image or a part of it, scaled to have room for marks, with reduced colour and contrast.

    Args:
        image: in RGB.
        around: points [N, 2] in 0..1 of the image; shows the part around them, at least 30 % of each side. None shows
            the whole image.
        size: (width, height) in pixels; by default 960 to 1280 on the longer side.
    """

    def __init__(self, image: Image.Image, around: Tensor | None = None, size: tuple[int, int] | None = None) -> None:
        self.corner, self.share = torch.zeros(2), 1.0
        if around is not None:
            low, high = around.clamp(0, 1).aminmax(dim=0)
            self.share = min(1.0, max(_LEAST_SHARE, 1.3 * float((high - low).max())))
            self.corner = ((low + high) / 2 - self.share / 2).clamp(0, 1 - self.share)
        self.size = display_size(image.size) if size is None else size
        left, top = (self.corner * torch.tensor(image.size)).tolist()
        cut = (left, top, left + self.share * image.width, top + self.share * image.height)
        self.image = _faded(image.resize(self.size, Image.Resampling.BICUBIC, box=cut))
        self.pen = ImageDraw.Draw(self.image, "RGBA")
        self.line = line_width(self.size)

    def points(self, points: Tensor) -> Tensor:
        """Return the pixels [..., 2] of points [..., 2] in 0..1 of the image."""
        return (points - self.corner) * torch.tensor(self.size) / self.share

    def box(self, box_xyxy: Tensor) -> Box | None:
        """Return the pixels of a box [4] in 0..1 of the image, clipped to the view; None if nothing is left."""
        return clip_box(self.points(box_xyxy.view(2, 2)).flatten().tolist(), self.size)


def target_of(
    boxes_xyxy: Tensor,  # [T, 4] pixels
    labels: Tensor,  # [T]
    size_wh: tuple[int, int],
) -> dict[str, Tensor]:
    """Return the ground truth of an image as the model takes it."""
    return {"boxes": xyxy_to_cxcywh(boxes_xyxy) / boxes_xyxy.new_tensor([*size_wh, *size_wh]), "labels": labels}


def display_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return (width, height) scaled so that the longer side has 960 to 1280 pixels."""
    scale = min(max(*size, 960), 1280) / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _faded(image: Image.Image) -> Image.Image:
    grey = Image.blend(image, image.convert("L").convert("RGB"), 0.6)
    return Image.blend(grey, Image.new("RGB", image.size, GROUND), 0.35)
