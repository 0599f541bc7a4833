"""`python -m dino visualize`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from dino.commands.parsing import ModelOptions, Number, OptionalFile, parse

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from dino.inference.detector import Detector


@dataclass(frozen=True, kw_only=True)
class VisualizeOptions(ModelOptions):
    """Draw how the model works on an image.

    Writes PNG files with captions to the output folder: query_selection (the anchors from the encoder), refinement
    (boxes from decoder layer to decoder layer), sampling and encoder_sampling (samples of deformable attention), and
    with --annotations denoising (the noised boxes of training).
    """

    image: Positional[Annotated[Path, arg(metavar="IMAGE", help_behavior_hint="")]]
    """The image."""
    output: Annotated[Path, arg(metavar="FOLDER")] = Path("visualized")
    """Folder for the drawings."""
    annotations: OptionalFile = None
    """A COCO file with the true boxes of the image."""
    query: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Query whose samples to draw: rank in query selection from 0; by default that of the best detection."""
    layer: Number = -1
    """Layer whose samples to draw, from 0; negative numbers count from the end."""
    at: Annotated[tuple[float, float], arg(metavar="X Y")] = (0.5, 0.5)
    """Position of the token whose samples to draw, x and y in 0..1 of the image."""
    level: Number = 1
    """Level of that token, 0 is the finest."""


def visualize_command(argv: Sequence[str]) -> None:
    """Write the drawings and print their paths."""
    options = parse(VisualizeOptions, "visualize", argv)
    from dino.data import open_image
    from dino.visualize.sampling import draw_encoder_sampling_points, draw_sampling_points
    from dino.visualize.stages import draw_denoising, draw_query_selection, draw_refinement

    image = open_image(options.image)
    detector = options.detector()
    config = detector.model.config
    level = min(options.level, config.num_levels - 1)
    drawings: dict[str, Callable[[], Image.Image]] = {
        "refinement": lambda: draw_refinement(detector, image),
        "sampling": lambda: draw_sampling_points(detector, image, query=options.query, layer=options.layer),
        "encoder_sampling": lambda: draw_encoder_sampling_points(detector, image, position=options.at, level=level),
    }
    if config.query_selection != "static":
        drawings["query_selection"] = lambda: draw_query_selection(detector, image)
    if options.annotations is not None and config.denoising != "off":
        truth = true_boxes(options.annotations, options.image, detector)
        drawings["denoising"] = lambda: draw_denoising(detector, image, *truth)
    options.output.mkdir(parents=True, exist_ok=True)
    for name, draw in drawings.items():
        path = options.output / f"{options.image.stem}_{name}.png"
        draw().save(path)
        print(f"wrote {path}")
    if options.annotations is None:
        print("denoising is not drawn: pass the true boxes with --annotations FILE", file=sys.stderr)


def true_boxes(annotations: Path, image: Path, detector: Detector) -> tuple[Tensor, Tensor]:
    """Read boxes_xyxy [T, 4] in pixels and labels [T] of an image from a COCO file.

    Raises:
        DatasetError: the COCO file is invalid.
        ValueError: the file lacks the image or has no box for it, or the model lacks a category.
    """
    import torch

    from dino.data import CocoIndex
    from dino.inference.files import InputFile, coco_ids

    file = InputFile(image, Path(image.name))
    image_id = coco_ids(annotations, [file])[image]
    index = CocoIndex.load(annotations, image.parent, skip_invalid=True)  # only this image matters
    if image_id not in index.image_ids:
        raise ValueError(f"{annotations}: the entry of {image.name} is invalid. Run python -m dino data {annotations}")
    position = index.image_ids.tolist().index(image_id)
    boxes, category_ids = index.training_boxes(position)
    if len(boxes) == 0:
        raise ValueError(f"{annotations}: has no boxes for {image.name}. Leave --annotations out.")
    labels = [detector.categories.label_of(int(category_id)) for category_id in category_ids]
    return torch.from_numpy(boxes), torch.tensor(labels)
