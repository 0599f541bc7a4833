"""Draw the curves of a run."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from dino.common.files import write_whole
from dino.training.log import read_log

_BLUE, _ORANGE, _GREEN, _GREY = "#1f5fa8", "#d9722b", "#3a8f4d", "#8a8a8a"
_MOST_POINTS = 2000


def matplotlib_is_installed() -> bool:
    return find_spec("matplotlib") is not None


def draw_curves(folder: Path, title: str = "") -> Path:
    """Draw loss, learning rate and average precision over epochs from a run's log.csv.

    Args:
        folder: the run's folder.
        title: title of the figure.

    Returns:
        The path of curves.png in the folder; an older file is replaced.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: the log has no row.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('curves need matplotlib. Install it: pip install -e ".[plots]"') from error
    rows = read_log(folder / "log.csv")
    steps = [row for row in rows if "loss" in row]
    if not rows:
        raise ValueError(f"{folder / 'log.csv'} has no rows yet. Draw the curves after the first step")
    evaluations = [row for row in rows if "AP" in row]

    figure = Figure(figsize=(11, 4.2), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_losses(left, steps)
    _draw_precision(right, evaluations)
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.set_xlim(0, max(row["epoch"] for row in rows))
        axes.xaxis.get_major_locator().set_params(integer=max(row["epoch"] for row in rows) >= 2)
        axes.grid(True, color="#e6e6e6", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    if title:
        figure.suptitle(title, fontsize=11)
    path = folder / "curves.png"
    write_whole(path, lambda new: figure.savefig(new, format="png"))
    return path


def _draw_losses(axes: Any, steps: Sequence[dict[str, float]]) -> None:
    axes.set_ylabel("training loss")
    if not steps:
        _say(axes, "no finite losses yet")
        return
    epochs = [row["epoch"] for row in steps]
    losses = [row["loss"] for row in steps]
    thin = max(1, len(steps) // _MOST_POINTS)
    axes.plot(epochs[::thin], losses[::thin], color=_BLUE, alpha=0.25, linewidth=0.8)
    axes.plot(epochs[::thin], _smooth(losses)[::thin], color=_BLUE, linewidth=1.8, label="loss, smoothed")
    # The first losses are far above all others and would flatten the rest of the curve.
    ordered = sorted(losses)
    axes.set_ylim(0, 1.15 * ordered[min(len(ordered) - 1, int(0.98 * len(ordered)))])
    drops = [after["epoch"] for before, after in pairwise(steps) if after["lr"] < 0.5 * before["lr"]]
    for index, epoch in enumerate(drops):
        label = "learning rate x 0.1" if index == 0 else None
        axes.axvline(epoch, color=_GREY, linestyle="--", linewidth=1, label=label)
    _legend(axes, "upper right")


def _draw_precision(axes: Any, evaluations: Sequence[dict[str, float]]) -> None:
    axes.set_ylabel("validation, per cent")
    axes.set_ylim(0, 100)
    if not evaluations:
        _say(axes, "not evaluated yet")
        return
    lines = (
        ("AP", "AP", _BLUE, "-"),
        ("AP50", "AP50", _ORANGE, "-"),
        ("AP75", "AP75", _GREEN, "-"),
        ("AP_ema", "AP, averaged weights", _BLUE, "--"),
    )
    marker = "o" if len(evaluations) <= 60 else None
    for column, label, colour, style in lines:
        points = [(row["epoch"], 100 * row[column]) for row in evaluations if column in row]
        if points:
            axes.plot(*zip(*points, strict=True), style, color=colour, marker=marker, markersize=3.5, label=label)
    highest = max(100 * row[column] for row in evaluations for column, *_ in lines if column in row)
    axes.set_ylim(0, min(100, max(5, 1.15 * highest)))
    _legend(axes, "best")


def _say(axes: Any, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=_GREY)


def _legend(axes: Any, place: str) -> None:
    axes.legend(fontsize=9, loc=place, facecolor="white", edgecolor="none", framealpha=0.9)


def _smooth(values: Sequence[float]) -> list[float]:
    """Return running means, over a fortieth of the run to either side."""
    reach = len(values) // 40
    row = torch.tensor([values], dtype=torch.float64)
    return F.avg_pool1d(row, 2 * reach + 1, stride=1, padding=reach, count_include_pad=False)[0].tolist()
