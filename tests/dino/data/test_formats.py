"""Every usual format is recognised, gives the same boxes, and trains; malformed files are named."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dino.data import DatasetError, Layout, build_datasets, find_splits, open_image
from dino.training.train import train
from tests.dino.data.format_examples import FORMATS, NAMES, SPLITS, boxes, coco, expected, voc, write, yolo
from tests.dino.training.train_toys import quick_runs, toy_config


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_boxes_come_out_of_every_format(name: str, tmp_path: Path) -> None:
    kind, make = FORMATS[name]
    make(tmp_path)
    layout = find_splits(tmp_path)
    assert layout.format == kind and list(layout.splits) == ["train", "valid"] and not layout.unnamed
    for split, names in SPLITS.items():
        index = layout.require(split).load()
        assert sorted(Path(file).name for file in index.file_names) == sorted(names)
        assert boxes(index) == expected(split)
        assert index.sizes_wh.tolist() == [[96, 72]] * len(names)
        assert all(open_image(index.image_path(i)).size == (96, 72) for i in range(len(index)))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_trains(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick_runs(monkeypatch)
    FORMATS[name][1](tmp_path / "data")
    config = toy_config(
        tmp_path / "data", tmp_path / "run", epochs=1, batch_size=2, evaluate_every=1, short_sides=(64,)
    )
    result = train(config, quiet=True)
    assert result.step == 2 and result.best is not None and result.final_model is not None


@pytest.mark.parametrize(
    ("name", "file", "unnamed"),
    [
        ("coco any name", "train/my boxes.json", True),
        ("coco 2017", "annotations/instances_train2017.json", True),
        ("yolo yaml", "data.yaml", False),
        ("csv sizes", "train.csv", True),
        ("csv beside", "train", True),
        ("coco roboflow", "train", True),
        ("voc beside", "train", True),
        ("yolo beside", "train", True),
        ("coco shards", "train/boxes.json", True),
        ("coco shards", "train", True),
        ("webdataset folders", "shards/train", True),
    ],
)
def test_a_file_or_the_folder_of_a_split_is_a_data_set(name: str, file: str, unnamed: bool, tmp_path: Path) -> None:
    FORMATS[name][1](tmp_path)
    layout = find_splits(tmp_path / file)
    assert layout.unnamed == unnamed
    assert boxes(layout.require("train").load()) == expected("train")


def edited(root: Path, name: str, file: str, text: str | bytes | None) -> Layout:
    """Write a format with one file replaced, or removed."""
    FORMATS[name][1](root)
    path = root / file
    if text is None:
        path.unlink()
    elif isinstance(text, bytes):
        path.write_bytes(text)
    else:
        write(path, text)
    return find_splits(root)


LABELS = ("yolo yaml", "train/labels/a 1.txt")
XML = ("voc beside", "train/a 1.xml")
CSV = ("csv beside", "train/_annotations.csv")
CAT = ("a 1.png", "cat", (8.0, 10.0, 32.0, 20.0))
BOM = b"\xef\xbb\xbf"
ROW = "0 0.25 0.5 0.1 0.2"
YOLO_ROW = ("a 1.png", "cat", (19.2, 28.8, 9.6, 14.4))
CSV_HEADER = "filename,xmin,ymin,xmax,ymax,class\n"
SAME = {  # format, file, its content; the boxes of "a 1.png" in train
    "yolo bom and crlf": (*LABELS, BOM + f"{ROW}\r\n\r\n".encode(), YOLO_ROW),
    "yolo class with decimals": (*LABELS, ROW.replace("0 ", "0.0 ", 1), YOLO_ROW),
    "yolo tabs": (*LABELS, ROW.replace(" ", "\t"), YOLO_ROW),
    "yolo polygon": (*LABELS, "0 0.2 0.4 0.3 0.4 0.3 0.6 0.2 0.6", YOLO_ROW),
    "yolo empty": (*LABELS, "", None),
    "yolo without a text file": (*LABELS, None, None),
    "voc bom": (
        *XML,
        BOM + voc("a 1.png").encode(),
        CAT,
    ),
    "voc without size": (
        *XML,
        voc("a 1.png").replace("<width>96", "<width>0"),
        CAT,
    ),
    "voc windows path": (
        *XML,
        voc("a 1.png").replace(">a 1.png<", ">C:\\pictures\\a 1.png<"),
        CAT,
    ),
    "voc name without suffix": (
        *XML,
        voc("a 1.png").replace(">a 1.png<", ">a 1<"),
        CAT,
    ),
    "voc from its own years counts from 1": (
        *XML,
        voc("a 1.png").replace("<size>", "<source><database>The VOC2007 Database</database></source><size>"),
        ("a 1.png", "cat", (7.0, 9.0, 33.0, 21.0)),
    ),
    "csv semicolons and bom": (
        *CSV,
        BOM + (CSV_HEADER + "A 1.png,8,10,40,30,cat\n").replace(",", ";").replace("A", "a").encode(),
        CAT,
    ),
    "csv crlf and spaces": (
        *CSV,
        " FileName , X_Min,Y_Min,X_Max,Y_Max, Label\r\na 1.png , 8, 10 ,40,30, cat\r\n",
        CAT,
    ),
    "csv image sizes beside corners": (
        *CSV,
        "filename,width,height,class,xmin,ymin,xmax,ymax\na 1.png,96,72,cat,8,10,40,30\n",
        CAT,
    ),
    "csv windows path": (
        *CSV,
        CSV_HEADER + "D:\\work\\train\\a 1.png,8,10,40,30,cat\n",
        CAT,
    ),
    "csv suffix in another case": (
        *CSV,
        CSV_HEADER + "a 1.PNG,8,10,40,30,cat\n",
        CAT,
    ),
    "csv fractions": (
        *CSV,
        "ImageID,XMin,XMax,YMin,YMax,LabelName\na 1,0.25,0.5,0.5,0.75,cat\n",
        ("a 1.png", "cat", (24.0, 36.0, 24.0, 18.0)),
    ),
}


@pytest.mark.parametrize("case", SAME)
def test_unusual_files_are_read(case: str, tmp_path: Path) -> None:
    name, file, text, box = SAME[case]
    index = edited(tmp_path, name, file, text).require("train").load()
    assert {found for found in boxes(index) if found[0] == "a 1.png"} == ({box} if box else set())


# format, file, its content, the line of the error
MALFORMED = {
    "yolo class": (
        *LABELS,
        "7 0.5 0.5 0.1 0.1",
        "train/labels/a 1.txt: line 1: category_id 7",
    ),
    "yolo negative class": (
        *LABELS,
        "-1 0.5 0.5 0.1 0.1",
        "a 1.txt: line 1: category_id -1",
    ),
    "yolo class name": (
        *LABELS,
        "cat 0.5 0.5 0.1 0.1",
        "line 1: must be numbers, got 'cat",
    ),
    "yolo text": (*LABELS, "0 0.5 x 0.1 0.1", "line 1: must be numbers"),
    "yolo commas": (*LABELS, "0,0.5,0.5,0.1,0.1", "line 1: must be numbers"),
    "yolo four": (*LABELS, "0 0.5 0.5 0.1", "line 1: must be a class and 4 numbers"),
    "yolo odd polygon": (*LABELS, "0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "got 8 numbers"),
    "yolo pixels": (
        *LABELS,
        f"{ROW}\n0 24 30 10 12",
        "line 2: '0 24 30 10 12' is not in fractions",
    ),
    "yolo outside": (
        *LABELS,
        "0 1.4 0.5 0.1 0.1",
        "line 1: bbox .* lies outside its image",
    ),
    "yolo negative": (*LABELS, "0 0.4 0.5 -0.1 0.1", "line 1: bbox .* has negative width"),
    "yolo nan": (*LABELS, "0 nan 0.5 0.1 0.1", "line 1: bbox .* holds NaN"),
    "yolo binary": (*LABELS, b"\xff\xfe0 \x00", "a 1.txt: is not text in UTF-8"),
    "yolo missing image": (
        "yolo yaml",
        "train/images/d.png",
        None,
        "train/labels/d.txt: has boxes, but its image",
    ),
    "yolo broken image": (
        "yolo yaml",
        "train/images/d.png",
        b"no",
        "train/images/d.png: has no width and height",
    ),
    "yolo list": (
        "yolo lists",
        "train.txt",
        "images/train/d.png\nnowhere.png\n",
        "train.txt: line 2: the image 'nowh",
    ),
    "yolo entry": (
        "yolo yaml",
        "data.yaml",
        "train: nowhere\nnames: [a]",
        "train: 'nowhere' does not exist",
    ),
    "yolo names": ("yolo yaml", "data.yaml", "train: train\nnames: cat", "data.yaml: names must be a list of names"),
    "yolo yaml": ("yolo yaml", "data.yaml", "train: [train\nnames: [a", "data.yaml: is not valid YAML"),
    "yolo few names": (
        "yolo yaml",
        "data.yaml",
        "train: train/images\nnames: [cat]",
        "category_id 1 is not among",
    ),
    "voc not xml": (*XML, "<annotation", "train/a 1.xml: cannot be read: "),
    "voc missing image": ("voc beside", "train/a 1.png", None, "train/a 1.xml: its image 'a 1.png' is missing"),
    "voc text": (*XML, voc("a 1.png").replace(">8<", ">left<"), "a 1.xml: object 1: the box"),
    "voc no class": (
        *XML,
        voc("a 1.png").replace(">cat<", "><"),
        "object 1: the object has no name",
    ),
    "voc outside": (
        *XML,
        voc("a 1.png").replace(">8<", ">96<").replace(">40<", ">99<"),
        "lies outside",
    ),
    "voc exchanged": (
        *XML,
        voc("a 1.png").replace(">8<", ">80<"),
        "object 1: bbox .* negative width",
    ),
    "voc list": (
        "voc lists",
        "ImageSets/Main/train.txt",
        "d\nnobody\n",
        "line 2: 'nobody' has no file in Ann",
    ),
    "csv missing image": (
        *CSV,
        CSV_HEADER + "x.png,1,2,3,4,cat",
        "line 2: the image 'x.png'",
    ),
    "csv text": (
        *CSV,
        CSV_HEADER + "d.png,1,2,x,4,cat",
        "line 2: the box .* is not four numbers",
    ),
    "csv short": (
        *CSV,
        CSV_HEADER + "d.png,1,2",
        "line 2: has 3 columns, at least 6",
    ),
    "csv no class": (
        *CSV,
        CSV_HEADER + "d.png,1,2,3,4,",
        "line 2: the box has no class",
    ),
    "csv outside": (
        *CSV,
        CSV_HEADER + "d.png,100,2,110,4,cat",
        "line 2: bbox .* lies outside",
    ),
    "csv columns": (
        *CSV,
        "a,b\n1,2\n",
        "train/_annotations.csv: has no columns of boxes",
    ),
    "csv empty": (*CSV, "", "train/_annotations.csv: has no columns of boxes"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files_are_named_with_their_place(case: str, tmp_path: Path) -> None:
    name, file, text, message = MALFORMED[case]
    with pytest.raises(DatasetError, match=message):
        edited(tmp_path, name, file, text).require("train").load()


def test_skip_invalid_keeps_the_rest_and_counts(tmp_path: Path) -> None:
    index = edited(tmp_path, *LABELS, f"{ROW}\n9 0.5 0.5 0.1 0.1\nx\n")
    loaded = index.require("train").load(skip_invalid=True)
    assert boxes(loaded) == expected("train") - {CAT} | {YOLO_ROW}
    assert [line.partition("Skipped ")[2] for line in loaded.describe_problems()] == ["1 of 7 annotations."] * 2


def test_difficult_objects_are_crowds_and_said_to_be(tmp_path: Path) -> None:
    text = voc("a 1.png").replace("</name>", "</name><difficult>1</difficult>")
    index = edited(tmp_path, *XML, text).require("train").load()
    assert int(index.columns.crowds.sum()) == 1
    assert index.notes == ("train: 1 object is marked difficult and ignored, like crowds in COCO",)


def test_classes_without_ids_agree_by_name(tmp_path: Path) -> None:
    """A split with fewer classes has other ids of its own."""
    FORMATS["voc beside"][1](tmp_path)
    (tmp_path / "valid" / "a 1.xml").unlink()
    valid = build_datasets(tmp_path).valid
    assert valid is not None
    assert boxes(valid.index) == {found for found in expected("valid") if found[0] == "b.JPG"}
    write(tmp_path / "valid" / "b.xml", voc("b.JPG").replace(">dog<", ">wolf<"))
    with pytest.raises(DatasetError, match=r"valid has boxes of 'wolf', which train has not"):
        build_datasets(tmp_path)


def test_two_formats_are_refused_and_one_can_be_chosen(tmp_path: Path) -> None:
    FORMATS["coco images"][1](tmp_path)
    for name in SPLITS["train"]:
        write(tmp_path / "labels" / f"{name.rpartition('.')[0]}.txt", yolo(name))
    write(tmp_path / "classes.txt", "\n".join(NAMES))
    with pytest.raises(DatasetError, match=r"COCO JSON \(annotations/train\.json, .* and YOLO txt \(labels\)\. Pass"):
        find_splits(tmp_path)
    assert find_splits(tmp_path / "annotations").format == "COCO JSON"
    layout = find_splits(tmp_path / "labels")
    assert layout.format == "YOLO txt" and layout.unnamed
    assert boxes(layout.require("train").load()) == expected("train")


def test_several_files_without_the_name_of_a_split_are_refused(tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        write(tmp_path / name, coco(["a 1.png"]))
    with pytest.raises(DatasetError, match=r"has a\.json and b\.json\. Pass one as --data, for example .*a\.json"):
        find_splits(tmp_path)


def test_yolo_without_names_numbers_the_classes(tmp_path: Path) -> None:
    index = edited(tmp_path, "yolo folders", "classes.txt", None).require("train").load()
    assert index.categories.names == ("class 0", "class 1", "class 2")
    assert "no class names" in index.notes[0]


def test_without_pyyaml_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    FORMATS["yolo yaml"][1](tmp_path)
    with pytest.raises(ImportError, match=r"data\.yaml: reading it needs PyYAML: pip install pyyaml"):
        find_splits(tmp_path)


def test_pictures_of_another_split_are_not_taken(tmp_path: Path) -> None:
    FORMATS["csv beside"][1](tmp_path)
    (tmp_path / "valid" / "b.JPG").unlink()
    with pytest.raises(DatasetError, match=r"valid/_annotations\.csv: line 3: the image 'b\.JPG' is missing"):
        find_splits(tmp_path).require("valid").load()
