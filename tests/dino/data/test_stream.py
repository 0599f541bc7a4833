"""Reading a COCO file in pieces gives what Python's `json` gives, and the same errors, wherever the pieces end."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from dino.data import DatasetError
from dino.data.coco import stream
from dino.data.coco.document import read_document
from dino.data.coco.stream import COLLECTIONS, read_collections

ENTRIES = [
    {"id": 1, "bbox": [1, 2.5, -3e-7, 0], "segmentation": [[1, 2, 3, 4]], "iscrowd": 0},
    {"id": 2, "segmentation": {"counts": 'a}, {b\\"', "size": [3, 4]}, "area": 12},
    {"segments_info": [{"id": 3}, {"id": 4}], "caption": "ä 漢字 \U0001f600 \ud800 \n\t/ }, {"},
    {},
    [],
    [[{"a": 1}, {"b": 2}]],
    123456789,
    -0.25,
    True,
    None,
    "}, {",
    {"deep": {"deeper": [{"deepest": {}}]}},
]
STYLES: dict[str, dict[str, Any]] = {
    "usual": {},
    "dense": {"separators": (",", ":")},
    "lines": {"indent": 2},
    "letters": {"ensure_ascii": False},
}


@pytest.fixture(params=[1, 7, 64, 1 << 20])
def block_bytes(request, monkeypatch):
    monkeypatch.setattr(stream, "_BLOCK_BYTES", request.param)


def content(seed: int) -> dict[str, Any]:
    """Collections of random entries, between other keys, in a random order."""
    rng = random.Random(seed)
    found: dict[str, Any] = {"info": {"version": "1.0"}, "licenses": [], "x": ENTRIES, "n": 5}
    found |= {name: rng.choices(ENTRIES, k=rng.choice([0, 1, 2, 30])) for name in COLLECTIONS}
    return {key: found[key] for key in rng.sample(list(found), len(found))}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("seed", range(4))
def test_every_entry_is_read_wherever_a_block_ends(tmp_path: Path, seed: int, style: str, block_bytes: None) -> None:
    file = tmp_path / "a.json"
    expected = content(seed)
    file.write_text(json.dumps(expected, **STYLES[style]), encoding="utf-8", errors="surrogatepass")
    found = read_document(file, tmp_path)
    assert [getattr(found, name) for name in COLLECTIONS] == [expected[name] for name in COLLECTIONS]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_every_encoding_of_json_is_read(tmp_path: Path, encoding: str, block_bytes: None) -> None:
    expected = {name: [{"name": "ä漢\U0001f600"}] for name in COLLECTIONS}
    (tmp_path / "a.json").write_text(json.dumps(expected, ensure_ascii=False), encoding=encoding)
    found = read_document(tmp_path / "a.json", tmp_path)
    assert [getattr(found, name) for name in COLLECTIONS] == list(expected.values())


def test_of_a_collection_that_is_there_twice_the_last_counts(tmp_path: Path) -> None:
    text = '{"images": [1], "annotations": [2], "images": [], "categories": [4], "annotations": [5, 6]}'
    (tmp_path / "a.json").write_text(text)
    found = read_document(tmp_path / "a.json", tmp_path)
    assert (found.images, found.annotations, found.categories) == ([], [5, 6], [4])


@pytest.mark.parametrize("seed", range(150))
def test_damaged_files_are_refused_at_the_place_where_json_refuses_them(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    text = json.dumps(content(seed), **rng.choice(list(STYLES.values())))
    place = rng.randrange(len(text))
    text = rng.choice([text[:place], text[:place] + rng.choice('{}[],:"x7 ') + text[place + rng.randint(0, 2) :]])
    file = tmp_path / "a.json"
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    monkeypatch.setattr(stream, "_BLOCK_BYTES", rng.choice([3, 50, 1 << 20]))
    expected, refused = None, ""
    try:
        expected = json.loads(text)
    except json.JSONDecodeError as error:
        refused = f"line {error.lineno}, column {error.colno}"
    if refused:
        with pytest.raises(DatasetError, match=f"must be a JSON object|trailing comma|{refused}"):
            read_document(file, tmp_path, needed=())
    elif isinstance(expected, dict):
        lists = [key for key in COLLECTIONS if type(expected.get(key)) is list]
        found = read_document(file, tmp_path, needed=lists)
        assert {key: getattr(found, key) for key in lists} == {key: expected[key] for key in lists}


def test_a_large_file_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    entry = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "segmentation": [list(range(200))]}
    file.write_text(json.dumps({"images": [], "annotations": [entry] * 6000, "categories": []}))
    sizes = [len(block) for key, blocks in read_collections(file, "a.json") if key == "annotations" for block in blocks]
    assert sum(sizes) == 6000 and max(sizes) * len(json.dumps(entry)) < 3 << 20


def test_a_file_is_read_as_far_as_is_needed_to_refuse_it(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[" + '{"image_id": 1, "score": 0.5}, ' * 200_000 + "{")
    with pytest.raises(DatasetError, match=r"must be a JSON object with .*, got \[\{'image_id': 1, .*\.\.\.\.$"):
        read_document(tmp_path / "a.json", tmp_path)
