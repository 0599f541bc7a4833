"""Where deformable attention looks: sampling points of one query or one token over the levels."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from dino.inference.detector import Detector
from dino.inference.draw import PALETTE, WHITE, outline_box
from dino.inference.images import Picture, load_picture
from dino.model.boxes import cxcywh_to_xyxy
from dino.visualize.caption import Key, add_caption
from dino.visualize.view import View
from dino.visualize.watch import Attention, Watched, watch


def draw_sampling_points(
    detector: Detector,
    image: Picture,
    *,
    query: int | None = None,
    layer: int = -1,
) -> Image.Image:
    """Where one query of a decoder layer looks.

    Args:
        query: its rank in query selection, from 0; by default the query of the best detection.
        layer: of the decoder; negative ones count from the end.

    Raises:
        ValueError: no such query or layer.
    """
    layers = len(detector.model.decoder.layers)
    name = f"decoder.layers.{_index('layer', layer, layers)}.cross_attn"
    picture = load_picture(image)
    seen = watch(detector, picture, [name])
    scores = seen.outputs.logits[-1, 0].float().sigmoid().max(-1)
    chosen = int(scores.values.argmax()) if query is None else _index("query", query, len(scores.values))
    label, score = int(scores.indices[chosen]), float(scores.values[chosen])
    attention = seen.attentions[name]
    box = cxcywh_to_xyxy(attention.references[chosen])
    return add_caption(
        _draw(picture, attention, chosen, box),
        f"Sampling points of a query in decoder layer {_index('layer', layer, layers) + 1} of {layers}",
        f"To look at the picture, query {chosen} ({detector.categories.name_of(label)}, {score:.2f}) takes "
        f"{_counts(attention)} samples around its box (white). Size: how much a sample weighs. Colour: its level, with "
        f"the level's share of the weight.",
        _legend(attention, chosen, seen),
    )


def draw_encoder_sampling_points(
    detector: Detector,
    image: Picture,
    *,
    position: tuple[float, float] = (0.5, 0.5),
    level: int = 1,
    layer: int = -1,
) -> Image.Image:
    """Where one token of an encoder layer looks.

    Args:
        position: x, y of the token in 0..1 of the picture.
        level: of the token, 0 is the finest.
        layer: of the encoder; negative ones count from the end.

    Raises:
        ValueError: no such level or layer, or a position outside the picture.
    """
    layers = len(detector.model.encoder.layers)
    name = f"encoder.layers.{_index('layer', layer, layers)}.self_attn"
    if not all(0 <= value <= 1 for value in position):
        raise ValueError(f"position must be x, y in 0..1, got {position}")
    picture = load_picture(image)
    seen = watch(detector, picture, [name])
    level = _index("level", level, len(seen.level_shapes))
    rows, columns = seen.level_shapes[level]
    row, column = min(int(position[1] * rows), rows - 1), min(int(position[0] * columns), columns - 1)
    token = sum(h * w for h, w in seen.level_shapes[:level]) + row * columns + column
    attention = seen.attentions[name]
    cell = torch.tensor([column / columns, row / rows, (column + 1) / columns, (row + 1) / rows])
    return add_caption(
        _draw(picture, attention, token, cell),
        f"Sampling points of a token in encoder layer {_index('layer', layer, layers) + 1} of {layers}",
        f"A token of stride {seen.strides[level]} (white square, row {row}, column {column}) gathers "
        f"{_counts(attention)} samples of all levels. Size: how much a sample weighs. Colour: its level, with the "
        f"level's share of the weight.",
        _legend(attention, token, seen),
    )


def _draw(picture: Image.Image, attention: Attention, query: int, box_xyxy: Tensor) -> Image.Image:
    """The part of the picture around a box [4] in 0..1, with the samples as dots whose area is their weight."""
    locations = attention.locations[query].flatten(0, 1)
    weights = attention.weights[query].flatten()
    levels = attention.levels.repeat(len(attention.weights[query]))
    view = View(picture, around=torch.cat([locations, box_xyxy.view(2, 2)]))
    points = view.points(locations)
    radii = (weights / weights.max()).sqrt() * 0.011 * (view.size[0] * view.size[1]) ** 0.5 + 1.5
    for k in weights.argsort(descending=True).tolist():  # small ones last, so that large ones do not hide them
        (x, y), radius = points[k].tolist(), float(radii[k])
        dot = (x - radius, y - radius, x + radius, y + radius)
        view.pen.ellipse(dot, fill=(*PALETTE[int(levels[k])], 225), outline=(0, 0, 0, 170))
    box = view.box(box_xyxy)
    if box is not None:
        outline_box(view.pen, box, WHITE, view.line)
    return view.image


def _counts(attention: Attention) -> str:
    _, heads, samples = attention.weights.shape
    levels = int(attention.levels.max()) + 1
    return f"{heads} heads x {levels} levels x {samples // levels} = {heads * samples}"


def _legend(attention: Attention, query: int, seen: Watched) -> list[Key]:
    share = torch.zeros(len(seen.strides)).index_add(0, attention.levels, attention.weights[query].mean(0))
    return [Key(f"stride {s}: {100 * share[i]:.0f} %", PALETTE[i], "dot") for i, s in enumerate(seen.strides)]


def _index(name: str, value: int, count: int) -> int:
    if not -count <= value < count:
        raise ValueError(f"{name} must be in {-count}..{count - 1}, got {value}")
    return value % count
