"""What looking forward twice changes: gradients of the decoder layers from the box losses of later ones."""

from __future__ import annotations

from typing import NamedTuple

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from dino.data import pad_images
from dino.inference.colours import Colour, text_colour
from dino.inference.detector import Detector
from dino.inference.fonts import font_for
from dino.inference.images import ImageLike, load_image
from dino.inference.legend import INK, PAPER
from dino.model.criterion import SetCriterion
from dino.model.decoder import look_forward_once, look_forward_twice
from dino.model.dino import DINO
from dino.model.layers import HeadPerLayer
from dino.model.outputs import DetectionOutput
from dino.model.targets import Targets, pack
from dino.visualize.caption import add_caption
from dino.visualize.view import target_of

_DARK: Colour = (20, 78, 132)
_WIDTH, _LETTERS = 960, 14


class LookForwardGradients(NamedTuple):
    """Norms of gradients, each [layers, layers]: of the parameters of layer i (row) from the box loss of layer j."""

    once: Tensor
    twice: Tensor
    between: Tensor
    """Norm of the difference: what reaches layer i through the boxes that layer j starts from."""


def box_loss_gradients(
    model: DINO,
    images: Tensor,  # [B, 3, H, W] normalised
    mask: Tensor,  # [B, H, W] bool, True = padding
    targets: Targets,
) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """Return the gradients that the decoder layers get from each layer's box loss, looking forward once and twice.

    Both have the same weights, predictions and matches. The box loss is the weighted L1 and GIoU loss of the matching
    queries. A layer's parameters are its own, and its box head unless the layers share it. The model's `grad` fields do
    not change.

    Args:
        model: its `look_forward` does not matter.
        images, mask: a batch.
        targets: as in training: packed, or per image `boxes` [T, 4] cxcywh in 0..1 and `labels` [T].

    Returns:
        Of layer i from the loss of layer j, [i][j]: all of its parameters in one vector.
    """
    decoder, criterion = model.decoder, SetCriterion(model.config).to(images.device)
    truth, layers = pack(targets, images.device, model.config.num_classes), len(decoder.layers)
    owned = [list(layer.parameters()) for layer in decoder.layers]
    if isinstance(decoder.box_head, HeadPerLayer):
        owned = [[*own, *head.parameters()] for own, head in zip(owned, decoder.box_head, strict=True)]
    parameters = [parameter for own in owned for parameter in own]
    sizes = [sum(parameter.numel() for parameter in own) for own in owned]
    with torch.no_grad():
        memory = model.encoder(*model.neck(model.backbone(images), mask))
        queries = model.query_selection(memory)
    found: list[list[list[Tensor]]] = []
    with torch.enable_grad():
        states, references = decoder(queries.content, queries.anchors, memory)
        logits = decoder.class_head(states)
        for look_forward in (look_forward_once, look_forward_twice):
            boxes = look_forward(decoder.box_head, states, references)
            losses = criterion(DetectionOutput(logits, boxes), truth)
            of_layers = (criterion.weights[1:3, :1] * losses.table[1:3, :layers]).sum(0)
            by_loss = []
            for loss in of_layers:
                each = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
                by_loss.append(torch.cat([gradient.flatten() for gradient in each]).split(sizes))
            found.append([list(of_layer) for of_layer in zip(*by_loss, strict=True)])
    return found[0], found[1]


def look_forward_gradients(model: DINO, images: Tensor, mask: Tensor, targets: Targets) -> LookForwardGradients:
    """Return the norms of the gradients of `box_loss_gradients`, which has the same arguments."""
    once, twice = box_loss_gradients(model, images, mask, targets)
    between = [[b - a for a, b in zip(*each, strict=True)] for each in zip(once, twice, strict=True)]
    tables = ([[vector.norm() for vector in row] for row in table] for table in (once, twice, between))
    return LookForwardGradients(*(torch.stack([torch.stack(row) for row in table]).cpu() for table in tables))


def draw_look_forward_gradients(
    detector: Detector,
    image: ImageLike,
    boxes_xyxy: Tensor,  # [T, 4] pixels of the image
    labels: Tensor,  # [T]
) -> Image.Image:
    """Draw the gradients of `look_forward_gradients` for one image, as three tables coloured by size.

    Args:
        boxes_xyxy, labels: the ground truth.

    Raises:
        ValueError: there is no box.
    """
    if len(labels) == 0:
        raise ValueError("draw_look_forward_gradients: there is no box. Pass at least one.")
    rgb = load_image(image)
    truth = target_of(boxes_xyxy, labels, rgb.size)
    images, mask = pad_images([detector.transform(rgb, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))[0]])
    norms = look_forward_gradients(detector.model, images.to(detector.device), mask.to(detector.device), [truth])
    once, twice = (float(each.diagonal(1).sum()) for each in norms[:2])
    if once > 0:
        text = f"With it, the losses of the next layers send {twice / once:.1f} times as much."
    else:
        text = "All are zero: this is one layer, or box heads without training, which start with weights of zero."
    return add_caption(
        _tables(norms),
        "Gradients of look forward twice",
        f"Norm of the gradient that the box loss of each decoder layer sends to the parameters of each layer, with the "
        f"same weights, image and matches. Looking forward once, a later loss reaches a layer only by the content that "
        f"it passes on. Twice, also by the boxes: those that layer 2 starts from are the refinement of layer 1, and "
        f"keep its gradient. The right table is the norm of that difference. {text}",
    )


def _tables(norms: LookForwardGradients) -> Image.Image:
    """Draw three tables side by side, rows are layers and columns losses, darker for a larger norm."""
    layers, gap, left, top = len(norms.once), 18, 62, 74
    width = (_WIDTH - 2 * gap) // 3
    cell = min((width - left - 8) // layers, 64)
    page = Image.new("RGB", (_WIDTH, top + cell * layers + 10), PAPER)
    pen, largest = ImageDraw.Draw(page), float(torch.stack(list(norms)).max().clamp(min=1e-30))
    for table, (title, values) in enumerate(
        zip(("look forward once", "look forward twice", "twice minus once"), norms, strict=True)
    ):
        x = table * (width + gap)
        pen.text((x + left, 8), title, fill=INK, font=font_for(title, _LETTERS + 2))
        pen.text((x + left, 34), "box loss of layer", fill=INK, font=font_for(title, _LETTERS))
        for i in range(layers):
            name = f"layer {i + 1}" if layers <= 9 else str(i + 1)
            middle = top + cell * i + cell / 2
            pen.text((x + left - 8, middle), name, fill=INK, font=font_for(name, _LETTERS), anchor="rm")
            pen.text(
                (x + left + cell * i + cell / 2, top - 5), str(i + 1), fill=INK, font=font_for("1", 14), anchor="ms"
            )
            for j in range(layers):
                corner = x + left + cell * j, top + cell * i
                _cell(pen, corner, cell, float(values[i, j]), largest)
    return page


def _cell(pen: ImageDraw.ImageDraw, corner: tuple[int, int], cell: int, value: float, largest: float) -> None:
    """Draw a value on a colour from paper to blue, whose strength is the root of its share of the largest."""
    share = (value / largest) ** 0.5
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(PAPER, _DARK, strict=True))
    colour: Colour = (red, green, blue)
    x, y = corner
    pen.rectangle((x, y, x + cell - 2, y + cell - 2), fill=colour, outline=(214, 214, 210))
    text = "0" if value == 0 else f"{value:.0f}" if value >= 100 else f"{value:.2g}"
    letters = _LETTERS
    while letters > 8 and font_for(text, letters).getlength(text) > cell - 6:
        letters -= 1
    middle = (x + cell / 2 - 1, y + cell / 2 - 1)
    pen.text(middle, text, fill=text_colour(colour), font=font_for(text, letters), anchor="mm")
