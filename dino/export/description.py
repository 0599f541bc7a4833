"""What an exported file says about itself: configuration, classes, preprocessing."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from PIL import Image
from torch import Tensor

from dino.data import Categories, EvalTransform
from dino.data.transforms import IMAGENET_MEAN, IMAGENET_STD, to_tensors
from dino.model.config import ModelConfig
from dino_kernels import __version__

FORMAT_VERSION = 1
PREFIX = "dino."


class ExportError(ValueError):
    """A model that cannot be exported as requested, or a file that is no export of this package."""


@dataclass(frozen=True)
class FixedSize(EvalTransform):
    """Resize so that an image just fits into a fixed size, and normalise. The file pads the rest."""

    height: int = 800
    width: int = 1333

    def __call__(
        self, image: Image.Image, boxes_xyxy: Tensor, labels: Tensor, rng: random.Random | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        scale = min(self.height / image.height, self.width / image.width)
        size = max(1, int(image.width * scale)), max(1, int(image.height * scale))
        factors = torch.tensor([size[0] / image.width, size[1] / image.height] * 2, dtype=torch.float32)
        return to_tensors(image.resize(size, Image.Resampling.BILINEAR), boxes_xyxy * factors, labels)


@dataclass(frozen=True)
class Description:
    """The metadata of an exported file."""

    model: ModelConfig
    categories: Categories
    transform: EvalTransform
    """The size of the images; of a file of fixed size, `FixedSize`."""
    attention: str
    """A name of `FORMS`."""
    half: bool = False
    detections: int | None = None
    """Detections per image in the outputs; None: the outputs are logits and boxes of all queries."""
    least_side: int = 1
    """Pixels that the (padded) images have at least in height and width."""

    @property
    def size(self) -> tuple[int, int] | None:
        """The fixed height and width, or None."""
        transform = self.transform
        return (transform.height, transform.width) if isinstance(transform, FixedSize) else None

    def to_strings(self) -> dict[str, str]:
        """Return the metadata as names and texts, of which all but the number of the format are JSON."""
        transform, size = self.transform, self.size
        preprocessing = {
            "short_side": transform.short_side,
            "long_side": transform.long_side,
            "fixed_size": size,
            "least_side": self.least_side,
            "channels": "RGB",
            "scale": 1 / 255,
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
            "padding": "zeros after normalisation, at the bottom and the right; mask is true there",
        }
        unused = self.categories.unused
        names = {label: name for label, name in enumerate(self.categories.names) if label not in unused}
        content = {
            "format": FORMAT_VERSION,
            "version": __version__,
            "model": dataclasses.asdict(self.model),
            "categories": self.categories.to_json(),
            "names": names,
            "preprocessing": preprocessing,
            "attention": self.attention,
            "half": self.half,
            "detections": self.detections,
        }
        return {f"{PREFIX}{name}": json.dumps(value) for name, value in content.items()}

    def to_json(self) -> str:
        """Return the metadata as one text, for formats that hold a file of it."""
        return json.dumps(self.to_strings(), indent=1)

    @classmethod
    def from_json(cls, text: str | None, file: object) -> Description:
        """Read the text of `to_json`; None is that of a file without one. Errors as in `from_strings`."""
        try:
            strings = json.loads(text or "{}")
        except ValueError as error:
            raise ExportError(f"{file}: its metadata are damaged ({error}). Export it again.") from error
        return cls.from_strings(strings if isinstance(strings, dict) else {}, file)

    @classmethod
    def from_strings(cls, strings: Mapping[str, str], file: object) -> Description:
        """Read the metadata of a file.

        Raises:
            ExportError: the file has none, or that of a newer version, or damaged ones.
        """
        if f"{PREFIX}format" not in strings:
            raise ExportError(f"{file}: not exported by dino: it has no metadata of it. Use `python -m dino export`.")
        try:
            content = {k.removeprefix(PREFIX): json.loads(v) for k, v in strings.items() if k.startswith(PREFIX)}
            if content["format"] > FORMAT_VERSION:
                raise ExportError(
                    f"{file}: has format {content['format']}, this version reads up to {FORMAT_VERSION}. Upgrade "
                    "dino-kernels."
                )
            sides = content["preprocessing"]
            given = sides["short_side"], sides["long_side"]
            size = cast("tuple[int, int] | None", sides["fixed_size"] and tuple(sides["fixed_size"]))
            return cls(
                model=ModelConfig(**content["model"]),
                categories=Categories.from_json(content["categories"]),
                transform=EvalTransform(*given) if size is None else FixedSize(*given, *size),
                attention=content["attention"],
                half=content["half"],
                detections=content["detections"],
                least_side=sides["least_side"],
            )
        except ExportError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise ExportError(
                f"{file}: its metadata are damaged ({type(error).__name__}: {error}). Export it again."
            ) from error


def fixed_transform(transform: EvalTransform, size: tuple[int, int] | None) -> EvalTransform:
    """Return the transform for images of a free size, which is `transform`, or of a fixed height and width."""
    return transform if size is None else FixedSize(min(size), max(size), *size)


def file_size(count: int) -> str:
    """Return bytes in megabytes."""
    return f"{count / 1e6:,.0f} MB" if count >= 1e7 else f"{count / 1e6:,.1f} MB"
