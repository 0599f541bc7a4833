"""Draw line charts as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B37800", "#56B4E9", "#882255", "#332288")
GREY, BLACK = "#c4c9cf", "#111111"
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 520, 340, 44, 40, 12


@dataclass(frozen=True)
class Line:
    """A line of a chart, with x and y in 0..1."""

    name: str
    x: np.ndarray  # [P]
    y: np.ndarray  # [P]
    colour: str = GREY
    width: float = 1.0
    key: str = ""
    """Joins the lines and table rows of a class."""
    dot: tuple[float, float] | None = None
    """A point to mark."""


def line_chart(lines: Sequence[Line], x_name: str, y_name: str) -> str:
    """Return a chart as an SVG element, both axes from 0 to 1; the last line is on top."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" font-size="13" '
        f'font-family="system-ui, sans-serif" fill="#444"><title>{escape(y_name)} over {escape(x_name)}</title>'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>'
    ]
    for tick in (0, 0.2, 0.4, 0.6, 0.8, 1):
        x, y = _place(tick, tick)
        parts.append(f'<path d="M{_LEFT} {y}H{_WIDTH - 12}M{x} {_TOP}V{_HEIGHT - _BOTTOM}" stroke="#e7e9ec"/>')
        parts.append(f'<text x="{x}" y="{_HEIGHT - 22}" text-anchor="middle">{tick:g}</text>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{tick:g}</text>')
    middle = (_HEIGHT - _BOTTOM + _TOP) / 2
    parts.append(f'<text x="{(_WIDTH + _LEFT) / 2}" y="{_HEIGHT - 4}" text-anchor="middle">{escape(x_name)}</text>')
    parts.append(f'<text transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">{escape(y_name)}</text>')
    parts += [_line(line) for line in lines]
    return "".join(parts) + "</svg>"


def legend(lines: Sequence[Line]) -> str:
    """Return the names of the coloured lines as an HTML list."""
    items = [
        f'<li data-key="{line.key}"><span style="background:{line.colour}"></span>{escape(line.name)}</li>'
        for line in lines
        if line.colour != GREY
    ]
    return f'<ul class="legend">{"".join(items)}</ul>'


def _line(line: Line) -> str:
    points = [_place(x, y) for x, y in zip(line.x.tolist(), line.y.tolist(), strict=True)]
    # Points within a straight piece add bytes and nothing to see; 400 classes have 80,000 points.
    kept = [
        point
        for k, point in enumerate(points)
        if k in (0, len(points) - 1) or not points[k - 1][1] == point[1] == points[k + 1][1]
    ]
    dot = ""
    if line.dot is not None:
        x, y = _place(*line.dot)
        dot = f'<circle cx="{x}" cy="{y}" r="{line.width + 1.5}" fill="{line.colour}"/>'
    path = " ".join(f"{x:g},{y:g}" for x, y in kept)
    return (
        f'<g data-key="{line.key}"><title>{escape(line.name)}</title><polyline points="{path}" fill="none" '
        f'stroke="{line.colour}" stroke-width="{line.width:g}" stroke-linejoin="round"/>{dot}</g>'
    )


def _place(x: float, y: float) -> tuple[float, float]:
    return (
        round(_LEFT + x * (_WIDTH - 12 - _LEFT), 1),
        round(_HEIGHT - _BOTTOM - y * (_HEIGHT - _BOTTOM - _TOP), 1),
    )
