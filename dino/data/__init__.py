"""Detection data: validated annotations of the usual formats, augmentation, resumable batches."""

from dino.data.build import Datasets, build_datasets, build_eval_dataset, find_eval_split
from dino.data.categories import NO_CATEGORY, Categories
from dino.data.coco.index import CocoIndex
from dino.data.coco.problems import DatasetError, Problem
from dino.data.dataset import CocoDataset, Transform
from dino.data.images import ImageError, open_image, to_rgb
from dino.data.layout import Layout, Split, find_splits
from dino.data.loader import Batch, Loader, build_loader, collate, pad_images, to_device
from dino.data.sampler import ResumableSampler
from dino.data.transforms import EvalTransform, TrainTransform, denormalise, normalise, resized_size

__all__ = [
    "NO_CATEGORY",
    "Batch",
    "Categories",
    "CocoDataset",
    "CocoIndex",
    "DatasetError",
    "Datasets",
    "EvalTransform",
    "ImageError",
    "Layout",
    "Loader",
    "Problem",
    "ResumableSampler",
    "Split",
    "TrainTransform",
    "Transform",
    "build_datasets",
    "build_eval_dataset",
    "build_loader",
    "collate",
    "denormalise",
    "find_eval_split",
    "find_splits",
    "normalise",
    "open_image",
    "pad_images",
    "resized_size",
    "to_device",
    "to_rgb",
]
