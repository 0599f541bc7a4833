"""Pictures of how the model works on an image. Each function returns a PIL image with a caption below it."""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from dino.boxes import cxcywh_to_xyxy
from dino.denoising import DrawnNoise, contrastive_denoising
from dino.detector import Detector
from dino.draw import PALETTE, WHITE, Box, Colour, clip_box, dashed_box, draw_tags, line_width, outline_box
from dino.draw_caption import Key, add_caption, display_size, faded
from dino.pictures import Picture, load_picture
from dino.watch import Watched, watch

TRUTH, POSITIVE, NEGATIVE = WHITE, PALETTE[2], PALETTE[3]
# From light to dark, so that the order is seen without telling the colours apart (viridis).
RAMP: tuple[Colour, ...] = (
    *((253, 231, 37), (159, 218, 58), (74, 193, 109), (31, 161, 135), (39, 127, 142), (54, 92, 141), (70, 50, 127)),
)


def draw_denoising(
    detector: Detector,
    image: Picture,
    boxes_xyxy: Tensor,  # [T, 4] pixels of the image
    labels: Tensor,  # [T]
    *,
    seed: int = 0,
    most: int = 8,
) -> Image.Image:
    """One group of denoising queries: every box with its positive and its negative.

    Args:
        boxes_xyxy, labels: the ground truth; of more than `most` boxes the largest are drawn.
        seed: of the noise.

    Raises:
        ValueError: the model was made without denoising, or there is no box.
    """
    denoising = detector.model.denoising
    if denoising is None:
        raise ValueError('draw_denoising: this model has denoising="off"')
    if len(boxes_xyxy) == 0:
        raise ValueError("draw_denoising: there is no box to put noise on")
    picture = load_picture(image)
    size = torch.tensor([picture.width, picture.height] * 2, dtype=torch.float32)
    low, high = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
    count, config = len(labels), denoising.config
    target = {"boxes": torch.cat([(low + high) / 2, high - low], 1) / size, "labels": labels}
    target = {key: value.to(detector.device) for key, value in target.items()}
    layout = denoising.layout(count)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        noise = DrawnNoise.draw(layout.num_groups * layout.kinds * count, config.num_classes, torch.device("cpu"))
        queries = contrastive_denoising(denoising, [target], noise)
    noised = cxcywh_to_xyxy(queries.anchors[0].float().sigmoid()).cpu()
    redrawn = noise.p < 0.5 * config.label_noise
    ground = faded(picture, display_size(picture.size))
    pen = ImageDraw.Draw(ground, "RGBA")
    width = line_width(ground.size)
    scale = torch.tensor([ground.width / picture.width, ground.height / picture.height] * 2)
    shown = ((high - low).prod(1)).argsort(descending=True)[:most].tolist()
    tagged: list[tuple[Box, Colour, str]] = []
    for number, k in enumerate(shown, start=1):
        name = detector.categories.name_of(int(labels[k]))
        kinds = ((POSITIVE, 0), (NEGATIVE, 1))[: layout.kinds]
        for colour, kind in reversed(kinds):
            slot = count * kind + k
            box = clip_box((noised[slot] * size * scale).tolist(), ground.size)
            if box is None:
                continue
            (dashed_box if kind else outline_box)(pen, box, colour, width)
            new = f" as {detector.categories.name_of(int(noise.new_label[slot]))}" if redrawn[slot] else ""
            tagged.append((box, colour, f"{number}{new}"))
        truth = clip_box((boxes_xyxy[k] * scale).tolist(), ground.size)
        if truth is not None:
            tagged.append((truth, TRUTH, f"{number} {name}"))
    draw_tags(pen, tagged, ground.size, width=width)
    legend = [Key("ground truth", TRUTH), Key("positive: to be restored", POSITIVE)]
    legend += [Key("negative: to be rejected", NEGATIVE, "dashes")] if layout.kinds == 2 else []
    return add_caption(
        ground,
        "Denoising queries, one group" + (f", {len(shown)} of {count} boxes" if count > len(shown) else ""),
        f"In training the decoder also gets noised copies of the true boxes; this is 1 of {layout.num_groups} groups. "
        f"Equal numbers belong together. The sides of a positive move by up to {50 * config.box_noise:.0f} % of the "
        f"box's size, those of a negative by {50 * config.box_noise:.0f} to {100 * config.box_noise:.0f} % (turned "
        f"inside out, it is a line). {50 * config.label_noise:.0f} % of the labels are redrawn: as another class.",
        legend,
    )


def draw_query_selection(
    detector: Detector, image: Picture, *, most: int = 100, watched: Watched | None = None
) -> Image.Image:
    """The boxes that the encoder proposes and query selection picks, by level, the more opaque the higher their score.

    Args:
        most: how many of the best to draw; of the others the centre alone.

    Raises:
        ValueError: a model with static queries.
    """
    picture = load_picture(image)
    seen = watched or watch(detector, picture)
    outputs = seen.outputs
    if outputs.selected_indices is None or outputs.encoder_logits is None or outputs.encoder_boxes_cxcywh is None:
        raise ValueError('draw_query_selection: this model has query_selection="static" and selects nothing')
    scores = outputs.encoder_logits[0].float().sigmoid().max(-1).values.cpu()
    boxes = cxcywh_to_xyxy(outputs.encoder_boxes_cxcywh[0].float()).cpu()
    ends = torch.tensor([rows * columns for rows, columns in seen.level_shapes]).cumsum(0)
    levels = torch.searchsorted(ends, outputs.selected_indices[0].cpu(), right=True)
    ground = faded(picture, display_size(picture.size))
    pen = ImageDraw.Draw(ground, "RGBA")
    pixels = boxes * torch.tensor([ground.width, ground.height] * 2)
    width, radius = max(1, line_width(ground.size) - 1), max(1.5, line_width(ground.size) * 0.7)
    for q in reversed(range(len(scores))):
        x, y = ((pixels[q, :2] + pixels[q, 2:]) / 2).tolist()
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(*PALETTE[levels[q]], 150))
    count = min(most, len(scores))
    best = scores[:count].max().clamp(min=1e-6)
    for q in reversed(range(count)):
        box = clip_box(pixels[q].tolist(), ground.size)
        if box is not None:
            outline_box(pen, box, PALETTE[levels[q]], width, float(0.12 + 0.88 * scores[q] / best))
    chosen = torch.bincount(levels, minlength=len(seen.strides)).tolist()
    legend = [Key(f"stride {s}: {n}", PALETTE[i]) for i, (s, n) in enumerate(zip(seen.strides, chosen, strict=True))]
    return add_caption(
        ground,
        "Query selection",
        f"Of {int(ends[-1]):,} tokens the encoder scores, the {len(scores)} best become the decoder's first anchors. "
        f"Dots: their centres. Boxes: the best {count}, opaque for a high score (the highest is {scores.max():.2f}). "
        f"Colour: the level that a token is from, and how many are.",
        legend,
    )


def draw_refinement(
    detector: Detector, image: Picture, *, most: int = 3, watched: Watched | None = None
) -> Image.Image:
    """How the boxes of the best detections change from the first anchor through the decoder's layers."""
    picture = load_picture(image)
    seen = watched or watch(detector, picture)
    outputs = seen.outputs
    probabilities = outputs.logits[:, 0].float().sigmoid().cpu()  # [layers, Q, C]
    layers = len(probabilities)
    best = probabilities[-1].max(-1).values.topk(min(most, probabilities.shape[1])).indices.tolist()
    steps = torch.cat([seen.anchors_cxcywh[None], outputs.boxes_cxcywh[:, 0].float().cpu()])  # [1 + layers, Q, 4]
    ground = faded(picture, display_size(picture.size))
    pen = ImageDraw.Draw(ground, "RGBA")
    pixels = cxcywh_to_xyxy(steps) * torch.tensor([ground.width, ground.height] * 2)
    width = line_width(ground.size)
    colours = [WHITE, *(RAMP[round(i * (len(RAMP) - 1) / max(1, layers - 1))] for i in range(layers))]
    tagged = []
    for q in best:
        for step in range(layers + 1):
            box = clip_box(pixels[step, q].tolist(), ground.size)
            if box is None:
                continue
            if step == 0:
                dashed_box(pen, box, WHITE, width)
            else:
                outline_box(pen, box, colours[step], max(1, width - 1) if step < layers else width + 1)
        score, label = probabilities[-1, q].max(0)
        final = clip_box(pixels[-1, q].tolist(), ground.size)
        if final is not None:
            early = probabilities[0, q, label]
            name = detector.categories.name_of(int(label))
            tagged.append((final, colours[-1], f"{name} {early:.2f} to {score:.2f}"))
    legend = [Key("anchor", WHITE, "dashes")]
    legend += [Key(f"layer {i}", colours[i]) for i in range(1, layers + 1)]
    draw_tags(pen, tagged, ground.size, width=width)
    return add_caption(
        ground,
        f"Box refinement of the {len(best)} best queries",
        f"Each of the {layers} decoder layers moves the box that it gets from the one before, from the anchor that "
        f"query selection chose (dashed) to the detection (thick). Tags: the class, and its score in the first and the "
        f"last layer.",
        legend,
    )
