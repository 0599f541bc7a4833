"""The part of a picture that a drawing shows, faded, with pixels for places in it."""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from dino.inference.draw import Box, clip_box, line_width

GROUND = (110, 110, 110)
_LEAST_SHARE = 0.3


class View:
    """A picture, or a part of it, at a size that has room for marks, with less colour and contrast under them.

    Args:
        picture: in RGB.
        around: points [N, 2] in 0..1 of the picture; only the part around them is shown, but at least 30 % of each
            side, so that one sees where it is. None shows the whole picture.
    """

    def __init__(self, picture: Image.Image, around: Tensor | None = None) -> None:
        self.corner, self.share = torch.zeros(2), 1.0
        if around is not None:
            low, high = around.clamp(0, 1).aminmax(dim=0)
            self.share = min(1.0, max(_LEAST_SHARE, 1.3 * float((high - low).max())))
            self.corner = ((low + high) / 2 - self.share / 2).clamp(0, 1 - self.share)
        self.size = display_size(picture.size)
        left, top = (self.corner * torch.tensor(picture.size)).tolist()
        cut = (left, top, left + self.share * picture.width, top + self.share * picture.height)
        self.image = _faded(picture.resize(self.size, Image.Resampling.BICUBIC, box=cut))
        self.pen = ImageDraw.Draw(self.image, "RGBA")
        self.line = line_width(self.size)

    def points(self, points: Tensor) -> Tensor:
        """Pixels [..., 2] of points [..., 2] in 0..1 of the picture."""
        return (points - self.corner) * torch.tensor(self.size) / self.share

    def box(self, box_xyxy: Tensor) -> Box | None:
        """Pixels of a box [4] in 0..1 of the picture, cut at the border; None where it is not seen."""
        return clip_box(self.points(box_xyxy.view(2, 2)).flatten().tolist(), self.size)


def display_size(size: tuple[int, int], least: int = 960, most: int = 1280) -> tuple[int, int]:
    """A picture's (width, height) scaled so that its longer side is within `least` and `most` pixels."""
    longer = max(size)
    scale = min(max(longer, least), most) / longer
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _faded(picture: Image.Image) -> Image.Image:
    grey = Image.blend(picture, picture.convert("L").convert("RGB"), 0.6)
    return Image.blend(grey, Image.new("RGB", picture.size, GROUND), 0.35)
