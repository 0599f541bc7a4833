"""WebDataset's samples in tar shards: KEY.jpg, and KEY.json with its boxes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from dino.common.text import counted, shorten
from dino.data.coco.document import Document
from dino.data.coco.files import IMAGE_SUFFIXES
from dino.data.coco.lenient import whole
from dino.data.coco.problems import Problem, shown
from dino.data.folders import SPLITS, files_in, folders_of, split_of
from dino.data.formats.webdataset_classes import CLASS_FILES, Classes, class_names
from dino.data.shards import SUFFIX, open_in_shard
from dino.data.split import Layout, Split, relative
from dino.data.tar_listing import PACKED_SUFFIXES, Listing, listing

NAME = "WebDataset shards"
_SAMPLED = 20
_KEPT = ("bbox", "iscrowd", "area")


class _Sample(NamedTuple):
    picture: Path
    text: Path | None
    """Its JSON."""
    image_id: Any
    size: dict[str, Any]
    objects: list[Any]


def find(root: Path) -> Layout | None:
    """Return the splits of a folder with tar shards that hold boxes, or of one shard, or None.

    Shards are in a folder for each split, or in one folder and named after their split; not more than two folders deep.
    """
    if root.is_file():
        is_shard = root.name.lower().endswith(SUFFIX) and _holds_boxes([root])
        return Layout(root.parent, _split([root], root.parent), format=NAME, unnamed=True) if is_shard else None
    found: dict[str | None, list[Path]] = {}
    for folder in folders_of(root):
        parts = folder.relative_to(root).parts
        for shard in files_in(folder, SUFFIX, *PACKED_SUFFIXES):
            name = next((split for split in map(split_of, (*parts, shard.stem)) if split is not None), None)
            found.setdefault(name, []).append(shard)
    if not any(map(_holds_boxes, found.values())):
        return None
    unnamed = found.pop(None, [])
    only = not found
    if "train" not in found and unnamed:
        found["train"] = unnamed
    splits = {name: _split(found[name], root) for name in SPLITS if name in found}
    return Layout(root, *(splits.get(name) for name in SPLITS), format=NAME, unnamed=only)


def _split(shards: list[Path], root: Path) -> Split:
    patterns = {_pattern(shard.name) for shard in shards if shard.suffix.lower() == SUFFIX}
    # Compressed shards between others are named as a problem; an archive of another name is not meant.
    if patterns:
        shards = [shard for shard in shards if {_pattern(shard.name), _pattern(shard.stem)} & patterns]
    folder = Path(os.path.commonpath([shard.parent for shard in shards]))
    place = shards[0] if len(shards) == 1 else folder / (patterns.pop() if len(patterns) == 1 else f"*{SUFFIX}")
    return Split(folder, place, root, lambda: _read(shards, folder, relative(place, root), root))


def _pattern(name: str) -> str:
    return re.sub("[0-9]+", "*", name)


def _holds_boxes(shards: Sequence[Path]) -> bool:
    """Return whether one of the first samples of the first shard with samples has boxes."""
    for shard in shards:
        texts = [texts[0] for _, _, texts in _samples(listing(shard)) if texts][:_SAMPLED]
        if texts:
            return any(_objects(_json(shard, text)) is not None for text in texts)
    return False


def _samples(known: Listing) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield (key, images, JSON files) of each sample: the key is the path to the first dot of the file's name."""
    samples: dict[str, list[str]] = {}
    for name in known.names():
        folder, _, base = name.rpartition("/")
        key = base.partition(".")[0]
        if key and base not in CLASS_FILES:
            samples.setdefault(f"{folder}/{key}" if folder else key, []).append(name)
    for key, names in samples.items():
        yield key, _of_kind(names, IMAGE_SUFFIXES), _of_kind(names, (".json",))


def _of_kind(names: list[str], suffixes: tuple[str, ...]) -> list[str]:
    """Return the names with one of the suffixes: KEY.jpg, but not KEY.mask.jpg if there is KEY.jpg."""
    found = [name for name in names if name.lower().endswith(suffixes)]
    return [name for name in found if name.rpartition("/")[2].count(".") == 1] or found


def _json(shard: Path, name: str) -> Any:
    """Return the content of a JSON file, or the error."""
    try:
        with open_in_shard(shard, name) as file:
            return json.loads(file.read())
    except (OSError, ValueError, RecursionError) as error:
        return error


def _objects(content: Any) -> list[Any] | None:
    """Return the objects of a sample; None if its JSON has none."""
    if type(content) is dict:
        content = content.get("annotations", content.get("objects"))
    if type(content) is dict and type(content.get("bbox")) is list:  # a list for each field
        fields = {key.replace("categories", "category"): values for key, values in content.items()}
        lists = {key: values for key, values in fields.items() if type(values) is list}
        content = [dict(zip(lists, row, strict=True)) for row in zip_longest(*lists.values())]
    return content if type(content) is list else None


def _read(shards: list[Path], folder: Path, name: str, root: Path) -> Document:
    problems: list[Problem] = []
    samples = list(_usable(shards, root, problems))
    notes = []
    without_json = sum(sample.text is None for sample in samples)
    if without_json:
        notes.append(f"{name}: {counted(without_json, 'image')} without JSON: read as without boxes")
    ids = [sample.image_id for sample in samples]
    if not all(type(i) is int for i in ids) or len(set(ids)) < len(ids):
        if any(i is not None for i in ids):
            notes.append(f"{name}: image_id is not used: not every image has its own")
        ids = list(range(1, len(samples) + 1))
    classes = Classes.of([thing for sample in samples for thing in sample.objects], class_names(folder, root, shards))
    notes += [f"{name}: {note}" for note in classes.notes]
    annotations, places = [], []
    for image_id, sample in zip(ids, samples, strict=True):
        file = relative(sample.text or sample.picture, root)
        for number, thing in enumerate(sample.objects, start=1):
            place = f"object {number}"
            try:
                category_id = classes.id_of(thing)
            except ValueError as error:
                problems.append(Problem("annotations", "no class", place, str(error), file))
                continue
            kept = {key: thing[key] for key in _KEPT if key in thing}
            annotations.append({"image_id": image_id, "category_id": category_id, **kept})
            places.append((file, place))
    return Document(
        name,
        folder,
        [
            {"id": image_id, "file_name": sample.picture.relative_to(folder).as_posix(), **sample.size}
            for image_id, sample in zip(ids, samples, strict=True)
        ],
        annotations,
        [{"id": i, "name": class_name} for i, class_name in classes.names.items()],
        {
            "images": [(relative(sample.picture, root), "") for sample in samples],
            "annotations": places,
            "categories": [(name, f"class {class_name!r}") for class_name in classes.names.values()],
        },
        problems,
        notes,
        totals_of_others={"shards": len(shards)},
        named=classes.named,
    )


def _usable(shards: list[Path], root: Path, problems: list[Problem]) -> Iterator[_Sample]:
    """Yield the samples that can be used, and add what is wrong with the others."""
    for shard in shards:
        known = listing(shard)
        if known.damage:
            problems.append(Problem("shards", "damaged shard", "", known.damage, relative(shard, root)))
        for refused, why in known.refused:
            what = f"is not read: {why}"
            problems.append(Problem("images", "refused file", "", what, relative(shard / refused, root)))
        for key, pictures, texts in _samples(known):
            try:
                sample = _sample(shard, key, pictures, texts)
            except ValueError as error:
                kind, file = str(error).partition(",")[0], relative(shard / (texts or [key])[0], root)
                problems.append(Problem("images", kind, "", str(error), file))
            else:
                if sample is not None:
                    yield sample


def _sample(shard: Path, key: str, pictures: list[str], texts: list[str]) -> _Sample | None:
    """Return a sample, or None if there is neither image nor JSON.

    Raises:
        ValueError: it cannot be used.
    """
    if not pictures:
        if not texts:
            return None
        raise ValueError("has no image of the same key")
    if len(pictures) > 1 or len(texts) > 1:
        files = shorten(pictures if len(pictures) > 1 else texts, 3)
        raise ValueError(f"has more than one file of a kind, {files}: the key, {key}, ends at the first dot")
    content = _json(shard, texts[0]) if texts else []
    if isinstance(content, Exception):
        raise ValueError(f"is not valid JSON, {str(content) or type(content).__name__}")
    objects = _objects(content)
    if objects is None:
        raise ValueError(f"has no list of annotations or objects, got {shown(content)}")
    fields = content if type(content) is dict else {}
    size = {name: fields[name] for name in ("width", "height") if fields.get(name) is not None}
    return _Sample(
        shard / pictures[0], shard / texts[0] if texts else None, whole(fields.get("image_id")), size, objects
    )
