"""A trained detector: images in, detections out."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, cast, overload

import torch
from PIL import Image
from torch import Tensor, nn

from dino.checkpoint import build_model
from dino.checkpoint.find import default_categories, load_trained
from dino.checkpoint.published import require_published
from dino.checkpoint.thresholds import load_thresholds
from dino.common.device import Amp, Dtype, autocast, choose_device, choose_dtype
from dino.common.finite import require_finite_detections
from dino.common.text import command_line, counted, shorten
from dino.data import Categories, EvalTransform, ImageError, pad_images
from dino.export.runtime import ExportedModel, is_exported, load_exported
from dino.inference.boxes import nms
from dino.inference.detections import Detections
from dino.inference.images import ImageLike, load_image
from dino.inference.settings import PredictOptions, Settings, Threshold, check_integer, check_names
from dino.inference.sources import Source, find_sources, is_single_image
from dino.inference.tiles import join_tiles, tile_boxes
from dino.inference.video import IncompleteVideoError
from dino.model.config import ModelConfig
from dino.model.dino import DINO
from dino.model.postprocess import limited, postprocess

if TYPE_CHECKING:
    from dino.export.export import ExportArguments, Exported


class Detector:
    """A model with its class names, image size and device.

    >>> detector = dino.Detector.from_checkpoint("runs/cats")
    >>> found = detector.predict("cat.jpg", threshold=0.5)
    >>> found.boxes_xyxy, found.scores, found.names
    >>> found.draw().save("cat_found.jpg")
    >>> for found in detector("album/"):  # or a pattern, a video, a camera, a stream
    ...     print(found.path, found)

    Args:
        model: a trained model, or an exported one; moved to the device and put into evaluation mode.
        categories: names and ids of the model's classes.
        transform: resizes and normalises; use the sizes that the model was trained with.
        device: None is a GPU if there is one.
        dtype: "float32"; "bfloat16" or "float16" run the model under autocast; "auto" is bfloat16 on a CPU with
            instructions for it (AVX512-BF16 or AMX), and float32 anywhere else. On the demo's images, in bfloat16
            95 % of the scores differ from those of float32 by less than 0.03, and all boxes by less than 0.2 % of the
            image: an object at the threshold can appear or vanish.
        compile: run the model by `torch.compile`. The first image takes minutes, and so do the first of another size,
            after which all sizes share one program, and the first batch of more than one. Detections are those of
            eager mode up to rounding.

    Raises:
        TypeError: the model is not a DINO.
        ValueError: the number of `categories` is not the model's number of classes, the device is unavailable, or dtype
            is unknown.
    """

    def __init__(
        self,
        model: DINO | ExportedModel,
        categories: Categories,
        *,
        transform: EvalTransform | None = None,
        device: torch.device | str | None = None,
        dtype: Dtype | torch.dtype = "auto",
        compile: bool = False,
    ) -> None:
        if not isinstance(getattr(model, "config", None), ModelConfig):
            raise TypeError(
                f"Detector: model must be a DINO, got {type(model).__name__}. To load a file, use "
                f"Detector.from_checkpoint."
            )
        if categories.num_classes != model.config.num_classes:
            raise ValueError(
                f"Detector: the model has {counted(model.config.num_classes, 'class')}, but categories has "
                f"{categories.num_classes}. Pass the categories that it was trained on."
            )
        self.device = choose_device(device)
        chosen = choose_dtype(self.device, dtype)
        self.dtype: Dtype = chosen[0]
        """The precision that the model runs in; never "auto"."""
        self.amp: Amp = chosen[1]
        """Its name as an autocast, as `dino.evaluation` takes it."""
        self.model = cast(DINO, model.to(self.device).eval())  # or an ExportedModel, which has no parts
        self.run: nn.Module = cast(nn.Module, torch.compile(self.model)) if compile else self.model
        """The model as it is called: itself, or compiled."""
        self.categories = categories
        self.transform = transform or EvalTransform()
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
        dtype: Dtype | torch.dtype = "auto",
        compile: bool = False,
        **overrides: Any,
    ) -> Detector:
        """Load a detector from a file.

        Args:
            path: the folder of a run, whose best model is taken; a folder with `model.safetensors`; that file; or a
                file of weights alone, such as the official `.pth` files, which needs `preset`; or the name of a
                published checkpoint.
            preset: the model that weights alone belong to; a name of `dino.PRESETS`. A file with its own configuration
                needs none.
            short_side, long_side: size of the images in pixels; by default as in training.
            device, dtype, compile: see `Detector`.
            overrides: fields of `ModelConfig` to replace in the preset, such as `num_classes=80`.

        Raises:
            FileNotFoundError: the path does not exist or holds no model.
            CheckpointError: the file is not a model, is damaged, or contradicts the preset or the overrides.
            ValueError: an argument is unknown or has a wrong value.
        """
        own = list(inspect.signature(cls.from_checkpoint).parameters)[:-1]
        check_names("from_checkpoint", overrides, [*own, *(field.name for field in dataclasses.fields(ModelConfig))])
        for name, side in (("short_side", short_side), ("long_side", long_side)):
            if side is not None:
                check_integer(f"from_checkpoint: {name}", side, 1)
        if is_exported(path):
            raise ValueError(f"from_checkpoint: {path} is an exported file. Use Detector.from_exported.")
        found = load_trained(path, preset=preset, **overrides)
        transform = EvalTransform(short_side or found.transform.short_side, long_side or found.transform.long_side)
        detector = cls(found.model, found.categories, transform=transform, device=device, dtype=dtype, compile=compile)
        detector.file = found.file
        return detector

    @classmethod
    def from_pretrained(cls, name: str, **options: Any) -> Detector:
        """Load a published checkpoint by name; `python -m dino weights` lists them. It is downloaded once.

        Args:
            name: a name of `dino.checkpoint.published.PUBLISHED`, such as "detrex-4scale-r50-24ep".
            options: as for `from_checkpoint`.

        Raises:
            ValueError: the name or an option is unknown.
            ConnectionError: the download failed. The message names the address, and where to put the file.
        """
        require_published("from_pretrained", name)
        return cls.from_checkpoint(name, **options)

    @classmethod
    def from_exported(cls, path: str | Path, *, device: torch.device | str | None = None) -> Detector:
        """Load a file of `python -m dino export`, which ONNX Runtime, OpenVINO or PyTorch runs.

        Classes, image size and precision are those of the file. Arguments and errors: `dino.export.runtime`.
        """
        model = load_exported(path, device=device)
        about = model.description
        detector = cls(model, about.categories, transform=about.transform, device=model.device, dtype="float32")
        detector.file = Path(path)
        return detector

    def export(self, path: str | Path, **options: Unpack[ExportArguments]) -> Exported:
        """Write the model to a file that runs elsewhere, and compare its detections of photographs with the model's.

        Arguments, result and errors: `dino.export.export.export_model`; print the result.
        """
        from dino.export.export import export_model

        return export_model(self.own_model("export"), path, self.categories, self.transform, **options)

    def own_model(self, command: str) -> DINO:
        """Return the model, unless it is an exported one."""
        if not isinstance(self.model, DINO):
            raise ValueError(
                f"{command}: needs the model itself, got the exported file {self.file}. Pass its checkpoint."
            )
        return self.model

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
        self, images: ImageLike, threshold: Threshold = 0.3, **options: Unpack[PredictOptions]
    ) -> Detections: ...

    @overload
    def predict(
        self, images: Sequence[ImageLike], threshold: Threshold = 0.3, **options: Unpack[PredictOptions]
    ) -> list[Detections]: ...

    def predict(
        self,
        images: ImageLike | Sequence[ImageLike],
        threshold: Threshold = 0.3,
        **options: Unpack[PredictOptions],
    ) -> Detections | list[Detections]:
        """Detect objects in one image, or in each of a list.

        An image is one of:

        - a file name, as `str` or `Path`;
        - a PIL image of any mode;
        - a numpy array [H, W, 3] in RGB order, [H, W, 4] or [H, W] (grey): integers, or floating point in 0..1.
          OpenCV's arrays are BGR: pass `image[..., ::-1]`;
        - a tensor [3, H, W], [4, H, W], [1, H, W] or [H, W] of the same kinds, on any device.

        Files and PIL images are rotated upright by their EXIF orientation. Transparency is dropped. Integers of more
        than 8 bits have the smallest usual depth (10, 12, 14 or 16 bits) that holds the largest value.

        Args:
            images: one image, or a list of images.
            threshold: lowest score of a detection; "best" is the best one of each class, stored by `evaluate`.
            batch_size: images, or tiles, per forward pass, 1 by default. More can be faster on a GPU and change the
                detections slightly, because all are padded to the size of the largest.
            top_k: largest number of detections of an image, or of a tile, before the threshold; 300 by default.
            classes: names of the classes to detect; by default all.
            tile: detect in tiles of this many pixels, for small objects in large images; see `dino.inference.tiles`.
            overlap: share of a tile that the next one covers again, 0.2 by default. An object up to this large is whole
                in some tile.
            nms: drop a detection whose IoU with a better one of its class is above this; by default none, because the
                model is trained to detect each object once.

        Returns:
            `Detections` for one image, a list of them for a list. Each holds its image.

        Raises:
            ImageError: a file cannot be read as an image.
            ValueError, TypeError: an input is not an image, or an argument is unknown or out of range.
            NotFiniteError: the model's detections are not finite.
        """
        settings = Settings.of(threshold, options)
        if not isinstance(images, list | tuple):
            return self.detect([load_image(images)], settings)[0]  # type: ignore[arg-type]
        found: list[Detections] = []
        for start in range(0, len(images), settings.batch_size):
            batch = [load_image(image) for image in images[start : start + settings.batch_size]]
            found += self.detect(batch, settings, start)
        return found

    def __call__(
        self,
        source: ImageLike | int | Sequence[ImageLike],
        threshold: Threshold = 0.3,
        **options: Unpack[PredictOptions],
    ) -> Detections | list[Detections] | Iterator[Detections]:
        """Detect objects in anything: as `predict` in one image or a list, and one by one in many images.

        A folder, a pattern such as "album/*.jpg", a text file with one path per line, a video file, the number of a
        camera and the address of a stream (rtsp://...) give an iterator; it reads an image when it is needed, and
        `path` and `frame` of the detections tell which. An image of a folder that cannot be read is left out with a
        warning; so is the end of a damaged video.

        Args:
            source: what to detect in.
            threshold: lowest score of a detection; "best" is the best one of each class, stored by `evaluate`.
            options: as for `predict`.

        Raises:
            FileNotFoundError: a path does not exist or holds no image.
            ImageError: the image or video cannot be read.
            ImportError: a video needs the package OpenCV.
            ValueError, TypeError: as for `predict`.
        """
        settings = Settings.of(threshold, options)
        if isinstance(source, str | Path | int) and not is_single_image(source):
            return self._each(find_sources([source]), settings)
        found = self.predict(source, threshold, **options)  # type: ignore[arg-type]
        return dataclasses.replace(found, path=str(source)) if isinstance(source, str | Path) else found  # type: ignore[type-var]

    def _each(self, sources: Sequence[Source], settings: Settings) -> Iterator[Detections]:
        for source in sources:
            try:
                for frame, image in source.frames():
                    found = self.detect([image], settings)[0]
                    yield dataclasses.replace(found, path=source.path, frame=frame)
            except ImageError as error:
                incomplete = isinstance(error, IncompleteVideoError)
                if len(sources) == 1 and not incomplete:
                    raise
                warnings.warn(str(error) if incomplete else f"left out: {error}", stacklevel=2)

    def lowest_scores(self, threshold: Threshold) -> Tensor:
        """Return the lowest score of each class's detections, float32 [C]: `threshold`, or the best ones stored.

        Raises:
            ValueError: the threshold is "best", and none are stored with the model.
        """
        if threshold == "best":
            return self._best_scores
        return torch.full((self.categories.num_classes,), threshold, dtype=torch.float32)

    @cached_property
    def _best_scores(self) -> Tensor:
        stored = None if self.file is None else load_thresholds(self.file)
        if stored is None:
            raise ValueError(
                f'predict: threshold is "best", but none are stored with the model ({self.file or "not from a file"}). '
                f"Run evaluate first: {command_line('evaluate', '--checkpoint', self.file or 'PATH', '--data', 'DATA')}"
            )
        return torch.tensor([stored.of(category_id) for category_id in self.categories.ids], dtype=torch.float32)

    def detect(self, images: Sequence[Image.Image], settings: Settings, first: int = 0) -> list[Detections]:
        """Return the detections of RGB images; `predict` with checked arguments. Errors count images from `first`."""
        lowest = self.lowest_scores(settings.threshold)
        names = [f"images[{first + k}]" for k in range(len(images))]
        if settings.tile is not None:
            results = [self._in_tiles(image, settings, lowest, name) for image, name in zip(images, names, strict=True)]
        else:
            results = self._forward(images, settings, names)
        return [self._detections(*each, settings, lowest) for each in zip(results, images, strict=True)]

    def _in_tiles(self, image: Image.Image, settings: Settings, lowest: Tensor, name: str) -> dict[str, Tensor]:
        tiles = tile_boxes(image.size, settings.tile or max(image.size), settings.overlap)
        if len(tiles) == 1:
            return self._forward([image], settings, [name])[0]
        parts: list[dict[str, Tensor]] = []
        for start in range(0, len(tiles), settings.batch_size):
            crops = [image.crop(tuple(tile)) for tile in tiles[start : start + settings.batch_size].tolist()]
            parts += self._forward(crops, settings, [name] * len(crops))
        return join_tiles(parts, tiles, lowest)

    @torch.inference_mode()
    def _forward(
        self, images: Sequence[Image.Image], settings: Settings, names: Sequence[str]
    ) -> list[dict[str, Tensor]]:
        """Return boxes, scores, labels and the best score of each image, on the CPU and before the threshold."""
        nothing = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
        unwanted = settings.unwanted(self.categories)
        sizes = torch.tensor([image.size[::-1] for image in images])
        padded, mask = pad_images([self.transform(image, *nothing)[0] for image in images])
        with autocast(self.device, self.amp)():
            outputs = self.run(padded.to(self.device), mask.to(self.device))
        logits, boxes = outputs.logits[-1].float(), outputs.boxes_cxcywh[-1]
        for k, name in enumerate(names):
            require_finite_detections({"scores": logits[k], "boxes": boxes[k]}, self.model, image=name, amp=self.amp)
        logits = logits.masked_fill(unwanted.to(logits.device), -torch.inf)
        results = postprocess({"pred_logits": logits, "pred_boxes": boxes}, sizes, limited(self.model, settings.top_k))
        found = []
        for result in results:
            result = {key: value.cpu().clone() for key, value in result.items()}
            wanted = ~unwanted[result["labels"]]
            result = {key: value[wanted] for key, value in result.items()}
            found.append({**result, "best": result["scores"].max() if len(result["scores"]) else torch.tensor(0.0)})
        return found

    def _detections(
        self, result: dict[str, Tensor], image: Image.Image, settings: Settings, lowest: Tensor
    ) -> Detections:
        keep = result["scores"].float() >= lowest[result["labels"]]
        boxes, scores, labels = (result[key][keep] for key in ("boxes", "scores", "labels"))
        if settings.nms is not None:
            kept = nms(boxes, labels, settings.nms)
            boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
        return Detections(
            boxes_xyxy=boxes.float(),
            scores=scores.float(),
            labels=labels,
            category_ids=[self.categories.category_id_of(label) for label in labels.tolist()],
            names=[self.categories.name_of(label) for label in labels.tolist()],
            size_hw=(image.height, image.width),
            image=image,
            best_score=float(result["best"]),
        )

    def __repr__(self) -> str:
        config, transform = self.model.config, self.transform
        names = [name for label, name in enumerate(self.categories.titles) if label not in self.categories.unused]
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        what = self.model.engine if isinstance(self.model, ExportedModel) else f"{parameters / 1e6:.1f}M parameters"
        sizes = f"{counted(config.num_levels, 'level')}, {counted(config.num_queries, 'query')}"
        return (
            f"Detector({config.backbone}, {sizes}, {what}, "
            f"{counted(len(names), 'class')}: {shorten(names, 5)}; "
            f"images {transform.short_side} to {transform.long_side} pixels, {self.dtype} on {self.device})"
        )
