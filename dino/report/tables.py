"""Write the tables of the page as HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from dino.common.text import counted, percent, shorten
from dino.evaluation.analysis import Analysis, ClassResult
from dino.evaluation.coco_metrics import CocoMetrics
from dino.evaluation.errors import BACKGROUND, ERRORS, Kind

# A matrix of more is too small to read; confusions.csv has all.
MOST_LABELS = 24
_ADVICE = {
    Kind.MISSED: "No detection is near. Add images with such objects, or train longer; for small ones, use larger "
    "images (--short-side, --short-sides).",
    Kind.WRONG_CLASS: "The box is right and the class is not. Check these labels, add images that tell the classes "
    "apart, or merge them.",
    Kind.POOR_BOX: "The class is right, and the box overlaps by less than half. Check how tightly boxes are drawn, or "
    "train longer.",
    Kind.DUPLICATE: "One object has several detections. Raise the threshold, or train longer: DINO learns to "
    "suppress them.",
    Kind.FALSE_ALARM: "Nothing is labelled there. If an object is there, its annotation is missing; otherwise, add "
    "images with such background.",
}


def error_table(analysis: Analysis) -> str:
    """Return the kinds of errors, most frequent first, with the classes they concern and what helps."""
    counts = {kind: analysis.errors.count(kind) for kind in ERRORS}
    most = max(counts.values())
    if not most:
        return "<p>Nothing: every true box is found, and every detection is right.</p>"
    rows = [
        f"<tr><th>{kind}</th><td class=n>{count:,}</td>"
        f'<td class=bar><div style="width:{100 * count / most:.0f}%"></div></td>'
        f"<td>{escape(_concerned(analysis, kind))}</td><td class=advice>{escape(_ADVICE[kind]) if count else ''}</td>"
        for kind, count in sorted(counts.items(), key=lambda item: -item[1])
    ]
    head = "<tr><th>error<th>count<th><th>where most<th>what it means, what helps</tr>"
    return f"<div class=scroll><table class=errors><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table></div>"


def _concerned(analysis: Analysis, kind: Kind) -> str:
    """Return the three classes, or pairs of classes, with most errors of a kind, and their counts."""
    if kind is Kind.WRONG_CLASS:
        return confusion_list(analysis, 3)
    counts = (analysis.errors.true if kind is Kind.MISSED else analysis.errors.found)[kind]
    return shorten(f"{analysis.title(label)}: {count:,}" for label, count in counts.most_common(3) if count)


def class_table(analysis: Analysis, metrics: CocoMetrics) -> str:
    """Return one row per class, those with most errors first; a click on a heading sorts."""
    columns = (
        ("class", "", lambda r: escape(r.title)),
        ("boxes", "true boxes", lambda r: f"{r.curve.num_true:,}"),
        ("AP", "average precision, per cent", lambda r: percent(metrics.per_class.get(r.title, math.nan))),
        ("AP50", "average precision at IoU 0.5", lambda r: percent(r.curve.ap50)),
        ("threshold", "score of the highest F1", _threshold),
        ("precision", "right detections of all, per cent, at the threshold", lambda r: percent(r.point.precision)),
        ("recall", "true boxes found, per cent, at the threshold", lambda r: percent(r.point.recall)),
        ("F1", "harmonic mean of both", lambda r: percent(r.point.f1)),
        ("errors", "the next five columns together", lambda r: f"{r.num_errors:,}"),
        ("missed", "true boxes without any detection", lambda r: f"{r.true[Kind.MISSED]:,}"),
        ("wrong class", "true boxes detected as another class", lambda r: f"{r.true[Kind.WRONG_CLASS]:,}"),
        ("poor box", "true boxes overlapped by less than half", lambda r: f"{r.true[Kind.POOR_BOX]:,}"),
        ("duplicate", "second detections of one object", lambda r: f"{r.found[Kind.DUPLICATE]:,}"),
        ("false alarm", "detections where nothing is labelled", lambda r: f"{r.found[Kind.FALSE_ALARM]:,}"),
        ("IoU", "mean overlap of the boxes found, per cent", lambda r: percent(r.mean_iou)),
    )  # fmt: skip
    head = "".join(f'<th title="{escape(note)}" tabindex=0>{name}' for name, note, _ in columns)
    rows = [
        f'<tr data-key="c{r.label}">' + "".join(f"<td>{cell(r)}" for _, _, cell in columns)
        for r in sorted(analysis.classes, key=lambda r: (-r.num_errors, r.point.f1))
    ]
    return (
        f'<div class="scroll tall"><table class="classes"><thead><tr>{head}</thead><tbody>{"".join(rows)}</tbody>'
        "</table></div>"
    )


def _threshold(result: ClassResult) -> str:
    return f"{result.point.threshold:g}" if result.curve.best is not None else "-"


def confusion_labels(analysis: Analysis) -> list[int]:
    """Return the labels of the matrix: all classes, or those with most errors, in the order of the labels."""
    ranked = sorted(analysis.classes, key=lambda result: -result.num_errors)
    return sorted(result.label for result in ranked[:MOST_LABELS])


def confusion_list(analysis: Analysis, most: int = 10) -> str:
    """Return the most frequent confusions in words, for a class in per cent of its true boxes."""
    pairs = ((*pair, n) for pair, n in analysis.errors.confusions.most_common() if BACKGROUND not in pair)
    confused = [
        f"{analysis.title(true)} as {analysis.title(found)}: {n:,} ({percent(n / analysis.num_true[true])} %)"
        for true, found, n in pairs
        if true != found
    ]
    return "; ".join(confused[:most])


def confusion_table(analysis: Analysis, labels: Sequence[int]) -> str:
    """Return the confusion matrix: a row for each true class, a column for each detected one, background last."""
    confusions, axis = analysis.errors.confusions, [*labels, BACKGROUND]
    heads = "".join(f"<th><span>{escape(analysis.title(label))}</span>" for label in axis)
    totals = {true: sum(n for (row, _), n in confusions.items() if row == true) for true in axis}
    rows = []
    for true in axis:
        cells = []
        for found in axis:
            count = confusions[true, found]
            share = count / max(totals[true], 1)
            colour = "0,114,178" if true == found else "213,94,0"
            of = f"{counted(totals[true], 'detection' if true == BACKGROUND else 'box')} of {analysis.title(true)}"
            note = escape(f"{count:,} of {of} ({percent(share)} %): {analysis.title(found)}")
            shade = f' style="background:rgba({colour},{0.12 + 0.7 * share:.2f})" title="{note}"' if count else ""
            cells.append(f"<td{shade}>{count or ''}")
        rows.append(f"<tr><th>{escape(analysis.title(true))}{''.join(cells)}")
    return (
        f"<div class=scroll><table class=confusion><thead><tr><th class=corner>true &darr; detected &rarr;{heads}"
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
