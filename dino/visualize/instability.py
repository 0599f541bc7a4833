"""Instability of matching: queries whose object changes from checkpoint to checkpoint (DN-DETR, arXiv 2203.01305)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from dino.inference.colours import PALETTE, WHITE, Colour
from dino.inference.detector import Detector
from dino.inference.fonts import font_for
from dino.inference.images import ImageLike, load_image
from dino.inference.legend import INK, PAPER, Key
from dino.inference.outlines import Box, dashed_box, outline_box
from dino.inference.tags import draw_tags, font_size, place_tags, shortened
from dino.model.boxes import cxcywh_to_xyxy
from dino.model.criterion import SetCriterion
from dino.model.dino import DINO
from dino.model.outputs import DetectionOutput
from dino.model.targets import Targets, pack
from dino.visualize.caption import add_caption
from dino.visualize.view import View, target_of
from dino.visualize.watch import Watched, watch

FIRST, SAME, SWAPPED, CHANGED = PALETTE[0], PALETTE[2], PALETTE[5], PALETTE[3]
_GAP, _LETTERS = 8, 15
_RANKS = " A query's number is the rank of its token in query selection: tokens that swap ranks count, too."


def matching_instability(
    matches_before: Sequence[Tensor] | Tensor,  # of each image [Q]: target of each prediction, -1 where none
    matches_after: Sequence[Tensor] | Tensor,  # the same of a later epoch
) -> float:
    """Return DN-DETR's IS: the number of predictions whose target differs, as the mean over images.

    An object that passes from one query to another changes both.

    Raises:
        ValueError: the numbers of images or of predictions differ, or there is no image.
    """
    shapes = [[list(match.shape) for match in matches] for matches in (matches_before, matches_after)]
    if shapes[0] != shapes[1] or not shapes[0]:
        raise ValueError(
            f"matches_after must have the images and predictions of matches_before, at least one image: got "
            f"{shapes[1]} and {shapes[0]}. Match the same images by models of equally many queries."
        )
    changed = [(a != b).sum().item() for a, b in zip(matches_before, matches_after, strict=True)]
    return sum(changed) / len(changed)


@torch.no_grad()
def matched_targets(model: DINO, outputs: DetectionOutput, targets: Targets) -> Tensor:
    """Return the target of each query in the last decoder layer, counted within its image, -1 where none, [B, Q].

    Args:
        model: its configuration decides the matching cost.
        outputs: of the model.
        targets: as in training: packed, or per image `boxes` [T, 4] cxcywh in 0..1 and `labels` [T].
    """
    logits, boxes = outputs.logits[-1:].float(), outputs.boxes_cxcywh[-1:].float()
    truth = pack(targets, logits.device, model.config.num_classes)
    query = SetCriterion(model.config).match(logits, boxes, truth)[0]
    image, number = truth.places()
    found, exists = torch.full(logits.shape[1:3], -1, device=query.device), query >= 0
    found[image[exists], query[exists]] = number[exists]
    return found.cpu()


def draw_matching(
    checkpoints: Sequence[tuple[str, Detector]],
    image: ImageLike,
    boxes_xyxy: Tensor,  # [T, 4] pixels of the image
    labels: Tensor,  # [T]
    *,
    most: int = 8,
) -> Image.Image:
    """Draw which query is matched with each object in several checkpoints of a run, changes marked.

    Args:
        checkpoints: names and detectors, in the order of training.
        boxes_xyxy, labels: the ground truth; the largest `most` boxes are drawn, all are matched.

    Raises:
        ValueError: there are fewer than two checkpoints, their numbers of queries differ, or there is no box.
    """
    queries = [detector.model.config.num_queries for _, detector in checkpoints]
    if len(checkpoints) < 2 or len(set(queries)) > 1:
        raise ValueError(
            f"checkpoints must be at least two of equally many queries, got queries {queries}. Pass those of one run."
        )
    if len(labels) == 0:
        raise ValueError("draw_matching: there is no box. Pass at least one.")
    rgb = load_image(image)
    truth = boxes_xyxy / torch.tensor([rgb.width, rgb.height] * 2)
    targets = [target_of(boxes_xyxy, labels, rgb.size)]
    shown = (truth[:, 2:] - truth[:, :2]).prod(1).argsort(descending=True)[:most].tolist()
    columns = len(checkpoints) if len(checkpoints) <= 3 else 2 if len(checkpoints) == 4 else 3
    width = (960 - _GAP * (columns - 1)) // columns
    size = (width, max(1, round(width * rgb.height / rgb.width)))
    panels: list[Image.Image] = []
    steps: list[float] = []
    before: tuple[Tensor, Tensor | None] | None = None
    for name, detector in checkpoints:
        seen = watch(detector, rgb)
        matches = matched_targets(detector.model, seen.outputs, targets)
        selected = seen.outputs.selected_indices
        now = matches[0], None if selected is None else selected[0].cpu()
        steps += [] if before is None else [matching_instability([before[0]], [now[0]])]
        panel = _panel(View(rgb, size=size), seen, now, before, truth, shown)
        panels.append(_headed(panel, name, "" if before is None else f"{steps[-1]:.0f} queries changed"))
        before = now
    swapped = selected is not None
    legend = [Key("object", WHITE), Key("anchor of its query", FIRST, "dashes"), Key("the same query", SAME, "dashes")]
    legend += [Key("another query, from the same token", SWAPPED, "dashes")] if swapped else []
    legend += [Key("another query" + (" and token" if swapped else ""), CHANGED, "dashes")]
    return add_caption(
        _arranged(panels, columns),
        "Instability of matching" + (f", {len(shown)} of {len(labels)} objects" if len(labels) > len(shown) else ""),
        f"The matching assigns each object to one query, which is then trained to predict it. Shown are the numbers of "
        f"these queries at their anchors; colours compare with the checkpoint before. A query whose object changed "
        f"gets another target than it was trained for. DN-DETR counts these queries, here for {len(labels)} objects "
        f"{', '.join(f'{step:.0f}' for step in steps)} (an object that passes from one query to another changes both)."
        f"{_RANKS if swapped else ''}",
        legend,
    )


def _panel(
    view: View,
    seen: Watched,
    now: tuple[Tensor, Tensor | None],
    before: tuple[Tensor, Tensor | None] | None,
    truth: Tensor,  # [T, 4] xyxy in 0..1
    shown: Sequence[int],
) -> Image.Image:
    anchors = cxcywh_to_xyxy(seen.anchors_cxcywh)
    tagged: list[tuple[Box, Colour, str]] = []
    for k in shown:
        box = view.box(truth[k])
        if box is not None:
            outline_box(view.pen, box, WHITE, view.line)
        for query in (now[0] == k).nonzero().flatten().tolist():
            colour, box = _colour(query, k, now, before), view.box(anchors[query])
            if box is not None:
                dashed_box(view.pen, box, colour, view.line + 1)
                tagged.append((box, colour, str(query)))
    draw_tags(view.pen, place_tags(tagged, view.size, letters=font_size(view.size), width=view.line))
    return view.image


def _colour(
    query: int, target: int, now: tuple[Tensor, Tensor | None], before: tuple[Tensor, Tensor | None] | None
) -> Colour:
    """Return the colour of a match: whether query or token were the object's in the checkpoint before."""
    if before is None or before[0][query] == target:
        return FIRST if before is None else SAME
    if now[1] is not None and before[1] is not None:
        tokens = before[1][before[0] == target]
        return SWAPPED if (tokens == now[1][query]).any() else CHANGED
    return CHANGED


def _headed(panel: Image.Image, name: str, text: str) -> Image.Image:
    """Return a panel below its name, with a text at the right that moves to a second line where both have no room."""
    font = font_for(name + text, _LETTERS)
    name = shortened(name, font, panel.width - 8)
    room = font.getlength(name) + font.getlength(text) + 3 * _LETTERS <= panel.width
    line = round(_LETTERS * 1.5)
    head = line + 4 if room else 2 * line + 4
    page = Image.new("RGB", (panel.width, panel.height + head), PAPER)
    page.paste(panel, (0, head))
    pen = ImageDraw.Draw(page)
    pen.text((4, 4), name, fill=INK, font=font)
    pen.text((panel.width - 4, 4) if room else (4, 4 + line), text, fill=INK, font=font, anchor="ra" if room else "la")
    return page


def _arranged(panels: Sequence[Image.Image], columns: int) -> Image.Image:
    """Return the panels in rows of so many columns."""
    width, rows = panels[0].width, -(-len(panels) // columns)
    height = max(panel.height for panel in panels)
    page = Image.new("RGB", (960, rows * height + (rows - 1) * _GAP), PAPER)
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        # At the bottom of its row: heads may differ in height.
        page.paste(panel, (column * (width + _GAP), row * (height + _GAP) + height - panel.height))
    return page
