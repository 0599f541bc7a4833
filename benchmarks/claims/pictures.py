"""Draw the pictures of dino/PAPER.md with the model of a finished run, on one of its validation images.

python -m benchmarks.claims.pictures --publish     after `python -m benchmarks.claims`
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from benchmarks.claims.figures import BLUE, RED, new_panels
from benchmarks.claims.recipe import VARIANTS, training
from benchmarks.claims.run import PICTURED, output_of
from benchmarks.measure import machine
from benchmarks.measure.plot import save
from benchmarks.measure.results import LATEST, RESULTS
from dino.checkpoint import build_model
from dino.commands.visualize import kept_checkpoints, path_name
from dino.data import Batch, Datasets, build_loader
from dino.inference.detector import Detector
from dino.model.boxes import cxcywh_to_xyxy
from dino.training.run import load_data
from dino.visualize.attention_mask import draw_attention_mask
from dino.visualize.gradients import draw_look_forward_gradients
from dino.visualize.instability import draw_matching
from dino.visualize.sampling import draw_sampling_points
from dino.visualize.stages import draw_denoising, draw_query_selection, draw_refinement


def corner_moves(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return how far `Denoising.forward` moves the corners of a batch's boxes, in halves of the box's size.

    Boxes that the border of the image stopped are left out.

    Returns:
        [N, 2, 2] top left and bottom right corner, x and y, of the positives, and of the negatives.
    """
    torch.manual_seed(0)
    denoising, truth = build_model(VARIANTS["DINO"].model).denoising, batch.targets
    assert denoising is not None and truth.boxes_cxcywh is not None
    queries = denoising(truth)
    size = int(queries.layout.group_size)
    slot = torch.arange(queries.layout.num_queries)
    is_negative = slot // size % 2 == 1
    target = truth.offsets[:-1, None] + slot % size  # [B, N]
    used = slot % size < truth.offsets.diff()[:, None]
    moved = cxcywh_to_xyxy(queries.anchors.sigmoid())
    used &= ((moved > 0.002) & (moved < 0.998)).all(-1)
    true = truth.boxes_cxcywh[target.clamp(max=len(truth) - 1)]
    moves = (moved - cxcywh_to_xyxy(true)).unflatten(-1, (2, 2)) / (true[..., None, 2:] / 2)
    return moves[used & ~is_negative], moves[used & is_negative]


def draw_noise(batch: Batch) -> Any:
    """Draw where the corners of positives and negatives move."""
    positives, negatives = corner_moves(batch)
    figure, panels = new_panels(2, width=4.2)
    for number, (axes, name) in enumerate(zip(panels, ("top left", "bottom right"), strict=True)):
        for moves, colour, label in ((positives, BLUE, "positives"), (negatives, RED, "negatives")):
            axes.scatter(*moves[:, number].T.tolist(), s=3, color=colour, label=label, linewidths=0)
        for edge in (1, 2):
            square = [-edge, edge, edge, -edge, -edge]
            axes.plot(square, [-edge, *square[:-1]], color="#666666", linewidth=1)
        axes.set(aspect="equal", xlim=(-2.4, 2.4), ylim=(2.4, -2.4), title=f"{name} corner")
        axes.set_xlabel("moved to the right, halves of the width")
    panels[0].set_ylabel("moved down, halves of the height")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=2, frameon=False, markerscale=4)
    return figure


def draw_pictures(checkpoints: Sequence[Path], final: Path, data: Datasets, number: int) -> dict[str, Image.Image]:
    """Return the pictures of the tour by name, of a validation image given by its position."""
    assert data.valid is not None
    batch = next(iter(build_loader(data.valid, 20, train=False)))
    first, last = batch.targets.offsets[number : number + 2].tolist()
    assert batch.targets.boxes_cxcywh is not None
    image = Image.open(data.valid.index.image_path(number)).convert("RGB")
    scale = torch.tensor([*image.size, *image.size])
    boxes = cxcywh_to_xyxy(batch.targets.boxes_cxcywh[first:last]) * scale
    labels = batch.targets.labels[first:last]

    def detector_of(path: Path) -> Detector:
        return Detector.from_checkpoint(path, device="cpu", dtype="float32")

    detector = detector_of(final)
    compared = [(path_name(path), detector_of(path)) for path in checkpoints]
    return {
        "refinement": draw_refinement(detector, image),
        "sampling": draw_sampling_points(detector, image),
        "matching": draw_matching(compared, image, boxes, labels),
        "attention-mask": draw_attention_mask(detector, batch.targets),
        "denoising": draw_denoising(detector, image, boxes, labels),
        "query-selection": draw_query_selection(detector, image),
        "look-forward": draw_look_forward_gradients(detector, image, boxes, labels),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/claims"), help="folder of the runs (runs/claims)")
    parser.add_argument("--image", type=int, default=0, help="position of the validation image (0)")
    parser.add_argument("--publish", action="store_true", help="write to benchmarks/results/MACHINE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    output = output_of(options.output, *PICTURED)
    config = training(VARIANTS[PICTURED[0]], PICTURED[1], options.output, output)
    data = load_data(dataclasses.replace(config, evaluate_every=1))
    facts = machine.describe("cpu")
    folder = RESULTS / (machine.slug(facts) if options.publish else LATEST)
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in draw_pictures(kept_checkpoints(output), output / "final", data, options.image).items():
        path = folder / f"paper-{name}.jpg"
        picture.convert("RGB").save(path, quality=88)
        print(path)
    batch = next(iter(build_loader(data.train, 40, train=False)))
    print(save(draw_noise(batch), machine.caption(facts), 0.04, 1, folder / "paper-noise.png"))


if __name__ == "__main__":
    main()
