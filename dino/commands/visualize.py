"""`python -m dino visualize`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from dino.commands.parsing import ModelOptions, Number, OptionalFile, parse
from dino.common.files import make_folder

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from dino.data import Categories, CocoIndex


@dataclass(frozen=True, kw_only=True)
class VisualizeOptions(ModelOptions):
    """Draw how the model works on an image.

    Writes PNG files with captions to the output folder: query_selection (the anchors from the encoder), refinement
    (boxes from decoder layer to decoder layer), sampling and encoder_sampling (samples of deformable attention). With
    --annotations also denoising (the noised boxes of training), attention_mask (which queries attend to each other in
    training), look_forward (gradients between decoder layers), and, of a run that keeps several checkpoints, matching
    (which query each object is matched with in each of them).
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
    compare: Annotated[tuple[Path, ...], arg(metavar="PATH", help_behavior_hint="")] = ()
    """Two or more checkpoints whose matches to compare, in the order of training; by default those that the run keeps
    (train --keep-checkpoints)."""


def visualize_command(argv: Sequence[str]) -> None:
    """Write the drawings and print their paths."""
    options = parse(VisualizeOptions, "visualize", argv)
    from dino.data import open_image
    from dino.visualize.attention_mask import draw_attention_mask
    from dino.visualize.gradients import draw_look_forward_gradients
    from dino.visualize.instability import draw_matching
    from dino.visualize.sampling import draw_encoder_sampling_points, draw_sampling_points
    from dino.visualize.stages import draw_denoising, draw_query_selection, draw_refinement
    from dino.visualize.view import target_of

    annotated = None if options.annotations is None else find_annotated(options.annotations, options.image)
    image = open_image(options.image, size_wh=None if annotated is None else annotated.size_wh)
    detector = options.detector()
    config = detector.own_model("visualize").config
    level = min(options.level, config.num_levels - 1)
    drawings: dict[str, Callable[[], Image.Image]] = {
        "refinement": lambda: draw_refinement(detector, image),
        "sampling": lambda: draw_sampling_points(detector, image, query=options.query, layer=options.layer),
        "encoder_sampling": lambda: draw_encoder_sampling_points(detector, image, position=options.at, level=level),
    }
    if config.query_selection != "static":
        drawings["query_selection"] = lambda: draw_query_selection(detector, image)
    compared = options.compare or kept_checkpoints(options.checkpoint)
    if annotated is not None:
        truth = annotated.true_boxes(detector.categories)
        drawings["look_forward"] = lambda: draw_look_forward_gradients(detector, image, *truth)
        if config.denoising != "off":
            drawings["denoising"] = lambda: draw_denoising(detector, image, *truth)
            drawings["attention_mask"] = lambda: draw_attention_mask(detector, [target_of(*truth, image.size)])
        if options.compare or len(compared) > 1:
            others = [(path_name(path), dataclasses.replace(options, checkpoint=path).detector()) for path in compared]
            drawings["matching"] = lambda: draw_matching(others, image, *truth)
    images = {name: draw() for name, draw in drawings.items()}  # all, before the first is written
    make_folder(options.output, "output")
    for name, drawn in images.items():
        path = options.output / f"{options.image.stem}_{name}.png"
        drawn.save(path)
        print(f"wrote {path}")
    if options.annotations is None:
        print(
            "without the true boxes, denoising, attention_mask, look_forward and matching are not drawn: pass "
            "--annotations FILE",
            file=sys.stderr,
        )
    elif "matching" not in drawings:
        print(
            f"matching is not drawn: {options.checkpoint} keeps no two checkpoints. Pass --compare PATH PATH",
            file=sys.stderr,
        )


def kept_checkpoints(run: Path) -> tuple[Path, ...]:
    """Return the checkpoints that a run keeps, in the order of training."""
    found = [path for path in (run / "checkpoints").glob("step-*") if (path / "model.safetensors").exists()]
    return tuple(sorted(found))


def path_name(checkpoint: Path) -> str:
    """Return a short name of a checkpoint: "step 200" for `step-00000200`, otherwise its last two parts."""
    step = checkpoint.name.removeprefix("step-")
    return f"step {int(step):,}" if step.isdigit() else "/".join(checkpoint.parts[-2:])


@dataclass(frozen=True)
class AnnotatedImage:
    """An image of a COCO file."""

    index: CocoIndex
    position: int

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height that the file states: its boxes are in these pixels."""
        width, height = self.index.sizes_wh[self.position].tolist()
        return width, height

    def true_boxes(self, categories: Categories) -> tuple[Tensor, Tensor]:
        """Return boxes_xyxy [T, 4] in pixels and labels [T].

        Raises:
            ValueError: there is no box, or the model lacks a category.
        """
        import torch

        boxes, category_ids = self.index.training_boxes(self.position)
        if len(boxes) == 0:
            name = self.index.file_names[self.position]
            raise ValueError(f"{self.index.annotation_file}: has no boxes for {name}. Leave --annotations out.")
        labels = [categories.label_of(int(category_id)) for category_id in category_ids]
        return torch.from_numpy(boxes), torch.tensor(labels)


def find_annotated(annotations: Path, image: Path) -> AnnotatedImage:
    """Find an image in a COCO file.

    Invalid entries of other images do not matter.

    Raises:
        DatasetError: the COCO file or the image's entry is invalid.
        ValueError: the file lacks the image.
    """
    from dino.data import CocoIndex, open_image
    from dino.data.coco.document import read_document
    from dino.data.coco.lenient import whole
    from dino.data.coco.stream import read_collections
    from dino.data.shards import shard_of
    from dino.inference.annotated import coco_images
    from dino.inference.sources import Source

    if not image.is_file():
        open_image(image)  # raises the error of a missing file
    name = str(annotations)
    document = read_document(annotations, annotations.parent, name, needed=("images", "categories"))
    known = coco_images(document, [Source(str(image), Path(image.name))])[str(image)]
    boxes = [
        annotation
        for collection, blocks in read_collections(annotations, name)
        if collection == "annotations"
        for block in blocks
        for annotation in block
        if isinstance(annotation, dict) and whole(annotation.get("image_id")) == known.id
    ]
    folder = image.parent if (shard := shard_of(image)) is None else shard.parent
    entry = {**known.entry, "file_name": image.relative_to(folder).as_posix()}
    only = dataclasses.replace(document, images_dir=folder, images=[entry], annotations=boxes)
    index = CocoIndex.from_document(only, annotations, skip_invalid=True)
    return AnnotatedImage(index, 0)
