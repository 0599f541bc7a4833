"""Saving and loading a whole model: round trips, interruptions, damaged headers."""

from __future__ import annotations

import json
from typing import Any

import pytest
import safetensors.torch
import torch

import dino
from dino.checkpoint import CheckpointError, folder, load_model, read, save_model
from dino.checkpoint.find import load_trained
from dino.data.categories import Categories

CATEGORIES = Categories((3, 17), ("cat", "Hund"))


def small(**overrides: Any) -> dino.DINO:
    size: dict[str, Any] = {
        "hidden_dim": 64,
        "num_encoder_layers": 1,
        "num_decoder_layers": 2,
        "num_queries": 9,
        "num_classes": 2,
    }
    return dino.build_model("dino_tiny", **(size | overrides))


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in a.state_dict().items())


@pytest.mark.parametrize(
    "overrides",
    [{}, {"query_selection": "static"}, {"query_selection": "pure"}, {"denoising": "off"}, {"backbone": "resnet18"}],
    ids=str,
)
def test_a_model_comes_back_as_it_was(tmp_path, overrides):
    model = small(**overrides)
    file = save_model(model, tmp_path / "new" / "folder", CATEGORIES, {"AP": 0.5})
    assert file == tmp_path / "new" / "folder" / "model.safetensors"
    for path in (file, file.parent, str(file.parent)):
        loaded, categories = load_model(path)
        assert loaded.config == model.config
        assert categories == CATEGORIES
        assert same_weights(model, loaded)


def test_the_json_describes_the_model(tmp_path):
    save_model(small(), tmp_path, CATEGORIES, {"step": 1200})
    described = json.loads((tmp_path / "model.json").read_text())
    assert described["format_version"] == 1
    assert described["model"]["hidden_dim"] == 64
    assert described["categories"] == [{"id": 3, "name": "cat"}, {"id": 17, "name": "Hund"}]
    assert described["extra"] == {"step": 1200}


def test_categories_are_optional(tmp_path):
    save_model(small(), tmp_path)
    assert load_model(tmp_path)[1] is None


def test_a_failed_save_leaves_the_old_model_and_no_temporary_file(tmp_path, monkeypatch):
    old = small()
    save_model(old, tmp_path, CATEGORIES)

    def full_disk(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(folder, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_model(small(), tmp_path, CATEGORIES)
    assert {path.name for path in tmp_path.iterdir()} <= {"model.safetensors", "model.json"}
    loaded, categories = load_model(tmp_path)
    assert same_weights(old, loaded)
    assert categories == CATEGORIES


def test_a_save_interrupted_between_the_files_leaves_the_new_model(tmp_path, monkeypatch):
    save_model(small(num_classes=3), tmp_path)

    def killed(path, text):
        raise KeyboardInterrupt

    new = small()
    monkeypatch.setattr(folder, "write_text_whole", killed)
    with pytest.raises(KeyboardInterrupt):
        save_model(new, tmp_path, CATEGORIES)
    loaded, categories = load_model(tmp_path)
    assert same_weights(new, loaded)
    assert categories == CATEGORIES


def test_saving_again_replaces_the_model(tmp_path):
    save_model(small(), tmp_path, CATEGORIES)
    new = small(num_queries=11)
    save_model(new, tmp_path)
    loaded, categories = load_model(tmp_path)
    assert same_weights(new, loaded)
    assert categories is None


def test_the_json_is_for_people_and_never_read(tmp_path):
    save_model(small(), tmp_path, CATEGORIES)
    (tmp_path / "model.json").write_text("{")
    assert load_model(tmp_path)[1] == CATEGORIES


def test_a_model_is_read_once(tmp_path, monkeypatch):
    file, opened = save_model(small(), tmp_path, CATEGORIES, {"image_size": {"short_side": 64, "long_side": 96}}), []

    def counted(path, **options):
        opened.append(path)
        return safetensors.safe_open(path, **options)

    monkeypatch.setattr(read, "safe_open", counted)
    trained = load_trained(tmp_path)
    assert opened == [file] and trained.categories == CATEGORIES
    assert (trained.transform.short_side, trained.transform.long_side) == (64, 96)


HEADERS = {
    "newer": (lambda d: d | {"format_version": 2}, r"has format 2, this version reads up to 1\. Upgrade"),
    "versionless": (lambda d: {k: v for k, v in d.items() if k != "format_version"}, "no format_version"),
    "field": (lambda d: d | {"licence": "MIT"}, "unknown or missing: licence"),
    "list": (lambda d: [d], "no format_version"),
    "model": (lambda d: d | {"model": [1]}, "must be a dict of configuration fields"),
    "width": (lambda d: d | {"model": d["model"] | {"hidden_dim": 65}}, "hidden_dim must be"),
    "text": (lambda d: d | {"model": d["model"] | {"hidden_dim": "wide"}}, ""),
    "new field": (lambda d: d | {"model": d["model"] | {"new": 1}}, r"unknown fields .*: new\. Upgrade"),
    "queries": (lambda d: d | {"model": d["model"] | {"num_queries": 10}}, "do not fit the configuration stored"),
    "categories": (lambda d: d | {"categories": [{"id": 1}]}, 'expected {"id": 1, "name": "person"}'),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_does_not_describe_the_weights_is_refused(tmp_path, name):
    change, message = HEADERS[name]
    model = small()
    file = save_model(model, tmp_path)
    header = json.loads((tmp_path / "model.json").read_text())
    safetensors.torch.save_file(model.state_dict(), file, {"dino": json.dumps(change(header))})
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: .*{message}"):
        load_model(file)


def test_weights_without_a_configuration_are_refused(tmp_path):
    safetensors.torch.save_file(small().state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"without a configuration\. Build the model and use load_checkpoint"):
        load_model(tmp_path)


def test_only_a_model_with_its_own_number_of_categories_is_saved(tmp_path):
    with pytest.raises(ValueError, match="categories must be the model's 3, got 2"):
        save_model(small(num_classes=3), tmp_path, CATEGORIES)
    with pytest.raises(TypeError, match="must be a DINO, got DataParallel"):
        save_model(torch.nn.DataParallel(small()), tmp_path)
    assert list(tmp_path.iterdir()) == []
