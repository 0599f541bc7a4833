"""`python -m dino summary`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from dino.commands.parsing import parse


@dataclass(frozen=True)
class SummaryOptions:
    """List a model's parts with their outputs, parameters and operations. Computes nothing: no weights are needed."""

    preset: str = "dino_4scale_r50"
    """A name of dino.PRESETS; a wrong one lists them."""
    size: tuple[int, int] = (800, 1333)
    """Height and width of the image in pixels."""


def summary_command(argv: Sequence[str]) -> None:
    """Print the summary of a preset."""
    options = parse(SummaryOptions, "summary", argv)
    from dino.commands.summary_table import summarise

    width = min(max(shutil.get_terminal_size((100, 24)).columns, 80), 110)
    print(summarise(options.preset, options.size).table(width))
