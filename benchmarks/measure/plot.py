"""Draw growth: time against queries, image size and samples, on logarithmic axes."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure.machine import caption

# Okabe and Ito's palette, distinct with any colour vision, and in grey by marker and dash.
STYLES = {
    "reference": {"color": "#000000", "marker": "o"},
    "cpu": {"color": "#0072B2", "marker": "s"},
    "cuda": {"color": "#009E73", "marker": "D"},
    "triton": {"color": "#D55E00", "marker": "^"},
}
DASHES = {"forward": "-", "forward+backward": (0, (4, 2))}
# What is fixed, and the expected slope of the time.
PANELS = {
    "queries": ("800x1333 image, K = 16", 1.0),
    "image": ("Q = 900, K = 16", 0.0),
    "samples": ("800x1333 image, Q = 900", 1.0),
}


def panels_of(rows: int, columns: int, height: float, *, width: float = 4.4, share: bool = True) -> tuple[Any, Any]:
    """Return a figure and its panels; `share`: one y axis for all, one x axis for each column. Sizes are in inches."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sharing = {"sharex": "col" if share else "none", "sharey": share}
    figure, panels = plt.subplots(rows, columns, figsize=(width * columns, height), squeeze=False, **sharing)
    for axes in panels.flat:
        axes.grid(True, color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return figure, panels


def _logarithmic(axes: Any, xs: list[int]) -> None:
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(xs, [f"{x:,}" for x in xs])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")


def save(figure: Any, about: str, bottom: float, top: float, path: Path) -> Path:
    """Write a figure with lines about it, below `bottom` of its height; return the path."""
    import matplotlib.pyplot as plt

    figure.text(0.5, 0.01, about, ha="center", fontsize=8, color="#444444")
    figure.tight_layout(rect=(0, bottom, 1, top))
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def growth(document: dict[str, Any], path: Path) -> Path:
    """Draw a panel for each series of deformable attention into a PNG; return its path."""
    rows = document["growth"]
    series = list(dict.fromkeys(row["series"] for row in rows))
    figure, panels = panels_of(1, len(series), 4.4)
    for axes, name in zip(panels[0], series, strict=True):
        mine = [row for row in rows if row["series"] == name]
        for implementation in dict.fromkeys(row["implementation"] for row in mine):
            for which, dash in DASHES.items():
                line = [r for r in mine if (r["implementation"], r["pass"]) == (implementation, which)]
                xs, ys = [row["x"] for row in line], [row["median_ms"] for row in line]
                label = f"{'' if implementation == 'reference' else 'dino_kernels '}{implementation}, {which}"
                axes.plot(xs, ys, linestyle=dash, linewidth=1.8, markersize=5.5, label=label, **STYLES[implementation])
        fixed, slope = PANELS[name]
        _guide(axes, mine, slope)
        axes.set_title(fixed, fontsize=10, color="#444444")
        _logarithmic(axes, sorted({row["x"] for row in mine}))
        axes.set_xlabel(mine[0]["label"])
    panels[0][0].set_ylabel("time of one call, ms (median)")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=3, frameon=False, bbox_to_anchor=(0.5, 1.0))
    about = f"fused_ms_deform_attn, float32, scattered samples. {caption(document['machine'])}"
    return save(figure, about, 0.04, 0.88, path)


def _guide(axes: Any, rows: list[dict[str, Any]], slope: float) -> None:
    """Draw a thin grey line of the expected slope, under the fastest curve's first point."""
    xs = sorted({row["x"] for row in rows})
    fastest = min(row["median_ms"] for row in rows if row["x"] == xs[0])
    ys = [0.6 * fastest * (x / xs[0]) ** slope for x in xs]
    label = "expected slope: 1, or flat for image size"
    axes.plot(xs, ys, color="#999999", linestyle=":", linewidth=1.4, label=label)


MATCHING_STYLES = STYLES | {
    "dino": {"color": "#000000", "marker": "o"},
    "scipy": {"color": "#000000", "marker": "o"},
    "reference": {"color": "#999999", "marker": "x"},
}
MATCHING_LABELS = {
    "dino": "what DINO does: every pair of the batch, then SciPy for each image",
    "reference": "dino_kernels reference",
}
MATCHING_ROWS = {
    "matching_cost": "cost",
    "linear_sum_assignment": "assignment",
    "hungarian_match": "both: the matcher",
}
MATCHING_PANELS = {
    "targets": "B = 2, Q = 900",
    "queries": "B = 2, T = 20",
    "problems": "T = 7, Q = 900",
}


def matching_growth(document: dict[str, Any], path: Path) -> Path:
    """Draw a row of panels for each job of matching, a column for each series, into a PNG; return its path."""
    rows = document["matching_growth"]
    series = list(dict.fromkeys(row["series"] for row in rows))
    ops = [op for op in MATCHING_ROWS if any(row["op"] == op for row in rows)]
    figure, panels = panels_of(len(ops), len(series), 2.9 * len(ops) + 1.1)
    handles: dict[str, Any] = {}
    for op, line_of_panels in zip(ops, panels, strict=True):
        for name, axes in zip(series, line_of_panels, strict=True):
            mine = [row for row in rows if (row["series"], row["op"]) == (name, op)]
            for who in dict.fromkeys(row["implementation"] for row in mine):
                line = [row for row in mine if row["implementation"] == who]
                xs, ys = [row["x"] for row in line], [row["median_ms"] for row in line]
                style = MATCHING_STYLES[who]
                (handle,) = axes.plot(xs, ys, linewidth=1.8, markersize=5.5, **style)
                label = MATCHING_LABELS["dino"] if who == "scipy" else MATCHING_LABELS.get(who, f"dino_kernels {who}")
                handles.setdefault(label, handle)
            _logarithmic(axes, sorted({row["x"] for row in rows if row["series"] == name}))
            if op == ops[0]:
                axes.set_title(MATCHING_PANELS[name], fontsize=10, color="#444444")
            if op == ops[-1]:
                axes.set_xlabel(next(row["label"] for row in rows if row["series"] == name))
        line_of_panels[0].set_ylabel(f"{MATCHING_ROWS[op]}\ntime of one call, ms (median)")
    figure.legend(handles.values(), handles, loc="upper center", ncols=2, frameon=False, bbox_to_anchor=(0.5, 1.0))
    about = f"7 sets, float32, middle of training. {caption(document['machine'])}"
    return save(figure, about, 0.03, 0.95, path)


DATA_STYLES = {
    "first start": ("dino, first start", {"color": "#0072B2", "marker": "s"}),
    "later start": ("dino, later starts", {"color": "#009E73", "marker": "D"}),
    "json.load": ("json.load alone", {"color": "#000000", "marker": "o"}),
    "faster_coco_eval.COCO": ("faster_coco_eval.COCO", {"color": "#D55E00", "marker": "^"}),
}


def large_data(document: dict[str, Any], path: Path) -> Path:
    """Draw time and memory of reading annotations against their number into a PNG; return its path."""
    rows = document["large_data"]
    figure, panels = panels_of(1, 2, 4.4, share=False)
    for axes, field, label in zip(
        panels[0],
        ("seconds", "peak_mib"),
        ("time until the data are open, s", "memory of the process, MiB"),
        strict=True,
    ):
        for what, (name, style) in DATA_STYLES.items():
            line = [row for row in rows if row["what"] == what]
            xs = sorted({row["boxes"] for row in line})
            ys = [median(row[field] for row in line if row["boxes"] == x) for x in xs]
            axes.plot(xs, ys, linewidth=1.8, markersize=5.5, label=name, **style)
        _logarithmic(axes, sorted({row["boxes"] for row in rows}))
        axes.set(xlabel="boxes", ylabel=label)
        if field == "peak_mib":
            axes.set_yticks([250, 500, 1000, 2000, 4000])
        axes.set_xticks(axes.get_xticks(), [f"{x / 1e6:g} million" for x in axes.get_xticks()])
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=4, frameon=False, bbox_to_anchor=(0.5, 1.0))
    return save(figure, f"COCO JSON made up after Objects365. {caption(document['machine'])}", 0.04, 0.92, path)
