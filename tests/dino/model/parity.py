"""The stored outputs of the official model, and a small model of ours with the same weights."""

from __future__ import annotations

import copy
import functools
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import dino
from dino.checkpoint import to_official
from dino.model.criterion import Losses
from dino.model.denoising import Noise
from dino_kernels import PackedTargets

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
import fill  # noqa: E402

SMALL = {
    "hidden_dim": 64,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "num_queries": 50,
    "ffn_dim": 128,
    "pretrained_backbone": False,
}
SALT = "d"
CASES = ("gt3_5", "gt4_0", "gt0_0")


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def load_json(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def official_shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the official name of every weight of a model, with its shape."""
    return {name: tuple(value.shape) for name, value in to_official(model.state_dict()).items()}


def filled_model(**overrides: Any) -> dino.DINO:
    """Build the small model with the weights that the stored outputs were made with, in float32."""
    model = dino.build_model("dino_4scale_r50", **SMALL | overrides)
    weights = {name: tensor(fill.tensor(name, shape, SALT)) for name, shape in official_shapes(model).items()}
    dino.load_checkpoint(model, weights)
    return model


@functools.cache
def _filled_double() -> dino.DINO:
    return filled_model().double()


def filled_double_model() -> dino.DINO:
    """Return a copy of the small model, in float64."""
    return copy.deepcopy(_filled_double())


def images() -> tuple[Tensor, Tensor]:
    stored = load("small_eval")
    return tensor(stored["images"]), tensor(stored["img_mask"])


@dataclass
class TrainingCase:
    """One stored training step: its inputs and outputs."""

    stored: dict[str, np.ndarray]
    targets: list[dict[str, Tensor]]
    noise: Noise
    indices: Tensor

    @classmethod
    def load(cls, name: str) -> TrainingCase:
        stored = load(f"small_train_{name}")
        targets = [{"boxes": tensor(stored[f"gt{b}.boxes"]), "labels": tensor(stored[f"gt{b}.labels"])} for b in (0, 1)]
        return cls(stored, targets, recorded_noise(stored, "dn.", targets), tensor(stored["topk"]))

    def run(self, model: dino.DINO, *, force_selection: bool = True) -> tuple[dino.DetectionOutput, Losses, Tensor]:
        """Return output, losses and total of one forward pass in training."""
        model.train()
        criterion = dino.build_criterion(model.config)
        indices = self.indices if force_selection else None
        pixels, mask = images()
        pixels = pixels.to(model.encoder.level_embed.dtype)
        outputs = model(pixels, mask, self.targets, query_indices=indices, denoising_noise=self.noise)
        losses = criterion(outputs, self.targets)
        return outputs, losses, criterion.weighted_total(losses)

    def gradient_errors(self, model: dino.DINO) -> dict[str, float]:
        """Return the relative error of every parameter's gradient norm; the absolute one where it should be zero."""
        return self.run_backward(model)[1]

    def run_backward(self, model: dino.DINO) -> tuple[tuple[dino.DetectionOutput, Losses, Tensor], dict[str, float]]:
        """Return what `run` does, and what `gradient_errors` does."""
        model.zero_grad()
        result = self.run(model)
        result[2].backward()
        gradients = to_official(
            {
                name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                for name, parameter in model.named_parameters()
                if parameter.requires_grad
            }
        )
        names = [str(name) for name in self.stored["grad.names"]]
        assert set(gradients) == set(names)
        errors = {}
        for name, norm in zip(names, self.stored["grad.norms"], strict=True):
            actual = gradients[name].double().norm().item()
            errors[name] = abs(actual - norm) / norm if norm > 0 else actual
        return result, errors


def recorded_noise(stored: dict[str, np.ndarray], prefix: str, targets: list[dict[str, Tensor]]) -> Noise:
    """Return the official code's numbers by slot; it draws them for all boxes, once per block of every group."""
    packed = PackedTargets.pack(targets)
    slots, blocks = int(stored[f"{prefix}pad_size"]), 2 * int(stored[f"{prefix}num_groups"])
    image, index = packed.places()
    place = (image.repeat(blocks), (slots // blocks * torch.arange(blocks)[:, None] + index).flatten())
    names = ("p", "new_label", "rand_sign01", "rand_part")
    p, new_label, sign, part = (tensor(stored[f"{prefix}draw.{name}"]) for name in names)
    new_label = torch.zeros_like(p, dtype=torch.int64).masked_scatter(p < 0.25, new_label)  # of the redrawn rows alone
    shape = (packed.num_images, slots)
    return Noise(*(x.new_zeros(*shape, *x.shape[1:]).index_put(place, x) for x in (p, new_label, sign, part)))


def error(actual: Tensor | None, expected: np.ndarray) -> float:
    """Return the largest absolute difference; shapes must agree, and infinities must be in the same places."""
    assert actual is not None
    actual = actual.detach().double()
    reference = tensor(expected).double()
    assert actual.shape == reference.shape
    assert torch.equal(actual.isinf(), reference.isinf())
    difference = (actual - reference)[reference.isfinite()].abs()
    return difference.max().item() if difference.numel() else 0.0


def sample(values: Tensor, count: int) -> Tensor:
    """Return `count` values at equal steps, as the stored files hold large tensors."""
    flat = values.detach().flatten()
    if len(flat) <= count:
        return flat
    return flat[torch.arange(count) * len(flat) // count]
