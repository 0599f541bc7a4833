"""Any category ids become contiguous labels, and come back."""

from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dino.data import NO_CATEGORY, Categories

records = st.lists(
    st.tuples(st.integers(-(2**63), 2**63 - 1), st.text(min_size=1)), min_size=1, max_size=50, unique_by=lambda r: r[0]
)


@given(records)
def test_labels_and_category_ids_are_inverse(pairs: list[tuple[int, str]]) -> None:
    categories = Categories(tuple(i for i, _ in pairs), tuple(name for _, name in pairs))
    assert categories.num_classes == len(pairs)
    for label, (category_id, name) in enumerate(pairs):
        assert categories.label_of(category_id) == label
        assert categories.category_id_of(label) == category_id
        assert categories.name_of(label) == name


@given(records)
def test_json_and_pickle_round_trips(pairs: list[tuple[int, str]]) -> None:
    categories = Categories(tuple(i for i, _ in pairs), tuple(name for _, name in pairs))
    assert Categories.from_json(json.loads(json.dumps(categories.to_json()))) == categories
    assert pickle.loads(pickle.dumps(categories)) == categories
    assert hash(categories) == hash(Categories.from_json(categories.to_json()))


def test_official_labels_are_coco_category_ids() -> None:
    official = Categories.official_coco()
    assert official.num_classes == 91
    assert all(official.label_of(category_id) == category_id for category_id in range(91))
    gaps = sorted(official.unused)
    assert {official.name_of(label) for label in gaps} == {NO_CATEGORY}
    assert Categories.from_json(official.to_json()) == official
    assert (
        Categories.from_json([{"id": i, "name": n} for i, n in zip(official.ids, official.names, strict=True)])
        == official
    )
    assert gaps == [0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83]
    some = {1: "person", 11: "fire hydrant", 13: "stop sign", 25: "giraffe", 27: "backpack", 28: "umbrella"}
    some |= {31: "handbag", 44: "bottle", 46: "wine glass", 65: "bed", 67: "dining table", 70: "toilet", 72: "tv"}
    some |= {82: "refrigerator", 84: "book", 90: "toothbrush"}
    assert {label: official.name_of(label) for label in some} == some


def test_a_class_may_have_any_name_and_titles_differ() -> None:
    categories = Categories((0, 1, 2, 3), (NO_CATEGORY, "car", "bus", "car"))
    assert not categories.unused and Categories.from_json(categories.to_json()) == categories
    assert categories.titles == (NO_CATEGORY, "car (id 1)", "bus", "car (id 3)")


@pytest.mark.parametrize(
    ("ids", "names", "message"),
    [
        ((), (), "at least 1; got 0 and 0"),
        ((1, 2), ("cat",), "must have one length, at least 1; got 2 and 1"),
        ((1, 2, 1), ("a", "b", "c"), "ids must be distinct, got 1 more than once"),
        ((1.0,), ("a",), "ids must be integers, got 1.0"),
        ((True,), ("a",), "ids must be integers, got True"),
        (("1",), ("a",), "ids must be integers, got '1'"),
        ((1,), ("",), "names must be non-empty text, got ''"),
        ((1,), (None,), "names must be non-empty text, got None"),
    ],
)
def test_invalid_categories_are_named(ids: tuple, names: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Categories(ids, names)


@pytest.mark.parametrize("record", [{"id": 1}, {"name": "cat"}, "cat", None])
def test_invalid_json_records_are_named(record: object) -> None:
    with pytest.raises(ValueError, match=r'expected \{"id": 1, "name": "person"\}, got'):
        Categories.from_json([record])  # pyright: ignore[reportArgumentType]


def test_unknown_labels_and_ids_are_named() -> None:
    categories = Categories((7, 90), ("cat", "dog"))
    with pytest.raises(ValueError, match=r"label must be one of 0\.\.1, got 2"):
        categories.category_id_of(2)
    with pytest.raises(ValueError, match=r"label must be one of 0\.\.1, got -1"):
        categories.name_of(-1)
    with pytest.raises(ValueError, match="category id must be one of 7, 90, got 8"):
        categories.label_of(8)


def test_difference_names_what_differs_and_ignores_order() -> None:
    one = Categories((1, 2, 3), ("cat", "dog", "owl"))
    assert one.difference(Categories((3, 1, 2), ("owl", "cat", "dog")), mine="a", theirs="b") is None
    other = Categories((1, 2, 4), ("cat", "wolf", "bee"))
    assert one.difference(other, mine="train", theirs="valid") == (
        "category 2 is 'dog' in train but 'wolf' in valid; only train has 3 ('owl'); only valid has 4 ('bee')"
    )


@pytest.mark.parametrize(
    ("names", "titles"),
    [
        (("a", "b"), ("a", "b")),
        (("car", "car", "bus"), ("car (id 0)", "car (id 1)", "bus")),
        (("car", "car", "car (id 1)"), ("car (id 0)", "car (id 1) (id 1)", "car (id 1) (id 2)")),
    ],
)
def test_titles_differ(names, titles):
    assert Categories(tuple(range(len(names))), names).titles == titles
