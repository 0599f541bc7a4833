"""Options of the commands, and their parsing."""

from __future__ import annotations

import inspect
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro
from tyro.conf import arg

if TYPE_CHECKING:
    import torch

    from dino.inference.detector import Detector

Options = TypeVar("Options")
OptionalFile = Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")]
OptionalFolder = Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")]
OptionalName = Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")]
OptionalPixels = Annotated[int | None, arg(metavar="PIXELS", help_behavior_hint="")]
Number = Annotated[int, arg(metavar="N")]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Model to use, and where to run it."""

    checkpoint: Annotated[Path, arg(metavar="PATH")]
    """Folder of a run (for its best model), folder or file of a model, official weights with --preset, an exported
    file, or the name of a published checkpoint (python -m dino weights)."""
    preset: OptionalName = None
    """Model of official weights, for example dino_4scale_r50."""
    short_side: OptionalPixels = None
    """Shorter side of the images; by default as in the model's run, or 800."""
    long_side: OptionalPixels = None
    """Longest side of the images; by default as in the model's run, or 1333."""
    device: Annotated[str, arg(metavar="NAME")] = "auto"
    """Where to run: auto (a GPU if there is one), cpu, cuda, cuda:1, ..."""

    def detector(self, device: torch.device | str | None = None) -> Detector:
        """Load the detector for these options; `device` overrides the option."""
        return self._load(device)

    def _load(self, device: torch.device | str | None, **options: Any) -> Detector:
        from dino.export.runtime import is_exported
        from dino.inference.detector import Detector

        chosen = None if self.device == "auto" else self.device
        if is_exported(self.checkpoint):
            fixed = {name: getattr(self, name) for name in ("preset", "short_side", "long_side")}
            fixed |= {"compile": options.get("compile") or None}
            fixed |= {"dtype": None if options.get("dtype", "auto") in ("auto", "float32") else options["dtype"]}
            for name, value in fixed.items():
                if value is not None:
                    option = name.replace("_", "-")
                    raise ValueError(f"--{option} cannot change an exported file, {self.checkpoint}. Leave it out.")
            return Detector.from_exported(self.checkpoint, device=device or chosen)
        return Detector.from_checkpoint(
            self.checkpoint,
            preset=self.preset,
            short_side=self.short_side,
            long_side=self.long_side,
            device=device or chosen,
            **options,
        )


@dataclass(frozen=True, kw_only=True)
class RunOptions(ModelOptions):
    """Model to use, and how to run it."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision: auto is bfloat16 on a CPU with instructions for it, and float32 anywhere else."""
    compile: bool = False
    """Compile the model: minutes at the first image and the first of another size, then faster."""

    def detector(self, device: torch.device | str | None = None) -> Detector:
        """Load the detector for these options; `device` overrides the option."""
        return self._load(device, dtype=self.dtype, compile=self.compile)


def parse(options: type[Options], command: str, argv: Sequence[str]) -> Options:
    """Parse the arguments of a command; the docstrings of the fields are the help.

    Exits with 0 after `--help`, and with 2 and a suggestion for an unknown argument.
    """
    return tyro.cli(
        options,
        args=list(argv),
        prog=f"python -m dino {command}",
        description=description(options),
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def description(options: type) -> str:
    """Return the docstring of a command's options, wrapped to the terminal."""
    width = min(shutil.get_terminal_size((80, 24)).columns, 100)
    paragraphs = (inspect.getdoc(options) or "").split("\n\n")
    # tyro joins the lines of a paragraph, and the terminal would break them within words; lines that begin with a space
    # stay as they are.
    wrapper = textwrap.TextWrapper(width, initial_indent=" ", subsequent_indent=" ", break_on_hyphens=False)
    return "\n".join(wrapper.fill(text) for text in paragraphs)
