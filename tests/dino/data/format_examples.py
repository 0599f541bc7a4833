"""One small data set, written in every format that `find_splits` recognises."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from dino.data import CocoIndex
from tests.dino.data.shard_examples import write_shard

SIZE = (96, 72)
NAMES = ("cat", "dog", "traffic light")
# (class, x, y, width, height) of each picture; the third has no box.
PICTURES: dict[str, list[tuple[int, int, int, int, int]]] = {
    "a 1.png": [(0, 8, 10, 32, 20)],
    "b.JPG": [(1, 4, 6, 40, 30), (2, 50, 30, 20, 40)],
    "c.jpeg": [],
    "d.png": [(2, 0, 0, 96, 72), (0, 60, 10, 30, 12)],
}
SPLITS = {"train": list(PICTURES), "valid": ["a 1.png", "b.JPG"]}
Boxes = set[tuple[str, str, tuple[float, ...]]]


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(90, 150, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    for category, x, y, w, h in PICTURES[path.name]:
        pixels[y : y + h, x : x + w] = [(220, 30, 30), (30, 60, 230), (30, 200, 30)][category]
    Image.fromarray(pixels).save(path)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def coco(names: list[str], prefix: str = "") -> str:
    images = [{"id": k, "file_name": prefix + n, "width": 96, "height": 72} for k, n in enumerate(names, 5)]
    boxes = [(k, box) for k, name in enumerate(names, 5) for box in PICTURES[name]]
    annotations = [{"id": n, "image_id": k, "category_id": c, "bbox": box} for n, (k, (c, *box)) in enumerate(boxes)]
    categories = [{"id": k, "name": name} for k, name in enumerate(NAMES)]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories})


def yolo(name: str) -> str:
    rows = ((c, (x + w / 2) / 96, (y + h / 2) / 72, w / 96, h / 72) for c, x, y, w, h in PICTURES[name])
    return "".join(" ".join(map(repr, row)) + "\n" for row in rows)


def voc(name: str) -> str:
    objects = "".join(
        f"<object><name>{NAMES[c]}</name><bndbox><xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + w}</xmax>"
        f"<ymax>{y + h}</ymax></bndbox></object>"
        for c, x, y, w, h in PICTURES[name]
    )
    size = "<size><width>96</width><height>72</height></size>"
    return f"<annotation><filename>{name}</filename>{size}{objects}</annotation>"


def rows(names: list[str], prefix: str = "", *, header: bool = True, corners: bool = True) -> str:
    lines = []
    for name in names:
        for c, x, y, w, h in PICTURES[name]:
            box = (x, y, x + w, y + h) if corners else (x, y, w, h)
            lines.append(",".join(map(str, (prefix + name, *box, NAMES[c]))))
        if not PICTURES[name]:
            lines.append(f"{prefix}{name},,,,,")
    first = ["filename,xmin,ymin,xmax,ymax,class" if corners else "image,x,y,w,h,label"] if header else []
    return "\n".join(first + lines) + "\n"


def _each(root: Path, place: str, file: str, text: Callable[[list[str]], str]) -> None:
    for split, names in SPLITS.items():
        for name in names:
            picture(root / place.format(split=split) / name)
        write(root / file.format(split=split), text(names))


def _yolo(root: Path, pictures: str, labels: str) -> None:
    for split, names in SPLITS.items():
        for name in names:
            picture(root / pictures.format(split=split) / name)
            write(root / labels.format(split=split) / f"{name.rpartition('.')[0]}.txt", yolo(name))


def _yolo_yaml(root: Path, names: str, train: str, valid: str, path: str = "") -> None:
    write(root / "data.yaml", f"{path}train: {train}\nval: {valid}\nnc: 3\nnames: {names}\n")


def yolo_list(root: Path) -> None:
    _yolo(root, "images/{split}", "labels/{split}")
    _yolo_yaml(root, "{0: cat, 1: dog, 2: traffic light}", "train.txt", "[valid.txt]")
    write(root / "train.txt", "".join(f"./images/train/{name}\r\n" for name in SPLITS["train"]))
    write(root / "valid.txt", "".join(f"C:\\data\\images\\valid\\{name}\n" for name in SPLITS["valid"]))


def yolo_folders(root: Path) -> None:
    _yolo(root, "images/{split}", "labels/{split}")
    write(root / "classes.txt", "\n".join(NAMES))


def yolo_yaml(root: Path) -> None:
    _yolo(root, "{split}/images", "{split}/labels")
    _yolo_yaml(root, "[cat, dog, traffic light]", "../train/images", "/content/drive/mine/valid/images")


def yolo_path(root: Path) -> None:
    _yolo(root, "sub/images/{split}", "sub/labels/{split}")
    _yolo_yaml(root, "\n  - cat\n  - dog\n  - 'traffic light'", "images/train", "images/valid", "path: sub\n")


def yolo_beside(root: Path) -> None:
    _yolo(root, "{split}", "{split}")
    for split in SPLITS:
        write(root / split / "_darknet.labels", "\n".join(NAMES))


def voc_lists(root: Path) -> None:
    for name in PICTURES:
        picture(root / "JPEGImages" / name)
        write(root / "Annotations" / f"{name.rpartition('.')[0]}.xml", voc(name))
    for split, names in SPLITS.items():
        stem = {"train": "train", "valid": "val"}[split]
        write(root / "ImageSets" / "Main" / f"{stem}.txt", "".join(n.rpartition(".")[0] + "\n" for n in names))
        write(root / "ImageSets" / "Main" / f"cat_{stem}.txt", "")


def voc_beside(root: Path) -> None:
    for split, names in SPLITS.items():
        for name in names:
            picture(root / split / name)
            write(root / split / f"{name.rpartition('.')[0]}.xml", voc(name))


def _shards(root: Path, place: str, inside: str = "", file: str = "", text: Callable | None = None) -> None:
    """Two shards of each split: with the boxes in a file, or else in the shards."""
    for split, names in SPLITS.items():
        for k in range(2):
            files = []
            for name in names[k::2]:
                picture(root / name)
                files.append((inside + name, (root / name).read_bytes()))
                if text is None:
                    files.append((f"{inside}{name.partition('.')[0]}.json", sample(name).encode()))
                (root / name).unlink()
            write_shard(root / place.format(split=split, k=k), files)
        if text is not None:
            write(root / file.format(split=split), text(names))


def sample(name: str) -> str:
    """A picture's boxes in WebDataset's JSON."""
    found = [{"bbox": box, "category": NAMES[c]} for c, *box in PICTURES[name]]
    return json.dumps({"width": 96, "height": 72, "annotations": found})


FORMATS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "coco roboflow": ("COCO JSON", lambda r: _each(r, "{split}", "{split}/_annotations.coco.json", coco)),
    "coco any name": ("COCO JSON", lambda r: _each(r, "{split}", "{split}/my boxes.json", coco)),
    "coco 2017": ("COCO JSON", lambda r: _each(r, "{split}2017", "annotations/instances_{split}2017.json", coco)),
    "coco images": ("COCO JSON", lambda r: _each(r, "images", "annotations/{split}.json", coco)),
    "coco root": ("COCO JSON", lambda r: _each(r, "images/{split}", "{split}.json", coco)),
    "coco paths": (
        "COCO JSON",
        lambda r: _each(r, "pictures", "annotations/{split}.json", lambda n: coco(n, "pictures\\")),
    ),
    "yolo yaml": ("YOLO txt", yolo_yaml),
    "yolo path": ("YOLO txt", yolo_path),
    "yolo lists": ("YOLO txt", yolo_list),
    "yolo folders": ("YOLO txt", yolo_folders),
    "yolo beside": ("YOLO txt", yolo_beside),
    "voc lists": ("Pascal VOC XML", voc_lists),
    "voc beside": ("Pascal VOC XML", voc_beside),
    "csv beside": ("CSV of boxes", lambda r: _each(r, "{split}", "{split}/_annotations.csv", rows)),
    "csv sizes": ("CSV of boxes", lambda r: _each(r, "img", "{split}.csv", lambda n: rows(n, corners=False))),
    "csv headerless": (
        "CSV of boxes",
        lambda r: _each(r, "img", "{split}.csv", lambda n: rows(n, "/data/img/", header=False)),
    ),
    "coco shards": ("COCO JSON", lambda r: _shards(r, "{split}/{k:06}.tar", "", "{split}/boxes.json", coco)),
    "coco one shard folder": ("COCO JSON", lambda r: _shards(r, "s/{split}-{k}.tar", "./img/", "{split}.json", coco)),
    "csv shards": ("CSV of boxes", lambda r: _shards(r, "{split}-{k}.tar", "img/", "{split}.csv", rows)),
    "webdataset": ("WebDataset shards", lambda r: _shards(r, "{split}-{k:06}.tar")),
    "webdataset folders": ("WebDataset shards", lambda r: _shards(r, "shards/{split}/{k:06}.tar", "a.b/")),
}


def boxes(index: CocoIndex) -> Boxes:
    """Return (picture, class, x y width height) of every box."""
    names = dict(zip(index.categories.ids, index.categories.names, strict=True))
    columns = index.columns
    owners = np.repeat(np.arange(len(index)), columns.num_boxes).tolist()
    ids = columns.class_ids[columns.classes].tolist()
    return {
        (Path(index.file_names[i]).name, names[c], tuple(round(v, 6) for v in box))
        for i, c, box in zip(owners, ids, columns.boxes_xywh.tolist(), strict=True)
    }


def expected(split: str) -> Boxes:
    return {(n, NAMES[c], (x, y, w, h)) for n in SPLITS[split] for c, x, y, w, h in PICTURES[n]}
