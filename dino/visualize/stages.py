"""Draw how the model works on an image. Each function returns a PIL image with a caption."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from dino.inference.colours import PALETTE, WHITE, Colour
from dino.inference.detector import Detector
from dino.inference.images import ImageLike, load_image
from dino.inference.legend import Key
from dino.inference.outlines import Box, dashed_box, outline_box
from dino.inference.tags import draw_tags, font_size, place_tags
from dino.model.boxes import cxcywh_to_xyxy, generalized_iou
from dino.model.denoising import Noise
from dino.visualize.caption import add_caption
from dino.visualize.view import View, target_of
from dino.visualize.watch import watch
from dino_kernels import PackedTargets

TRUTH, POSITIVE, NEGATIVE = WHITE, PALETTE[2], PALETTE[3]
# From light to dark (viridis), so that the order is visible with any colour vision.
RAMP: tuple[Colour, ...] = (
    *((253, 231, 37), (159, 218, 58), (74, 193, 109), (31, 161, 135), (39, 127, 142), (54, 92, 141), (70, 50, 127)),
)


def draw_denoising(
    detector: Detector,
    image: ImageLike,
    boxes_xyxy: Tensor,  # [T, 4] pixels of the image
    labels: Tensor,  # [T]
    *,
    seed: int = 0,
    most: int = 8,
) -> Image.Image:
    """Draw one group of denoising queries: every box with its positive and its negative.

    Args:
        boxes_xyxy, labels: the ground truth; the largest `most` boxes are drawn.
        seed: seed of the noise.

    Raises:
        ValueError: the model has no denoising, or there is no box.
    """
    denoising = detector.model.denoising
    if denoising is None:
        raise ValueError('draw_denoising: this model has denoising="off"')
    if len(boxes_xyxy) == 0:
        raise ValueError("draw_denoising: there is no box. Pass at least one.")
    rgb = load_image(image)
    size = torch.tensor([rgb.width, rgb.height] * 2, dtype=torch.float32)
    count, config = len(labels), denoising.config
    target = target_of(boxes_xyxy, labels, rgb.size)
    packed = PackedTargets.pack([target]).to(detector.device)
    layout = denoising.layout(packed)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        noise = Noise.draw(1, layout.num_queries, config.num_classes, torch.device("cpu"))
        queries = denoising(packed, noise)
    noised = cxcywh_to_xyxy(queries.anchors[0].float().sigmoid()).cpu()
    redrawn = noise.p < 0.5 * config.label_noise
    view = View(rgb)
    shown = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(1).argsort(descending=True)[:most].tolist()
    tagged: list[tuple[Box, Colour, str]] = []
    for number, k in enumerate(shown, start=1):
        truth = view.box(boxes_xyxy[k] / size)
        if truth is not None:
            outline_box(view.pen, truth, TRUTH, view.line + 1)
            tagged.append((truth, TRUTH, f"{number} {detector.categories.name_of(int(labels[k]))}"))
        kinds = ((POSITIVE, 0, outline_box), (NEGATIVE, 1, dashed_box))
        for colour, kind, outline in kinds[: layout.kinds]:
            slot = count * kind + k
            box = view.box(noised[slot])
            if box is not None:
                outline(view.pen, box, colour, view.line)
                new = f" as {detector.categories.name_of(int(noise.new_label[0, slot]))}" if redrawn[0, slot] else ""
                tagged.append((box, colour, f"{number}{new}"))
    draw_tags(view.pen, place_tags(tagged, view.size, letters=font_size(view.size), width=view.line))
    legend = [Key("ground truth", TRUTH), Key("positive: to be restored", POSITIVE)]
    legend += [Key("negative: to be rejected", NEGATIVE, "dashes")] if layout.kinds == 2 else []
    return add_caption(
        view.image,
        "Denoising queries, one group" + (f", {len(shown)} of {count} boxes" if count > len(shown) else ""),
        f"In training the decoder also gets noised copies of the true boxes; this is 1 of {layout.num_groups} groups. "
        f"Equal numbers belong together. The sides of a positive move by up to {50 * config.box_noise:.0f} % of the "
        f"box's size, those of a negative by {50 * config.box_noise:.0f} to {100 * config.box_noise:.0f} % (an "
        f"inverted box is a line). {50 * config.label_noise:.0f} % of the labels are redrawn (as another class).",
        legend,
    )


def draw_query_selection(detector: Detector, image: ImageLike, *, most: int = 100) -> Image.Image:
    """Draw the encoder's boxes that query selection picks: colour for the level, opacity for the score.

    Args:
        most: number of the best boxes to draw; of the others only the centre is drawn.

    Raises:
        ValueError: the model has static queries.
    """
    rgb = load_image(image)
    seen = watch(detector, rgb)
    outputs = seen.outputs
    if outputs.selected_indices is None or outputs.encoder_logits is None or outputs.encoder_boxes_cxcywh is None:
        raise ValueError('draw_query_selection: this model has query_selection="static" and selects nothing')
    scores = outputs.encoder_logits[0].float().sigmoid().max(-1).values.cpu()
    boxes = cxcywh_to_xyxy(outputs.encoder_boxes_cxcywh[0].float()).cpu()
    ends = torch.tensor([rows * columns for rows, columns in seen.level_shapes]).cumsum(0)
    levels = torch.searchsorted(ends, outputs.selected_indices[0].cpu(), right=True)
    view = View(rgb)
    radius = max(1.5, view.line * 0.8)
    for q in reversed(range(len(scores))):
        x, y = view.points((boxes[q, :2] + boxes[q, 2:]) / 2).tolist()
        view.pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(*PALETTE[levels[q]], 150))
    count = min(most, len(scores))
    best = scores[:count].max().clamp(min=1e-6)
    for q in reversed(range(count)):
        box = view.box(boxes[q])
        if box is not None:
            opacity = float(0.12 + 0.88 * scores[q] / best)
            outline_box(view.pen, box, PALETTE[levels[q]], max(1, view.line - 1), opacity)
    chosen = torch.bincount(levels, minlength=len(seen.strides)).tolist()
    legend = [Key(f"stride {s}: {n}", PALETTE[i]) for i, (s, n) in enumerate(zip(seen.strides, chosen, strict=True))]
    return add_caption(
        view.image,
        "Query selection",
        f"The {len(scores)} best of the encoder's {int(ends[-1]):,} tokens become the decoder's first anchors. Dots: "
        f"their centres. Boxes: the best {count}, opaque for a high score (the highest is {scores.max():.2f}). Colour: "
        f"level of the token, with the number of anchors from it.",
        legend,
    )


def draw_refinement(detector: Detector, image: ImageLike) -> Image.Image:
    """Draw how the boxes of the best three detections change from the anchor through the decoder's layers."""
    rgb = load_image(image)
    seen = watch(detector, rgb)
    outputs = seen.outputs
    probabilities = outputs.logits[:, 0].float().sigmoid().cpu()  # [layers, Q, C]
    layers = len(probabilities)
    steps = torch.cat([seen.anchors_cxcywh[None], outputs.boxes_cxcywh[:, 0].float().cpu()])
    boxes = cxcywh_to_xyxy(steps)  # [1 + layers, Q, 4]
    best = _of_different_objects(boxes[-1], probabilities[-1].max(-1).values, 3)
    view = View(rgb, around=boxes[:, best].reshape(-1, 2))
    colours = [WHITE, *(RAMP[round(i * (len(RAMP) - 1) / max(1, layers - 1))] for i in range(layers))]
    tagged = []
    for q in best:
        for step in range(layers + 1):
            box = view.box(boxes[step, q])
            if box is not None and step == 0:
                dashed_box(view.pen, box, WHITE, view.line)
            elif box is not None:
                last = step == layers
                outline_box(view.pen, box, colours[step], view.line + 1 if last else max(1, view.line - 1))
        score, label = probabilities[-1, q].max(0)
        final = view.box(boxes[-1, q])
        if final is not None:
            name, early = detector.categories.name_of(int(label)), probabilities[0, q, label]
            tagged.append((final, colours[-1], f"{name} {early:.2f} to {score:.2f}"))
    draw_tags(view.pen, place_tags(tagged, view.size, letters=font_size(view.size), width=view.line))
    legend = [Key("anchor", WHITE, "dashes")]
    legend += [Key(f"layer {i}", colours[i]) for i in range(1, layers + 1)]
    return add_caption(
        view.image,
        "Box refinement",
        f"Each of the {layers} decoder layers refines the box of the previous one, from the anchor of query selection "
        f"(dashed) to the detection (thick). Tags: class, and its score in the first and the last layer. Shown are the "
        f"{len(best)} best queries whose boxes differ.",
        legend,
    )


def _of_different_objects(boxes_xyxy: Tensor, scores: Tensor, most: int) -> list[int]:
    """Return the best queries such that no two boxes have a generalised IoU above 0.5."""
    chosen: list[int] = []
    for q in scores.argsort(descending=True).tolist():
        if len(chosen) == most:
            break
        if not (generalized_iou(boxes_xyxy[chosen], boxes_xyxy[q]) > 0.5).any():
            chosen.append(q)
    return chosen
