"""`python -m dino weights`: published checkpoints, listed and downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from dino.commands.parsing import parse


@dataclass(frozen=True, kw_only=True)
class WeightsOptions:
    """List the published checkpoints that --checkpoint and --finetune know by name, or download some.

    They are trained on COCO train2017. AP is the published one on val2017; it has not been measured here.
    """

    names: Positional[Annotated[tuple[str, ...], arg(metavar="[NAME ...]", help_behavior_hint="")]] = ()
    """Checkpoints to download into torch's cache, for example before leaving the network; by default none, and all are
    listed."""
    addresses: bool = False
    """List the address of each file, and where it belongs, too."""


def weights_command(argv: Sequence[str]) -> None:
    """Print the table, or download and print the paths."""
    options = parse(WeightsOptions, "weights", argv)
    from dino.checkpoint.published import PUBLISHED, require_published

    for name in options.names:
        require_published("weights", name)
    if options.names:
        for name in options.names:
            print(PUBLISHED[name].download())
        return
    print(table(addresses=options.addresses))


def table(*, addresses: bool = False) -> str:
    """Return the published checkpoints as text, one line each, or three with their addresses."""
    from dino.checkpoint.published import PUBLISHED

    rows = [("name", "model", "AP", "MB", "licence", "")]
    for row in PUBLISHED.values():
        cached = row.path.exists()
        size = f"{row.path.stat().st_size / 1e6:.0f}" if cached else f"~{row.megabytes}"
        rows.append((row.name, row.model, f"{row.ap:.1f}", size, row.licence, "in the cache" if cached else ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        aligned = zip(row, widths, (str.ljust, str.ljust, str.rjust, str.rjust, str.ljust, str.ljust), strict=True)
        cells = [align(cell, width) for cell, width, align in aligned]
        lines.append("  ".join(cells).rstrip())
        if addresses and row[0] in PUBLISHED:
            lines += [f"    {PUBLISHED[row[0]].url}", f"    {PUBLISHED[row[0]].path}"]
    return "\n".join(
        [
            *lines,
            "",
            "80 classes of COCO; AP on val2017 as published. ~MB counts the weights: a file may hold more.",
            "To use one: python -m dino predict --checkpoint NAME IMAGES. The authors' own files are in a shared",
            "folder without addresses: download one by hand and pass its path with --preset.",
        ]
    )
