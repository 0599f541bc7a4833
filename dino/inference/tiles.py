"""Detect in overlapping tiles of a large image, and merge what a cut made double.

An object in the overlap of two tiles is detected twice, and an object across a border in pieces. Two detections are
taken for one object if this holds:

1. They are of one class and from different tiles. What one tile holds twice, no cut has made double.
2. Each is what its tile would show of the other. A side at a tile's border is cut: the object may continue, as far as
   the other detection does. Any other side is the object's own. So the object according to one detection, cut by the
   other's tile, must overlap the other detection by an IoU of 0.6. Objects that touch fail this: each ends where the
   other begins.
3. Or, instead of 2, one is cut, the other continues across that border, and 80 % of the first lies in the other: a
   detected part of what the tile shows of a large object. Such pairs come after all pairs of 2.

Pairs are taken in falling order of agreement, and a merged object has at most one detection of each tile. So of two
objects that overlap, each takes its own counterpart. The result is the best detection that is not cut, or the box
around all of them, with the best score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dino.inference.boxes import area, intersect, iou

_LEAST_IOU = 0.6
_LEAST_SHARE = 0.8
_SLACK = 0.02  # share of a tile: a box that ends this near a border may be cut by it


def tile_boxes(size_wh: tuple[int, int], tile: int, overlap: float) -> Tensor:
    """Return the tiles [T, 4] of an image as x0, y0, x1, y1 in pixels, row by row.

    Args:
        size_wh: width and height of the image.
        tile: width and height of a tile, or less where the image is smaller.
        overlap: share of a tile that the next one covers again; at least that.
    """
    columns, rows = (_starts(length, tile, overlap) for length in size_wh)
    width, height = (min(tile, length) for length in size_wh)
    return torch.tensor([(x, y, x + width, y + height) for y in rows for x in columns])


def _starts(length: int, tile: int, overlap: float) -> list[int]:
    if length <= tile:
        return [0]
    steps = math.ceil((length - tile) / max(1.0, tile * (1 - overlap)))
    return [round(k * (length - tile) / steps) for k in range(steps + 1)]


@dataclass
class _Views:
    """N detections with what is known of their tiles."""

    boxes: Tensor  # [N, 4] inside their tiles
    cut: Tensor  # [N, 4] bool: the side is at a border of its tile inside the image
    tiles: Tensor  # [N, 4]

    def __getitem__(self, key: Any) -> _Views:
        return _Views(self.boxes[key], self.cut[key], self.tiles[key])


def join_tiles(
    parts: list[dict[str, Tensor]],
    tiles: Tensor,  # [T, 4] as of `tile_boxes`
    lowest: Tensor,  # [C] score of each class's detections
) -> dict[str, Tensor]:
    """Return boxes, scores, labels and the best score of an image from those of its tiles, in pixels of the tiles."""
    best = torch.stack([part["best"] for part in parts]).max()
    for part, tile in zip(parts, tiles, strict=True):
        keep = part["scores"].float() >= lowest[part["labels"]]
        part.update({key: part[key][keep] for key in ("boxes", "scores", "labels")})
        part["boxes"] = part["boxes"] + tile[:2].repeat(2)
    owners = torch.repeat_interleave(torch.tensor([len(part["labels"]) for part in parts]))
    together = [torch.cat([part[key] for part in parts]) for key in ("boxes", "scores", "labels")]
    boxes, scores, labels = merge_tiles(together[0], together[1], together[2], owners, tiles)
    return {"boxes": boxes, "scores": scores, "labels": labels, "best": best}


def merge_tiles(
    boxes_xyxy: Tensor,  # [N, 4] pixels of the image
    scores: Tensor,  # [N]
    labels: Tensor,  # [N]
    owners: Tensor,  # [N] tile of each detection
    tiles: Tensor,  # [T, 4] as of `tile_boxes`
) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes_xyxy, scores and labels of the objects, best first; see the module."""
    tiles = tiles.to(boxes_xyxy.dtype)
    views = _views(boxes_xyxy, owners, tiles)
    groups = [[i] for i in range(len(labels))]
    for _, i, j in sorted(_pairs(views, labels, owners, tiles), reverse=True):
        mine, other = groups[i], groups[j]
        if mine is not other and not {int(owners[k]) for k in mine} & {int(owners[k]) for k in other}:
            mine += other
            for k in other:
                groups[k] = mine
    whole = ~views.cut.any(-1)
    merged = [group for k, group in enumerate(groups) if group[0] == k]
    boxes, best = [], []
    for group in merged:
        best.append(max(group, key=lambda k: float(scores[k])))
        complete = [k for k in group if whole[k]]
        if len(group) == 1:
            boxes.append(boxes_xyxy[group[0]])
        elif complete:
            boxes.append(views.boxes[max(complete, key=lambda k: float(scores[k]))])
        else:
            parts = views.boxes[group]
            boxes.append(torch.cat([parts[:, :2].amin(0), parts[:, 2:].amax(0)]))
    order = scores[best].argsort(descending=True, stable=True)
    return torch.stack(boxes)[order] if boxes else boxes_xyxy, scores[best][order], labels[best][order]


def _views(boxes_xyxy: Tensor, owners: Tensor, tiles: Tensor) -> _Views:
    """Clip the boxes at the borders between tiles, and find the sides that are cut."""
    image = torch.cat([tiles[:, :2].amin(0), tiles[:, 2:].amax(0)])
    own = tiles[owners]
    between = own != image
    slack = _SLACK * (tiles[0, 2:] - tiles[0, :2]).max()
    inward = torch.tensor([1.0, 1.0, -1.0, -1.0])
    clipped = torch.where(between & ((boxes_xyxy - own) * inward < 0), own, boxes_xyxy)
    return _Views(clipped, between & ((clipped - own) * inward <= slack), own)


def _pairs(views: _Views, labels: Tensor, owners: Tensor, tiles: Tensor) -> list[tuple[float, int, int]]:
    """Return (agreement, i, j) of the pairs that may be one object, i in an earlier tile than j."""
    pairs = []
    for tile, overlapping in enumerate(area(intersect(tiles[:, None], tiles)) > 0):
        first = (owners == tile).nonzero()[:, 0]
        second = (overlapping[owners] & (owners > tile)).nonzero()[:, 0]
        agreement = _agreement(views[first][:, None], views[second][None, :])
        agreement[labels[first][:, None] != labels[second]] = -2
        for i, j in (agreement > -2).nonzero().tolist():
            pairs.append((float(agreement[i, j]), int(first[i]), int(second[j])))
    return pairs


def _agreement(a: _Views, b: _Views) -> Tensor:
    """Return how well detections agree: an IoU, a share - 1 for a part of the other, or -2 for different objects."""
    seen_of_a, seen_of_b = intersect(_object(a, b), b.tiles), intersect(_object(b, a), a.tiles)
    alike = torch.minimum(iou(seen_of_a, b.boxes), iou(seen_of_b, a.boxes))
    part = torch.maximum(_share(b, a, seen_of_a), _share(a, b, seen_of_b))
    part = torch.where(part >= _LEAST_SHARE, part - 1, -2.0)
    return torch.where(alike >= _LEAST_IOU, alike, part)


def _object(a: _Views, b: _Views) -> Tensor:
    """Return the objects [..., 4] according to a: its box, whose cut sides reach as far as those of b."""
    around = torch.cat(
        [torch.minimum(a.boxes[..., :2], b.boxes[..., :2]), torch.maximum(a.boxes[..., 2:], b.boxes[..., 2:])], -1
    )
    return torch.where(a.cut, around, a.boxes)


def _share(part: _Views, other: _Views, seen: Tensor) -> Tensor:
    """Return the share of a part inside what its tile sees of the other; 0 if the other does not cross the cut."""
    inward = torch.tensor([1.0, 1.0, -1.0, -1.0])
    crossed = (part.cut & ((other.boxes - part.tiles) * inward < 0)).any(-1)
    return torch.where(crossed, area(intersect(part.boxes, seen)) / area(part.boxes).clamp(min=1e-9), 0.0)
