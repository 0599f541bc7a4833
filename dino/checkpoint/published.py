"""Checkpoints that others have published, by name: where they are and which model they belong to.

Addresses and AP (COCO val2017) are those of detrex' projects/dino/README.md and of mmdetection's
configs/dino/README.md. The authors of DINO publish theirs in a shared folder, which has no addresses of files.

Left out are models that this package does not have (FocalNet, ViTDet, InternImage, EVA, Swin-L with windows of 7), and
detrex' file "with EMA", which may hold two models.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dino.checkpoint.classes import coco_categories
from dino.checkpoint.layouts import VARIANTS
from dino.common.download import cached_path, download
from dino.common.text import suggestion
from dino.data.categories import Categories
from dino.model.config import ModelConfig, model_config

_DETREX = "https://github.com/IDEA-Research/detrex-storage/releases/download/"
_MMDET = "https://download.openmmlab.com/mmdetection/v3.0/dino/"
# Size, name in files, AP after ImageNet-1k and after ImageNet-22k.
_CONVNEXTS = (
    ("t", "tiny", 51.4, 52.4),
    ("s", "small", 52.0, 54.2),
    ("b", "base", 52.6, 55.1),
    ("l", "large", 53.4, 55.5),
)
# Parameters and buffers in float32.
_MEGABYTES = {
    "dino_4scale_r50": 191,
    "dino_5scale_r50": 192,
    "dino_4scale_r101": 267,
    "dino_4scale_swin_t": 193,
    "dino_4scale_swin_l": 872,
    "dino_5scale_swin_l": 873,
    "swin_s": 278,
    "swin_b": 433,
    "convnext_t": 194,
    "convnext_s": 281,
    "convnext_b": 436,
    "convnext_l": 876,
}


@dataclass(frozen=True)
class Published:
    """A published checkpoint, trained on COCO train2017 with its 80 classes."""

    name: str
    url: str
    ap: float
    """Published AP on COCO val2017, in percent."""
    layout: str
    """Layout of its names: detrex or mmdet."""
    preset: str
    overrides: dict[str, Any] = field(default_factory=dict)
    """Fields of `ModelConfig` in which it differs from the preset, besides those of its layout."""
    licence: str = "Apache-2.0"
    """That of the project that links to the file."""

    @property
    def config(self) -> ModelConfig:
        """The model it belongs to."""
        fields = {"num_classes": 80, "pretrained_backbone": False} | VARIANTS[self.layout] | self.overrides
        return model_config(self.preset, **fields)

    @property
    def model(self) -> str:
        """The preset, with another backbone where it has one."""
        backbone = self.overrides.get("backbone")
        return self.preset if backbone is None else self.preset.replace("r50", f"({backbone})")

    @property
    def megabytes(self) -> int:
        """The size of its weights; that of the file is not published."""
        return _MEGABYTES[self.overrides.get("backbone", self.preset)]

    @property
    def categories(self) -> Categories:
        """COCO's 80 categories."""
        found = coco_categories(80)
        assert found is not None
        return found

    @property
    def path(self) -> Path:
        """Where the file is kept once it is downloaded."""
        return cached_path(self.url)

    def download(self) -> Path:
        """Return the path of the file, downloading it if it is not in torch's cache.

        Raises:
            DownloadError: see `dino.common.download.download`.
        """
        return download(self.url, what=self.name)


def _of_detrex() -> Iterator[Published]:
    def row(name: str, file: str, ap: float, preset: str = "dino_4scale_r50", **overrides: Any) -> Published:
        return Published(f"detrex-{name}", f"{_DETREX}{file}.pth", ap, "detrex", preset, overrides)

    yield row("4scale-r50-12ep", "v0.2.0/dino_r50_4scale_12ep_49_2AP", 49.2)
    yield row("4scale-r50-12ep-300dn", "v0.2.0/dino_r50_4scale_12ep_300dn", 49.5)
    yield row("4scale-r50-12ep-grouped-lr", "v0.4.0/dino_r50_4scale_12ep_hacked_trainer", 49.4)
    better = "v0.4.0/dino_r50_4scale_12ep_backbone_2e-5_class_weight_2.0"
    yield row("4scale-r50-12ep-improved", better, 49.8)
    yield row("4scale-r50-12ep-improved-300dn", f"{better}_300dn", 50.0)
    yield row("4scale-r50-24ep", "v0.1.1/dino_r50_4scale_24ep", 50.6)
    yield row("5scale-r50-12ep", "v0.2.1/dino_r50_5scale_12ep", 49.6, "dino_5scale_r50")
    yield row("4scale-r101-12ep", "v0.1.1/dino_r101_4scale_12ep", 50.0, "dino_4scale_r101")
    tiny = "dino_4scale_swin_t"
    yield row("4scale-swin-t-12ep", "v0.1.1/dino_swin_tiny_224_4scale_12ep", 51.3, tiny)
    yield row("4scale-swin-t-22k-12ep", "v0.1.1/dino_swin_tiny_224_22kto1k_finetune_4scale_12ep", 52.5, tiny)
    yield row("4scale-swin-s-12ep", "v0.1.1/dino_swin_small_224_4scale_12ep", 53.0, backbone="swin_s")
    yield row("4scale-swin-s-22k-12ep", "v0.4.0/dino_swin_small_22k_4scale_12ep", 54.5, backbone="swin_s")
    yield row("4scale-swin-b-12ep", "v0.1.1/dino_swin_base_384_4scale_12ep", 55.8, backbone="swin_b")
    large, five = "dino_4scale_swin_l", "dino_5scale_swin_l"
    yield row("4scale-swin-l-12ep", "v0.1.1/dino_swin_large_4scale_12ep", 56.9, large)
    yield row("4scale-swin-l-36ep", "v0.2.0/dino_swin_large_384_4scale_36ep", 58.1, large)
    yield row("5scale-swin-l-12ep", "v0.2.1/dino_swin_large_384_5scale_12ep", 57.5, five)
    yield row("5scale-swin-l-36ep", "v0.2.1/dino_swin_large_384_5scale_36ep", 58.5, five)
    for size, word, ap_1k, ap_22k in _CONVNEXTS:
        backbone = f"convnext_{size}"
        yield row(
            f"4scale-convnext-{size}-12ep", f"v0.4.0/dino_convnext_{word}_1k_4scale_12ep", ap_1k, backbone=backbone
        )
        file = f"v0.4.0/dino_convnext_{word}_384_4scale_12ep"
        yield row(f"4scale-convnext-{size}-22k-12ep", file, ap_22k, backbone=backbone)


def _of_mmdetection() -> Iterator[Published]:
    def row(name: str, url: str, ap: float, preset: str, **overrides: Any) -> Published:
        return Published(f"mmdet-{name}", url, ap, "mmdet", preset, overrides)

    stem = f"{_MMDET}dino-4scale_r50_8xb2-12e_coco/dino-4scale_r50_8xb2-12e_coco_"
    yield row("4scale-r50-12ep", f"{stem}20221202_182705-55b2bba2.pth", 49.0, "dino_4scale_r50")
    stem = f"{_MMDET}dino-4scale_r50_improved_8xb2-12e_coco/dino-4scale_r50_improved_8xb2-12e_coco_"
    positions = {"position_temperature": 10000.0, "position_offset": -0.5}
    url = f"{stem}20230818_162607-6f47a913.pth"
    yield row("4scale-r50-12ep-improved", url, 50.1, "dino_4scale_r50", **positions)
    stem = f"{_MMDET}dino-5scale_swin-l_8xb2-12e_coco/dino-5scale_swin-l_8xb2-12e_coco_"
    yield row("5scale-swin-l-12ep", f"{stem}20230228_072924-a654145f.pth", 57.2, "dino_5scale_swin_l")
    stem = "https://github.com/RistoranteRist/mmlab-weights/releases/download/dino-swinl/"
    url = f"{stem}dino-5scale_swin-l_8xb2-36e_coco-5486e051.pth"
    last = row("5scale-swin-l-36ep", url, 58.4, "dino_5scale_swin_l")
    yield dataclasses.replace(last, licence="not stated")  # a contributor's own release


PUBLISHED = {row.name: row for rows in (_of_detrex, _of_mmdetection) for row in rows()}


def find_published(path: str | os.PathLike[str]) -> Published | None:
    """Return the published checkpoint of a name; None for other names, and where a file or folder has the name."""
    return None if Path(path).exists() else PUBLISHED.get(str(path))


def require_published(caller: str, name: str) -> None:
    """Raise a ValueError that lists the names, if `name` is none of a published checkpoint."""
    if name not in PUBLISHED:
        raise ValueError(
            f"{caller}: no published checkpoint {name!r}.{suggestion(name, PUBLISHED)} Their names: "
            f"{', '.join(PUBLISHED)}"
        )
