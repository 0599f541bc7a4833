"""Hold a part of the training images out, to validate on."""

from __future__ import annotations

import hashlib
import unicodedata

from dino.data.coco.index import CocoIndex
from dino.data.coco.problems import DatasetError


def hold_out(index: CocoIndex, fraction: float, seed: int) -> tuple[CocoIndex, CocoIndex]:
    """Split the images into (training, validation).

    The choice depends on the file names, the fraction and the seed alone: it is the same on every machine and for every
    order of the annotations.

    Args:
        index: all images.
        fraction: the part of the images to validate on, above 0 and below 1; at least one image.
        seed: another seed chooses other images.

    Raises:
        DatasetError: there are fewer than two images.
    """
    # Separators and the form of accented letters differ between systems.
    names = [unicodedata.normalize("NFC", name.replace("\\", "/")) for name in index.file_names]
    ranked = sorted(
        set(names),
        key=lambda name: (hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest(), name),
    )
    if len(ranked) < 2:
        raise DatasetError(f"{index.name}: has {len(ranked)} image, --val-fraction needs at least 2.")
    held = set(ranked[: min(max(1, round(fraction * len(ranked))), len(ranked) - 1)])
    inside = [name in held for name in names]
    return (
        index.select([i for i, is_held in enumerate(inside) if not is_held]),
        index.select([i for i, is_held in enumerate(inside) if is_held]),
    )
