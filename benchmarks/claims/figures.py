"""Draw what the runs show: means over the seeds with their 95 % intervals, and each seed as a point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.claims.claims import ALIGNMENT, AP, DISTANCE, DUPLICATES, LAST_IOU, Value, interval
from benchmarks.measure.machine import caption
from benchmarks.measure.plot import panels_of, save

# Okabe and Ito's palette, distinct with any colour vision.
BLACK, BLUE, GREEN, RED, ORANGE = "#000000", "#0072B2", "#009E73", "#D55E00", "#E69F00"
Document = dict[str, Any]
Row = dict[str, Any]


def draw_all(document: Document, folder: Path) -> list[Path]:
    """Draw every figure whose runs are finished, as `claims-*.png`; return the paths."""
    have = {row["variant"] for row in document["runs"]}
    drawn = []
    for name, (needed, draw) in FIGURES.items():
        if have >= set(needed):
            path = folder / f"claims-{name}.png"
            drawn.append(save(draw(document), about(document, needed), 0.07, 1, path))
    return drawn


def instability(document: Document) -> Any:
    """Draw the objects that change their query between epochs."""
    figure, (left, right) = new_panels(2)
    for axes, pairs, title in (
        (left, (("static queries", BLUE), ("static queries, no denoising", RED)), "static queries, as in DN-DETR"),
        (right, (("DINO", BLUE), ("no denoising", RED)), "queries from the encoder, as in DINO"),
    ):
        for variant, colour in pairs:
            label = "without denoising" if "no denoising" in variant else "with denoising"
            _curve(axes, document, variant, lambda row: _times_100(row["instability"]), colour, label)
        axes.set(title=title, xlabel="steps", ylim=(0, 75))
    left.set_ylabel("objects with another query than\n200 steps before, %")
    left.legend(frameon=False)
    return figure


def selection(document: Document) -> Any:
    """Draw AP over training by the kind of query selection."""
    figure, panels = new_panels(2)
    for axes, suffix in zip(panels, ("", ", long"), strict=True):
        for variant, label, colour in (
            ("pure queries", "pure: content from the encoder", GREEN),
            ("DINO", "mixed: content learned", BLUE),
            ("static queries", "static: content and anchors learned", RED),
        ):
            _curve(axes, document, variant + suffix, lambda row: 100 * row["AP"], colour, label)
        steps = _runs(document, f"DINO{suffix}")[0]["steps"]
        axes.set(title=f"{steps:,} steps", xlabel="steps", ylim=(0, None))
    panels[0].set_ylabel("AP, %")
    panels[0].legend(frameon=False)
    return figure


def look_forward(document: Document) -> Any:
    """Draw the IoU of matched boxes by layer, and the gradients that a layer gets from the next one's boxes."""
    figure, (left, right) = new_panels(2)
    for variant, label, colour, shift in (
        ("DINO", "twice", BLUE, -0.06),
        ("look forward once", "once", RED, 0.06),
    ):
        runs = _runs(document, variant)
        levels = np.array([row["history"][-1]["layer_iou"] for row in runs]) * 100
        places = np.arange(levels.shape[1]) + shift
        means, widths = zip(*(interval(list(column)) for column in levels.T), strict=True)
        left.errorbar(places, means, widths, color=colour, marker="o", capsize=3, label=f"look forward {label}")
    left.set_xticks(range(levels.shape[1]), ["anchor", *(f"layer {i}" for i in range(1, levels.shape[1]))])
    left.set_ylabel("IoU of matched boxes, %")
    left.legend(frameon=False, loc="lower right")
    for name, label, colour in (
        ("own", "of its own boxes", BLACK),
        ("box", "of the next layer's boxes, through the box\n(looking forward twice)", BLUE),
        ("content", "of the next layer's boxes, through the query", ORANGE),
    ):
        _curve(right, document, "DINO", lambda row, name=name: float(np.mean(row["gradients"][name])), colour, label)
    # Room for the legend above the curves.
    right.set(xlabel="steps", ylim=(0, 1.5 * right.get_ylim()[1]), ylabel="norm of a layer's gradient")
    right.legend(frameon=False, title="loss")
    return figure


def denoising(document: Document) -> Any:
    """Draw AP, duplicates and ATD by the kind of denoising."""
    variants = {"no denoising": "off", "plain denoising": "plain", "2 groups": "contrastive,\n2 groups",
                "DINO": "contrastive,\n50 / n groups", "12 groups": "contrastive,\n12 groups"}  # fmt: skip
    variants = {name: label for name, label in variants.items() if _runs(document, name)}
    columns = (("AP, %", AP), ("duplicates per object", DUPLICATES), ("ATD(100)", DISTANCE))
    return _dots(document, variants, columns, "DINO")


def successors(document: Document) -> Any:
    """Draw AP, alignment and boxes by the classification loss."""
    variants = {"DINO": "focal\n(DINO)", "DINO, class weight 2": "focal,\nweight 2", "varifocal": "varifocal",
                "iou_aware": "iou_aware", "position": "position", "matchability": "match-\nability"}  # fmt: skip
    columns = (("AP, %", AP), ("rank correlation of score and IoU", ALIGNMENT), ("IoU of matched boxes, %", LAST_IOU))
    return _dots(document, variants, columns, "DINO")


def suppression(document: Document) -> Any:
    """Draw the AP that non-maximum suppression takes away over training."""
    figure, (axes,) = new_panels(1, width=6.4)
    for variant, colour in (("DINO", BLUE), ("pure queries", GREEN), ("static queries", RED)):
        _curve(axes, document, f"{variant}, long", lambda row: 100 * (row["AP"] - row["AP_nms_0.7"]), colour, variant)
    axes.axhline(0, color="#999999", linewidth=1)
    axes.set(xlabel="steps", ylabel="AP without NMS less AP with it, points")
    axes.legend(frameon=False)
    return figure


_SELECTIONS = ("DINO", "pure queries", "static queries")
_LONG = tuple(f"{variant}, long" for variant in _SELECTIONS)
FIGURES: dict[str, tuple[tuple[str, ...], Callable[[Document], Any]]] = {
    "instability": (("DINO", "no denoising", "static queries", "static queries, no denoising"), instability),
    "selection": (_SELECTIONS + _LONG, selection),
    "look-forward": (("DINO", "look forward once"), look_forward),
    "denoising": (("DINO", "no denoising", "plain denoising"), denoising),
    "nms": (_LONG, suppression),
    "successors": (("DINO", "DINO, class weight 2", "varifocal", "iou_aware", "position", "matchability"), successors),
}


def _times_100(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _runs(document: Document, variant: str) -> list[Row]:
    return [row for row in document["runs"] if row["variant"] == variant]


def new_panels(count: int, width: float = 4.6) -> tuple[Any, Sequence[Any]]:
    """Return a figure with panels side by side, each `width` inches wide."""
    figure, panels = panels_of(1, count, 3.8, width=width, share=False)
    return figure, panels[0]


def _curve(
    axes: Any,
    document: Document,
    variant: str,
    value: Callable[[Row], float | None],
    colour: str,
    label: str,
    **style: Any,
) -> None:
    """Draw the mean over the seeds against the steps, with a band of its 95 % interval."""
    by_step: dict[int, list[float]] = {}
    for run in _runs(document, variant):
        for row in run["history"]:
            if (number := value(row)) is not None:
                by_step.setdefault(row["step"], []).append(number)
    steps = sorted(by_step)
    means, widths = (np.array(column) for column in zip(*(interval(by_step[step]) for step in steps), strict=True))
    axes.plot(steps, means, color=colour, label=label, linewidth=1.8, marker="o", markersize=4, **style)
    axes.fill_between(steps, means - widths, means + widths, color=colour, alpha=0.15, linewidth=0)


def _dots(document: Document, variants: dict[str, str], columns: Sequence[tuple[str, Value]], baseline: str) -> Any:
    """Draw a panel per number: a point per seed, lines between runs of one seed, means with their intervals."""
    figure, panels = new_panels(len(columns), width=4.2)
    for axes, (title, value) in zip(panels, columns, strict=True):
        numbers = [{run["seed"]: value(run["history"]) for run in _runs(document, name)} for name in variants]
        for seed in sorted(set.intersection(*(set(each) for each in numbers))):
            axes.plot([each[seed] for each in numbers], color="#bbbbbb", linewidth=0.8, marker="o", markersize=3)
        for place, (name, each) in enumerate(zip(variants, numbers, strict=True)):
            middle, width = interval(list(each.values()))
            width = width if len(each) > 2 else None  # Student's t of two seeds would set the scale
            colour = BLUE if name == baseline else BLACK
            axes.errorbar(place, middle, width, color=colour, marker="s", capsize=4, markersize=6, linewidth=1.6)
        axes.set_xticks(range(len(variants)), variants.values(), fontsize=8)
        axes.set_xlim(-0.4, len(variants) - 0.6)
        axes.set_title(title, fontsize=10)
    return figure


def about(document: Document, variants: Sequence[str]) -> str:
    """Return the lines below a figure of some variants."""
    counts = [len(_runs(document, variant)) for variant in variants]
    seeds = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else f"{max(counts)}"
    return f"Means of {seeds} seeds, and 95 % intervals of 3 or more.\n{caption(document['machine'])}"
