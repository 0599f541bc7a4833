"""Draw where deformable attention samples: for one query or one token, over all levels."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from dino.inference.colours import PALETTE, WHITE
from dino.inference.detector import Detector
from dino.inference.images import ImageLike, load_image
from dino.inference.legend import Key
from dino.inference.outlines import outline_box
from dino.model.boxes import cxcywh_to_xyxy
from dino.visualize.caption import add_caption
from dino.visualize.view import View
from dino.visualize.watch import Attention, Watched, watch


def draw_sampling_points(
    detector: Detector,
    image: ImageLike,
    *,
    query: int | None = None,
    layer: int = -1,
) -> Image.Image:
    """Draw where one query of a decoder layer samples.

    Args:
        query: rank in query selection, from 0; by default the query of the best detection.
        layer: layer of the decoder; negative numbers count from the end.

    Raises:
        ValueError: the query or layer does not exist.
    """
    layers = len(detector.model.decoder.layers)
    name = f"decoder.layers.{_index('layer', layer, layers)}.cross_attn"
    rgb = load_image(image)
    seen = watch(detector, rgb, [name])
    scores = seen.outputs.logits[-1, 0].float().sigmoid().max(-1)
    chosen = int(scores.values.argmax()) if query is None else _index("query", query, len(scores.values))
    label, score = int(scores.indices[chosen]), float(scores.values[chosen])
    attention = seen.attentions[name]
    box = cxcywh_to_xyxy(attention.references[chosen])
    return add_caption(
        _draw(rgb, attention, chosen, box),
        f"Sampling points of a query in decoder layer {_index('layer', layer, layers) + 1} of {layers}",
        f"Query {chosen} ({detector.categories.name_of(label)}, {score:.2f}) takes {_counts(attention)} samples around "
        f"its box (white). Dot size: weight of the sample. Colour: level, with its share of the weight.",
        _legend(attention, chosen, seen),
    )


def draw_encoder_sampling_points(
    detector: Detector,
    image: ImageLike,
    *,
    position: tuple[float, float] = (0.5, 0.5),
    level: int = 1,
    layer: int = -1,
) -> Image.Image:
    """Draw where one token of an encoder layer samples.

    Args:
        position: x, y of the token in 0..1 of the image.
        level: level of the token, 0 is the finest.
        layer: layer of the encoder; negative numbers count from the end.

    Raises:
        ValueError: the level or layer does not exist, or the position is outside the image.
    """
    layers = len(detector.model.encoder.layers)
    name = f"encoder.layers.{_index('layer', layer, layers)}.self_attn"
    if not all(0 <= value <= 1 for value in position):
        raise ValueError(f"position must be x, y in 0..1, got {position}")
    rgb = load_image(image)
    seen = watch(detector, rgb, [name])
    level = _index("level", level, len(seen.level_shapes))
    rows, columns = seen.level_shapes[level]
    row, column = min(int(position[1] * rows), rows - 1), min(int(position[0] * columns), columns - 1)
    token = sum(h * w for h, w in seen.level_shapes[:level]) + row * columns + column
    attention = seen.attentions[name]
    cell = torch.tensor([column / columns, row / rows, (column + 1) / columns, (row + 1) / rows])
    return add_caption(
        _draw(rgb, attention, token, cell),
        f"Sampling points of a token in encoder layer {_index('layer', layer, layers) + 1} of {layers}",
        f"A token of stride {seen.strides[level]} (white square, row {row}, column {column}) gathers "
        f"{_counts(attention)} samples of all levels. Dot size: weight of the sample. Colour: level, with its share of "
        f"the weight.",
        _legend(attention, token, seen),
    )


def _draw(image: Image.Image, attention: Attention, query: int, box_xyxy: Tensor) -> Image.Image:
    """Draw the part of the image around a box [4] in 0..1, with samples as dots whose area is their weight."""
    locations = attention.locations[query].flatten(0, 1)
    weights = attention.weights[query].flatten()
    levels = attention.levels.repeat(len(attention.weights[query]))
    view = View(image, around=torch.cat([locations, box_xyxy.view(2, 2)]))
    points = view.points(locations)
    radii = (weights / weights.max()).sqrt() * 0.011 * (view.size[0] * view.size[1]) ** 0.5 + 1.5
    for k in weights.argsort(descending=True).tolist():  # small dots last, so that large ones do not hide them
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
    weights = attention.weights[query].mean(0)
    share = weights.new_zeros(len(seen.strides)).index_add(0, attention.levels, weights)
    return [Key(f"stride {s}: {100 * share[i]:.0f} %", PALETTE[i], "dot") for i, s in enumerate(seen.strides)]


def _index(name: str, value: int, count: int) -> int:
    if not -count <= value < count:
        raise ValueError(f"{name} must be in {-count}..{count - 1}, got {value}")
    return value % count
