"""Format tables as text and as Markdown, and the cells in them."""

from __future__ import annotations

from typing import Any

Table = list[list[str]]  # the first row is the header
# Columns aligned to the left.
WORDS = (
    *("workload", "baseline", "kernel", "per", "op", "by", "model", "pass", "part", "mode", "step", "switch"),
    *("claim", "measure", "result", "counted"),
)


def milliseconds(row: dict[str, Any]) -> str:
    return f"{row['median_ms']:.3g}" if row["median_ms"] < 100 else f"{row['median_ms']:.0f}"


def ratio(spread: dict[str, Any] | None) -> str:
    if spread is None:
        return "-"
    digits = 2 if spread["median"] < 0.1 else 1 if spread["median"] < 100 else 0
    return f"{spread['median']:.{digits}f}x"


def as_text(table: Table) -> str:
    """Align words to the left and numbers to the right; leave out a repeated first column."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines, previous = [], None
    for row in table:
        shown = ["" if row[0] == previous else row[0], *row[1:]]
        previous = row[0]
        columns = zip(table[0], shown, widths, strict=True)
        lines.append("  ".join(c.ljust(w) if name in WORDS else c.rjust(w) for name, c, w in columns).rstrip())
    return "\n".join(lines)


def as_markdown(table: Table) -> str:
    header, *rows = table
    rule = ["---" if name in WORDS else "---:" for name in header]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))
