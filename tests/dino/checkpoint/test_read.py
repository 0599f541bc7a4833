"""Files that hold no usable weights: damaged, foreign, or with code in them."""

from __future__ import annotations

import os
from typing import Any

import pytest
import safetensors.torch
import torch

import dino
from dino.checkpoint import CheckpointError, load_checkpoint


def small(seed: int = 0, **overrides: Any) -> Any:
    """Every tensor random, so that none can stay behind unseen."""
    size: dict[str, Any] = {
        "hidden_dim": 64,
        "num_heads": 8,
        "ffn_dim": 96,
        "num_encoder_layers": 2,
        "num_decoder_layers": 3,
    }
    more: dict[str, Any] = {"num_queries": 20, "num_classes": 91, "num_levels": 4}
    model = dino.build_model("dino_tiny", **(size | more | overrides))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return model.eval()


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


class RunsCode:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_file_that_would_run_code_is_refused_and_does_not_run_it(tmp_path, legacy):
    proof = tmp_path / "ran"
    path = tmp_path / "evil.pth"
    content = {"model": weights(small(0)), "args": RunsCode(f"touch {proof}")}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"evil\.pth: refused: it holds \w+\.system"):
        load_checkpoint(small(1), path)
    assert not proof.exists()


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_a_damaged_file_is_named(tmp_path, ending, damage):
    path = tmp_path / f"file{ending}"
    tensors = weights(small(0))
    safetensors.torch.save_file(tensors, path) if ending == ".safetensors" else torch.save(tensors, path)
    content = path.read_bytes()
    path.write_bytes({"truncated": content[: len(content) // 2], "garbage": b"<html>404" * 99, "empty": b""}[damage])
    with pytest.raises(CheckpointError, match=rf"file\{ending}: damaged"):
        load_checkpoint(small(1), path)


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
def test_a_file_of_something_else_is_refused(tmp_path, content, message, strict):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=rf"other\.pth: .*{message}"):
        load_checkpoint(small(1), tmp_path / "other.pth", strict=strict)


def test_nothing_that_fits_is_an_error_even_without_strict():
    with pytest.raises(CheckpointError, match="nothing was loaded"):
        load_checkpoint(small(1), {"transformer.level_embed": torch.zeros(7, 7)}, strict=False)


def test_a_missing_file_is_named(tmp_path):
    for path in (tmp_path / "no.pth", tmp_path):
        with pytest.raises(FileNotFoundError, match=str(path)):
            load_checkpoint(small(1), path)
