"""Draw which queries of the decoder attend to each other: the self-attention mask of denoising."""

from __future__ import annotations

from itertools import pairwise

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from dino.inference.colours import PALETTE, Colour
from dino.inference.detector import Detector
from dino.inference.fonts import font_for
from dino.inference.legend import INK, PAPER, Key
from dino.model.outputs import DenoisingLayout
from dino.model.targets import Targets, pack
from dino.visualize.caption import add_caption
from dino.visualize.stages import NEGATIVE, POSITIVE

MATCHING, BLOCKED = PALETTE[0], (214, 214, 210)
_SIDE, _LEFT, _TOP = 830, 106, 58  # of the mask, and its place
_LEAST_SHARE = 0.6  # of a side for denoising queries
_LETTERS = 15


def draw_attention_mask(detector: Detector, targets: Targets) -> Image.Image:
    """Draw the mask of the decoder's self-attention for the ground truth of a batch.

    The mask is `DenoisingQueries.blocked` of the model's own denoising queries, with all of its matching queries. It is
    the same for all images of a batch.

    Args:
        targets: as in training: packed, or per image `boxes` [T, 4] cxcywh in 0..1 and `labels` [T].

    Raises:
        ValueError: the model has no denoising, or there is no box.
    """
    model = detector.model
    if model.denoising is None:
        raise ValueError('draw_attention_mask: this model has denoising="off"')
    packed = pack(targets, detector.device, model.config.num_classes)
    if packed.max_targets == 0:
        raise ValueError("draw_attention_mask: there is no box. Pass at least one.")
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        queries = model.denoising(packed)  # their noise does not change the mask
    matching = model.config.num_queries
    layout, blocked = queries.layout, queries.blocked(matching).cpu()
    drawn = _draw(blocked, layout)
    groups, size = int(layout.num_groups), int(layout.group_size)
    images = packed.num_images
    counts = f"an image of {size} boxes" if images == 1 else f"a batch of {images} images with up to {size} boxes"
    empty = " Images of fewer boxes leave some of their slots empty, unmasked." if images > 1 else ""
    kinds = "its positives (green) and negatives (red)" if layout.kinds == 2 else "its positives (green)"
    legend = [Key("positives", POSITIVE)] + ([Key("negatives", NEGATIVE)] if layout.kinds == 2 else [])
    return add_caption(
        drawn,
        "Self-attention mask of the decoder in training",
        f"Each row is a query that attends, each column a query that it may attend to; light grey is blocked. For "
        f"{counts} there are {groups} groups of {layout.kinds * size} denoising queries and {matching} matching "
        f"queries. A denoising query attends to its own group, {kinds}, and to the matching queries (blue), but to no "
        f"other group. Matching queries attend to no denoising query: these are made of the true boxes, which "
        f"inference does not have.{empty}",
        [*legend, Key("matching queries", MATCHING), Key("blocked", BLOCKED)],
    )


def _draw(blocked: Tensor, layout: DenoisingLayout) -> Image.Image:
    """Draw the mask with the names of its blocks above and to the left; many matching queries take less room."""
    count, denoising = len(blocked), layout.num_queries
    size = layout.kinds * int(layout.group_size)
    negative = torch.arange(denoising) % size >= int(layout.group_size)
    colours = torch.tensor([POSITIVE, NEGATIVE, MATCHING], dtype=torch.uint8)
    kind = torch.cat([negative.long(), torch.full((count - denoising,), 2)])
    pixels = torch.where(blocked[..., None], torch.tensor(BLOCKED, dtype=torch.uint8), colours[kind][None])
    share = max(denoising / count, _LEAST_SHARE)
    # Edges of the queries, in pixels; a pixel has the colour of the query at its centre.
    edges = torch.cat(
        [
            torch.linspace(0, share * _SIDE, denoising + 1),
            torch.linspace(share * _SIDE, _SIDE, count - denoising + 1)[1:],
        ]
    ).round()
    query = torch.searchsorted(edges, torch.arange(_SIDE) + 0.5) - 1
    page = Image.new("RGB", (_LEFT + _SIDE + 24, _TOP + _SIDE + 8), PAPER)
    page.paste(Image.fromarray(pixels[query][:, query].numpy()), (_LEFT, _TOP))
    pen = ImageDraw.Draw(page)
    blocks = [int(edges[slot]) for slot in (*range(0, denoising + 1, size), count)]
    for edge in blocks[1:-1]:
        wide = 3 if edge == blocks[-2] else 1 if blocks[1] >= 8 else 0
        pen.line((_LEFT + edge, _TOP, _LEFT + edge, _TOP + _SIDE - 1), fill=PAPER, width=wide)
        pen.line((_LEFT, _TOP + edge, _LEFT + _SIDE - 1, _TOP + edge), fill=PAPER, width=wide)
    _name_groups(pen, blocks)
    middle = (blocks[-2] + blocks[-1]) / 2
    _write(pen, (_LEFT + blocks[-2] / 2, 6), f"{denoising} denoising queries, in {len(blocks) - 2} groups", "ma")
    _write(pen, (_LEFT + middle, 6), f"{count - denoising} matching queries", "ma")
    _write(pen, (_LEFT - 10, _TOP + middle), "matching", "rm")
    return page


def _name_groups(pen: ImageDraw.ImageDraw, edges: list[int]) -> None:
    """Write the numbers of the groups beside their rows and columns, those that have room."""
    free = [-1.0 * _LETTERS, -1.0 * _LETTERS]  # first free pixel of rows and columns
    for number, (start, end) in enumerate(list(pairwise(edges))[:-1], start=1):
        middle = (start + end) / 2
        if middle - _LETTERS / 2 >= free[0]:
            _write(pen, (_LEFT - 10, _TOP + middle), "group 1" if number == 1 else str(number), "rm")
            free[0] = middle + _LETTERS / 2 + 2
        half = font_for(str(number), _LETTERS).getlength(str(number)) / 2
        if middle - half >= free[1]:
            _write(pen, (_LEFT + middle, _TOP - 6), str(number), "ms")
            free[1] = middle + half + 6


def _write(pen: ImageDraw.ImageDraw, place: tuple[float, float], text: str, anchor: str, ink: Colour = INK) -> None:
    pen.text(place, text, fill=ink, font=font_for(text, _LETTERS), anchor=anchor)
