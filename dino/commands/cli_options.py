"""Options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

if TYPE_CHECKING:
    import torch

    from dino.inference.detector import Detector

OptionalFile = Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")]
OptionalName = Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")]
OptionalPixels = Annotated[int | None, arg(metavar="PIXELS", help_behavior_hint="")]
Number = Annotated[int, arg(metavar="N")]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, and how to run it."""

    checkpoint: Annotated[Path, arg(metavar="PATH")]
    """Folder of a run (its best model is taken), a folder or file of a model, or official weights with --preset."""
    preset: OptionalName = None
    """The model that official weights belong to, for example dino_4scale_r50."""
    short_side: OptionalPixels = None
    """Shorter side of the images; by default as in the model's run, or 800."""
    long_side: OptionalPixels = None
    """Longest side of the images; by default as in the model's run, or 1333."""
    amp: Literal["off", "bf16", "fp16"] = "off"
    """Mixed precision."""
    device: Annotated[str, arg(metavar="NAME")] = "auto"
    """Where to run: auto (a GPU if there is one), cpu, cuda, cuda:1, ..."""

    def detector(self, device: torch.device | str | None = None) -> Detector:
        """The detector that these options describe; `device` in place of the option."""
        from dino.inference.detector import Detector

        return Detector.from_checkpoint(
            self.checkpoint,
            preset=self.preset,
            short_side=self.short_side,
            long_side=self.long_side,
            device=device or (None if self.device == "auto" else self.device),
            amp=self.amp,
        )
