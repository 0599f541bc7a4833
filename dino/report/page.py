"""Assemble the page: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from string import Template

from dino.common.text import counted, percent, shorten
from dino.data import NO_CATEGORY
from dino.evaluation.analysis import Analysis, ClassResult
from dino.evaluation.coco_metrics import CocoMetrics
from dino.evaluation.curves import RECALLS, THRESHOLDS
from dino.report.charts import BLACK, COLOURS, GREY, Line, legend, line_chart
from dino.report.style import PAGE
from dino.report.tables import class_table, confusion_labels, confusion_list, confusion_table, error_table

FEW_BOXES = 10
"""Below, the numbers of a class are rough."""


@dataclass(frozen=True)
class Subject:
    """What was evaluated, in words."""

    model: str
    data: str
    images_in_split: int
    """Images of the split, those that were left out included."""
    left_out: tuple[str, ...] = ()
    """A line for each image that was left out."""
    predict: str = ""
    """The command that uses the thresholds."""
    thresholds_file: str | None = None
    """Where the thresholds were stored."""


@dataclass(frozen=True)
class Card:
    """One of the worst images. The drawings are data URIs; empty if the image could not be read."""

    name: str
    summary: str
    errors: list[str]
    truth: str
    found: str


def page(subject: Subject, metrics: CocoMetrics, analysis: Analysis, cards: Sequence[Card]) -> str:
    """Return the whole page as HTML."""
    return Template(PAGE).substitute(
        title=escape(f"Evaluation of {subject.model}"),
        subject=escape(
            f"{subject.model} on {subject.data}: {counted(metrics.num_images, 'image')}, "
            f"{counted(metrics.num_boxes, 'box')}, {counted(len(metrics.per_class), 'class')}"
        ),
        numbers="".join(f"<div><b>{percent(n)}</b>{name}</div>" for name, n in _numbers(metrics, analysis)),
        notes="".join(f"<li>{escape(note)}</li>" for note in notes(subject, analysis)),
        errors=error_table(analysis),
        sizes=escape(_found_by_size(analysis)),
        threshold=_threshold(subject, analysis),
        classes=class_table(analysis, metrics),
        curves="".join(f"<figure>{line_chart(*chart)}{legend(chart[0])}</figure>" for chart in charts(analysis)),
        matrix=_matrix(analysis),
        worst=_worst(analysis, cards),
        left_out="".join(f"<li>{escape(line)}</li>" for line in subject.left_out) or "<li>none</li>",
    )


def charts(analysis: Analysis) -> list[tuple[list[Line], str, str]]:
    """Return the lines and the names of the axes of the two charts: precision over recall, F1 over the threshold."""
    shown = [result for result in analysis.classes if result.curve.num_true]
    # Classes without a right detection have no curve to see; the notes name them.
    rising = sorted((r for r in shown if r.curve.best is not None), key=lambda result: result.curve.ap50)
    coloured = rising[: len(COLOURS)]
    precision, f1 = [], []
    for result in sorted(shown, key=lambda result: -result.curve.ap50):
        style = _style(result, coloured, len(shown))
        curve, best = result.curve, result.curve.best
        precision.append(Line(f"{result.title}: AP50 {percent(curve.ap50)}", RECALLS, curve.precision, *style))
        text = f"{result.title}: F1 {percent(best.f1)} at {best.threshold:g}" if best else f"{result.title}: F1 0"
        dot = (best.threshold, best.f1) if best and result in coloured else None
        f1.append(Line(text, THRESHOLDS, curve.f1, *style, dot=dot))
    mean, best = analysis.mean_precision, analysis.pooled.best
    if shown:
        name = f"mean of the classes: AP50 {percent(float(mean.mean()))}"
        precision.append(Line(name, RECALLS, mean, BLACK, 2.5))
    if best is not None:
        name = f"all boxes together: F1 {percent(best.f1)} at {best.threshold:g}"
        f1.append(Line(name, THRESHOLDS, analysis.pooled.f1, BLACK, 2.5, dot=(best.threshold, best.f1)))
    return [(precision, "recall", "precision"), (f1, "threshold", "F1")]


def _style(result: ClassResult, coloured: list[ClassResult], count: int) -> tuple[str, float, str]:
    """Return colour, width and key of the line of a class; many grey lines are thin."""
    key = f"c{result.label}"
    if result in coloured:
        return COLOURS[coloured.index(result)], 1.6, key
    return GREY, 1.0 if count <= 30 else 0.5, key


def notes(subject: Subject, analysis: Analysis) -> list[str]:
    """Return what a reader must know before the numbers."""
    lines = []
    if subject.left_out:
        lines.append(
            f"Left out: {len(subject.left_out):,} of {counted(subject.images_in_split, 'image')}, listed below."
        )
    if not analysis.pooled.num_true:
        lines.append("These images have no true boxes: there is no precision or recall to compute.")
    elif analysis.pooled.best is None:
        lines.append("No detection is right at any threshold. Errors are counted at a threshold of 0.3.")
    if analysis.empty_boxes:
        lines.append(f"{counted(analysis.empty_boxes, 'true box')} without width or height can only be missed.")
    categories = analysis.categories
    named = zip(categories.titles, categories.names, analysis.num_true, strict=True)
    absent = [title for title, name, count in named if not count and name != NO_CATEGORY]
    if absent and analysis.pooled.num_true:
        lines.append(f"Without a true box here, so without AP: {shorten(absent)}.")
    few = [f"{r.title} ({r.curve.num_true})" for r in analysis.classes if 0 < r.curve.num_true < FEW_BOXES]
    if few:
        lines.append(f"Fewer than {FEW_BOXES} true boxes, so the numbers are rough: {shorten(few)}.")
    never = [r.title for r in analysis.classes if r.curve.num_true and r.curve.best is None]
    if never and analysis.pooled.best is not None:
        lines.append(f"Never detected right at any threshold: {shorten(never)}.")
    return lines


def _numbers(metrics: CocoMetrics, analysis: Analysis) -> list[tuple[str, float]]:
    point = analysis.point
    return [
        ("AP", metrics.AP), ("AP50", metrics.AP50), ("AP75", metrics.AP75),
        ("precision", point.precision), ("recall", point.recall), ("F1", point.f1),
    ]  # fmt: skip


def _found_by_size(analysis: Analysis) -> str:
    sizes, found = analysis.errors.sizes, analysis.errors.sizes_found
    names = ("small (up to 32x32 pixels)", "medium (up to 96x96)", "large")
    parts = [f"{percent(found[k] / sizes[k])} % of {sizes[k]:,} {name}" for k, name in enumerate(names) if sizes[k]]
    return f"True boxes found by size: {', '.join(parts)}." if parts else ""


def _threshold(subject: Subject, analysis: Analysis) -> str:
    best = analysis.pooled.best
    if best is None:
        return "<p>There is no best threshold.</p>"
    command = ""
    if subject.thresholds_file is not None:
        command = (
            f" The thresholds are stored in <code>{escape(subject.thresholds_file)}</code>, and "
            f"<code>{escape(subject.predict)}</code> uses them."
        )
    return (
        f"<p>Each class is judged at its own threshold, where its F1 is highest.{command} The best single threshold "
        f"for all classes is <b>{best.threshold:g}</b> (precision {percent(best.precision)}, recall "
        f"{percent(best.recall)}, F1 {percent(best.f1)}).</p>"
    )  # fmt: skip


def _matrix(analysis: Analysis) -> str:
    labels = confusion_labels(analysis)
    some = f"<p>The {len(labels)} classes with most errors of {len(analysis.classes):,}.</p>"
    pairs = confusion_list(analysis)
    frequent = f"<p>Most frequent confusions, in per cent of the true boxes: {escape(pairs)}.</p>" if pairs else ""
    return ("" if len(labels) == len(analysis.classes) else some) + confusion_table(analysis, labels) + frequent


def _worst(analysis: Analysis, cards: Sequence[Card]) -> str:
    bad, total = analysis.errors.images_with_errors, analysis.num_images
    if not bad:
        return "<p>No image has errors.</p>"
    some = f"; the {len(cards)} worst are shown" if bad > len(cards) else ""
    count = f"{bad:,} of {counted(total, 'image')} {'has' if bad == 1 else 'have'} errors{some}"
    return f"<p>{count}: the true boxes, then the detections.</p>{''.join(map(_card, cards))}"


def _card(card: Card) -> str:
    drawings = "".join(
        f'<img src="{source}" alt="{name} of {escape(card.name)}" loading="lazy">'
        for name, source in (("true boxes", card.truth), ("detections", card.found))
        if source
    )
    lines = "".join(f"<li>{escape(line)}</li>" for line in card.errors)
    return (
        f'<figure class="card"><figcaption><b>{escape(card.name)}</b> {escape(card.summary)}</figcaption>'
        f'<div class="pair">{drawings or "<p>This image could not be read.</p>"}</div><ul>{lines}</ul></figure>'
    )
