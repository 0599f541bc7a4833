"""ImageNet weights: the authors' files, damaged files, and no network."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch

import dino
from dino.checkpoint import CheckpointError, imagenet
from dino.checkpoint.imagenet import URLS, load_backbone_weights
from dino.model.backbones.convnext import ConvNeXt
from dino.model.backbones.resnet import ResNet
from dino.model.backbones.swin import Swin


def small_swin(levels=(1, 2, 3)) -> Swin:
    return Swin(8, (1, 2, 2, 1), (1, 2, 4, 8), 3, levels)


def small_convnext(levels=(1, 2, 3)) -> ConvNeXt:
    return ConvNeXt((8, 16, 24, 32), (1, 2, 1, 1), levels)


BUILD = {
    "resnet18": lambda levels=(1, 2, 3): ResNet("resnet18", levels),
    "swin_t": small_swin,
    "convnext_t": small_convnext,
}


def random_weights(model: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.normal_()
    return model


def classifier_file(model: torch.nn.Module, name: str) -> dict:
    """The authors' file: the backbone's tensors, a classifier, and other entries."""
    tensors = {key: value for key, value in model.state_dict().items() if not key.startswith("norm")}
    if name.startswith("resnet"):
        return tensors | {
            "fc.weight": torch.zeros(1000, 512),
            "fc.bias": torch.zeros(1000),
            "bn1.num_batches_tracked": torch.tensor(1),
        }
    extra = {"head.weight": torch.zeros(10, 64), "norm.weight": torch.ones(64), "norm.bias": torch.ones(64)}
    if name.startswith("swin"):
        extra["layers.1.blocks.1.attn_mask"] = torch.zeros(4, 9, 9)
    return {"model": tensors | extra}


@pytest.mark.parametrize("name", BUILD)
def test_the_authors_classifier_is_loaded_without_its_head(tmp_path, name):
    source, backbone = random_weights(BUILD[name]()), BUILD[name]()
    norms = {key: value.clone() for key, value in backbone.state_dict().items() if key.startswith("norm")}
    torch.save(classifier_file(source, name), tmp_path / "file.pth")
    load_backbone_weights(backbone, name, tmp_path / "file.pth")
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, norms[key] if key in norms else source.state_dict()[key]), key


@pytest.mark.parametrize("name", BUILD)
def test_stages_that_the_model_does_not_have_are_left_out(tmp_path, name):
    source, backbone = random_weights(BUILD[name]()), BUILD[name]((0, 1))
    torch.save(classifier_file(source, name), tmp_path / "file.pth")
    load_backbone_weights(backbone, name, str(tmp_path / "file.pth"))
    loaded = {key: value for key, value in backbone.state_dict().items() if not key.startswith("norm")}
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in loaded.items())


@pytest.mark.parametrize("name", BUILD)
@pytest.mark.parametrize("damage", ["missing", "unexpected", "shape"])
def test_other_weights_are_refused_and_nothing_is_loaded(tmp_path, name, damage):
    content = classifier_file(random_weights(BUILD[name]()), name)
    tensors = content.get("model", content)
    key = next(key for key in tensors if key.endswith("weight"))
    if damage == "unexpected":
        tensors["stem.weight"] = torch.zeros(1)
    elif damage == "missing":
        del tensors[key]
    else:
        tensors[key] = torch.zeros(5, 5)
    torch.save(content, tmp_path / "file.pth")
    backbone = BUILD[name]()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(CheckpointError, match=rf"file.pth: not the weights of {name}: "):
        load_backbone_weights(backbone, name, tmp_path / "file.pth")
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


@pytest.fixture
def no_network(tmp_path, monkeypatch):
    """Empty the download cache and let every download fail; return the attempts."""
    attempts = []

    def refuse(request, timeout=None):
        attempts.append(request.full_url)
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return attempts


@pytest.mark.parametrize("name", URLS)
def test_without_network_the_error_says_where_the_file_belongs(no_network, tmp_path, name):
    place = tmp_path / "hub" / "checkpoints" / URLS[name].rpartition("/")[2]
    with pytest.raises(ConnectionError) as caught:
        load_backbone_weights(torch.nn.Identity(), name)
    for part in (name, URLS[name], f"Put that file at {place}", "backbone_weights", "pretrained_backbone=False"):
        assert part in str(caught.value)
    assert not place.exists()
    assert set(no_network) == {URLS[name]}


def test_a_model_is_never_random_by_accident(no_network):
    with pytest.raises(ConnectionError, match="pretrained_backbone=False"):
        dino.build_model("dino_4scale_r18", num_encoder_layers=1, num_decoder_layers=1)
    with pytest.raises(ValueError, match="no ImageNet weights were published for resnet_tiny"):
        dino.build_model("dino_tiny", pretrained_backbone=True)
    dino.build_model("dino_4scale_r18", num_encoder_layers=1, num_decoder_layers=1, pretrained_backbone=False)
    assert set(no_network) == {URLS["resnet18"]}


def test_a_file_in_the_cache_is_not_downloaded_again(no_network, tmp_path):
    source, backbone = random_weights(BUILD["resnet18"]()), BUILD["resnet18"]()
    path = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    path.parent.mkdir(parents=True)
    torch.save(classifier_file(source, "resnet18"), path)
    load_backbone_weights(backbone, "resnet18")
    assert torch.equal(backbone.conv1.weight, source.get_parameter("conv1.weight"))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"resnet18-f37072fd\.pth: damaged"):
        load_backbone_weights(backbone, "resnet18")
    assert no_network == []


def test_a_missing_local_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_backbone_weights(small_swin(), "swin_t", Path(tmp_path / "nowhere.pth"))


def test_every_backbone_but_the_tiny_one_has_published_weights():
    from dino.model.backbones import BACKBONES

    assert set(URLS) == set(BACKBONES) - {"resnet_tiny"}
    assert all(url.startswith("https://") for url in imagenet.URLS.values())
