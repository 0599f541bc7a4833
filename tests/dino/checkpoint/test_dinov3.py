"""DINOv3's ConvNeXt: files of its authors and of transformers, and the maps of transformers' model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dino.checkpoint import CheckpointError
from dino.checkpoint.imagenet import load_backbone_weights
from dino.model.backbones.convnext import ConvNeXt

SIZES, DEPTHS = (8, 16, 24, 32), (1, 2, 1, 1)


def small() -> ConvNeXt:
    return ConvNeXt(SIZES, DEPTHS, (0, 1, 2, 3))


def authors_file(model: ConvNeXt) -> dict[str, Tensor]:
    """Return the tensors under the names of `dinov3.models.convnext.ConvNeXt`, which has its last norm twice."""
    own = {name: x for name, x in model.state_dict().items() if not name.startswith("norm")}
    norm = {"weight": torch.ones(32), "bias": torch.zeros(32)}
    return own | {f"{place}.{name}": x for place in ("norm", "norms.3") for name, x in norm.items()}


def test_the_authors_file_loads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, backbone = small(), small()
    torch.save(authors_file(source), tmp_path / "dinov3.pth")
    load_backbone_weights(backbone, "convnext_t", tmp_path / "dinov3.pth")
    assert all(torch.equal(x, backbone.state_dict()[name]) for name, x in source.state_dict().items())


def test_a_file_of_transformers_gives_its_maps(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    config = transformers.DINOv3ConvNextConfig(hidden_sizes=list(SIZES), depths=list(DEPTHS))
    model = transformers.DINOv3ConvNextModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    backbone = small().eval()
    load_backbone_weights(backbone, "convnext_t", tmp_path / "model.safetensors")
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        expected = model(images, output_hidden_states=True).hidden_states[1:]
        found = backbone(images)
    for number, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        torch.testing.assert_close(ours, backbone.get_submodule(f"norm{number}")(theirs), rtol=1e-4, atol=1e-4)


def test_another_size_is_refused(tmp_path: Path) -> None:
    torch.save(authors_file(ConvNeXt(SIZES, (1, 1, 1, 1), (0, 1, 2, 3))), tmp_path / "dinov3.pth")
    with pytest.raises(CheckpointError, match=r"not the weights of convnext_t: missing: stages\.1\.1\.gamma"):
        load_backbone_weights(small(), "convnext_t", tmp_path / "dinov3.pth")
