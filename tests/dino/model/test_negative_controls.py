"""Each plausible mistake, made on purpose, shows in what the parity tests compare.

The effects were measured once with the official code (golden/negative_controls.json); here the same mistakes are made
in ours, so that a comparison that stopped comparing would fail. None is in the backbone: it runs once, for all.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

import dino
import dino.model.boxes
import dino.model.criterion
import dino.model.decoder
import dino.model.denoising
import dino.model.position
from dino.model.criterion import Predictions
from tests.dino.model import parity
from tests.dino.model.parity import TrainingCase, error

Patch = pytest.MonkeyPatch


def look_forward_once(model: dino.DINO, patch: Patch) -> None:
    model.config = dataclasses.replace(model.config, look_forward="once")


def image_temperature(model: dino.DINO, patch: Patch) -> None:
    patch.setitem(model.encoder.position, "temperature", 10000.0)


def inverse_sigmoid_bound(model: dino.DINO, patch: Patch) -> None:
    patch.setattr(dino.model.boxes, "LOGIT_EPS", 1e-5)


def heads_without_norm(model: dino.DINO, patch: Patch) -> None:
    norm = model.decoder.norm
    patch.setattr(norm, "forward", lambda states: states)


def refinement_with_norm(model: dino.DINO, patch: Patch) -> None:
    refine, norm = dino.model.decoder.refine, model.decoder.norm

    layers = len(model.decoder.layers)

    def with_norm(head: torch.nn.Module, states: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        # The predictions of all layers, [layers, B, Q, C], are normalised already.
        return refine(head, states if states.ndim == 4 and len(states) == layers else norm(states), reference)

    patch.setattr(dino.model.decoder, "refine", with_norm)


def query_embedding_order(model: dino.DINO, patch: Patch) -> None:
    original = dino.model.decoder.box_position
    patch.setattr(
        dino.model.decoder, "box_position", lambda boxes, lengths: original(boxes[..., [1, 0, 2, 3]], lengths)
    )


def query_embedding_without_valid_ratios(model: dino.DINO, patch: Patch) -> None:
    embed, scale = dino.model.decoder.box_position, []
    ratios = model.decoder.register_forward_pre_hook(
        lambda _m, inputs: scale.append(inputs[2].levels.valid_ratios[:, 0].repeat(1, 2)[:, None])
    )
    patch.setattr(dino.model.decoder, "box_position", lambda boxes, lengths: embed(boxes / scale[-1], lengths))
    patch.setattr(model, "remove", ratios.remove, raising=False)


def empty_slots_left_out(model: dino.DINO, patch: Patch) -> None:
    original = dino.model.criterion.set_losses

    def without_empty_slots(parts: list[Predictions], *rest: Any) -> Any:
        matched, denoising = parts
        logits = denoising.logits.clone()
        logits[:, 0, torch.arange(logits.shape[2]) % 5 >= 3] = -100.0  # of 5 slots 3 are the first image's boxes
        return original([matched, dataclasses.replace(denoising, logits=logits)], *rest)

    patch.setattr(dino.model.criterion, "set_losses", without_empty_slots)


def no_attention_mask(model: dino.DINO, patch: Patch) -> None:
    patch.setattr(dino.model.denoising.DenoisingQueries, "blocked", lambda self, num_matching: None)


def giou_without_eps(model: dino.DINO, patch: Patch) -> None:
    patch.setattr(dino.model.boxes, "GIOU_EPS", 0.0)


def whole_offsets(model: dino.DINO, patch: Patch) -> None:
    # Offsets count half of the box in the fused op; twice the projection is an offset without that factor.
    for name, parameter in model.named_parameters():
        if "cross_attn.sampling_offsets" in name:
            parameter.data.mul_(2)


MISTAKES: dict[str, Callable[[dino.DINO, Patch], None]] = {
    "look-forward-once (refs detached in box prediction)": look_forward_once,
    "image pos-embed temperature 10000": image_temperature,
    "inverse_sigmoid eps 1e-5": inverse_sigmoid_bound,
    "heads on un-normalised decoder output": heads_without_norm,
    "box refinement on normalised decoder output": refinement_with_norm,
    "query sine embed order x,y,w,h instead of y,x,w,h": query_embedding_order,
    "query sine embed without valid_ratio scaling": query_embedding_without_valid_ratios,
    "padded DN slots excluded from the DN class loss": empty_slots_left_out,
    "no DN attention mask": no_attention_mask,
    "GIoU without the two 1e-6 eps": giou_without_eps,
    "decoder sampling offsets without the 0.5 factor": whole_offsets,
}


@functools.cache
def features() -> list[torch.Tensor]:
    with torch.no_grad():
        return parity.filled_double_model().backbone(parity.images()[0].double())


def differences(model: dino.DINO, patch: Patch) -> dict[str, float]:
    """Return the differences that the parity tests bound, but for the backbone, on the case with 3 and 5 boxes."""
    patch.setattr(model.backbone, "forward", lambda images: features())
    step = TrainingCase.load("gt3_5")
    (outputs, losses, total), gradients = step.run_backward(model)
    denoising = outputs.as_dict()["dn"]
    return {
        "d_logits": error(outputs.logits[-1], step.stored["pred_logits"]),
        "d_boxes": error(outputs.boxes_cxcywh[-1], step.stored["pred_boxes"]),
        "d_dn_logits": error(denoising["pred_logits"], step.stored["dn.pred_logits"]),
        "d_loss": total.item() - step.stored["loss_total"].item(),
        "max_rel_gradnorm": max(error for name, error in gradients.items() if not name.startswith("backbone.")),
        "d_loss_ce_dn": losses["loss_ce_dn"].item() - step.stored["loss.loss_ce_dn"].item(),
        "d_loss_giou": losses["loss_giou"].item() - step.stored["loss.loss_giou"].item(),
    }


# Above these, a parity test fails.
LIMITS = {
    "d_logits": 3e-5,
    "d_boxes": 5e-6,
    "d_dn_logits": 3e-5,
    "d_loss": 2e-5,
    "max_rel_gradnorm": 2e-5,
    "d_loss_ce_dn": 1.3e-5,
    "d_loss_giou": 1.7e-6,
}


def test_every_recorded_mistake_is_made_here() -> None:
    assert set(MISTAKES) | {"official (control)"} == set(parity.load_json("negative_controls"))


def test_without_a_mistake_everything_is_within_limits(monkeypatch: Patch) -> None:
    found = differences(parity.filled_double_model(), monkeypatch)
    assert {name: value for name, value in found.items() if abs(value) > LIMITS[name]} == {}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_shows_with_the_recorded_effect(mistake: str, monkeypatch: Patch) -> None:
    model = parity.filled_double_model()
    MISTAKES[mistake](model, monkeypatch)
    found = differences(model, monkeypatch)
    recorded = parity.load_json("negative_controls")[mistake]
    noticed = {name: value for name, value in found.items() if abs(value) > LIMITS[name]}
    assert noticed.keys() >= {name for name in LIMITS if abs(recorded[name]) > 2 * LIMITS[name]}
    # The same quantities as recorded, of about the same size: it is the recorded mistake.
    for name, value in noticed.items():
        assert abs(recorded[name]) > LIMITS[name] / 2, name
        if name != "max_rel_gradnorm":
            assert value == pytest.approx(recorded[name], rel=0.1, abs=2 * LIMITS[name]), name
