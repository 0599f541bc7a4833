"""A trained detector: images in, detections out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, overload

import torch
from PIL import Image
from torch import Tensor

from dino.checkpoint import build_model
from dino.checkpoint.find import default_categories, load_trained
from dino.checkpoint.thresholds import load_thresholds
from dino.common.device import Amp, autocast, choose_device
from dino.common.finite import require_finite_detections
from dino.common.text import shorten
from dino.data import Categories, EvalTransform, pad_images
from dino.inference.detections import Detections
from dino.inference.images import ImageLike, load_image
from dino.model.config import ModelConfig
from dino.model.dino import DINO
from dino.model.postprocess import postprocess

Threshold = float | Literal["best"]


class Detector:
    """A model with its class names, image size and device.

    >>> detector = dino.Detector.from_checkpoint("runs/cats")
    >>> found = detector.predict("cat.jpg", threshold=0.5)
    >>> found.boxes_xyxy, found.scores, found.names
    >>> found.draw().save("cat_found.jpg")

    Args:
        model: a trained model; moved to the device and put into evaluation mode.
        categories: names and ids of the model's classes.
        transform: resizes and normalises; use the sizes that the model was trained with.
        device: None is a GPU if there is one.
        amp: "bf16" or "fp16" run the model under autocast.

    Raises:
        ValueError: the number of `categories` is not the model's number of classes, or the device is unavailable.
    """

    def __init__(
        self,
        model: DINO,
        categories: Categories,
        *,
        transform: EvalTransform | None = None,
        device: torch.device | str | None = None,
        amp: Amp = "off",
    ) -> None:
        if categories.num_classes != model.config.num_classes:
            raise ValueError(
                f"Detector: the model has {model.config.num_classes} classes, but categories has "
                f"{categories.num_classes}. Pass the categories that it was trained on."
            )
        self.device = choose_device(device)
        self.model = model.to(self.device).eval()
        self.categories = categories
        self.transform = transform or EvalTransform()
        self.amp: Amp = amp
        self.file: Path | None = None
        """The file of weights that the model was loaded from."""

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        preset: str | None = None,
        short_side: int | None = None,
        long_side: int | None = None,
        device: torch.device | str | None = None,
        amp: Amp = "off",
        **overrides: Any,
    ) -> Detector:
        """Load a detector from a file.

        Args:
            path: the folder of a run, whose best model is taken; a folder with `model.safetensors`; that file; or a
                file of weights alone, such as the official `.pth` files, which needs `preset`.
            preset: the model that weights alone belong to; a name of `dino.PRESETS`.
            short_side, long_side: size of the images in pixels; by default as in training.
            device, amp: see `Detector`.
            overrides: fields of `ModelConfig` to replace in the preset, such as `num_classes=80`.

        Raises:
            FileNotFoundError: the path does not exist or holds no model.
            CheckpointError: the file is not a model, is damaged, or does not fit the preset.
        """
        found = load_trained(path, preset=preset, **overrides)
        transform = EvalTransform(short_side or found.transform.short_side, long_side or found.transform.long_side)
        detector = cls(found.model, found.categories, transform=transform, device=device, amp=amp)
        detector.file = found.file
        return detector

    @classmethod
    def from_preset(
        cls, preset: str | ModelConfig, *, categories: Categories | None = None, **overrides: Any
    ) -> Detector:
        """Build a detector that has not been trained, to try things out.

        Args:
            preset: a name of `dino.PRESETS`, or a configuration.
            categories: the default is COCO's for 91 classes, and numbers otherwise.
            overrides: fields of `ModelConfig` to replace, such as `pretrained_backbone=False`.
        """
        model = build_model(preset, **overrides)
        return cls(model, categories or default_categories(model.config.num_classes))

    @overload
    def predict(
        self, images: ImageLike, threshold: Threshold = 0.3, *, batch_size: int = 1, top_k: int = 300
    ) -> Detections: ...

    @overload
    def predict(
        self,
        images: Sequence[ImageLike],
        threshold: Threshold = 0.3,
        *,
        batch_size: int = 1,
        top_k: int = 300,
    ) -> list[Detections]: ...

    def predict(
        self,
        images: ImageLike | Sequence[ImageLike],
        threshold: Threshold = 0.3,
        *,
        batch_size: int = 1,
        top_k: int = 300,
    ) -> Detections | list[Detections]:
        """Detect objects in one image, or in each of a list.

        An image is one of:

        - a file name, as `str` or `Path`;
        - a PIL image of any mode;
        - a numpy array [H, W, 3] in RGB order, [H, W, 4] or [H, W] (grey): uint8, or floating point in 0..1. OpenCV's
          arrays are BGR: pass `image[..., ::-1]`;
        - a tensor [3, H, W], [4, H, W], [1, H, W] or [H, W] of the same kinds, on any device.

        Transparency is dropped.

        Args:
            images: one image, or a list of images.
            threshold: lowest score of a detection; "best" is the best one of each class, stored by `evaluate`.
            batch_size: images per forward pass. More can be faster on a GPU and change the detections slightly,
                because all are padded to the size of the largest.
            top_k: largest number of detections of an image, before the threshold.

        Returns:
            `Detections` for one image, a list of them for a list. Each holds its image.

        Raises:
            ImageError: a file cannot be read as an image.
            ValueError, TypeError: an input is not an image, or an argument is out of range.
            NotFiniteError: the model's detections are not finite.
        """
        lowest = self.lowest_scores(threshold)
        if batch_size < 1 or top_k < 1:
            raise ValueError(f"predict: batch_size and top_k must be at least 1, got {batch_size} and {top_k}")
        if not isinstance(images, list | tuple):
            return self._predict([load_image(images)], lowest, top_k)[0]  # type: ignore[arg-type]
        found: list[Detections] = []
        for start in range(0, len(images), batch_size):
            batch = [load_image(image) for image in images[start : start + batch_size]]
            found += self._predict(batch, lowest, top_k, start)
        return found

    def lowest_scores(self, threshold: Threshold) -> Tensor:
        """Return the lowest score of each class's detections, float32 [C]: `threshold`, or the best ones stored.

        Raises:
            ValueError: the threshold is out of range, or "best" and none are stored with the model.
        """
        if threshold != "best":
            if isinstance(threshold, str) or not 0 <= threshold <= 1:
                raise ValueError(f'predict: threshold must be in 0..1 or "best", got {threshold!r}')
            return torch.full((self.categories.num_classes,), threshold, dtype=torch.float32)
        return self._best_scores

    @cached_property
    def _best_scores(self) -> Tensor:
        stored = None if self.file is None else load_thresholds(self.file)
        if stored is None:
            raise ValueError(
                f'predict: threshold is "best", but none are stored with the model ({self.file or "not from a file"}). '
                f"Run evaluate first: python -m dino evaluate --checkpoint {self.file or 'PATH'} --data DATA"
            )
        return torch.tensor([stored.of(category_id) for category_id in self.categories.ids], dtype=torch.float32)

    @torch.inference_mode()
    def _predict(self, images: list[Image.Image], lowest: Tensor, top_k: int, first: int = 0) -> list[Detections]:
        nothing = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
        sizes = torch.tensor([image.size[::-1] for image in images])
        padded, mask = pad_images([self.transform(image, *nothing)[0] for image in images])
        with autocast(self.device, self.amp)():
            outputs = self.model(padded.to(self.device), mask.to(self.device))
        results = postprocess(outputs, sizes, top_k)
        for k, result in enumerate(results, first):
            require_finite_detections(result, self.model, image=f"images[{k}]", amp=self.amp)
        return [
            self._detections({key: value.cpu().clone() for key, value in result.items()}, image, lowest)
            for result, image in zip(results, images, strict=True)
        ]

    def _detections(self, result: dict[str, Tensor], image: Image.Image, lowest: Tensor) -> Detections:
        chosen = result["scores"].float() >= lowest[result["labels"]]
        result = {key: value[chosen] for key, value in result.items()}
        labels = result["labels"].tolist()
        return Detections(
            boxes_xyxy=result["boxes"].float(),
            scores=result["scores"].float(),
            labels=result["labels"],
            category_ids=[self.categories.category_id_of(label) for label in labels],
            names=[self.categories.name_of(label) for label in labels],
            size_hw=(image.height, image.width),
            image=image,
        )

    def __repr__(self) -> str:
        config, transform = self.model.config, self.transform
        names = [name for label, name in enumerate(self.categories.titles) if label not in self.categories.unused]
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        return (
            f"Detector({config.backbone}, {config.num_levels} levels, {config.num_queries} queries, "
            f"{parameters / 1e6:.1f}M parameters, {len(names)} classes: {shorten(names, 5)}; "
            f"images {transform.short_side} to {transform.long_side} pixels, {self.device})"
        )
