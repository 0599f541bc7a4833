"""Files that cannot be loaded: code, damage, other contents. Each error names the file, and the model is unchanged."""

from __future__ import annotations

import os

import pytest
import safetensors.torch
import torch

import dino
from dino.checkpoint import CheckpointError, load_checkpoint

TENSORS = dino.build_model("dino_tiny", hidden_dim=32, num_decoder_layers=1).state_dict()


@pytest.fixture
def refuse():
    """Check that a source is refused with a message."""

    def check(source, message, error=CheckpointError, **options):
        model = dino.build_model("dino_tiny", hidden_dim=32, num_decoder_layers=1)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(error, match=message):
            load_checkpoint(model, source, **options)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    return check


class RunsCode:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_file_that_would_run_code_is_refused_and_does_not_run_it(tmp_path, refuse, legacy):
    proof = tmp_path / "ran"
    content = {"model": TENSORS, "args": RunsCode(f"touch {proof}")}
    torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=not legacy)
    refuse(tmp_path / "evil.pth", r"evil\.pth: holds \w+\.system, which may run code")
    assert not proof.exists()


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_a_damaged_file_is_named(tmp_path, refuse, ending, damage):
    path = tmp_path / f"file{ending}"
    safetensors.torch.save_file(TENSORS, path) if ending == ".safetensors" else torch.save(TENSORS, path)
    content = path.read_bytes()
    path.write_bytes({"truncated": content[: len(content) // 2], "garbage": b"<html>404" * 99, "empty": b""}[damage])
    refuse(path, rf"file\{ending}: damaged")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"a": 1}}, r"expected tensors by name.*'a' \(int\)"),
        ([torch.zeros(1)], "expected a dict of tensors, got list"),
        ({}, "got nothing"),
        ({3: torch.zeros(1)}, r"3 \(Tensor\)"),
        ({"conv1.weight": torch.zeros(1)}, "none of the known layouts.*begin with conv1.weight"),
    ],
    ids=["numbers", "list", "empty", "unnamed", "classifier"],
)
@pytest.mark.parametrize("strict", [True, False])
def test_a_file_of_something_else_is_refused(tmp_path, refuse, content, message, strict):
    torch.save(content, tmp_path / "other.pth")
    refuse(tmp_path / "other.pth", rf"other\.pth: .*{message}", strict=strict)


def test_nothing_that_fits_is_an_error_even_without_strict(refuse):
    refuse({"transformer.level_embed": torch.zeros(7, 7)}, "nothing was loaded", strict=False)


def test_a_missing_file_is_named(tmp_path, refuse):
    for path in (tmp_path / "no.pth", tmp_path):
        refuse(path, str(path), FileNotFoundError)
